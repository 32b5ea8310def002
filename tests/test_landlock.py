"""Rulesets of every Landlock version, taken on by real processes: what is refused, and what is not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from jupyter_agentwatch.sandbox import landlock
from jupyter_agentwatch.sandbox.landlock import NEWEST_ABI, READ, WRITE, landlock_abi, make_ruleset, missing_rights

ROOT: Final = Path(__file__).parent.parent
LIMIT_S: Final = 60
ABIS: Final = range(1, NEWEST_ABI + 1)

CONFINED: Final = """
import ctypes, errno, fcntl, json, os, socket, sys
from jupyter_agentwatch.sandbox.landlock import READ, WRITE, make_ruleset
from jupyter_agentwatch.sandbox.syscalls import MACHINES

abi, top = int(sys.argv[1]), sys.argv[2]
rw, ro, none = (f"{top}/{name}" for name in ("rw", "ro", "none"))

def to(family, address):
    with socket.socket(family) as caller:
        caller.connect(address)

def bind():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

def tell(device):
    held = os.open(device, os.O_RDONLY)
    try:
        fcntl.ioctl(held, 0x5401, bytes(64))
    finally:
        os.close(held)

def run(program):
    pid = os.posix_spawn(program, [program], {})
    return os.waitpid(pid, 0)[1]

def make(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)

listening, named = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
named.bind("")
named.listen(1)
tries = {
    "read granted": lambda: open(f"{ro}/file").close(),
    "list granted": lambda: os.listdir(ro),
    "run granted": lambda: run(f"{ro}/true"),
    "read one file": lambda: open(f"{none}/one").close(),
    "write granted": lambda: open(f"{rw}/file", "w").close(),
    "make file": lambda: open(f"{rw}/new", "x").close(),
    "make folder": lambda: os.mkdir(f"{rw}/folder"),
    "make link": lambda: os.symlink("file", f"{rw}/link"),
    "make fifo": lambda: os.mkfifo(f"{rw}/fifo"),
    "make socket": lambda: make(f"{rw}/socket"),
    "rename beside": lambda: os.rename(f"{rw}/a/first", f"{rw}/a/moved"),
    "remove": lambda: os.unlink(f"{rw}/a/gone"),
    "truncate granted": lambda: os.truncate(f"{rw}/file", 0),
    "tell granted device": lambda: tell("/dev/zero"),
    "read other": lambda: open(f"{none}/file").close(),
    "list other": lambda: os.listdir(none),
    "run other": lambda: run(f"{none}/true"),
    "write read-only": lambda: open(f"{ro}/file", "a").close(),
    "write one file": lambda: open(f"{none}/one", "a").close(),
    "make in read-only": lambda: open(f"{ro}/new", "x").close(),
    "make in other": lambda: os.mkdir(f"{none}/folder"),
    "remove in read-only": lambda: os.unlink(f"{ro}/file"),
    "make device": lambda: os.mknod(f"{rw}/device", 0o20600, os.makedev(1, 3)),
    "rename away": lambda: os.rename(f"{rw}/a/second", f"{rw}/b/second"),
    "rename out": lambda: os.rename(f"{rw}/a/third", f"{ro}/third"),
    "truncate read-only": lambda: os.truncate(f"{ro}/file", 0),
    "connect": lambda: to(socket.AF_INET, listening.getsockname()),
    "bind": bind,
    "tell device": lambda: tell("/dev/null"),
    "abstract name": lambda: to(socket.AF_UNIX, named.getsockname()),
    "signal": lambda: os.kill(os.getppid(), 0),
}
system = [(name, READ) for name in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/nowhere/at/all")]
devices = [("/dev/null", READ), ("/dev/zero", WRITE)]
ruleset = make_ruleset([*system, *devices, (rw, WRITE), (ro, READ), (f"{none}/one", READ)], abi)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(MACHINES[os.uname().machine].numbers["landlock_restrict_self"], ruleset, 0) == 0

def came(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

print(json.dumps({name: came(attempt) for name, attempt in tries.items()}))
"""

DENIED: Final = {"EACCES", "EPERM"}
NO_TERMINAL: Final = "ENOTTY"  # the device itself was asked


@cache
def confined(abi: int, top: Path) -> dict[str, str]:
    """Return what came of each try of a process that took a ruleset of a version on."""
    for name in ("rw/a", "rw/b", "ro", "none"):
        (top / name).mkdir(parents=True)
    for name in ("rw/file", "rw/a/first", "rw/a/gone", "rw/a/second", "rw/a/third", "ro/file", "none/file", "none/one"):
        (top / name).write_text("x")
    for name in ("ro", "none"):
        shutil.copy(os.path.realpath(shutil.which("true") or "/bin/true"), top / name / "true")
    argv = [sys.executable, "-c", CONFINED, str(abi), str(top)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def tops(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return a folder for each version."""
    return {abi: tmp_path_factory.mktemp(f"abi{abi}") for abi in ABIS}


@pytest.mark.parametrize("abi", ABIS)
def test_a_confined_process_does_what_was_granted_and_nothing_else(abi: int, tops: dict[int, Path]) -> None:
    """By every version that the kernel has, files are held; what it does not have, it refuses as a whole."""
    if abi > landlock_abi():
        with pytest.raises(OSError, match="landlock"):
            make_ruleset([("/usr", READ)], abi)
        return
    came = confined(abi, tops[abi])
    granted = {name: what for name, what in came.items() if name in list(came)[:14]}
    assert granted == dict.fromkeys(granted, "ok") | {"tell granted device": NO_TERMINAL}
    held = (
        *("read other", "list other", "run other", "write read-only", "write one file", "make in read-only"),
        *("make in other", "remove in read-only", "make device"),
    )
    assert {name: came[name] for name in held if came[name] not in DENIED} == {}


def test_a_version_that_the_kernel_announces_and_cannot_do_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that announces a version and refuses its rights gives the newest version that it takes; 0 where none."""
    plain = landlock._begin

    def begin(known: int, abi: int) -> int:
        if abi > known:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "landlock")
        return plain(abi)

    for known in range(landlock_abi() + 1):
        monkeypatch.setattr(landlock, "_begin", partial(begin, known))
        assert landlock_abi() == known


@pytest.mark.parametrize("abi", ABIS)
def test_each_version_holds_what_it_is_known_for(abi: int, tops: dict[int, Path]) -> None:
    """Renames, truncation, TCP, devices, names and signals are free before their version, as `missing_rights` says."""
    if abi > landlock_abi():
        with pytest.raises(OSError, match="landlock"):
            make_ruleset([], abi)
        return
    came = confined(abi, tops[abi])
    lacks = {right for right, _ in missing_rights(abi)}
    assert came["rename away"] == ("EXDEV" if "refer" in lacks else "ok")
    assert came["rename out"] == "EACCES"
    assert came["truncate read-only"] == ("ok" if "truncate" in lacks else "EACCES")
    assert {came["connect"], came["bind"]} == {"ok" if "network" in lacks else "EACCES"}
    assert came["tell device"] == (NO_TERMINAL if "ioctl_dev" in lacks else "EACCES")
    assert {came["abstract name"], came["signal"]} == {"ok" if "scope" in lacks else "EPERM"}


def test_what_is_missing_becomes_less_with_each_version() -> None:
    """Every version lacks a part of what the one before it lacked, the newest nothing, and each says what it means."""
    lacking = [missing_rights(abi) for abi in (0, *ABIS)]
    for older, newer in pairwise(lacking):
        assert set(newer) <= set(older)
    assert lacking[-1] == []
    assert [right for right, _ in lacking[1]] == ["refer", "truncate", "network", "ioctl_dev", "scope"]
    assert all(meaning for _, meaning in lacking[0])


def test_a_refused_ruleset_leaves_no_descriptor() -> None:
    """A place that cannot be looked at is an error, and nothing stays open; one that does not exist grants nothing."""
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"File name too long|landlock"):
        make_ruleset([("/usr", READ), ("/" + "x" * 300, READ)], 1)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_writing_means_reading_too_and_no_device_nodes() -> None:
    """What may be written may be read; nobody makes a character or block device."""
    assert WRITE & READ == READ
    assert WRITE & (1 << 6 | 1 << 11) == 0
