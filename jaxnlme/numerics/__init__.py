"""Shared kernels: small linear algebra, mode finder, quasi-Newton outer loop, quadrature, bijectors."""
