"""Reading a real process's memory and sockets, and answering its trapped calls, also when it dies meanwhile."""

from __future__ import annotations

import array
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.sandbox.notify import Gone, Listener, TargetMemory, duplicate_socket
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096

MEMORY = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 32 * 4096)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
area[:] = bytes(1 + index % 251 for index in range(len(area)))
area[100:105] = b"short"; area[105] = 0
area[4090:4104] = b"crosses a page"; area[4104] = 0
area[3 * 4096 - 3:3 * 4096] = b"end"; area[3 * 4096] = 0
libc.munmap(ctypes.c_void_p(start + 31 * 4096), 4096)
print(start, flush=True)
sys.stdin.readline()
import os
os._exit(0)
"""


class Target:
    """A child with known memory: 31 pages from `start`, then nothing."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMORY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.pid = self.process.pid
        self.start = int(self.process.stdout.readline())
        self.end = self.start + 31 * PAGE
        content = bytearray(1 + index % 251 for index in range(32 * PAGE))
        for at, text in ((100, b"short\0"), (4090, b"crosses a page\0"), (3 * PAGE - 3, b"end\0")):
            content[at : at + len(text)] = text
        self.content = bytes(content)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A living target."""
    found = Target()
    yield found
    found.process.communicate("end", timeout=LONG_S)


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended and was waited for."""
    process = subprocess.Popen(["true"])
    process.wait(LONG_S)
    return process.pid


# Memory


def test_bytes_are_read_exactly(target: Target) -> None:
    """A read gives the bytes asked for, across pages, up to the size of the buffer."""
    memory = TargetMemory()
    for at, size in ((0, 1), (100, 6), (4000, 200), (0, TargetMemory.SIZE), (31 * PAGE - 5, 5)):
        assert memory.read(target.pid, target.start + at, size) == target.content[at : at + size]


def test_what_is_not_mapped_is_a_bad_address(target: Target) -> None:
    """A read that begins or ends outside the mapping fails with EFAULT and gives nothing."""
    memory = TargetMemory()
    for address, size in ((target.end, 1), (target.end - 1, 2), (0, 16), (8, 1), (2**63, 8), (2**64 - 1, 1)):
        with pytest.raises(OSError, match="address") as raised:
            memory.read(target.pid, address, size)
        assert raised.value.errno == errno.EFAULT
        with pytest.raises(OSError, match="address"):
            memory.strings(target.pid, [address], 64 if address != target.end - 1 else PAGE)


def test_strings_end_at_their_nul(target: Target) -> None:
    """Strings are found within a page, across a page and at a page's end, in the order asked for."""
    memory = TargetMemory()
    places = [target.start + at for at in (4090, 100, 3 * PAGE - 3, 105, 4104)]
    expected = [b"crosses a page", b"short", b"end", b"", b""]
    assert memory.strings(target.pid, places, PAGE) == expected
    assert memory.strings(target.pid, places * 40, PAGE) == expected * 40
    assert memory.strings(target.pid, [], PAGE) == []


def test_strings_without_an_end_are_cut(target: Target) -> None:
    """A string longer than the limit is cut there, also where the limit spans pages."""
    memory = TargetMemory()
    assert memory.strings(target.pid, [target.start + 4090], 3) == [b"cro"]
    at = 5 * PAGE + 17
    assert memory.strings(target.pid, [target.start + at], 3 * PAGE) == [target.content[at : at + 3 * PAGE]]


def test_a_string_that_ends_before_the_last_page_does_needs_no_more(target: Target) -> None:
    """Reading a string never touches the page behind it."""
    memory = TargetMemory()
    at = 31 * PAGE - 20
    with pytest.raises(OSError, match="address"):
        memory.strings(target.pid, [target.start + at], 64)
    assert memory.strings(target.pid, [target.start + at], 20) == [target.content[at : at + 20]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30 * PAGE), st.integers(1, 900)), min_size=1, max_size=60))
def test_spans_are_gathered_one_behind_the_other(target: Target, spans: list[tuple[int, int]]) -> None:
    """Several reads with one call are the same as one after the other."""
    memory = TargetMemory()
    found = memory.gather(target.pid, tuple((target.start + at, size) for at, size in spans))
    expected = b"".join(target.content[at : at + size] for at, size in spans)
    assert found[: len(expected)] == expected


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 30 * PAGE), limit=st.integers(1, 2 * PAGE))
def test_any_place_gives_the_string_that_begins_there(target: Target, at: int, limit: int) -> None:
    """Wherever it begins, a string ends at its NUL or at the limit."""
    if at + limit < 31 * PAGE:
        expected = target.content[at : at + limit].split(b"\0")[0]
        assert TargetMemory().strings(target.pid, [target.start + at], limit) == [expected]


def test_the_memory_of_the_dead_is_gone(dead: int) -> None:
    """A process that has ended raises Gone, not an error of the caller's."""
    memory = TargetMemory()
    with pytest.raises(Gone):
        memory.read(dead, 4096, 16)
    with pytest.raises(Gone):
        memory.strings(dead, [4096], 16)


# Sockets


def test_a_socket_of_another_process_is_the_same_one() -> None:
    """Our copy of a child's socket reads what is sent to it, and the child's flags are left as they were."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        child = subprocess.Popen(["sleep", "600"], pass_fds=[fd], stdin=subprocess.DEVNULL)
        try:
            for tid in (child.pid, int(os.listdir(f"/proc/{child.pid}/task")[0])):
                with duplicate_socket(tid, fd) as copy:
                    assert os.fstat(copy.fileno()).st_ino == os.fstat(fd).st_ino
                    assert not os.get_inheritable(copy.fileno())
                    ours.send(b"for the child")
                    assert copy.recv(100) == b"for the child"
            for bad, expected in ((999, errno.EBADF), (-1, errno.EBADF), (0, errno.ENOTSOCK)):
                with pytest.raises(OSError, match=os.strerror(expected)):
                    duplicate_socket(child.pid, bad)
        finally:
            child.kill()
            child.wait(LONG_S)
        with pytest.raises(Gone):
            duplicate_socket(child.pid, fd)


def test_a_thread_that_leads_no_group_has_its_processes_sockets() -> None:
    """A thread id finds the descriptors of the process that the thread is part of."""
    source = (
        "import sys, threading\n"
        "def wait():\n    print(threading.get_native_id(), flush=True)\n    sys.stdin.readline()\n"
        "t = threading.Thread(target=wait)\nt.start()\nt.join()"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", source], pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        tid = int(child.stdout.readline())
        assert tid != child.pid
        with duplicate_socket(tid, theirs.fileno()) as copy:
            assert os.fstat(copy.fileno()).st_ino == os.fstat(theirs.fileno()).st_ino
        child.communicate(b"\n", timeout=LONG_S)


# Trapped calls


CALLER = """
import array, ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
seccomp, getppid = {"x86_64": (317, 110), "aarch64": (277, 173)}[os.uname().machine]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, getppid), (0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(seccomp, 1, 8, struct.pack("@HP", len(code), ctypes.addressof(program)))
channel = socket.socket(fileno=int(sys.argv[1]))
channel.sendmsg([str(ctypes.get_errno()).encode()], [(1, 1, array.array("i", [listener]))])
os.close(listener)
while channel.recv(1):
    result = libc.syscall(getppid)
    channel.send(f"{result} {ctypes.get_errno() if result < 0 else 0}".encode())
"""


class Caller:
    """A child whose getppid is trapped, and our listener of its filter."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.channel.settimeout(LONG_S)
        with theirs:
            command = [sys.executable, "-c", CALLER, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        _, ancillary, _, _ = self.channel.recvmsg(100, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _, _, rights in ancillary:
            fds.frombytes(rights)
        self.listener = Listener(fds[0])

    def call(self) -> Any:
        """Let the child make the call; return the notification."""
        self.channel.send(b"x")
        poll = select.poll()
        poll.register(self.listener.fd, select.POLLIN)
        assert poll.poll(LONG_S * 1000)
        return self.listener.receive()

    def result(self) -> str:
        """Return what the call gave: its value and errno."""
        return self.channel.recv(100).decode()

    def end(self) -> None:
        """Kill the child, and wait for its end."""
        self.process.kill()
        self.process.wait(LONG_S)


@pytest.fixture
def caller() -> Iterator[Caller]:
    """A child whose calls wait for us."""
    found = Caller()
    yield found
    found.end()
    found.channel.close()
    found.listener.close()


@pytest.mark.sandbox
def test_a_trapped_call_gets_what_it_is_answered(caller: Caller) -> None:
    """A value, an errno, or the call itself: the caller cannot tell who answered."""
    for answer, expected in (
        (lambda ident: caller.listener.finish(ident, value=4711), "4711 0"),
        (lambda ident: caller.listener.finish(ident, errno.EACCES), f"-1 {errno.EACCES}"),
        (caller.listener.proceed, f"{os.getpid()} 0"),
    ):
        notification = caller.call()
        assert notification.tid == caller.process.pid
        assert len(notification.args) == 6
        assert caller.listener.is_valid(notification.id)
        assert answer(notification.id)
        assert caller.result() == expected
        assert not caller.listener.is_valid(notification.id)
        assert not answer(notification.id), "a call is answered once"


@pytest.mark.sandbox
def test_a_caller_that_died_needs_no_answer(caller: Caller) -> None:
    """After the caller's death its notification is invalid, answers say so, and the listener hangs up."""
    notification = caller.call()
    caller.end()
    assert not caller.listener.is_valid(notification.id)
    assert not caller.listener.finish(notification.id, errno.EPERM)
    assert not caller.listener.proceed(notification.id)
    poll = select.poll()
    poll.register(caller.listener.fd, select.POLLIN)
    ((_, events),) = poll.poll(LONG_S * 1000)
    assert events & select.POLLHUP


@pytest.mark.sandbox
def test_a_call_that_was_interrupted_is_no_error(caller: Caller) -> None:
    """A caller that dies between the poll and the receive gives None."""
    caller.channel.send(b"x")
    poll = select.poll()
    poll.register(caller.listener.fd, select.POLLIN)
    assert poll.poll(LONG_S * 1000)
    os.kill(caller.process.pid, signal.SIGKILL)
    caller.process.wait(LONG_S)
    assert caller.listener.receive() is None


@pytest.mark.sandbox
def test_a_closed_listener_fails_the_calls(caller: Caller) -> None:
    """When the listener is closed, a call that waits and every later one get ENOSYS: the filter stays."""
    assert caller.call() is not None
    caller.listener.close()
    caller.listener.close()
    assert caller.result() == f"-1 {errno.ENOSYS}"
    caller.channel.send(b"x")
    assert caller.result() == f"-1 {errno.ENOSYS}"
