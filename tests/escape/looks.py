"""What the runner looks at besides the witness: the record, the outcome, the count of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from jupyter_agentwatch.events import Exec, Finding
from tests.outside import recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from jupyter_agentwatch import Watch
    from jupyter_agentwatch.watch import CommandResult

__all__ = ["LOOKS"]

_BESIDES: Final = 8
"""Processes below the supervisor that are not a command's: bubblewrap, init, and what has just ended."""


def few_processes(watch: Watch, result: CommandResult, said: dict[str, Any]) -> list[str]:
    """The bound on processes is held, counted from outside."""
    there = len(psutil.Process(watch.status().pid).children(recursive=True))
    bound = (watch.policy.limits.processes or 0) + _BESIDES
    return [f"{there} processes"] if there > bound else []


def nameless_is_recorded(watch: Watch, result: CommandResult, said: dict[str, Any]) -> list[str]:
    """The true program is on record."""
    names = [event.exe for event in recorded(watch, Exec, result.step) if event.basis == "post"]
    return [] if any("memfd:nameless" in name for name in names) else [f"not on record: {names[-3:]}"]


def loader_is_recorded(watch: Watch, result: CommandResult, said: dict[str, Any]) -> list[str]:
    """The loader, and what it was told to run, is on record."""
    if said.get("na"):
        return []
    lines = [" ".join(event.argv) for event in recorded(watch, Exec, result.step)]
    return [] if any("./no-x cat" in line for line in lines) else ["the loader is not on record"]


def truths_are_recorded(watch: Watch, result: CommandResult, said: dict[str, Any]) -> list[str]:
    """Each exec has the program that really ran on record, and each difference from its claim is a finding."""
    events = recorded(watch, Exec, result.step)
    claims = {event.seq: Path(event.path).name for event in events if event.basis == "claimed"}
    truths = [event for event in events if event.basis == "post" and "/prog-" in event.exe]
    ran = "".join(Path(event.exe).name[-1] for event in truths)
    wrong = [event for event in truths if event.mismatch != (claims.get(event.claim_seq) != Path(event.exe).name)]
    flagged = sum(event.rule == "agentwatch.exec_mismatch" for event in recorded(watch, Finding, result.step))
    mismatches = sum(event.mismatch for event in truths)
    found = [] if ran == said.get("ran") else ["another program is on record than ran"]
    found += [f"{len(wrong)} wrong marks"] if wrong else []
    return found + ([f"{mismatches} mismatches, {flagged} findings"] if flagged != mismatches else [])


def memory_is_bounded(watch: Watch, result: CommandResult, said: dict[str, Any]) -> list[str]:
    """The command was ended, or could not have more."""
    text = json.dumps(said)
    return [] if result.outcome == "limit:memory_bytes" or not result.ok else [f"{result.outcome}: {text}"]


def output_is_bounded(watch: Watch, result: CommandResult, said: dict[str, Any]) -> list[str]:
    """No more is kept than the policy says."""
    kept = len(result.stdout_bytes)
    return [] if kept <= watch.policy.limits.output_bytes else [f"{kept} bytes kept"]


LOOKS: Final[dict[str, Callable[[Watch, CommandResult, dict[str, Any]], list[str]]]] = {
    each.__name__: each
    for each in (
        few_processes,
        nameless_is_recorded,
        loader_is_recorded,
        truths_are_recorded,
        memory_is_bounded,
        output_is_bounded,
    )
}
"""By the names that cases use."""
