"""What an agent could plant for the kernel to import: when that is said, and that our own side imports none of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import jupyter_agentwatch
from jupyter_agentwatch import Watch
from jupyter_agentwatch.testing import fake_supervisor
from jupyter_agentwatch.watch import ImportableWorkspaceWarning
from jupyter_agentwatch.watch.importable import import_risk
from tests.outside import PROGRAMS

if TYPE_CHECKING:
    from jupyter_agentwatch.sandbox.places import Mode

ROOT = Path(jupyter_agentwatch.__file__).parents[1]
SITE = "/opt/env/lib/python3.12/site-packages"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the current one; links in its path are resolved."""
    folder = tmp_path.resolve() / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("path", "named"),
    [
        pytest.param(["", SITE], "''", id="the current folder"),
        pytest.param([SITE, "{project}"], "'{project}'", id="the workspace itself"),
        pytest.param([SITE, "{project}/src"], "'{project}/src'", id="a folder in the workspace"),
        pytest.param(["../project/./"], "'../project/./'", id="another spelling"),
        pytest.param(["{project}/lib.zip"], "'{project}/lib.zip'", id="an archive in the workspace"),
        pytest.param(["{project}/../link"], "'{project}/../link'", id="a link to the workspace"),
    ],
)
def test_a_place_that_is_both_importable_and_writable_is_named(project: Path, path: list[str], named: str) -> None:
    """Whatever the spelling, the text names the folder, the entry of sys.path, and what to do."""
    (project.parent / "link").symlink_to(project)
    risk = import_risk({project: "rw"}, [entry.format(project=project) for entry in path])
    assert f"sys.path.remove({named.format(project=project)})" in risk
    assert f"imports from {project}" in risk
    assert "Use another folder as the workspace" in risk


@pytest.mark.parametrize(
    ("places", "path"),
    [
        pytest.param({"": "ro"}, [""], id="a workspace that is read-only"),
        pytest.param({"": "rw"}, [SITE, "/elsewhere"], id="a workspace elsewhere"),
        pytest.param({"": "rw"}, ["{project}/.."], id="a workspace below an entry"),
        pytest.param({"": "rw", ".venv": "ro"}, ["{project}/.venv/lib"], id="an environment in the workspace"),
        pytest.param({"data": "rw"}, ["{project}/dat"], id="a name that begins alike"),
        pytest.param({"inner": "rw", "inner/code": "ro"}, ["{project}/inner/code/x"], id="a read-only folder in it"),
    ],
)
def test_what_the_agent_cannot_write_is_no_risk(project: Path, places: dict[str, Mode], path: list[str]) -> None:
    """Places that are read-only inside, or that nothing is imported from, are not spoken of."""
    inside = {project / name if name else project: mode for name, mode in places.items()}
    assert import_risk(inside, [entry.format(project=project) for entry in path]) == ""


def test_the_innermost_place_decides(project: Path) -> None:
    """A workspace in the folder of a read-only environment is writable all the same."""
    assert import_risk({project.parent: "ro", project: "rw"}, [str(project)])


@pytest.mark.parametrize("name", ["json", "pytest"])
def test_a_folder_with_a_modules_name_is_named(tmp_path: Path, name: str) -> None:
    """A workspace below an entry could stand for a module by its own name: one of the library's, or one installed."""
    place = tmp_path.resolve() / name
    risk = import_risk({place: "rw"}, [str(tmp_path), *sys.path])
    assert repr(name) in risk
    assert "Rename the folder" in risk


def test_a_removed_current_folder_is_no_risk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the current folder does not exist any more, nothing can be imported from it, and nothing fails."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert import_risk({gone: "rw"}, [""]) == ""


def test_a_watch_warns_its_maker_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning points at the line that made the watch, and the watch keeps it among its notes."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.warns(ImportableWorkspaceWarning, match="outside of the sandbox") as said:
        watch = Watch(supervisor=fake_supervisor())
    with watch, warnings.catch_warnings():
        warnings.simplefilter("error")
        (warning,) = said
        assert warning.filename == __file__
        assert watch.notes == [str(warning.message)]
        assert watch.run(["true"]).ok


def test_a_watch_elsewhere_has_nothing_to_warn_of(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder below the current one, as the warning advises, needs none; neither does one that is read-only."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (project / "agent").mkdir()
    with Watch(workspace="agent", supervisor=fake_supervisor()) as watch:
        assert watch.notes == []
    with Watch({"filesystem": {"workspace": "read"}}, supervisor=fake_supervisor()) as watch:
        assert watch.notes == []


@pytest.mark.sandbox
def test_what_the_agent_plants_is_not_imported_by_us(project: Path, tmp_path: Path) -> None:
    """With a planted module for every name there is, all of a watch works in the kernel, and none of them has run."""
    caught = tmp_path / "caught"
    owner, program = ((PROGRAMS / name).read_text("utf-8") for name in ("importing_owner.py", "plant.py"))
    done = subprocess.run(
        [sys.executable, "-c", owner, str(caught), program],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    ((kind, file, text),) = told["said"]
    assert (kind, file) == ("ImportableWorkspaceWarning", "<string>")
    assert "sys.path.remove('')" in text
    assert told["notes"] == [text]
    assert not told["caught"]
    assert told["planted"] > 250
    assert caught.read_text() == "this_is_nowhere "
