"""Covariance of the random effects: which entries are free, and the map from theta to a factor.

``theta`` holds the entries of the lower Cholesky factor of the absolute covariance ``psi`` (per
level, column by column within each row), not logged: a variance of zero is an ordinary point, and
``psi`` is never inverted. Entries that the pattern sets to zero are solved for, not estimated.
"""

from __future__ import annotations

import itertools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme._typing import Array, Float


class CovarianceBlock(eqx.Module):
    """Covariance of one grouping level.

    Parameters
    ----------
    pattern
        Symmetric 0/1 pattern as a tuple of tuples; 1 marks an entry of ``psi`` that is estimated.
        The diagonal is always 1.
    repeats
        How many copies of the level stand in one outermost group (1 for the outermost level
        itself). The random effects of copy k follow those of copy k - 1.
    """

    pattern: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    repeats: int = eqx.field(default=1, static=True)

    @property
    def size(self) -> int:
        return len(self.pattern)

    @property
    def entries(self) -> tuple[tuple[int, int], ...]:
        """Free entries (row, column) of the factor, in the order of ``theta``."""
        r = self.size
        return tuple((i, j) for i in range(r) for j in range(i + 1) if i == j or self.pattern[i][j])

    def fill_in(self, theta: Float[Array, "k"], xp: Any = jnp) -> dict[tuple[int, int], Any]:
        """Return the entries (row, column) of the factor that are not free and need not be zero."""
        place = {entry: k for k, entry in enumerate(self.entries)}
        low: dict[tuple[int, int], Any] = {}
        for i, j in itertools.product(range(self.size), repeat=2):
            if j > i or (i, j) in place:
                continue

            def known(i: int, k: int) -> Any:
                return theta[place[i, k]] if (i, k) in place else low.get((i, k))

            # psi_ij = sum_k L_ik L_jk must vanish: solve for L_ij (zero without fill-in).
            pairs = [(known(i, k), known(j, k)) for k in range(j)]
            terms = [x * y for x, y in pairs if x is not None and y is not None]
            if terms:
                pivot = theta[place[j, j]]
                zero = xp.zeros((), theta.dtype)
                safe = xp.where(pivot == 0, 1.0, pivot)
                low[i, j] = xp.where(pivot == 0, zero, -sum(terms) / safe)
        return low

    def factor(self, theta: Float[Array, "k"]) -> Float[Array, "r r"]:
        """Return the lower factor ``L`` with ``psi = L L'`` and zeros where the pattern has them."""
        return Covariance((CovarianceBlock(self.pattern),)).factor(theta)

    def theta(self, psi: np.ndarray) -> np.ndarray:
        """Return the free factor entries of a covariance matrix (semi-definite allowed)."""
        low = semidefinite_cholesky(np.asarray(psi, dtype=float))
        return np.array([low[i, j] for i, j in self.entries])


def semidefinite_cholesky(psi: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor of a positive semi-definite matrix; zero pivots give zero columns."""
    r = psi.shape[0]
    low = np.zeros_like(psi)
    scale = float(np.max(np.abs(np.diag(psi)), initial=0.0))
    for j in range(r):
        pivot = psi[j, j] - low[j, :j] @ low[j, :j]
        if pivot < -1e-8 * max(scale, 1e-300):
            raise ModelSpecError(
                f"psi is not positive semi-definite (pivot {j + 1} is {pivot:.3g}): check the "
                "covariance matrix."
            )
        if pivot <= 1e-14 * max(psi[j, j], 1e-300):
            continue
        low[j, j] = np.sqrt(pivot)
        low[j + 1 :, j] = (psi[j + 1 :, j] - low[j + 1 :, :j] @ low[j, :j]) / low[j, j]
    return low


class Covariance(eqx.Module):
    """Covariance of all random effects of one outermost group: one block per level."""

    blocks: tuple[CovarianceBlock, ...] = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Random effects per outermost group, all levels and copies."""
        return sum(b.size * b.repeats for b in self.blocks)

    @property
    def num_theta(self) -> int:
        return sum(len(b.entries) for b in self.blocks)

    def split(self, theta) -> list:
        """Cut ``theta`` into the parts of the blocks."""
        parts, at = [], 0
        for block in self.blocks:
            k = len(block.entries)
            parts.append(theta[at : at + k])
            at += k
        return parts

    def factor(self, theta: Float[Array, "t"]) -> Float[Array, "q q"]:
        """Return the block-diagonal factor of all random effects of a group."""
        values, places, at, first = [theta], [], 0, 0
        fills = self.num_theta
        for block, part in zip(self.blocks, self.split(theta), strict=True):
            low = block.fill_in(part)
            if low:
                values.append(jnp.stack(list(low.values())))
            entries = [(*entry, first + k) for k, entry in enumerate(block.entries)]
            entries += [(*entry, fills + k) for k, entry in enumerate(low)]
            first, fills = first + len(block.entries), fills + len(low)
            for _ in range(block.repeats):
                places += [(at + i, at + j, k) for i, j, k in entries]
                at += block.size
        if not places:
            return jnp.zeros((at, at), theta.dtype)
        # One sum with constants: written entry by entry, it is a tenth of what a fit traces.
        selector = np.zeros((at, at, fills), theta.dtype)
        selector[tuple(np.array(places).T)] = 1
        everything = jnp.concatenate(values) if len(values) > 1 else theta
        return jnp.sum(selector * everything[None, None], -1)

    def psi(self, theta: Any) -> list[np.ndarray]:
        """Return the covariance matrix of each level (host)."""
        out = []
        for block, part in zip(self.blocks, self.split(np.asarray(theta)), strict=True):
            low = _host_factor(block, part)
            out.append(low @ low.T)
        return out

    def theta(self, psi: list[np.ndarray]) -> np.ndarray:
        """Return the free factor entries of the levels' covariance matrices (host)."""
        parts = [b.theta(p) for b, p in zip(self.blocks, psi, strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def diagonal_positions(self) -> tuple[int, ...]:
        """Positions in ``theta`` that stand on a factor's diagonal."""
        out, at = [], 0
        for block in self.blocks:
            out += [at + k for k, (i, j) in enumerate(block.entries) if i == j]
            at += len(block.entries)
        return tuple(out)


def _host_factor(block: CovarianceBlock, theta: np.ndarray) -> np.ndarray:
    low = np.zeros((block.size, block.size))
    for k, entry in enumerate(block.entries):
        low[entry] = theta[k]
    for entry, value in block.fill_in(theta, np).items():
        low[entry] = value
    return low


def pattern_from(
    value, names: tuple[str, ...], *, argument: str = "covariance"
) -> tuple[tuple[int, ...], ...]:
    """Read a covariance option: "full", "diagonal", blocks of names, a 0/1 matrix or block numbers.

    Raises
    ------
    ModelSpecError
        For an unknown name, a matrix of the wrong shape or with entries other than 0 and 1.
    """
    r = len(names)
    if isinstance(value, str):
        if value == "full":
            out = np.ones((r, r), int)
        elif value == "diagonal":
            out = np.eye(r, dtype=int)
        else:
            raise ModelSpecError(
                f"{argument}={value!r} is not known: use 'full', 'diagonal', a 0/1 matrix or "
                "blocks of names such as [['A1', 'lrc1'], ['A2']]."
            )
    elif _is_blocks(value):
        out = np.eye(r, dtype=int)
        seen: list[str] = []
        for block in value:
            index = []
            for name in block:
                if name not in names or name in seen:
                    raise ModelSpecError(
                        f"{argument}: {name!r} must name each random effect once; they are {names}."
                    )
                seen.append(name)
                index.append(names.index(name))
            out[np.ix_(index, index)] = 1
        if len(seen) != r:
            missing = [n for n in names if n not in seen]
            raise ModelSpecError(f"{argument}: no block holds the random effects {missing}.")
    else:
        array = np.asarray(value)
        if array.shape == (r,) or array.shape == (1, r):
            array = array.reshape(r)
            out = (array[:, None] == array[None, :]).astype(int)
        elif array.shape == (r, r):
            if not np.all(np.isin(array, [0, 1])):
                raise ModelSpecError(f"{argument}: the {r} x {r} pattern may hold 0 and 1 only.")
            out = np.maximum(array, array.T).astype(int)
            np.fill_diagonal(out, 1)
        else:
            raise ModelSpecError(
                f"{argument} has shape {array.shape}, but there are {r} random effects {names}: "
                f"give a {r} x {r} matrix of 0 and 1, or {r} block numbers."
            )
    return tuple(tuple(int(v) for v in row) for row in out)


def _is_blocks(value) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(b, list | tuple) and all(isinstance(n, str) for n in b) for b in value)
    )
