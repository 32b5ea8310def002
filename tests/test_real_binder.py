"""Binder: its steps in a clean tree of the same files, by an ordinary user, without user namespaces or a network.

The installation itself is stood in for by the environment that is there: it would take minutes, and a network. What
`binder/postBuild` asks for is recorded and checked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.docker_like import NOBODY, ROOT, command

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sandbox

IS_ROOT = os.geteuid() == 0
LONG_S = 240
MOST_BYTES = 1536 << 20
NOTEBOOK = "03_rome_incident"
BUILT = ("jupyter_agentwatch/notebook/static", "jupyter_agentwatch/labextension")

SHIM = """#!/bin/sh
case "$1 $2" in
    "-m pip") echo "$*" >> "{asked}"; exit 0 ;;
    "-m jupyter") [ "$3" = labextension ] && {{ echo "$*" >> "{asked}"; exit 0; }} ;;
esac
exec "{python}" "$@"
"""
"""A `python` that stands in for the one of Binder's environment: it installs nothing, and notes what it was told to."""


@pytest.fixture
def tree() -> Iterator[Path]:
    """A folder with the repository's files and no others, a home and a `python`, all of it another user's."""
    with tempfile.TemporaryDirectory(prefix="bd-", dir="/tmp") as name:
        folder = Path(name)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for each in filter(None, map(os.fsdecode, listed.split(b"\0"))):
            (folder / "tree" / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / each, folder / "tree" / each)
        for part in BUILT:  # what the installation builds
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / "tree" / part)
        for part in ("home", "run", "log", "bin"):
            (folder / part).mkdir()
        python = folder / "bin" / "python"
        python.write_text(SHIM.format(asked=folder / "home" / "asked", python=sys.executable))
        python.chmod(0o755)
        if IS_ROOT:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        yield folder


def as_visitor(tree: Path, argv: list[str]) -> str:
    """Run a program as an ordinary user under a filter like Docker's, in the home; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    environment |= {
        "HOME": str(tree / "home"),
        "PATH": f"{tree / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tree / "tree"),
        "AGENTWATCH_RUNTIME_DIR": str(tree / "run"),
        "AGENTWATCH_LOG_DIR": str(tree / "log"),
    }
    inner = ["/usr/bin/env", "-C", str(tree / "home"), *argv]
    line = command(inner, uid=NOBODY if IS_ROOT else None, docker=True)
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_visitor_sees_the_incident_in_a_container_without_namespaces(tree: Path) -> None:
    """The start opens the notebook in JupyterLab; it runs on rung B, says so, and stays below 1.5 GiB."""
    visit = str(ROOT / "tests" / "programs" / "binder_visit.py")
    shutil.copy(visit, tree / "bin" / "visit.py")
    said: dict[str, Any] = json.loads(
        as_visitor(tree, ["python", str(tree / "bin" / "visit.py"), str(tree / "tree"), NOTEBOOK])
    )
    assert said["code"] == 0, said["said"]
    assert said["address"].split("?")[0].endswith(f"/lab/tree/notebooks/{NOTEBOOK}.ipynb")
    assert said["is_lab"]
    assert said["cells"] > 20
    assert "rung B" in said["output"]
    assert "SIMULATED" in said["output"]
    assert "rung B" in said["log"] or "confined" in said["log"]
    assert 0 < said["peak"] < MOST_BYTES, said["peak"]


def test_what_is_installed_comes_from_the_repository_alone(tree: Path) -> None:
    """The step after the build installs this checkout with what the notebooks need, and nothing by an address."""
    as_visitor(tree, [str(tree / "tree" / "binder" / "postBuild")])
    asked = (tree / "home" / "asked").read_text().splitlines()
    assert asked[0].startswith("-m pip install ")
    assert asked[0].endswith(" .[demo]")
    assert not any("://" in line for line in asked)
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())
    assert any(each.startswith("python=3.") for each in environment["dependencies"])
    assert "bubblewrap" in (ROOT / "binder" / "apt.txt").read_text().split()


def test_repo2docker_reads_each_file_and_no_other() -> None:
    """Nothing takes the place of `binder/`, and each file there is one that repo2docker reads, or that these name."""
    files = {path.name for path in (ROOT / "binder").iterdir()}
    assert files == {"apt.txt", "environment.yml", "postBuild", "start", "jupyter"}
    assert not (ROOT / ".binder").exists()  # two folders would be an error
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())
    assert set(environment) <= {"name", "channels", "dependencies"}
    assert all(isinstance(each, str) for each in environment["dependencies"])  # a list of pip's would be a second way
    assert "/jupyter" in (ROOT / "binder" / "start").read_text()


def test_the_server_asks_nobody_outside() -> None:
    """JupyterLab's own requests are off: news, updates, and the list of extensions."""
    settings = json.loads((ROOT / "binder" / "jupyter" / "jupyter_server_config.json").read_text())["LabApp"]
    assert settings["news_url"] is None
    assert settings["check_for_updates_class"].endswith(".NeverCheckForUpdate")
    assert settings["extension_manager"] == "readonly"


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_can_be_run(name: str) -> None:
    """Binder runs them as programs; the shell finds no error in them."""
    path = ROOT / "binder" / name
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
