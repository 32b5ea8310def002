"""How fast the breaker stands everything still, seen from inside, and that no byte of a pool login leaves.

Nothing here mines: the miner is a copy of `true`, the pool a server on loopback that counts what it gets.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from jupyter_agentwatch import Watch
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.events import BreakerChanged, Exec
from tests.bench.ground import PYTHON, Ground, MeasureError
from tests.bench.network import allowing
from tests.bench.table import Row, median, p99, spread
from tests.servers import Server, read_all

__all__ = ["freezes"]

_T = TypeVar("_T")
_LONG_S: Final = 30.0
_TICKING: Final = 4
_WALLET: Final = "4" + "A" * 94
_MINER: Final = ["./worker", "-o", "stratum+tcp://pool.example:3333", "-u", _WALLET, "--donate-level", "1"]
_LOGINS: Final = {
    "monero": f'{{"id":1,"jsonrpc":"2.0","method":"login","params":{{"login":"{_WALLET}","pass":"x","agent":"a"}}}}',
    "bitcoin": '{"id":1,"method":"mining.subscribe","params":["a/1"]}',
    "ethereum": '{"id":1,"method":"eth_submitLogin","params":["0x52908400098527886E0F7030069857D2E4169EE7"]}',
    "zcash": '{"id":1,"method":"mining.authorize","params":["t1","x"]}',
}


def freezes(ground: Ground) -> list[Row]:
    """Freeze a sandbox full of busy processes again and again, then let pool logins try to leave."""
    with ground.session() as watch:
        whole, alive = _frozen_again(watch, ground.n(120, 6))
    note = (
        f"until the supervisor has recorded that all stands still, or the last time that one of {_TICKING} busy "
        "processes inside wrote the time, where that is later"
    )
    beside = {"last sign of life inside": f"{spread(alive, 'ms')}, at most {max(alive):.3g} ms"}
    return [
        Row("freeze.p50", median(whole), len(whole), {"spread": spread(whole, "ms")}, note),
        Row("freeze.p99", p99(whole), len(whole), beside),
        _logins(ground),
    ]


def _frozen_again(watch: Watch, count: int) -> tuple[list[float], list[float]]:
    """Return when after an attack's claim standing still was recorded or disproved, and the last sign of life."""
    shutil.copy(shutil.which("true") or "/bin/true", watch.workspace / "worker")
    ticking = watch.start([PYTHON, "-I", "-S", "ticks.py", str(_TICKING)])
    for _, piece in ticking:
        if b"ready" in piece:
            break
    alive, whole = [], []
    for number in range(count):
        running = watch.start(f"{' '.join(_MINER)}; true")
        _wait(lambda: watch.status().state == "frozen")
        trip = _wait(partial(_trip, watch, number))
        claim = next(each for each in read_events(watch.log, kinds={"exec"}) if _is_attack(each, running.step))
        last = max(int(path.read_bytes()[:20] or b"0") for path in watch.workspace.glob("tick-*"))
        alive.append((last - claim.t_mono_ns) / 1e6)
        whole.append((max(last, trip.t_mono_ns) - claim.t_mono_ns) / 1e6)
        watch.resume()
        running.wait(_LONG_S)
    return whole, alive


def _is_attack(each: object, step: int) -> bool:
    return isinstance(each, Exec) and each.step == step and each.basis == "claimed" and each.argv[:1] == _MINER[:1]


def _trip(watch: Watch, before: int) -> BreakerChanged | None:
    trips = [
        e for e in read_events(watch.log, kinds={"breaker"}) if isinstance(e, BreakerChanged) and e.after == "frozen"
    ]
    return trips[before] if len(trips) > before else None


def _wait(look: Callable[[], _T | None]) -> _T:
    deadline = time.monotonic() + _LONG_S
    while not (found := look()):
        if time.monotonic() > deadline:
            msg = "the watch was not frozen"
            raise MeasureError(msg)
    return found


def _logins(ground: Ground) -> Row:
    count = ground.n(10, 1)
    reached = 0
    for login in _LOGINS.values():
        with Server(read_all) as pool, ground.session(allowing(pool.port)) as watch:
            for _ in range(count):
                running = watch.start([PYTHON, "-I", "-S", "login.py", str(pool.port), login])
                _wait(lambda: watch.status().state == "frozen")
                watch.resume()
                running.wait(_LONG_S)
            reached += sum(map(len, pool.wait_said(count)))
    note = (
        f"dialects: {', '.join(_LOGINS)}; to a host and port that the policy allows, connected again after each freeze"
    )
    return Row("freeze.pool_bytes", reached, count * len(_LOGINS), {}, note)
