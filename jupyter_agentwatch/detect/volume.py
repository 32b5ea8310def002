"""Exfiltration as flows show it: how much leaves, where to, and what was gathered before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from jupyter_agentwatch.detect.bounded import Recent, Said
from jupyter_agentwatch.detect.endpoints import is_address, zone_of
from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.detect.sensitive import is_sensitive
from jupyter_agentwatch.detect.unwrap import invocations, program_name
from jupyter_agentwatch.events import AnyEvent, Exec, Flow

__all__ = ["VOLUME_RULES", "VolumeDetector"]

VOLUME: Final = Rule(
    id="exfiltration.volume",
    title="much more leaves than comes back",
    severity="medium",
    technique="T1041",
    rationale="From 100 MiB to one destination it is high; to a bare address a tenth of that.",
    false_positives=("publishing a model or a data set where a person asked for it",),
)
STAGED: Final = Rule(
    id="exfiltration.staged",
    title="secrets were gathered, and then data left",
    severity="high",
    technique="T1560.001",
    rationale="An archive of hidden or secret paths and an upload after it belong together.",
    false_positives=("a back-up to a place of one's own",),
)

_MIB: Final = 1 << 20
_MEDIUM: Final = 10 * _MIB
_HIGH: Final = 100 * _MIB
_RATIO: Final = 5
_STAGED: Final = 2048
_MEMORY_NS: Final = 3600 * 1_000_000_000

VOLUME_RULES: Final = (VOLUME, STAGED)
"""Every rule of this detector."""


class _Sum(msgspec.Struct):
    out: int = 0
    back: int = 0
    seqs: list[int] = msgspec.field(default_factory=list)


class VolumeDetector:
    """Adds up what flows have carried, for each destination over the whole watch, so that slow leaks add up too."""

    name = "volume"
    kinds = frozenset({"exec", "flow"})

    def __init__(self) -> None:
        self._said = Said()
        self._sums: Recent[str, _Sum] = Recent(_Sum)
        self._gathered: list[tuple[int, int, str]] = []

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings that this event completes; one of a severity for each destination."""
        if isinstance(event, Exec):
            self._notice(event)
            return ()
        if isinstance(event, Flow) and event.op == "closed" and zone_of(event.addr) != "loopback":
            return [*self._add(event), *self._after_gathering(event)]
        return ()

    def _notice(self, event: Exec) -> None:
        if event.basis != "claimed" or program_name(event.path) not in _ARCHIVERS:
            return
        for run in invocations(event.argv, path=event.path):
            words = [word for word in run.argv[1:] if not word.startswith("-") and is_sensitive(word)]
            if words:
                self._gathered = [*self._gathered[-15:], (event.t_mono_ns, event.seq, words[0])]

    def _add(self, event: Flow) -> Iterable[Draft]:
        where = event.server_name or event.host or event.addr
        total = self._sums[where]
        total.out += event.bytes_out
        total.back += event.bytes_in
        total.seqs = [*total.seqs[-15:], event.seq]
        if total.out < _RATIO * total.back:
            return
        scale = 10 if is_address(where) and zone_of(where) == "outside" else 1
        severity = "high" if total.out * scale >= _HIGH else "medium" if total.out * scale >= _MEDIUM else None
        if severity and self._said.first("volume", where, severity):
            detail = f"{total.out / _MIB:.0f} MiB to {where}"
            yield draft(
                VOLUME, event, detail, severity="high" if severity == "high" else None, evidence=tuple(total.seqs)
            )

    def _after_gathering(self, event: Flow) -> Iterable[Draft]:
        if event.bytes_out < _STAGED or event.bytes_out < event.bytes_in:
            return
        for t_ns, seq, path in self._gathered:
            if 0 <= event.t_mono_ns - t_ns < _MEMORY_NS and self._said.first("staged", seq):
                where = event.server_name or event.host or event.addr
                yield draft(STAGED, event, f"{path}, then {event.bytes_out} bytes to {where}", evidence=(seq,))


_ARCHIVERS: Final = frozenset(
    {"tar", "bsdtar", "gtar", "zip", "7z", "7za", "rar", "gpg", "cp", "rsync", "cat", "base64"}
)
