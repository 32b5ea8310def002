"""The lab from a shell: `python -m jupyter_agentwatch.agents.rome fast|real|record`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from jupyter_agentwatch import __version__
from jupyter_agentwatch.agents.rome.model import SETTINGS
from jupyter_agentwatch.agents.rome.recorded import RecordedGround, record_outcomes
from jupyter_agentwatch.agents.rome.sandboxed import SandboxGround
from jupyter_agentwatch.agents.rome.study import FAST_SEEDS, PRICES, REAL_SEEDS, Study, run_study
from jupyter_agentwatch.errors import AgentwatchError


def main(arguments: list[str]) -> int:
    """Run one mode; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jupyter_agentwatch.agents.rome", description=__doc__)
    parser.add_argument(
        "mode", choices=("fast", "real", "record"), help="seconds; minutes; make the fast mode's record"
    )
    parser.add_argument(
        "--seeds", type=int, help=f"number of seeds (default: fast {len(FAST_SEEDS)}, real {len(REAL_SEEDS)}: all)"
    )
    parser.add_argument("--episodes", type=int, default=320, help="record: episodes of each setting")
    parser.add_argument("--lanes", type=int, default=2, help="real, record: episodes at once in each of three watches")
    parser.add_argument("--save", type=Path, help="file that the result is written to (record: needed)")
    asked = parser.parse_args(arguments)
    if asked.mode == "record" and asked.save is None:
        parser.error("record: say --save FILE")
    most = len(FAST_SEEDS if asked.mode == "fast" else REAL_SEEDS)
    if asked.seeds is not None and not 1 <= asked.seeds <= most:
        parser.error(f"--seeds: give 1 to {most}")
    try:
        return _run(asked)
    except AgentwatchError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def _run(asked: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"\r{time.monotonic() - began:6.1f} s  {text:<64}", end="", file=sys.stderr, flush=True)

    if asked.mode == "fast":
        study = run_study(RecordedGround(), mode="fast", seeds=FAST_SEEDS[: asked.seeds], prices=PRICES, progress=say)
    else:
        with SandboxGround(lanes=asked.lanes) as ground:
            if asked.mode == "record":
                rung = ground.watches(SETTINGS["watched"])[0].rung
                made = record_outcomes(
                    ground, SETTINGS.values(), episodes=asked.episodes, rung=rung, version=__version__
                )
                made.save(asked.save)
                return 0
            study = run_study(ground, mode="real", seeds=REAL_SEEDS[: asked.seeds], progress=say)
    print(file=sys.stderr)
    _show(study)
    if asked.save is not None:
        study.save(asked.save)
    return 0


def _show(study: Study) -> None:
    print(f"{study.mode} mode: {study.episodes} episodes, {len(study.seeds)} seeds, {study.seconds:.1f} s")
    print(study.table().to_string())
    print(study.agreement().to_string(index=False))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
