"""The shape of the package, read from its syntax trees: nothing is imported here."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "jaxnlme"

FLOORS = [
    ["_errors", "_typing", "_results", "_cache", "_programs", "_precision"],
    ["numerics", "links"],
    ["families", "error_models", "covariance", "penalties", "priors", "smooths", "structural"],
    ["design"],
    ["glm", "gam", "mixed", "nlme", "calibration", "forecast"],
    ["batch", "inference", "diagnostics"],
    ["results", "plots", "io", "datasets"],
    ["api", "matlab", "r", "sklearn", "compat", "demo", "__init__", "__main__"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# On one floor: the estimators stand on each other in this order, networks may use mixed models,
# and the outermost floors are made of thin modules that share code.
CHAIN = ["glm", "gam", "mixed", "nlme"]
SAME_FLOOR = {(upper, lower) for i, upper in enumerate(CHAIN) for lower in CHAIN[:i]}
SAME_FLOOR |= {("forecast", "mixed"), ("results", "plots"), ("links", "numerics")}
FREE_FLOORS = {0, len(FLOORS) - 1}
# Host libraries: never in traced code, and imported inside functions so that `import jaxnlme` and
# the doors load only what they use.
HOST = {"pandas", "polars", "pyarrow", "narwhals", "formulaic", "scipy", "matplotlib"}
HOST_PLACES = {"design", "results", "plots", "io", "datasets", *FLOORS[-1]}
# A family answers every question about itself: its tails (cdf, quantile) are scipy's, on the host.
ALSO = {"scipy": {"families"}}
LATE = {*HOST, "blackjax", "diffrax", "optax", "tqdm", "arviz", "sklearn", "safetensors"}

FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]
every_file = pytest.mark.parametrize("path", FILES, ids=IDS)


def unit(path: Path) -> str:
    """The first name below jaxnlme: the folder or module that has a floor."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(path: Path) -> list[tuple[str, ast.stmt, bool]]:
    """(imported module or attribute, statement, inside a function), without TYPE_CHECKING."""
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        if is_type_checking(node):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, node, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = path.relative_to(PACKAGE.parent).parts[: -node.level]
                base = ".".join([*parts, base]).rstrip(".")
            found.extend((f"{base}.{alias.name}", node, inside) for alias in node.names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside or function)

    visit(tree(path), False)
    return found


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]


@every_file
def test_every_module_has_a_floor(path: Path) -> None:
    assert unit(path) in FLOOR, f"give {unit(path)} a floor in tests/test_floors.py"


@every_file
def test_imports_go_downwards(path: Path) -> None:
    here = unit(path)
    for name, node, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "jaxnlme" or len(parts) < 2 or parts[1] == here:
            continue
        there = parts[1]
        if there not in FLOOR:  # `from jaxnlme import __version__`, allowed at the top only
            assert FLOOR[here] == len(FLOORS) - 1, f"line {node.lineno}: import of {name}"
            continue
        same = FLOOR[there] == FLOOR[here] and (
            FLOOR[here] in FREE_FLOORS or (here, there) in SAME_FLOOR
        )
        assert FLOOR[there] < FLOOR[here] or same, (
            f"line {node.lineno}: {here} (floor {FLOOR[here]}) imports {there} "
            f"(floor {FLOOR[there]})"
        )


@every_file
def test_our_own_modules_are_imported_at_the_top(path: Path) -> None:
    late = [
        node.lineno for name, node, inside in imports(path) if inside and name.startswith("jaxnlme")
    ]
    assert not late, f"imports of our own modules inside functions, lines {late}"


@every_file
def test_host_libraries_stay_in_their_places_and_load_late(path: Path) -> None:
    for name, node, inside in imports(path):
        library = name.split(".")[0]
        if library in HOST:
            places = HOST_PLACES | ALSO.get(library, set())
            assert unit(path) in places, f"line {node.lineno}: {library} in {unit(path)}"
        if library in LATE:
            assert inside, f"line {node.lineno}: import {library} inside the function that uses it"


@every_file
def test_file_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 700


@every_file
def test_functions_are_short_and_take_few_arguments(path: Path) -> None:
    for function in functions(path):
        body = function.body
        if ast.get_docstring(function, clean=False) is not None:
            body = body[1:]
        if body:
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            assert lines <= 120, f"{function.name}: {lines} lines"
        if not function.name.startswith("_"):
            names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
            names = [name for name in names if name not in ("self", "cls")]
            assert len(names) <= 9, f"{function.name}: {len(names)} arguments, 9 at most"


@every_file
def test_no_output_and_no_global_settings_below_the_results(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            printing = called == "print" and FLOOR[unit(path)] < FLOOR["results"]
            assert not printing, f"line {node.lineno}: print in floor {FLOOR[unit(path)]}"
            if path.name != "_cache.py":
                assert called not in ("jax.config.update", "config.update"), f"line {node.lineno}"


def test_no_import_cycles() -> None:
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    edges: dict[str, set[str]] = {}
    for path in FILES:
        here = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        edges[here] = set()
        for name, _, inside in imports(path):
            for target in (name, f"{name}.__init__", name.rpartition(".")[0]):
                known = target if target in modules else f"{target}.__init__"
                if not inside and known in modules and known != here:
                    edges[here].add(known)
                    break
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for following in sorted(edges[module]):
                walk(following, [*trail, module])
            done.add(module)

    for module in sorted(edges):
        walk(module, [])
