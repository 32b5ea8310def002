"""The seccomp notification channel and race-aware reads of the caller, with as few system calls as can be.

Theory of operation: `receive` copies a call's registers; they cannot change. Whatever a register points to can be
changed by another thread at any time, so memory is read exactly once and `is_valid` is asked after the read: only
then do we know that it was the caller's memory and not that of a process which got the same id. Answering CONTINUE
makes the kernel read that memory again, so a decision may never rest on it: such records are `claimed`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from jupyter_agentwatch.sandbox.syscalls import MACHINES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gone", "Listener", "Notification", "TargetMemory", "another", "as_int", "duplicate_socket", "run_soon"]

_RECV: Final = 0xC0502100
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102
_ADDFD: Final = 0x40182103
_ADDFD_SEND: Final = 2
_FLAG_CONTINUE: Final = 1
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1

_NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ADDFD_REQUEST = struct.Struct("=QIIII")
_ID = struct.Struct("=Q")
_PAGE: Final = 4096
_PIDFD_THREAD: Final = os.O_EXCL  # Linux 6.9: a pidfd of a thread that leads no group


class Gone(Exception):  # noqa: N818 -- not an error: the caller died or was interrupted while we looked
    """The notification's caller no longer waits; drop it, it will ask again if it lives."""


class Notification(NamedTuple):
    """One trapped call: `tid` is a thread id as the supervisor sees it, `args` the six registers."""

    id: int
    tid: int
    number: int
    args: tuple[int, int, int, int, int, int]


def as_int(register: int) -> int:
    """Return a register as the C `int` that the kernel takes of it: the low word, signed."""
    return ((register & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


class Listener:
    """The supervisor's end of the filter. Any thread."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # Linux 6.6: caller and supervisor wake each other on one processor, as they never run at the same time. On a
        # virtual machine, waking another processor costs several times what the whole answer does.
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification | None:
        """Wait for the next call and take it; None when its caller died meanwhile, or nobody is left to make one."""
        buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self.fd, _RECV, buffer, True)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINTR}:
                return None
            raise
        ident, tid, _flags, number, _arch, _ip, *args = _NOTIF.unpack(buffer)
        return Notification(ident, tid, number, tuple(args))

    def is_valid(self, ident: int) -> bool:
        """Say whether the caller still waits, hence whether what was read of it was its own."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, _ID.pack(ident))
        except OSError:
            return False
        return True

    def proceed(self, ident: int) -> bool:
        """Let the kernel run the call as it stands in registers and memory *now*."""
        return self._send(_RESPONSE.pack(ident, 0, 0, _FLAG_CONTINUE))

    def finish(self, ident: int, error: int = 0, value: int = 0) -> bool:
        """Answer the call ourselves: `value`, or -1 with `error` as errno. False when the caller is gone."""
        return self._send(_RESPONSE.pack(ident, value, -error, 0))

    def inject(self, ident: int, fd: int, *, cloexec: bool) -> bool:
        """Put a descriptor of ours into the caller, and answer with its number there. False when the caller is gone."""
        try:
            fcntl.ioctl(self.fd, _ADDFD, _ADDFD_REQUEST.pack(ident, _ADDFD_SEND, fd, 0, os.O_CLOEXEC if cloexec else 0))
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINPROGRESS}:
                return False
            # The caller has no number left for it (EMFILE): say so.
            return self.finish(ident, error.errno or errno.EPERM)
        return True

    def _send(self, response: bytes) -> bool:
        try:
            fcntl.ioctl(self.fd, _SEND, response)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINPROGRESS}:
                return False
            raise
        return True

    def close(self) -> None:
        """Close: calls that are trapped from now on get ENOSYS."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
_readv.restype = ctypes.c_ssize_t
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_GETFD: Final = MACHINES["x86_64"].numbers["pidfd_getfd"]  # 438 on every machine of our tables

_IOVEC = struct.Struct("=QQ")

_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period
_SLICE_NS: Final = 100_000  # the least there is


def run_soon() -> None:
    """Have the calling thread run before others that have become ready as well, a new child of a caller above all.

    A fair task that asks for short slices is chosen sooner (Linux 6.12); it needs no right, and gives no more time.
    Where it cannot be had, all goes on without it.
    """
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, 0, 0, nice, 0, _SLICE_NS, 0, 0)
    _syscall(MACHINES[os.uname().machine].numbers["sched_setattr"], 0, attributes, 0)


class TargetMemory:
    """Reads another process's memory by `process_vm_readv` into one reused buffer. Not thread-safe."""

    SIZE: Final = 64 * 1024
    MAX_VECTORS: Final = 64

    def __init__(self) -> None:
        self._data = bytearray(self.SIZE)
        self._view = memoryview(self._data)
        self._base = ctypes.addressof((ctypes.c_char * self.SIZE).from_buffer(self._data))
        self._local = bytearray(_IOVEC.size)
        self._local_at = ctypes.addressof((ctypes.c_char * _IOVEC.size).from_buffer(self._local))
        self._remote = bytearray(_IOVEC.size * self.MAX_VECTORS)
        self._remote_at = ctypes.addressof((ctypes.c_char * len(self._remote)).from_buffer(self._remote))

    def read(self, tid: int, address: int, size: int) -> bytes:
        """Read exactly `size` bytes.

        Raises:
            Gone: The process is gone.
            OSError: EFAULT where the address is not mapped.
        """
        got = self._gather(tid, ((address, size),), size)
        if got != size:
            raise OSError(errno.EFAULT, "bad address in the target")
        return bytes(self._view[:size])

    def gather(self, tid: int, spans: tuple[tuple[int, int], ...]) -> bytearray:
        """Read several spans (address, size) one behind the other; the result is the reused buffer itself.

        Raises:
            Gone: The process is gone.
            OSError: EFAULT where an address is not mapped.
        """
        total = sum(size for _, size in spans)
        if self._gather(tid, spans, total) != total:
            raise OSError(errno.EFAULT, "bad address in the target")
        return self._data

    def string(self, tid: int, address: int, limit: int) -> bytes:
        """Read one NUL-terminated string, cut at `limit` bytes: `strings` without its bookkeeping.

        Raises:
            Gone: The process is gone.
            OSError: EFAULT where the address is not mapped.
        """
        size = min(limit, _PAGE - address % _PAGE)
        if self._gather(tid, ((address, size),), size) != size:
            raise OSError(errno.EFAULT, "bad address in the target")
        end = self._data.find(0, 0, size)
        found = bytes(self._view[: end if end >= 0 else size])
        return found if end >= 0 else self._extend(tid, found, address + size, limit)

    def strings(self, tid: int, addresses: tuple[int, ...] | list[int], limit: int) -> list[bytes]:
        """Read NUL-terminated strings, each cut at `limit` bytes, with one call where none crosses a page.

        Raises:
            Gone: The process is gone.
            OSError: EFAULT where an address is not mapped.
        """
        spans = [(address, min(limit, _PAGE - address % _PAGE)) for address in addresses]
        total = sum(size for _, size in spans)
        if len(spans) > self.MAX_VECTORS or total > self.SIZE:
            middle = len(spans) // 2
            return self.strings(tid, addresses[:middle], limit) + self.strings(tid, addresses[middle:], limit)
        if self._gather(tid, spans, total) != total:
            raise OSError(errno.EFAULT, "bad address in the target")
        data, at, found, open_ends = self._data, 0, [], []
        for index, (address, size) in enumerate(spans):
            end = data.find(0, at, at + size)
            if end < 0:
                open_ends.append((index, address + size))
                end = at + size
            found.append(bytes(self._view[at:end]))
            at += size
        for index, following in open_ends:
            found[index] = self._extend(tid, found[index], following, limit)
        return found

    def _extend(self, tid: int, start: bytes, address: int, limit: int) -> bytes:
        while len(start) < limit:
            size = min(_PAGE, limit - len(start))
            if self._gather(tid, ((address, size),), size) != size:
                raise OSError(errno.EFAULT, "bad address in the target")
            end = self._data.find(0, 0, size)
            if end >= 0:
                return start + bytes(self._view[:end])
            start += bytes(self._view[:size])
            address += size
        return start

    def _gather(self, tid: int, spans: tuple[tuple[int, int], ...] | list[tuple[int, int]], total: int) -> int:
        at = 0
        for address, size in spans:
            _IOVEC.pack_into(self._remote, at, address, size)
            at += _IOVEC.size
        _IOVEC.pack_into(self._local, 0, self._base, total)
        got = _readv(tid, self._local_at, 1, self._remote_at, len(spans), 0)
        if got < 0:
            number = ctypes.get_errno()
            if number == errno.ESRCH:
                raise Gone
            raise OSError(number, os.strerror(number))
        return int(got)


def duplicate_socket(tid: int, fd: int, close: Callable[[int], None] = os.close) -> socket.socket:
    """Return our own descriptor of the target's socket (`pidfd_getfd`).

    The open file description is shared: never change its flags, O_NONBLOCK lives there. Ours may be the last
    descriptor of it when it is closed, and that close can take as long as the target likes.

    Args:
        tid: A thread of the target.
        fd: The target's descriptor.
        close: Closes our descriptor of what proves to be no socket.

    Raises:
        Gone: The process is gone.
        OSError: EBADF or ENOTSOCK as the call itself would give, EPERM where we may not.
    """
    try:
        pidfd = os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise Gone from error
        if error.errno != errno.EINVAL:
            raise
        pidfd = os.pidfd_open(_leader(tid))
    try:
        copy = _syscall(_GETFD, pidfd, ctypes.c_int(fd), 0)
        if copy < 0:
            number = ctypes.get_errno()
            if number == errno.ESRCH:
                raise Gone
            raise OSError(number, os.strerror(number))
    finally:
        os.close(pidfd)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        close(int(copy))
        raise


def another(sock: socket.socket) -> socket.socket:
    """Return a further descriptor of a target's socket; `socket.dup` would set O_NONBLOCK as Python thinks it is."""
    return socket.socket(fileno=os.dup(sock.fileno()))


def _leader(tid: int) -> int:
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except OSError as error:
        raise Gone from error
    raise Gone
