"""Records as OpenTelemetry log records: names after its semantic conventions where there are any, else our own.

A table, and two ways out: lines of OTLP's JSON, which need no library, and a `LoggerProvider` of the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jupyter_agentwatch import __version__
from jupyter_agentwatch.events import AnyEvent, Finding, Gap

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

__all__ = ["LogEntry", "emit_to", "log_entries", "otlp_lines"]

_SCOPE: Final = "jupyter_agentwatch"
_BATCH: Final = 512
_INFO: Final = (9, "INFO")
_WARN: Final = (13, "WARN")
_SEVERITY: Final = MappingProxyType(
    {"info": _INFO, "low": (12, "INFO4"), "medium": _WARN, "high": (17, "ERROR"), "critical": (21, "FATAL")}
)
_COMMON: Final = MappingProxyType(
    {name: f"agentwatch.{name}" for name in ("seq", "watch", "cell", "step", "verdict", "basis")}
)
_NAMES: Final = MappingProxyType(
    {
        "step": {"argv": "process.command_args", "cwd": "process.working_directory", "exit_code": "process.exit.code"},
        "exec": {
            "argv": "process.command_args",
            "exe": "process.executable.path",
            "ppid": "process.parent_pid",
        },
        "exit": {"exit_code": "process.exit.code"},
        "connect": {
            "transport": "network.transport",
            "addr": "network.peer.address",
            "port": "network.peer.port",
            "host": "server.address",
        },
        "listen": {
            "transport": "network.transport",
            "addr": "network.local.address",
            "port": "network.local.port",
        },
        "dns": {"qname": "dns.question.name", "answers": "dns.answers"},
        "flow": {
            "addr": "network.peer.address",
            "port": "network.peer.port",
            "host": "server.address",
            "protocol": "network.protocol.name",
        },
        "file": {"path": "file.path"},
        "gpu": {"device": "hw.id", "name": "hw.name"},
    }
)
"""Kind → field → attribute of the semantic conventions; every other field is `agentwatch.<kind>.<field>`."""

_BODY: Final = MappingProxyType(
    {
        "session": "op",
        "step": "op",
        "exec": "exe",
        "connect": "addr",
        "listen": "addr",
        "dns": "qname",
        "flow": "op",
        "file": "path",
        "limit": "limit",
        "gpu": "op",
        "finding": "title",
        "breaker": "cause",
        "control": "op",
        "gap": "reason",
    }
)
"""Kind → the field that says in a word what happened."""

_STAMPS: Final = frozenset({"t_mono_ns", "t_wall_ns", "kind"})

Value = str | bool | int | float | list[str] | list[int]
"""What an attribute can hold."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One record in OpenTelemetry's terms. Texts are the agent's own where the record has them so.

    Attributes:
        time_unix_nano: When it was recorded.
        severity_number: As OpenTelemetry numbers it.
        severity_text: Its short name.
        event_name: "agentwatch." and the kind.
        body: What happened, in a few words.
        attributes: Everything else.
    """

    time_unix_nano: int
    severity_number: int
    severity_text: str
    event_name: str
    body: str
    attributes: Mapping[str, Value]


def log_entries(events: Iterable[AnyEvent]) -> Iterator[LogEntry]:
    """Yield every record of a log, of whichever kind, in its order."""
    return map(_entry, events)


def otlp_lines(events: Iterable[AnyEvent]) -> Iterator[bytes]:
    """Yield lines of OTLP's JSON, of at most 512 records each, as a collector's file receiver reads them."""
    entries = log_entries(events)
    scope = {"name": _SCOPE, "version": __version__}
    resource = {"attributes": _attributes({"service.name": _SCOPE, "service.version": __version__})}
    while batch := list(islice(entries, _BATCH)):
        records = [
            {
                "timeUnixNano": str(each.time_unix_nano),
                "observedTimeUnixNano": str(each.time_unix_nano),
                "severityNumber": each.severity_number,
                "severityText": each.severity_text,
                "eventName": each.event_name,
                "body": {"stringValue": each.body},
                "attributes": _attributes(each.attributes),
            }
            for each in batch
        ]
        scoped = {"scope": scope, "logRecords": records}
        yield msgspec.json.encode({"resourceLogs": [{"resource": resource, "scopeLogs": [scoped]}]})


def emit_to(provider: LoggerProvider, events: Iterable[AnyEvent]) -> int:
    """Emit every record through an OpenTelemetry SDK that the caller has set up; needs the extra `otel`.

    Args:
        provider: Where to; its processors and exporters are the caller's.
        events: Records of a log, in their order.

    Returns:
        How many were emitted.

    Raises:
        ImportError: The extra `otel` is not installed.
    """
    from opentelemetry._logs import LogRecord, SeverityNumber

    logger = provider.get_logger(_SCOPE, __version__)
    emitted = 0
    for each in log_entries(events):
        record = LogRecord(
            timestamp=each.time_unix_nano,
            observed_timestamp=each.time_unix_nano,
            severity_number=SeverityNumber(each.severity_number),
            severity_text=each.severity_text,
            body=each.body,
            attributes=dict(each.attributes),
            event_name=each.event_name,
        )
        logger.emit(record)
        emitted += 1
    return emitted


def _entry(event: AnyEvent) -> LogEntry:
    kind = str(event.__struct_config__.tag)
    names = _NAMES.get(kind, {})
    attributes: dict[str, Value] = {}
    # What has its default is left out, as in the log itself.
    for field, value in msgspec.to_builtins(event).items():
        if field in _STAMPS or value is None:
            continue
        if field == "pid":
            attributes["process.pid"] = value
        elif isinstance(value, dict):
            attributes |= {f"agentwatch.{kind}.{field}.{key}": each for key, each in value.items()}
        else:
            attributes[_COMMON.get(field) or names.get(field) or f"agentwatch.{kind}.{field}"] = value
    said = getattr(event, _BODY[kind], "") if kind in _BODY else ""
    number, text = _severity(event)
    return LogEntry(event.t_wall_ns, number, text, f"agentwatch.{kind}", f"{kind} {said}".strip(), attributes)


def _severity(event: AnyEvent) -> tuple[int, str]:
    if isinstance(event, Finding):
        return _SEVERITY[event.severity]
    if isinstance(event, Gap):
        return _SEVERITY["high"]
    return _INFO if event.verdict == "allow" else _WARN


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in values.items()]


def _any_value(value: Value) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}  # 64 bits, which JSON's numbers are not
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}
        case _:
            return {"arrayValue": {"values": [_any_value(each) for each in value]}}
