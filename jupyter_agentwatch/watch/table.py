"""Events as a table for the notebook. The only place in the kernel that loads pandas, and only when asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from jupyter_agentwatch.events import AnyEvent, Event

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["event_columns", "event_table"]

_KINDS: dict[str, type[Event]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyEvent)}
_FIRST = ("seq", "time", "kind", "cell", "step", "pid", "verdict", "basis")
_LAST = ("watch", "t_mono_ns", "t_wall_ns")
_DTYPES: dict[object, str] = {int: "Int64", int | None: "Int64", float: "float64", bool: "boolean"}
_ALWAYS_THERE = ("seq", "step", "pid", "t_mono_ns", "t_wall_ns")


def event_columns(kind: str | None = None) -> dict[str, str]:
    """Return the columns of a table and their pandas types: those of one kind, or of all kinds together.

    Raises:
        ValueError: There is no such kind.
    """
    if kind is not None and kind not in _KINDS:
        msg = f"kind: {kind!r} is not a kind of event; known: {', '.join(sorted(_KINDS))}"
        raise ValueError(msg)
    kinds = [_KINDS[kind]] if kind else list(_KINDS.values())
    columns = dict.fromkeys(_FIRST, "object")
    for each in kinds:
        for field in msgspec.structs.fields(each):
            if field.name not in _LAST:
                columns[field.name] = _DTYPES.get(field.type, "object")
    columns |= dict.fromkeys(_LAST, "object")
    columns |= dict.fromkeys(_ALWAYS_THERE, "int64")
    columns["time"] = "datetime64[ns, UTC]"
    return columns


def event_table(events: Iterable[AnyEvent], kind: str | None = None) -> pd.DataFrame:
    """Return events as a DataFrame, one row each; what a kind does not have is missing (`<NA>`, NaN or None).

    Args:
        events: The events, in the order of the rows.
        kind: Only this kind's columns; None: the columns of all kinds.

    Raises:
        ValueError: There is no such kind.
    """
    import pandas as pd

    rows = list(events)
    columns = {}
    for name, dtype in event_columns(kind).items():
        values: list[Any]
        if name == "time":
            values = [row.t_wall_ns for row in rows]
            columns[name] = pd.to_datetime(pd.Series(values, dtype="int64"), unit="ns", utc=True)
            continue
        if name == "kind":
            values = [row.__struct_config__.tag for row in rows]
        else:
            values = [getattr(row, name, None) for row in rows]
        columns[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(columns)
