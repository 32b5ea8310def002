"""How long a kill of a thousand processes takes, and that nobody is left, as an observer outside sees both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import psutil

from jupyter_agentwatch import Watch
from jupyter_agentwatch.wire.client import ask
from jupyter_agentwatch.wire.messages import Kill, Killed
from jupyter_agentwatch.wire.runtime import control_socket
from tests.bench.ground import PYTHON, Ground, MeasureError, processes_in
from tests.bench.table import Row, spread

__all__ = ["kills"]

_CROWD = 1000


class _Kill(NamedTuple):
    outside_ms: float
    told_ms: float
    killed: int
    left: int


def kills(ground: Ground) -> list[Row]:
    """Kill crowds of both kinds, each in a session of its own."""
    n = ground.n(200, 5)
    # What is left of a session after its kill is closed while the next crowd comes together.
    with ThreadPoolExecutor(1) as closing:
        programs = [_one(ground, "programs", number, closing) for number in range(n)]
        interpreters = [_one(ground, "interpreters", number, closing) for number in range(n)]
    left = sum(kill.left for kill in (*programs, *interpreters))
    return [
        _row("kill.programs", programs),
        _row("kill.interpreters", interpreters),
        Row("kill.survivors", left, 2 * n),
    ]


def _row(name: str, taken: list[_Kill]) -> Row:
    outside = [kill.outside_ms for kill in taken]
    told = [kill.told_ms for kill in taken]
    beside = {
        "outside, from request to answer": spread(outside, "ms"),
        "the supervisor's own count": f"{spread(told, 'ms')}, at most {max(told):.3g} ms",
        "killed each": f"{min(kill.killed for kill in taken)} or more",
    }
    return Row(name, max(outside), len(taken), beside)


def _one(ground: Ground, kind: str, number: int, closing: Executor) -> _Kill:
    watch = ground.open(workspace=ground.stage(f"{kind}-{number}"))  # one workspace serves one watch at a time
    try:
        _await_crowd(watch, kind)
        count = _counter(watch)
        if count() <= _CROWD:
            msg = f"only {count()} processes inside"
            raise MeasureError(msg)
        begun = time.perf_counter()
        killed = ask(control_socket(watch.id), Kill(reason="bench", by="bench"), Killed, name="bench", timeout=30)
        outside_ms = (time.perf_counter() - begun) * 1000
        left = count()
    finally:
        closing.submit(watch.close)
    if left != killed.survivors:
        msg = f"{left} are left, but the supervisor said {killed.survivors}"
        raise MeasureError(msg)
    return _Kill(outside_ms, killed.latency_ms, killed.killed, left)


def _await_crowd(watch: Watch, kind: str) -> None:
    running = watch.start([PYTHON, "-I", "-S", "crowd.py", kind, str(_CROWD)])
    for _, piece in running:
        if b"ready" in piece:
            return
    msg = f"the crowd ended before it was ready: {running.wait().stderr[-200:]}"
    raise MeasureError(msg)


def _counter(watch: Watch) -> Callable[[], int]:
    """Return what counts who lives inside, from outside: by its PID namespace, or one by one where it has none."""
    own = os.stat("/proc/self/ns/pid").st_ino
    below = psutil.Process(watch.status().pid).children(recursive=True)
    found = {os.stat(f"/proc/{process.pid}/ns/pid").st_ino for process in below} - {own}
    if len(found) > 1:
        msg = f"{len(found)} PID namespaces below the supervisor"
        raise MeasureError(msg)
    if found:
        namespace = found.pop()
        return lambda: processes_in(namespace)
    return lambda: sum(_lives(process) for process in below)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
