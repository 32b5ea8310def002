"""The peers that we measure against, started as their own documentation says; each may be missing, with a reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from jupyter_agentwatch.sandbox.bpf import NOTIFY_CALLS
from tests.bench.ground import MeasureError

__all__ = ["FRESH_BWRAP", "Srt", "strace", "strace_missing"]

FRESH_BWRAP: Final = ("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true")

_SRT: Final = "@anthropic-ai/sandbox-runtime"
_SRT_VERSION: Final = "0.0.78"
_SRT_FOLDER: Final = Path(__file__).resolve().parents[2] / "build" / "bench" / "srt"
_SRT_DRIVER: Final = Path(__file__).parent / "srt.mjs"
_SRT_CONFIG: Final[dict[str, Any]] = {
    "network": {"allowedDomains": [], "deniedDomains": []},
    "filesystem": {"denyRead": [], "allowWrite": ["."], "denyWrite": []},
}


def strace(argv: Sequence[str], output: Path, *, opens: bool) -> list[str]:
    """Return a command line that traces the calls that we mediate, and writes each to a file as our log does.

    What only our own bookkeeping needs is left out, in the peer's favour. With `opens` it traces every open: it cannot
    tell those that write by their flags.
    """
    calls = [f"?{name}" for name in NOTIFY_CALLS if name != "set_tid_address"]
    calls += ["?open", "openat"] if opens else []
    head = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-o", str(output)]
    return [*head, "-e", f"trace={','.join(calls)}", *argv]


def strace_missing() -> str:
    """Return why strace cannot be used here, or ""."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    argv = strace(["true"], Path("/dev/null"), opens=False)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return f"strace --seccomp-bpf does not work here (exit code {done.returncode})" if done.returncode else ""


class Srt:
    """sandbox-runtime with one session open, and its command line.

    Args:
        folder: Where its commands run; it gets the settings file.

    Raises:
        MeasureError: It cannot be had or does not run here; the text says why.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in ("node", "npm", "rg", "socat", "bwrap") if shutil.which(name) is None]
        if missing:
            msg = f"sandbox-runtime cannot be run without {', '.join(missing)}"
            raise MeasureError(msg)
        module = _installed()
        settings = folder / "srt-settings.json"
        settings.write_text(json.dumps(_SRT_CONFIG), "utf-8")
        self._folder = folder
        self._command = [str(_SRT_FOLDER / "node_modules" / ".bin" / "srt"), "--settings", str(settings), "true"]
        self._process = subprocess.Popen(
            ["node", str(_SRT_DRIVER), str(module), json.dumps(_SRT_CONFIG)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        """Run one command both ways, to see that they work."""
        try:
            self.run_in_session()
            self.run_by_command_line()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the session."""
        with self._process:
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def run_in_session(self) -> float:
        """Run `true` in the open session; return the seconds that it took, measured by its own process."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            msg = "sandbox-runtime was started without pipes"
            raise MeasureError(msg)
        stdin.write(b"true\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            msg = f"sandbox-runtime's session ended with exit code {self._process.wait(10)}"
            raise MeasureError(msg)
        told = json.loads(answer)
        if told["code"] != 0:
            msg = f"sandbox-runtime ran true with exit code {told['code']}"
            raise MeasureError(msg)
        return float(told["ms"]) / 1000

    def run_by_command_line(self) -> float:
        """Run `srt true`; return the wall time in seconds, the start of Node.js included."""
        begun = time.perf_counter()
        done = subprocess.run(self._command, cwd=self._folder, capture_output=True, timeout=60, check=False)
        took = time.perf_counter() - begun
        if done.returncode:
            msg = f"srt true ended with exit code {done.returncode}"
            raise MeasureError(msg)
        return took


def _installed() -> Path:
    """Install it into the build folder, once; return its module."""
    package = _SRT_FOLDER / "node_modules" / _SRT
    if not (package / "package.json").exists():
        _SRT_FOLDER.mkdir(parents=True, exist_ok=True)
        argv = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(_SRT_FOLDER), f"{_SRT}@{_SRT_VERSION}"]
        done = subprocess.run(argv, cwd=_SRT_FOLDER, capture_output=True, timeout=180, check=False)
        if done.returncode:
            msg = f"npm could not install sandbox-runtime {_SRT_VERSION} (exit code {done.returncode})"
            raise MeasureError(msg)
    told = json.loads((package / "package.json").read_text("utf-8"))
    return package / str(told["main"])
