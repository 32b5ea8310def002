"""What exists for commands on rung B, as rights: an allow list, and a refusal of what Landlock cannot give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.policy import Filesystem, Policy
from jupyter_agentwatch.sandbox.grants import plan_grants, writable_places
from jupyter_agentwatch.sandbox.landlock import READ, WRITE

PACKAGE: Final = Path(__file__).parent.parent / "jupyter_agentwatch"
SECRET: Final = (
    *("/etc/shadow", "/etc/ssh", "/etc/sudoers", "/etc/pip.conf", "/etc", "/root", "/home", "/var", "/run", "/sys"),
    *("/dev", "/dev/shm", "/dev/pts", "/dev/mem", "/dev/kmsg", "/dev/sda", "/tmp", "/var/run/docker.sock", "/"),
)


def granted(project: Path, **filesystem: Any) -> dict[str, int]:
    """Return the rights of each place for a policy, with an environment and fresh folders beside the workspace."""
    python = project.parent / "python"
    fresh = (project.parent / "fresh/home", project.parent / "fresh/tmp")
    for folder in (project, python, *fresh):
        folder.mkdir(parents=True, exist_ok=True)
    policy = Policy(filesystem=Filesystem(**filesystem))
    return dict(plan_grants(policy, project, (python,), PACKAGE, fresh))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a folder for a project."""
    return tmp_path / "project"


def test_by_default_only_the_workspace_and_fresh_folders_can_be_written(workspace: Path) -> None:
    """Devices aside, nothing else may be written; Python and the system can be read."""
    rights = granted(workspace)
    top = workspace.parent
    assert {name: right for name, right in rights.items() if right == WRITE and not name.startswith("/dev/")} == {
        str(workspace): WRITE,
        str(top / "fresh/home"): WRITE,
        str(top / "fresh/tmp"): WRITE,
    }
    assert rights[str(top / "python")] == rights["/usr"] == rights["/proc"] == READ
    assert set(rights.values()) == {READ, WRITE}


@pytest.mark.parametrize("secret", SECRET)
def test_nothing_that_holds_secrets_is_granted(workspace: Path, secret: str) -> None:
    """No grant is a place of secrets, or a folder above one: what lies beneath a grant is granted with it."""
    rights = granted(workspace)
    within = [name for name in rights if secret == name or secret.startswith(f"{name}/")]
    assert within == []


def test_only_harmless_devices_can_be_written(workspace: Path) -> None:
    """Without GPUs in the policy these devices are all."""
    rights = granted(workspace)
    devices = {name: right for name, right in rights.items() if name.startswith("/dev")}
    assert devices == dict.fromkeys(("/dev/null", "/dev/zero", "/dev/full", "/dev/tty"), WRITE) | dict.fromkeys(
        ("/dev/random", "/dev/urandom"), READ
    )


def test_the_policys_places_are_granted_as_it_says(workspace: Path) -> None:
    """Each named path gets the right that it is named for, as its true name."""
    top = workspace.parent
    (top / "data").mkdir()
    (top / "output").mkdir()
    (top / "link").symlink_to(top / "data")
    rights = granted(workspace, read=[str(top / "link")], write=[str(top / "output")])
    assert (rights[str(top / "data")], rights[str(top / "output")]) == (READ, WRITE)
    assert str(top / "link") not in rights


def test_a_workspace_that_is_only_read_is_not_written(workspace: Path) -> None:
    """`workspace: read` gives no right to change it."""
    assert granted(workspace, workspace="read")[str(workspace)] == READ


def test_a_named_socket_is_no_right(workspace: Path) -> None:
    """Connecting is judged by the supervisor: the file of a socket is not opened to commands."""
    (workspace.parent / "some.sock").touch()
    workspace.mkdir()
    policy = Policy(unix_sockets=[str(workspace.parent / "some.sock")])
    assert str(workspace.parent / "some.sock") not in dict(plan_grants(policy, workspace, (), PACKAGE, ()))


@pytest.mark.parametrize(
    ("filesystem", "text"),
    [
        ({"hide": [".env"]}, "filesystem.hide: {0}/.env lies inside {0}, and rung B cannot hide"),
        ({"hide": ["deep/er/.env"]}, "filesystem.hide: {0}/deep/er/.env lies inside {0}, and"),
        ({"hide": [".env"], "workspace": "read"}, "filesystem.hide: {0}/.env lies inside {0}, and"),
        ({"hide": ["/usr/share/doc"]}, "filesystem.hide: /usr/share/doc lies inside /usr, and"),
        ({"read": ["data"]}, "{0}/data must stay read-only, but lies inside {0}, which may be written"),
    ],
)
def test_what_cannot_be_taken_away_is_refused(workspace: Path, filesystem: dict[str, Any], text: str) -> None:
    """Landlock takes nothing away below a grant: the policy is refused with the place, and not honoured by half."""
    (workspace / "data").mkdir(parents=True)
    with pytest.raises(PolicyError, match=re.escape(text.format(workspace))) as refused:
        granted(workspace, **filesystem)
    assert "rung A" in str(refused.value)


def test_our_own_package_inside_the_workspace_is_refused(workspace: Path) -> None:
    """A command that could change the monitor is not run."""
    package = workspace / "jupyter_agentwatch"
    package.mkdir(parents=True)
    with pytest.raises(PolicyError, match=f"{package} must stay read-only"):
        plan_grants(Policy(), workspace, (), package, ())


def test_what_is_outside_of_all_grants_needs_no_hiding(workspace: Path) -> None:
    """To hide what does not exist inside is honoured by granting nothing."""
    (workspace.parent / "elsewhere").mkdir(parents=True)
    rights = granted(workspace, hide=[str(workspace.parent / "elsewhere")])
    assert str(workspace.parent / "elsewhere") not in rights


def test_writable_places_are_those_without_devices(workspace: Path) -> None:
    """Modes and times may be set there, and nowhere else."""
    places = writable_places(list(granted(workspace).items()))
    top = workspace.parent
    assert sorted(places) == sorted(map(str, (workspace, top / "fresh/home", top / "fresh/tmp")))
