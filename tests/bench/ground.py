"""What every measurement stands on: scratch folders, one session, equal conditions outside, and turns taken fairly.

Nothing here may outlive the run: `Ground` removes what it made and ends what it started.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec

from jupyter_agentwatch import Watch
from jupyter_agentwatch.policy import Limits, Policy
from jupyter_agentwatch.watch import CommandResult

__all__ = [
    "INSIDE",
    "LONG_S",
    "PYTHON",
    "Ground",
    "MeasureError",
    "alternate",
    "load",
    "machine",
    "on_core",
    "processes_in",
    "run_native",
]

INSIDE: Final = Path(__file__).parent / "inside"
"""Programs that are measured, native and inside alike."""

PYTHON: Final = sys.executable
LONG_S: Final = 120.0
"""Upper bound of one command; reached only when something is wrong."""


class MeasureError(Exception):
    """A measurement could not be made; the text says why."""


class Ground:
    """Folders and sessions of one run.

    Args:
        quick: Take few samples, to see that each row works.
        rung: Rung of every session.

    Attributes:
        workspace: Folder of the sessions; the programs of `INSIDE` are copied into it.
        native: Its counterpart for what runs outside, with the same content.
        env: Environment of what runs outside: the sandbox's own, with another home.
    """

    def __init__(self, *, quick: bool, rung: Literal["A", "B"]) -> None:
        self.quick = quick
        self.rung = rung
        self._scratch = Path(tempfile.mkdtemp(prefix="aw-bench-"))
        # An installed package has its bytecode; a checkout gets it at the first start, unless this forbids it.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for variable, name in {"AGENTWATCH_LOG_DIR": "log", "AGENTWATCH_RUNTIME_DIR": "run"}.items():
            os.environ[variable] = str(self.folder(name))
        self.native = self.stage("native")
        self.workspace = self.stage("workspace")
        self.env: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Learn the environment inside."""
        try:
            with self.session() as watch:
                lines = watch.run(["env", "-0"], check=True).stdout.split("\0")
        except BaseException:
            self.__exit__()
            raise
        inside = dict(line.split("=", 1) for line in lines if "=" in line)
        self.env = inside | {"HOME": str(self.folder("home")), "TMPDIR": str(self.folder("tmp"))}
        return self

    def __exit__(self, *_: object) -> None:
        """Remove everything."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def folder(self, name: str) -> Path:
        """Return a folder of the run's own, made on first use with mode 0700."""
        path = self._scratch / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def stage(self, name: str) -> Path:
        """Return a folder of the run's own that holds the programs of `INSIDE`."""
        folder = self.folder(name)
        shutil.copytree(INSIDE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    def n(self, full: int, quick: int) -> int:
        """Return how many samples to take."""
        return quick if self.quick else full

    @contextlib.contextmanager
    def session(self, policy: Policy | None = None, workspace: Path | None = None) -> Iterator[Watch]:
        """Open a watch, on the common workspace where none is given, and close it."""
        with self.open(policy, workspace) as watch:
            yield watch

    def open(self, policy: Policy | None = None, workspace: Path | None = None) -> Watch:
        """Open a watch, on the common workspace where none is given; the caller closes it."""
        wanted = policy or Policy(limits=Limits(processes=4096))
        return Watch(msgspec.structs.replace(wanted, isolation=self.rung), workspace or self.workspace)

    def timed(self, watch: Watch, command: Sequence[str] | str, *, code: int = 0) -> float:
        """Run a command inside; return its wall time in seconds, seen from outside."""
        begun = time.perf_counter()
        result = watch.run(command, timeout=LONG_S)
        took = time.perf_counter() - begun
        check_exit(result, code)
        return took

    def timed_native(self, argv: Sequence[str], *, code: int = 0) -> float:
        """Run a command outside; return its wall time in seconds."""
        begun = time.perf_counter()
        run_native(argv, self.native, self.env, code=code)
        return time.perf_counter() - begun

    def answer(self, watch: Watch, argv: Sequence[str]) -> str:
        """Run a program inside and return what it printed."""
        result = watch.run(list(argv), timeout=LONG_S)
        check_exit(result, 0)
        return result.stdout

    def answer_native(self, argv: Sequence[str]) -> str:
        """Run a program outside and return what it printed."""
        return run_native(argv, self.native, self.env).decode()


def check_exit(result: CommandResult, code: int) -> None:
    """Refuse a command that ended otherwise than it should: its time would mean nothing."""
    if result.returncode != code:
        words = result.stderr.strip().splitlines()[-1:] or [""]
        msg = f"{result.argv[0]} ended inside with {result.outcome} {result.returncode}: {words[0][:200]}"
        raise MeasureError(msg)


def run_native(argv: Sequence[str], folder: Path, env: dict[str, str], *, code: int = 0) -> bytes:
    """Run a program outside, its output through pipes as inside; return its standard output.

    Raises:
        MeasureError: It ended with another exit code than `code`.
    """
    done = subprocess.run(
        list(argv), cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONG_S, check=False
    )
    if done.returncode != code:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
        msg = f"{argv[0]} ended with {done.returncode}: {words[0][:200]}"
        raise MeasureError(msg)
    return done.stdout


def alternate(rounds: int, ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Sample several ways side by side: one of each per round, another one first each time, after one round unseen.

    What else the machine does then falls on all of them alike.
    """
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            taken[name].append(ways[name]())
    return taken


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this thread, hence what it starts, to one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def processes_in(namespace: int) -> int:
    """Count from outside, by the kernel's own records, who lives in a PID namespace."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                count += os.stat(f"/proc/{entry.name}/ns/pid").st_ino == namespace
    return count


def machine() -> dict[str, Any]:
    """Return what a reader must know of this machine; nothing that names it."""
    models = [line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "kernel": f"Linux {platform.release()} {platform.machine()}",
        "CPU": f"{len(os.sched_getaffinity(0))} x {models[0].partition(': ')[2] if models else 'unknown'}",
        "memory": f"{memory:.1f} GiB",
        "Python": platform.python_version(),
        "bubblewrap": _version("bwrap", "--version"),
        "strace": _version("strace", "--version"),
        "Node.js": _version("node", "--version"),
        "user": "root" if os.getuid() == 0 else "ordinary",
        "load before": load(),
    }


def load() -> str:
    """Return the load averages over 1, 5 and 15 minutes: on a busy machine the figures mean little."""
    return " ".join(f"{each:.2f}" for each in os.getloadavg())


def _version(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        return "not installed"
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    words = (done.stdout or done.stderr).splitlines()[:1] or [""]
    return words[0].split()[-1] if words[0].split() else "unknown"
