"""How long a session and a command take to begin, beside bubblewrap and sandbox-runtime."""

from __future__ import annotations

import time
from collections.abc import Callable

from jupyter_agentwatch.policy import Policy
from tests.bench.ground import Ground, MeasureError, alternate
from tests.bench.peers import FRESH_BWRAP, Srt
from tests.bench.table import Row, median, p99, spread

__all__ = ["session", "true"]

_TRUE = ("true",)


def session(ground: Ground) -> list[Row]:
    """Time the constructor, after one that is not counted."""
    n = ground.n(30, 5)
    times = []
    for _ in range(n + 1):
        begun = time.perf_counter()
        with ground.session(Policy()) as watch:
            times.append(time.perf_counter() - begun)
            ground.timed(watch, _TRUE)  # ready means: a command runs
    warm = [each * 1000 for each in times[1:]]
    return [Row("session.ready", median(warm), n, {"ours": spread(warm, "ms")})]


def true(ground: Ground) -> list[Row]:
    """Time `true` in turns with the peers, then on its own for the 99th percentile."""
    n, many = ground.n(41, 5), ground.n(1000, 50)
    with ground.session() as watch:
        ways: dict[str, Callable[[], float]] = {
            "ours": lambda: ground.timed(watch, _TRUE),
            "bwrap": lambda: ground.timed_native(FRESH_BWRAP),
            "text": lambda: ground.timed(watch, "true"),
        }
        try:
            with Srt(ground.folder("srt")) as srt:
                taken = alternate(n, ways | {"session": srt.run_in_session, "line": srt.run_by_command_line})
                why = ""
        except MeasureError as error:
            taken, why = alternate(n, ways), str(error)
        single = [ground.timed(watch, _TRUE) for _ in range(many)]
    ours = median(taken["ours"])
    shown = {name: spread(times, "ms", 1e3) for name, times in taken.items()}

    def against(figure: str, way: str, name: str) -> Row:
        if way not in taken:
            return Row(figure, None, note=why)
        return Row(figure, ours / median(taken[way]), n, {"ours": shown["ours"], name: shown[way]})

    return [
        Row("true.median", median(single) * 1e3, many, {"ours": spread(single, "ms", 1e3)}),
        Row("true.p99", p99(single) * 1e3, many, {"maximum": f"{max(single) * 1e3:.3g} ms"}),
        against("true.vs_bwrap", "bwrap", "bwrap"),
        against("true.vs_srt_session", "session", "srt"),
        against("true.vs_srt", "line", "srt"),
        Row("true.as_text", median(taken["text"]) * 1e3, n, {"ours": shown["text"]}),
    ]
