"""Records of connections, look-ups, flows and programs, built in order for detectors that follow them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jupyter_agentwatch.detect.own import own_detectors
from jupyter_agentwatch.testing.builders import event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jupyter_agentwatch.detect import Draft
    from jupyter_agentwatch.events import AnyEvent

__all__ = ["OUT", "SECOND", "claimed", "connects", "dns", "feed", "flow", "long_label", "ran", "run"]

SECOND = 1_000_000_000
OUT = "203.0.113.5"


def feed(events: Iterable[AnyEvent]) -> list[Draft]:
    """Show events to fresh detectors and return everything that they say."""
    detectors = own_detectors()
    found: list[Draft] = []
    for each in events:
        kind = type(each).__struct_config__.tag
        found += [draft for detector in detectors if kind in detector.kinds for draft in detector.feed(each)]
    return found


def run(*records: tuple[str, dict[str, Any]], apart_s: float = 1.0) -> list[AnyEvent]:
    """Build events in order, each some seconds after the one before."""
    return [
        event(kind, **{"seq": n, "t_mono_ns": round(n * apart_s * SECOND), "step": 1, "pid": 9, **fields})
        for n, (kind, fields) in enumerate(records)
    ]


def connects(addrs: Iterable[str], *, port: int = 443, **fields: Any) -> list[AnyEvent]:
    """Build a connection to each address."""
    return run(*(("connect", {"addr": addr, "port": port, **fields}) for addr in addrs))


def flow(**fields: Any) -> tuple[str, dict[str, Any]]:
    """Describe a flow to an outside address."""
    return "flow", {"op": "named", "addr": OUT, "port": 443, **fields}


def dns(name: str, qtype: str = "A", rcode: str = "NOERROR") -> tuple[str, dict[str, Any]]:
    """Describe a look-up."""
    return "dns", {"qname": name, "qtype": qtype, "rcode": rcode}


def claimed(path: str, *argv: str, pid: int = 9) -> tuple[str, dict[str, Any]]:
    """Describe the claim of an exec."""
    return "exec", {"basis": "claimed", "path": path, "argv": list(argv), "pid": pid}


def ran(exe: str, *, pid: int = 9, ppid: int = 0, claim: int = -1) -> tuple[str, dict[str, Any]]:
    """Describe what an exec has come to."""
    return "exec", {"basis": "post", "exe": exe, "pid": pid, "ppid": ppid, "claim_seq": claim}


def long_label(n: int) -> str:
    """Return a label of 36 characters without any word, another for each number."""
    return "".join("abcdefghijklmnopqrstuvwxyz234567"[(n * 7 + i * i * 5 + i) % 32] for i in range(36))
