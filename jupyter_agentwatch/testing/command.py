"""One command of a `FakeSupervisor`: a real process on this host, reported as a supervisor reports it."""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from typing import IO

from jupyter_agentwatch.wire.messages import (
    CommandEnded,
    Message,
    Output,
    Resize,
    RunCommand,
    SignalStep,
    StdinData,
)

__all__ = ["FakeCommand"]

_PIECE_BYTES = 64 * 1024


class FakeCommand:
    """One real process on this host.

    Attributes:
        request: What was asked for.
        step: Its number.
        send: Where notices go.
        ended: Set by the fake when all is said about this command.
    """

    def __init__(
        self, request: RunCommand, step: int, *, folder: str, limit: int, send: Callable[[Message], None]
    ) -> None:
        """Prepare a command; `run` starts it."""
        self.request = request
        self.step = step
        self.send = send
        self.ended = threading.Event()
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = -1
        self._input: queue.SimpleQueue[StdinData | None] = queue.SimpleQueue()
        self._written = [0, 0]
        self._early: list[int] = []
        self._size = (request.rows, request.columns)
        self._outcome = ""

    def run(self) -> CommandEnded:
        """Run to the end, sending output as it comes; the returned notice has no `head` yet."""
        start = time.monotonic()
        try:
            process = self._spawn()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return self._end("not-found" if missing else "not-executable", None, start, None)
        threads = self._pumps(process)
        for thread in threads:
            thread.start()
        timer = threading.Timer(self.request.timeout_s or threading.TIMEOUT_MAX, self._time_out)
        timer.daemon = True
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        with self._lock:
            process.returncode = os.waitstatus_to_exitcode(status)
        timer.cancel()
        self._input.put(None)
        for thread in threads:
            thread.join()
        self._close(process)
        return self._end(self._outcome, process.returncode, start, usage)

    def take(self, request: StdinData | SignalStep | Resize) -> None:
        """Do what a request asks of this command."""
        match request:
            case StdinData():
                self._input.put(request)
            case SignalStep():
                self.signal(request.signal)
            case Resize():
                self._resize((request.rows, request.columns))

    def signal(self, number: int) -> None:
        """Send a signal to the process group, as soon as there is one; nothing happens if it has ended."""
        with self._lock:
            if self._process is None:
                self._early.append(number)
            elif not self.ended.is_set():
                # Also when the first process has ended: what it left behind in its group holds the pipes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End the process group, or keep it from starting."""
        self._outcome = "killed"
        self.signal(signal.SIGKILL)

    def _resize(self, size: tuple[int, int]) -> None:
        with self._lock:
            self._size = size
            if self._process is not None and self._terminal >= 0:
                termios.tcsetwinsize(self._terminal, size)

    def _spawn(self) -> subprocess.Popen[bytes]:
        request, streams = self.request, subprocess.PIPE
        argv, stdin = request.argv, subprocess.PIPE if request.stdin else subprocess.DEVNULL
        inner = -1
        if request.pty:
            self._terminal, inner = os.openpty()
            argv, stdin, streams = ["setsid", "--ctty", *argv], inner, inner
        with self._lock:
            if inner >= 0:
                termios.tcsetwinsize(inner, self._size)
            try:
                self._process = subprocess.Popen(
                    argv,
                    cwd=request.cwd or self._folder,
                    env={"PATH": os.environ.get("PATH", os.defpath), **request.env},
                    stdin=stdin,
                    stdout=streams,
                    stderr=streams,
                    start_new_session=not request.pty,
                )
            finally:
                if inner >= 0:
                    os.close(inner)
            for number in self._early:
                os.killpg(self._process.pid, number)
        return self._process

    def _pumps(self, process: subprocess.Popen[bytes]) -> list[threading.Thread]:
        pipes = [(1, process.stdout), (2, process.stderr)]
        sources = [(stream, pipe.fileno()) for stream, pipe in pipes if pipe]
        if self._terminal >= 0:
            sources = [(1, self._terminal)]
        threads = [threading.Thread(target=self._pump, args=source, daemon=True) for source in sources]
        if self.request.stdin or self.request.pty:
            threads.append(threading.Thread(target=self._write, args=(process.stdin,), daemon=True))
        return threads

    def _pump(self, stream: int, source: int) -> None:
        # A terminal whose other side is closed fails with EIO.
        with contextlib.suppress(OSError):
            while data := os.read(source, _PIECE_BYTES):
                kept = data[: max(0, self._limit - self._written[stream - 1])]
                self._written[stream - 1] += len(data)
                if kept:
                    self.send(Output(step=self.step, stream=stream, data=kept))

    def _write(self, pipe: IO[bytes] | None) -> None:
        sink = pipe.fileno() if pipe else self._terminal
        with contextlib.suppress(OSError):
            while item := self._input.get():
                view = memoryview(item.data)
                while view:
                    view = view[os.write(sink, view) :]
                if item.eof and pipe:
                    break
                if item.eof:
                    os.write(sink, b"\x04")
        if pipe:
            pipe.close()

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
        if self._terminal >= 0:
            with self._lock:
                os.close(self._terminal)
                self._terminal = -1

    def _time_out(self) -> None:
        self._outcome = "timeout"
        self.signal(signal.SIGKILL)

    def _end(self, outcome: str, code: int | None, start: float, usage: resource.struct_rusage | None) -> CommandEnded:
        signalled = code is not None and code < 0
        return CommandEnded(
            step=self.step,
            outcome=outcome or ("signalled" if signalled else "exited"),
            exit_code=None if code is None or signalled else code,
            signal=-code if code is not None and signalled else None,
            duration_s=time.monotonic() - start,
            cpu_user_s=usage.ru_utime if usage else 0.0,
            cpu_system_s=usage.ru_stime if usage else 0.0,
            max_rss_bytes=usage.ru_maxrss * 1024 if usage else 0,
            stdout_bytes=self._written[0],
            stderr_bytes=self._written[1],
            stdout_truncated=self._written[0] > self._limit,
            stderr_truncated=self._written[1] > self._limit,
            head="",
        )
