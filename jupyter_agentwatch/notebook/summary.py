"""What a cell shows after a command: a few lines of plain text, counted from the audit log, never HTML."""

from __future__ import annotations

from collections.abc import Iterable

from jupyter_agentwatch.cli.tally import Destination, Tally, tally
from jupyter_agentwatch.cli.words import count, counts_text
from jupyter_agentwatch.events import AnyEvent, printable
from jupyter_agentwatch.watch import CommandResult

__all__ = ["ending", "summary"]

_DESTINATIONS = 8
_FILES = 5
_FINDINGS = 8


def summary(result: CommandResult, events: Iterable[AnyEvent], log: str, *, interrupted: bool = False) -> str:
    """Return what a step did, as text that is safe to show.

    Args:
        result: How the command ended.
        events: The step's records.
        log: Path of the audit log.
        interrupted: A person pressed ■.
    """
    counts = tally(events)
    lines = [
        f"step {result.step}: {ending(result)}{', interrupted' if interrupted else ''}, {result.duration_s:.2f} s",
        counts_text(counts),
        *(_destination(each) for each in counts.destinations[:_DESTINATIONS]),
        *_more(len(counts.destinations) - _DESTINATIONS, "destination"),
        *_files(counts),
        *(f"  finding: {each.severity}: {printable(each.title)}" for each in counts.findings[:_FINDINGS]),
        *_more(len(counts.findings) - _FINDINGS, "finding"),
        *(f"  limit reached: {printable(limit)}" for limit in counts.limits),
        *_cut(result),
        f"log {printable(log, 4096)}",
        f"head {printable(result.head)}",
    ]
    return "\n".join(lines)


def ending(result: CommandResult) -> str:
    """Return how a command ended, as "exit 1", "signal 9 (timeout)" or "not-found"."""
    if result.outcome == "exited":
        return f"exit {result.exit_code}"
    if result.outcome == "signalled":
        return f"signal {result.signal}"
    number = f"signal {result.signal} " if result.signal is not None else ""
    return f"{number}({printable(result.outcome)})" if number else printable(result.outcome)


def _destination(each: Destination) -> str:
    times = f" ×{each.count}" if each.count > 1 else ""  # noqa: RUF001 -- the sign for "times"
    verdict = "allowed" if each.verdict == "allow" else "denied"
    return f"  {verdict:<7} {printable(each.where)} [{printable(each.reason)}]{times}"


def _files(counts: Tally) -> list[str]:
    shown = [f"  wrote {printable(path)}" for path in counts.files[:_FILES]]
    return shown + _more(len(counts.files) - _FILES, "file")


def _more(number: int, noun: str) -> list[str]:
    return [f"  … and {count(number, noun)} more"] if number > 0 else []


def _cut(result: CommandResult) -> list[str]:
    cut = [("stdout", result.stdout_truncated, result.stdout_total)]
    cut.append(("stderr", result.stderr_truncated, result.stderr_total))
    return [f"  {name} was cut: {total} bytes were written" for name, truncated, total in cut if truncated]
