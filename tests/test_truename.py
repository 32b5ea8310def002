"""Promises of the look-up of names: what a name leads to for another thread, whatever it goes through."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch.sandbox.notify import Gone
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.truename import TrueName, TrueNames

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def names() -> TrueNames:
    """Looks names up as a process of this machine would: its root is ours."""
    return TrueNames(Root(os.getpid()))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with files, links and a folder below."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "f").touch()
    (tmp_path / "to-f").symlink_to("d/f")
    (tmp_path / "to-d").symlink_to(tmp_path / "d")
    (tmp_path / "chain").symlink_to("to-d/../to-f")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("d/new")
    (tmp_path / "to-proc").symlink_to("/proc/self/cwd")
    return tmp_path


@pytest.fixture
def other(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works in the place, with `d/f` as its standard input and a pipe as its output."""
    with open(place / "d" / "f", "rb") as file:
        command = ["sh", "-c", "echo ready; exec sleep 60"]
        process = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, cwd=place)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("name", "follow", "expected"),
    [
        ("d/f", True, "d/f"),
        ("d/f", False, "d/f"),
        ("d/new", True, "d/new"),
        ("to-f", True, "d/f"),
        ("to-f", False, "to-f"),
        ("to-d/f", False, "d/f"),
        ("to-d/new", True, "d/new"),
        ("to-d/", False, "d"),
        ("d/e/", False, "d/e"),
        ("new/", False, "new"),
        ("chain", True, "d/f"),
        ("dangling", True, "d/new"),
        ("d/./e/..//f", True, "d/f"),
        ("to-d/../to-f", True, "d/f"),
        ("d/../../{name}/d/f", True, "d/f"),
        ("../../../../../../../../../../../..{here}/d/f", True, "d/f"),
        ("loop", True, None),
        ("loop", False, "loop"),
        ("loop/x", False, None),
        ("missing/f", True, None),
        ("d/f/x", True, None),
        ("d/f/../f", True, None),
        ("x" * 300, True, "x" * 300),
        ("x" * 300 + "/..", True, None),
    ],
)
def test_a_name_leads_where_the_kernel_would_go(
    names: TrueNames, place: Path, name: str, follow: bool, expected: str | None
) -> None:
    """Links, dots and slashes are resolved as a call would; a name that can lead nowhere is None."""
    asked = f"{place}/{name.format(name=place.name, here=place)}"
    wanted = None if expected is None else os.fsencode(place / expected)
    assert names.resolve(os.fsencode(asked), os.getpid(), follow=follow) == TrueName(wanted, is_fixed=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/proc/self/cwd/d/f", "d/f"),
        ("/proc/self/cwd/to-d/f", "d/f"),
        ("/proc/self/cwd", ""),
        ("/proc/self/cwd/../{name}/d/f", "d/f"),
        ("/proc/thread-self/cwd/d/f", "d/f"),
        ("/proc/{pid}/cwd/d/f", "d/f"),
        ("/proc/{pid}/task/{pid}/cwd/d/f", "d/f"),
        ("/proc/self/root{here}/d/f", "d/f"),
        ("/proc/self/fd/0", "d/f"),
        ("/dev/fd/0", "d/f"),
        ("/dev/stdin", "d/f"),
        ("{here}/to-proc/d/f", "d/f"),
        ("/proc/self/fd/1", None),
        ("/proc/self/fd/77", "/proc/{pid}/fd/77"),
        ("/proc/self/ns/pid", None),
        ("/proc/self/fd/0/x", None),
    ],
)
def test_magic_links_are_those_of_the_caller(
    names: TrueNames, place: Path, other: subprocess.Popen[bytes], name: str, expected: str | None
) -> None:
    """Working directory, root and descriptors are the other process's, not ours; such an answer is not for keeps."""
    asked = name.format(pid=other.pid, name=place.name, here=place)
    wanted = None if expected is None else os.fsencode(os.path.normpath(place / expected.format(pid=other.pid)))
    assert names.resolve(os.fsencode(asked), other.pid, follow=True) == TrueName(wanted, is_fixed=False)


def test_the_thread_counts_and_not_its_process(names: TrueNames, place: Path) -> None:
    """A thread that is not the first of its process is found by its own id."""
    found: list[TrueName] = []
    asked, ready, end = b"/proc/thread-self/comm", threading.Event(), threading.Event()
    tids: list[int] = []

    def wait() -> None:
        tids.append(threading.get_native_id())
        ready.set()
        end.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    found.append(names.resolve(asked, tids[0], follow=True))
    end.set()
    thread.join()
    assert found == [TrueName(b"/proc/%d/task/%d/comm" % (os.getpid(), tids[0]), is_fixed=False)]
    assert place.is_dir()


def test_a_caller_that_is_gone_is_told(names: TrueNames) -> None:
    """The own folder of a process that has ended leads nowhere, which is said by an exception of its own."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with pytest.raises(Gone):
        names.resolve(b"/proc/self/cwd/f", ended.pid, follow=True)


def test_a_name_that_takes_too_long_is_refused(names: TrueNames, place: Path) -> None:
    """A name of more components than anybody needs is an error, not an answer, and never followed to its end."""
    with pytest.raises(OSError, match="Too many levels") as refused:
        names.resolve(os.fsencode(f"{place}/" + "d/../" * 700 + "d/f"), os.getpid(), follow=True)
    assert refused.value.errno == errno.ELOOP
    (place / "a0").symlink_to("d/" + "../d/" * 600 + "f")
    for number in range(1, 30):
        (place / f"a{number}").symlink_to("x/../" * 3 + f"a{number - 1}")
    with pytest.raises(OSError, match="Too many levels"):
        names.resolve(os.fsencode(place / "a0"), os.getpid(), follow=True)


def test_nothing_is_opened_that_could_hold_us_up(names: TrueNames, place: Path) -> None:
    """A FIFO in the place of a file or of a folder is passed by, and no descriptor is left open."""
    os.mkfifo(place / "fifo")
    (place / "to-fifo").symlink_to("fifo")
    before = len(os.listdir("/proc/self/fd"))
    for name, expected in (("fifo", "fifo"), ("to-fifo", "fifo"), ("fifo/x", None), ("to-fifo/../d/f", None)):
        wanted = None if expected is None else os.fsencode(place / expected)
        assert names.resolve(os.fsencode(place / name), os.getpid(), follow=True).path == wanted
    assert len(os.listdir("/proc/self/fd")) == before
