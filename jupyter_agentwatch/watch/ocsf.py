"""Records as events of the Open Cybersecurity Schema Framework, version 1.7.0: one table of classes, one of activities.

Findings become Detection Findings (2004); execs and exits Process Activity (1007); connects, listens and flows Network
Activity (4001); names DNS Activity (4003); file calls File System Activity (1001). Other records have no class here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Exec, Exit, FileOp, Finding, Flow, Listen, Session

__all__ = ["OCSF_VERSION", "to_ocsf"]

OCSF_VERSION: Final = "1.7.0"
"""Version of the schema that the events are in."""

_PRODUCT: Final = "jupyter_agentwatch"
_KEPT: Final = 50_000
_PROFILES: Final = ("host", "security_control")
_SEVERITY: Final = MappingProxyType(
    {
        "info": (1, "Informational"),
        "low": (2, "Low"),
        "medium": (3, "Medium"),
        "high": (4, "High"),
        "critical": (5, "Critical"),
    }
)
_ACTION: Final = MappingProxyType({"allow": (1, 1), "deny": (2, 2), "kill": (2, 2), "ask": (3, 14)})
"""Verdict → action (allowed, denied, observed) and disposition (allowed, blocked, delayed)."""

_RCODES: Final = MappingProxyType({"NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5})
_FILE_ACTIVITY: Final = MappingProxyType(
    {
        **dict.fromkeys(("creat", "mkdir", "mkdirat", "mknod", "mknodat", "link", "linkat"), (1, "Create")),
        **dict.fromkeys(("symlink", "symlinkat"), (1, "Create")),
        **dict.fromkeys(("truncate", "ftruncate", "fallocate"), (3, "Update")),
        **dict.fromkeys(("unlink", "unlinkat", "rmdir"), (4, "Delete")),
        **dict.fromkeys(("rename", "renameat", "renameat2"), (5, "Rename")),
        **dict.fromkeys(("utime", "utimes", "futimesat", "utimensat"), (6, "Set Attributes")),
        **dict.fromkeys(("chmod", "fchmod", "fchmodat", "fchmodat2"), (7, "Set Security")),
        **dict.fromkeys(("chown", "lchown", "fchown", "fchownat"), (7, "Set Security")),
        **dict.fromkeys(("open", "openat"), (14, "Open")),
    }
)
"""System call → activity of class 1001; any other is 99 under its own name."""


def to_ocsf(events: Iterable[AnyEvent]) -> Iterator[dict[str, Any]]:
    """Yield the OCSF events of a log, in its order.

    Texts are the agent's own where a record has them so: whoever shows them has to make them safe.

    Args:
        events: The records of one watch, from its first.
    """
    return _Export().run(events)


class _Export:
    """Remembers what an event needs of earlier records: programs by process, claims, and the evidence of findings."""

    def __init__(self) -> None:
        self._version = ""
        self._workspace = ""
        self._processes: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._claims: OrderedDict[int, Exec] = OrderedDict()
        self._seen: OrderedDict[int, AnyEvent] = OrderedDict()

    def run(self, events: Iterable[AnyEvent]) -> Iterator[dict[str, Any]]:
        for event in events:
            _keep(self._seen, event.seq, event)
            if isinstance(event, Session) and event.op == "open":
                self._version, self._workspace = event.version, event.workspace
            make = _MAKERS.get(type(event))
            made = make(self, event) if make is not None else None
            if made is not None:
                yield made
        # Nobody saw what became of these: the end of the watch has overtaken them.
        for claim in self._claims.values():
            yield self._launch(claim, claim, 0, "the watch ended before the claim was answered")

    def _event(self, event: AnyEvent, uid: int, activity: tuple[int, str], **fields: Any) -> dict[str, Any]:
        """Return what every event has, and the fields of its class."""
        number, name = activity
        action, disposition = _ACTION[event.verdict]
        labels = [f"step:{event.step}", f"cell:{event.cell}"] if event.step else []
        made = {
            "activity_id": number,
            "activity_name": name,
            "category_uid": uid // 1000,
            "class_uid": uid,
            "type_uid": uid * 100 + number,
            "time": event.t_wall_ns // 1_000_000,
            "severity_id": 1,
            "severity": "Informational",
            "action_id": action,
            "disposition_id": disposition,
            "device": {
                "type_id": 0,
                "type": "Unknown",
                "name": f"agentwatch sandbox {event.watch}",
                "uid": event.watch,
            },
            "metadata": {
                "version": OCSF_VERSION,
                "product": {
                    "name": "jupyter_agentwatch",
                    "vendor_name": "jupyter_agentwatch",
                    "version": self._version,
                },
                "profiles": list(_PROFILES),
                "uid": _uid(event, event.seq),
                "sequence": event.seq,
                "log_name": "agentwatch audit log",
                "event_code": str(event.__struct_config__.tag),
                "correlation_uid": f"{event.watch}:step:{event.step}",
                **({"labels": labels} if labels else {}),
            },
            "unmapped": {"basis": event.basis, "verdict": event.verdict},
        }
        return {**made, **fields}

    def _actor(self, pid: int) -> dict[str, Any]:
        return {"process": self._process(pid)} if pid else {"app_name": _PRODUCT}

    def _process(self, pid: int) -> dict[str, Any]:
        return self._processes.get(pid) or {"pid": pid}

    # -- classes ---------------------------------------------------------------------------------------------------

    def finding(self, event: Finding) -> dict[str, Any]:
        number, caption = _SEVERITY[event.severity]
        info: dict[str, Any] = {
            "uid": _uid(event, event.seq),
            "title": event.title,
            "desc": event.rationale,
            "types": [event.family] if event.family else [],
            "analytic": {"type_id": 1, "type": "Rule", "name": event.rule, "uid": event.rule},
            "created_time": event.t_wall_ns // 1_000_000,
            "data_sources": ["agentwatch audit log"],
            "related_events": [{"uid": _uid(event, seq)} for seq in event.evidence],
        }
        if event.technique:
            info["attacks"] = [{"technique": {"uid": event.technique}}]
        found = [self._seen[seq] for seq in event.evidence if seq in self._seen]
        times = [each.t_wall_ns // 1_000_000 for each in found]
        return self._event(
            event,
            2004,
            (1, "Create"),
            severity_id=number,
            severity=caption,
            message=event.title,
            status_id=1,
            status="New",
            is_alert=event.severity not in {"info", "low"},
            finding_info=info,
            evidences=[self._evidence(each) for each in found],
            resources=[{"name": self._workspace or event.watch, "type": "workspace", "uid": event.watch}],
            **({"start_time": min(times), "end_time": max(times)} if times else {}),
        )

    def _evidence(self, event: AnyEvent) -> dict[str, Any]:
        made: dict[str, Any] = {
            "uid": _uid(event, event.seq),
            "name": str(event.__struct_config__.tag),
            "data": msgspec.to_builtins(event),
        }
        if isinstance(event, Exec):
            made["process"] = _program(event.pid, event.exe or event.path, event.argv)
        elif event.pid:
            made["process"] = self._process(event.pid)
        if isinstance(event, Connect | Flow):
            made["dst_endpoint"] = _endpoint(event)
        return made

    def exec(self, event: Exec) -> dict[str, Any] | None:
        if event.basis == "claimed" and not event.unconfirmed:
            _keep(self._claims, event.seq, event)
            return None
        claim = self._claims.pop(event.claim_seq, event)
        if event.unconfirmed:
            return self._launch(event, claim, 2 if event.unconfirmed != "ended" else 0, event.unconfirmed)
        return self._launch(event, claim, 1, "")

    def _launch(self, event: Exec, claim: Exec, status: int, detail: str) -> dict[str, Any]:
        argv = event.argv or claim.argv
        process = _program(event.pid, event.exe or claim.path or event.path, argv)
        parent = dict(self._process(event.ppid)) if event.ppid else None
        if parent is not None:
            parent.pop("parent_process", None)
            process["parent_process"] = parent
        if status == 1:
            _keep(self._processes, event.pid, process)
        made = self._event(
            event,
            1007,
            (1, "Launch"),
            process=process,
            actor={"process": parent} if parent is not None else self._actor(event.pid),
            launch_type_id=3,
            launch_type="Exec",
            message=" ".join(argv),
            status_id=status,
        )
        if detail:
            made["status_detail"] = detail
        made["unmapped"]["mismatch"] = event.mismatch
        return made

    def exit(self, event: Exit) -> dict[str, Any]:
        process = self._processes.pop(event.pid, None) or {"pid": event.pid}
        made = self._event(event, 1007, (2, "Terminate"), process=process, actor={"process": process}, status_id=1)
        if event.exit_code is not None:
            made["exit_code"] = event.exit_code
        if event.signal is not None:
            made["status_detail"] = f"signal {event.signal}"
        return made

    def connect(self, event: Connect) -> dict[str, Any]:
        refused = event.verdict != "allow"
        activity = (5, "Refuse") if refused else (4, "Fail") if event.errno > 0 else (1, "Open")
        if event.verdict == "ask":
            activity = (99, "Ask")
        failed = refused or event.errno > 0
        made = self._network(event, activity, event.transport, _endpoint(event), status=2 if failed else 1)
        if event.errno > 0:
            made["status_code"] = str(event.errno)
        made["unmapped"] |= {"rule": event.rule, "flow": event.flow}
        return made

    def listen(self, event: Listen) -> dict[str, Any]:
        where = _address(event.addr, event.port, "")
        made = self._network(event, (7, "Listen"), event.transport, where, status=2 if event.errno > 0 else 1)
        # What listens is the near end.
        made["src_endpoint"] = made.pop("dst_endpoint")
        made["connection_info"] |= {"direction_id": 1, "direction": "Inbound"}
        return made

    def flow(self, event: Flow) -> dict[str, Any]:
        activity = {"named": (6, "Traffic"), "closed": (2, "Close"), "failed": (4, "Fail")}[event.op]
        refused = event.verdict != "allow"
        if refused and event.op == "named":
            activity = (5, "Refuse")
        made = self._network(
            event, activity, "tcp", _endpoint(event), status=2 if refused or event.op == "failed" else 1
        )
        total = event.bytes_in + event.bytes_out
        made["traffic"] = {"bytes": total, "bytes_in": event.bytes_in, "bytes_out": event.bytes_out}
        if event.op == "closed":
            made["duration"] = round(event.duration_s * 1000)
        if event.protocol:
            made["app_name"] = event.protocol
        if event.reason:
            made["status_detail"] = event.reason
        made["unmapped"] |= {"rule": event.rule, "flow": event.flow, "server_name": event.server_name}
        return made

    def _network(
        self, event: AnyEvent, activity: tuple[int, str], transport: str, where: dict[str, Any], *, status: int
    ) -> dict[str, Any]:
        info: dict[str, Any] = {"direction_id": 2, "direction": "Outbound", "protocol_name": transport}
        if transport == "unix":
            info |= {"direction_id": 4, "direction": "Local"}
        return self._event(
            event,
            4001,
            activity,
            actor=self._actor(event.pid),
            connection_info=info,
            dst_endpoint=where,
            status_id=status,
        )

    def dns(self, event: Dns) -> dict[str, Any]:
        rcode = _RCODES.get(event.rcode.upper())
        made = self._event(
            event,
            4003,
            (1, "Query") if event.verdict != "allow" else (2, "Response"),
            actor=self._actor(event.pid),
            query={"hostname": event.qname, "type": event.qtype},
            answers=[{"rdata": each} for each in event.answers],
            rcode=event.rcode,
            rcode_id=99 if rcode is None else rcode,
            dst_endpoint={"name": "agentwatch DNS stub", "port": 53},
            status_id=1 if rcode == 0 else 2,
        )
        made["unmapped"]["rule"] = event.rule
        return made

    def file(self, event: FileOp) -> dict[str, Any]:
        made = self._event(
            event,
            1001,
            _FILE_ACTIVITY.get(event.op, (99, event.op)),
            actor=self._actor(event.pid),
            file=_file(event.path),
            status_id=1 if event.verdict == "allow" else 2,
        )
        if event.path2:
            made["file_result"] = _file(event.path2)
        made["unmapped"] |= {"call": event.op, "resolved": event.resolved, "resolved2": event.resolved2}
        return made


_MAKERS: Final = MappingProxyType[type, Callable[[_Export, Any], "dict[str, Any] | None"]](
    {
        Connect: _Export.connect,
        Dns: _Export.dns,
        Exec: _Export.exec,
        Exit: _Export.exit,
        FileOp: _Export.file,
        Finding: _Export.finding,
        Flow: _Export.flow,
        Listen: _Export.listen,
    }
)


def _keep(table: OrderedDict[int, Any], key: int, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _KEPT:
        table.popitem(last=False)


def _uid(event: AnyEvent, seq: int) -> str:
    return f"{event.watch}:{seq}"


def _program(pid: int, path: str, argv: Sequence[str]) -> dict[str, Any]:
    process: dict[str, Any] = {"pid": pid, "cmd_line": " ".join(argv)}
    if path:
        process |= {"name": _name(path), "file": {"name": _name(path), "path": path, "type_id": 8}}
    return process


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path or "?"


def _file(path: str) -> dict[str, Any]:
    return {"name": _name(path), "path": path, "type_id": 0, "type": "Unknown"}


def _endpoint(event: Connect | Flow) -> dict[str, Any]:
    if isinstance(event, Connect) and event.transport == "unix":
        return {"name": event.addr or "?"}
    return _address(event.addr, event.port, event.host)


def _address(addr: str, port: int, host: str) -> dict[str, Any]:
    where: dict[str, Any] = {"ip": addr} if addr else {"name": "?"}
    if port:
        where["port"] = port
    if host:
        where["hostname"] = host
    return where
