"""Runs compiled Sigma rules over the record: joins each exec's claim with its truth, and matches into findings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec

from jupyter_agentwatch.detect.model import RULE_FAILED, Draft
from jupyter_agentwatch.detect.sigma_fields import AFTER_EXEC
from jupyter_agentwatch.detect.sigma_form import CompiledRules, Rule, Window
from jupyter_agentwatch.detect.sigma_index import Index, facts_of
from jupyter_agentwatch.detect.sigma_view import View
from jupyter_agentwatch.detect.sigma_windows import Windows
from jupyter_agentwatch.detect.slowness import Meter, Slowness
from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Event, Exec, Exit, FileOp, Step

__all__ = ["WINDOW_FORGOT", "SigmaDetector"]

WINDOW_FORGOT: Final = "agentwatch.window_forgot"
"""Rule id of the finding that a correlation has more groups than it can count."""

_QUIET_NS: Final = 1_000_000_000
"""A rule that matches again in the same step is reported at most this often: the agent may repeat itself at will."""

_KEPT: Final = 8192


class _Program(msgspec.Struct):
    """What runs, or was asked to run, under a process id. `seen` are numbers of the rules that the claim has met."""

    image: str
    command_line: str
    argv: tuple[str, ...] = ()
    seen: set[int] = msgspec.field(default_factory=set)


class _Rules:
    """Rules over one kind of event, with the index over them."""

    def __init__(self, kind: str, rules: list[tuple[int, Rule]]) -> None:
        self.numbers = [number for number, _ in rules]
        self.index = Index([rule.node for _, rule in rules], kind)


class SigmaDetector:
    """A detector of all compiled Sigma rules.

    Args:
        rules: What to run.
        user: Name of the user as whom commands run, which our events do not repeat; "" where it is not known.
    """

    name: Final = "sigma"

    def __init__(self, rules: CompiledRules, user: str = "") -> None:
        self._rules = rules.rules
        self._user = user
        self._windows = Windows(rules.windows)
        by_kind: dict[str, list[tuple[int, Rule]]] = {}
        for number, rule in enumerate(rules.rules):
            for kind in rule.kinds:
                stage = "exec.post" if kind == "exec" and facts_of(rule.node) & AFTER_EXEC else kind
                by_kind.setdefault(stage, []).append((number, rule))
        self._by_kind = {stage: _Rules(stage.partition(".")[0], each) for stage, each in by_kind.items()}
        wanted = {kind.partition(".")[0] for kind in by_kind}
        self.kinds = frozenset(wanted | {"exec", "exit", "step"}) if wanted else frozenset()
        self._claims: OrderedDict[int, _Program] = OrderedDict()
        self._programs: OrderedDict[int, _Program] = OrderedDict()
        self._folders: OrderedDict[int, str] = OrderedDict()
        self._reported: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._looked: list[tuple[_Rules, View]] = []
        self._slowness: Slowness[int] = Slowness()

    def feed(self, event: AnyEvent) -> Iterator[Draft]:
        """Match one event; see `Detector`."""
        self._looked.clear()
        if isinstance(event, Exec):
            yield from self._claim(event) if event.basis == "claimed" else self._truth(event)
            return
        if isinstance(event, Step):
            _keep(self._folders, event.step, event.cwd or self._folders.get(event.step, ""))
        elif isinstance(event, Exit):
            self._programs.pop(event.pid, None)  # the number may be a stranger's next
        kind = str(event.__struct_config__.tag)
        if kind in self._by_kind:
            derive = _DERIVE.get(type(event))
            view = View(event, derive(self, event)) if derive is not None else View(event)
            yield from self._matched(kind, view, set())

    def narrow(self, event: AnyEvent, meter: Meter) -> Iterator[Draft]:
        """Put the one rule out of service that was slow again and again."""
        parts = (
            (rules.numbers[place], partial(test, view))
            for rules, view in self._looked
            for place, test in rules.index.tests()
        )
        found = self._slowness.first_slow(parts, meter)
        if found:
            number, spent_ns = found
            for rules in self._by_kind.values():
                if number in rules.numbers:
                    rules.index.disable(rules.numbers.index(number))
            yield _failure(self._rules[number], f"it took {spent_ns / 1e6:.0f} ms for one event, again", event)

    def restore(self) -> None:
        """Take the rules that were slow into service again."""
        for rules in self._by_kind.values():
            rules.index.restore()
        self._slowness = Slowness()

    def _claim(self, event: Exec) -> Iterator[Draft]:
        program = _Program(event.path, " ".join(event.argv), tuple(event.argv))
        _keep(self._claims, event.seq, program)
        if "exec" in self._by_kind:
            yield from self._matched("exec", View(event, self._exec_facts(event, program)), program.seen)

    def _truth(self, event: Exec) -> Iterator[Draft]:
        claim = self._claims.pop(event.claim_seq, None) or _Program("", "")
        program = _Program(event.exe, claim.command_line, claim.argv, claim.seen)
        _keep(self._programs, event.pid, program)
        # A link leads elsewhere than its name says: rules about either are met.
        again = ("exec",) if event.exe != claim.image and "exec" in self._by_kind else ()
        stages = (*again, *(("exec.post",) if "exec.post" in self._by_kind else ()))
        if stages:
            parent = self._programs.get(event.ppid)
            facts = self._exec_facts(event, program)
            if parent is not None:
                facts["parent_image"] = parent.image
                facts["parent_command_line"] = parent.command_line
            facts["parent_pid"] = event.ppid
            view = View(event, facts)
            for stage in stages:
                yield from self._matched(stage, view, claim.seen)

    def _exec_facts(self, event: Exec, program: _Program) -> dict[str, Any]:
        return {
            "image": program.image,
            "name": program.image.rpartition("/")[2],
            "command_line": program.command_line,
            "user": self._user,
            "argv": program.argv,
            "path": event.path or program.image,
            "current_directory": self._folders.get(event.step, ""),
            "audit_type": "EXECVE",
        }

    def _process_facts(self, program: _Program) -> dict[str, Any]:
        return {
            "image": program.image,
            "name": program.image.rpartition("/")[2],
            "command_line": program.command_line,
            "user": self._user,
        }

    def _of_process(self, event: Event) -> dict[str, Any]:
        return self._process_facts(self._programs.get(event.pid, _UNKNOWN))

    def _connect_facts(self, event: Connect) -> dict[str, Any]:
        return {**self._of_process(event), "initiated": True, "is_ipv6": ":" in event.addr}

    def _file_facts(self, event: FileOp) -> dict[str, Any]:
        return {**self._of_process(event), "target": event.path2 or event.path, "audit_type": "PATH"}

    def _matched(self, kind: str, view: View, seen: set[int]) -> Iterator[Draft]:
        """Yield what the rules of a kind make of an event, but for those in `seen`, and add them there."""
        rules = self._by_kind[kind]
        self._looked.append((rules, view))
        try:
            matches = rules.index.matches(view)
        except Exception:  # noqa: BLE001 - `failing` names the rule, and the others go on
            for number, error in rules.index.failing(view):
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                yield _failure(self._rules[rules.numbers[number]], reason, view.event)
            matches = rules.index.matches(view)
        for match in matches:
            number = rules.numbers[match]
            if number in seen:
                continue
            seen.add(number)
            rule = self._rules[number]
            if rule.reported and self._is_news(rule.id, view.event):
                yield _draft(rule, (view.event.seq,), view.event)
            for fired in self._windows.feed(rule.id, view):
                if fired.forgot:
                    yield _forgotten(fired.window, view.event)
                elif fired.window.reported:
                    yield _draft(fired.window, fired.evidence, view.event)

    def _is_news(self, rule: str, event: Event) -> bool:
        key = (rule, event.step)
        last = self._reported.get(key)
        if last is not None and event.t_mono_ns - last < _QUIET_NS:
            return False
        _keep(self._reported, key, event.t_mono_ns)
        return True


_UNKNOWN: Final = _Program("", "")

_DERIVE: Final = MappingProxyType[type, Callable[[SigmaDetector, Any], dict[str, Any]]](
    {
        Connect: SigmaDetector._connect_facts,  # noqa: SLF001 - the table belongs to the class
        Dns: SigmaDetector._of_process,  # noqa: SLF001
        FileOp: SigmaDetector._file_facts,  # noqa: SLF001
    }
)


def _keep(table: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _KEPT:
        table.popitem(last=False)


def _draft(rule: Rule | Window, evidence: tuple[int, ...], event: Event) -> Draft:
    return Draft(
        rule=rule.id,
        title=rule.title,
        severity=rule.severity,
        family=rule.family,
        technique=rule.technique,
        rationale=rule.rationale,
        evidence=evidence,
        step=event.step,
        pid=event.pid,
    )


def _failure(rule: Rule, reason: str, event: Event) -> Draft:
    return Draft(
        rule=RULE_FAILED,
        title=f"the rule {rule.title} is out of service: {reason}",
        severity="high",
        family="monitor",
        technique="T1685",
        rationale=f"Nothing that {rule.source}:{rule.line} looks for is noticed in this watch from now on.",
        evidence=(event.seq,),
        step=event.step,
        pid=event.pid,
    )


def _forgotten(window: Window, event: Event) -> Draft:
    return Draft(
        rule=WINDOW_FORGOT,
        title=f"the correlation {window.title} has begun to forget: there are too many groups or values",
        severity="medium",
        family="monitor",
        technique="T1685",
        rationale="What it counts may be below its threshold only because a flood of other values has pushed it out.",
        evidence=(event.seq,),
        step=event.step,
        pid=event.pid,
    )
