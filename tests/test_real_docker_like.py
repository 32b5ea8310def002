"""A watch under a filter like Docker's, with the default policy: it stands on rung B by itself, and works there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docker_like import NOBODY, ROOT, command

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sandbox

IS_ROOT = os.geteuid() == 0

LIFE = """
import json, os
from jupyter_agentwatch import Watch
with Watch(workspace="project") as watch:
    said = {"uid": os.getuid(), "rung": watch.rung, "notes": watch.notes}
    result = watch.run("echo made > file; id -u; cat /etc/shadow")
    said |= {"output": result.stdout, "errors": result.stderr, "diff": [c.path for c in watch.diff(result.step)]}
    watch.undo(result.step)
    said["undone"] = os.listdir("project")
    running = watch.start(["sleep", "1000"])
    watch.suspend()
    said["suspended"] = watch.status().state
    watch.resume()
    said["resumed"] = watch.status().state
    killed = watch.kill("the end")
    said["killed"], said["survivors"] = killed.killed, killed.survivors
print(json.dumps(said))
"""

CALLS = """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    done = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(each) for each in arguments])
    return "ok" if done >= 0 else errno.errorcode[ctypes.get_errno()]
def kind(*numbers):
    try:
        socket.socket(*numbers).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
n = json.loads(sys.argv[1])
said = {name: call(n[name], *arguments) for name, arguments in {
    "unshare": [0x10000000], "setns": [0, 0], "mount": [0, 0, 0, 0, 0], "clone": [0x10000000 | 17, 0, 0, 0, 0],
    "clone3": [0, 0], "pidfd_getfd": [0, 0, 0], "kcmp": [0, 0, 0, 0, 0], "io_uring_setup": [1, 0], "bpf": [0, 0, 0],
    "userfaultfd": [1], "perf_event_open": [0, 0, -1, -1, 0], "keyctl": [0, -3], "open_by_handle_at": [0, 0, 0],
    "landlock_create_ruleset": [0, 0, 1],
}.items()}
said |= {"alg": kind(38, 5, 0), "vsock": kind(40, 1, 0), "packet": kind(17, 3, 0), "inet": kind(2, 1, 0)}
print(json.dumps(said))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because control sockets lie below it, that the other user owns."""
    with tempfile.TemporaryDirectory(prefix="dl-", dir="/tmp") as name:
        for path in (Path(name), *(Path(name, each) for each in ("project", "run", "log", "home"))):
            path.mkdir(mode=0o700, exist_ok=True)
            if IS_ROOT:
                os.chown(path, NOBODY, NOBODY)
        yield Path(name)


def said_by(folder: Path, program: str, *arguments: str, docker: bool = True) -> Any:
    """Run a program as an ordinary user in the harness, in the folder, and return the JSON that it prints."""
    start = f"import os, sys; os.chdir({str(folder)!r}); sys.path.insert(0, {str(ROOT)!r})\n"
    argv = [sys.executable, "-c", start + program, *arguments]
    environment = os.environ | {
        "HOME": str(folder / "home"),
        "AGENTWATCH_RUNTIME_DIR": str(folder / "run"),
        "AGENTWATCH_LOG_DIR": str(folder / "log"),
    }
    line = command(argv, uid=NOBODY if IS_ROOT else None, docker=docker)
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_watch_finds_rung_b_by_itself_and_works(folder: Path) -> None:
    """With the default policy it runs, shows and undoes changes, suspends, resumes, kills, and says why not on A."""
    said = said_by(folder, LIFE)
    assert (said["uid"], said["rung"]) == (NOBODY if IS_ROOT else os.getuid(), "B")
    assert "rung A cannot be had here" in said["notes"][0]
    assert said["output"].split() == [str(said["uid"])]
    assert "Permission denied" in said["errors"]
    assert (said["diff"], said["undone"]) == (["file"], [])
    assert (said["suspended"], said["resumed"], said["survivors"]) == ("frozen", "closed", 0)
    assert said["killed"] >= 1


def test_the_harness_refuses_what_docker_refuses(folder: Path) -> None:
    """Each call that Docker's default profile refuses to a user without rights gets the same errno; Landlock works."""
    from jupyter_agentwatch.sandbox.syscalls import MACHINES

    said = said_by(folder, CALLS, json.dumps(dict(MACHINES[os.uname().machine].numbers)))
    assert (said.pop("clone3"), said.pop("inet"), said.pop("landlock_create_ruleset")) == ("ENOSYS", "ok", "ok")
    assert set(said.values()) == {"EPERM"}, said


def test_without_the_filter_the_same_user_stands_on_rung_a(folder: Path) -> None:
    """It is the filter that takes rung A away, and not the harness."""
    assert said_by(folder, LIFE, docker=False)["rung"] == "A"
