"""What the seccomp filter has to do in addition where the sandbox shares its namespaces with the rest of the machine.

A namespace makes the user's other processes, the machine's network and its System V objects unreachable; here, every
call that could reach one of them is refused, or trapped for the supervisor to judge. What Landlock of an older kernel
does not restrict is trapped as well.
"""

from __future__ import annotations

import errno
from typing import Final

from jupyter_agentwatch.sandbox.bpf import (
    ALLOW,
    IOCTLS,
    NOTIFY,
    Block,
    argument,
    equal_any,
    errno_of,
    ret,
    socket_block,
)

__all__ = ["OWNER_CALLS", "PROCESS_CALLS", "SIGNAL_CALLS", "shared_blocks"]

PROCESS_CALLS: Final = ("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler")
"""Change the process that a register names; 0 is the caller."""

SIGNAL_CALLS: Final = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
"""Signal the process that a register names; Landlock's scope (ABI 6) holds them in the kernel."""

OWNER_CALLS: Final = ("chown", "fchown", "lchown", "fchownat")
"""Change owners, which Landlock does not restrict; one that changes nothing is what an archiver of root's makes."""

_SYSTEM_V: Final = (
    *("shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink"),
)
# Landlock lets a program be told of what happens to files that it must not open. Without inotify, programs poll.
_NOTICES: Final = ("inotify_init", "inotify_init1")

_SOL_SOCKET, _SO_REUSEPORT, _IPPROTO_TCP, _TCP_FASTOPEN_CONNECT = 1, 15, 6, 30
_SET_DUMPABLE, _SET_PTRACER = 4, 0x59616D61
_SET_OWNER: Final = (8, 15, 10)  # fcntl: F_SETOWN, F_SETOWN_EX, F_SETSIG
_OWNER_IOCTLS: Final = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP

_JEQ, _RET = 0x15, 0x06


def shared_blocks(abi: int) -> dict[str, Block]:
    """Return the blocks that differ from rung A's, by the call's name.

    Args:
        abi: Version of Landlock's interface that files are held by, 0 for none.
    """
    eperm = errno_of(errno.EPERM)
    ioctls = IOCTLS + (_OWNER_IOCTLS if abi < 6 else ())
    blocks: dict[str, Block] = {
        # Made by the supervisor; datagrams could be sent anywhere by `sendmsg`, whose address no filter sees.
        "socket": socket_block(NOTIFY, datagrams=False),
        "setsockopt": _setsockopt(),
        "prctl": _prctl(),
        "ioctl": equal_any(1, ioctls, eperm, ALLOW),
        **{name: _other_than_caller(0, NOTIFY) for name in PROCESS_CALLS},
        "setpriority": _priority(process=0),
        "ioprio_set": _priority(process=1),
        **dict.fromkeys(OWNER_CALLS, ret(NOTIFY)),
        **dict.fromkeys(("migrate_pages", "process_mrelease"), ret(eperm)),
        **dict.fromkeys((*_SYSTEM_V, *_NOTICES), ret(errno_of(errno.ENOSYS))),
    }
    if abi < 6:
        blocks |= {name: ret(NOTIFY) for name in SIGNAL_CALLS}
        blocks["kill"] = _other_than_caller(0, NOTIFY)
        blocks["pidfd_send_signal"] = ret(errno_of(errno.ENOSYS))
        # A descriptor's owner gets a signal of the caller's choice.
        blocks["fcntl"] = equal_any(1, _SET_OWNER, eperm, ALLOW)
    if abi < 3:
        blocks["truncate"] = ret(eperm)
    return blocks


def _other_than_caller(index: int, then: int) -> Block:
    return equal_any(index, (0,), ALLOW, then)


def _priority(*, process: int) -> Block:
    """Judge by `which`: the caller and its group are free, one process is judged, all of a user's are refused."""
    one = _other_than_caller(1, NOTIFY)
    group = _other_than_caller(1, errno_of(errno.EPERM))
    return [
        argument(0),
        *[(_JEQ, 0, len(one), process), *one],
        *[(_JEQ, 0, len(group), process + 1), *group],
        (_RET, 0, 0, errno_of(errno.EPERM)),
    ]


def _setsockopt() -> Block:
    no_option, unsupported = errno_of(errno.ENOPROTOOPT), errno_of(errno.EOPNOTSUPP)
    # With SO_REUSEPORT a socket takes over connections to a port of another program of the same user.
    of_socket = equal_any(2, (_SO_REUSEPORT,), no_option, ALLOW)
    of_tcp = equal_any(2, (_TCP_FASTOPEN_CONNECT,), unsupported, ALLOW)
    return [
        argument(1),
        *[(_JEQ, 0, len(of_socket), _SOL_SOCKET), *of_socket],
        *[(_JEQ, 0, len(of_tcp), _IPPROTO_TCP), *of_tcp],
        (_RET, 0, 0, ALLOW),
    ]


def _prctl() -> Block:
    # The broker reads its callers' memory with no right but the common user: they must stay readable. Answered with
    # success, because programs that guard their secrets so (ssh-agent) end where they cannot.
    undumpable = equal_any(1, (0,), errno_of(0), ALLOW)
    return [
        argument(0),
        *[(_JEQ, 0, 1, _SET_PTRACER), (_RET, 0, 0, errno_of(errno.EPERM))],
        *[(_JEQ, 0, len(undumpable), _SET_DUMPABLE), *undumpable],
        (_RET, 0, 0, ALLOW),
    ]
