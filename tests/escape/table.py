"""Runs the corpus on several grounds, each in a process of its own, and writes the table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.docker_like import NOBODY, ROOT, command
from tests.escape.cases import CASES, GROUNDS, Ground
from tests.escape.runner import Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["grounds_here", "markdown", "run_ground"]

_CONTROL: Final = "bare"
_MINUTES: Final = 60.0


def grounds_here() -> list[str]:
    """Return the grounds that can be had: all of them where we are root, else those of an ordinary user."""
    return [name for name, ground in GROUNDS.items() if os.geteuid() == 0 or ground.is_user]


def run_ground(ground: Ground, *, tries: int, cases: Sequence[str] = (), minutes: float = 10.0) -> list[Row]:
    """Run the corpus on a ground, and return its rows.

    Args:
        ground: Where.
        tries: How often each race is run.
        cases: Names of the cases to run; none: all.
        minutes: A run that takes longer is an error.

    Raises:
        RuntimeError: The run did not come to its end.
    """
    is_root = os.geteuid() == 0
    uid = NOBODY if is_root and ground.is_user else None
    base = Path(tempfile.mkdtemp(prefix="esc-", dir="/tmp"))
    try:
        for name in ("home", "run", "log"):
            (base / name).mkdir(mode=0o700)
        rows = base / "rows"
        rows.touch()
        if uid is not None:
            for path in (base, *base.iterdir()):
                os.chown(path, uid, uid)
        asked = {"base": str(base), "asked": ground.asked, "rung": ground.rung, "cases": list(cases), "tries": tries}
        asked |= {"names": is_root, "rows": str(rows)}
        argv = [sys.executable, "-m", "tests.escape.runner", json.dumps(asked)]
        environment = os.environ | {
            "HOME": str(base / "home"),
            "AGENTWATCH_RUNTIME_DIR": str(base / "run"),
            "AGENTWATCH_LOG_DIR": str(base / "log"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        line = command(argv, uid=uid, docker=ground.is_docker, name_server=is_root)
        done = subprocess.run(
            line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=minutes * _MINUTES, check=False
        )
        found = [Row(**json.loads(each)) for each in rows.read_text("utf-8").splitlines()]
        if done.returncode != 0:
            reached = f"after {found[-1].name!r}" if found else "before the first case"
            msg = f"{ground.title}: the run ended with {done.returncode} {reached}: {done.stderr[-4000:]}"
            raise RuntimeError(msg)
        return found
    finally:
        shutil.rmtree(base, ignore_errors=True)


def markdown(results: Mapping[str, Sequence[Row]], *, machine: str) -> str:
    """Return the page: the table, what is open, and why.

    Args:
        results: Rows of each ground, by its name.
        machine: What it was run on.
    """
    by_name = {ground: {row.name: row for row in rows} for ground, rows in results.items()}
    titles = [GROUNDS[ground].title for ground in results]
    lines = [_HEAD.format(count=len(CASES), machine=machine), f"| what is tried | {' | '.join(titles)} |"]
    lines.append("|---" * (len(titles) + 1) + "|")
    for case in CASES:
        cells = [_cell(by_name[ground].get(case.name), ground) for ground in results]
        lines.append(f"| {case.title} | {' | '.join(cells)} |")
    totals = []
    for ground in results:
        if ground == _CONTROL:
            totals.append("")
            continue
        outcomes = [row.outcome for row in by_name[ground].values()]
        totals.append(", ".join(f"{outcomes.count(each)} {each}" for each in _OUTCOMES if each in outcomes))
    lines.append(f"| **together** | {' | '.join(totals)} |")
    lines += ["", "## Open, and why", ""]
    for case in CASES:
        for rung, why in case.open_on.items():
            lines.append(f"* {case.title}, rung {rung}: {why}.")
    escaped = [
        f"* {case.title}, {GROUNDS[ground].title}: {row.detail}"
        for case in CASES
        for ground in results
        if ground != _CONTROL
        if (row := by_name[ground].get(case.name)) is not None and row.outcome == "escaped"
    ]
    lines += ["", "## Escaped", "", *(escaped or ["Nothing."]), ""]
    return "\n".join(lines)


_OUTCOMES: Final = ("held", "open", "escaped", "not runnable")

_HEAD: Final = """# The escape corpus

Each row is a real program that runs inside and tries to get out; `tests/escape` holds them.

* **held**: the program got nothing, nothing outside changed or was reached (files, servers, processes, memory, settings
  of the machine: looked at from outside before and after), and a secret of the owner is nowhere in what it wrote.
* **open**: it gets out, and that is said below. **escaped**: it gets out, and nobody has said so.
* "A" and "B" are the rungs; "Docker" is rung B as a watch finds it by itself under a filter like Docker's default, with
  parts of /proc masked and /sys read-only. "nothing" is the same programs where nothing holds them, as an ordinary
  user: what gets out there shows that the witness sees it.
* The breaker is left out, which would suspend the watch at the first of these programs: the walls are tried alone.
* The figure beside a race is how often it was run.

{count} programs, {machine}. Write this page anew: `python -m tests.escape --write docs/escape-corpus.md` (as root).
"""


def _cell(row: Row | None, ground: str) -> str:
    if row is None:
        return ""
    if ground == _CONTROL:
        return {"escaped": "gets out", "held": "held by the kernel"}.get(row.outcome, "not run")
    mark = "**escaped**" if row.outcome == "escaped" else row.outcome
    return f"{mark} ({row.tries:,})" if row.tries else mark
