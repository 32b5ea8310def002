"""Telemetry samples as a table: one row for each thing that was measured. Loads pandas, hence only when asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, ProcessSample, Resources, Snapshot

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SampleKind", "sample_table"]

SampleKind = Literal["gpu", "gpu_process", "resources", "process"]
"""What a row is about: a GPU, a process on a GPU, all processes of the sandbox together, or one of them."""

_STRUCTS: Final[dict[str, type[msgspec.Struct]]] = {
    "gpu": GpuSample,
    "gpu_process": GpuProcess,
    "resources": Resources,
    "process": ProcessSample,
}
_FIRST: Final = ("time", "seq", "kind")
_OWN: Final = {"gpu_process": ("device", "index", "simulated")}
_NOT_SHOWN: Final = frozenset({"t_mono_ns", "t_wall_ns", "readings", "processes", "xids"})


def sample_table(snapshots: Iterable[Snapshot], kind: SampleKind | None = None) -> pd.DataFrame:
    """Return samples as a DataFrame, in the order of their times; what is not known is missing.

    Args:
        snapshots: The samples.
        kind: Only rows about this, with only its columns; None: all of them.

    Raises:
        ValueError: There is no such kind.
    """
    import pandas as pd

    if kind is not None and kind not in _STRUCTS:
        msg = f"kind: {kind!r} is none of {', '.join(get_args(SampleKind))}"
        raise ValueError(msg)
    kinds = [kind] if kind is not None else list(_STRUCTS)
    columns = list(dict.fromkeys([*_FIRST, *(name for each in kinds for name in _columns(each))]))
    rows = [row for snapshot in snapshots for row in _rows(snapshot) if row["kind"] in kinds]
    table = pd.DataFrame(rows, columns=columns)
    table["time"] = pd.to_datetime(table["time"].astype("int64"), unit="ns", utc=True)
    return table


def _columns(kind: str) -> list[str]:
    fields = [field.name for field in msgspec.structs.fields(_STRUCTS[kind]) if field.name not in _NOT_SHOWN]
    counted = ["processes"] if kind == "resources" else []
    return [*_OWN.get(kind, ()), *fields, *counted]


def _rows(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    for gpu in snapshot.gpus:
        yield _row(snapshot, "gpu", gpu)
        device = {"device": gpu.uuid, "index": gpu.index, "simulated": gpu.simulated}
        for used in gpu.processes:
            yield _row(snapshot, "gpu_process", used) | device
    found = snapshot.resources
    yield _row(snapshot, "resources", found) | {"processes": len(found.processes) + found.unread}
    for process in found.processes:
        yield _row(snapshot, "process", process)


def _row(snapshot: Snapshot, kind: str, part: msgspec.Struct) -> dict[str, Any]:
    values = {name: getattr(part, name) for name in part.__struct_fields__ if name not in _NOT_SHOWN}
    return {"time": snapshot.t_wall_ns, "seq": snapshot.seq, "kind": kind, **values}
