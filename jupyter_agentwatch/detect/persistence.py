"""Tampering as the record shows it: writes to where things start by themselves, and programs under false names."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Final

from jupyter_agentwatch.detect.bounded import Said
from jupyter_agentwatch.detect.expressions import lazy_pattern, needed_texts
from jupyter_agentwatch.detect.lasting import persistence_of
from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.detect.tampering import MASQUERADE
from jupyter_agentwatch.events import AnyEvent, Exec, FileOp, Severity

__all__ = ["PERSISTENCE_RULES", "PersistenceDetector"]

WRITTEN: Final = Rule(
    id="tampering.persistence_written",
    title="a file is written that is read at log-in, at start or by the clock",
    severity="high",
    technique="T1546",
    rationale="What stands there runs later by itself, tied to no step.",
    false_positives=(
        "installers that add themselves to a shell's start-up file (medium)",
        "a workspace's own git hooks (low)",
    ),
)
HIDDEN_PROGRAM: Final = Rule(
    id="tampering.hidden_program",
    title="a program runs from where programs are not kept",
    severity="medium",
    technique="T1564.001",
    rationale=(
        "A deleted file, a file that only memory holds (high), shared memory or a hidden folder keeps it from being "
        "found."
    ),
    false_positives=(
        "tools that unpack themselves",
        "version managers that keep programs in hidden folders of the home (not reported)",
    ),
)
MEMORY_WRITE: Final = Rule(
    id="tampering.process_memory",
    title="another process's memory or settings are opened for writing",
    severity="high",
    technique="T1055",
    rationale="/proc/<pid>/mem of another process is how code is put into it without ptrace.",
    false_positives=("debuggers",),
)

_KINDS: Final[dict[str, Severity]] = {
    "start-up": "medium",
    "notebook": "medium",
    "git hook": "low",
    "import hook": "info",
}
# Read by everybody's shell or interpreter, and not by the writer's alone.
_EVERYBODYS: Final = lazy_pattern(r"^/(?:etc|usr/lib|usr/local/lib|usr/share)/(?!.*\.pth$)")
_MEMORY: Final = lazy_pattern(
    r"/proc/(?:\d+)/(?:mem|task/\d+/mem|oom_score_adj|ns/)|/proc/sys/|/sys/kernel/|/proc/sysrq-trigger|"
    r"/sys/fs/cgroup/.*release_agent|^/sys/fs/cgroup/(?:cgroup\.procs|tasks)$|/\.local/state/agentwatch/"
)
_TEMPORARY: Final = ("/tmp/", "/var/tmp/")  # noqa: S108 - what others use
_SHARED_MEMORY: Final = "/dev/shm/"  # noqa: S108 - as above
_THREAD: Final = lazy_pattern(r"\[[\w/:+.-]{2,40}\]|(?:\S*/)?(?:kworker|kthreadd|ksoftirqd|kswapd)[/\w:.-]*")
_HIDDEN: Final = lazy_pattern(r"/\.[\w-]+/|/\.\.\.|^/(?:tmp|var/tmp)/\.")
_VERSIONS: Final = lazy_pattern(
    r"/\.(?:venv|local|cargo|rustup|nvm|pyenv|conda|rbenv|asdf|sdkman|deno|bun|npm|volta|cache/(?:uv|pip|pre-commit|"
    r"bazel)|tox|nox|vscode\S*|pixi|"
    r"virtualenvs|poetry|pnpm|go|gradle|m2|julia|opam|ghcup|nix\S*|build|tmp\S*|git|hatch|direnv|eggs|cmdstan|env)/"
)

PERSISTENCE_RULES: Final = (WRITTEN, HIDDEN_PROGRAM, MEMORY_WRITE, MASQUERADE)
"""Every rule of this detector."""


@cache
def _memory_hints() -> tuple[str, ...]:
    return needed_texts([_MEMORY.pattern], ("/proc/", "/sys/"))


def _reaches_memory(path: str) -> bool:
    for hint in _memory_hints():
        if hint in path:
            return _MEMORY.search(path) is not None
    return False


class PersistenceDetector:
    """Looks at names of files that are changed and of programs that run."""

    name = "persistence"
    kinds = frozenset({"exec", "file"})

    def __init__(self) -> None:
        self._said = Said()

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings about a write or a program; one for each step and path."""
        if isinstance(event, FileOp):
            return self._file(event)
        if isinstance(event, Exec):
            return self._claimed(event) if event.basis == "claimed" else self._running(event)
        return ()

    def _file(self, event: FileOp) -> Iterable[Draft]:
        if event.op in ("unlink", "unlinkat", "rmdir"):
            return ()
        found: list[Draft] = []
        # In their order: a set's differs from one process to the next, and a replay has to find the same.
        for path in dict.fromkeys((event.path, event.path2, event.resolved, event.resolved2)):
            kind = persistence_of(path)
            if kind and self._said.first("written", event.step, path):
                shared = kind in ("start-up", "notebook") and _EVERYBODYS.match(path)
                found.append(draft(WRITTEN, event, f"{kind}: {path}", severity=None if shared else _KINDS.get(kind)))
            elif _reaches_memory(path) and self._said.first("memory", event.step, path):
                found.append(draft(MEMORY_WRITE, event, path))
        return found

    def _claimed(self, event: Exec) -> Iterable[Draft]:
        shown = event.argv[0] if event.argv else ""
        if shown[:1] != "[" and "k" not in shown:  # the names of most programs, at a tenth of the cost
            return ()
        if _THREAD.fullmatch(shown) and self._said.first("masquerade", event.step, shown, event.path):
            return (draft(MASQUERADE, event, f"{shown} is {event.path}"),)
        return ()

    def _running(self, event: Exec) -> Iterable[Draft]:
        exe = event.exe
        memory = "memfd:" in exe or exe.startswith(_SHARED_MEMORY)
        deleted = exe.endswith(" (deleted)")
        hidden = "/." in exe and _HIDDEN.search(exe) is not None and not _VERSIONS.search(exe)
        if (memory or deleted or hidden) and self._said.first("hidden", event.step, exe):
            gone = deleted and exe.startswith(_TEMPORARY)  # removed before it had even begun
            return (draft(HIDDEN_PROGRAM, event, exe, severity="high" if memory or gone else None),)
        return ()
