"""Gaussian linear mixed model with one grouping structure, from cross-products per group.

Model: ``t = X beta + Z Lambda u + e`` with ``u ~ N(0, sigma^2 I)``, ``e ~ N(0, sigma^2 / w)``. All that
the likelihood needs is ``[Z X t]' W [Z X t]`` per group, so its cost does not depend on the number of
rows. ``beta`` and ``sigma`` are profiled out (Bates et al. 2015, section 3; Pinheiro and Bates 2000,
eq. 2.21), the gradient in ``Lambda`` is closed form.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from jaxnlme._typing import Array, Float
from jaxnlme.numerics.blocks import small_matmul, transpose
from jaxnlme.numerics.small_linalg import cho_solve, cholesky, logdet

_LOG_2PI = 1.8378770664093453


class CrossProducts(eqx.Module):
    """Weighted cross-products; the ones with ``X`` and ``t`` alone are summed over groups."""

    zz: Float[Array, "m q q"]
    zx: Float[Array, "m q f"]
    zt: Float[Array, "m q"]
    xx: Float[Array, "f f"]
    xt: Float[Array, "f"]
    tt: Float[Array, ""]

    def __add__(self, other: CrossProducts) -> CrossProducts:
        """Join the sums of two sets of rows of the same groups."""
        return CrossProducts(
            self.zz + other.zz,
            self.zx + other.zx,
            self.zt + other.zt,
            self.xx + other.xx,
            self.xt + other.xt,
            self.tt + other.tt,
        )


def cross_products(
    Z: Float[Array, "m n q"],
    X: Float[Array, "m n f"],
    t: Float[Array, "m n"],
    weights: Float[Array, "m n"],
) -> CrossProducts:
    """Reduce the rows of each group; rows of weight 0 must hold finite numbers."""
    w = weights[..., None]
    wz, wx = w * Z, w * X
    tall = t[..., None]
    return CrossProducts(
        zz=small_matmul_rows(wz, Z),
        zx=small_matmul_rows(wz, X),
        zt=small_matmul_rows(wz, tall)[..., 0],
        xx=jnp.sum(small_matmul_rows(wx, X), 0),
        xt=jnp.sum(wx * tall, (0, 1)),
        tt=jnp.sum(weights * t**2),
    )


def small_matmul_rows(a: Float[Array, "m n p"], b: Float[Array, "m n q"]) -> Float[Array, "m p q"]:
    """``a' b`` per group, summed over its rows."""
    if max(a.shape[-1], b.shape[-1]) > 8:
        return jnp.einsum("mnp,mnq->mpq", a, b)
    return jnp.sum(a[..., :, None] * b[..., None, :], axis=1)


class Profile(eqx.Module):
    """The profiled fit at one ``Lambda``."""

    deviance: Float[Array, ""]
    gradient: Float[Array, "q q"]  # of the deviance in Lambda, summed over groups
    beta: Float[Array, "f"]
    u: Float[Array, "m q"]
    pss: Float[Array, ""]  # penalised sum of squares |W^(1/2) r|^2 + |u|^2 at its minimum
    chol_xvx: Float[Array, "f f"]  # of X' V^-1 X, V = sigma^-2 Var(t)
    chol_h: Float[Array, "m q q"]  # of I + Lambda' Z'W Z Lambda
    dof: Float[Array, ""]  # rows, less the free columns when restricted: sigma^2 = pss / dof


def profile(
    c: CrossProducts,
    lam: Float[Array, "q q"],
    num_rows: Float[Array, ""],
    free: Float[Array, "f"],
    *,
    restricted: bool,
) -> Profile:
    """Minimise over ``beta``, ``u`` and ``sigma`` at a relative factor ``lam``.

    Parameters
    ----------
    num_rows
        Rows with positive weight.
    free
        1 for columns of X that are estimated, 0 for columns held at zero.
    restricted
        True for the REML criterion.

    Notes
    -----
    ``deviance = -2 log L`` without ``- sum log w``, all other constants kept:
    ``sum logdet H + k log(2 pi pss / k) + k [+ logdet X'V^-1X]`` with k = rows, or rows minus free
    columns when restricted. A singular ``X'V^-1X`` gives NaN.
    """
    q = lam.shape[-1]
    f = free.shape[0]
    eye = jnp.eye(q, dtype=lam.dtype)
    lam_ = lam[None]
    zzl = small_matmul(c.zz, lam_)
    chol_h = cholesky(eye[None] + small_matmul(transpose(lam_), zzl))
    zx = c.zx * free[None, None]
    rhs = small_matmul(transpose(lam_), jnp.concatenate([zx, c.zt[..., None]], -1))
    solved = cho_solve(chol_h, rhs)
    ux, ut = solved[..., :f], solved[..., f]
    xvx = c.xx * free[:, None] * free[None] - jnp.sum(small_matmul(transpose(rhs[..., :f]), ux), 0)
    xvt = c.xt * free - jnp.sum(rhs[..., :f] * ut[..., None], (0, 1))
    tvt = c.tt - jnp.sum(rhs[..., f] * ut)
    # Unit diagonal for columns that are held; scaling keeps columns of any unit well conditioned.
    d = jnp.sqrt(jnp.where(free > 0, jnp.diagonal(xvx), 1.0))
    d = jnp.where(d > 0, d, 1.0)
    scaled = xvx / d[:, None] / d[None] + jnp.diag(1.0 - free)
    chol_s = cholesky(scaled)
    chol_xvx = chol_s * d[:, None]
    beta = cho_solve(chol_xvx, xvt[:, None])[:, 0]
    u = ut - jnp.sum(ux * beta[None, None], -1)
    pss = tvt - jnp.sum(xvt * beta)

    k = num_rows - (jnp.sum(free) if restricted else 0.0)
    deviance = jnp.sum(logdet(chol_h)) + k * (jnp.log(pss / k) + _LOG_2PI + 1.0)
    # d logdet H / d Lambda = 2 Z'Z Lambda H^-1;  d pss / d Lambda = -2 (Z'r) u' (envelope theorem).
    hinv = cho_solve(chol_h, jnp.broadcast_to(eye, c.zz.shape))
    zr = c.zt - jnp.sum(zx * beta[None, None], -1) - jnp.sum(zzl * u[:, None, :], -1)
    gradient = 2.0 * jnp.sum(
        small_matmul(zzl, hinv) - (k / pss) * zr[..., :, None] * u[..., None, :], 0
    )
    if restricted:
        deviance = deviance + 2 * jnp.sum(jnp.log(jnp.diagonal(chol_xvx)) * free)
        vinv = cho_solve(chol_xvx, jnp.diag(free))
        zrx = zx - small_matmul(zzl, ux)
        gradient = gradient - 2.0 * jnp.sum(
            small_matmul(zrx, small_matmul(vinv[None] * free[None, :, None], transpose(ux))), 0
        )
    return Profile(deviance, gradient, beta, u, pss, chol_xvx, chol_h, k)


def covariance_information(
    zz: Float[Array, "m q q"],
    lam: Float[Array, "q q"],
    dlam: Float[Array, "t q q"],
    num_rows: Float[Array, ""],
    *,
    profiled: bool = True,
) -> Float[Array, "t t"]:
    """Expected Hessian of the deviance in the parameters of ``Lambda``.

    ``tr(V^-1 dV_a V^-1 dV_b)`` with ``dV_a = Z (dLambda_a Lambda' + Lambda dLambda_a') Z'``; with
    ``profiled`` the part that sigma^2 explains is taken out.
    """
    q = lam.shape[-1]
    lam_ = lam[None]
    zzl = small_matmul(zz, lam_)
    chol_h = cholesky(jnp.eye(q, dtype=lam.dtype)[None] + small_matmul(transpose(lam_), zzl))
    zviz = zz - small_matmul(zzl, cho_solve(chol_h, transpose(zzl)))
    half = small_matmul(dlam, transpose(lam_))
    d = half + transpose(half)
    w = small_matmul(zviz[:, None], d[None])
    info = jnp.einsum("maij,mbji->ab", w, w)
    if profiled:
        t = jnp.sum(jnp.trace(w, axis1=-2, axis2=-1), 0)
        info = info - t[:, None] * t[None, :] / num_rows
    return info


def fixed_information(
    chol_xvx: Float[Array, "f f"], free: Float[Array, "f"]
) -> Float[Array, "f f"]:
    """``(X' V^-1 X)^-1`` with zeros for held columns; times sigma^2 it is the covariance of beta."""
    return cho_solve(chol_xvx, jnp.diag(free)) * free[:, None] * free[None]
