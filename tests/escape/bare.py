"""Runs a program of the corpus with nothing that holds it: the proof that the witness sees what gets out.

Only ever as an ordinary user in namespaces of its own, and only programs that are no harm there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Bare"]


@dataclass(frozen=True, slots=True)
class _Ended:
    outcome: str
    exit_code: int
    stderr: str = ""
    step: int = 0

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class _Status:
    pid: int


class _Started:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            yield 1, data

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), text.encode())

    def close_stdin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> _Ended:
        with self._process:
            code = self._process.wait()
        return _Ended("exited" if code >= 0 else "signalled", code)


class Bare:
    """Has the part of a watch's face that the runner uses, and none of its walls.

    Args:
        workspace: Where programs start.
    """

    rung = "none"
    id = "00000000"

    def __init__(self, workspace: Path) -> None:
        if os.geteuid() == 0:
            msg = "programs that nothing holds are only run as an ordinary user"
            raise RuntimeError(msg)
        self._workspace = workspace
        self.log = Path(os.environ["AGENTWATCH_LOG_DIR"]) / "bare.jsonl"
        self.log.parent.mkdir(exist_ok=True)  # a program before may have taken it away
        self.log.write_text("a log\n")
        self._stands_for: subprocess.Popen[bytes] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether what stands for the supervisor was killed."""
        return self._stands_for is None or self._stands_for.poll() is not None

    def status(self) -> _Status:
        """Return the process that stands for the supervisor, with a child as init; a new one where it was killed."""
        if self._stands_for is None or self._stands_for.poll() is not None:
            self.close()
            program = "import os, signal; os.fork(); os.write(1, b'x\\n'); signal.pause()"
            argv = [sys.executable, "-S", "-c", program]
            self._stands_for = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
            assert self._stands_for.stdout is not None
            for _ in range(2):
                assert self._stands_for.stdout.readline() == b"x\n"
        return _Status(self._stands_for.pid)

    def start(self, argv: Sequence[str], **_: Any) -> Any:
        """Start a program."""
        pipe = subprocess.PIPE
        return _Started(subprocess.Popen(list(argv), cwd=self._workspace, stdin=pipe, stdout=pipe, stderr=2))

    def run(self, argv: Sequence[str], **_: Any) -> _Ended:
        """Run a program."""
        return _Ended("exited", subprocess.run(list(argv), check=False).returncode)

    def close(self) -> None:
        """End what stands for the supervisor."""
        if self._stands_for is not None:
            with self._stands_for as held, contextlib.suppress(ProcessLookupError):
                os.killpg(held.pid, signal.SIGKILL)
            self._stands_for = None
