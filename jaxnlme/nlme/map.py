"""Log prior density of a penalised (MAP) fit, in (beta, sd, correlation, error) without Jacobians."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from jaxnlme._typing import Array, Float
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.priors import LKJ, AbstractPrior


class PriorPart(eqx.Module):
    """One prior and the parameters that it is for: ``beta``, ``sd``, ``cor`` or ``error``."""

    what: str = eqx.field(static=True)
    index: tuple[int, ...] = eqx.field(static=True)
    prior: AbstractPrior | LKJ


class MAPPrior(eqx.Module):
    """Sum of log priors; the penalised fit maximises log-likelihood plus this."""

    parts: tuple[PriorPart, ...]

    def log_prob(self, params: NLMEParams, problem: NLMEProblem) -> Float[Array, ""]:
        """Return the log prior density."""
        total = jnp.zeros((), params.beta.dtype)
        sds, correlations = [], []
        for block, theta in zip(
            problem.covariance.blocks, problem.covariance.split(params.theta), strict=True
        ):
            low = block.factor(theta)
            sd = jnp.sqrt(jnp.sum(low**2, -1))
            sds.append(sd)
            scaled = low / jnp.where(sd > 0, sd, 1.0)[:, None]
            correlations.append(scaled @ scaled.T)
        values = {
            "beta": params.beta,
            "sd": jnp.concatenate(sds),
            "error": problem.error_model.natural(params.error),
        }
        for part in self.parts:
            if part.what == "cor":
                total = total + sum(part.prior.log_prob(r) for r in correlations)
            else:
                chosen = values[part.what][jnp.array(part.index)]
                total = total + jnp.sum(part.prior.log_prob(chosen))
        return total
