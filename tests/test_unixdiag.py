"""Which file a bound UNIX socket belongs to, as the running kernel says it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from jupyter_agentwatch.sandbox.unixdiag import bound_files, kernel_device


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for a socket's path."""
    return tmp_path_factory.mktemp("s")


def inode(sock: socket.socket) -> int:
    """Return a socket's own inode."""
    return os.fstat(sock.fileno()).st_ino


def test_a_bound_socket_is_told_with_its_file(folder: Path) -> None:
    """By the socket's inode one finds the file's, and its device as the kernel keeps it, listening or not."""
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        bound.bind(str(folder / "bound"))
        listening.bind(str(folder / "listening"))
        listening.listen(1)
        found = bound_files()
        for sock, name in ((bound, "bound"), (listening, "listening")):
            info = (folder / name).stat()
            assert found[inode(sock)] == (info.st_ino & 0xFFFFFFFF, kernel_device(info.st_dev))


def test_a_socket_keeps_its_file_whatever_becomes_of_the_name(folder: Path) -> None:
    """The name may be moved, taken away, or come to stand for another socket's file."""
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind(str(folder / "name"))
        info = (folder / "name").stat()
        (folder / "name").rename(folder / "old")
        second.bind(str(folder / "name"))
        other = (folder / "name").stat()
        (folder / "old").unlink()
        found = bound_files()
        assert found[inode(first)][0] == info.st_ino & 0xFFFFFFFF
        assert found[inode(second)][0] == other.st_ino & 0xFFFFFFFF
        assert other.st_ino != info.st_ino


def test_sockets_without_a_file_are_not_told(folder: Path) -> None:
    """Abstract, unnamed and closed sockets belong to no file."""
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as closed:
        abstract.bind("")
        closed.bind(str(folder / "closed"))
        former = inode(closed)
        closed.close()
        assert {inode(left), inode(right), inode(abstract), former} & set(bound_files()) == set()


def test_many_sockets_are_told_over_several_messages(folder: Path) -> None:
    """An answer that does not fit one message is read to its end."""
    held = [socket.socket(socket.AF_UNIX) for _ in range(600)]
    try:
        for number, sock in enumerate(held):
            sock.bind(str(folder / f"{number}"))
        assert {inode(sock) for sock in held} <= set(bound_files())
    finally:
        for sock in held:
            sock.close()


@pytest.mark.parametrize(("major", "minor"), [(0, 0), (8, 1), (259, 3), (0, 1 << 19), ((1 << 12) - 1, (1 << 20) - 1)])
def test_a_device_number_is_written_as_the_kernel_keeps_it(major: int, minor: int) -> None:
    """The kernel keeps 12 bits of major and 20 of minor in one word; `stat` gives another form."""
    assert kernel_device(os.makedev(major, minor)) == major << 20 | minor
