"""The children in which `probe` tries things, and how they are started and heard.

Only a function's code object travels, into a bare interpreter: each imports what it uses, nothing of ours, and cannot
harm the process that asks.
"""

from __future__ import annotations

import errno
import json
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any, Final, NamedTuple

from jupyter_agentwatch.events import from_bytes
from jupyter_agentwatch.sandbox.notify import Listener, Notification

__all__ = [
    "PATIENCE_S",
    "FailedTrialError",
    "Found",
    "await_call",
    "bare_python",
    "calling",
    "decoded",
    "errno_name",
    "filtered",
    "leaving",
    "networked",
    "orphaned",
    "run",
    "staged",
    "started",
    "unshared",
]

PATIENCE_S: Final = 10.0
"""Seconds after which a child that does not answer has failed; on a busy machine, a Python begins after five."""

_LOADER: Final = (
    "import marshal,sys,types;types.FunctionType(marshal.loads(bytes.fromhex(sys.argv[1])),globals())(*sys.argv[2:])"
)


class FailedTrialError(Exception):
    """What was tried did not work: the text says what came of it; `fix`, where it is known, what to do about it."""

    def __init__(self, detail: str, fix: str = "") -> None:
        super().__init__(detail)
        self.fix = fix


class Found(NamedTuple):
    """What came of a trial that succeeded: what was found, and what of it this system lacks, with what that means."""

    detail: str
    lacks: tuple[str, ...] = ()


def errno_name(number: int) -> str:
    """Return an errno's name, such as EPERM."""
    return errno.errorcode.get(number, str(number))


def bare_python() -> list[str]:
    """Return the command of an interpreter without site-packages and environment, as the sandbox's init gets it."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-c"]


def run(argv: list[str]) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        FailedTrialError: It failed; the text is its last line on stderr.
        subprocess.TimeoutExpired: It took too long, and was killed.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env={}, start_new_session=True
    ) as process:
        try:
            out, said = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            _kill_group(process)
            raise
    if process.returncode:
        raise FailedTrialError(_last_line(said) or f"exit status {process.returncode}")
    return from_bytes(out).strip()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a leader that nobody has waited for, and its group: without it, bubblewrap's child would wait for ever."""
    os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def started(code: CodeType, *arguments: str, prefix: tuple[str, ...] = ()) -> Iterator[tuple[socket.socket, int]]:
    """Start a function in a bare interpreter, and kill what is left of it at the end.

    Args:
        code: The function's code object; its first argument is the number of its end of the channel.
        arguments: Its other arguments.
        prefix: The command that starts the interpreter, such as bubblewrap's.

    Yields:
        Our end of the channel (SOCK_SEQPACKET), and a file with what was said on stderr.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said = os.memfd_create("agentwatch", os.MFD_CLOEXEC)
    fd = theirs.fileno()
    argv = [*prefix, *bare_python(), _LOADER, marshal.dumps(code).hex(), str(fd), *arguments]
    try:
        with theirs:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=(fd,),
                env={},
                start_new_session=True,
            )
        try:
            ours.settimeout(PATIENCE_S)
            yield ours, said
        finally:
            _kill_group(process)
            process.wait()
    finally:
        ours.close()
        os.close(said)


def await_call(listener: Listener, number: int) -> Notification:
    """Return a child's next call of this number; its other calls go on.

    Raises:
        FailedTrialError: It did not make the call.
    """
    arrives = select.poll()
    arrives.register(listener.fd, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    while any(event & select.POLLIN for _, event in arrives.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        call = listener.receive()
        if call and call.number == number:
            return call
        if call:
            listener.proceed(call.id)
    msg = "the child's call did not arrive"
    raise FailedTrialError(msg)


def decoded(message: bytes, said: int) -> dict[str, Any]:
    """Decode a child's message.

    Args:
        message: The message; empty where the child hung up.
        said: The file with its stderr.

    Raises:
        FailedTrialError: The child hung up; the text is its last line on stderr.
    """
    if not message:
        raise FailedTrialError(_last_line(os.pread(said, 1 << 16, 0)) or "the child ended without a word")
    values: dict[str, Any] = json.loads(message)
    return values


def _last_line(words: bytes) -> str:
    return from_bytes(words).strip().rpartition("\n")[2]


def networked() -> str:
    """Make sockets and map root to an ordinary user, as the sandbox's init does; return what failed, or ""."""
    import ctypes
    import os
    import select
    import socket
    import struct

    v4, v6, what = socket.AF_INET, socket.AF_INET6, "udp 127.0.0.1:53"
    try:
        socket.socket(v4, socket.SOCK_DGRAM).bind(("127.0.0.1", 53))
        for family, address, number in ((v4, "127.0.0.1", 53), (v4, "127.0.0.1", 0), (v6, "::1", 0)):
            what = f"tcp {address}:{number or 'any port'}"
            with socket.socket(family) as listening, socket.socket(family) as caller:
                listening.bind((address, number))
                listening.listen(1)
                caller.connect(listening.getsockname())
        what = "a listener whose filter drops every packet"
        with socket.socket(v4) as parking, socket.socket(v4) as caller:
            drop = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
            parking.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", 1, ctypes.addressof(drop)))
            parking.bind(("127.0.0.1", 0))
            parking.listen(1)
            caller.setblocking(False)
            caller.connect_ex(parking.getsockname())
            if select.select([], [caller], [], 0)[1]:
                return f"{what}: a connection was made all the same"
        if socket.socket(v4, socket.SOCK_DGRAM).connect_ex(("192.0.2.1", 9)) == 0:
            return "there is a route to the outside"
        what = "mapping root to an ordinary user"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x10000000) < 0:
            return f"{what}: unshare(CLONE_NEWUSER): {os.strerror(ctypes.get_errno())}"
        for name, line in (("setgroups", "deny"), ("uid_map", "1000 0 1"), ("gid_map", "1000 0 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(line)
        return "" if os.getuid() == 1000 else f"{what}: it is user {os.getuid()} all the same"
    except OSError as error:
        return f"{what}: {error.strerror}"


def filtered(fd: str, seccomp: str, program: str, network: str, host: str, port: str) -> None:
    """Take the filter on, hand its listener over, and connect once.

    Args:
        fd: Channel.
        seccomp: Call number.
        program: The filter, hexadecimal.
        network: `networked` as a marshalled code object, hexadecimal, to be called first; or "".
        host: Address of the connect that is to be trapped.
        port: Its port.
    """
    import array
    import ctypes
    import json
    import marshal
    import os
    import socket
    import struct
    import types

    control = socket.socket(fileno=int(fd))
    wrong = ""
    if network:
        try_network = marshal.loads(bytes.fromhex(network))  # noqa: S302 -- it comes from the process that started us
        wrong = types.FunctionType(try_network, globals())()
    probed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    code = bytes.fromhex(program)
    held = ctypes.create_string_buffer(code, len(code))
    filt = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(held)))
    listener, killable = -1, False
    for killable in (True, False):  # SECCOMP_SET_MODE_FILTER with NEW_LISTENER, at first with WAIT_KILLABLE_RECV
        listener = libc.syscall(int(seccomp), 1, 1 << 3 | killable << 5, filt)
        if listener >= 0:
            break
    number = ctypes.get_errno() if listener < 0 else 0
    hello = {"errno": number, "killable": killable, "network": wrong, "inode": os.fstat(probed.fileno()).st_ino}
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))] if listener >= 0 else []
    control.sendmsg([json.dumps(hello).encode()], rights)
    if listener >= 0:
        os.close(listener)
        control.send(json.dumps({"errno": probed.connect_ex((host, int(port)))}).encode())


def unshared(fd: str) -> None:
    """Report the errno of making a user namespace without bubblewrap."""
    import ctypes
    import json
    import socket

    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.get_errno() if libc.unshare(0x10000000) < 0 else 0
    socket.socket(fileno=int(fd)).send(json.dumps({"errno": number}).encode())


def orphaned(fd: str) -> None:
    """End before a child that asked to be killed with its parent, and that holds the channel open while it lives."""
    import ctypes
    import os
    import signal

    ready, tell = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        os.write(tell, b"1")
        os.read(int(fd), 1)
        os._exit(0)
    os.read(ready, 1)
    os._exit(0)


def calling(fd: str, seccomp: str, program: str, port: str) -> None:
    """Take the filter on, hand its listener over, then make a socket, connect it, and write on it.

    Args:
        fd: Channel.
        seccomp: Call number.
        program: The filter, hexadecimal.
        port: Where to connect to, on loopback.
    """
    import array
    import ctypes
    import json
    import os
    import socket
    import struct

    control = socket.socket(fileno=int(fd))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    code = bytes.fromhex(program)
    held = ctypes.create_string_buffer(code, len(code))
    filt = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(held)))
    listener = libc.syscall(int(seccomp), 1, 1 << 3, filt)  # SECCOMP_SET_MODE_FILTER with NEW_LISTENER
    hello = {"errno": ctypes.get_errno() if listener < 0 else 0}
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))] if listener >= 0 else []
    control.sendmsg([json.dumps(hello).encode()], rights)
    if listener < 0:
        return
    os.close(listener)
    number = 0
    try:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.connect(("127.0.0.1", int(port)))
        made.send(b"agentwatch")
    except OSError as error:
        number = error.errno or 0
    control.send(json.dumps({"errno": number}).encode())


def leaving(fd: str) -> None:
    """End before a child that is unreadable to others, tells who its parent is then, and ends when nobody listens."""
    import ctypes
    import json
    import os
    import select
    import socket

    control = socket.socket(fileno=int(fd))
    parent = os.pidfd_open(os.getpid())
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE, as of a program whose file nobody may read
    select.select([parent], [], [])
    control.send(json.dumps({"pid": os.getpid(), "parent": os.getppid()}).encode())
    control.recv(1)


def staged(fd: str, home: str, libraries: str, entry: str, abi: str) -> None:
    """Run a function of `probe_stage`.

    Args:
        fd: Channel.
        home: Folder of our package. What lies beside it is not looked into: nothing there can stand for a library.
        libraries: Folder in which msgspec lies.
        entry: Name of the function.
        abi: Version of Landlock's interface.
    """
    import sys
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    sys.path.append(libraries)
    name = "jupyter_agentwatch"
    spec = spec_from_file_location(name, f"{home}/__init__.py", submodule_search_locations=[home])
    if spec is None or spec.loader is None:
        raise ImportError(name)
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    getattr(import_module(f"{name}.sandbox.probe_stage"), entry)(int(fd), int(abi))
