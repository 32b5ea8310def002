"""The supervisor's process as its owner sees it: start it, end it, and say why it ended.

Ending is idempotent and works in every state: alive, silent, or dead already.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO

import msgspec

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import AgentwatchError, ControlError, LogError, SessionEndedError
from jupyter_agentwatch.events import Session, from_bytes, printable
from jupyter_agentwatch.wire.client import Client, ask
from jupyter_agentwatch.wire.framing import encode_frame
from jupyter_agentwatch.wire.messages import Failed, Kill, Killed, Launch, LaunchReport
from jupyter_agentwatch.wire.peer import error_from
from jupyter_agentwatch.wire.stragglers import end_stragglers

__all__ = ["SupervisorProcess", "supervisor_command"]

_START = """\
import gc
gc.disable()
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
at = sys.argv.index("-m")
home, *folders = sys.argv[1:at]
sys.path += folders
sys.modules["typing_extensions"] = None
import msgspec
del sys.modules["typing_extensions"]
spec = spec_from_file_location("jupyter_agentwatch", home + "/__init__.py", submodule_search_locations=[home])
sys.modules["jupyter_agentwatch"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["jupyter_agentwatch"])
module, sys.argv[1:] = sys.argv[at + 1], sys.argv[at + 2:]
sys.exit(import_module(module + ".__main__").main())
"""
"""Our own package is loaded from its folder, and the folder around it, which may be the workspace, is not looked into:
a module planted there could stand for one that a library tries to import. msgspec takes from typing_extensions what
typing has as well; without it, and `inspect` behind it, a tenth of the imports before the sandbox starts is saved.
Nothing is collected until the module's `main` turns the collector on: what a start makes lives to the end."""

_READY_S = 60.0
_SILENCE_S = 2.0
_EXIT_S = 5.0
_MAX_REPORT = 64 * 1024
_TAIL_BYTES = 2000


class SupervisorProcess:
    """A supervisor that this process started and owns.

    Attributes:
        client: The owner's connection.
        log: Path of the audit log.
    """

    def __init__(self, process: subprocess.Popen[bytes], client: Client, launch: Launch) -> None:
        """Take over a supervisor that is ready; use `start`."""
        self.client = client
        self.log = Path(launch.log)
        self._process = process
        self._socket = launch.socket
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._killed: Killed | None = None
        client.describe_end = self._describe_end

    @classmethod
    def start(cls, launch: Launch, command: Sequence[str]) -> SupervisorProcess:
        """Start a supervisor, wait until its sandbox stands, and connect as its owner.

        Args:
            launch: What it is told.
            command: Program and arguments, as `supervisor_command` gives them.

        Raises:
            AgentwatchError: The class that the supervisor named: `RungError`, `PolicyError`, `WorkspaceError` …
            SessionEndedError: It ended without a word; the text holds the end of its standard error.
            ControlError: It did not become ready, or is not what it should be.
        """
        process = _spawn(launch, command)
        try:
            _await_ready(process, launch)
            client = Client.connect(launch.socket, owner=True, name="kernel")
        except BaseException:
            process.kill()
            process.wait()
            _tidy(launch.log)
            raise
        return cls(process, client, launch)

    def kill(self, reason: str) -> Killed:
        """End everything in the sandbox; the second and later calls return what the first one did.

        Where the control socket does not answer within 2 s, the supervisor itself is killed, which ends its
        sandbox; the result's `note` says so.

        Args:
            reason: For the audit log.
        """
        with self._lock:
            if self._killed is None:
                self._killed = self._kill(reason)
            return self._killed

    def close(self) -> None:
        """End everything quietly. Does nothing in a forked child, whose parent still owns the watch."""
        if os.getpid() == self._owner:
            with contextlib.suppress(AgentwatchError, OSError):
                self.kill("closed")

    def _kill(self, reason: str) -> Killed:
        killed: Killed | None = None
        if not self.client.has_ended:
            try:
                killed = ask(self._socket, Kill(reason=reason, by="kernel"), Killed, name="kernel", timeout=_SILENCE_S)
                self.client.head = killed.head  # it was told on another connection
            except SessionEndedError:
                pass
            except AgentwatchError as error:
                killed = self._kill_by_force(str(error))
        self._reap()
        return killed or self._recorded_end()

    def _kill_by_force(self, why: str) -> Killed:
        import psutil

        start = time.monotonic()
        try:
            inside = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            inside = []
        self._process.kill()
        gone, alive = psutil.wait_procs(inside, timeout=_SILENCE_S)
        return Killed(
            killed=len(gone),
            survivors=len(alive),
            latency_ms=(time.monotonic() - start) * 1000,
            head=self.client.head,
            note=f"{why}; the supervisor was killed with SIGKILL, and its sandbox ended with it",
        )

    def _reap(self) -> None:
        """Wait for the supervisor's end, then for the last messages of it."""
        self.client.finish()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.client.close()
        _tidy(str(self.log))

    def _recorded_end(self) -> Killed:
        """What the log says of an end that somebody else brought about."""
        head = self.client.head
        try:
            sessions = [event for event in read_events(self.log, kinds={"session"}) if isinstance(event, Session)]
        except LogError as error:
            return Killed(killed=0, survivors=-1, latency_ms=0.0, head=head, note=str(error))
        last = sessions[-1] if sessions else None
        if last is None or last.op != "close":
            found, left = end_stragglers(Path(self._socket))
            note = "the supervisor ended without closing its log; nobody counted what ended with it"
            return Killed(killed=found - left, survivors=left or -1, latency_ms=0.0, head=head, note=note)
        note = f"had ended before: {printable(last.reason)}"
        return Killed(killed=last.killed, survivors=last.survivors, latency_ms=0.0, head=head, note=note)

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return "the supervisor closed the control socket; nothing can be run in this watch any more"
        if code == 0:
            return f"watch {self.client.welcome.watch} has ended; its log is {self.log}"
        return f"the supervisor ended with {_exit_text(code)}, and its sandbox with it{_last_words(str(self.log))}"


def supervisor_command(module: str = "jupyter_agentwatch.supervisor") -> tuple[str, ...]:
    """Return program and arguments of a supervisor; further arguments may follow.

    Isolated (`-I`) and without `site` (`-S`): neither the current folder nor PYTHONPATH is looked into, which the agent
    may be able to write to, and a fifth of the start is saved. The command line still tells by "-m" and the module what
    runs.
    """
    # Never from the current folder, which comes first in a notebook's path: whatever folder these are found in becomes
    # the supervisor's own path, and the agent could plant a "dns" there.
    places = [place for place in sys.path if os.path.isabs(place)]
    places.sort(key=lambda place: os.path.basename(place) not in {"site-packages", "dist-packages"})
    needed = (PathFinder.find_spec(name, places) for name in ("msgspec", "dns", "re2"))
    folders = dict.fromkeys(str(Path(spec.origin).resolve().parents[1]) for spec in needed if spec and spec.origin)
    home = Path(__file__).resolve().parents[1]
    return (sys.executable, "-I", "-S", "-c", _START, str(home), *folders, "-m", module)


def _spawn(launch: Launch, command: Sequence[str]) -> subprocess.Popen[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    stderr = os.open(_stderr_path(launch.log), flags, 0o600)
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            cwd="/",
        )
    except OSError as error:
        _tidy(launch.log)
        msg = f"cannot start the supervisor ({command[0]}): {error.strerror}"
        raise ControlError(msg) from error
    finally:
        os.close(stderr)
    return process


def _await_ready(process: subprocess.Popen[bytes], launch: Launch) -> None:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        msg = "the supervisor was started without pipes"
        raise ControlError(msg)
    # A supervisor that is dead already says more by its last words than by the broken pipe.
    with contextlib.suppress(BrokenPipeError):
        stdin.write(encode_frame(launch))
        stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        stdin.close()
    with stdout:
        line = _read_line(stdout)
    if not line:
        code = process.wait(_EXIT_S)
        msg = f"the supervisor ended with {_exit_text(code)} before it was ready{_last_words(launch.log)}"
        raise SessionEndedError(msg)
    try:
        report = msgspec.json.decode(line, type=LaunchReport)
    except msgspec.DecodeError as error:
        msg = f"the supervisor's first line is not a report: {printable(from_bytes(line))}"
        raise ControlError(msg) from error
    if not report.ready:
        raise error_from(Failed(error=report.error, text=report.text))


def _read_line(stdout: IO[bytes]) -> bytes:
    deadline = time.monotonic() + _READY_S
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_REPORT:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            msg = f"the supervisor was not ready within {_READY_S:g} s"
            raise ControlError(msg)
        piece = os.read(stdout.fileno(), _MAX_REPORT)
        if not piece:
            break
        line += piece
    return line


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


def _stderr_path(log: str) -> str:
    return f"{log}.stderr"


def _last_words(log: str) -> str:
    try:
        with open(_stderr_path(log), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = from_bytes(file.read()).split("\n")
    except OSError:
        return ""
    words = "\n".join(printable(line) for line in lines if line.strip())
    return f"; its last words were:\n{words}" if words else ""


def _tidy(log: str) -> None:
    """Remove the file of the supervisor's standard error where nothing was written to it."""
    path = Path(_stderr_path(log))
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            path.unlink()
