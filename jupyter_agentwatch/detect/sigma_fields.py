"""Which log sources of Sigma our events stand for, and which of our facts each of their fields is. Data only.

A fact is the name of a field of an event, of something derived from it (`DERIVED`), or one item of a list as "argv[3]".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, get_args

import msgspec

from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.model import Family
from jupyter_agentwatch.events import AnyEvent

__all__ = [
    "ACTIONS",
    "AFTER_EXEC",
    "AUDIT_TYPES",
    "COMMON",
    "DERIVED",
    "FAMILIES",
    "KEYWORD_FACTS",
    "SYSCALLS",
    "Source",
    "family_of",
    "source_for",
]

_MAX_ARGS: Final = 64

_EVENT_FIELDS: Final = {kind.__struct_config__.tag: kind.__struct_fields__ for kind in get_args(AnyEvent)}

COMMON: Final[Mapping[str, str]] = MappingProxyType(
    {name: name for name in ("cell", "step", "pid", "verdict", "basis", "watch")}
)
"""Fields of every event, which every rule may name and every window may group by."""

DERIVED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "exec": (
            *("image", "command_line", "name", "current_directory", "user", "audit_type", "syscall", "paths", "comm"),
            *("parent_image", "parent_command_line", "parent_pid"),
        ),
        "connect": ("image", "command_line", "name", "user", "initiated", "is_ipv6", "action", "blocked"),
        "dns": ("image", "command_line", "name", "user", "rejected"),
        "file": ("image", "command_line", "name", "user", "target", "audit_type", "syscall", "paths", "comm"),
    }
)
"""Facts that are no field of the event itself, by kind.

`name` is the last part of the image's path, `comm` that of what was called. `audit_type` are the kinds of records that
auditd would have written, `syscall` the call's name and its number on x86-64, by which public rules name it, `paths`
every name that the call named. `action` and `blocked` are a firewall's words for the verdict, `rejected` is Zeek's for
an answer REFUSED.
"""

AUDIT_TYPES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"exec": ("SYSCALL", "EXECVE", "CWD", "PATH", "PROCTITLE"), "file": ("SYSCALL", "PATH")}
)
"""Kinds of records that auditd would have written, by kind of event."""

_NUMBERS: Final = listed(
    "open 2,execve 59,truncate 76,rename 82,mkdir 83,rmdir 84,creat 85,link 86,unlink 87,symlink 88,chmod 90,fchmod 91,"
    "chown 92,fchown 93,lchown 94,utime 132,mknod 133,utimes 235,openat 257,mkdirat 258,mknodat 259,fchownat 260,"
    "futimesat 261,unlinkat 263,renameat 264,linkat 265,symlinkat 266,fchmodat 268,utimensat 280,renameat2 316,"
    "execveat 322,fchmodat2 452",
    ",",
)

SYSCALLS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {name: (name, number) for name, _, number in (each.partition(" ") for each in _NUMBERS)}
)
"""What `syscall` is for each call that we record."""

ACTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "allow": ("allow", "allowed", "accept", "accepted", "permit", "permitted", "forward", "pass"),
        "deny": ("deny", "denied", "drop", "dropped", "block", "blocked", "reject", "rejected"),
    }
)
"""What firewalls call a verdict."""

AFTER_EXEC: Final = frozenset(
    {"parent_image", "parent_command_line", "parent_pid", "exe", "ppid", "claim_seq", "mismatch"}
)
"""Facts of an exec that are known only once the program runs: rules that name one wait for the `post` record."""

KEYWORD_FACTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "session": ("workspace", "reason"),
        "step": ("argv", "cwd"),
        "exec": ("image", "command_line", "current_directory"),
        "connect": ("addr", "host"),
        "listen": ("addr",),
        "dns": ("qname", "answers"),
        "flow": ("addr", "host", "protocol", "server_name", "reason"),
        "file": ("path", "path2"),
        "limit": ("limit",),
        "gpu": ("device", "name", "reason", "purpose"),
        "resources": ("name",),
        "finding": ("rule", "title"),
        "breaker": ("before", "after", "cause"),
        "control": ("op", "by", "detail"),
        "gap": ("reason",),
    }
)
"""The texts of an event in which keywords are looked for."""

_PROCESS: Final = MappingProxyType(
    {
        "Image": "image",
        "CommandLine": "command_line",
        "ParentImage": "parent_image",
        "ParentCommandLine": "parent_command_line",
        "ParentProcessId": "parent_pid",
        "ProcessId": "pid",
        "CurrentDirectory": "current_directory",
        "User": "user",
    }
)
_BY_PROCESS: Final = MappingProxyType(
    {"Image": "image", "CommandLine": "command_line", "ProcessId": "pid", "User": "user"}
)
_CONNECTION: Final = MappingProxyType(
    {
        **_BY_PROCESS,
        "DestinationIp": "addr",
        "DestinationPort": "port",
        "DestinationHostname": "host",
        "DestinationIsIpv6": "is_ipv6",
        "Initiated": "initiated",
        "Protocol": "transport",
    }
)
_FIREWALL: Final = MappingProxyType(
    {
        "dst_ip": "addr",
        "dst_port": "port",
        "dst_host": "host",
        "protocol": "transport",
        "action": "action",
        "blocked": "blocked",
    }
)
_DNS: Final = MappingProxyType(
    {
        **_BY_PROCESS,
        **dict.fromkeys(("QueryName", "query"), "qname"),
        **dict.fromkeys(("QueryResults", "answer", "answers"), "answers"),
        **dict.fromkeys(("record_type", "qtype_name"), "qtype"),
        **dict.fromkeys(("QueryStatus", "rcode", "rcode_name"), "rcode"),
        "rejected": "rejected",
    }
)
_FILE: Final = MappingProxyType({**_BY_PROCESS, "TargetFilename": "target"})
_AUDIT_EXEC: Final = MappingProxyType(
    {
        **{f"a{index}": f"argv[{index}]" for index in range(_MAX_ARGS)},
        "exe": "image",
        "comm": "comm",
        "proctitle": "command_line",
        "cwd": "current_directory",
        "name": "paths",
        "type": "audit_type",
        **dict.fromkeys(("syscall", "SYSCALL"), "syscall"),
    }
)

_OPENED: Final = ("open", "openat", "creat", "truncate", "mknod", "mknodat")
_NAMED: Final = ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
_RENAMED: Final = _NAMED[:3]
_REMOVED: Final = ("unlink", "unlinkat", "rmdir")


class Source(msgspec.Struct, frozen=True):
    """What a log source means here.

    Attributes:
        kinds: Kinds of events.
        fields: Name in Sigma → fact.
        only: Facts that must have one of these values, as {"op": ("open", "openat")}.
        values: Facts that never have another value than these, in lower case: what asks for one can never match.
    """

    kinds: tuple[str, ...]
    fields: Mapping[str, str]
    only: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    values: Mapping[str, frozenset[str]] = msgspec.field(default_factory=dict)

    def fact(self, name: str) -> str | None:
        """Return the fact that a field of a rule means, or None where there is none."""
        return self.fields.get(name) or COMMON.get(name)


_EXEC_SOURCE: Final = Source(("exec",), _PROCESS)
_DNS_SOURCE: Final = Source(("dns",), _DNS)
_SOCKETS: Final = {"transport": ("tcp", "udp")}
_TRUTHS: Final = frozenset({"true", "false"})
_OUTGOING: Final = {"initiated": frozenset({"true"}), "transport": frozenset({"tcp", "udp"}), "is_ipv6": _TRUTHS}
_FILTERED: Final = {
    "action": frozenset(text for texts in ACTIONS.values() for text in texts),
    "blocked": _TRUTHS,
    "transport": frozenset({"tcp", "udp"}),
}
_AUDITED: Final = {
    "audit_type": frozenset(each.lower() for types in AUDIT_TYPES.values() for each in types),
    "syscall": frozenset(text for texts in SYSCALLS.values() for text in texts),
}

_BY_CATEGORY: Final[Mapping[str, Source]] = MappingProxyType(
    {
        "process_creation": _EXEC_SOURCE,
        "network_connection": Source(("connect",), _CONNECTION, _SOCKETS, _OUTGOING),
        "firewall": Source(("connect",), _FIREWALL, _SOCKETS, _FILTERED),
        "dns": _DNS_SOURCE,
        "dns_query": _DNS_SOURCE,
        "file_event": Source(("file",), _FILE, {"op": (*_OPENED, *_NAMED)}),
        "file_change": Source(("file",), _FILE, {"op": _OPENED}),
        "file_delete": Source(("file",), _FILE, {"op": _REMOVED}),
        "file_rename": Source(("file",), {**_FILE, "SourceFilename": "path"}, {"op": _RENAMED}),
    }
)

_BY_SERVICE: Final[Mapping[tuple[str, str], Source]] = MappingProxyType(
    {
        ("linux", "auditd"): Source(("exec", "file"), _AUDIT_EXEC, values=_AUDITED),
        ("zeek", "dns"): _DNS_SOURCE,
    }
)


def source_for(category: str | None, product: str | None, service: str | None) -> Source | None:
    """Return what a rule's log source means here, or None where we keep no such log.

    Args:
        category: As "process_creation"; for the product "agentwatch" a kind of event as in our log.
        product: "linux", "zeek" or none; "agentwatch" for rules over our own fields.
        service: As "auditd".
    """
    if product == "agentwatch":
        return None if service else _own_source(category)
    if service:
        return _BY_SERVICE.get((product or "", service)) if not category else None
    if product not in (None, "linux"):
        return None
    if category:
        return _BY_CATEGORY.get(category)
    return _EXEC_SOURCE  # "anything of Linux": keyword rules about what a shell was told


def _own_source(kind: str | None) -> Source | None:
    if kind is None or kind not in _EVENT_FIELDS:
        return None
    names = (*_EVENT_FIELDS[kind], *DERIVED.get(kind, ()))
    return Source((kind,), MappingProxyType({**_PROCESS_NAMES.get(kind, {}), **{name: name for name in names}}))


_PROCESS_NAMES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType({"exec": _PROCESS})

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        **dict.fromkeys(("T1496",), "mining"),
        **dict.fromkeys(("T1572", "T1090", "T1071", "T1095", "T1102", "T1219", "T1571", "T1573"), "tunnel"),
        **dict.fromkeys(("T1059",), "shell"),
        **dict.fromkeys(("T1016", "T1018", "T1046", "T1049", "T1135", "T1595", "T1552.005", "T1580"), "probing"),
        **dict.fromkeys(("T1020", "T1030", "T1041", "T1048", "T1537", "T1560", "T1567"), "exfiltration"),
        **dict.fromkeys(
            (
                *("T1014", "T1036", "T1053", "T1055", "T1070", "T1098", "T1136", "T1222", "T1489", "T1529", "T1543"),
                *("T1546", "T1547", "T1554", "T1562", "T1564", "T1574", "T1653", "T1685", "T1686", "T1689", "T1690"),
            ),
            "tampering",
        ),
    }
)
"""What a technique is a sign of; a sub-technique without an entry of its own counts as its parent."""


def family_of(techniques: tuple[str, ...]) -> Family:
    """Return the family of the first technique that has one, else "policy"."""
    for technique in techniques:
        family = FAMILIES.get(technique) or FAMILIES.get(technique.partition(".")[0])
        if family is not None:
            return family
    return "policy"
