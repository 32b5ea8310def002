"""What the detectors cost on each record, beside an independent evaluator, and how fast rules come from the cache.

Times are of the thread's own CPU, as the engine's own limit is: what else the machine does is no property of a rule.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from azuma import Rule  # type: ignore[import-untyped]

from jupyter_agentwatch.detect.sigma_detector import SigmaDetector
from jupyter_agentwatch.detect.sigma_form import decode_rules
from jupyter_agentwatch.events import AnyEvent, Exec
from jupyter_agentwatch.supervisor.detection import Detectors
from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch.rules import compile_files
from tests.bench.ground import INSIDE, PYTHON, Ground, MeasureError
from tests.bench.honest import KINDS, honest_lines, recorded_tools, trajectory
from tests.bench.judged import attack_lines
from tests.bench.table import Row, median, p99, spread
from tests.sigma_corpus import exec_pair, random_commands, synthetic_rules

__all__ = ["engine"]

_RULES: Final = 210
"""As many as SigmaHQ has for Linux; ours are generated, of the same shapes."""

_NOTE: Final = f"all own rules and {_RULES} generated Sigma rules of the shapes of SigmaHQ's for Linux; CPU time"


def engine(ground: Ground) -> list[Row]:
    """Feed composed trajectories, shell text that was never seen, and the execs that azuma gets, too."""
    folder = ground.folder("sigma")
    texts = synthetic_rules(_RULES, seed=5)
    for name, text in texts.items():
        (folder / Path(name).name).write_text(text, "utf-8")
    cache = ground.folder("sigma-cache")
    compiled = compile_files([folder], cache=cache)
    # Expressions are compiled at their first use, once in a process: that is no cost of the event that comes first.
    _each(Detectors(compiled.data, ()), [*map(_claim, honest_lines(300, seed=9)), *_hostile()])
    return [
        *_live(ground, compiled.data),
        _new_text(ground, compiled.data),
        _beside_azuma(ground, compiled.data, list(texts.values())),
        _load(ground, folder, cache, len(compiled.problems)),
    ]


def _live(ground: Ground, rules: bytes) -> list[Row]:
    tools, lines = recorded_tools(ground), honest_lines(ground.n(2400, 300), seed=1)
    taken: list[float] = []
    for number in range(ground.n(12, 2)):
        detectors = Detectors(rules, ())
        taken += _each(detectors, trajectory(list(KINDS)[number % len(KINDS)], number, tools, lines))
    beside = {"mean": f"{sum(taken) / len(taken):.3g} µs", "maximum": f"{max(taken):.4g} µs"}
    note = f"{_NOTE}; the records of composed trajectories, as tests/bench/honest.py says"
    return [
        Row("engine.median", median(taken), len(taken), {"spread": spread(taken, "µs")}, note),
        Row("engine.p99", p99(taken), len(taken), beside),
    ]


def _new_text(ground: Ground, rules: bytes) -> Row:
    honest = honest_lines(ground.n(2400, 300), seed=2)
    taken = {
        name: _each(Detectors(rules, ()), events)
        for name, events in {"honest lines": list(map(_claim, honest)), "attacks": _hostile()}.items()
    }
    beside = {name: f"{spread(times, 'µs')}, p99 {p99(times):.3g} µs" for name, times in taken.items()}
    every = taken["honest lines"] + taken["attacks"]
    return Row(
        "engine.new_text", p99(every), len(every), beside, "the claim of `bash -c` with a text never seen before"
    )


def _hostile() -> list[AnyEvent]:
    return [_claim(line) for _, line in attack_lines()]


def _claim(line: str) -> AnyEvent:
    return event("exec", basis="claimed", step=1, pid=9, path="/bin/bash", argv=["/bin/bash", "-c", line])


def _each(detectors: Detectors, events: Iterable[AnyEvent]) -> list[float]:
    """Return what each record cost, in µs of CPU."""
    clock, taken = time.thread_time_ns, []
    for each in events:
        begun = clock()
        detectors.feed(each)
        taken.append((clock() - begun) / 1000)
    return taken


def _beside_azuma(ground: Ground, rules: bytes, texts: Sequence[str]) -> Row:
    theirs = [Rule.model_validate(document) for document in map(yaml.safe_load, texts) if _is_about_processes(document)]
    pairs = [exec_pair(command, 2 * number) for number, command in enumerate(random_commands(ground.n(600, 60), 11))]
    sigma, whole = SigmaDetector(decode_rules(rules)), Detectors(rules, ())
    taken: dict[str, list[float]] = {"ours": [], "azuma": [], "ours with all own rules": []}
    for number, (claim, truth) in enumerate(pairs):
        fields = _fields(claim)
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda c=claim, t=truth: [list(sigma.feed(c)), list(sigma.feed(t))],  # type: ignore[misc]
            "azuma": lambda f=fields: _matches(theirs, f),  # type: ignore[misc]
            "ours with all own rules": lambda c=claim, t=truth: [whole.feed(c), whole.feed(t)],  # type: ignore[misc]
        }
        turn = number % len(ways)
        for name in (*list(ways)[turn:], *list(ways)[:turn]):
            begun = time.thread_time_ns()
            ways[name]()
            taken[name].append((time.thread_time_ns() - begun) / 1000)
    beside = {name: spread(times, "µs") for name, times in taken.items()}
    # Ours remembers what it has said of a command, and some of these come again.
    first = list({tuple(claim.argv): number for number, (claim, _) in reversed([*enumerate(pairs)])}.values())
    new = {name: sum(times[number] for number in first) for name, times in taken.items()}
    beside["commands seen for the first time"] = f"{new['azuma'] / new['ours']:.3g} x ({len(first)} of {len(pairs)})"
    note = (
        f"one exec each, ours: both records of it; {_RULES} rules, of which azuma gets the {len(theirs)} on processes"
    )
    return Row("engine.vs_azuma", sum(taken["azuma"]) / sum(taken["ours"]), len(pairs), beside, note)


def _is_about_processes(document: dict[str, Any]) -> bool:
    return document["logsource"].get("category") == "process_creation"


def _fields(claim: Exec) -> dict[str, str]:
    return {"Image": claim.path, "CommandLine": " ".join(claim.argv)}


def _matches(rules: Sequence[Any], fields: dict[str, str]) -> int:
    return sum(rule.match(fields) for rule in rules)


def _load(ground: Ground, folder: Path, cache: Path, problems: int) -> Row:
    argv = [PYTHON, str(INSIDE.parent / "outside" / "load_rules.py"), str(folder), str(cache)]
    taken = []
    for _ in range(ground.n(21, 3)):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            msg = f"load_rules.py ended with {done.returncode}: {done.stderr[-200:]}"
            raise MeasureError(msg)
        taken.append(json.loads(done.stdout))
    whole = [each["rules_ms"] for each in taken]
    beside = {"spread": spread(whole, "ms"), "own detectors after it": spread([e["own_ms"] for e in taken], "ms")}
    return Row(
        "engine.load", median(whole), len(taken), beside, f"wall time; {_RULES} rules, {problems} of them not in use"
    )
