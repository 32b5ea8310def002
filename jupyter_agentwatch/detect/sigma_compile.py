"""Sigma files into compiled rules, with every rule that cannot run named by file and line.

It parses with pySigma, which the supervisor must not import: the kernel side compiles, and passes on the plain form.
Reading files and keeping a cache is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import yaml
from sigma.collection import SigmaCollection
from sigma.correlations import SigmaCorrelationRule
from sigma.exceptions import SigmaConditionError, SigmaError
from sigma.policy import SigmaPolicy
from sigma.policy.regex_engine import RE2RegexEngine
from sigma.rule import SigmaRule, SigmaRuleBase

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.search import PatternError, checked_pattern
from jupyter_agentwatch.detect.sigma_correlate import compile_windows
from jupyter_agentwatch.detect.sigma_fields import Source, family_of, source_for
from jupyter_agentwatch.detect.sigma_form import AllOf, AnyOf, CompiledRules, Node, Problem, Rule, Text
from jupyter_agentwatch.detect.sigma_places import Places
from jupyter_agentwatch.detect.sigma_translate import (
    MissingFieldError,
    MissingRecordError,
    UnsupportedError,
    check_reachable,
    translated,
)
from jupyter_agentwatch.events import Severity

__all__ = ["MAX_FILE_CHARACTERS", "compile_rules"]

MAX_FILE_CHARACTERS: Final = 4_000_000
"""Longest text that is taken for a file of rules."""

_SEVERITIES: Final[dict[str, Severity]] = {
    "INFORMATIONAL": "info",
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
    "CRITICAL": "critical",
}


class _QuietEngine(RE2RegexEngine):
    """pySigma's own choice, without its messages on the standard error output: a problem says what is wrong."""

    def compile(self, pattern: str, flags: int = 0) -> Any:  # noqa: ARG002 - the signature is pySigma's
        """Compile a pattern; its flags are checked once more when it is translated."""
        return checked_pattern(pattern)

    @property
    def error(self) -> type[Exception]:
        """What `compile` raises."""
        return PatternError


_POLICY: Final = SigmaPolicy(regex_engine=_QuietEngine())


_HISTORY: Final = frozenset({"related", "date", "modified", "references", "fields", "license", "scope", "taxonomy"})
_MODIFIER: Final = lazy_pattern(r"modifier '?([\w]+)'?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    places: Places
    rules: list[SigmaRuleBase]


def compile_rules(texts: Mapping[str, str], *, excluded: Collection[str] = ()) -> tuple[CompiledRules, list[Problem]]:
    """Compile rules and correlations. A rule that cannot run is a problem; all others run.

    Args:
        texts: Name of each file, as it shall be shown to people → its text, one or several YAML documents.
        excluded: Ids or titles of rules to leave out.

    Returns:
        The rules, ready for `encode_rules` or an engine, and the problems in the order of the files.
    """
    problems: list[Problem] = []
    files = [file for name, text in texts.items() if (file := _parsed(name, text, problems)) is not None]
    rules: dict[str, Rule] = {}
    lost: dict[str, Problem] = {}
    sources: dict[str, Source] = {}
    by_name: dict[str, str] = {}
    windows: list[tuple[SigmaCorrelationRule, str, int]] = []
    left_out = frozenset(excluded)
    for file in files:
        for parsed in file.rules:
            title = str(parsed.title)  # of a rule with errors it may be anything
            line = file.places.of_document(title, parsed.id)
            key = _key(parsed)
            if left_out & {key, title}:
                continue
            if parsed.errors:
                problems += [_problem(file, _line_of(file, line, e), title, str(e)) for e in parsed.errors]
                lost.update({name: problems[-1] for name in (key, parsed.name) if name})
            elif isinstance(parsed, SigmaCorrelationRule):
                windows.append((parsed, file.name, line))
            elif key in rules:
                problems.append(
                    _problem(file, line, parsed.title, f"has the id of {_place(rules[key])}, which is used")
                )
            elif isinstance(parsed, SigmaRule):
                compiled = _compiled(parsed, key, file, line, problems)
                if compiled is not None:
                    rules[key], sources[key] = compiled
                    by_name.update({name: key for name in (key, parsed.name) if name})
                else:
                    lost.update({name: problems[-1] for name in (key, parsed.name) if name})
    made, silenced = compile_windows(windows, by_name, sources, rules, lost, metadata=_metadata, problems=problems)
    kept = [msgspec.structs.replace(rule, reported=rule.id not in silenced) for rule in rules.values()]
    order = {name: place for place, name in enumerate(texts)}
    problems.sort(key=lambda problem: (order[problem.source], problem.line))
    return CompiledRules(rules=tuple(kept), windows=tuple(made)), problems


def _parsed(name: str, text: str, problems: list[Problem]) -> _File | None:
    """Parse one file; what is wrong with it as a whole is a problem."""
    if len(text) > MAX_FILE_CHARACTERS:
        problems.append(Problem(name, 1, "", f"is too long: it has more than {MAX_FILE_CHARACTERS} characters"))
        return None
    try:
        places = Places(text)
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        problems.append(Problem(name, line, "", f"is not YAML: {error.problem or error.context}"))
        return None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(Problem(name, 1, "", f"cannot be read: {_told(error)}"))
        return None
    file = _File(name, places, [])
    # `action: global` and `repeat` merge documents; without them each is parsed alone, so that one cannot spoil others.
    has_actions = any(isinstance(each, dict) and "action" in each for each in documents)
    for part in [documents] if has_actions else [[each] for each in documents]:
        file.rules.extend(_collected(file, part, problems))
    return file


def _collected(file: _File, documents: list[Any], problems: list[Problem]) -> Iterator[SigmaRuleBase]:
    documents = [_of_use(each) for each in documents]
    first = documents[0]
    title = str(first.get("title", "")) if isinstance(first, dict) else ""
    line = file.places.of_document(title, None)
    if not all(isinstance(each, dict) for each in documents):
        problems.append(_problem(file, line, "", "is not a rule: a rule is a mapping with title, logsource, detection"))
        return
    try:
        collection = SigmaCollection.from_dicts(
            documents, collect_errors=True, collect_filters=True, resolve_references=False, policy=_POLICY
        )
    except Exception as error:  # noqa: BLE001 - the parser meets whatever a file holds, and raises what it likes
        problems.append(_problem(file, line, title, f"is not a Sigma rule: {_told(error)}"))
        return
    of_rules = {id(error) for rule in collection.rules for error in rule.errors}
    problems += [_problem(file, line, title, _told(e)) for e in collection.errors if id(e) not in of_rules]
    for each in collection.filters:
        where = file.places.of_document(str(each.title), each.id)
        reason = "is a filter, which is not supported: leave rules out by their id instead"
        problems.append(_problem(file, where, str(each.title), reason, "unsupported"))
    yield from collection.rules


def _of_use(document: Any) -> Any:
    """Leave out what a rule says about its own history: a mistake there is no reason not to run it."""
    return {k: v for k, v in document.items() if k not in _HISTORY} if isinstance(document, dict) else document


def _line_of(file: _File, line: int, error: Exception) -> int:
    found = _MODIFIER.search(str(error))
    return file.places.of_key(line, f"|{found[1]}") if found else line


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, SigmaError) else f"{type(error).__name__}: {error}"


def _compiled(
    parsed: SigmaRule, key: str, file: _File, line: int, problems: list[Problem]
) -> tuple[Rule, Source] | None:
    source = source_for(parsed.logsource.category, parsed.logsource.product, parsed.logsource.service)
    if source is None:
        words = (parsed.logsource.product, parsed.logsource.category, parsed.logsource.service)
        reason = f"is about {' '.join(word for word in words if word)}, a log that this monitor does not keep"
        problems.append(_problem(file, line, parsed.title, reason, "source"))
        return None
    if parsed.status is not None and parsed.status.name == "UNSUPPORTED":
        problems.append(_problem(file, line, parsed.title, "says of itself that it is unsupported", "unsupported"))
        return None
    try:
        node = _condition(parsed, source)
        check_reachable(node, source.values)
    except MissingRecordError as error:
        field = next(name for name, fact in source.fields.items() if fact == error.fact)
        reason = f"is about records with {field} {error.values}, which this monitor does not keep"
        problems.append(_problem(file, file.places.of_key(line, field), parsed.title, reason, "source"))
    except MissingFieldError as error:
        where = file.places.of_key(line, error.field)
        problems.append(_problem(file, where, parsed.title, str(error), "field"))
    except UnsupportedError as error:
        problems.append(_problem(file, line, parsed.title, str(error), "unsupported"))
    except Exception as error:  # noqa: BLE001 - as in `_collected`: conditions are parsed late
        where = file.places.of_key(line, "condition")
        problems.append(_problem(file, where, parsed.title, f"its condition is wrong: {_told(error)}"))
    else:
        return Rule(**_metadata(parsed, key, file.name, line), kinds=source.kinds, node=node), source
    return None


def _condition(parsed: SigmaRule, source: Source) -> Node:
    if not all(isinstance(each, str) for each in parsed.detection.condition):
        msg = "it has to be text, as in 'selection and not filter'"
        raise SigmaConditionError(msg)
    nodes = []
    for condition in parsed.detection.parsed_condition:
        tree = condition.parsed
        if tree is None:
            msg = "its condition is empty"
            raise UnsupportedError(msg)
        nodes.append(translated(tree, source.fact))
    node = nodes[0] if len(nodes) == 1 else AnyOf(tuple(nodes))
    only = [Text(fact, "equals", values) for fact, values in source.only.items()]
    return AllOf((*only, node)) if only else node


def _metadata(parsed: SigmaRuleBase, key: str, source: str, line: int) -> dict[str, Any]:
    """Return what rules and correlations have in common, as arguments."""
    tags = [tag.name.upper() for tag in parsed.tags or [] if tag.namespace == "attack"]
    techniques = tuple(name for name in tags if name[:1] == "T" and name[1:5].isdigit())
    said = [
        (parsed.description or "").strip(),
        f"Known false positives: {'; '.join(map(str, parsed.falsepositives))}." if parsed.falsepositives else "",
        # The licence of the public rules asks that the author is named where a rule's match is shown.
        f"Rule by {parsed.author}." if parsed.author else "",
    ]
    return {
        "id": key,
        "title": parsed.title,
        "severity": _SEVERITIES[parsed.level.name] if parsed.level is not None else "medium",
        "family": family_of(techniques),
        "technique": techniques[0] if techniques else "",
        "rationale": "\n".join(filter(None, said)),
        "source": source,
        "line": line,
    }


def _key(parsed: SigmaRuleBase) -> str:
    return str(parsed.id or parsed.name or parsed.title)


def _place(rule: Rule) -> str:
    return f"{rule.source}:{rule.line}"


def _problem(file: _File, line: int, rule: str, reason: str, kind: str = "invalid") -> Problem:
    return Problem(file.name, line, rule, reason, kind)  # type: ignore[arg-type]
