"""Shows every command that was asked for to the families' rules, once for each program that it would really start.

The exec record is the truth and may be critical by itself; what stands in a script is a hint, and never more than high.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from jupyter_agentwatch.detect.decoding import MAX_TEXT
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.model import RULE_FAILED, Draft
from jupyter_agentwatch.detect.rule import SEVERITIES, Check, Hit, Rule, Ruleset, draft
from jupyter_agentwatch.detect.shapes import Shape, Shapes
from jupyter_agentwatch.detect.slowness import Meter, Slowness
from jupyter_agentwatch.detect.unwrap import SHELLS, Invocation, invocations, program_name
from jupyter_agentwatch.detect.wrappers import CODE_FLAGS, WRAPPERS
from jupyter_agentwatch.events import AnyEvent, Exec, Severity, Step

__all__ = ["UNREAD", "CommandDetector"]

_REMEMBERED: Final = 4096
_STDIN_SHOWN: Final = 4096
_SHORT: Final = 2048
_READERS: Final = SHELLS | WRAPPERS | frozenset(CODE_FLAGS) | {"eval", "source", "."}
_PIECE: Final = lazy_pattern(r"[a-z0-9_+]+")
# Text whose command names cannot be seen before it is expanded. One expression for each literal that has to be there:
# looking for literals costs a tenth of looking for an expression.
_HIDING: Final = (
    ("base", lazy_pattern(r"base(?:64|32)\s+(?:-\w*[dDi]|--d)|-base64")),
    ("b64decode", lazy_pattern(r"b64decode")),
    ("xxd", lazy_pattern(r"\bxxd\s+-\w*r")),
    ("eval", lazy_pattern(r"\beval[\s(]")),
    ("\\x", lazy_pattern(r"\\x[0-9a-fA-F]{2}")),
    ("{", lazy_pattern(r"\{[\w./]+,[-\w./:,]+\}(?:\s*$|;)")),
    ("`", lazy_pattern(r"`\s*(?:echo|printf|rev)\b")),
    ("$(", lazy_pattern(r"\$\(\s*(?:echo|printf|rev)\b")),
    (
        "$",
        lazy_pattern(
            r"\$'|\$\{?IFS|\$\{?\w{1,64}(?::\d[^}$]{0,64})?\}?\$|(?:^|[;&|(]\s*|\$ )\$\{?[a-zA-Z]",
        ),
    ),
)
_INTO_SHELL: Final = lazy_pattern(r"\|\s{0,16}(?:[^\s|]{0,64}/)?(?:ba|da|z)?sh\b")
_SAYS: Final = lazy_pattern(r"\brev\b|\btr\b|zcat|gunzip|\bprintf\b|\becho\b")
_STARK: Final = frozenset({"mining", "tunnel", "shell", "probing"})
# Their arguments are text to look for, to write or to fetch, not something that they do.
_TEXT_TOOLS: Final = frozenset(
    listed(
        "grep egrep fgrep zgrep rg ag ack sed echo printf cat less more head tail man info apropos whatis tldr which "
        "whereis "
        "type test [ [[ git jq yq vim vi nano emacs diff sort uniq wc ls stat file touch mkdir rm cp mv ln tee cut "
        "tr expr "
        "apt apt-get dnf yum apk brew snap pip pip3 dpkg rpm gcc cc g++ c++ clang cargo rustc make cmake pytest"
    )
)


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
        self._shapes = Shapes(rulesets)
        loud: set[str] = set()
        self._stark: set[str] = set()
        for each in rulesets:
            loud |= each.by_name.keys() - each.quiet
            if any(rule.family in _STARK for rule in each.rules):
                self._stark |= each.by_name.keys() - each.quiet - _READERS
            for name, checks in each.by_name.items():
                self._by_name.setdefault(name, []).extend(checks)
        self._pieces = frozenset(max(_PIECE.findall(name) or [""], key=len) for name in loud)
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
            for check in self._checks(run, self._shapes.all)
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
            shapes = self._interest(path or argv[0], argv)
            runs = invocations(argv, path=path) if shapes is not None else []
            known = [(run, hit) for run in runs for hit in self._hits(run, shapes or ())]
            if sum(map(len, argv)) <= _SHORT:
                self._analysed[key] = known
                if len(self._analysed) > _REMEMBERED:
                    self._analysed.popitem(last=False)
        return known

    def hits(self, argv: Sequence[str], *, path: str = "") -> list[Hit]:
        """Return everything that the rules say of one argument vector, without memory and without weighing."""
        return [hit for run in invocations(argv, path=path) for hit in self._hits(run, self._shapes.all)]

    def _interest(self, program: str, argv: Sequence[str]) -> Sequence[Shape] | None:
        """Return the shapes that these arguments can have, or None where nothing at all can be found in them."""
        name = program_name(program)
        # What a program is called by its own name says nothing: /bin/bash would be a mark of every command.
        text = " ".join(argv[1:] if argv[0] in (name, f"/bin/{name}", f"/usr/bin/{name}") else argv)[:MAX_TEXT]
        plain = text.replace("'", "").replace('"', "").replace("\\", "").lower()
        shapes = self._shapes.marked(plain) if plain else ()
        if name not in _READERS:
            if name in self._by_name:
                return shapes
            return shapes if shapes and name not in _TEXT_TOOLS else None
        if _may_hide(text):
            return self._shapes.all
        return shapes if shapes or not self._pieces.isdisjoint(_PIECE.findall(plain)) else None

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
        if not shapes or (run.name in _TEXT_TOOLS and not (run.redirects or run.assigned)):
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


def _may_hide(text: str) -> bool:
    for literal, pattern in _HIDING:  # a generator would take three times as long, and this runs for every exec
        if literal in text and pattern.search(text):
            return True
    if "|" not in text or not _INTO_SHELL.search(text):
        return False
    said = _SAYS.search(text)
    return said is not None and _INTO_SHELL.search(text, said.end()) is not None


def _weight(hit: Hit, *, is_hint: bool) -> Severity:
    severity = hit.severity or hit.rule.severity
    return "high" if is_hint and severity == "critical" else severity
