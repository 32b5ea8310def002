"""Shows every command that was asked for to the families' rules, once for each program that it would really start.

The exec record is the truth and may be critical by itself; what stands in a script is a hint, and never more than high.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from jupyter_agentwatch.detect.interest import READERS, TEXT_TOOLS, Interest
from jupyter_agentwatch.detect.model import RULE_FAILED, Draft
from jupyter_agentwatch.detect.rule import SEVERITIES, Check, Hit, Rule, Ruleset, draft
from jupyter_agentwatch.detect.shapes import Shape
from jupyter_agentwatch.detect.slowness import Meter, Slowness
from jupyter_agentwatch.detect.unwrap import Invocation, invocations, outermost, program_name
from jupyter_agentwatch.events import AnyEvent, Exec, Severity, Step

__all__ = ["UNREAD", "CommandDetector"]

_REMEMBERED: Final = 4096
_STDIN_SHOWN: Final = 4096
_SHORT: Final = 2048
_STARK: Final = frozenset({"mining", "tunnel", "shell", "probing"})

UNREAD: Final = Rule(
    id="tampering.unread_arguments",
    title="a program for connections or mining has more arguments than are recorded",
    severity="high",
    technique="T1036",
    rationale="What it is told to do may stand behind arguments that do nothing, where nobody reads it.",
    false_positives=("a long command given to ssh", "a virtual machine with many devices"),
)
"""What is said where the record of a command cannot show what it does."""


class CommandDetector:
    """Rules over commands.

    Args:
        rulesets: What the families know.
    """

    def __init__(self, rulesets: Sequence[Ruleset]) -> None:
        self._by_name: dict[str, list[Check]] = {}
        self._interest = Interest(rulesets)
        self._stark: set[str] = set()
        for each in rulesets:
            if any(rule.family in _STARK for rule in each.rules):
                self._stark |= each.by_name.keys() - each.quiet - READERS
            for name, checks in each.by_name.items():
                self._by_name.setdefault(name, []).extend(checks)
        self._seen: OrderedDict[tuple[int, str, str], int] = OrderedDict()
        self._analysed: OrderedDict[tuple[str, tuple[str, ...]], list[tuple[Invocation, Hit]]] = OrderedDict()
        self._told: set[Check] = set()
        self._failures: list[str] = []
        self._off: set[Check] = set()
        self._slowness: Slowness[Check] = Slowness()
        self.rules: tuple[Rule, ...] = (*(rule for each in rulesets for rule in each.rules), UNREAD)

    @property
    def name(self) -> str:
        """Name of this detector."""
        return "commands"

    @property
    def kinds(self) -> frozenset[str]:
        """It reads what was asked for: steps, and the claims of execs."""
        return frozenset({"exec", "step"})

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings about a command; the same finding about the same command of one step is made once."""
        if isinstance(event, Exec):
            path = event.path
            is_hint = False
        elif isinstance(event, Step) and event.op == "start":
            path = ""
            is_hint = True
        else:
            return ()
        if not event.argv:
            return ()
        found: list[Draft] = []
        for run, hit in self._known_hits(path, tuple(event.argv)):
            severity = _weight(hit, is_hint=is_hint or run.from_script)
            if self._is_news(event.step, run, hit, severity):
                found.append(draft(hit.rule, event, hit.detail or " ".join(run.argv), severity=severity))
        if isinstance(event, Exec) and event.argv_truncated and self._hides(path, event.argv):
            found.append(draft(UNREAD, event, program_name(path or event.argv[0])))
        if self._failures:
            found += [_failed(failure, event) for failure in self._failures]
            self._failures.clear()
        return found

    def _hides(self, path: str, argv: Sequence[str]) -> bool:
        """Whether options that were not read could change what the families say of a program."""
        return any(run.name in self._stark for run in invocations(argv, path=path) if not run.from_script)

    def narrow(self, event: AnyEvent, meter: Meter) -> Iterable[Draft]:
        """Put the one check out of service that was slow again and again; reading the text is no check's fault."""
        if not isinstance(event, Exec | Step) or not event.argv:
            return
        path = event.path if isinstance(event, Exec) else ""
        parts = (
            (check, partial(_exhausted, check, run))
            for run in invocations(tuple(event.argv), path=path)
            for check in self._checks(run, self._interest.shapes.all)
            if check not in self._off
        )
        found = self._slowness.first_slow(parts, meter)
        if found:
            check, spent_ns = found
            self._off.add(check)
            reason = f"out of service: it took {spent_ns / 1e6:.0f} ms for one command, and was too slow before"
            yield _failed(f"{_name(check)}: {reason}", event)

    def restore(self) -> None:
        """Take every check into service again."""
        self._off.clear()
        self._slowness = Slowness()

    def _known_hits(self, path: str, argv: tuple[str, ...]) -> list[tuple[Invocation, Hit]]:
        """Return what the rules say, from memory where the same command was seen lately, as in every build."""
        if path == argv[0]:
            path = ""  # then it tells nothing, and a step and the exec that it asks for are one command
        key = (path, argv)
        known = self._analysed.get(key)
        if known is None:
            known = []
            look = self._interest.of(path or argv[0], argv)
            if look is not None:
                runs = invocations(argv, path=path) if look.inside else [outermost(argv, path=path)]
                known = [(run, hit) for run in runs for hit in self._hits(run, look.shapes)]
            if sum(map(len, argv)) <= _SHORT:
                self._analysed[key] = known
                if len(self._analysed) > _REMEMBERED:
                    self._analysed.popitem(last=False)
        return known

    def hits(self, argv: Sequence[str], *, path: str = "") -> list[Hit]:
        """Return everything that the rules say of one argument vector, without memory and without weighing."""
        return [hit for run in invocations(argv, path=path) for hit in self._hits(run, self._interest.shapes.all)]

    def _hits(self, run: Invocation, shapes: Sequence[Shape]) -> list[Hit]:
        """Return what the checks say; that one raises is told once, and it is asked again for the next command."""
        found: list[Hit] = []
        for check in self._checks(run, shapes):
            if check in self._off:
                continue
            try:
                found += list(check(run))
            except Exception as error:  # noqa: BLE001 - whatever it is: an agent may have looked for it
                if check not in self._told:
                    self._told.add(check)
                    self._failures.append(f"{_name(check)}: {type(error).__name__}: {error}")
        return found

    def _checks(self, run: Invocation, shapes: Sequence[Shape]) -> Sequence[Check]:
        """Return the checks that have to do with a program: by its name, and by the shape of what it is told."""
        by_name = self._by_name.get(run.name, ())
        if not shapes or (run.name in TEXT_TOOLS and not (run.redirects or run.assigned)):
            return by_name
        words = [*run.argv, run.stdin[:_STDIN_SHOWN]]
        words += [f"{redirect.op}{redirect.target}" for redirect in run.redirects]
        words += [f"{variable}={value}" for variable, value in run.assigned.items()]
        joined = " ".join(words)[:_STDIN_SHOWN]
        return [*by_name, *(check for shape in shapes if shape.fits(joined) for check in shape.checks)]

    def _is_news(self, step: int, run: Invocation, hit: Hit, severity: Severity) -> bool:
        key = (step, hit.rule.id, "\0".join((run.name, *run.argv[1:])))
        rank = SEVERITIES.index(severity)
        known = self._seen.get(key, -1)
        if rank <= known:
            return False
        self._seen[key] = rank
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True


def _name(check: Check) -> str:
    module = getattr(check, "__module__", "").rpartition(".")[2]
    return f"{module} {getattr(check, '__name__', 'a check').strip('_')}"


def _exhausted(check: Check, run: Invocation) -> None:
    for _ in check(run):
        pass


def _failed(what: str, event: AnyEvent) -> Draft:
    return Draft(
        rule=RULE_FAILED,
        title=f"a check of commands failed: {what[:200]}",
        severity="high",
        family="monitor",
        technique="T1685",
        rationale=(
            "What it looks for is not noticed in commands like this one. The evidence is the command on which it "
            "failed: a defect of the check, or an agent that has found one."
        ),
        evidence=(event.seq,),
        step=event.step,
        pid=event.pid,
    )


def _weight(hit: Hit, *, is_hint: bool) -> Severity:
    severity = hit.severity or hit.rule.severity
    return "high" if is_hint and severity == "critical" else severity
