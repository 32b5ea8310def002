"""What the agent loop adds to a command, and how many steps a second runs in one watch make together."""

from __future__ import annotations

import time
from itertools import pairwise

from jupyter_agentwatch.agents import Observation, Outcome, Shell
from jupyter_agentwatch.watch import Watch
from tests.bench.ground import LONG_S, Ground, MeasureError
from tests.bench.table import Row, median, spread

__all__ = ["steps"]

_RUNS = (1, 4, 8)
_ROUNDS = 5


class _Same:
    """Chooses `true` for ever, in no time."""

    def act(self, _observation: Observation, /) -> Shell:
        return Shell(["true"])


def steps(ground: Ground) -> list[Row]:
    """Time whole turns of the loop beside bare commands, then runs side by side in one watch."""
    n, each = ground.n(300, 10), ground.n(150, 5)
    with ground.session() as watch:
        _turns(watch, 10)
        bare: list[float] = []
        turns: list[float] = []
        for _ in range(_ROUNDS):  # in turns, so that what else the machine does falls on both
            bare += [ground.timed(watch, ("true",)) * 1e3 for _ in range(n // _ROUNDS)]
            turns += [each * 1e3 for each in _turns(watch, n // _ROUNDS)]
        rates = {runs: _rate(watch, runs, each) for runs in _RUNS}
    shown = {f"{runs} runs": f"{rate:.0f} /s" for runs, rate in rates.items()}
    return [
        Row("steps.turn", median(turns), n, {"turn": spread(turns, "ms"), "bare command": spread(bare, "ms")}),
        Row("steps.above_command", median(turns) - median(bare), n),
        Row("steps.rate", max(rates.values()), each * sum(_RUNS), shown),
    ]


def _turns(watch: Watch, count: int) -> list[float]:
    """Return the seconds from one step's end to the next one's, in one run."""
    ends: list[float] = []
    run = watch.run_agent(_Same(), "true", max_steps=count + 1, on_step=lambda _step: ends.append(time.perf_counter()))
    _check(run.wait(LONG_S), run.reason)
    return [after - before for before, after in pairwise(ends)]


def _rate(watch: Watch, runs: int, count: int) -> float:
    begun = time.perf_counter()
    going = [watch.run_agent(_Same(), "true", max_steps=count) for _ in range(runs)]
    for run in going:
        _check(run.wait(LONG_S), run.reason)
    return runs * count / (time.perf_counter() - begun)


def _check(outcome: Outcome, reason: str) -> None:
    if outcome is not Outcome.MAX_STEPS:
        msg = f"a run ended with {outcome.value}: {reason}"
        raise MeasureError(msg)
