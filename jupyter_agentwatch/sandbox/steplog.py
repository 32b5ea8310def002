"""What one step's first touches of paths found, and what follows from that for all paths around them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jupyter_agentwatch.sandbox.preimage import ABSENT, Image

__all__ = ["Entry", "StepLog", "above", "known", "later_steps", "next_image"]


@dataclass(slots=True)
class Entry:
    """What a step's first touch of a path kept; moments count all touches of the watch.

    `below` is None until the tree below a directory was kept, then "" or why it is incomplete. `timed`: the step set
    its times by a call for that.
    """

    first: int
    last: int
    image: Image
    below: str | None = None
    timed: bool = False


StepLog = dict[bytes, Entry]
"""Path relative to the workspace → entry. The empty path is there only where the log itself is incomplete."""


def known(log: StepLog, rel: bytes) -> tuple[Entry, Image] | None:
    """Return what a step's log says of a path: by its own entry, or by that of a directory above which settles it.

    Args:
        log: The step's log.
        rel: Path relative to the workspace.

    Returns:
        The deciding entry and what the path was at the step's first touch; None if the log says nothing of it.
    """
    entry = log.get(rel)
    if entry is not None:
        return entry, entry.image
    end = len(rel)
    while end > 0:
        end = max(rel.rfind(b"/", 0, end), 0)
        entry = log.get(rel[:end])
        if entry is None:
            continue
        if entry.image.kind == "unknown":
            return entry, entry.image
        if entry.image.kind != "directory":
            return entry, ABSENT
        if entry.below is not None:
            return entry, Image("unknown", lost=entry.below) if entry.below else ABSENT
    return None


def next_image(logs: Iterable[StepLog], rel: bytes, moment: int) -> Image | None:
    """Return what the first touch after `moment` found, over the logs of other steps; None if there was none."""
    pairs = (known(log, rel) for log in logs)
    after = [pair for pair in pairs if pair is not None and pair[0].first > moment]
    return min(after, key=lambda pair: pair[0].first)[1] if after else None


def later_steps(logs: Mapping[int, StepLog], rel: bytes, moment: int) -> list[int]:
    """Return the steps that touched a path, or something above that decides about it, after `moment`."""
    return sorted(number for number, log in logs.items() if _last_touch(log, rel) > moment)


def _last_touch(log: StepLog, rel: bytes) -> int:
    own = log.get(rel)
    folders = (log.get(folder) for folder in above(rel))
    deciding = (e.last for e in folders if e is not None and (e.image.kind != "directory" or e.below is not None))
    return max(own.last if own is not None else -1, max(deciding, default=-1))


def above(rel: bytes) -> Iterator[bytes]:
    """Yield the directories above a path, nearest first; the last is the workspace, as the empty path."""
    end = len(rel)
    while end > 0:
        end = max(rel.rfind(b"/", 0, end), 0)
        yield rel[:end]
