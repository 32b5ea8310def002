"""`python -m tests.escape`: run the corpus, print what came of it, and write the page with the table."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.escape.cases import GROUNDS
from tests.escape.table import grounds_here, markdown, run_ground


def main() -> int:
    """Return 1 where anything escaped."""
    parser = argparse.ArgumentParser(prog="python -m tests.escape", description=__doc__)
    parser.add_argument("--ground", action="append", choices=list(GROUNDS), help="only here (may be repeated)")
    parser.add_argument("--case", action="append", default=[], help="only this case, as 'program way'")
    parser.add_argument("--tries", type=int, default=20_000, help="how often each race is run (20,000)")
    parser.add_argument("--minutes", type=float, default=30.0, help="time limit of each ground (30)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    asked = parser.parse_args()
    results = {}
    for name in asked.ground or grounds_here():
        results[name] = run_ground(GROUNDS[name], tries=asked.tries, cases=asked.case, minutes=asked.minutes)
        for row in results[name]:
            count = f" ({row.tries} tries)" if row.tries else ""
            line = f"{name:<12} {row.outcome:<12} {row.seconds:7.2f} s  {row.name}{count} {row.detail}"
            print(line, flush=True)  # noqa: T201 -- it talks to a person
    if asked.write:
        system = os.uname()
        asked.write.write_text(markdown(results, machine=f"Linux {system.release} on {system.machine}"), "utf-8")
    return int(any(row.outcome == "escaped" for name in results if name != "bare" for row in results[name]))


if __name__ == "__main__":
    sys.exit(main())
