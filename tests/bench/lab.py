"""How long the ROME lab takes: all of it from the record, and in the sandbox a part of it that is scaled up."""

from __future__ import annotations

from jupyter_agentwatch.agents.rome import FAST_SEEDS, PRICES, REAL_SEEDS, RecordedGround, SandboxGround, Training
from jupyter_agentwatch.agents.rome.model import HORIZON
from jupyter_agentwatch.agents.rome.study import run_study
from tests.bench.ground import Ground
from tests.bench.table import Row

__all__ = ["lab"]

_PART = 2
"""Seeds of the twenty that are run in the sandbox."""


def lab(ground: Ground) -> list[Row]:
    """Run the fast mode whole, and the real mode with a part of its seeds."""
    training = Training(iterations=1, batch=2, evaluation=1) if ground.quick else Training()
    seeds = REAL_SEEDS[: ground.n(_PART, 1)]
    fast = run_study(RecordedGround(), mode="fast", seeds=FAST_SEEDS, training=training, prices=PRICES)
    with SandboxGround(folder=ground.folder("lab")) as sandbox:
        real = run_study(sandbox, mode="real", seeds=seeds, training=training)
    whole = len(REAL_SEEDS) / len(seeds)
    rate = real.episodes * HORIZON / real.seconds
    return [
        Row("lab.fast", fast.seconds, fast.episodes),
        Row(
            "lab.real",
            real.seconds * whole,
            real.episodes,
            {"commands": f"{rate:.0f} /s"},
            note=f"{len(seeds)} of {len(REAL_SEEDS)} seeds, times {whole:g}",
        ),
    ]
