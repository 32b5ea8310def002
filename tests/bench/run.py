"""Starts the benchmark, see `make bench`: `python tests/bench/run.py [--quick] [--rung A|B] [--only NAME] [--soak]`."""

from __future__ import annotations

import sys
from pathlib import Path


def start() -> int:
    """Put the checkout in place of this folder on the module path, and begin."""
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from tests.bench.command import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
