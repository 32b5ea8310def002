"""Runs compiled Sigma rules over the record: joins each exec's claim with its truth, and matches into findings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec

from jupyter_agentwatch.detect.model import RULE_FAILED, Draft
from jupyter_agentwatch.detect.sigma_fields import ACTIONS, AFTER_EXEC, AUDIT_TYPES, SYSCALLS
from jupyter_agentwatch.detect.sigma_form import ANYWHERE, CompiledRules, Rule, Window
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

_COMMANDS: Final = 1024
_COMM: Final = 15
_SHORT: Final = 2048
_OF_COMMAND: Final = frozenset(
    {
        *(ANYWHERE, "image", "name", "command_line", "user", "argv", "path", "current_directory", "audit_type"),
        *("syscall", "paths", "comm", "parent_image", "parent_command_line"),
    }
)
_Command = tuple[str, tuple[str, ...], str, str, str, str, str]
"""What decides those facts: image, arguments, path, what was called, folder, and the parent's image and command."""


class _Program(msgspec.Struct):
    """What runs, or was asked to run, under a process id. `seen` are numbers of the rules that the claim has met.

    `image` is what runs, `called` what the call named: a link leads elsewhere, and the kernel calls a process by the
    link's name.
    """

    image: str
    command_line: str
    called: str = ""
    argv: tuple[str, ...] = ()
    seen: set[int] = msgspec.field(default_factory=set)


class _Rules:
    """Rules over one kind of event, with the index over them.

    Args:
        stage: The kind; "exec.post" for execs whose program runs.
        rules: The rules, each with its number among all.

    Attributes:
        numbers: Their numbers.
        index: The index.
    """

    def __init__(self, stage: str, rules: list[tuple[int, Rule]]) -> None:
        self.numbers = [number for number, _ in rules]
        self.index = Index([rule.node for _, rule in rules], stage.partition(".")[0])
        facts = frozenset[str]().union(*(facts_of(rule.node) for _, rule in rules))
        self._is_steady = {fact.partition("[")[0] for fact in facts} <= _OF_COMMAND
        self._known: dict[_Command, tuple[int, ...]] = {}

    def known(self, command: _Command) -> tuple[int, ...] | None:
        """Return the numbers of the rules that match a command, where it was looked at lately."""
        return self._known.get(command)

    def remember(self, command: _Command, numbers: tuple[int, ...]) -> None:
        """Keep what `known` returns, where every rule asks only for what makes the command."""
        if not self._is_steady:
            return
        self._known[command] = numbers
        if len(self._known) > _COMMANDS:
            del self._known[next(iter(self._known))]

    def forget(self) -> None:
        """Look at every command again: other rules are in service now."""
        self._known.clear()


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
        self._by_kind = {stage: _Rules(stage, each) for stage, each in by_kind.items()}
        wanted = {kind.partition(".")[0] for kind in by_kind}
        self.kinds = frozenset(wanted | {"exec", "exit", "step"}) if wanted else frozenset()
        self._claims: OrderedDict[int, _Program] = OrderedDict()
        self._programs: OrderedDict[int, _Program] = OrderedDict()
        self._folders: OrderedDict[int, str] = OrderedDict()
        self._reported: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._looked: list[tuple[_Rules, View]] = []
        self._slowness: Slowness[int] = Slowness()

    def feed(self, event: AnyEvent) -> list[Draft]:
        """Match one event; see `Detector`."""
        self._looked.clear()
        if isinstance(event, Exec):
            return self._claim(event) if event.basis == "claimed" else self._truth(event)
        if isinstance(event, Step):
            _keep(self._folders, event.step, event.cwd or self._folders.get(event.step, ""))
        elif isinstance(event, Exit):
            self._programs.pop(event.pid, None)  # the number may be a stranger's next
        rules = self._by_kind.get(str(event.__struct_config__.tag))
        if rules is None:
            return []
        derive = _DERIVE.get(type(event))
        view = View(event, derive(self, event)) if derive is not None else View(event)
        found: list[Draft] = []
        self._matched(self._look(rules, view, found), view, set(), found)
        return found

    def narrow(self, event: AnyEvent, meter: Meter) -> Iterator[Draft]:
        """Put the one rule out of service that was slow again and again."""
        parts = (
            (rules.numbers[place], partial(test, view))
            for rules, view in self._looked
            for place, test in rules.index.tests(view)
        )
        found = self._slowness.first_slow(parts, meter)
        if found:
            number, spent_ns = found
            for rules in self._by_kind.values():
                if number in rules.numbers:
                    rules.index.disable(rules.numbers.index(number))
                    rules.forget()
            yield _failure(self._rules[number], f"it took {spent_ns / 1e6:.0f} ms for one event, again", event)

    def restore(self) -> None:
        """Take the rules that were slow into service again."""
        for rules in self._by_kind.values():
            rules.index.restore()
            rules.forget()
        self._slowness = Slowness()

    def _claim(self, event: Exec) -> list[Draft]:
        program = _Program(event.path, " ".join(event.argv), event.path, tuple(event.argv))
        _keep(self._claims, event.seq, program)
        return self._of_command("exec", event, program, None)

    def _truth(self, event: Exec) -> list[Draft]:
        claim = self._claims.pop(event.claim_seq, None) or _Program("", "")
        program = _Program(event.exe, claim.command_line, claim.called, claim.argv, claim.seen)
        _keep(self._programs, event.pid, program)
        parent = self._programs.get(event.ppid)
        # A link leads elsewhere than its name says: rules about either are met.
        again = self._of_command("exec", event, program, parent) if event.exe != claim.image else []
        return again + self._of_command("exec.post", event, program, parent)

    def _of_command(self, stage: str, event: Exec, program: _Program, parent: _Program | None) -> list[Draft]:
        """Match an exec; what the rules of a stage make of a command is the same the next time."""
        rules = self._by_kind.get(stage)
        if rules is None:
            return []
        path, folder = event.path or program.image, self._folders.get(event.step, "")
        by, called = parent or _UNKNOWN, program.called or program.image
        command = (program.image, program.argv, path, called, folder, by.image, by.command_line)
        numbers = rules.known(command)
        if numbers is not None and program.seen.issuperset(numbers):
            return []
        facts = {
            "image": program.image,
            "name": program.image.rpartition("/")[2],
            "command_line": program.command_line,
            "user": self._user,
            "argv": program.argv,
            "path": path,
            "current_directory": folder,
            "audit_type": AUDIT_TYPES["exec"],
            "syscall": SYSCALLS["execve"],
            "paths": called,
            "comm": _comm(called),
            "parent_image": by.image,
            "parent_command_line": by.command_line,
            "parent_pid": None if event.basis == "claimed" else event.ppid,
        }
        view, found = View(event, facts), list[Draft]()
        if numbers is None:
            numbers = self._look(rules, view, found)
            if len(program.command_line) <= _SHORT:
                rules.remember(command, numbers)
        self._matched(numbers, view, program.seen, found)
        return found

    def _process_facts(self, program: _Program) -> dict[str, Any]:
        return {
            "image": program.image,
            "name": program.image.rpartition("/")[2],
            "command_line": program.command_line,
            "comm": _comm(program.called or program.image),
            "user": self._user,
        }

    def _of_process(self, event: Event) -> dict[str, Any]:
        return self._process_facts(self._programs.get(event.pid, _UNKNOWN))

    def _connect_facts(self, event: Connect) -> dict[str, Any]:
        return {
            **self._of_process(event),
            "initiated": True,
            "is_ipv6": ":" in event.addr,
            "action": ACTIONS.get(event.verdict),
            "blocked": event.verdict == "deny",
        }

    def _dns_facts(self, event: Dns) -> dict[str, Any]:
        return {**self._of_process(event), "rejected": event.rcode == "REFUSED"}

    def _file_facts(self, event: FileOp) -> dict[str, Any]:
        return {
            **self._of_process(event),
            "target": event.path2 or event.path,
            "paths": [name for name in (event.path, event.path2) if name],
            "audit_type": AUDIT_TYPES["file"],
            "syscall": SYSCALLS.get(event.op, (event.op,)),
        }

    def _look(self, rules: _Rules, view: View, found: list[Draft]) -> tuple[int, ...]:
        """Return the numbers of the rules that match; one that fails goes out of service, and `found` tells it."""
        self._looked.append((rules, view))
        try:
            matches = rules.index.matches(view)
        except Exception:  # noqa: BLE001 - `failing` names the rule, and the others go on
            for place, error in rules.index.failing(view):
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                found.append(_failure(self._rules[rules.numbers[place]], reason, view.event))
            rules.forget()
            matches = rules.index.matches(view)
        return tuple([rules.numbers[place] for place in matches])

    def _matched(self, numbers: Iterable[int], view: View, seen: set[int], found: list[Draft]) -> None:
        """Add to `found` what matching rules make of an event, but for those in `seen`, and add them there."""
        for number in numbers:
            if number in seen:
                continue
            seen.add(number)
            rule = self._rules[number]
            if rule.reported and self._is_news(rule.id, view.event):
                found.append(_draft(rule, (view.event.seq,), view.event))
            for fired in self._windows.feed(rule.id, view):
                if fired.forgot:
                    found.append(_forgotten(fired.window, view.event))
                elif fired.window.reported:
                    found.append(_draft(fired.window, fired.evidence, view.event))

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
        Dns: SigmaDetector._dns_facts,  # noqa: SLF001
        FileOp: SigmaDetector._file_facts,  # noqa: SLF001
    }
)


def _comm(called: str) -> tuple[str, ...]:
    """Return the name that the kernel gives a process, which it cuts; rules have the one or the other."""
    name = called.rpartition("/")[2]
    return (name,) if len(name) <= _COMM else (name, name[:_COMM])


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
