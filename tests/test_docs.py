"""What the documentation shows is true: docstring examples and the printed blocks of the pages.

In README.md and docs/*.md every ```python block is run, in order, in one namespace per page; where
a ```text block follows, what the code prints must be that text. Executed cells (``{code-cell}``)
are checked by the documentation build.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxnlme"
# By file, since pkgutil passes over folders without __init__.py.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECONDS = re.compile(r"\d[\d.e-]* s\b")
# Digits that other machines may round differently: one unit of the last of 4 printed digits.
RTOL, ATOL = 5e-4, 1e-4


# ---- docstrings -------------------------------------------------------------------------------


class Finder(doctest.DocTestFinder):
    """The standard one passes decorated functions over: their globals are the decorator's."""

    def _from_module(self, module: Any, object: Any) -> bool:
        if inspect.isroutine(object):
            return getattr(object, "__module__", None) == module.__name__
        return super()._from_module(module, object)  # type: ignore[misc]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """Return the docstrings with examples that are written in this module itself."""
    return [test for test in Finder(recurse=True).find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    """All modules are imported; those without examples have nothing to run."""
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = io.StringIO()
    for test in examples(module):
        runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()


def test_the_walk_finds_modules_and_examples() -> None:
    """A renamed package or a finder that finds nothing would let every test above pass."""
    found = {test.name for name in MODULES for test in examples(importlib.import_module(name))}
    assert len(MODULES) > 40
    doors = {"jaxnlme.api.nlme.fit_nlme", "jaxnlme.api.matlab.nlmefit", "jaxnlme.batch.fit_many"}
    assert doors <= found


# ---- pages ------------------------------------------------------------------------------------


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Return the python blocks of a page with the text block that follows each, if any."""
    found: list[tuple[str, str | None]] = []
    parts = list(BLOCK.finditer(text))
    for k, part in enumerate(parts):
        if part[1] != "python":
            continue
        after = parts[k + 1] if k + 1 < len(parts) else None
        if after and after[1] == "text" and not text[part.end() : after.start()].strip():
            found.append((part[2], after[2]))
        else:
            found.append((part[2], None))
    return found


def same(printed: str, shown: str) -> bool:
    """Compare word by word; numbers to the digits printed, seconds not at all."""
    words = [SECONDS.sub("<time>", text).split() for text in (printed, shown)]
    return len(words[0]) == len(words[1]) and all(map(same_word, *words))


def same_word(a: str, b: str) -> bool:
    a, b = a.strip("[](),;"), b.strip("[](),;")
    if a == b:
        return True
    try:
        x, y = float(a), float(b)
    except ValueError:
        return False
    return abs(x - y) <= ATOL + RTOL * abs(y)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text())], ids=lambda p: p.name)
def test_page_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"page_{page.stem}")  # classes look up the module that defines them
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, (code, shown) in enumerate(blocks(page.read_text()), 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(
                compile(code, f"{page.name}, block {number}", "exec", dont_inherit=True),
                vars(module),
            )
        if shown is not None:
            message = f"{page.name}, block {number} printed\n{printed.getvalue()}but shows\n{shown}"
            assert same(printed.getvalue(), shown), message


def test_the_comparison_of_pages_can_fail() -> None:
    assert same("sigma 0.70924 (2.1 s)", "sigma 0.7092  (11 s)")
    assert not same("sigma 0.7092", "sigma 0.7102")
    assert not same("sigma 0.7092", "sd 0.7092")
    assert not same("a b", "a")
    page = "```python\n1\n```\n\n```text\n2\n```\n```python\n3\n```\nand\n```text\n4\n```\n"
    assert blocks(page) == [("1\n", "2\n"), ("3\n", None)]


def test_pages_name_no_machine() -> None:
    """No path of a computer, and pictures that pages show are in the repository."""
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"(?<![\w.])/(home|work|tmp|usr|root)/", text), page.name
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
        for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#]+\.(?:md|py))\)", text):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
