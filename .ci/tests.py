"""Runs the tests in two processes, and those of a few that failed once more, alone and one after the other.

Many tests let real threads and processes race, and now and then the scheduler of a loaded machine shows one of them
what its author did not think of. Such a test is named at the end of the run, so that it gets mended, but does not stop
a change. What fails twice, an error before or after a test (a process left behind, say), and many failures do.

Arguments are given to pytest: `.ci/tests.py tests/test_cli.py`.
"""

# ruff: noqa: INP001, T201 -- a program, which answers on standard output

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FEW = 5


def pytest(*arguments: str) -> tuple[int, list[str], list[str]]:
    """Run pytest; return its exit code, the tests whose call failed, and what else failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "failed.json")
        command = [sys.executable, "-m", "pytest", "-m", "not browser", f"--failed-to={report}", *arguments]
        code = subprocess.run(command, check=False).returncode
        told = json.loads(report.read_text()) if report.exists() else {"calls": [], "others": ["pytest itself"]}
    return code, told["calls"], told["others"]


def main() -> int:
    """Return pytest's exit code of the first run, or of the second where there was reason for one."""
    code, failed, others = pytest("-n", "2", "--dist", "loadfile", *sys.argv[1:])
    if code != 1 or others or not 0 < len(failed) <= FEW:
        return code
    print(f"\n{len(failed)} failed; once more, alone: {' '.join(failed)}", flush=True)
    code, failed_again, _ = pytest(*failed)
    for name in failed:
        print(f"UNSTEADY, failed {'twice' if name in failed_again else 'once of two runs'}: {name}")
    return code


if __name__ == "__main__":
    sys.exit(main())
