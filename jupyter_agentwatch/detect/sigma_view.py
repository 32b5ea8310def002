"""One event as rules see it: named facts, each as texts, computed when a rule first asks and kept for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jupyter_agentwatch.detect.sigma_fields import KEYWORD_FACTS
from jupyter_agentwatch.detect.sigma_form import ANYWHERE
from jupyter_agentwatch.events import Event

__all__ = ["View", "as_texts"]

_NOTHING: Final[Mapping[str, Any]] = {}


class View:
    """The facts of one event.

    A fact is a tuple of texts: none where it is absent or empty (our records do not tell the two apart), several for a
    list, of which any may match.

    Args:
        event: The event; a field of it is a fact.
        derived: Facts that are no field of the event; they go before its fields.

    Attributes:
        event: The event.
        found: What several rules ask for, kept by whoever has worked it out.
    """

    __slots__ = ("_derived", "_lowered", "_texts", "event", "found")

    def __init__(self, event: Event, derived: Mapping[str, Any] = _NOTHING) -> None:
        self.event = event
        self.found: dict[object, object] = {}
        self._derived = derived
        self._texts: dict[str, tuple[str, ...]] = {}
        self._lowered: dict[str, tuple[str, ...]] = {}

    def texts(self, fact: str) -> tuple[str, ...]:
        """Return a fact as it is."""
        texts = self._texts.get(fact)
        if texts is None:
            texts = self._texts[fact] = self._read(fact)
        return texts

    def lowered(self, fact: str) -> tuple[str, ...]:
        """Return a fact in lower case."""
        texts = self._lowered.get(fact)
        if texts is None:
            if fact == ANYWHERE:
                texts = tuple([text for each in self._anywhere() for text in self.lowered(each)])
            else:
                texts = tuple([text.lower() for text in self.texts(fact)])
            self._lowered[fact] = texts
        return texts

    def _read(self, fact: str) -> tuple[str, ...]:
        value = self._derived.get(fact)
        if value is not None:
            return as_texts(value)
        if fact == ANYWHERE:
            return tuple([text for each in self._anywhere() for text in self.texts(each)])
        if fact.endswith("]"):
            name, _, index = fact[:-1].partition("[")
            items, at = self.texts(name), int(index)
            return items[at : at + 1]
        return as_texts(getattr(self.event, fact, None))

    def _anywhere(self) -> tuple[str, ...]:
        return KEYWORD_FACTS.get(str(self.event.__struct_config__.tag), ())


def as_texts(value: Any) -> tuple[str, ...]:
    """Return a value as texts: a list gives one for each item, True and False are "true" and "false"."""
    if isinstance(value, str):
        return (value,) if value else ()
    if value is None:
        return ()
    if isinstance(value, bool):
        return ("true",) if value else ("false",)
    if isinstance(value, list | tuple):
        # An item may be empty: the positions of arguments count.
        return tuple([item if isinstance(item, str) else str(item) for item in value])
    return (str(value),)
