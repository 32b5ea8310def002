"""Runs the corpus on one ground and says of each case whether it was held: by the witness, the record and the program.

A program inside is believed when it says that it got something. That it got nothing is believed only where the witness
outside saw nothing either, and the secret is nowhere in what it wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from jupyter_agentwatch import Watch
from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.events import Finding
from jupyter_agentwatch.sandbox.syscalls import MACHINES
from jupyter_agentwatch.wire.runtime import control_socket, runtime_dir
from tests.escape.bare import Bare
from tests.escape.cases import CASES, Case
from tests.escape.looks import LOOKS
from tests.escape.witness import Outside
from tests.outside import recorded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Row", "run"]

INSIDE: Final = Path(__file__).parent / "inside"
LONG_S: Final = 600.0
_SHORT_S: Final = 60.0
_WALLS_ALONE: Final = dict.fromkeys(("freeze_at", "throttle_at", "two_families_at"), "never")
"""A breaker that would suspend the watch at the first of these programs is left out: the walls are tried alone."""
_GONE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one case.

    Attributes:
        name: The case's.
        outcome: "held", "escaped", "not runnable" or "open": escaped, and said to be open on this rung.
        detail: What got out, or why it could not be tried.
        tries: How often a race was run.
        seconds: How long it took.
    """

    name: str
    outcome: str
    detail: str
    tries: int
    seconds: float


def run(base: Path, asked: str, rung: str, *, cases: Iterable[Case] = CASES, tries: int, names: bool) -> Iterator[Row]:
    """Run cases one after the other, as the user and in the namespaces that we are in.

    Args:
        base: Folder of this run, ours alone.
        asked: The policy's `isolation`.
        rung: Where every watch must come to stand.
        cases: Which ones.
        tries: How often each race is run.
        names: The machine's name server may be the witness (its address must be 127.0.0.1).
    """
    workspace = base / "project"
    workspace.mkdir()
    os.environ["API_TOKEN"] = "set below"
    with Outside(base, workspace, names=names) as outside:
        os.environ["API_TOKEN"] = outside.secret
        corpus = _Corpus(outside, workspace, asked, rung, tries)
        try:
            for case in cases:
                if rung == "none" and not case.may_run_bare:
                    yield Row(case.name, "not runnable", "not where nothing holds it", 0, 0.0)
                elif case.names and not names:
                    yield Row(case.name, "not runnable", "needs root, to be the machine's name server", 0, 0.0)
                else:
                    yield corpus.row(case)
        finally:
            corpus.close()


class _Corpus:
    def __init__(self, outside: Outside, workspace: Path, asked: str, rung: str, tries: int) -> None:
        self._outside = outside
        self._workspace = workspace
        self._asked, self._rung = asked, rung
        self._tries = tries
        self._watch: Watch | None = None
        self._failed = 0

    def close(self) -> None:
        if self._watch is not None:
            with contextlib.suppress(AgentwatchError):
                self._watch.close()
            self._watch = None

    def row(self, case: Case) -> Row:
        began = time.monotonic()
        if case.policy or case.ends:
            self.close()
        if self._watch is None:
            self._watch = self._stand_up(case)
        watch = self._watch
        found, said = self._try(watch, case)
        if case.policy or case.ends or watch.has_ended:
            self.close()
        open_because = case.open_on.get(self._rung, "")
        outcome = "not runnable" if said.get("na") else "held"
        detail = str(said.get("na", ""))
        if found:
            outcome, detail = ("open", open_because) if open_because else ("escaped", "; ".join(found)[:2000])
        return Row(case.name, outcome, detail, int(said.get("tries", 0)), round(time.monotonic() - began, 2))

    def _stand_up(self, case: Case) -> Watch:
        shutil.copytree(INSIDE, self._workspace / ".escape", dirs_exist_ok=True)
        if self._rung == "none":
            return cast("Watch", Bare(self._workspace))
        text = json.dumps(dict(case.policy))
        for name, port in self._outside.world().items():
            text = text.replace(f'"{{{name}}}"', str(port))
        policy = {"version": 1, "isolation": self._asked, "breaker": _WALLS_ALONE, **json.loads(text)}
        watch = Watch(policy, self._workspace)
        self._failed = 0
        if watch.rung != self._rung:
            watch.close()
            msg = f"the watch stands on rung {watch.rung}, and not on {self._rung}: {watch.notes}"
            raise RuntimeError(msg)
        return watch

    def _try(self, watch: Watch, case: Case) -> tuple[list[str], dict[str, Any]]:
        supervisor = watch.status().pid
        marker = secrets.token_hex(8)
        world = self._outside.world() | {
            "rung": self._rung, "tries": self._tries, "marker": marker, "numbers": dict(_numbers()),
            "pids": self._outside.pids(supervisor), "log": str(watch.log), "control": str(control_socket(watch.id)),
            "runtime": str(runtime_dir()), "package": str(INSIDE.parents[2] / "jupyter_agentwatch" / "__init__.py"),
            "python": os.path.realpath(sys.executable), "ways": _ways(self._workspace),
        }  # fmt: skip
        before = self._outside.state(supervisor)
        found, said, written = self._talk(watch, case, world)
        if self._outside.secret in written or self._outside.secret[::-1] in written:
            found.append("the secret was read")
        after = self._outside.state(supervisor)
        found += [
            f"changed: {name}: {_short(before.get(name))} -> {_short(after[name])}"
            for name in after
            if before.get(name) != after[name]
        ]
        found += self._life(watch, case, marker)
        return found, said

    def _talk(self, watch: Watch, case: Case, world: dict[str, Any]) -> tuple[list[str], dict[str, Any], str]:
        argv = ["python3", f".escape/{case.program}.py", case.way, json.dumps(world)]
        limit = LONG_S if case.races else _SHORT_S
        running = watch.start(argv, stdin=True, timeout=limit)
        line, all_of_it = b"", bytearray()
        for _, piece in running:
            all_of_it += piece
            *lines, line = (line + piece).split(b"\n")
            for each in lines:
                if each.startswith(b"ASK "):
                    running.write(json.dumps(self._outside.answers(json.loads(each[4:]))) + "\n")
        with contextlib.suppress(BrokenPipeError):  # it has ended
            running.close_stdin()
        result = running.wait()
        written = all_of_it.decode("utf-8", "replace")
        said: dict[str, Any] = {"got": [], "na": ""}
        ends = [each for each in written.splitlines() if each.startswith("END ")]
        if ends:
            said = json.loads(ends[-1][4:])
        elif result.outcome != "limit:memory_bytes" and case.program != "limits":
            said["got"] = [f"the program did not end well: {result.outcome} {result.exit_code}: {result.stderr[-500:]}"]
        found = [str(each) for each in said["got"]] + self._failures(watch)
        if case.check and not watch.has_ended and self._rung != "none":
            found += LOOKS[case.check](watch, result, said)
        return found, said, written

    def _failures(self, watch: Watch) -> list[str]:
        """A handler that raises denies the call; but a monitor that a program can make fail is not one to rely on."""
        if self._rung == "none" or not watch.log.exists():
            return []
        failed = [event.title for event in recorded(watch, Finding) if event.rule == "agentwatch.monitor_error"]
        new = failed[self._failed :]
        self._failed = len(failed)
        return [f"the monitor failed: {title}" for title in dict.fromkeys(new)]

    def _life(self, watch: Watch, case: Case, marker: str) -> list[str]:
        """The watch must live and obey; after a kill, nothing of the case may."""
        if case.ends:
            killed = watch.kill("the end of a case")
            left = _wait_for_none(marker)
            return [f"{len(left)} processes live on"] if left or killed.survivors else []
        if case.program == "limits":
            return []
        if self._rung == "none":
            self.close()
            self._outside.mend()
            return []
        if watch.has_ended or not watch.run(["true"], timeout=_SHORT_S).ok:
            return ["the watch has ended"]
        return []


def _numbers() -> dict[str, int]:
    return dict(MACHINES[os.uname().machine].numbers)


def _ways(workspace: Path) -> list[str]:
    """Names of the folders that lie on the way to what is granted."""
    package = INSIDE.parents[2] / "jupyter_agentwatch"
    return sorted({part for path in (package, workspace, sys.prefix, sys.base_prefix) for part in Path(path).parts})


def _wait_for_none(marker: str) -> list[int]:
    deadline = time.monotonic() + _GONE_S
    while (left := _marked(marker)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _marked(marker: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


def _short(value: object) -> str:
    return repr(value)[:300]


def main(arguments: list[str]) -> None:
    """Run what the JSON object in the first argument says, and write each row as a line of JSON."""
    asked = json.loads(arguments[0])
    base = Path(asked["base"])
    wanted = [case for case in CASES if not asked["cases"] or case.name in asked["cases"]]
    with open(asked["rows"], "w", encoding="utf-8") as rows:
        for row in run(base, asked["asked"], asked["rung"], cases=wanted, tries=asked["tries"], names=asked["names"]):
            rows.write(json.dumps(asdict(row)) + "\n")
            rows.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
