"""Chain files: append-only records with checksums, and a state that is replaced in one step.

A chain is a folder. ``chain.json`` says what the records are, ``chain.f64`` holds records of raw
float64 (positions (p, walkers), log density, accepted so far, blobs, checksum), and ``state.npz``
all that the sampler needs to go on. Records are written and synced before the state that counts
them, so that a process killed at any time leaves a chain that ends where its state is; what was
written after it is cut off when the chain goes on.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxnlme._errors import SerializationError, nearest

__all__ = ["ChainStorage"]

FORMAT = 1
HEADER, RECORDS, STATE = "chain.json", "chain.f64", "state.npz"


class ChainStorage:
    """The folder of one chain.

    Parameters
    ----------
    path
        Folder; made by :meth:`create` or :meth:`save`.

    Examples
    --------
    >>> import tempfile
    >>> from jaxnlme.calibration import Chain
    >>> chain = Chain(np.ones((3, 2, 1)), np.zeros((3, 2)), ["a"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ChainStorage(folder + "/run").save(chain)
    ...     Chain.load(folder + "/run").samples.shape
    (3, 2, 1)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def exists(self) -> bool:
        """Return True if the folder holds a chain whose state is complete."""
        return (self.path / STATE).is_file() and (self.path / HEADER).is_file()

    # ---- writing --------------------------------------------------------------------------------

    def create(self, header: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder with its header and no records."""
        if self.exists() and not overwrite:
            raise SerializationError(
                f"{self.path} holds a chain already. Go on with sampler.resume(path, n_steps), or "
                "give overwrite=True or another path."
            )
        with self._writing("the chain could not be started"):
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (STATE, RECORDS):
                (self.path / name).unlink(missing_ok=True)
            text = json.dumps({"format": FORMAT, **header}, indent=1)
            self._replace(HEADER, text.encode())
            with open(self.path / RECORDS, "wb") as file:
                os.fsync(file.fileno())

    def write(self, rows: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Append rows, then replace the state; `state["records"]` counts all rows."""
        with self._writing("the old checkpoint is left intact"):
            block = _pack(rows)
            if len(block):
                with open(self.path / RECORDS, "ab") as file:
                    file.write(block.tobytes())
                    file.flush()
                    os.fsync(file.fileno())
            buffer = io.BytesIO()
            np.savez(buffer, **{k: np.asarray(v) for k, v in state.items()})  # type: ignore[arg-type]
            self._replace(STATE, buffer.getvalue())

    def truncate(self, records: int) -> None:
        """Cut off what was written after the last complete state."""
        size = records * self._record_length(self.header()) * 8
        with (
            self._writing("the old checkpoint is left intact"),
            open(self.path / RECORDS, "r+b") as f,
        ):
            f.truncate(size)

    def save(self, chain: Any, *, overwrite: bool = False) -> None:
        """Write a whole chain."""
        self.create(_header(chain), overwrite=overwrite)
        self.write(_rows(chain), {"records": np.int64(len(chain)), **_no_state(chain)})

    def append(self, chain: Any) -> None:
        """Add the draws of a chain to those stored; the cost is that of the new ones."""
        header, state = self.header(), self.state()
        mine = _header(chain)
        for key in ("param_names", "n_walkers", "thinning", "blob_size"):
            if header[key] != mine[key]:
                raise SerializationError(
                    f"{self.path}: the stored chain has {key}={header[key]!r}, the new one "
                    f"{mine[key]!r}; they do not fit together."
                )
        records = int(state["records"])
        self.truncate(records)
        old = float(records), float(len(chain))
        fractions = np.asarray(state["acceptance_fractions"])
        weights = np.array(old) / max(sum(old), 1.0)
        rows = _rows(chain)
        new_state = {
            **{k: v for k, v in state.items() if not k.startswith("sampler_")},
            "records": np.int64(records + len(chain)),
            "acceptance_fractions": weights[0] * fractions
            + weights[1] * chain.acceptance_fractions,
        }
        self.write(rows, new_state)

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file next to its place, sync it, and move it there."""
        temporary = self.path / f".{name}.new"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _writing(self, consequence: str) -> _Writing:
        return _Writing(self.path, consequence)

    # ---- reading --------------------------------------------------------------------------------

    def header(self) -> dict[str, Any]:
        """Return what chain.json says."""
        try:
            header = json.loads((self.path / HEADER).read_text())
        except FileNotFoundError:
            raise SerializationError(f"{self.path} holds no chain: there is no {HEADER}.") from None
        except (OSError, ValueError) as error:
            raise SerializationError(f"{self.path / HEADER} cannot be read: {error}.") from error
        if header.get("format") != FORMAT:
            raise SerializationError(
                f"{self.path}: format {header.get('format')!r}; this version reads {FORMAT}."
            )
        return header

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays of state.npz; nothing that needs pickle is read."""
        try:
            with np.load(self.path / STATE, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            raise SerializationError(
                f"{self.path} has no complete state: the run was stopped before its first checkpoint."
            ) from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise SerializationError(f"{self.path / STATE} is damaged: {error}.") from error

    def rows(self, *, check: bool = True) -> dict[str, np.ndarray]:
        """Return views of the stored records, memory-mapped.

        Raises
        ------
        SerializationError
            The file is shorter than its state says, or a checksum is wrong; names the record.
        """
        header, records = self.header(), int(self.state()["records"])
        length = self._record_length(header)
        file = self.path / RECORDS
        size = file.stat().st_size if file.is_file() else -1
        if size < records * length * 8:
            raise SerializationError(
                f"{file} has {size} bytes, but {records} records of {length * 8} bytes were stored."
            )
        if records == 0:
            table = np.zeros((0, length))
        else:
            table = np.memmap(file, dtype="<f8", mode="r", shape=(records, length))
        if check:
            for k in range(records):
                if zlib.crc32(table[k, :-1].tobytes()) != table[k, -1]:
                    raise SerializationError(f"{file}: record {k} is damaged (wrong checksum).")
        return _unpack(table, header)

    def read(self) -> dict[str, Any]:
        """Return the arguments of :class:`Chain`."""
        header, state, rows = self.header(), self.state(), self.rows()
        return {
            "samples": rows["samples"],
            "log_probs": rows["log_probs"],
            "accepted": rows["accepted"],
            "param_names": header["param_names"],
            "acceptance_fractions": state["acceptance_fractions"],
            "ensemble": np.asarray(header["ensemble"]),
            "thinning": header["thinning"],
            "blobs": rows["blobs"],
            "info": header.get("info", {}),
        }

    @staticmethod
    def _record_length(header: Mapping[str, Any]) -> int:
        walkers = header["n_walkers"]
        return walkers * (len(header["param_names"]) + 2 + header["blob_size"]) + 1

    def check_configuration(self, configuration: Mapping[str, str]) -> None:
        """Refuse a chain that another configuration made.

        Raises
        ------
        SerializationError
            Names what differs: parameters, target, model, likelihood, moves, walkers, key.
        """
        stored = self.header().get("configuration", {})
        known = [k for k in configuration if k in stored]
        if not known:
            raise SerializationError(
                f"{self.path} was not written by a sampler, so that it cannot be resumed."
                + nearest("configuration", stored)
            )
        differ = [k for k in {**stored, **configuration} if stored.get(k) != configuration.get(k)]
        if differ:
            raise SerializationError(
                f"{self.path} belongs to another run: {', '.join(differ)} differ"
                f"{'s' if len(differ) == 1 else ''} from what it was started with. Build the same "
                "sampler, or start a new chain at another path."
            )


class _Writing:
    """Turn errors of the file system into SerializationError."""

    def __init__(self, path: Path, consequence: str) -> None:
        self.path, self.consequence = path, consequence

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise SerializationError(
                f"{self.path} cannot be written ({error.strerror or error}); {self.consequence}. "
                "Check permissions and free space, or choose another path."
            ) from error


def _pack(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, record length) float64 of samples (n, w, p), log_probs, accepted, blobs (n, w, b)."""
    samples = np.asarray(rows["samples"], "<f8")
    n = len(samples)

    def flat(values: Any) -> np.ndarray:
        array = np.asarray(values, "<f8")
        return array.reshape(n, int(np.prod(array.shape[1:])))

    parts = [
        flat(np.swapaxes(samples, 1, 2)),
        flat(rows["log_probs"]),
        flat(rows["accepted"]),
        flat(rows["blobs"]),
        np.zeros((n, 1)),
    ]
    table = np.ascontiguousarray(np.concatenate(parts, axis=1), "<f8")
    for row in table:
        row[-1] = zlib.crc32(row[:-1].tobytes())
    return table


def _unpack(table: np.ndarray, header: Mapping[str, Any]) -> dict[str, np.ndarray]:
    w, p, b = header["n_walkers"], len(header["param_names"]), header["blob_size"]
    n = len(table)
    ends = np.cumsum([p * w, w, w, w * b])
    flat = table[:, ends[2] : ends[3]].reshape(n, w, b)
    return {
        "samples": np.swapaxes(table[:, : ends[0]].reshape(n, p, w), 1, 2),
        "log_probs": table[:, ends[0] : ends[1]],
        "accepted": table[:, ends[1] : ends[2]],
        "flat_blobs": flat,
        "blobs": shape_blobs(flat, header.get("blob_shapes")),
    }


def shape_blobs(flat: np.ndarray, shapes: Any) -> Any:
    """Return the pytree of arrays (n, w, ...) of flat blobs (n, w, b); None without blobs.

    ``shapes`` is nested as the blobs were, with ``{"shape": [...]}`` at the leaves.
    """
    if shapes is None:
        return None
    place = 0

    def build(node: Any) -> Any:
        nonlocal place
        if isinstance(node, Mapping) and set(node) == {"shape"}:
            size = int(np.prod(node["shape"]))
            part = flat[..., place : place + size]
            place += size
            return part.reshape(*flat.shape[:-1], *node["shape"])
        if isinstance(node, Mapping):
            return {k: build(node[k]) for k in sorted(node)}  # the order of JAX's leaves
        return [build(part) for part in node]

    return build(shapes)


def _flat_blobs(chain: Any) -> np.ndarray:
    n, w = chain.samples.shape[:2]
    leaves: list[np.ndarray] = []

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            for key in sorted(node):
                visit(node[key])
        elif isinstance(node, tuple | list):
            for part in node:
                visit(part)
        elif node is not None:
            array = np.asarray(node, float)
            leaves.append(array.reshape(n, w, int(np.prod(array.shape[2:]))))

    visit(chain.blobs)
    return np.concatenate(leaves, axis=2) if leaves else np.zeros((n, w, 0))


def blob_shapes(tree: Any) -> Any:
    """Return a JSON description of a blob pytree of shapes."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {k: blob_shapes(tree[k]) for k in sorted(tree)}
    if isinstance(tree, tuple | list):
        return [blob_shapes(part) for part in tree]
    return {"shape": list(tree.shape)}


def _header(chain: Any) -> dict[str, Any]:
    class _Shape:
        def __init__(self, a: Any) -> None:
            self.shape = np.shape(a)[2:]

    def shapes(node: Any) -> Any:
        if node is None:
            return None
        if isinstance(node, Mapping):
            return {k: shapes(node[k]) for k in node}
        if isinstance(node, tuple | list):
            return [shapes(part) for part in node]
        return _Shape(node)

    return {
        "param_names": chain.param_names,
        "n_walkers": chain.n_walkers,
        "ensemble": np.asarray(chain.ensemble).tolist(),
        "thinning": chain.thinning,
        "blob_size": int(_flat_blobs(chain).shape[2]),
        "blob_shapes": blob_shapes(shapes(chain.blobs)),
        "info": {k: v for k, v in chain.info.items() if isinstance(v, str | int | float | bool)},
    }


def _rows(chain: Any) -> dict[str, np.ndarray]:
    n, w = chain.samples.shape[:2]
    accepted = chain.accepted
    if accepted is None:
        accepted = np.full((n, w), np.nan)
    return {
        "samples": chain.samples,
        "log_probs": chain.log_probs,
        "accepted": accepted,
        "blobs": _flat_blobs(chain),
    }


def _no_state(chain: Any) -> dict[str, np.ndarray]:
    return {"acceptance_fractions": np.asarray(chain.acceptance_fractions)}
