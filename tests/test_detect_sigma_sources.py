"""What the fields of public log sources are here: records of the audit daemon, words of firewalls and of Zeek."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from jupyter_agentwatch.detect.sigma_compile import compile_rules
from jupyter_agentwatch.detect.sigma_detector import SigmaDetector
from jupyter_agentwatch.detect.sigma_fields import SYSCALLS
from jupyter_agentwatch.events import AnyEvent
from jupyter_agentwatch.sandbox.bpf import NOTIFY_CALLS
from jupyter_agentwatch.sandbox.syscalls import X86_64
from jupyter_agentwatch.testing import event


def detector(selection: dict[str, Any], **logsource: str) -> SigmaDetector:
    """Return a detector of one rule, which has to compile."""
    text = yaml.safe_dump(
        {"title": "A rule", "logsource": logsource, "detection": {"sel": selection, "condition": "sel"}}
    )
    rules, problems = compile_rules({"rule.yml": text})
    assert problems == []
    return SigmaDetector(rules)


def run(called: str, exe: str) -> list[AnyEvent]:
    """A program that was called by one name and is another."""
    claim = event("exec", basis="claimed", seq=1, step=1, pid=9, path=called, argv=["x"])
    return [claim, event("exec", basis="post", seq=2, step=1, pid=9, exe=exe, claim_seq=1)]


def is_met(selection: dict[str, Any], events: list[AnyEvent], **logsource: str) -> bool:
    """Whether a rule finds anything in these events."""
    made = detector(selection, **logsource)
    return any(bool(made.feed(each)) for each in events)


EXECS: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "the call": ({"type": "SYSCALL", "exe|endswith": "/useradd"}, "/usr/sbin/useradd", "/usr/sbin/useradd", True),
    "its folder": ({"type": "SYSCALL", "exe": "/tmp/*"}, "/tmp/a", "/tmp/a", True),
    "another folder": ({"type": "SYSCALL", "exe": "/tmp/*"}, "/opt/a", "/opt/a", False),
    "the name of a link": (
        {"type": "SYSCALL", "comm": "insmod", "exe": "/usr/bin/kmod"},
        "/i/insmod",
        "/usr/bin/kmod",
        True,
    ),
    "the name of what is there": ({"type": "SYSCALL", "comm": "kmod"}, "/i/insmod", "/usr/bin/kmod", False),
    "a name that the kernel cuts": (
        {"comm": "a-name-of-twent"},
        "/x/a-name-of-twenty-x",
        "/x/a-name-of-twenty-x",
        True,
    ),
    "the same in full": ({"comm": "a-name-of-twenty-x"}, "/x/a-name-of-twenty-x", "/x/a-name-of-twenty-x", True),
    "the path that was called": ({"type": "PATH", "name|re": r".*\/\..*"}, "/srv/.h/x", "/usr/bin/x", True),
    "the number of the call": ({"type": "SYSCALL", "syscall": 59}, "/a", "/a", True),
    "the name of the call": ({"SYSCALL": "execve"}, "/a", "/a", True),
    "the number of another": ({"syscall": 133}, "/a", "/a", False),
}


@pytest.mark.parametrize("name", EXECS)
def test_an_exec_is_what_auditd_would_have_written_of_it(name: str) -> None:
    """Rules find the call, the arguments and the path of an exec, by the names that auditd gives them."""
    selection, called, exe, expected = EXECS[name]
    assert is_met(selection, run(called, exe), product="linux", service="auditd") is expected


FILES: dict[str, tuple[dict[str, Any], dict[str, str], bool]] = {
    "opened": ({"type": "PATH", "name": "/etc/ld.so.preload"}, {"op": "openat", "path": "/etc/ld.so.preload"}, True),
    "moved there": (
        {"type": "PATH", "name": "/etc/ld.so.preload"},
        {"op": "rename", "path": "/tmp/a", "path2": "/etc/ld.so.preload"},
        True,
    ),
    "elsewhere": ({"type": "PATH", "name": "/etc/ld.so.preload"}, {"op": "rename", "path": "/a", "path2": "/b"}, False),
    "by the call": ({"type": "SYSCALL", "syscall": 133}, {"op": "mknod", "path": "/dev/x"}, True),
    "by another call": ({"type": "SYSCALL", "syscall": 133}, {"op": "openat", "path": "/dev/x"}, False),
    "no exec": ({"type": "EXECVE", "name": "/dev/x"}, {"op": "openat", "path": "/dev/x"}, False),
}


@pytest.mark.parametrize("name", FILES)
def test_a_write_is_what_auditd_would_have_written_of_it(name: str) -> None:
    """Rules find the call and every path that it names."""
    selection, fields, expected = FILES[name]
    shown = event("file", step=1, **fields)
    assert is_met(selection, [shown], product="linux", service="auditd") is expected


@pytest.mark.parametrize(
    ("verdict", "met"),
    [("allow", ["accept", "FORWARD", "permit"]), ("deny", ["denied", "drop", "blocked", "reject"])],
)
def test_a_verdict_is_in_the_words_of_firewalls(verdict: str, met: list[str]) -> None:
    """Each of the usual words means the verdict, and none of the others'."""
    shown = event("connect", step=1, transport="tcp", addr="192.0.2.1", port=23, verdict=verdict)
    words = ("accept", "FORWARD", "permit", "denied", "drop", "blocked", "reject")
    assert [word for word in words if is_met({"action": word}, [shown], category="firewall")] == met
    assert is_met({"blocked": "true"}, [shown], category="firewall") is (verdict == "deny")


@pytest.mark.parametrize("rcode", ["NOERROR", "REFUSED"])
def test_a_refused_name_is_rejected_in_the_words_of_zeek(rcode: str) -> None:
    """`rejected` is whether the server refused to answer."""
    shown = event("dns", step=1, qname="pool.example", qtype="A", rcode=rcode)
    assert is_met({"rejected": "true"}, [shown], product="zeek", service="dns") is (rcode == "REFUSED")


def test_every_call_on_record_has_the_number_that_public_rules_name() -> None:
    """A rule that asks for a call which is not in the table would be said to be about another log."""
    known = X86_64.numbers
    assert {
        name: number for name, (_, number) in SYSCALLS.items() if name in known and number != str(known[name])
    } == {}
    not_calls = {"set_tid_address", "sched_getaffinity", "connect", "bind", "listen", "setsid"}
    assert {name for name in NOTIFY_CALLS if name not in SYSCALLS} <= not_calls
