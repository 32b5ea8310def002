"""Sigma rules as plain data: what the parser writes, the cache keeps, and the supervisor turns into closures.

It knows neither pySigma nor YAML, so that the supervisor can read rules without trusting either.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from jupyter_agentwatch.detect.model import Family
from jupyter_agentwatch.events import Severity

__all__ = [
    "ANYWHERE",
    "FORMAT",
    "AllOf",
    "AnyOf",
    "Compare",
    "CompiledRules",
    "Empty",
    "Exists",
    "InRange",
    "Member",
    "Node",
    "Not",
    "Pattern",
    "Problem",
    "Rule",
    "SameAs",
    "Text",
    "Window",
    "decode_rules",
    "encode_rules",
]

FORMAT: Final = 2
"""Version of this form; a cache of another version is made anew."""

ANYWHERE: Final = "*"
"""The fact that a keyword is looked for in: every text of an event."""


class _Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Written as arrays: a third of the size and of the time to read."""


class Text(_Form, frozen=True, tag="text"):
    """One of several texts equals, begins, ends or is part of a fact.

    Attributes:
        fact: Which fact of the event.
        op: How it is compared.
        values: The texts, in lower case unless `cased`.
        cased: Upper and lower case differ.
    """

    fact: str
    op: Literal["equals", "contains", "startswith", "endswith"]
    values: tuple[str, ...]
    cased: bool = False


class Pattern(_Form, frozen=True, tag="re"):
    """A regular expression in RE2's syntax is found in a fact.

    Attributes:
        fact: Which fact of the event.
        pattern: The expression, its flags in front.
        lowered: The fact is put into lower case first (a wildcard that ignores case).
        hint: Text in lower case that every match holds, or "".
    """

    fact: str
    pattern: str
    lowered: bool = False
    hint: str = ""


class InRange(_Form, frozen=True, tag="cidr"):
    """A fact is an address in one of these ranges."""

    fact: str
    ranges: tuple[str, ...]


class Empty(_Form, frozen=True, tag="null"):
    """A fact is absent, or empty: our records do not tell the two apart."""

    fact: str


class Exists(_Form, frozen=True, tag="exists"):
    """A fact is there, or is not."""

    fact: str
    wanted: bool


class Compare(_Form, frozen=True, tag="compare"):
    """A fact is a number below or above another."""

    fact: str
    op: Literal["lt", "lte", "gt", "gte"]
    number: float


class SameAs(_Form, frozen=True, tag="fieldref"):
    """A fact equals, begins with, ends with or (both) contains another fact of the same event."""

    fact: str
    other: str
    starts: bool = False
    ends: bool = False


class AllOf(_Form, frozen=True, tag="and"):
    """Every part holds."""

    parts: tuple[Node, ...]


class AnyOf(_Form, frozen=True, tag="or"):
    """One of the parts holds."""

    parts: tuple[Node, ...]


class Not(_Form, frozen=True, tag="not"):
    """The part does not hold."""

    part: Node


Node = Text | Pattern | InRange | Empty | Exists | Compare | SameAs | AllOf | AnyOf | Not
"""A condition over the facts of one event."""


class Rule(_Form, frozen=True):
    """A rule over single events.

    Attributes:
        id: The rule's UUID; its name or title where it has none.
        title: Its title.
        severity: Its level.
        family: Derived from its ATT&CK tags.
        technique: The first ATT&CK technique among its tags, or "".
        rationale: Description, known false positives and author: rules may be passed on only with their author.
        source: Where it was read from.
        line: Line there, from 1.
        kinds: Kinds of events that it looks at.
        node: When it matches.
        reported: A match is a finding; False for rules that only feed a window of their own file.
    """

    id: str
    title: str
    severity: Severity
    family: Family
    technique: str
    rationale: str
    source: str
    line: int
    kinds: tuple[str, ...]
    node: Node
    reported: bool = True


class Member(_Form, frozen=True):
    """A rule or window that a window counts, with the facts that its matches are grouped by and counted over."""

    rule: str
    group: tuple[str, ...] = ()
    value: str = ""


class Window(_Form, frozen=True):
    """A correlation of matches in a span of time. What is not named here is as in `Rule`.

    Attributes:
        type: What is counted.
        members: What counts, in the order of the rule.
        span_ns: Length of the window in nanoseconds.
        count: How many matches, distinct values or distinct members there must be.
    """

    id: str
    title: str
    severity: Severity
    family: Family
    technique: str
    rationale: str
    source: str
    line: int
    type: Literal["event_count", "value_count", "temporal", "temporal_ordered"]
    members: tuple[Member, ...]
    span_ns: int
    count: int
    reported: bool = True


class CompiledRules(_Form, frozen=True):
    """Everything that the evaluator needs. A window stands behind every window that it counts."""

    format: int = FORMAT
    rules: tuple[Rule, ...] = ()
    windows: tuple[Window, ...] = ()


class Problem(msgspec.Struct, frozen=True):
    """A rule that does not run.

    Attributes:
        source: Where it stands.
        line: Line there, from 1.
        rule: Its title, or "" where none could be read.
        reason: What is wrong, and what to do where that is not plain.
        kind: "invalid" does not follow the specification; "unsupported" does, but cannot be honoured here; "field"
            needs a field that our events do not have; "source" is about a log that we do not keep, which is normal
            where a whole public collection is loaded.
    """

    source: str
    line: int
    rule: str
    reason: str
    kind: Literal["invalid", "unsupported", "field", "source"] = "invalid"


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(CompiledRules)


def encode_rules(rules: CompiledRules) -> bytes:
    """Return the rules as bytes for a cache."""
    return _ENCODER.encode(rules)


def decode_rules(data: bytes) -> CompiledRules:
    """Read rules back.

    Raises:
        msgspec.DecodeError: Not rules, or of another version: compile them anew.
    """
    try:
        rules = _DECODER.decode(data)
    except RecursionError as error:
        msg = "rules are nested beyond all measure"
        raise msgspec.DecodeError(msg) from error
    if rules.format != FORMAT:
        msg = f"compiled rules have format {rules.format}, not {FORMAT}"
        raise msgspec.DecodeError(msg)
    return rules
