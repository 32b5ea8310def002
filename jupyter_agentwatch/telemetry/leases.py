"""When the use of a GPU is expected, and which use was not. Pure: all times are passed in."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from jupyter_agentwatch.telemetry.model import Attribution
from jupyter_agentwatch.telemetry.usage import Use

__all__ = ["GRACE_NS", "Lease", "LeaseBook", "LeaseError", "Outside"]

GRACE_NS: Final = 1_000_000_000
"""How long after its end a lease still covers use: NVML's measurements look back by up to a second."""

_MAX_LEASES: Final = 10_000
_MAX_TEXT: Final = 200
_OVER_NS: Final = 60_000_000_000


class LeaseError(ValueError):
    """A lease cannot be made or ended; the text says why."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody said that a device is going to be used.

    Attributes:
        id: Number in the book, from 1.
        device: UUID of a GPU or MIG device; a GPU's covers its MIG devices.
        purpose: What for, in a person's words.
        start_ns: From when on, Unix time in nanoseconds.
        end_ns: Until when; None while it is open.
        step: The step that it is for; 0 for all.
    """

    id: int
    device: str
    purpose: str
    start_ns: int
    end_ns: int | None = None
    step: int = 0


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """Use of a device that no lease covers.

    Attributes:
        use: What was used.
        gpu_seconds: The part of it that is outside.
        attribution: How surely it is the sandbox's; "none" is a use that may be anybody's.
    """

    use: Use
    gpu_seconds: float
    attribution: Attribution


class LeaseBook:
    """All leases of one watch."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._current: set[int] = set()
        self._next = 1

    def lease(self, device: str, purpose: str, start_ns: int, end_ns: int | None = None, *, step: int = 0) -> Lease:
        """Enter a lease.

        Args:
            device: UUID of a GPU or MIG device.
            purpose: What for, 1 to 200 characters.
            start_ns: From when on, Unix time in nanoseconds.
            end_ns: Until when; None: until `release`.
            step: The step that it is for; 0 for all.

        Raises:
            LeaseError: A value is out of range, or there are 10,000 leases.
        """
        if not device or len(device) > _MAX_TEXT:
            msg = f"lease: device: must have 1 to {_MAX_TEXT} characters: the UUID of a GPU"
            raise LeaseError(msg)
        if not purpose or len(purpose) > _MAX_TEXT:
            msg = f"lease: purpose: must have 1 to {_MAX_TEXT} characters; say what the GPU is used for"
            raise LeaseError(msg)
        if end_ns is not None and end_ns < start_ns:
            msg = "lease: to: lies before from"
            raise LeaseError(msg)
        if len(self._leases) >= _MAX_LEASES:
            msg = f"lease: there are {_MAX_LEASES} leases already; release one per phase of work, not one per call"
            raise LeaseError(msg)
        made = Lease(id=self._next, device=device, purpose=purpose, start_ns=start_ns, end_ns=end_ns, step=step)
        self._leases[made.id] = made
        self._current.add(made.id)
        self._next += 1
        return made

    def release(self, lease_id: int, end_ns: int) -> Lease:
        """End an open lease and return it as it is now; one that has ended stays as it is.

        Raises:
            LeaseError: There is no such lease.
        """
        known = self._leases.get(lease_id)
        if known is None:
            msg = f"lease: there is no lease {lease_id}"
            raise LeaseError(msg)
        if known.end_ns is None or known.end_ns > end_ns:
            known = msgspec.structs.replace(known, end_ns=max(end_ns, known.start_ns))
            self._leases[lease_id] = known
        return known

    def leases(self) -> list[Lease]:
        """Return all leases in the order in which they were entered."""
        return list(self._leases.values())

    def covered(self, device: str, at_ns: int, *, step: int = 0, parent: str = "") -> list[Lease]:
        """Return the leases that cover a device at a moment, without grace."""
        return [
            lease
            for lease in _fitting(self.leases(), {device, parent}, step)
            if lease.start_ns <= at_ns and (lease.end_ns is None or at_ns < lease.end_ns)
        ]

    def judge(self, use: Use) -> Outside | None:
        """Say which part of a use no lease covers; None where there is no such part or it is not the sandbox's.

        A use whose process is unknown is judged, too, and keeps its attribution: whose it was cannot be known. A lease
        for one step covers uses of that step, and uses whose step is not known.
        """
        if use.member is False or use.gpu_seconds <= 0 or use.end_ns <= use.start_ns:
            return None
        self._retire(use.start_ns)
        spans = [
            (lease.start_ns, use.end_ns if lease.end_ns is None else lease.end_ns + GRACE_NS)
            for lease in _fitting([self._leases[i] for i in self._current], {use.uuid, use.parent_uuid}, use.step)
        ]
        open_ns = use.end_ns - use.start_ns - _covered_ns(spans, use.start_ns, use.end_ns)
        if open_ns <= 0:
            return None
        part = use.gpu_seconds * open_ns / (use.end_ns - use.start_ns)
        return Outside(use=use, gpu_seconds=part, attribution=use.attribution)

    def _retire(self, now_ns: int) -> None:
        """Leave out, from now on, what ended long ago: each use is judged, and the book only grows."""
        ends = ((number, self._leases[number].end_ns) for number in self._current)
        self._current -= {number for number, end in ends if end is not None and end < now_ns - _OVER_NS}


def _fitting(leases: Iterable[Lease], devices: Collection[str], step: int) -> list[Lease]:
    return [lease for lease in leases if lease.device in devices and (not lease.step or not step or lease.step == step)]


def _covered_ns(spans: list[tuple[int, int]], start_ns: int, end_ns: int) -> int:
    """Return how much of an interval the union of the spans covers."""
    covered, reached = 0, start_ns
    for begin, end in sorted(spans):
        begin, end = max(begin, reached), min(end, end_ns)  # noqa: PLW2901 - cut to what is still open
        if end > begin:
            covered += end - begin
            reached = end
    return covered
