"""Sigma's correlation rules into windows: references resolved, fields turned into facts.

What cannot be counted exactly is refused: a correlation that counts something else than it says would be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sigma.correlations import SigmaCorrelationCondition, SigmaCorrelationRule

from jupyter_agentwatch.detect.sigma_fields import Source
from jupyter_agentwatch.detect.sigma_form import Member, Problem, Rule, Window
from jupyter_agentwatch.detect.sigma_translate import MissingFieldError, UnsupportedError
from jupyter_agentwatch.detect.sigma_windows import MAX_COUNT

__all__ = ["compile_windows"]

_TYPES: Final = ("event_count", "value_count", "temporal", "temporal_ordered")

_Metadata = Callable[[Any, str, str, int], dict[str, Any]]


def compile_windows(
    parsed: Sequence[tuple[SigmaCorrelationRule, str, int]],
    names: Mapping[str, str],
    sources: Mapping[str, Source],
    rules: Mapping[str, Rule],
    lost: Mapping[str, Problem],
    *,
    metadata: _Metadata,
    problems: list[Problem],
) -> tuple[list[Window], set[str]]:
    """Compile correlations, each after those that it counts.

    Args:
        parsed: Correlations with the file and the line of each.
        names: Id or name of a rule → its id.
        sources: Log source of each rule, by id.
        rules: The compiled rules, by id.
        lost: What is wrong with the rules that do not run, by id or name.
        metadata: Gives what rules and correlations have in common.
        problems: Takes up what is wrong.

    Returns:
        The windows, and the ids of the rules that are no findings of their own: a correlation that does not say
        `generate: true` silences what it counts, but only within its own file, so that no file can silence another's.
    """
    done = _Compiler(dict(names), dict(sources), lost, metadata)
    waiting = list(parsed)
    while waiting:
        reasons = []
        for each in waiting:
            try:
                done.add(*each)
            except (UnsupportedError, MissingFieldError, _UnknownRuleError) as error:
                reasons.append((each, error))
        left = [each for each, error in reasons if isinstance(error, _UnknownRuleError)]
        problems += [_problem(each, error) for each, error in reasons if each not in left]
        if len(left) == len(waiting):
            problems += [_problem(each, error) for each, error in reasons if each in left]
            break
        waiting = left
    for window in done.windows:
        done.silence(window, rules)
    return [done.quiet(window) for window in done.windows], done.silenced


class _UnknownRuleError(ValueError):
    """No rule that runs has the id or name that a correlation counts, or none has it yet.

    Attributes:
        kind: Kind of the problem: that of the rule that does not run, if there is one.
    """

    def __init__(self, reference: str, lost: Problem | None) -> None:
        if lost is None:
            self.kind, reason = "invalid", f"counts {reference!r}, and no rule that runs has this id or name"
        else:
            self.kind, reason = lost.kind, f"counts {lost.rule!r}, which does not run: {lost.reason}"
        super().__init__(reason)


class _Compiler:
    def __init__(
        self, names: dict[str, str], sources: dict[str, Source], lost: Mapping[str, Problem], metadata: _Metadata
    ) -> None:
        self._names = names
        self._sources = sources
        self._lost = lost
        self._metadata = metadata
        self._generating: set[str] = set()
        self.windows: list[Window] = []
        self.silenced: set[str] = set()

    def add(self, parsed: SigmaCorrelationRule, source: str, line: int) -> None:
        """Compile one.

        Raises:
            _UnknownRuleError: A rule that it counts is not known, or not yet.
            UnsupportedError: It cannot be evaluated.
            MissingFieldError: It groups or counts by a field that we do not have.
        """
        key = str(parsed.id or parsed.name or parsed.title)
        kind = parsed.type.name.lower()
        if kind not in _TYPES:
            msg = f"correlations of the type {kind} are not supported"
            raise UnsupportedError(msg)
        members = [self._member(parsed, each.reference) for each in parsed.rules or []]
        if kind == "temporal" and len({each.rule for each in members}) < len(members):
            msg = "the same rule is named twice"
            raise UnsupportedError(msg)
        window = Window(
            **self._metadata(parsed, key, source, line),
            type=kind,  # type: ignore[arg-type]
            members=tuple(members),
            span_ns=parsed.timespan.seconds * 1_000_000_000,
            count=_count(parsed, len(members)),
        )
        self.windows.append(window)
        self._names.update({name: key for name in (key, parsed.name) if name})
        if parsed.generate:
            self._generating.add(key)
        # What a correlation passes on is the event that completed it.
        self._sources[key] = _common(self._sources[member.rule] for member in members)

    def _member(self, parsed: SigmaCorrelationRule, reference: str) -> Member:
        if reference not in self._names:
            raise _UnknownRuleError(reference, self._lost.get(reference))
        key = self._names[reference]
        source = self._sources[key]
        aliases = {
            each.alias: field
            for each in parsed.aliases
            for rule, field in each.mapping.items()
            if self._names.get(rule.reference) == key
        }

        def fact(name: str) -> str:
            found = source.fact(aliases.get(name, name))
            if found is None:
                raise MissingFieldError(name)
            return found

        value = parsed.condition.fieldref if isinstance(parsed.condition, SigmaCorrelationCondition) else None
        if isinstance(value, list):
            msg = "values of several fields together cannot be counted"
            raise UnsupportedError(msg)
        return Member(key, tuple(map(fact, parsed.group_by or [])), fact(value) if value else "")

    def silence(self, window: Window, rules: Mapping[str, Rule]) -> None:
        if window.id in self._generating:
            return
        own = {each.id for each in rules.values() if each.source == window.source}
        own |= {each.id for each in self.windows if each.source == window.source}
        self.silenced |= own & {member.rule for member in window.members}

    def quiet(self, window: Window) -> Window:
        return msgspec.structs.replace(window, reported=window.id not in self.silenced)


def _common(sources: Any) -> Source:
    each = list(sources)
    shared = {name: fact for name, fact in each[0].fields.items() if all(s.fields.get(name) == fact for s in each)}
    return Source(tuple(dict.fromkeys(kind for s in each for kind in s.kinds)), shared)


def _count(parsed: SigmaCorrelationRule, members: int) -> int:
    condition = parsed.condition
    if not members or not isinstance(condition, SigmaCorrelationCondition):
        msg = "conditions over the names of rules are not supported: list the rules"
        raise UnsupportedError(msg)
    operator = condition.op.name
    if operator not in ("GT", "GTE", "EQ"):
        msg = f"{operator.lower()} is not supported: fewer than a number can be told only when a window has passed"
        raise UnsupportedError(msg)
    count = int(condition.count) + (operator == "GT" or condition.count != int(condition.count))
    if not 1 <= count <= MAX_COUNT:
        msg = f"the threshold has to be between 1 and {MAX_COUNT}"
        raise UnsupportedError(msg)
    if parsed.type.name.startswith("TEMPORAL") and count > members:
        msg = f"it needs {count} of {members} rules, and can never match"
        raise UnsupportedError(msg)
    if parsed.type.name == "TEMPORAL_ORDERED" and count < members:
        msg = "an order of only some of the rules is not supported"
        raise UnsupportedError(msg)
    return count


def _problem(each: tuple[SigmaCorrelationRule, str, int], error: Exception) -> Problem:
    parsed, source, line = each
    kind = "field" if isinstance(error, MissingFieldError) else "unsupported"
    if isinstance(error, _UnknownRuleError):
        kind = error.kind
    return Problem(source, line, parsed.title, str(error.args[0]), kind)  # type: ignore[arg-type]
