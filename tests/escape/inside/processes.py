"""Reads, signals, traces, slows down and outlives processes that are not the sandbox's own."""

# ruff: noqa: ANN001, ANN002, ANN201, ANN202 -- it tries what must not be done
# mypy: ignore-errors

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import time

from told import call, ends, got, libc, shows, tries, way, world

F_SETSIG, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 10, 15, 0x8901, 0x8902
TIOCSTI, TIOCLINUX, TIOCCONS = 0x5412, 0x541C, 0x541D
PIDS = world["pids"]
OTHERS = {**PIDS, "parent": os.getppid()}


def outside():
    """Who is there, and is none of ours."""
    # Where nothing holds us, our parent is the runner.
    return {name: pid for name, pid in OTHERS.items() if world["rung"] != "none" or name not in {"parent", "owner"}}


def memory():
    """Environment, memory, descriptors."""
    names = ("environ", "mem", "maps", "smaps", "auxv", "stack", "syscall", "io", "pagemap", "numa_maps", "personality")
    for who, pid in outside().items():
        for name in names:
            path = f"/proc/{pid}/{name}"
            tries(f"{name} of {who}", lambda p=path: shows(p) or _not_empty(p))
        for name in ("cwd", "root", "exe", "ns/net", "ns/pid", "fd/0", "map_files"):
            tries(f"{name} of {who}", os.readlink, f"/proc/{pid}/{name}")
        for fd in range(16):
            tries(f"descriptor {fd} of {who}", os.readlink, f"/proc/{pid}/fd/{fd}")
            tries(f"state of descriptor {fd} of {who}", shows, f"/proc/{pid}/task/{pid}/fdinfo/{fd}")
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                shows(f"/proc/{name}/environ")


def _not_empty(path):
    with open(path, "rb") as file:
        if not file.read(1):
            raise OSError(1, "empty")


def command_lines():
    """What others were started with, and what else `ps` shows."""
    for who, pid in outside().items():
        if world["rung"] == "B":
            tries(f"numbers of the descriptors of {who}", os.listdir, f"/proc/{pid}/fd")
            tries(f"threads of {who}", os.listdir, f"/proc/{pid}/task")
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                shows(f"/proc/{name}/cmdline")


def trace():
    """Take over another process."""
    local = ctypes.create_string_buffer(64)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(local), 8)
    for who, pid in outside().items():
        for name, request in (("attach", 16), ("seize", 0x4206)):
            tries(f"{name} {who}", call, "ptrace", request, pid, 0, 0)
        for name in ("process_vm_readv", "process_vm_writev"):
            tries(f"{name} {who}", call, name, pid, vector, 1, vector, 1, 0)
        tries(f"kcmp {who}", call, "kcmp", pid, os.getpid(), 1, 0, 0)
        try:
            held = os.pidfd_open(pid)
        except OSError:
            continue
        for fd in range(8):
            tries(f"descriptor {fd} of {who}", call, "pidfd_getfd", held, fd, 0)
        tries(f"process_madvise {who}", call, "process_madvise", held, vector, 1, 4, 0)
        tries(f"setns {who}", call, "setns", held, 0x40000000)
    tries("let others trace", libc_checked, libc.prctl, 0x59616D61, -1, 0, 0, 0)


def libc_checked(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "call")


def signals():
    """Every way to send one."""
    victims = {who: pid for who, pid in outside().items() if not (world["rung"] == "A" and pid == 1)}
    victims = {who: pid for who, pid in victims.items() if who != "parent" or world["rung"] == "B"}
    info = ctypes.create_string_buffer(struct.pack("=3i", 0, 0, -1) + bytes(116), 128)
    for who, pid in victims.items():
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
            said_as = f"{signal.Signals(number).name} to {who}"
            tries(f"kill {said_as}", os.kill, pid, number)
            tries(f"killpg {said_as}", os.killpg, pid, number)
            tries(f"tgkill {said_as}", call, "tgkill", pid, pid, number)
            tries(f"tkill {said_as}", call, "tkill", pid, number)
            info[0:4] = struct.pack("=i", number)
            tries(f"rt_sigqueueinfo {said_as}", call, "rt_sigqueueinfo", pid, number, info)
            tries(f"rt_tgsigqueueinfo {said_as}", call, "rt_tgsigqueueinfo", pid, pid, number, info)
            with contextlib.suppress(OSError):
                held = os.pidfd_open(pid)
                tries(f"pidfd {said_as}", signal.pidfd_send_signal, held, number)
                tries(f"pidfd group {said_as}", call, "pidfd_send_signal", held, number, 0, 4)
    # To everybody that may be signalled. The kernel says that it was sent also where it was sent to nobody; the witness
    # takes note of this one, and others ignore it.
    with contextlib.suppress(OSError):
        os.kill(-1, signal.SIGWINCH)
    for pid in victims.values():
        for act in (os.kill, os.killpg):
            with contextlib.suppress(OSError):
                act(pid, signal.SIGWINCH)


def owners():
    """Signals that the kernel sends to whoever is called a descriptor's owner."""
    for who, pid in outside().items():
        if world["rung"] == "A" and pid == 1:
            continue
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            for way_in in range(4):
                one, other = socket.socketpair()
                with contextlib.suppress(OSError), one, other:
                    if way_in == 0:
                        fcntl.fcntl(one, fcntl.F_SETOWN, pid)
                    elif way_in == 1:
                        fcntl.fcntl(one, F_SETOWN_EX, struct.pack("ii", 1, pid))
                    else:
                        fcntl.ioctl(one, FIOSETOWN if way_in == 2 else SIOCSPGRP, struct.pack("i", pid))
                    fcntl.fcntl(one, F_SETSIG, number)
                    fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
                    other.send(b"x")
                    other.send(b"x")
        reader, writer = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
            fcntl.fcntl(reader, F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
            os.write(writer, b"x")
        event = ctypes.create_string_buffer(struct.pack("=qiii", 0, signal.SIGKILL, 4, pid) + bytes(44), 64)
        tries(f"timer for {who}", call, {"x86_64": 222, "aarch64": 107}[os.uname().machine], 1, event, event)
    # The witness sees whether anybody was hit; that owners can be named is no harm by itself.


def slow_down():
    """Priority, processors, scheduling, limits, memory of others."""
    for who, pid in outside().items():
        if world["rung"] == "A" and who == "parent":
            continue  # the sandbox's own init
        tries(f"nice {who}", os.setpriority, os.PRIO_PROCESS, pid, 19)
        tries(f"nice group of {who}", os.setpriority, os.PRIO_PGRP, pid, 19)
        tries(f"processors of {who}", os.sched_setaffinity, pid, {0})
        tries(f"scheduler of {who}", os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))
        tries(f"parameters of {who}", os.sched_setparam, pid, os.sched_param(0))
        tries(f"attributes of {who}", call, "sched_setattr", pid, struct.pack("=IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0), 0)
        tries(f"limits of {who}", resource.prlimit, pid, resource.RLIMIT_NOFILE, (16, 16))
        tries(f"read limits of {who}", resource.prlimit, pid, resource.RLIMIT_CPU)
        tries(f"i/o priority of {who}", call, "ioprio_set", 1, pid, 3 << 13)
        tries(f"migrate {who}", call, "migrate_pages", pid, 8, struct.pack("=Q", 1), struct.pack("=Q", 1))
        tries(f"move {who}", call, "move_pages", pid, 0, 0, 0, 0, 0)
        tries(f"process group of {who}", os.setpgid, pid, 0)
        with contextlib.suppress(OSError):
            tries(f"reap {who}", call, "process_mrelease", os.pidfd_open(pid), 0)
    if world["rung"] == "B":
        tries("nice everybody", os.setpriority, os.PRIO_USER, os.getuid(), 19)
        tries("i/o priority of everybody", call, "ioprio_set", 3, os.getuid(), 3 << 13)


def orphans():
    """Daemons that leave session, group and parent, and ignore what can be ignored."""
    for _ in range(20):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                libc.prctl(36, 1, 0, 0, 0)
                for number in (1, 2, 3, 13, 15):
                    signal.signal(number, signal.SIG_IGN)
                null = os.open("/dev/null", os.O_RDWR)
                for fd in range(3):
                    os.dup2(null, fd)
                time.sleep(120)
            os._exit(0)


def hopper():
    """Each process lives for one fork, in a session of its own; it ends by itself after a while."""
    end = time.monotonic() + 60
    for _ in range(4):
        if os.fork() == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            while time.monotonic() < end:
                try:
                    if os.fork():
                        os._exit(0)
                    os.setsid()
                except OSError:
                    time.sleep(0.001)
            os._exit(0)


def bomb():
    """Every process forks for ever, for a while."""
    end = time.monotonic() + 60
    started = time.monotonic()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                os.fork()
        os._exit(0)
    while time.monotonic() < started + 1.5:
        time.sleep(0.1)


def terminals():
    """Terminals of others, and typing into one's own."""
    for path in (world["pty"], "/dev/console", "/dev/tty0", "/dev/tty1"):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            tries(f"open {path}", lambda p=path, f=flags: os.close(os.open(p, f | os.O_NOCTTY | os.O_NONBLOCK)))
    with contextlib.suppress(OSError):
        for name in os.listdir("/dev/pts"):
            if name.isdigit() and world["rung"] == "B":
                tries(f"open pts {name}", lambda n=name: os.close(os.open(f"/dev/pts/{n}", os.O_RDWR | os.O_NOCTTY)))
    held = []
    with contextlib.suppress(OSError):
        held += os.openpty()
    with contextlib.suppress(OSError):
        held.append(os.open("/dev/tty", os.O_RDWR))
    for fd in (*held, 0, 1, 2):
        for request in (TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSTI | 1 << 32):
            done = libc.ioctl(fd, ctypes.c_ulong(request), ctypes.create_string_buffer(b"x"))
            got.extend([f"ioctl {request:x} on {fd}"] if done >= 0 else [])


ACTS = {
    "memory": memory, "command-lines": command_lines, "trace": trace, "signals": signals, "owners": owners,
    "slow-down": slow_down, "orphans": orphans, "hopper": hopper, "bomb": bomb, "terminals": terminals,
}  # fmt: skip
ACTS[way]()
ends()
