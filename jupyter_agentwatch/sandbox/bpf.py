"""The seccomp filter of rung A, as classic BPF; `shared_filter` says what differs without namespaces.

Order: wrong architecture and x32 are killed, calls newer than this table are ENOSYS, then each listed call has one
block that ends in a return, and everything else is allowed. Only register values are tested here: memory can change
after the test. A linear list costs nothing for allowed calls, because the kernel (5.11 and later) caches which call
numbers are always allowed in a bitmap. This file knows no policy: destinations and paths are judged by the supervisor.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from jupyter_agentwatch.sandbox.syscalls import Machine

__all__ = [
    "ALLOW",
    "IOCTLS",
    "NOTIFY",
    "Block",
    "FilterOptions",
    "any_bits",
    "argument",
    "compile_filter",
    "disassemble",
    "equal_any",
    "errno_of",
    "ret",
    "socket_block",
]

ALLOW: Final = 0x7FFF0000
"""SECCOMP_RET_ALLOW."""

NOTIFY: Final = 0x7FC00000
"""SECCOMP_RET_USER_NOTIF."""

KILL: Final = 0x80000000

NEWEST_KNOWN: Final = 469
"""Last call of Linux 6.18 (file_setattr). A later kernel may add one that connects or opens by a new way."""

_OFF_NR, _OFF_ARCH, _OFF_ARGS = 0, 4, 16
_LD, _JEQ, _JGT, _JGE, _JSET, _RET, _AND = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06, 0x54

_CREATE_FLAGS: Final = 0o100 | 0o20000000
"""O_CREAT and O_TMPFILE's own bit: only with them does a mode count."""

_SETUID: Final = 0o4000
_SETGID: Final = 0o2000

_WRITE_FLAGS: Final = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC and the bit that is only O_TMPFILE's own."""

_CLONE_NEW: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x80
_MSG_FASTOPEN: Final = 0x20000000

ENOSYS_CALLS: Final = (
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3", "openat2", "vmsplice", "file_setattr"),
)
"""Calls with a fallback: io_uring acts without calls that could be trapped, clone3 and openat2 hide their flags in
memory, vmsplice gives no one anything here, file_setattr sets attributes."""

EPERM_CALLS: Final = (
    # take over a sibling, or read what it does
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise"),
    # a new user namespace undoes the mounts and is fresh attack surface
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsmount", "fsconfig", "fspick"),
    *("move_mount", "open_tree", "open_tree_attr", "mount_setattr"),
    # kernel exploit primitives; userfaultfd also widens races
    *("bpf", "perf_event_open", "userfaultfd", "remap_file_pages", "modify_ldt", "move_pages"),
    # keyrings are not namespaced; handles go round path checks
    *("keyctl", "add_key", "request_key", "name_to_handle_at", "open_by_handle_at"),
    # a program that an agent runs has no business here
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff"),
    *("acct", "quotactl", "quotactl_fd", "iopl", "ioperm", "settimeofday", "clock_settime", "clock_adjtime"),
    *("syslog", "sethostname", "setdomainname", "vhangup", "lookup_dcookie", "uselib", "nfsservctl", "ustat"),
    *("sysfs", "_sysctl", "fanotify_init", "fanotify_mark"),
)

NOTIFY_CALLS: Final = (
    # the first after an exec: of the C library, and of Go's, which has none
    *("execve", "execveat", "set_tid_address", "sched_getaffinity", "connect", "bind", "listen", "setsid"),
    *("unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("mkdir", "mkdirat", "rmdir", "truncate", "utime", "utimes", "futimesat", "utimensat"),
)

ATTRIBUTE_CALLS: Final = (
    *("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
    *("removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
)
"""Extended attributes, access control lists among them, which may let other users in: as on a file system without any.
They are no content, and nothing could be told or undone of them."""

IOCTLS: Final = (
    *(
        0x5412,
        0x541D,
        0x541C,
    ),  # TIOCSTI, TIOCCONS, TIOCLINUX: take over a terminal (CVE-2017-5226)
    *(0x40086602, 0x401C5820),  # FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR: as attributes
)
"""Requests that are refused."""


class FilterOptions(msgspec.Struct, frozen=True):
    """What differs between watches.

    Attributes:
        count_tasks: Trap clone, fork and vfork, so that the supervisor can hold the limit of processes where the
            kernel would not (RLIMIT_NPROC does not bind the host's root, and no pids controller is delegated).
        memory_bytes: Trap a call that asks for more private writable memory than this at once, bytes: RLIMIT_DATA
            refuses it, and only so it can be told. None: such calls are not looked at.
    """

    count_tasks: bool = False
    memory_bytes: int | None = None


Block = list[tuple[int, int, int, int]]
"""Instructions of classic BPF: operation, jump if true, jump if false, constant. A call's block ends in a return."""


def ret(action: int) -> Block:
    """Return this, whatever the arguments."""
    return [(_RET, 0, 0, action)]


def errno_of(number: int) -> int:
    """Return the action that answers with an errno (0: success, without the call)."""
    return 0x00050000 | number


def argument(index: int, *, high: bool = False) -> tuple[int, int, int, int]:
    """Load one half of a register."""
    return (_LD, 0, 0, _OFF_ARGS + 8 * index + (4 if high else 0))


def equal_any(index: int, values: tuple[int, ...], then: int, otherwise: int) -> Block:
    """Return `then` where the register's low word is one of the values."""
    # The kernel truncates `int` arguments, so only the low word may be compared (AF_UNIX | 1 << 32 is AF_UNIX).
    block = [argument(index)]
    count = len(values)
    block += [(_JEQ, count - i, 0, value) for i, value in enumerate(values)]
    return [*block, (_RET, 0, 0, otherwise), (_RET, 0, 0, then)]


def any_bits(index: int, mask: int, then: int, otherwise: int) -> Block:
    """Return `then` where the register's low word has a bit of the mask."""
    return [argument(index), (_JSET, 0, 1, mask), (_RET, 0, 0, then), (_RET, 0, 0, otherwise)]


def _open(flags_index: int) -> Block:
    """Trap opening for writing, and refuse to create a file that is setuid or setgid from the first."""
    return [
        *[argument(flags_index), (_JSET, 0, 3, _CREATE_FLAGS)],
        *[argument(flags_index + 1), (_JSET, 0, 1, _SETUID | _SETGID), (_RET, 0, 0, errno_of(errno.EPERM))],
        *any_bits(flags_index, _WRITE_FLAGS, NOTIFY, ALLOW),
    ]


def _sendto() -> Block:
    fastopen = [argument(3), (_JSET, 0, 1, _MSG_FASTOPEN), (_RET, 0, 0, errno_of(errno.EOPNOTSUPP))]
    # A pointer has two halves. Without an address it is a plain send, which asyncio and ZMQ need untrapped.
    return [
        *fastopen,
        argument(4),
        (_JEQ, 0, 2, 0),
        argument(4, high=True),
        (_JEQ, 1, 0, 0),
        (_RET, 0, 0, NOTIFY),
        (_RET, 0, 0, ALLOW),
    ]


def _no_fastopen(flags_index: int) -> Block:
    # MSG_FASTOPEN connects, without a connect that could be judged or put on record.
    return any_bits(flags_index, _MSG_FASTOPEN, errno_of(errno.EOPNOTSUPP), ALLOW)


def socket_block(then: int = ALLOW, *, datagrams: bool = True) -> Block:
    """UNIX stream and seqpacket, INET and INET6 stream and datagram without MPTCP or SCTP, NETLINK_ROUTE.

    Args:
        then: What becomes of these.
        datagrams: Datagrams of INET and INET6 are among them.
    """
    family, unsupported, access = errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EACCES
    inet = [
        (_LD, 0, 0, _OFF_ARGS + 16),
        *[(_JEQ, 0, 1, 0), (_RET, 0, 0, then), (_JEQ, 0, 1, 6), (_RET, 0, 0, then)],
        *[(_JEQ, 0, 1, 17), (_RET, 0, 0, then), (_RET, 0, 0, errno_of(unsupported))],
    ]
    inet_type = [
        *[argument(1), (_AND, 0, 0, 0xF), (_JEQ, 2, 0, 1), (_JEQ, 1, 0, 2 if datagrams else 1)],
        (_RET, 0, 0, errno_of(access)),
        *inet,
    ]
    unix = [
        *[argument(1), (_AND, 0, 0, 0xF), (_JEQ, 2, 0, 1), (_JEQ, 1, 0, 5)],
        *[(_RET, 0, 0, errno_of(access)), (_RET, 0, 0, then)],
    ]
    netlink = [argument(2), (_JEQ, 0, 1, 0), (_RET, 0, 0, then), (_RET, 0, 0, errno_of(unsupported))]
    return [
        argument(0),
        *[(_JEQ, 0, len(unix), 1), *unix],
        *[(_JEQ, 1, 0, 2), (_JEQ, 0, len(inet_type), 10), *inet_type],
        *[(_JEQ, 0, len(netlink), 16), *netlink],
        (_RET, 0, 0, errno_of(family)),
    ]


def _setsockopt() -> Block:
    tcp, fastopen_connect = 6, 30
    refuse = equal_any(2, (fastopen_connect,), errno_of(errno.EOPNOTSUPP), ALLOW)
    return [argument(1), (_JEQ, 1, 0, tcp), (_RET, 0, 0, ALLOW), *refuse]


def _seccomp() -> Block:
    set_mode_filter, new_listener = 1, 1 << 3
    return [
        *[argument(0), (_JEQ, 1, 0, set_mode_filter), (_RET, 0, 0, ALLOW)],
        *any_bits(1, new_listener, errno_of(errno.EBUSY), ALLOW),
    ]


def _mmap(bound: int) -> Block:
    writable, sharing, private = 0x2, 0x3, 0x2
    high, low = bound >> 32, bound & 0xFFFFFFFF
    return [
        # Longer than the bound: its high word is larger, or equal with a larger low word.
        *[argument(1, high=True), (_JGT, 4, 0, high), (_JEQ, 0, 2, high)],
        *[argument(1), (_JGT, 1, 0, low), (_RET, 0, 0, ALLOW)],
        *[argument(2), (_JSET, 0, 4, writable)],
        *[argument(3), (_AND, 0, 0, sharing), (_JEQ, 0, 1, private), (_RET, 0, 0, NOTIFY), (_RET, 0, 0, ALLOW)],
    ]


def _clone(options: FilterOptions) -> Block:
    return any_bits(0, _CLONE_NEW, errno_of(errno.EPERM), NOTIFY if options.count_tasks else ALLOW)


def _blocks(options: FilterOptions) -> dict[str, Block]:
    eperm = errno_of(errno.EPERM)
    set_ptracer, quiet_personality = 0x59616D61, (0, 0xFFFFFFFF)
    unix_pair_kinds = equal_any(1, _stream_kinds(), ALLOW, errno_of(errno.EACCES))
    blocks = {name: ret(errno_of(errno.ENOSYS)) for name in ENOSYS_CALLS}
    blocks |= {name: ret(eperm) for name in EPERM_CALLS}
    blocks |= {name: ret(NOTIFY) for name in NOTIFY_CALLS}
    blocks |= {
        "open": _open(1),
        "openat": _open(2),
        "sendto": _sendto(),
        "sendmsg": _no_fastopen(2),
        "sendmmsg": _no_fastopen(3),
        "socket": socket_block(),
        "socketpair": unix_pair_kinds,
        "setsockopt": _setsockopt(),
        "seccomp": _seccomp(),
        "clone": _clone(options),
        "ioctl": equal_any(1, IOCTLS, eperm, ALLOW),
        **dict.fromkeys(ATTRIBUTE_CALLS, ret(errno_of(errno.EOPNOTSUPP))),
        "prctl": equal_any(0, (set_ptracer,), eperm, ALLOW),
        "personality": equal_any(0, quiet_personality, ALLOW, eperm),
    }
    # A setuid file outlives the watch: others on the machine could run it as the user, or as root. Setgid is a folder's
    # ordinary bit, and nothing here says whether it is one: of chmod and its kin the supervisor judges it.
    chmods = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
    blocks |= {name: any_bits(index, _SETUID, eperm, NOTIFY) for name, index in chmods.items()}
    makers = {"creat": 1, "mknod": 1, "mknodat": 2}
    blocks |= {name: any_bits(index, _SETUID | _SETGID, eperm, NOTIFY) for name, index in makers.items()}
    if options.count_tasks:
        blocks |= {"fork": ret(NOTIFY), "vfork": ret(NOTIFY)}
    if options.memory_bytes is not None:
        blocks["mmap"] = _mmap(options.memory_bytes)
    return blocks


def _stream_kinds() -> tuple[int, ...]:
    # A datagram pair's end can be re-connected to another name, which would go round the broker.
    cloexec, nonblock = 0o2000000, 0o4000
    return tuple(kind | extra for kind in (1, 5) for extra in (0, cloexec, nonblock, cloexec | nonblock))


def compile_filter(
    machine: Machine, options: FilterOptions | None = None, changes: Mapping[str, Block] | None = None
) -> bytes:
    """Return the program as an array of `struct sock_filter` (8 bytes each).

    Args:
        machine: Table of call numbers.
        options: What differs between watches.
        changes: Blocks that take the place of rung A's, or are added to them, by the call's name.
    """
    program: Block = [
        (_LD, 0, 0, _OFF_ARCH),
        (_JEQ, 1, 0, machine.audit_arch),
        (_RET, 0, 0, KILL),
        (_LD, 0, 0, _OFF_NR),
        # x32 calls carry bit 30; they would go round every comparison below
        (_JGE, 0, 1, 0x40000000),
        (_RET, 0, 0, KILL),
        (_JGE, 0, 1, NEWEST_KNOWN + 1),
        (_RET, 0, 0, errno_of(errno.ENOSYS)),
    ]
    for name, block in (_blocks(options or FilterOptions()) | dict(changes or {})).items():
        number = machine.numbers.get(name)
        if number is not None:
            program += [(_JEQ, 0, len(block), number), *block]
    program.append((_RET, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def disassemble(program: bytes) -> Callable[[int, int, tuple[int, ...]], int]:
    """Return the program as a function (architecture, call number, arguments) → action, for tests and `doctor`."""
    code = list(struct.iter_unpack("=HBBI", program))

    def run(arch: int, number: int, args: tuple[int, ...]) -> int:
        padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
        data = struct.pack("=iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *padded)
        accumulator, at = 0, 0
        while True:
            op, yes, no, k = code[at]
            at += 1
            if op == _LD:
                (accumulator,) = struct.unpack_from("=I", data, k)
            elif op == _AND:
                accumulator &= k
            elif op == _RET:
                return int(k)
            else:
                hits = {_JEQ: accumulator == k, _JGT: accumulator > k, _JGE: accumulator >= k, _JSET: accumulator & k}
                at += yes if hits[op] else no

    return run
