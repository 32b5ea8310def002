"""Many connects at once whose dials take their time, and whether the supervisor grows with what it has seen."""

from __future__ import annotations

import json
import time
from pathlib import Path

from jupyter_agentwatch import Watch
from tests.bench.ground import PYTHON, Ground, MeasureError
from tests.bench.network import allowing
from tests.bench.servers import server
from tests.bench.table import Row
from tests.servers import Slow

__all__ = ["memory", "parallel"]

_ADDRESS = "192.0.0.8"
_CONNECTS = 200
_DIAL_S = 0.5
_MIB = 1 << 20


def parallel(ground: Ground) -> list[Row]:
    """Begin 200 connects whose dials end half a second later; look how long the client's event loop stood still."""
    rounds = ground.n(5, 1)
    calls, turns = [], []
    for _ in range(rounds):
        with Slow() as slow, ground.session(allowing(slow.port)) as watch:
            argv = [PYTHON, "-I", "-S", "parallel.py", "parallel", _ADDRESS, str(slow.port), str(_CONNECTS)]
            running = watch.start(argv)
            said = b""
            for _, piece in running:
                said += piece
                if b"begun\n" in said:
                    break
            time.sleep(_DIAL_S)
            slow.free()
            done = running.wait()
        if not done.ok:
            msg = f"parallel.py ended with {done.outcome}: {done.stderr[-200:]}"
            raise MeasureError(msg)
        greeted, call, turn = json.loads(done.stdout.splitlines()[-1])
        if greeted != _CONNECTS:
            msg = f"only {greeted} of {_CONNECTS} were connected"
            raise MeasureError(msg)
        calls.append(call * 1e3)
        turns.append(turn * 1e3)
    note = f"{_CONNECTS} connects, one in each turn of the loop; the kernel repeats a SYN after 1 s, so dials take that"
    return [
        Row("parallel.turn", max(turns), rounds, {"of each round": _listed(turns)}, note),
        Row("parallel.call", max(calls), rounds, {"of each round": _listed(calls)}),
    ]


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.1f} ms" for value in values)


def memory(ground: Ground) -> list[Row]:
    """Look at the supervisor's memory after a tenth of all connections or events, and after all of them."""
    connects, opens = ground.n(10_000, 500), ground.n(1_000_000, 20_000)
    with server("http") as port, ground.session(allowing(port)) as watch:
        made = (PYTHON, "-I", "-S", "net.py", "connects", "host.loopback", str(port))
        connected = _growth(ground, watch, made, connects)
    with ground.session() as watch:
        opened = _growth(ground, watch, (PYTHON, "-I", "-S", "opens.py", "same"), opens)
    return [
        Row("memory.connections", connected, connects),
        Row("memory.events", opened, opens, note="write-opens of one file"),
    ]


def _growth(ground: Ground, watch: Watch, argv: tuple[str, ...], count: int) -> float:
    """Return by how many MiB the supervisor has grown between a tenth of the work and all of it."""
    pieces = 10
    after_first = 0.0
    for number in range(pieces):
        ground.answer(watch, (*argv, str(count // pieces)))
        if number == 0:
            after_first = _resident(watch)
    return _resident(watch) - after_first


def _resident(watch: Watch) -> float:
    pid = watch.status().pid
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / _MIB for line in lines if line.startswith("VmRSS:"))
