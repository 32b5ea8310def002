"""Records in other systems' forms: each OCSF event against the published schema, each log record through a real SDK."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.cli import main
from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch.exports import export_lines, write_whole
from jupyter_agentwatch.watch.ocsf import OCSF_VERSION, to_ocsf
from jupyter_agentwatch.watch.otel import emit_to, log_entries, otlp_lines
from tests.incident_logs import a_finding, a_log, a_story, an_exec
from tests.strategies import KINDS, WATCH, an_open, log_events

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jupyter_agentwatch.events import AnyEvent

SCHEMA = Path(__file__).parent / "data" / f"ocsf-{OCSF_VERSION}.json"
"""Published names, types and requirements; how it was made is written in it."""

PLAIN: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("integer_t", "long_t", "timestamp_t", "port_t"), int),
    "boolean_t": bool,
    "float_t": (int, float),
    "json_t": (dict, list, str),
}
"""What JSON holds for a type; any other plain type is text."""


@cache
def schema() -> dict[str, Any]:
    """Return the published schema."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))
    return found


def faults(made: dict[str, Any]) -> list[str]:
    """Return everything in an event that the schema does not allow, or that it demands and is not there."""
    kind = schema()["classes"].get(str(made.get("class_uid")))
    if kind is None:
        return [f"no class {made.get('class_uid')}"]
    found = list(_faults(made, kind, f"{made['class_uid']}", made["metadata"].get("profiles", [])))
    if made["type_uid"] != made["class_uid"] * 100 + made["activity_id"]:
        found.append("type_uid is not the class's and the activity's")
    if made["category_uid"] != made["class_uid"] // 1000:
        found.append("category_uid is not the class's")
    return found


def _faults(made: dict[str, Any], kind: dict[str, Any], where: str, profiles: list[str]) -> Iterable[str]:
    known = kind["attributes"]
    for name, value in made.items():
        attribute = known.get(name)
        if attribute is None or attribute.get("profile", profiles[0]) not in profiles:
            yield f"{where}.{name}: no such attribute"
            continue
        values = value if attribute.get("many") else [value]
        if attribute.get("many") and not isinstance(value, list):
            yield f"{where}.{name}: is not a list"
            continue
        for each in values:
            yield from _value_faults(each, attribute, f"{where}.{name}", profiles)
    for name, attribute in known.items():
        if attribute.get("need") == "required" and "profile" not in attribute and name not in made:
            yield f"{where}.{name}: is required"
    one_of = kind.get("constraints", {}).get("at_least_one", [])
    if one_of and not any(name in made for name in one_of):
        yield f"{where}: has none of {one_of}"


def _value_faults(value: Any, attribute: dict[str, Any], where: str, profiles: list[str]) -> Iterable[str]:
    kind = schema()["objects"].get(attribute["is"])
    if kind is not None:
        if isinstance(value, dict):
            yield from _faults(value, kind, where, profiles)
        else:
            yield f"{where}: is no object"
    elif attribute["is"] == "object":
        if not isinstance(value, dict):
            yield f"{where}: is no object"
    else:
        wanted = PLAIN.get(attribute["is"], str)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is int):
            yield f"{where}: {value!r} is no {attribute['is']}"
        elif "ids" in attribute and value not in attribute["ids"]:
            yield f"{where}: {value!r} is none of its values"


def every_kind() -> list[AnyEvent]:
    """Return records that reach every class and nearly every activity."""
    at = {"step": 3, "pid": 12, "cell": "c1"}
    flow = {"flow": 7, "addr": "192.0.2.1", "port": 443, "host": "a.example", **at}
    return [
        event("step", op="start", argv=["sh", "-c", "x"], **at),
        event("exec", basis="claimed", path="/bin/a", argv=["a", "b"], **at),
        event("exec", basis="post", exe="/bin/a", argv=["a", "b"], ppid=11, claim_seq=2, **at),
        *(event("exec", basis="claimed", claim_seq=2, unconfirmed=why, **at) for why in ("failed", "held", "ended")),
        event("connect", transport="tcp", addr="192.0.2.1", port=443, host="a.example", flow=7, **at),
        event("connect", transport="tcp", addr="192.0.2.1", port=22, verdict="deny", rule="no-rule", **at),
        event("connect", transport="udp", addr="2001:db8::1", port=53, verdict="ask", **at),
        event("connect", transport="tcp", addr="192.0.2.1", port=1, errno=111, **at),
        event("connect", transport="unix", addr="/run/docker.sock", verdict="deny", **at),
        event("listen", op="listen", transport="tcp", addr="127.0.0.1", port=8000, **at),
        event("listen", op="bind", transport="unix", addr="", **at),
        event("flow", op="named", protocol="tls", server_name="a.example", **flow),
        event("flow", op="named", protocol="stratum", verdict="deny", **flow),
        event("flow", op="closed", bytes_out=10, bytes_in=20, duration_s=1.5, reason="done", **flow),
        event("flow", op="failed", reason="ECONNREFUSED", **flow),
        event("dns", qname="a.example", qtype="A", rcode="NOERROR", answers=["192.0.2.1"], **at),
        event("dns", qname="b.example", qtype="TXT", rcode="REFUSED", verdict="deny", **at),
        *(
            event("file", op=op, path="/w/a", path2="/w/b", **at)
            for op in ("open", "creat", "rename", "unlink", "chmod", "utimensat", "truncate", "setxattr")
        ),
        event("exit", exit_code=0, **at),
        event("exit", signal=9, **at),
        a_finding(2, 8, 14, severity="critical", technique="T1496", rationale="because"),
        a_finding(severity="info", family="", cell=""),
        event("exec", basis="claimed", path="/bin/late", argv=["late"], **at),
    ]


def a_full_log(folder: Path) -> Path:
    """Write a log of them."""
    return a_log(folder, *every_kind())


# OCSF


def test_each_class_has_the_published_names_types_and_values(tmp_path: Path) -> None:
    """Nothing unknown, nothing of another type, no value outside its list, nothing required left out."""
    made = list(to_ocsf(read_events(a_full_log(tmp_path))))
    assert {each["class_uid"] for each in made} == {1001, 1007, 2004, 4001, 4003}
    assert [fault for each in made for fault in faults(each)] == []


def test_what_the_schema_recommends_is_there_where_we_know_it(tmp_path: Path) -> None:
    """Of a finding and of each activity, the recommended attributes that a record can fill."""
    made = list(to_ocsf(read_events(a_full_log(tmp_path))))
    wanted = {
        2004: {"message", "evidences", "resources", "status_id", "is_alert", "action_id", "disposition_id"},
        1007: {"status_id", "action_id", "disposition_id"},
        4001: {"connection_info", "status_id", "action_id", "disposition_id"},
        4003: {"query", "answers", "rcode", "rcode_id", "dst_endpoint", "status_id"},
        1001: {"status_id", "action_id", "disposition_id", "file_result"},
    }
    for each in made:
        assert wanted[each["class_uid"]] <= each.keys(), each


def test_activities_say_what_was_answered(tmp_path: Path) -> None:
    """Allowed, refused, failed and held calls are different activities with different actions."""
    made = list(to_ocsf(read_events(a_full_log(tmp_path))))
    connects = [each for each in made if each["metadata"]["event_code"] == "connect"]
    assert [each["activity_name"] for each in connects] == ["Open", "Refuse", "Ask", "Fail", "Refuse"]
    assert [each["action_id"] for each in connects] == [1, 2, 3, 1, 2]
    flows = [each for each in made if each["metadata"]["event_code"] == "flow"]
    assert [each["activity_name"] for each in flows] == ["Traffic", "Refuse", "Close", "Fail"]
    assert flows[2]["traffic"] == {"bytes": 30, "bytes_in": 20, "bytes_out": 10}
    assert flows[2]["duration"] == 1500
    files = [each for each in made if each["class_uid"] == 1001]
    assert [each["activity_id"] for each in files] == [14, 1, 5, 4, 7, 6, 3, 99]
    execs = [each for each in made if each["metadata"]["event_code"] == "exec"]
    assert [each["status_id"] for each in execs] == [1, 2, 2, 0, 0]


def test_a_finding_carries_its_evidence(tmp_path: Path) -> None:
    """The records that it rests on are in it as data, with process and destination, and are referred to."""
    (made, _) = [each for each in to_ocsf(read_events(a_full_log(tmp_path))) if each["class_uid"] == 2004]
    assert (made["severity_id"], made["severity"], made["is_alert"]) == (5, "Critical", True)
    assert made["finding_info"]["attacks"] == [{"technique": {"uid": "T1496"}}]
    assert made["finding_info"]["related_events"] == [{"uid": f"{WATCH}:{seq}"} for seq in (2, 8, 14)]
    assert [each["name"] for each in made["evidences"]] == ["exec", "connect", "flow"]
    assert made["evidences"][1]["dst_endpoint"] == {"ip": "192.0.2.1", "port": 22}
    assert made["evidences"][0]["process"]["cmd_line"] == "a b"
    assert made["metadata"]["correlation_uid"] == f"{WATCH}:step:3"


def test_a_process_knows_its_parent(tmp_path: Path) -> None:
    """The program that started another is its actor, by its own name and arguments."""
    log = a_log(tmp_path, an_exec(11, 1, "/bin/sh"), an_exec(12, 11, "/w/worker"))
    _, child = to_ocsf(read_events(log))
    assert child["process"]["parent_process"]["name"] == child["actor"]["process"]["name"] == "sh"


@given(log_events(max_size=12))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
def test_whatever_a_log_holds_fits_the_schema(events: list[AnyEvent]) -> None:
    """Hostile texts, huge numbers and missing parts still give events with published names and required fields."""
    for each in to_ocsf(events):
        assert faults(each) == []
        msgspec.json.encode(each)


def test_the_check_itself_finds_faults() -> None:
    """An unknown name, a wrong type, a value of no list and a missing requirement are each told."""
    (made,) = to_ocsf([an_open(), event("exit", seq=1, watch=WATCH, pid=12, exit_code=0)])
    assert faults(made) == []
    assert faults({**made, "colour": "red"}) == ["1007.colour: no such attribute"]
    assert faults({**made, "time": "now"}) == ["1007.time: 'now' is no timestamp_t"]
    assert faults({**made, "status_id": 55}) == ["1007.status_id: 55 is none of its values"]
    assert faults({name: value for name, value in made.items() if name != "device"}) == ["1007.device: is required"]
    assert faults({**made, "actor": {}})[0].startswith("1007.actor: has none of")


# OpenTelemetry


def test_a_real_sdk_takes_every_record(tmp_path: Path) -> None:
    """Each record of a log reaches an exporter with its time, severity, event name and attributes."""
    log = a_full_log(tmp_path)
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    events = list(read_events(log))
    assert emit_to(provider, events) == len(events)
    records = [each.log_record for each in exporter.get_finished_logs()]
    assert [each.timestamp for each in records] == [each.t_wall_ns for each in events]
    assert [dict(each.attributes or {})["agentwatch.seq"] for each in records] == [each.seq for each in events]
    found = [each for each in records if each.event_name == "agentwatch.finding"]
    assert [each.severity_text for each in found] == ["FATAL", "INFO"]
    assert found[0].body == "finding mined"
    program = next(each for each in records if each.event_name == "agentwatch.exec" and "post" in str(each.attributes))
    assert (
        dict(program.attributes or {}).items()
        >= {
            "process.pid": 12,
            "process.parent_pid": 11,
            "process.executable.path": "/bin/a",
            "process.command_args": ("a", "b"),
            "agentwatch.step": 3,
            "agentwatch.cell": "c1",
        }.items()
    )
    provider.shutdown()


def test_lines_of_otlp_hold_the_same(tmp_path: Path) -> None:
    """The JSON has each record once, 64-bit numbers as text, lists as arrays, and a line for 512 records."""
    events = list(read_events(a_full_log(tmp_path)))
    many = [*events, *[event("gap", lost=1, reason="full")] * 1000]
    lines = [json.loads(line) for line in otlp_lines(many)]
    records = [each for line in lines for each in line["resourceLogs"][0]["scopeLogs"][0]["logRecords"]]
    assert (len(lines), len(records)) == (3, len(many))
    assert [each["eventName"] for each in records] == [each.event_name for each in log_entries(many)]
    by_key = {each["key"]: each["value"] for each in records[3]["attributes"]}
    assert by_key["process.pid"] == {"intValue": "12"}
    assert by_key["process.command_args"] == {"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}}
    assert records[-1]["severityText"] == "ERROR"


@given(log_events(max_size=12))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
def test_whatever_a_log_holds_is_an_attribute_of_a_legal_type(events: list[AnyEvent]) -> None:
    """No attribute is null, nested or a mixture, and every kind of record is told."""
    for entry in log_entries(events):
        for value in entry.attributes.values():
            values = value if isinstance(value, list) else [value]
            assert len({type(each) for each in values}) <= 1
            assert all(isinstance(each, str | bool | int | float) for each in values)
    assert len(list(log_entries(events))) == len(events)


def test_every_kind_of_record_has_a_name() -> None:
    """A kind that is added to the vocabulary is exported, too."""
    tags = {str(kind.__struct_config__.tag) for kind in KINDS}
    assert {each.event_name.partition(".")[2] for each in log_entries(every_kind())} <= tags


# Command line and files


@pytest.mark.parametrize("form", ["ocsf", "otel"])
def test_the_command_line_writes_lines_of_json(tmp_path: Path, capfdbinary: Any, form: str) -> None:
    """To standard output or to a file, the same lines as from Python."""
    log = a_story(tmp_path)
    target = tmp_path / "out.jsonl"
    assert main(["export", "--format", form, str(log)]) == 0
    printed = capfdbinary.readouterr().out
    assert main(["export", "--format", form, str(log), "-o", str(target)]) == 0
    assert target.read_bytes() == printed == b"".join(export_lines(log, form))  # type: ignore[arg-type]
    assert all(isinstance(json.loads(line), dict) for line in printed.splitlines())


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    """By name, with those that there are."""
    with pytest.raises(ValueError, match="'cef' is none; known: ocsf, otel"):
        export_lines(a_story(tmp_path), "cef")  # type: ignore[arg-type]


def test_a_file_that_cannot_be_finished_leaves_the_former_one(tmp_path: Path) -> None:
    """Where the pieces end in an error, what was there stays, and nothing is left beside it."""

    def pieces() -> Iterable[bytes]:
        yield b"half"
        msg = "no more"
        raise OSError(msg)

    target = tmp_path / "out"
    target.write_bytes(b"former")
    with pytest.raises(OSError, match="no more"):
        write_whole(target, pieces())
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert target.read_bytes() == b"former"
