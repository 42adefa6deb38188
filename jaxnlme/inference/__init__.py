"""Tests and intervals from estimates and their covariance."""
