"""What the detectors find: the share of varied attacks that they see, and how often they stop honest work.

The sets are this benchmark's own (`attacks.txt`, `attack_flows.py`, `benign.txt`, `honest.py`), none of them the
fixtures that the rules were written with. Nothing of them runs but the tools named in `honest.TOOLS`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from jupyter_agentwatch.breaker import Trip
from jupyter_agentwatch.detect.own import OWN_RULES
from jupyter_agentwatch.detect.rule import SEVERITIES
from jupyter_agentwatch.events import AnyEvent, Finding
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.supervisor.detection import Detection, Detectors
from jupyter_agentwatch.testing import event
from tests.bench.attack_flows import attack_flows
from tests.bench.ground import Ground, MeasureError
from tests.bench.honest import KINDS, STEPS, TOOLS, honest_lines, recorded_tools, trajectory
from tests.bench.table import Row

__all__ = ["attack_lines", "clopper_pearson", "judged"]

_HIGH = SEVERITIES.index("high")
_SHOWN = 60


def judged(ground: Ground) -> list[Row]:
    """Judge attacks and honest work."""
    lines = honest_lines(ground.n(2400, 300), seed=1)
    tools = recorded_tools(ground)
    alarms = [line for line in lines if _is_severe(_commanded(line))]
    stopped = [name for name, events in tools.items() if _is_severe(events)]
    note = f"{len(OWN_RULES)} own rules; lines of benign.txt; alarms: {_listed(alarms)}" if alarms else ""
    return [
        *_attacks(),
        Row("detection.lines", 100 * len(alarms) / len(lines), len(lines), _interval(len(alarms), len(lines)), note),
        Row("detection.tools", len(stopped), len(tools), {}, _listed(stopped)),
        _trajectories(ground, tools, lines),
    ]


def attack_lines() -> list[tuple[str, str]]:
    """Return (family, line) of every attack that a command line shows."""
    found = []
    for line in (Path(__file__).parent / "attacks.txt").read_text("utf-8").splitlines():
        if line and line[0] != "#":
            family, _, text = line.partition("\t")
            found.append((family, text.replace("⏎", "\n")))
    return found


def _attacks() -> list[Row]:
    commands = [(family, line, _commanded(line)) for family, line in attack_lines()]
    rows = []
    for name, attacks in (("lines", commands), ("flows", attack_flows()), ("", [*commands, *attack_flows()])):
        missed = [(family, what) for family, what, events in attacks if not _is_severe(events)]
        seen = len(attacks) - len(missed)
        families, lost = Counter(family for family, _, _ in attacks), Counter(family for family, _ in missed)
        beside = {**_interval(seen, len(attacks))}
        beside |= {family: f"{count - lost[family]}/{count}" for family, count in families.items()}
        note = f"missed: {_listed([what for _, what in missed])}" if name else ""
        rows.append(Row(f"detection.attack_{name or 'share'}", 100 * seen / len(attacks), len(attacks), beside, note))
    return rows


def _commanded(line: str) -> list[AnyEvent]:
    argv = ["/bin/bash", "-c", line]
    return [
        event("step", op="start", step=1, argv=argv),
        event("exec", basis="claimed", seq=1, t_mono_ns=1_000_000, step=1, pid=9, path="/bin/bash", argv=argv),
    ]


def _is_severe(events: Iterable[AnyEvent]) -> bool:
    """Return whether fresh detectors find something of severity high or above."""
    detectors = Detectors(b"", ())
    return any(SEVERITIES.index(draft.severity) >= _HIGH for each in events for draft in detectors.feed(each))


def _listed(texts: list[str]) -> str:
    shown = "; ".join(f"`{text[:_SHOWN].replace(chr(10), '⏎').replace('|', '¦')}`" for text in texts)
    return shown or "none"


def _trajectories(ground: Ground, tools: dict[str, list[AnyEvent]], lines: list[str]) -> Row:
    count = ground.n(400, 8)
    kinds, stopped, warned, steps = list(KINDS), Counter[str](), 0, 0
    for number in range(count):
        kind = kinds[number % len(kinds)]
        cause, findings, made = _outcome(trajectory(kind, number, tools, lines))
        steps += made
        warned += bool(findings)
        if cause:
            stopped[cause] += 1
    frozen = sum(stopped.values())
    beside = _interval(frozen, count) | {"with a finding of high": f"{warned}", "steps": f"{steps}"}
    causes = "; ".join(f"{number} by {cause[:80].replace('|', '¦')}" for cause, number in stopped.most_common(5))
    note = (
        f"{count} composed trajectories of {STEPS} steps or more, of the kinds {', '.join(kinds)}: {len(TOOLS)} "
        f"recorded tool runs and {len(lines)} honest lines, as tests/bench/honest.py says; stopped: {causes or 'none'}"
    )
    return Row("detection.frozen", 100 * frozen / count, count, beside, note)


def _outcome(events: Iterable[AnyEvent]) -> tuple[str, int, int]:
    """Return why the default policy's breaker would freeze ("" if not), how many severe findings, and the steps."""
    trips: list[Trip] = []
    detection = Detection(Policy(), b"", trips.append)
    detection.load()
    severe = steps = 0
    for each in events:
        steps = each.step
        for kind, fields in detection.examine(each):
            made = event("finding", **{"t_mono_ns": each.t_mono_ns, "seq": each.seq, **fields})
            if kind is not Finding:
                msg = f"the detectors have failed: {fields}"
                raise MeasureError(msg)
            severe += SEVERITIES.index(fields["severity"]) >= _HIGH
            detection.weigh(made)
    return (trips[0].why if trips else ""), severe, steps


def _interval(seen: int, count: int) -> dict[str, str]:
    low, high = clopper_pearson(seen, count)
    return {"95 % interval": f"{100 * low:.2f}-{100 * high:.2f} % ({seen} of {count})"}


def clopper_pearson(seen: int, count: int, doubt: float = 0.05) -> tuple[float, float]:
    """Return the exact two-sided interval of a share.

    Args:
        seen: Hits, 0 to `count`.
        count: Tries, at least 1.
        doubt: Probability that the interval misses the share, at most.
    """
    low = 0.0 if seen == 0 else _solve(lambda p: 1 - _at_most(seen - 1, count, p), doubt / 2)
    high = 1.0 if seen == count else _solve(lambda p: 1 - _at_most(seen, count, p), 1 - doubt / 2)
    return low, high


def _solve(rising: Callable[[float], float], wanted: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def _at_most(seen: int, count: int, share: float) -> float:
    """Return the probability of `seen` hits or fewer, where each try hits with probability `share`."""
    if share in (0.0, 1.0):
        return 1.0 - share
    whole = math.lgamma(count + 1)
    return math.fsum(
        math.exp(
            whole
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * math.log(share)
            + (count - k) * math.log1p(-share)
        )
        for k in range(seen + 1)
    )
