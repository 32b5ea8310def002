"""What a sandbox is built of: an allow list in the right order, and clear words for what cannot be granted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import PolicyError, WorkspaceError
from jupyter_agentwatch.policy import Environment, Filesystem, Policy
from jupyter_agentwatch.policy.model import Gpu
from jupyter_agentwatch.sandbox.mounts import HOME, Layout, inner_gid, inner_uid, plan_layout
from jupyter_agentwatch.sandbox.places import check_workspace, clean_environment

ARITY: Final = {
    **dict.fromkeys(("--symlink", "--ro-bind", "--bind", "--ro-bind-try", "--dev-bind", "--dev-bind-try"), 2),
    **dict.fromkeys(("--proc", "--dev", "--tmpfs", "--size", "--remount-ro", "--dir"), 1),
}
SECRETS: Final = (".ssh", ".aws", ".netrc", ".config", ".jupyter", ".local/share/jupyter", ".git-credentials")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace beside a home that is full of secrets."""
    home = tmp_path / "home" / "ada"
    for name in SECRETS:
        (home / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    found = tmp_path / "project"
    found.mkdir()
    return found


def plan(
    workspace: Path, policy: Policy | None = None, *, python: tuple[Path, ...] = (), package: Path = Path("/nowhere")
) -> Layout:
    """Plan a layout, by default of the default policy and nothing else."""
    return plan_layout(policy or Policy(), workspace, python, package)


def with_files(**fields: object) -> Policy:
    """Return the default policy with another file system."""
    return Policy(filesystem=Filesystem(**fields))  # type: ignore[arg-type]


def rows(layout: Layout) -> list[tuple[str, ...]]:
    """Return bubblewrap's arguments, one tuple an option; an option that this test does not know fails it."""
    left, found = list(layout.arguments), []
    while left:
        count = 1 + ARITY[left[0]]
        found.append(tuple(left[:count]))
        del left[:count]
    return found


def writable(layout: Layout) -> tuple[str, ...]:
    """Return the host's paths that a layout mounts read-write."""
    return tuple(row[1] for row in rows(layout) if row[0] == "--bind")


def seen(layout: Layout, path: Path | str) -> tuple[str, str]:
    """Return (how, from where) of what stands at a path inside: the last mount that covers it; ("", "") for nothing."""
    wanted, found = Path(path), ("", "")
    for row in rows(layout):
        if row[0] in {"--size", "--symlink"}:
            continue
        if row[0] == "--remount-ro":
            if found[0] == "--tmpfs" and found[1] == row[1]:
                found = ("empty", row[1])
        elif wanted.is_relative_to(row[-1]):
            found = (row[0], row[1])
    return found


# Workspaces


def test_a_plain_folder_is_a_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is returned absolute, also where it was named relatively."""
    assert check_workspace(workspace, ()) == workspace
    monkeypatch.chdir(workspace.parent)
    assert check_workspace(Path("project"), ()) == workspace
    assert check_workspace(Path("home/../project/."), ()) == workspace


def test_what_is_no_folder_is_no_workspace(workspace: Path) -> None:
    """A missing path, a file and a symbolic link are refused, each with its own reason."""
    (workspace / "file").touch()
    (workspace / "link").symlink_to(workspace.parent / "home")
    (workspace / "dangling").symlink_to("nowhere")
    for name, reason in (
        ("missing", "No such file or directory; make the folder first"),
        ("file", "is not a folder"),
        ("file/below", "Not a directory"),
        ("link", f"is a symbolic link to {workspace.parent / 'home'}"),
        ("dangling", "is a symbolic link"),
    ):
        with pytest.raises(WorkspaceError, match=reason):
            check_workspace(workspace / name, ())


def test_a_workspace_may_not_contain_what_is_private(workspace: Path) -> None:
    """The private folder itself, what holds it, and what reaches it through a link on the way are refused."""
    secret = workspace / "deep" / "secret"
    secret.mkdir(parents=True)
    (workspace.parent / "way").symlink_to(workspace)
    for name in (secret, secret.parent, workspace, workspace.parent, Path("/"), workspace.parent / "way" / "deep"):
        with pytest.raises(WorkspaceError, match="which must not be visible inside"):
            check_workspace(name, (secret,))
    (secret / "below").mkdir()
    assert check_workspace(secret / "below", (secret,)) == secret / "below"
    (workspace / "other").mkdir()
    assert check_workspace(workspace / "other", (secret, Path("/does/not/exist"))) == workspace / "other"


@pytest.mark.parametrize("path", ["/proc", "/proc/sys", "/dev", "/sys", "/usr", "/usr/share", "/etc"])
def test_the_system_is_no_workspace(path: str) -> None:
    """No folder of the system can be made writable by calling it a workspace."""
    with pytest.raises(WorkspaceError, match="choose a project folder"):
        check_workspace(Path(path), ())


# The default


def test_only_the_allow_list_exists(workspace: Path) -> None:
    """By default the workspace, the system and fresh /tmp, HOME, /dev and /proc exist, and nothing of the user's."""
    layout = plan(workspace)
    assert seen(layout, workspace / "any") == ("--bind", str(workspace))
    assert writable(layout) == (str(workspace),)
    assert seen(layout, "/usr/bin/env") == ("--ro-bind", "/usr")
    for fresh in ("/tmp/x", "/dev/shm/x", f"{HOME}/x"):
        assert seen(layout, fresh)[0] == "--tmpfs"
    home = Path.home()
    others = [*(home / name for name in SECRETS), home, workspace.parent / "sibling"]
    for path in (*others, *map(Path, ("/root", "/var", "/run", "/sys", "/home/ada"))):
        # The test's own folders lie below /tmp, of which the sandbox has a fresh one.
        assert seen(layout, path)[0] == ("--tmpfs" if path.is_relative_to("/tmp") else ""), path
    for name in ("/etc/shadow", "/etc/ssh/ssh_host_rsa_key", "/etc/sudoers", "/etc/machine-id", "/var/run/docker.sock"):
        assert seen(layout, name) == ("", ""), name
        assert name not in layout.files


def test_nothing_but_the_workspace_comes_writable_from_the_host(workspace: Path) -> None:
    """Every other thing of the host is bound read-only, and / and /dev are made read-only last."""
    found = rows(plan(workspace))
    assert [row[1] for row in found if row[0] in {"--bind", "--dev-bind", "--dev-bind-try"}] == [str(workspace)]
    assert found[-2:] == [("--remount-ro", "/dev"), ("--remount-ro", "/")]
    for row in found:
        if row[0] in {"--ro-bind", "--ro-bind-try"}:
            assert row[1] == row[2] or row[1] == os.devnull


def test_fresh_folders_are_bounded(workspace: Path) -> None:
    """Each temporary file system is given the policy's size."""
    found = rows(plan(workspace, with_files(tmp_bytes=12345)))
    for at, row in enumerate(found):
        if row[0] == "--tmpfs":
            assert found[at - 1] == ("--size", "12345")


def test_users_and_names_inside_are_made_up(workspace: Path) -> None:
    """The files that name users, hosts and the name server know of the agent alone."""
    files = plan(workspace).files
    assert files["/etc/resolv.conf"].startswith(b"nameserver 127.0.0.1\n")
    names = [line.split(b":")[0] for line in files["/etc/passwd"].splitlines()]
    assert names == [b"agent", b"nobody"]
    assert f":{inner_uid()}:{inner_gid()}:".encode() in files["/etc/passwd"]
    assert b"localhost" in files["/etc/hosts"]
    assert 0 not in {inner_uid(), inner_gid()}


# What a policy adds


def test_granted_paths_exist_as_they_were_granted(workspace: Path) -> None:
    """What is granted has the same path inside; `~` is the user's home; a relative name begins at the workspace."""
    data, out = workspace.parent / "data", Path.home() / "out"
    for folder in (data, out, workspace / "inner"):
        folder.mkdir()
    layout = plan(workspace, with_files(read=[str(data), "inner"], write=["~/out"]))
    assert seen(layout, data / "x") == ("--ro-bind", str(data))
    assert seen(layout, workspace / "inner" / "x") == ("--ro-bind", str(workspace / "inner"))
    assert seen(layout, out / "x") == ("--bind", str(out))
    assert set(writable(layout)) == {str(workspace), str(out)}
    assert seen(layout, Path.home() / ".ssh")[0] in {"", "--tmpfs"}
    assert (
        plan(workspace, with_files(write=["$HOME/out"])).arguments
        == plan(workspace, with_files(write=["~/out"])).arguments
    )


def test_a_read_only_workspace_is_read_only(workspace: Path) -> None:
    """workspace: read leaves no place of the host's that can be written."""
    layout = plan(workspace, with_files(workspace="read"))
    assert seen(layout, workspace / "x") == ("--ro-bind", str(workspace))
    assert writable(layout) == ()


def test_links_are_resolved_before_they_are_granted(workspace: Path) -> None:
    """A link that is granted grants what it leads to, at its true place."""
    real, link = workspace.parent / "real", workspace.parent / "link"
    real.mkdir()
    link.symlink_to(real)
    layout = plan(workspace, with_files(read=[str(link)]))
    assert seen(layout, real / "x") == ("--ro-bind", str(real))


@pytest.mark.parametrize("name", ["link", "./link", "link/deeper"])
def test_a_link_in_the_workspace_grants_nothing_outside(workspace: Path, name: str) -> None:
    """A name in the workspace that leads out of it is refused: an earlier command may have made the link."""
    real = workspace.parent / "real"
    (real / "deeper").mkdir(parents=True)
    (workspace / "link").symlink_to(real)
    for fields in ({"read": [name]}, {"workspace": "read", "write": [name]}):
        with pytest.raises(PolicyError, match="leads out of the workspace"):
            plan(workspace, with_files(**fields))


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (with_files(read=["missing"]), "filesystem.read: 'missing' does not exist"),
        (with_files(write=["~/missing"]), "filesystem.write: '~/missing' does not exist"),
        (Policy(unix_sockets=["missing.sock"]), "unix_sockets: 'missing.sock' does not exist"),
        (Policy(gpus=[Gpu(device=4095)]), r"gpus\[0\].device: no GPU 4095"),
        (Policy(gpus=[Gpu(device="GPU-none")]), r"gpus\[0\].device: no GPU 'GPU-none'"),
    ],
)
def test_what_does_not_exist_cannot_be_granted(workspace: Path, policy: Policy, field: str) -> None:
    """The error names the field and what was looked for, and nothing is built without it."""
    with pytest.raises(PolicyError, match=field):
        plan(workspace, policy)


def test_an_abstract_socket_needs_no_mount(workspace: Path) -> None:
    """A name that begins with @ is no file."""
    assert plan(workspace, Policy(unix_sockets=["@name"])).arguments == plan(workspace).arguments


def test_the_environment_and_the_monitor_stay_read_only_in_the_workspace(workspace: Path) -> None:
    """A Python environment and our own package below a writable workspace cannot be written."""
    python, package = workspace / ".venv", workspace / "src" / "jupyter_agentwatch"
    python.mkdir()
    package.mkdir(parents=True)
    layout = plan(workspace, python=(python, Path("/usr")), package=package)
    assert seen(layout, python / "bin" / "python") == ("--ro-bind", str(python))
    assert seen(layout, package / "watch.py") == ("--ro-bind", str(package))
    assert seen(layout, workspace / "src2")[0] == "--bind"
    assert str(python) not in writable(layout)
    elsewhere = plan(workspace, python=(workspace / "missing",))
    assert elsewhere.arguments == plan(workspace).arguments


def test_what_is_hidden_is_empty(workspace: Path) -> None:
    """A hidden folder is an empty read-only one, a hidden file is masked, and hiding what is not there does nothing."""
    (workspace / "secret" / "deep").mkdir(parents=True)
    (workspace / "token").write_text("secret")
    layout = plan(workspace, with_files(hide=["secret", "token", "not-there"]))
    assert seen(layout, workspace / "secret" / "deep") == ("empty", str(workspace / "secret"))
    masked = seen(layout, workspace / "token") == ("--ro-bind", os.devnull)
    assert masked or str(workspace / "token") in layout.hidden
    assert str(workspace / "not-there") not in " ".join(layout.arguments)
    assert seen(layout, workspace / "other")[0] == "--bind"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    names=st.lists(
        st.tuples(st.sampled_from(["a", "a/b", "a/b/c", "d", "d/e", "."]), st.sampled_from(["read", "write", "hide"])),
        unique_by=lambda item: item[0],
    )
)
def test_the_innermost_grant_decides(workspace: Path, names: list[tuple[str, str]]) -> None:
    """Whatever is granted and hidden where, a path is what its nearest entry says, in any order of the policy."""
    for name in ("a/b/c", "d/e"):
        (workspace / name).mkdir(parents=True, exist_ok=True)
    fields = {kind: [name for name, said in names if said == kind] for kind in ("read", "write", "hide")}
    layout = plan(workspace, with_files(**fields))
    said = {".": "write"} | dict(names)
    how = {"read": "--ro-bind", "write": "--bind", "hide": "empty"}
    for name in ("a", "a/b", "a/b/c", "d", "d/e", "f"):
        nearest = next(str(each) for each in (Path(name), *Path(name).parents) if str(each) in said)
        assert seen(layout, workspace / name / "x")[0] == how[said[nearest]], (name, names)


# The environment


def test_the_environment_is_short_and_holds_no_token(workspace: Path) -> None:
    """Only what the policy names is passed on; what it sets wins; PATH begins with the environment's programs."""
    python = workspace / "venv"
    (python / "bin").mkdir(parents=True)
    passed = {"LANG": "de_DE.UTF-8", "API_TOKEN": "secret", "SSH_AUTH_SOCK": "/x", "PATH": "/evil", "HOME": "/home/ada"}
    found = clean_environment(Policy(), passed, (python, workspace / "missing"), HOME, "/tmp")
    assert found["LANG"] == "de_DE.UTF-8"
    assert found["HOME"] == HOME
    assert found["PATH"].split(":")[0] == f"{python}/bin"
    assert set(found) == {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG"}
    policy = Policy(environment=Environment(passed=["API_TOKEN", "UNSET"], set={"HOME": "/elsewhere", "X": "1"}))
    chosen = clean_environment(policy, passed, (), HOME, "/tmp")
    assert (chosen["API_TOKEN"], chosen["HOME"], chosen["X"], chosen["LANG"]) == (
        "secret",
        "/elsewhere",
        "1",
        "C.UTF-8",
    )
    assert "UNSET" not in chosen
