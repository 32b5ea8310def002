"""Subcommands that speak to live watches: list, kill, suspend, resume, answer.

Each asks over a connection of its own with a time limit, so that one silent supervisor holds up nobody.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jupyter_agentwatch.audit.reader import list_logs
from jupyter_agentwatch.cli.output import remark, say, say_json
from jupyter_agentwatch.cli.words import killed_line
from jupyter_agentwatch.errors import AgentwatchError, ControlError, SessionEndedError
from jupyter_agentwatch.events import from_bytes, printable
from jupyter_agentwatch.wire.messages import Answer, Killed, Request, Resume, Suspend
from jupyter_agentwatch.wire.runtime import find_watch, live_watches, log_dir
from jupyter_agentwatch.wire.watches import kill_watch, tell_watch, watch_status

__all__ = ["answer", "kill", "list_watches", "resume", "suspend"]

_TITLES = ("ID", "STATE", "RUNG", "STEPS", "PROCESSES", "DENIED", "AGE", "WORKSPACE")
_NAME = "command line"
_AT_ONCE = 16


def list_watches(options: argparse.Namespace) -> int:
    """Show the live watches and, with `--all`, those that ended."""
    ids = live_watches()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(_described, ids))
    if options.all:
        found += _ended({row["watch"] for row in found if row["state"] != "gone"})
        found = [row for row in found if row["state"] != "gone"]
    if options.json:
        say_json(found)
    elif found:
        say(_table(found))
    else:
        say("no live watch" if not options.all else "no watch yet")
    return 0


def kill(options: argparse.Namespace) -> int:
    """Kill one watch or all; 0 only when nothing is left of them."""
    ids = _to_kill(options)
    if not ids:
        say("nothing to kill: no live watch")
        return 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        results = list(pool.map(lambda watch: _killed(watch, options.reason), ids))
    for watch, result in zip(ids, results, strict=True):
        if isinstance(result, SessionEndedError):
            say(f"{watch}: {printable(str(result), 2000)}")
        elif isinstance(result, AgentwatchError):
            remark(f"{watch}: {printable(str(result), 2000)}")
        else:
            note = f" ({printable(result.note, 2000)})" if result.note else ""
            say(f"{watch}: {killed_line(result)}{note}")
    for result in results:
        if isinstance(result, AgentwatchError) and not isinstance(result, SessionEndedError):
            return result.exit_code
    return 0 if all(result.survivors == 0 for result in results if isinstance(result, Killed)) else 1


def suspend(options: argparse.Namespace) -> int:
    """Suspend one watch."""
    return _tell(options.id, Suspend(by=_NAME), "suspended")


def resume(options: argparse.Namespace) -> int:
    """Resume one watch."""
    return _tell(options.id, Resume(by=_NAME), "resumed")


def answer(options: argparse.Namespace) -> int:
    """Answer a call that waits for a person."""
    allow = options.word == "allow"
    done = f"call {options.ask} {'allowed' if allow else 'denied'}"
    return _tell(options.id, Answer(ask=options.ask, allow=allow, by=_NAME), done)


def _tell(prefix: str, message: Request, done: str) -> int:
    watch = find_watch(prefix)
    tell_watch(watch, message, name=_NAME)
    say(f"{watch}: {done}")
    return 0


def _to_kill(options: argparse.Namespace) -> list[str]:
    if options.id is not None:
        return [find_watch(options.id)]
    ids = live_watches()
    if len(ids) > 1 and not options.all:
        msg = f"more than one watch is live: {', '.join(ids)}; name one, or give --all"
        raise ControlError(msg)
    return ids


def _killed(watch: str, reason: str) -> Killed | AgentwatchError:
    try:
        return kill_watch(watch, reason=reason, name=_NAME)
    except AgentwatchError as error:
        return error


def _described(watch: str) -> dict[str, Any]:
    try:
        status = watch_status(watch, name=_NAME)
    except SessionEndedError as error:
        return {"watch": watch, "state": "gone", "error": str(error)}
    except AgentwatchError as error:
        return {"watch": watch, "state": "silent", "error": str(error)}
    return {name: getattr(status, name) for name in status.__struct_fields__ if name != "id"}


def _ended(live: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "watch": info.watch,
            "state": "ended" if info.closed else "cut off",
            "rung": info.rung,
            "workspace": info.workspace,
            "log": from_bytes(bytes(info.path)),
            "started_wall_ns": info.opened_wall_ns,
            "elapsed_s": max(0.0, time.time() - info.opened_wall_ns / 1e9),
            "records": info.records,
            "error": info.problem,
        }
        for info in list_logs(log_dir())
        if info.watch not in live
    ]


def _table(found: Sequence[dict[str, Any]]) -> str:
    rows = [_TITLES, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    denied = sum(number for key, number in each.get("counts", {}).items() if key.endswith(":deny"))
    asks = f" ({len(each['asks'])} asking)" if each.get("asks") else ""
    return (
        printable(each["watch"]) or "?",
        printable(each["state"]) + asks,
        printable(each.get("rung", "-")),
        str(each.get("steps", "-")),
        str(each.get("processes", "-")),
        str(denied) if "counts" in each else "-",
        _age(each["elapsed_s"]) if "elapsed_s" in each else "-",
        printable(each.get("workspace", "") or each.get("error", ""), 2000),
    )


def _age(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole:02} s" if minutes else f"{whole} s"
