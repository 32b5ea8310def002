"""What the supervisor has on record of each step: counted from the log, which the sandbox can neither see nor write.

A reward is priced from these counts, never from what an agent says of itself.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jupyter_agentwatch.audit.reader import LogTail, kind_of
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, Finding, Flow, Gpu, Listen, Step

__all__ = ["Account", "Accounts"]

_BATCH: Final = 4096
_MOST_FINDINGS: Final = 256
_REFUSED: Final = frozenset({"connect:deny", "flow:deny", "dns:deny"})


@dataclass(slots=True)
class Account:
    """What is on record of one step, or of several together.

    Attributes:
        counts: Records by kind and verdict: "connect:deny".
        findings: What detectors found, at most 256.
        cpu_s: CPU time of commands that have ended, seconds.
        gpu_s: Seconds in which a GPU was busy for it.
        gpu_outside_s: The part of `gpu_s` that no lease covers.
        bytes_out: Bytes that its closed connections sent out.
        listens: Sockets that it made to listen.
    """

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    gpu_outside_s: float = 0.0
    bytes_out: int = 0
    listens: int = 0

    @property
    def egress_denied(self) -> int:
        """Connections, flows and names that were refused."""
        return sum(self.counts[each] for each in _REFUSED)

    @property
    def denied(self) -> int:
        """Records of any kind that say "deny"."""
        return sum(number for name, number in self.counts.items() if name.endswith(":deny"))

    def feed(self, event: AnyEvent) -> None:
        """Count one record."""
        self.counts[f"{kind_of(event)}:{event.verdict}"] += 1
        match event:
            case Finding() if len(self.findings) < _MOST_FINDINGS:
                self.findings.append(event)
            case Step(op="end"):
                self.cpu_s += event.cpu_user_s + event.cpu_system_s
            case Gpu(op="process"):
                self.gpu_s += event.gpu_seconds
                self.gpu_outside_s += event.outside_s
            case Flow(op="closed"):
                self.bytes_out += event.bytes_out
            case Listen(op="listen", verdict="allow"):
                self.listens += 1

    def add(self, other: Account) -> None:
        """Count what another one has counted."""
        self.counts.update(other.counts)
        self.findings += other.findings[: _MOST_FINDINGS - len(self.findings)]
        self.cpu_s += other.cpu_s
        self.gpu_s += other.gpu_s
        self.gpu_outside_s += other.gpu_outside_s
        self.bytes_out += other.bytes_out
        self.listens += other.listens


class Accounts:
    """What is new on record of each step, for any number of threads that each ask for their own steps.

    Args:
        log: Path of the audit log; counted from its beginning.
    """

    def __init__(self, log: Path) -> None:
        self._tail = LogTail(log)
        self._lock = threading.Lock()
        self._waiting: dict[int, Account] = {}

    def take(self, steps: Iterable[int]) -> Account:
        """Return what has come on record of some steps since the last call that named them.

        Where the log cannot be read, what had been read before is returned: the supervisor tells of the failure.
        """
        taken = Account()
        with self._lock:
            self._read()
            for step in steps:
                account = self._waiting.pop(step, None)
                if account is not None:
                    taken.add(account)
        return taken

    def _read(self) -> None:
        try:
            is_behind = True
            while is_behind:
                events = self._tail.read_new(_BATCH)
                is_behind = len(events) == _BATCH
                for event in events:
                    if event.step:
                        self._waiting.setdefault(event.step, Account()).feed(event)
        except LogError:
            return
