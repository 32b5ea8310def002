"""The seccomp filter, run instruction by instruction: what each call gets, on both machines, whatever the registers."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.sandbox.bpf import (
    ALLOW,
    ENOSYS_CALLS,
    EPERM_CALLS,
    KILL,
    NEWEST_KNOWN,
    NOTIFY,
    NOTIFY_CALLS,
    FilterOptions,
    compile_filter,
    disassemble,
)
from jupyter_agentwatch.sandbox.syscalls import AARCH64, MACHINES, X86_64, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH: Final = (X86_64, AARCH64)
COUNTING: Final = FilterOptions(count_tasks=True)
BOUNDED: Final = FilterOptions(memory_bytes=(3 << 32) + 4096)
HIGH: Final = 1 << 32
MINUS_100: Final = 2**64 - 100
REGISTERS: Final = st.integers(0, 2**64 - 1)

CLOEXEC, NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5
POINTER = 0x7FFD_1234_5678

Verdict = int
Runs = dict[str, "Callable[[int, int, tuple[int, ...]], int]"]


def refuses(number: int) -> Verdict:
    """Return the action that gives an errno."""
    return 0x00050000 | number


RUNS: Final = {machine.name: disassemble(compile_filter(machine)) for machine in BOTH}
RUNS_COUNTING: Final = {machine.name: disassemble(compile_filter(machine, COUNTING)) for machine in BOTH}


def action(machine: Machine, name: str, *args: int, counting: bool = False) -> Verdict:
    """Return what a call by name gets."""
    run = (RUNS_COUNTING if counting else RUNS)[machine.name]
    return run(machine.audit_arch, machine.numbers[name], args)


on_both = pytest.mark.parametrize("machine", BOTH, ids=lambda machine: machine.name)


# The frame


@on_both
def test_another_architecture_is_killed(machine: Machine) -> None:
    """A call by the entry of another architecture, i386 among them, kills the process, whatever its number."""
    others = {0x40000003, 0, 0xFFFFFFFF, *(other.audit_arch for other in BOTH)} - {machine.audit_arch}
    for arch in others:
        for number in (0, machine.numbers["connect"], 102, 469, 1000):
            assert RUNS[machine.name](arch, number, ()) == KILL


@on_both
def test_x32_numbers_are_killed(machine: Machine) -> None:
    """A number with bit 30 or 31 would go round every comparison: it kills the process."""
    for bit in (1 << 30, 1 << 31, 0xFFFFFFFF):
        for number in (0, machine.numbers["connect"], machine.numbers["execve"]):
            assert RUNS[machine.name](machine.audit_arch, number | bit, ()) == KILL


@on_both
def test_calls_that_are_too_new_do_not_exist(machine: Machine) -> None:
    """A number beyond the table gets ENOSYS, the last one that is known does not."""
    run = RUNS[machine.name]
    for number in (NEWEST_KNOWN + 1, 512, 547, 1000, (1 << 30) - 1):
        assert run(machine.audit_arch, number, ()) == refuses(errno.ENOSYS)
    assert run(machine.audit_arch, NEWEST_KNOWN - 1, ()) == ALLOW


@on_both
@pytest.mark.parametrize("options", [FilterOptions(), COUNTING, BOUNDED], ids=["plain", "counting", "bounded"])
def test_the_program_is_one_that_the_kernel_takes(machine: Machine, options: FilterOptions) -> None:
    """It is shorter than BPF_MAXINSNS, every jump lands inside it, every load is aligned and inside seccomp_data."""
    code = list(struct.iter_unpack("=HBBI", compile_filter(machine, options)))
    assert len(code) < 4096
    for at, (op, yes, no, k) in enumerate(code):
        if op & 7 == 5:
            assert at + 1 + max(yes, no) < len(code)
        elif op == 0x20:
            assert k % 4 == 0
            assert k <= 60
        else:
            assert op in {0x06, 0x54}
    assert code[-1][0] == 0x06


@on_both
@given(number=st.one_of(st.integers(0, 600), st.integers(0, 2**32 - 1)), args=st.tuples(*[REGISTERS] * 6))
def test_no_call_runs_off_the_program(machine: Machine, number: int, args: tuple[int, ...]) -> None:
    """Any number with any registers ends in one of the actions that are meant, in both forms of the filter."""
    for runs in (RUNS, RUNS_COUNTING):
        got = runs[machine.name](machine.audit_arch, number, args)
        assert got in {ALLOW, NOTIFY, KILL} or got >> 16 == 5


@on_both
@given(number=st.integers(0, NEWEST_KNOWN), args=st.tuples(*[REGISTERS] * 6))
def test_what_is_not_listed_is_allowed(machine: Machine, number: int, args: tuple[int, ...]) -> None:
    """A call that has no name in the table is not looked at."""
    if number not in machine.numbers.values():
        assert RUNS[machine.name](machine.audit_arch, number, args) == ALLOW


# Calls without a condition


@on_both
@given(args=st.tuples(*[REGISTERS] * 6))
def test_listed_calls_get_their_action_whatever_the_registers(machine: Machine, args: tuple[int, ...]) -> None:
    """Calls that are denied, absent or trapped are so with any registers."""
    for names, expected in (
        (ENOSYS_CALLS, refuses(errno.ENOSYS)),
        (EPERM_CALLS, refuses(errno.EPERM)),
        (NOTIFY_CALLS, NOTIFY),
    ):
        for name in names:
            if name in machine.numbers:
                assert action(machine, name, *args) == expected


def test_every_listed_call_has_a_number() -> None:
    """No name of the lists is misspelt: each is a call of at least one machine."""
    known = set(X86_64.numbers) | set(AARCH64.numbers)
    assert set(ENOSYS_CALLS) | set(EPERM_CALLS) | set(NOTIFY_CALLS) <= known
    assert not set(ENOSYS_CALLS) & set(EPERM_CALLS)
    assert not (set(ENOSYS_CALLS) | set(EPERM_CALLS)) & set(NOTIFY_CALLS)


@on_both
@pytest.mark.parametrize("name", ["accept", "accept4"])
def test_what_only_receives_is_allowed(machine: Machine, name: str) -> None:
    """Taking a connection needs no judgement: the connect was judged."""
    assert action(machine, name) == ALLOW


# Calls judged by their registers


@pytest.mark.parametrize("name", ["openat", "open"])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        *[(flags, ALLOW) for flags in (os.O_RDONLY, CLOEXEC, os.O_DIRECTORY, os.O_PATH, os.O_NOFOLLOW | CLOEXEC)],
        *[(flags, NOTIFY) for flags in (os.O_WRONLY, os.O_RDWR, 3, os.O_CREAT, os.O_TRUNC, os.O_RDWR | CLOEXEC)],
        (os.O_TMPFILE | os.O_RDWR, NOTIFY),
        (os.O_WRONLY | HIGH, NOTIFY),
        (os.O_RDONLY | 7 * HIGH, ALLOW),
    ],
)
def test_only_opens_that_can_write_are_trapped(name: str, flags: int, expected: Verdict) -> None:
    """Reading opens are free, each flag that can change a file traps, and the register's upper half is ignored."""
    at = 2 if name == "openat" else 1
    args = [MINUS_100, POINTER, 0, 0]
    args[at] = flags
    for machine in BOTH:
        if name in machine.numbers:
            assert action(machine, name, *args) == expected


@pytest.mark.parametrize("name", ["openat", "open"])
def test_no_open_makes_a_setuid_or_setgid_file(name: str) -> None:
    """A mode counts only where the call can create; then neither bit gets through, with whatever else is set."""
    at = 2 if name == "openat" else 1
    for machine in BOTH:
        for bits in (0o4000, 0o2000, 0o6755, 0o2644 | HIGH):
            for flags, expected in (
                (os.O_CREAT | os.O_RDWR, refuses(errno.EPERM)),
                (os.O_TMPFILE | os.O_RDWR, refuses(errno.EPERM)),
                (os.O_CREAT | HIGH, refuses(errno.EPERM)),
                (os.O_RDWR | os.O_TRUNC, NOTIFY),
                (os.O_DIRECTORY | CLOEXEC, ALLOW),
            ):
                args = [MINUS_100, POINTER, 0, 0, 0]
                args[at : at + 2] = [flags, bits]
                if name in machine.numbers:
                    assert action(machine, name, *args) == expected


@pytest.mark.parametrize(
    ("name", "at", "refused"),
    [
        *[("creat", 1, 0o6000), ("mknod", 1, 0o6000), ("mknodat", 2, 0o6000)],
        *[("chmod", 1, 0o4000), ("fchmod", 1, 0o4000), ("fchmodat", 2, 0o4000), ("fchmodat2", 2, 0o4000)],
    ],
)
def test_modes_are_trapped_and_setuid_is_refused(name: str, at: int, refused: int) -> None:
    """A change of mode is trapped; setuid never gets through, nor setgid where a file is made."""
    for machine in BOTH:
        for mode in (0, 0o755, 0o1777, 0o2755, 0o4755, 0o6000, 0o100755, 0o4000 | HIGH, 0o755 | 7 * HIGH):
            args = [POINTER, POINTER, POINTER, 0]
            args[at] = mode
            if name in machine.numbers:
                expected = refuses(errno.EPERM) if mode & refused else NOTIFY
                assert action(machine, name, *args) == expected


@on_both
@pytest.mark.parametrize(
    ("flags", "address", "expected"),
    [
        (0, 0, ALLOW),
        (0x4000, 0, ALLOW),
        (0, POINTER, NOTIFY),
        (0, 1, NOTIFY),
        (0, 5 * HIGH, NOTIFY),
        (0, HIGH + 1, NOTIFY),
        (0x20000000, 0, refuses(errno.EOPNOTSUPP)),
        (0x20000000, POINTER, refuses(errno.EOPNOTSUPP)),
        (0x20000000 | HIGH | 0x4000, POINTER, refuses(errno.EOPNOTSUPP)),
    ],
)
def test_a_send_with_an_address_is_trapped(machine: Machine, flags: int, address: int, expected: Verdict) -> None:
    """A plain send is free, both halves of the address count, and MSG_FASTOPEN is refused."""
    assert action(machine, "sendto", 3, POINTER, 10, flags, address, 16) == expected


@on_both
@pytest.mark.parametrize(("name", "index"), [("sendmsg", 2), ("sendmmsg", 3)])
def test_a_message_that_would_connect_is_refused(machine: Machine, name: str, index: int) -> None:
    """Messages (sendmsg, sendmmsg) are free but for MSG_FASTOPEN, which connects without a connect."""
    for flags, expected in ((0, ALLOW), (0x4040, ALLOW), (0x20000000, refuses(errno.EOPNOTSUPP)), (HIGH, ALLOW)):
        args = [3, POINTER, 1, 0]
        args[index] = flags
        assert action(machine, name, *args) == expected


NO_FAMILY, NO_KIND, NO_PROTOCOL = (refuses(n) for n in (errno.EAFNOSUPPORT, errno.EACCES, errno.EPROTONOSUPPORT))


@on_both
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (socket.AF_UNIX, STREAM, 0, ALLOW),
        (socket.AF_UNIX, STREAM | CLOEXEC | NONBLOCK, 0, ALLOW),
        (socket.AF_UNIX, SEQPACKET, 0, ALLOW),
        (socket.AF_UNIX, DGRAM, 0, NO_KIND),
        (socket.AF_UNIX, RAW, 0, NO_KIND),
        (socket.AF_UNIX | HIGH, STREAM, 0, ALLOW),
        (socket.AF_UNIX | HIGH, DGRAM | HIGH, 0, NO_KIND),
        (socket.AF_INET, STREAM, 0, ALLOW),
        (socket.AF_INET, STREAM | NONBLOCK, 6, ALLOW),
        (socket.AF_INET6, DGRAM | CLOEXEC, 17, ALLOW),
        (socket.AF_INET, STREAM, 262, NO_PROTOCOL),
        (socket.AF_INET, STREAM, 262 | HIGH, NO_PROTOCOL),
        (socket.AF_INET6, STREAM, 132, NO_PROTOCOL),
        (socket.AF_INET, STREAM, 256, NO_PROTOCOL),
        (socket.AF_INET, DGRAM, 136, NO_PROTOCOL),
        (socket.AF_INET, DGRAM, 1, NO_PROTOCOL),
        (socket.AF_INET, RAW, 6, NO_KIND),
        (socket.AF_INET, RAW | CLOEXEC, 0, NO_KIND),
        (socket.AF_INET6, SEQPACKET, 132, NO_KIND),
        (socket.AF_INET, 6, 33, NO_KIND),
        (socket.AF_INET, 10, 0, NO_KIND),
        (16, RAW, 0, ALLOW),
        (16, DGRAM | CLOEXEC, 0, ALLOW),
        (16, RAW, 9, NO_PROTOCOL),
        (16, RAW, 4, NO_PROTOCOL),
        *[(family, STREAM, 0, NO_FAMILY) for family in (0, 3, 9, 17, 21, 29, 30, 31, 33, 38, 40, 43, 44, 45, 0xFFFF)],
        (17 | HIGH, RAW, 0, NO_FAMILY),
    ],
)
def test_only_some_sockets_exist(machine: Machine, family: int, kind: int, protocol: int, expected: Verdict) -> None:
    """UNIX without datagrams, TCP and UDP proper, the routing netlink; flags and upper halves change nothing."""
    assert action(machine, "socket", family, kind, protocol) == expected


@on_both
@given(args=st.tuples(REGISTERS, REGISTERS, REGISTERS))
def test_a_socket_is_judged_as_the_kernel_reads_it(machine: Machine, args: tuple[int, int, int]) -> None:
    """The kernel reads ints: the lower halves decide, the upper ones never."""
    lower = [value & 0xFFFFFFFF for value in args]
    assert action(machine, "socket", *args) == action(machine, "socket", *lower)
    if action(machine, "socket", *args) == ALLOW:
        assert (lower[0], lower[1] & 0xF) in {(1, 1), (1, 5), (2, 1), (2, 2), (10, 1), (10, 2)} or lower[0] == 16


@on_both
def test_pairs_are_streams(machine: Machine) -> None:
    """A pair is of streams or seqpackets with any flags; of datagrams it could be re-connected, so there is none."""
    for extra in (0, CLOEXEC, NONBLOCK, CLOEXEC | NONBLOCK):
        assert action(machine, "socketpair", 1, STREAM | extra, 0) == ALLOW
        assert action(machine, "socketpair", 1, SEQPACKET | extra, 0) == ALLOW
        assert action(machine, "socketpair", 1, DGRAM | extra, 0) == NO_KIND
    assert action(machine, "socketpair", 1, DGRAM | HIGH, 0) == NO_KIND


@on_both
@given(length=st.one_of(REGISTERS, st.integers((3 << 32) + 4090, (3 << 32) + 4100)), prot=REGISTERS, flags=REGISTERS)
def test_only_private_memory_beyond_the_bound_is_trapped(machine: Machine, length: int, prot: int, flags: int) -> None:
    """An allocation that the kernel will refuse is told; every other mapping goes through, and without a bound all."""
    number = machine.numbers["mmap"]
    args = (0, length, prot, flags, MINUS_100, 0)
    run = disassemble(compile_filter(machine, BOUNDED))
    is_refused = length > (3 << 32) + 4096 and prot & 2 and flags & 3 == 2
    assert run(machine.audit_arch, number, args) == (NOTIFY if is_refused else ALLOW)
    assert RUNS[machine.name](machine.audit_arch, number, args) == ALLOW


@on_both
def test_a_fork_is_free_and_a_namespace_is_not(machine: Machine) -> None:
    """A clone gets EPERM with any flag that makes a namespace; else it is free, or trapped where tasks are counted."""
    plain, threads = 0x1200011, 0x3D0F00
    new = {0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000}
    for flags in new:
        for extra in (0, plain, threads, HIGH):
            for counting in (False, True):
                assert action(machine, "clone", flags | extra, counting=counting) == refuses(errno.EPERM)
    for flags in (plain, threads, 17, plain | HIGH):
        assert action(machine, "clone", flags) == ALLOW
        assert action(machine, "clone", flags, counting=True) == NOTIFY
    for name in {"fork", "vfork"} & set(machine.numbers):
        assert action(machine, name) == ALLOW
        assert action(machine, name, counting=True) == NOTIFY


@on_both
@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("ioctl", (0, 0x5412), refuses(errno.EPERM)),
        ("ioctl", (0, 0x5412 | HIGH), refuses(errno.EPERM)),
        ("ioctl", (0, 0x541C), refuses(errno.EPERM)),
        ("ioctl", (0, 0x541D), refuses(errno.EPERM)),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0x5412, 0x5413), ALLOW),
        ("prctl", (0x59616D61, 1), refuses(errno.EPERM)),
        ("prctl", (15, POINTER), ALLOW),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0,), ALLOW),
        ("personality", (0x0400000,), refuses(errno.EPERM)),
        ("personality", (0x0040000,), refuses(errno.EPERM)),
        ("seccomp", (1, 8), refuses(errno.EBUSY)),
        ("seccomp", (1, 8 | 32), refuses(errno.EBUSY)),
        ("seccomp", (1 | HIGH, 8 | HIGH), refuses(errno.EBUSY)),
        ("seccomp", (1, 1), ALLOW),
        ("seccomp", (0, 0), ALLOW),
        ("seccomp", (2, 8), ALLOW),
        ("setsockopt", (3, 6, 30), refuses(errno.EOPNOTSUPP)),
        ("setsockopt", (3, 6 | HIGH, 30 | HIGH), refuses(errno.EOPNOTSUPP)),
        ("setsockopt", (3, 6, 1), ALLOW),
        ("setsockopt", (3, 1, 30), ALLOW),
    ],
)
def test_calls_with_dangerous_values(machine: Machine, name: str, args: tuple[int, ...], expected: Verdict) -> None:
    """Typing into the terminal, being traced, executable data, a second listener, hidden connects: only these fail."""
    assert action(machine, name, *args) == expected


# The tables


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        (X86_64, {"open": 2, "socket": 41, "connect": 42, "sendto": 44, "clone": 56, "execve": 59, "ptrace": 101}),
        (X86_64, {"openat": 257, "unshare": 272, "seccomp": 317, "bpf": 321, "io_uring_setup": 425, "openat2": 437}),
        (AARCH64, {"openat": 56, "ptrace": 117, "socket": 198, "connect": 203, "sendto": 206, "clone": 220}),
        (AARCH64, {"execve": 221, "unshare": 97, "seccomp": 277, "bpf": 280, "clone3": 435, "pidfd_getfd": 438}),
    ],
)
def test_numbers_that_everybody_knows(machine: Machine, numbers: dict[str, int]) -> None:
    """Numbers written out here by hand are those of the tables."""
    assert {name: machine.numbers[name] for name in numbers} == numbers


def test_the_tables_differ_as_the_machines_do() -> None:
    """aarch64 has none of the old calls, and numbers from 424 on are the same everywhere."""
    assert not {"open", "fork", "vfork", "creat", "rename", "mkdir"} & set(AARCH64.numbers)
    shared = {name for name in X86_64.numbers if X86_64.numbers[name] >= 424}
    assert shared == {name for name in AARCH64.numbers if AARCH64.numbers[name] >= 424}
    assert all(X86_64.numbers[name] == AARCH64.numbers[name] for name in shared)
    assert {machine.audit_arch for machine in BOTH} == {0xC000003E, 0xC00000B7}
    for machine in BOTH:
        assert len(set(machine.numbers.values())) == len(machine.numbers)
        assert max(machine.numbers.values()) <= NEWEST_KNOWN


def headers() -> list[tuple[Machine, Path]]:
    """Return the kernel's headers that this machine has, each with the table that it should agree with."""
    generic = Path("/usr/include/asm-generic/unistd.h")
    found = [(AARCH64, generic)] if generic.exists() else []
    own = MACHINES.get(os.uname().machine)
    for path in [*Path("/usr/include").glob("*/asm/unistd_64.h"), *Path("/usr/include").glob("asm/unistd_64.h")]:
        found += [(own, path)] if own is not None else []
    return found


def test_the_tables_agree_with_this_machines_headers() -> None:
    """Every number that a kernel header here defines is ours, for each machine whose header is installed."""
    for machine, path in headers():
        pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)$"
        defined = {name: int(number) for name, number in re.findall(pattern, path.read_text(), re.MULTILINE)}
        ours = {name: number for name, number in machine.numbers.items() if name in defined}
        assert ours == {name: defined[name] for name in ours}, path
        assert len(ours) > 70
