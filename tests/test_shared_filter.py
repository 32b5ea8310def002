"""What the filter of rungs B and C does in addition, run instruction by instruction: both machines, every Landlock."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.sandbox.bpf import ALLOW, KILL, NOTIFY, FilterOptions, compile_filter, disassemble
from jupyter_agentwatch.sandbox.shared_filter import OWNER_CALLS, PROCESS_CALLS, SIGNAL_CALLS, shared_blocks
from jupyter_agentwatch.sandbox.syscalls import AARCH64, X86_64, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH: Final = (X86_64, AARCH64)
ABIS: Final = (0, 1, 3, 6, 7)
COUNTING: Final = FilterOptions(count_tasks=True)
HIGH: Final = 1 << 32
POINTER: Final = 0x7FFD_1234_5678
REGISTERS: Final = st.integers(0, 2**64 - 1)
MINUS: Final = 2**64

PROGRAMS: Final = {
    (machine.name, abi): compile_filter(machine, COUNTING, shared_blocks(abi)) for machine in BOTH for abi in ABIS
}
RUNS: Final[dict[tuple[str, int], Callable[[int, int, tuple[int, ...]], int]]] = {
    key: disassemble(program) for key, program in PROGRAMS.items()
}
PLAIN: Final = {machine.name: disassemble(compile_filter(machine, COUNTING)) for machine in BOTH}


def refuses(number: int) -> int:
    """Return the action that gives an errno; 0 is success without the call."""
    return 0x00050000 | number


EPERM, ENOSYS, DONE = refuses(errno.EPERM), refuses(errno.ENOSYS), refuses(0)

SYSTEM_V: Final = (
    *("shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink"),
)
NOTICES: Final = ("inotify_init", "inotify_init1")

ALWAYS: Final = (
    *((name, NOTIFY) for name in OWNER_CALLS),
    *((name, EPERM) for name in ("migrate_pages", "process_mrelease")),
    *((name, ENOSYS) for name in (*SYSTEM_V, *NOTICES)),
)
"""Calls that get one answer whatever their arguments are."""

JUDGED: Final = (
    *("socket", "setsockopt", "prctl", "ioctl", "setpriority", "ioprio_set"),
    *PROCESS_CALLS,
    *("fcntl", "pidfd_send_signal", "truncate", *SIGNAL_CALLS),
)
"""Calls that are judged by their arguments, or by Landlock's version."""

on_each = pytest.mark.parametrize(
    ("machine", "abi"),
    [pytest.param(machine, abi, id=f"{machine.name}-{abi}") for machine in BOTH for abi in ABIS],
)


few = settings(max_examples=30, deadline=None)


def action(machine: Machine, abi: int, name: str, *args: int) -> int:
    """Return what a call by name gets."""
    return RUNS[machine.name, abi](machine.audit_arch, machine.numbers[name], args)


@on_each
def test_every_block_is_tested_here(machine: Machine, abi: int) -> None:
    """A call that the filter treats otherwise than rung A's does is in one of the tables of this file."""
    assert set(shared_blocks(abi)) <= {name for name, _ in ALWAYS} | set(JUDGED)
    assert {name for name, _ in ALWAYS} <= set(X86_64.numbers) | set(AARCH64.numbers)


@on_each
def test_the_program_is_one_that_the_kernel_takes(machine: Machine, abi: int) -> None:
    """It is shorter than BPF_MAXINSNS, every jump lands inside it, every load is aligned and inside seccomp_data."""
    code = list(struct.iter_unpack("=HBBI", PROGRAMS[machine.name, abi]))
    assert len(code) < 4096
    for at, (op, yes, no, k) in enumerate(code):
        if op & 7 == 5:
            assert at + 1 + max(yes, no) < len(code)
        elif op == 0x20:
            assert (k % 4, k <= 60) == (0, True)
        else:
            assert op in {0x06, 0x54}
    assert code[-1][0] == 0x06


@on_each
@few
@given(number=st.integers(0, 600), args=st.tuples(*[REGISTERS] * 6))
def test_what_is_not_changed_is_as_on_rung_a(machine: Machine, abi: int, number: int, args: tuple[int, ...]) -> None:
    """A call without a block of its own gets here what it gets on rung A, and another architecture is killed."""
    changed = {machine.numbers.get(name) for name in shared_blocks(abi)}
    run = RUNS[machine.name, abi]
    if number not in changed:
        assert run(machine.audit_arch, number, args) == PLAIN[machine.name](machine.audit_arch, number, args)
    assert run(machine.audit_arch ^ 1, number, args) == KILL


@on_each
@few
@given(args=st.tuples(*[REGISTERS] * 6))
def test_calls_with_one_answer_get_it_whatever_the_registers(machine: Machine, abi: int, args: tuple[int, ...]) -> None:
    """Times are set by the supervisor; owners, attributes, System V objects and file notices are nobody's here."""
    got = {name: action(machine, abi, name, *args) for name, _ in ALWAYS if name in machine.numbers}
    assert got == {name: expected for name, expected in ALWAYS if name in machine.numbers}


STREAM, DGRAM, SEQPACKET, CLOEXEC, NONBLOCK = 1, 2, 5, os.O_CLOEXEC, os.O_NONBLOCK
NO_KIND, NO_FAMILY, NO_PROTOCOL = (refuses(n) for n in (errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT))


@on_each
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (socket.AF_UNIX, STREAM, 0, NOTIFY),
        (socket.AF_UNIX, SEQPACKET | CLOEXEC, 0, NOTIFY),
        (socket.AF_UNIX, DGRAM, 0, NO_KIND),
        (socket.AF_INET, STREAM | NONBLOCK, 0, NOTIFY),
        (socket.AF_INET6, STREAM, 6, NOTIFY),
        (socket.AF_INET, DGRAM, 0, NO_KIND),
        (socket.AF_INET6, DGRAM | CLOEXEC, 17, NO_KIND),
        (socket.AF_INET | HIGH, DGRAM | HIGH, 0, NO_KIND),
        (socket.AF_INET, STREAM, 262, NO_PROTOCOL),
        (16, 3, 0, NOTIFY),
        (16, 3, 4, NO_PROTOCOL),
        (17, 3, 0, NO_FAMILY),
        (40, STREAM, 0, NO_FAMILY),
    ],
)
def test_every_socket_is_made_by_the_supervisor(
    machine: Machine, abi: int, family: int, kind: int, protocol: int, expected: int
) -> None:
    """No socket is allowed past the supervisor, and there are no datagrams, which `sendmsg` could send anywhere."""
    assert action(machine, abi, "socket", family, kind, protocol) == expected


@on_each
@few
@given(args=st.tuples(*[REGISTERS] * 6))
def test_no_register_makes_a_socket_that_nobody_judged(machine: Machine, abi: int, args: tuple[int, ...]) -> None:
    """Whatever the registers hold, `socket` is trapped or refused, never allowed."""
    assert action(machine, abi, "socket", *args) != ALLOW


@on_each
@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("setsockopt", (3, 1, 15), refuses(errno.ENOPROTOOPT)),
        ("setsockopt", (3, 1 | HIGH, 15 | HIGH), refuses(errno.ENOPROTOOPT)),
        ("setsockopt", (3, 1, 2), ALLOW),
        ("setsockopt", (3, 6, 30), refuses(errno.EOPNOTSUPP)),
        ("setsockopt", (3, 6, 15), ALLOW),
        ("setsockopt", (3, 41, 26), ALLOW),
        ("prctl", (0x59616D61, 1), EPERM),
        ("prctl", (4, 0), DONE),
        ("prctl", (4, HIGH), DONE),
        ("prctl", (4 | HIGH, 0), DONE),
        ("prctl", (4, 1), ALLOW),
        ("prctl", (15, POINTER), ALLOW),
        ("prctl", (0, 0), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0x541C), EPERM),
        ("ioctl", (0, 0x541D), EPERM),
        ("ioctl", (3, 0x40086602), EPERM),
        ("ioctl", (3, 0x401C5820), EPERM),
        ("ioctl", (3, 0x40086602 | HIGH), EPERM),
        ("ioctl", (0, 0x5401), ALLOW),
        ("setpriority", (0, 0, 5), ALLOW),
        ("setpriority", (0, 77, 5), NOTIFY),
        ("setpriority", (1, 0, 5), ALLOW),
        ("setpriority", (1, 77, 5), EPERM),
        ("setpriority", (2, 0, 5), EPERM),
        ("ioprio_set", (1, 0, 5), ALLOW),
        ("ioprio_set", (1, 77, 5), NOTIFY),
        ("ioprio_set", (2, 0, 5), ALLOW),
        ("ioprio_set", (2, 77, 5), EPERM),
        ("ioprio_set", (3, 0, 5), EPERM),
    ],
)
def test_calls_with_dangerous_values(
    machine: Machine, abi: int, name: str, args: tuple[int, ...], expected: int
) -> None:
    """Taking a port over, being hidden from the broker, flags of files, and others' priorities: only these fail."""
    assert action(machine, abi, name, *args) == expected


@on_each
@pytest.mark.parametrize("name", PROCESS_CALLS)
def test_a_call_that_names_another_process_is_judged(machine: Machine, abi: int, name: str) -> None:
    """The caller itself is 0, in the lower half of the register; everybody else is looked at."""
    for pid, expected in ((0, ALLOW), (HIGH, ALLOW), (1, NOTIFY), (MINUS - 1, NOTIFY), (HIGH + 7, NOTIFY)):
        assert action(machine, abi, name, pid, POINTER, POINTER, 0) == expected


@on_each
def test_signals_are_judged_where_landlock_does_not_hold_them(machine: Machine, abi: int) -> None:
    """Before ABI 6 each signal to another process is trapped, by every call that sends one; from then on it is free."""
    held_by_landlock = abi >= 6
    for name in SIGNAL_CALLS:
        assert action(machine, abi, name, 77, 9, 9) == (ALLOW if held_by_landlock else NOTIFY)
        assert action(machine, abi, name, MINUS - 1, 9, 9) == (ALLOW if held_by_landlock else NOTIFY)
    assert action(machine, abi, "kill", 0, 9) == ALLOW
    assert action(machine, abi, "pidfd_send_signal", 3, 9, 0, 0) == (ALLOW if held_by_landlock else ENOSYS)


@on_each
def test_a_descriptors_owner_is_not_another_process(machine: Machine, abi: int) -> None:
    """Before ABI 6 nobody can be made the receiver of a descriptor's signals, by fcntl or by ioctl."""
    expected = ALLOW if abi >= 6 else EPERM
    for command in (8, 15, 10, 8 | HIGH):  # F_SETOWN, F_SETOWN_EX, F_SETSIG
        assert action(machine, abi, "fcntl", 3, command, 1) == expected
    for request in (0x8901, 0x8902):  # FIOSETOWN, SIOCSPGRP
        assert action(machine, abi, "ioctl", 3, request, POINTER) == expected
    for command in (0, 1, 2, 3, 4, 1030):
        assert action(machine, abi, "fcntl", 3, command, 0) == ALLOW


@on_each
def test_truncating_by_name_is_refused_where_landlock_does_not_hold_it(machine: Machine, abi: int) -> None:
    """Before ABI 3 `truncate` would change any file of the user's; from then on it is recorded as ever."""
    assert action(machine, abi, "truncate", POINTER, 0) == (EPERM if abi < 3 else NOTIFY)


@on_each
def test_forks_wait_for_the_supervisor(machine: Machine, abi: int) -> None:
    """The kill loop ends because no new process is made meanwhile: every way to fork is trapped or refused."""
    assert action(machine, abi, "clone", 0x1200011) == NOTIFY
    assert action(machine, abi, "clone3", POINTER, 88) == ENOSYS
    assert [action(machine, abi, name) for name in ("fork", "vfork") if name in machine.numbers] in ([], [NOTIFY] * 2)


def test_modes_are_judged_as_on_rung_a() -> None:
    """Modes are trapped on every rung, and setuid is refused by the filter itself."""
    for machine in BOTH:
        for name, at in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2)):
            for mode, expected in ((0o755, NOTIFY), (0o4755, EPERM)):
                args = [POINTER, POINTER, POINTER, 0]
                args[at] = mode
                if name in machine.numbers:
                    assert {action(machine, abi, name, *args) for abi in ABIS} == {expected}
