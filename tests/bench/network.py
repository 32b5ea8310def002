"""What an allowed connection costs: the connect itself, a small exchange, and a long transfer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from jupyter_agentwatch import Watch
from jupyter_agentwatch.policy import Network, NetworkRule, Policy
from tests.bench.ground import PYTHON, Ground, alternate
from tests.bench.servers import server
from tests.bench.table import Row, median, p99, spread

__all__ = ["allowing", "connects", "transfers"]

_PROGRAM = (PYTHON, "-I", "-S", "net.py")
_NAME, _ADDRESS = "host.loopback", "127.0.0.1"


def connects(ground: Ground) -> list[Row]:
    """Connect to an HTTP server by turns of 100, natively and by the gateway; pool the single connects."""
    rounds, each = ground.n(15, 2), ground.n(100, 20)
    connected: dict[str, list[float]] = {"native": [], "ours": []}
    answered: dict[str, list[float]] = {"native": [], "ours": []}

    def keep(way: str, text: str) -> float:
        connect, both = json.loads(text)
        connected[way] += connect
        answered[way] += both
        return 0.0

    with server("http") as port, ground.session(allowing(port)) as watch:
        argv = (*_PROGRAM, "connects")
        ways: dict[str, Callable[[], float]] = {
            "native": lambda: keep("native", ground.answer_native((*argv, _ADDRESS, str(port), str(each)))),
            "ours": lambda: keep("ours", ground.answer(watch, (*argv, _NAME, str(port), str(each)))),
        }
        alternate(rounds, ways)
    for taken in (*connected.values(), *answered.values()):
        del taken[:each]  # the round that does not count
    n = len(connected["ours"])
    shown = {way: spread(times, "µs", 1e6) for way, times in connected.items()}
    slow = {way: f"{p99(times) * 1e6:.0f} µs" for way, times in connected.items()}
    both = {way: spread(times, "µs", 1e6) for way, times in answered.items()}
    return [
        Row("connect.above_native", _above(connected, median), n, shown),
        Row("connect.p99", _above(connected, p99), n, slow),
        Row("connect.request", _above(answered, median), n, both),
    ]


def _above(taken: dict[str, list[float]], statistic: Callable[[list[float]], float]) -> float:
    return (statistic(taken["ours"]) - statistic(taken["native"])) * 1e6


def transfers(ground: Ground) -> list[Row]:
    """Move a GiB in each direction."""
    size = ground.n(1 << 30, 1 << 28)
    rows = []
    for name, kind in (("in", "source"), ("out", "sink")):
        with server(kind, size) as port, ground.session(allowing(port)) as watch:
            n = ground.n(15, 2)
            taken = alternate(n, _ways(ground, watch, name, port, size))
        shown = {way: spread([size / each / 2**30 for each in times], "GiB/s") for way, times in taken.items()}
        rows.append(Row(f"transfer.{name}", median(taken["native"]) / median(taken["ours"]), n, shown))
    return rows


def _ways(ground: Ground, watch: Watch, mode: str, port: int, size: int) -> dict[str, Callable[[], float]]:
    native = (*_PROGRAM, mode, _ADDRESS, str(port), str(size))
    ours = (*_PROGRAM, mode, _NAME, str(port), str(size))
    return {
        "native": partial(_seconds, partial(ground.answer_native, native)),
        "ours": partial(_seconds, partial(ground.answer, watch, ours)),
    }


def _seconds(answer: Callable[[], str]) -> float:
    return float(json.loads(answer()))


def allowing(port: int) -> Policy:
    """Return a policy with one rule: this port of the machine's loopback."""
    return Policy(network=Network(rules=[NetworkRule(host=_NAME, ports=[port])]))
