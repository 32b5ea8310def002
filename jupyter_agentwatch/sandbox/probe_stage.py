"""Tries what rungs B and C are made of, in the place of a watch's supervisor: a process that gives up every right.

It runs in a process of its own, because what is given up cannot be had back, and what root may do proves nothing. It
uses the functions of the launch and of the broker themselves.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from jupyter_agentwatch.sandbox import probe_child as child
from jupyter_agentwatch.sandbox.bpf import FilterOptions, compile_filter
from jupyter_agentwatch.sandbox.descendants import descendants, kill_descendants
from jupyter_agentwatch.sandbox.landlock import READ, make_ruleset
from jupyter_agentwatch.sandbox.notify import Listener, Notification, TargetMemory
from jupyter_agentwatch.sandbox.probe_child import (
    PATIENCE_S,
    FailedTrialError,
    await_call,
    bare_python,
    decoded,
    errno_name,
    started,
)
from jupyter_agentwatch.sandbox.shared import give_up_rights, open_listening, open_parking
from jupyter_agentwatch.sandbox.shared_filter import shared_blocks
from jupyter_agentwatch.sandbox.syscalls import MACHINES, Machine
from jupyter_agentwatch.sandbox.unixdiag import bound_files

__all__ = ["confine", "perform"]

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_PR_SET_NO_NEW_PRIVS: Final = 38
_TCGETS: Final = 0x5401

_libc = ctypes.CDLL(None, use_errno=True)


def perform(control_fd: int, abi: int) -> None:
    """Try everything but Landlock, and send what came of it: by name, the error, "" for none.

    Args:
        control_fd: Channel to whoever asks.
        abi: Version of Landlock's interface that the filter may rely on, 0 for none.
    """
    control = socket.socket(fileno=control_fd)
    machine = MACHINES[os.uname().machine]
    said = {"rights": _error_of(lambda: _give_up(machine))}
    try:
        said |= _converse(machine, abi)
    except Exception as error:  # noqa: BLE001 -- the other trials do not depend on it
        said |= dict.fromkeys(("socket", "memory", "proc"), _text_of(error))
    said["orphans"] = _error_of(_keep_orphans)
    said["loopback"] = _error_of(_listen)
    said["ipv6"] = _error_of(_listen_on_ipv6)
    said["parking"] = _error_of(_park)
    said["tables"] = _error_of(_find_in_tables)
    said["unix"] = _error_of(bound_files)
    control.send(json.dumps(said).encode())


def confine(control_fd: int, abi: int) -> None:
    """Take a ruleset of Landlock on, try what it has to refuse, and send what came of it, as `perform` does.

    Args:
        control_fd: Channel to whoever asks.
        abi: Version of the interface to use.
    """
    control = socket.socket(fileno=control_fd)
    machine = MACHINES[os.uname().machine]
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_UNIX) as named:
        named.bind("")  # an abstract name of the kernel's choice
        named.listen(1)
        tries: tuple[tuple[str, int, Callable[[], object]], ...] = (
            ("reading", 1, lambda: os.listdir("/")),
            ("writing", 1, lambda: os.close(os.open("/dev/null", os.O_WRONLY))),
            ("network", 4, lambda: _connect(listening)),
            ("ioctl_dev", 5, _tell_device),
            ("scope of names", 6, lambda: _connect(named)),
            ("scope of signals", 6, lambda: os.kill(os.getppid(), 0)),
        )
        said = {"restricting": _error_of(lambda: _take_on(machine, make_ruleset([("/dev", READ)], abi)))}
        said["granted"] = _error_of(lambda: os.listdir("/dev"))
        if not said["restricting"]:
            said |= {name: _let_through(attempt) for name, since, attempt in tries if abi >= since}
    control.send(json.dumps(said).encode())


def _error_of(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except Exception as error:  # noqa: BLE001 -- each trial fails for itself
        return _text_of(error)
    return ""


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, FailedTrialError) else f"{type(error).__name__}: {error}"


def _give_up(machine: Machine) -> None:
    give_up_rights(machine)
    status = Path("/proc/self/status").read_text("ascii", "replace")
    if "\nCapEff:\t0000000000000000\n" not in status or "\nNoNewPrivs:\t1\n" not in status:
        msg = "the kernel agreed, but rights are left"
        raise FailedTrialError(msg)


def _converse(machine: Machine, abi: int) -> dict[str, str]:
    """Put a socket of ours into a trapped caller, look at the caller's connect, perform it, and hear of it."""
    program = compile_filter(machine, FilterOptions(count_tasks=True), shared_blocks(abi)).hex()
    with open_listening(socket.AF_INET, 1) as server:
        server.settimeout(PATIENCE_S)
        arguments = (str(machine.numbers["seccomp"]), program, str(server.getsockname()[1]))
        with started(child.calling.__code__, *arguments) as (control, said):
            message, fds, _, _ = socket.recv_fds(control, 4096, 1, socket.MSG_CMSG_CLOEXEC)
            hello = decoded(message, said)
            if not fds:
                msg = f"the filter was refused: {errno_name(hello['errno'])}"
                raise FailedTrialError(msg)
            listener = Listener(fds[0])
            try:
                return _broker(listener, machine, server, lambda: decoded(control.recv(4096), said)["errno"])
            finally:
                listener.close()


def _broker(listener: Listener, machine: Machine, server: socket.socket, came_to: Callable[[], int]) -> dict[str, str]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        call = await_call(listener, machine.numbers["socket"])
        listener.inject(call.id, made.fileno(), cloexec=True)
        try:
            call = await_call(listener, machine.numbers["connect"])
        except FailedTrialError as error:
            msg = f"the caller's socket() gives {errno_name(came_to())}"
            raise FailedTrialError(msg) from error
        found = {
            "memory": _error_of(lambda: _read_address(call, server.getsockname())),
            "proc": _error_of(lambda: _see_caller(call, made)),
        }
        made.connect(server.getsockname())
        listener.finish(call.id)
    found["socket"] = _error_of(lambda: _hear(server))
    return found


def _read_address(call: Notification, wanted: tuple[str, int]) -> None:
    raw = TargetMemory().read(call.tid, call.args[1], 8)
    if (socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")) != wanted:
        msg = "what was read is not the caller's own"
        raise FailedTrialError(msg)


def _see_caller(call: Notification, made: socket.socket) -> None:
    folder = f"/proc/{call.tid}"
    link = os.readlink(f"{folder}/fd/{call.args[0]}")
    has_status = b"\nTgid:" in Path(f"{folder}/status").read_bytes()
    is_right = link == f"socket:[{os.fstat(made.fileno()).st_ino}]" and os.readlink(f"{folder}/exe") == bare_python()[0]
    if not (has_status and is_right and os.readlink(f"{folder}/cwd") == os.getcwd()):
        msg = "what was seen is not the caller's own"
        raise FailedTrialError(msg)


def _hear(server: socket.socket) -> None:
    with server.accept()[0] as heard:
        heard.settimeout(PATIENCE_S)
        if heard.recv(16) != b"agentwatch":
            msg = "the caller could not use it"
            raise FailedTrialError(msg)


def _keep_orphans() -> None:
    """Be the parent of a process that lost its own and made itself unreadable; find it, and kill it."""
    with started(child.leaving.__code__) as (control, said):
        orphan = decoded(control.recv(4096), said)
        if orphan["parent"] != os.getpid():
            msg = f"it went to process {orphan['parent']}"
            raise FailedTrialError(msg)
        if all(each.pid != orphan["pid"] for each in descendants(os.getpid())):
            msg = "a process that makes itself unreadable is not to be seen in /proc"
            raise FailedTrialError(msg)
        kill_descendants(os.getpid())
        pidfd = os.pidfd_open(orphan["pid"])
        try:
            if not select.select([pidfd], [], [], PATIENCE_S)[0]:
                msg = "it could not be killed"
                raise FailedTrialError(msg)
        finally:
            os.close(pidfd)
        os.waitpid(orphan["pid"], 0)


def _listen() -> None:
    for family in _FAMILIES:
        with open_listening(family, 1) as listening:
            _connect(listening)


def _connect(listening: socket.socket) -> None:
    with socket.socket(listening.family) as caller:
        caller.settimeout(PATIENCE_S)
        caller.connect(listening.getsockname())


def _listen_on_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as listening:
        listening.bind(("::1", 0))


def _park() -> None:
    for family in _FAMILIES:
        with open_parking(family) as parking, socket.socket(family) as caller:
            caller.setblocking(False)
            came = caller.connect_ex(parking.getsockname())
            if came != errno.EINPROGRESS or select.select([], [caller], [], 0)[1]:
                msg = f"it did not wait: {errno_name(came) if came else 'connected'}"
                raise FailedTrialError(msg)


def _find_in_tables() -> None:
    with (
        open_listening(socket.AF_INET, 1) as listening,
        open_listening(socket.AF_INET6, 1) as listening6,
        socket.socket(socket.AF_UNIX) as named,
    ):
        named.bind("")
        for table, column, sock in (("tcp", 9, listening), ("tcp6", 9, listening6), ("unix", 6, named)):
            rows = (row.split() for row in Path(f"/proc/net/{table}").read_text("latin-1").splitlines()[1:])
            if str(os.fstat(sock.fileno()).st_ino) not in {row[column] for row in rows if len(row) > column}:
                msg = f"/proc/net/{table} does not show a socket of ours"
                raise FailedTrialError(msg)


def _take_on(machine: Machine, ruleset: int) -> None:
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.syscall(machine.numbers["landlock_restrict_self"], ruleset, 0) != 0:
        msg = f"landlock_restrict_self gives {errno_name(ctypes.get_errno())}"
        raise FailedTrialError(msg)


def _tell_device() -> None:
    held = os.open("/dev/null", os.O_RDONLY)
    try:
        fcntl.ioctl(held, _TCGETS, bytes(64))
    finally:
        os.close(held)


def _let_through(attempt: Callable[[], object]) -> str:
    """Return "" where a thing was refused as Landlock refuses, else what came of it."""
    try:
        attempt()
    except OSError as error:
        return "" if error.errno in {errno.EACCES, errno.EPERM} else errno_name(error.errno or 0)
    return "let through"
