"""What the kernel says of the sandbox in texts and structures that bear names of the sandbox's choice."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.sandbox import init
from jupyter_agentwatch.sandbox.descendants import descendants, is_descendant, offspring
from jupyter_agentwatch.sandbox.notify import as_int
from jupyter_agentwatch.sandbox.tasks import TaskTable, family_of
from jupyter_agentwatch.sandbox.unixdiag import bound_files, kernel_device, read_files
from jupyter_agentwatch.sandbox.usage import measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMED: Final = """
import ctypes, sys
libc = ctypes.CDLL(None)
for line in sys.stdin:
    name = bytes.fromhex(line)
    print(libc.prctl(15, ctypes.create_string_buffer(name, len(name) + 1), 0, 0, 0), flush=True)
"""

HOSTILE: Final = st.one_of(
    st.binary(max_size=20),
    st.text(" ()\n\t:/0123456789RSZXTgidNPp@", max_size=15).map(str.encode),
    st.sampled_from([b") Z 1 1 1 1 (", b")", b"(", b"x) X 1", b"\nTgid:\t1\nx", b"a b c", b"\xff" * 15, b"1)) S 0 0"]),
)


class Named:
    """A process that calls itself what it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def rename(self, name: bytes) -> None:
        """Give it a name."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(name.hex() + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "0\n"

    def end(self) -> None:
        """Kill it and wait for its end."""
        with self.process:
            self.process.kill()


@pytest.fixture(scope="module")
def named() -> Iterator[Named]:
    """One such process."""
    made = Named()
    yield made
    made.end()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HOSTILE)
def test_no_name_changes_what_is_read_of_a_process(named: Named, name: bytes) -> None:
    """Whatever a process calls itself, its parent, session, state, memory and threads are what they are."""
    named.rename(name)
    own = os.getpid()
    (found,) = [each for each in descendants(own) if each.pid == named.pid]
    assert (found.parent, found.session, found.threads) == (own, os.getsid(0), 1)
    assert found.state in "SR"
    assert found.pages > 0
    assert is_descendant(named.pid, own)
    assert named.pid in offspring(own)
    assert family_of(named.pid) == (named.pid, own)
    assert TaskTable(own, set).get(named.pid).tgid == named.pid
    pid, parent, session, state = next(each for each in init.processes() if each[0] == named.pid)
    assert (pid, parent, session, state in "SR") == (named.pid, own, os.getsid(0), True)
    assert measure("/proc", [str(named.pid)]).processes == 1


# Notifications


@given(st.integers(0, 2**64 - 1))
def test_a_register_is_the_int_that_the_kernel_takes(register: int) -> None:
    """Whatever stands in the upper half, the lower one decides, with its sign."""
    assert as_int(register) == ctypes.c_int(register & 0xFFFFFFFF).value


# UNIX sockets

ERRORS: Final = st.integers(-(2**31), 2**31 - 1).map(lambda n: struct.pack("=IHHIIi", 20, 2, 0, 1, 0, n))


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=200), st.builds(bytes.__add__, ERRORS, st.binary(max_size=20))), st.integers(0, 3))
def test_no_answer_about_sockets_breaks_the_reader(raw: bytes, count: int) -> None:
    """Any bytes in the place of the kernel's answer end in an OSError or in files, after a bounded time."""
    row = struct.pack("=IHHII", 16 + 16 + 12, 20, 0, 1, 0) + struct.pack("=BBBBIQ", 1, 1, 1, 0, 77, 0)
    row += struct.pack("=HHII", 12, 1, 5, 6)
    found: dict[int, tuple[int, int]] = {}
    with contextlib.suppress(OSError):
        read_files(row * count + raw, found)
    assert count == 0 or found[77] == (5, 6)


def test_what_the_kernel_says_of_sockets_is_understood(tmp_path: Path) -> None:
    """A socket that is bound to a file is found by its inode, whatever the file is called."""
    path = bytes(tmp_path) + b"/\xff\n\x01 name"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        info = os.stat(path)
        assert bound_files()[os.fstat(sock.fileno()).st_ino] == (
            info.st_ino & 0xFFFFFFFF,
            kernel_device(info.st_dev),
        )


def test_an_error_of_the_kernel_is_raised() -> None:
    """An answer that says no is an OSError with the kernel's number; one that is cut off is none that can be used."""
    found: dict[int, tuple[int, int]] = {}
    with pytest.raises(OSError, match="unix_diag") as raised:
        read_files(struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.EPERM), found)
    assert raised.value.errno == errno.EPERM
    with pytest.raises(OSError, match="unix_diag"):
        read_files(struct.pack("=IHHII", 0, 20, 0, 1, 0), found)
    assert read_files(struct.pack("=IHHIIi", 20, 3, 0, 1, 0, 0), found)
    assert found == {}
