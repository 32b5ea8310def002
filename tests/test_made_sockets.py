"""Where the broker gets its descriptor of a caller's socket from, with real sockets of real callers."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from jupyter_agentwatch.sandbox.notify import Gone, Notification
from jupyter_agentwatch.supervisor import sockets as sockets_module
from jupyter_agentwatch.supervisor.closer import Closer
from jupyter_agentwatch.supervisor.sockets import MadeSockets, TakenSockets
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM: Final = socket.SOCK_STREAM
HELD: Final = "import sys; sys.stdin.read()"


class Caller:
    """A process that gets descriptors, in the place of the kernel's ADDFD, which needs a trapped call."""

    def __init__(self) -> None:
        self.injected: list[tuple[int, bool]] = []
        self.refused: list[int] = []

    def inject(self, _ident: int, fd: int, *, cloexec: bool) -> bool:
        """Keep a descriptor as the caller would."""
        self.injected.append((os.dup(fd), cloexec))
        return True

    def finish(self, _ident: int, error: int = 0) -> bool:
        """Keep what the caller was told."""
        self.refused.append(error)
        return True

    @contextmanager
    def running(self) -> Iterator[int]:
        """Run a process that has the newest descriptor open, and nothing else of ours; yield its id."""
        fd, _ = self.injected[-1]
        with subprocess.Popen([sys.executable, "-c", HELD], stdin=subprocess.PIPE, pass_fds=(fd,)) as process:
            os.close(fd)
            yield process.pid
            process.communicate(timeout=LONG_S)


def trapped(family: int, kind: int = STREAM, protocol: int = 0) -> Notification:
    """Return a trapped `socket` call."""
    return Notification(1, os.getpid(), 0, (family, kind, protocol, 0, 0, 0))


Making = Callable[..., MadeSockets]


@pytest.fixture
def made_by() -> Iterator[Making]:
    """Return the sockets of a sandbox with these processes; what is kept in the end is closed."""
    all_of_them: list[MadeSockets] = []

    def make(caller: Any, members: list[int] | None = None) -> MadeSockets:
        all_of_them.append(MadeSockets(caller, lambda: members or [], Closer()))
        return all_of_them[-1]

    yield make
    for kept in all_of_them:
        for sock, _ in kept._kept.values():
            sock.close()


def inode(fd: int) -> int:
    """Return the inode of a socket."""
    return os.fstat(fd).st_ino


@pytest.mark.parametrize(
    ("family", "kind", "cloexec"),
    [
        (socket.AF_INET, STREAM, False),
        (socket.AF_INET6, STREAM | socket.SOCK_CLOEXEC, True),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, True),
        (socket.AF_UNIX | 1 << 32, STREAM | 1 << 32, False),
    ],
)
def test_the_caller_gets_the_socket_that_it_asked_for(
    made_by: Making, family: int, kind: int, *, cloexec: bool
) -> None:
    """Family, kind and O_NONBLOCK are the caller's, as the kernel reads them; close-on-exec is of its descriptor."""
    caller = Caller()
    made_by(caller).make(trapped(family, kind))
    ((fd, has_cloexec),) = caller.injected
    with socket.socket(fileno=fd) as got:
        assert (got.family, got.type) == (family & 0xFFFFFFFF, kind & 0xF)
        assert (has_cloexec, os.get_blocking(fd)) == (cloexec, not kind & socket.SOCK_NONBLOCK)


def test_a_socket_that_the_kernel_does_not_make_is_refused_with_its_errno(made_by: Making) -> None:
    """The caller gets what the kernel said."""
    caller = Caller()
    made_by(caller).make(trapped(socket.AF_INET, STREAM, 17))
    assert (caller.injected, caller.refused) == ([], [errno.EPROTONOSUPPORT])


def test_what_was_made_is_taken_by_the_callers_descriptor(made_by: Making) -> None:
    """The broker's descriptor is of the very socket that the caller has, found by inode, without pidfd_getfd."""
    caller = Caller()
    kept = made_by(caller)
    kept.make(trapped(socket.AF_INET))
    fd, _ = caller.injected[0]
    number = inode(fd)
    with caller.running() as pid, kept.take(pid, fd) as taken:
        assert inode(taken.fileno()) == number


def test_what_was_not_made_here_has_a_peer_already(made_by: Making) -> None:
    """A pair's end, an accepted socket, and what has been connected are nobody's business any more: EISCONN."""
    caller = Caller()
    kept = made_by(caller)
    left, right = socket.socketpair()
    kept.make(trapped(socket.AF_INET))
    fd, _ = caller.injected[0]
    with left, right, socket.socket(fileno=fd) as ours:
        for sock in (left, right):
            with pytest.raises(OSError, match=os.strerror(errno.EISCONN)):
                kept.take(os.getpid(), sock.fileno())
        kept.connected(ours)
        with pytest.raises(OSError, match=os.strerror(errno.EISCONN)):
            kept.take(os.getpid(), fd)


def test_what_is_no_socket_is_told_as_the_kernel_tells_it(made_by: Making) -> None:
    """A closed number is EBADF, a file ENOTSOCK, a dead thread `Gone`."""
    kept = made_by(Caller())
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        kept.take(os.getpid(), 1 << 20)
    with open(os.devnull, "rb") as file, pytest.raises(OSError, match=os.strerror(errno.ENOTSOCK)):
        kept.take(os.getpid(), file.fileno())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(LONG_S)
    with pytest.raises(Gone):
        kept.take(process.pid, 3)


def test_what_nobody_has_open_any_more_is_let_go(made_by: Making) -> None:
    """A kept descriptor would hold the port of a socket that its owner closed; a living owner's is spared."""
    caller, members = Caller(), list[int]()
    kept = made_by(caller, members)
    assert not kept.let_go()
    kept.make(trapped(socket.AF_INET))
    fd, _ = caller.injected[0]
    with caller.running() as pid:
        members.append(pid)
        assert not kept.let_go()
        kept.take(pid, fd).close()
    assert not kept.let_go(older_than_s=LONG_S), "it has just been made, and may not be its owner's yet"
    assert kept.let_go()
    assert not kept.let_go()


def test_a_crowd_of_sockets_has_an_end(made_by: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes sockets without end gets ENFILE; what others closed makes room again."""
    monkeypatch.setattr(sockets_module, "_SWEEP_AT", 2)
    monkeypatch.setattr(sockets_module, "_MAX_KEPT", 3)
    caller, members = Caller(), list[int]()
    kept = made_by(caller, members)
    kept._sweep_at = 2
    for _ in range(8):
        kept.make(trapped(socket.AF_INET))
    assert caller.refused == []  # nobody has any of them open, so each sweep makes room
    descriptors = [fd for fd, _ in caller.injected]
    members.append(os.getpid())  # now all of them are somebody's
    for _ in range(8):
        kept.make(trapped(socket.AF_INET))
    assert set(caller.refused) == {errno.ENFILE}
    for fd in {fd for fd, _ in caller.injected} | set(descriptors):
        os.close(fd)


def test_a_socket_is_taken_from_its_owner_where_that_can_be_done() -> None:
    """On rung A the broker's descriptor is the owner's own socket, and nothing is kept."""
    taken_from = TakenSockets(Closer())
    with socket.socket() as ours, taken_from.take(os.getpid(), ours.fileno()) as taken:
        assert inode(taken.fileno()) == inode(ours.fileno())
        taken_from.connected(taken)
        assert not taken_from.let_go()
