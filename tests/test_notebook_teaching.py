"""What a reader of the notebooks may rely on before a cell is run: what is learnt, exercises, what is installed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_LINES = 45
"""Of one code cell: more does not fit on a screen."""

books = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[Any]:
    """Return a notebook's cells of one kind."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def plain(code: str) -> str:
    """Return a cell's Python; magics are none."""
    lines = [] if code.startswith("%%") else code.splitlines()
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))


def modules(code: str) -> set[str]:
    """Return the top-level modules that a cell imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(plain(code))):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module)):
                found.add(module.partition(".")[0])
    return found


def required() -> set[str]:
    """Return the distributions that `make demo`, `make lab` and Binder install, by their normalised names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["demo"]]
    for each in extras["demo"]:
        if own := re.match(r"jupyter-agentwatch\[(.*)\]", each):
            wanted += [line for extra in own.group(1).split(",") for line in extras[extra.strip()]]
    names = (re.match(r"[A-Za-z0-9._-]+", each) for each in wanted)
    return {re.sub(r"[._-]+", "-", name.group()).lower() for name in names if name}


@books
def test_it_opens_with_what_is_learnt_and_closes_with_exercises(path: Path) -> None:
    """The first cell is a text with a title and what one learns; the last is a text of numbered exercises."""
    every = nbformat.read(path, as_version=4).cells
    first, last = every[0], every[-1]
    assert (first.cell_type, last.cell_type) == ("markdown", "markdown")
    assert first.source.startswith("# ")
    assert "ou learn" in first.source
    exercises = last.source.partition("## Exercises")[2]
    assert len(re.findall(r"^\d\. ", exercises, re.MULTILINE)) >= 4


@books
def test_a_cell_fits_on_a_screen_and_says_what_it_does(path: Path) -> None:
    """Each code cell is short, holds no output, and begins with a comment, but for magics and single lines."""
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= MOST_LINES, cell.id
        assert cell.source.startswith(("#", "%")) or "\n" not in cell.source, cell.id
        assert not cell.outputs, cell.id


def test_the_demo_installs_what_the_notebooks_import() -> None:
    """Each module comes with the package or with its extra "demo"; `ChatAgent` asks for one more when it is made."""
    owners = packages_distributions()
    given = required()
    wanted = {module for path in BOOKS for cell in cells(path, "code") for module in modules(cell.source)}
    for module in wanted - set(sys.stdlib_module_names) - {"jupyter_agentwatch"}:
        assert given & {re.sub(r"[._-]+", "-", name).lower() for name in owners[module]}, module
    assert any("ChatAgent(" in cell.source for path in BOOKS for cell in cells(path, "code"))
    assert "openai" in given
