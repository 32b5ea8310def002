"""Rules of the whole repository: documentation, directions of import, sizes, and what may not stand here."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from jupyter_agentwatch.policy import parse_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jupyter_agentwatch"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 60
SPEECHLESS = {"__version__"}
"""Public names whose meaning Python itself defines."""

NOT_IN_THE_SUPERVISOR = {
    *("IPython", "ipykernel", "jupyter_client", "jupyter_core", "jupyter_server", "traitlets"),
    *("anywidget", "ipywidgets", "plotly", "numpy", "pandas"),
    *("sigma", "sqlite3", "yaml"),
}


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"), str(path))


def public_names(tree: ast.Module) -> list[str]:
    """Return the literal `__all__` of a module, or nothing where it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def documented(tree: ast.Module) -> dict[str, bool]:
    """Map each name that a module defines to whether a docstring stands in or below its definition."""
    found: dict[str, bool] = {}
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found[name] = bool(ast.get_docstring(node)) or found.get(name, False)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_each_module_says_why_it_exists(path: Path) -> None:
    """Each module has a docstring and, unless it is run, declares its public names."""
    tree = parsed(path)
    assert ast.get_docstring(tree)
    if tree.body[1:] and path.name != "__main__.py":
        assert public_names(tree)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_each_public_name_is_documented_where_it_is_defined(path: Path) -> None:
    """Each public name can be imported; a module documents and defines its own, only a package passes others' on."""
    tree = parsed(path)
    names = [name for name in public_names(tree) if name not in SPEECHLESS]
    module = import_module(module_name(path)) if names else None
    defined = documented(tree)
    missing = [name for name in names if not hasattr(module, name)]
    silent = [name for name in names if defined.get(name) is False]
    foreign = [name for name in names if name not in defined and path.name != "__init__.py"]
    assert (missing, silent, foreign) == ([], [], []), "not importable, without a docstring, defined elsewhere"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_each_test_states_its_promise(path: Path) -> None:
    """Each test function has a docstring."""
    functions = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    silent = [f.name for f in functions if f.name.startswith("test_") and not ast.get_docstring(f)]
    assert silent == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_and_functions_stay_short(path: Path) -> None:
    """No module and no function outgrows the ratchet."""
    lines = path.read_text("utf-8").count("\n")
    assert lines <= MAX_MODULE_LINES
    functions = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def loaded_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement, each with its parents."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_the_supervisor_loads_nothing_that_it_need_not_trust() -> None:
    """Importing every module of the supervisor loads no Jupyter, no data frames, no YAML and no SQLite."""
    names = [module_name(p) for p in sorted((PACKAGE / "supervisor").rglob("*.py"))]
    assert "jupyter_agentwatch.supervisor.__main__" in names
    assert loaded_after(f"import {', '.join(names)}") & NOT_IN_THE_SUPERVISOR == set()


def test_importing_the_package_loads_none_of_its_rooms() -> None:
    """`import jupyter_agentwatch` is lazy: it loads no room, hence neither Jupyter nor pandas."""
    loaded = loaded_after("import jupyter_agentwatch")
    assert "jupyter_agentwatch" in loaded
    assert {name for name in loaded if name.startswith("jupyter_agentwatch.")} == set()
    assert loaded & NOT_IN_THE_SUPERVISOR == set()


def test_the_import_contracts_hold() -> None:
    """import-linter finds every contract of pyproject.toml kept."""
    code = "from importlinter.cli import lint_imports_command as main; main()"
    argv = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def repository_files() -> Iterator[Path]:
    """Yield every file that is, or could be, committed."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=60, check=True).stdout
    paths = (ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name)
    return (path for path in paths if path.is_file() and not path.is_symlink())


# The patterns are put together here so that this file does not contain what it forbids.
REGISTRIES = "|".join(
    re.escape("".join(parts))
    for parts in [
        ("py", "pi.org"),
        ("python", "hosted"),
        ("npm", "js.org"),
        ("npm", "js.com"),
        ("npm", "mirror"),
        ("deb", "ian.org"),
        ("archive.", "ubuntu.com"),
        ("crates", ".io"),
        ("ana", "conda.org"),
    ]
)
MACHINE_PATHS = "|".join(
    [
        "/wo" + r"rk/\w",
        "/fa" + r"rm/\w",
        "/tmp/" + r"v/\w",
        "/ro" + r"ot/\.?pyenv",
        "/opt/" + "(wheels|py" + "pi)",
        re.escape(str(ROOT)) if len(ROOT.parts) > 2 else "(?!)",
    ]
)


@pytest.mark.parametrize(
    "forbidden",
    [pytest.param(REGISTRIES, id="a registry's host"), pytest.param(MACHINE_PATHS, id="a path of one machine")],
)
def test_the_repository_names_no(forbidden: str) -> None:
    """No file names a package registry's host or a path that exists on one machine only."""
    pattern = re.compile(forbidden.encode(), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in repository_files()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_the_policy_in_the_readme_is_valid() -> None:
    """What a newcomer copies from the README is accepted, and means what its comments say."""
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    policy = parse_policy(block, "README.md")
    assert [rule.verdict for rule in policy.network.rules] == ["allow", "ask", "allow", "allow"]
    assert policy.environment.passed == ["LANG", "TZ"]


def test_the_quick_start_is_committed_without_outputs() -> None:
    """The notebook is valid, its cells have ids, and it carries nobody's output."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
