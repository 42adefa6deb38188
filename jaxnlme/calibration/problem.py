"""Log densities that are sampled: a posterior made of priors, target, model and likelihood, or a function."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, nearest, some
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.likelihoods import AbstractLikelihood, GaussianLikelihood, VariableData
from jaxnlme.calibration.models import HostModel, ModelRunner, PartitionedModel
from jaxnlme.calibration.parameters import ParameterSet, PriorDensity
from jaxnlme.calibration.target import Target
from jaxnlme.numerics.mcmc import BATCH, map_points

__all__ = [
    "AbstractDensity",
    "AbstractEnsembleDensity",
    "FunctionDensity",
    "Posterior",
    "make_posterior",
]


class AbstractEnsembleDensity(eqx.Module):
    """A log density of sampling coordinates z (p,), with optional blobs kept beside each draw.

    Subclasses have ``names``, those of the parameters; ``to_natural`` and ``log_jacobian`` relate z to
    the natural scale.
    """

    @abc.abstractmethod
    def ensembles(
        self, z: Float[Array, "e h p"]
    ) -> tuple[Float[Array, "e h"], Float[Array, "e h b"]]:
        """Evaluate h points of each of e ensembles; log densities and flat blobs."""

    def to_natural(self, z: Any) -> Any:
        """Map sampling coordinates (..., p) to the natural scale."""
        return z

    def to_coordinates(self, theta: Any) -> Any:
        """Map the natural scale (..., p) to sampling coordinates."""
        return theta

    def log_jacobian(self, z: Any) -> Any:
        """Return log |d natural / d z|, shape (...)."""
        return jnp.zeros_like(z[..., 0])


class AbstractDensity(AbstractEnsembleDensity):
    """One log density for all ensembles; subclasses may have ``batch``, points per pass."""

    @abc.abstractmethod
    def evaluate(self, z: Float[Array, "p"]) -> tuple[Float[Array, ""], Float[Array, "b"]]:
        """Return the log density of z and the flat blob; NaN becomes -inf."""

    def many(self, z: Float[Array, "n p"]) -> tuple[Float[Array, "n"], Float[Array, "n b"]]:
        """Evaluate n points in batches."""
        return map_points(self.evaluate, z, getattr(self, "batch", BATCH))

    def ensembles(self, z):
        e, h, p = z.shape
        value, blobs = self.many(z.reshape(e * h, p))
        return value.reshape(e, h), blobs.reshape(e, h, blobs.shape[-1])


def no_nan(value: Any) -> Any:
    """Turn NaN into -inf: a failed model has no density. +inf stays, and is reported by the samplers."""
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


class FunctionDensity(AbstractDensity):
    """A user's ``log_prob(x) -> scalar`` over the whole space."""

    function: Any
    names: tuple[str, ...] = eqx.field(static=True)
    batch: int = eqx.field(static=True, default=BATCH)

    def evaluate(self, z):
        value = jnp.asarray(self.function(z), z.dtype)
        if value.shape != ():
            raise ModelSpecError(
                f"log_prob must return one number per point, got shape {value.shape} for a point "
                f"of shape {z.shape}."
            )
        return no_nan(value), jnp.zeros(0, z.dtype)


class StaticFunction(eqx.Module):
    """A plain function as a pytree without leaves."""

    function: Callable = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        return self.function(x)


class Posterior(AbstractDensity):
    """Log posterior density: priors + likelihood of the target under the model.

    Data, forcing and prior parameters are leaves, so that another data set of the same shape runs
    the same compiled program, and ``vmap`` over posteriors works.
    """

    prior: PriorDensity
    model: Any
    data: tuple[VariableData, ...]
    likelihoods: tuple[AbstractLikelihood, ...]
    blobs: Callable | None = eqx.field(static=True, default=None)
    batch: int = eqx.field(static=True, default=BATCH)

    @property
    def names(self) -> tuple[str, ...]:
        return self.prior.names

    def output(self, params: dict[str, Any]) -> dict[str, Array]:
        """Run the model and return what it gives at the observed times, by variable."""
        output = self.model(params)
        return {d.name: _observed(d, output) for d in self.data}

    def params(self, theta: Float[Array, "p"]) -> dict[str, Any]:
        """Return the dict that the model receives."""
        return {name: theta[k] for k, name in enumerate(self.names)}

    def log_likelihood(self, theta: Float[Array, "p"]) -> Float[Array, ""]:
        """Return the log likelihood at a natural point."""
        params = self.params(theta)
        return sum(self.terms(params, self.output(params)), start=jnp.zeros_like(theta[0]))

    def terms(self, params: dict[str, Any], output: dict[str, Array]) -> list[Array]:
        """Return the log likelihood of each variable."""
        return [
            likelihood.log_prob(d, output[d.name], params)
            for d, likelihood in zip(self.data, self.likelihoods, strict=True)
        ]

    def log_prob(self, theta: Float[Array, "p"]) -> Float[Array, ""]:
        """Return the log posterior density at a natural point; -inf outside the support."""
        prior = self.prior.log_prob(theta)
        value = jnp.where(prior > -jnp.inf, prior + self.log_likelihood(theta), -jnp.inf)
        return no_nan(value)

    def evaluate(self, z):
        theta = self.to_natural(z)
        params = self.params(theta)
        output = self.output(params)
        prior = self.prior.log_prob(theta)
        value = sum(self.terms(params, output), start=prior) + self.log_jacobian(z)
        value = no_nan(jnp.where(prior > -jnp.inf, value, -jnp.inf))
        if self.blobs is None:
            return value, jnp.zeros(0, z.dtype)
        leaves = jax.tree.leaves(self.blobs(params, output))
        flat = [jnp.ravel(jnp.asarray(leaf, z.dtype)) for leaf in leaves]
        return value, jnp.concatenate(flat)

    def blob_structure(self) -> Any:
        """Return shapes of the blobs as a pytree of ``jax.ShapeDtypeStruct``, or None."""
        if self.blobs is None:
            return None
        blobs = self.blobs

        def of(theta: Array) -> Any:
            params = self.params(theta)
            return blobs(params, self.output(params))

        return jax.eval_shape(of, jax.ShapeDtypeStruct((len(self.names),), jnp.float64))

    def to_natural(self, z):
        return self.prior.to_natural(z)

    def to_coordinates(self, theta):
        return self.prior.to_coordinates(theta)

    def log_jacobian(self, z):
        return self.prior.log_jacobian(z)


def _observed(data: VariableData, output: Any) -> Array:
    if not isinstance(output, Mapping):
        raise ModelSpecError(
            f"the model returned {type(output).__name__}; it must return a dict "
            "{variable: array over times}."
        )
    if data.name not in output:
        raise ModelSpecError(
            f"the model gives no variable {data.name!r}; its output has {some(output)}."
            + nearest(data.name, output)
        )
    values = jnp.asarray(output[data.name], data.values.dtype)
    index, expected = data.index
    if values.shape != (expected,):
        raise ModelSpecError(
            f"the model's {data.name!r} has shape {values.shape}, expected ({expected},), one value "
            "per time of the model (ModelRunner(times=...))."
        )
    return values if index is None else values[index]


def make_posterior(
    parameters: Any,
    target: Any,
    runner: Any,
    likelihood: Any = None,
    *,
    blobs: Any = None,
) -> Posterior:
    """Put priors, observations, model and likelihood together.

    Parameters
    ----------
    parameters, target, runner
        What is sampled, what was seen, and the model between them.
    likelihood
        One for all variables (default :class:`GaussianLikelihood`), or a dict by variable.
    blobs
        ``blobs(params, output) -> pytree`` of numbers to keep with every stored draw; ``output``
        holds the model at the observed times.

    Raises
    ------
    ModelSpecError
        Types do not fit, a name that the target refers to is not a parameter, or the model lacks a
        variable or gives it another length than its times.

    Examples
    --------
    >>> from jaxnlme.calibration import Normal
    >>> def mean(params):
    ...     return {"y": params["mu"] * np.ones(3)}
    >>> posterior = make_posterior(
    ...     ParameterSet({"mu": Normal(0, 10)}),
    ...     Target().add_variable("y", [0, 1, 2], [1.0, 2.0, 3.0], 1.0),
    ...     ModelRunner(mean),
    ... )
    >>> posterior.names
    ('mu',)
    """
    for name, value, kind in (
        ("parameters", parameters, ParameterSet),
        ("target", target, Target),
        ("runner", runner, ModelRunner),
    ):
        if not isinstance(value, kind):
            raise ModelSpecError(
                f"{name} must be a {kind.__name__}, got {type(value).__name__}; the order is "
                "parameters, target, runner, likelihood."
            )
    if not len(target):
        raise ModelSpecError("the target has no variables: add_variable(name, times, values, ...).")
    prior = parameters.density()
    likelihoods = _by_variable(likelihood, target)
    model = runner.bound({o.name: o.times for o in target}, parameters.names())
    data = []
    for observation in target:
        prepared = likelihoods[observation.name].prepare(observation)
        index = runner.index(observation.name, np.asarray(prepared.times), observation.times)
        length = len(runner.times_of(observation.name, observation.times))
        whole = np.array_equal(index, np.arange(length))
        place = _Index(None if whole else index.astype(np.int32), length)
        data.append(eqx.tree_at(lambda d: d.index, prepared, place, is_leaf=lambda x: x is None))
    chosen = tuple(likelihoods[o.name] for o in target)
    for name in [n for d in data for n in d.names_used()] + [
        n for one in chosen for n in one.names_used()
    ]:
        if name not in prior.names:
            raise ModelSpecError(
                f"the target or its likelihood refers to {name!r}, which is not a parameter."
                + nearest(name, prior.names)
            )
    if blobs is not None and not callable(blobs):
        raise ModelSpecError("blobs= must be a function of (params, output).")
    batch = 2**30 if isinstance(model, HostModel) else BATCH
    return Posterior(
        prior=prior, model=model, data=tuple(data), likelihoods=chosen, blobs=blobs, batch=batch
    )


class _Index(eqx.Module):
    """Where the observed times stand in the model's output: positions or None (all), and its length."""

    positions: Any
    length: int = eqx.field(static=True)

    def __iter__(self) -> Any:
        return iter((self.positions, self.length))


def _by_variable(likelihood: Any, target: Target) -> dict[str, AbstractLikelihood]:
    if likelihood is None:
        likelihood = GaussianLikelihood()
    given = (
        likelihood if isinstance(likelihood, Mapping) else dict.fromkeys(target.names, likelihood)
    )
    for name in given:
        if name not in target.names:
            raise ModelSpecError(
                f"likelihood names variable {name!r}, which the target lacks."
                + nearest(str(name), target.names)
            )
    for name in target.names:
        if name not in given:
            raise ModelSpecError(f"likelihood has no entry for variable {name!r}.")
        if not isinstance(given[name], AbstractLikelihood):
            raise ModelSpecError(
                f"likelihood={given[name]!r} is not a likelihood: use GaussianLikelihood(), "
                "StudentTLikelihood(), LogNormalLikelihood(), PoissonLikelihood(), "
                "NegativeBinomialLikelihood() or FunctionLikelihood(f)."
            )
    return dict(given)


@outer_jit
def evaluate_many(density: AbstractDensity, z: Array) -> tuple[Array, Array]:
    """Evaluate a density at n points; compiled."""
    return density.many(z)


@outer_jit
def term_table(posterior: Posterior, theta: Array) -> tuple[Array, Array]:
    """Return (n, p) log prior terms and (n, variables) log likelihoods at natural points."""

    def one(point: Array) -> tuple[Array, Array]:
        params = posterior.params(point)
        terms = posterior.terms(params, posterior.output(params))
        return posterior.prior.terms(point), jnp.stack(terms)

    return map_points(one, theta, posterior.batch)


# ---- identity, for resuming --------------------------------------------------------------------


def digest(tree: Any) -> str:
    """Return a hash of a pytree: its numbers, its structure, and the code of its functions."""
    leaves, structure = jax.tree.flatten(tree)
    h = hashlib.sha256()
    for leaf in leaves:
        array = np.asarray(leaf)
        h.update(f"{array.dtype}{array.shape}".encode())
        h.update(np.ascontiguousarray(array).tobytes())
    del structure  # its text holds addresses; names and static fields are hashed by the caller
    return h.hexdigest()


def code_digest(function: Any) -> str:
    """Return a hash of a function's code, constants, defaults and closed-over numbers."""
    h = hashlib.sha256()
    _feed(h, function, 0)
    return h.hexdigest()


def _feed(h: Any, value: Any, depth: int) -> None:
    if depth > 6:
        return
    if hasattr(value, "func") and hasattr(value, "args"):  # functools.partial
        for part in (value.func, value.args, value.keywords):
            _feed(h, part, depth + 1)
        return
    code = getattr(value, "__code__", None)
    if code is not None:
        h.update(value.__qualname__.encode())
        _feed_code(h, code)
        for cell in value.__closure__ or ():
            _feed(h, cell.cell_contents, depth + 1)
        _feed(h, value.__defaults__ or (), depth + 1)
    elif isinstance(value, bool | int | float | str | bytes | type(None)):
        h.update(repr(value).encode())
    elif isinstance(value, np.ndarray | jax.Array):
        h.update(np.ascontiguousarray(np.asarray(value)).tobytes())
    elif isinstance(value, tuple | list):
        for item in value:
            _feed(h, item, depth + 1)
    elif isinstance(value, Mapping):
        for key in value:
            h.update(str(key).encode())
            _feed(h, value[key], depth + 1)
    else:
        h.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())


def _feed_code(h: Any, code: Any) -> None:
    h.update(code.co_code)
    h.update(" ".join((*code.co_names, *code.co_varnames)).encode())
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            _feed_code(h, constant)
        else:
            h.update(repr(constant).encode())


def fingerprint(density: AbstractEnsembleDensity) -> dict[str, str]:
    """Return hashes of the parts of a density, by what a user would call them."""
    if isinstance(density, Posterior):
        model = density.model
        if isinstance(model, HostModel):
            said = code_digest(model.pool.factory)
        elif isinstance(model, PartitionedModel):
            kind = type(eqx.combine(model.arrays, model.static.tree))
            said = code_digest(kind.__call__) + digest(model.arrays)
        else:
            said = code_digest(model.function)
        return {
            "parameters": hashlib.sha256(repr(density.names).encode()).hexdigest()
            + "+"
            + digest((density.prior,))
            + "+"
            + hashlib.sha256(
                repr([type(p).__name__ for p in density.prior.priors]
                     + [str(t and t.name) for t in density.prior.transforms]).encode()
            ).hexdigest(),
            "target": digest(density.data),
            "model": said,
            "likelihood": hashlib.sha256(
                repr([type(one).__name__ for one in density.likelihoods]).encode()
            ).hexdigest()
            + digest(density.likelihoods),
        }  # fmt: skip
    function = getattr(density, "function", None)
    inner = function.function if isinstance(function, StaticFunction) else function
    return {
        "parameters": repr(getattr(density, "names", ())),
        "log_prob": code_digest(inner) + digest(function),
    }
