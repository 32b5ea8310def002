"""Shows every command that was asked for to the families' rules, once for each program that it would really start.

The exec record is the truth and may be critical by itself; what stands in a script is a hint, and never more than high.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.detect.rule import SEVERITIES, Check, Hit, Rule, Ruleset, draft
from jupyter_agentwatch.detect.unwrap import SHELLS, Invocation, invocations, program_name
from jupyter_agentwatch.detect.wrappers import CODE_FLAGS, WRAPPERS
from jupyter_agentwatch.events import AnyEvent, Exec, Severity, Step

__all__ = ["CommandDetector"]

_REMEMBERED: Final = 4096
_STDIN_SHOWN: Final = 4096
_READERS: Final = SHELLS | WRAPPERS | frozenset(CODE_FLAGS) | {"eval", "source", "."}
_QUOTING: Final = str.maketrans("", "", "'\"\\")
_PIECE: Final = re.compile(r"[a-z0-9_+]+")
# Text whose command names cannot be seen before it is expanded.
_HIDING: Final = re.compile(
    r"base(?:64|32)|b64decode|\bxxd\b|\bprintf\b|\$'|\$\{?IFS|\beval\b|\brev\b|\btr\b|gunzip|zcat|/dev/(?:tcp|udp)|"
    r"\$\{?\w+(?::[^}]*)?\}?\$|(?:^|[;&|]\s*)\$\{?\w|\{\w+,"
)
# Their arguments are text to look for, to write or to fetch, not something that they do.
_TEXT_TOOLS: Final = frozenset(
    "grep egrep fgrep zgrep rg ag ack sed echo printf cat less more head tail man info apropos whatis tldr which whereis "
    "type test [ [[ git jq yq vim vi nano emacs diff sort uniq wc ls stat file touch mkdir rm cp mv ln tee cut tr expr "
    "apt apt-get dnf yum apk brew snap pip pip3 dpkg rpm gcc cc g++ c++ clang cargo rustc make cmake pytest".split()
)


class CommandDetector:
    """Rules over commands.

    Args:
        rulesets: What the families know.
    """

    def __init__(self, rulesets: Sequence[Ruleset]) -> None:
        self._by_name: dict[str, list[Check]] = {}
        self._shapes: list[tuple[re.Pattern[str], Sequence[Check]]] = []
        for each in rulesets:
            for name, checks in each.by_name.items():
                self._by_name.setdefault(name, []).extend(checks)
            if each.shape_pattern:
                self._shapes.append((re.compile(each.shape_pattern, re.IGNORECASE), each.shapes))
        self._any_shape = re.compile("|".join(f"(?:{p.pattern})" for p, _ in self._shapes) or "(?!)", re.IGNORECASE)
        self._pieces = frozenset(max(_PIECE.findall(name) or [""], key=len) for name in self._by_name)
        self._seen: OrderedDict[tuple[int, str, str], int] = OrderedDict()
        self.rules: tuple[Rule, ...] = tuple(rule for each in rulesets for rule in each.rules)

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
        if not event.argv or not self._is_worth_reading(path or event.argv[0], event.argv):
            return ()
        found: list[Draft] = []
        for run in invocations(event.argv, path=path):
            for hit in self._hits(run):
                severity = _weight(hit, is_hint=is_hint or run.from_script)
                if self._is_news(event.step, run, hit, severity):
                    detail = hit.detail or " ".join(run.argv)
                    found.append(draft(hit.rule, event, detail, severity=severity))
        return found

    def hits(self, argv: Sequence[str], *, path: str = "") -> list[Hit]:
        """Return everything that the rules say of one argument vector, without memory and without weighing."""
        return [hit for run in invocations(argv, path=path) for hit in self._hits(run)]

    def _is_worth_reading(self, program: str, argv: Sequence[str]) -> bool:
        name = program_name(program)
        if name in self._by_name:
            return True
        joined = " ".join(argv)
        if name not in _READERS:
            return name not in _TEXT_TOOLS and self._any_shape.search(joined) is not None
        plain = joined.translate(_QUOTING).lower()
        return (
            not self._pieces.isdisjoint(_PIECE.findall(plain))
            or _HIDING.search(joined) is not None
            or self._any_shape.search(plain) is not None
        )

    def _hits(self, run: Invocation) -> Iterable[Hit]:
        for check in self._by_name.get(run.name, ()):
            yield from check(run)
        if run.name in _TEXT_TOOLS and not (run.redirects or run.assigned):
            return
        joined = " ".join((*run.argv, run.stdin[:_STDIN_SHOWN]))
        for redirect in run.redirects:
            joined += f" {redirect.op}{redirect.target}"
        for variable, value in run.assigned.items():
            joined += f" {variable}={value}"
        for pattern, checks in self._shapes:
            if pattern.search(joined):
                for check in checks:
                    yield from check(run)

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


def _weight(hit: Hit, *, is_hint: bool) -> Severity:
    severity = hit.severity or hit.rule.severity
    return "high" if is_hint and severity == "critical" else severity
