"""Events, states and counts put into words for people: one line each, every hostile text made safe.

Pure: what is shown on a terminal and in a notebook reads the same because both take it from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from jupyter_agentwatch.cli.tally import Tally
from jupyter_agentwatch.events import (
    AgentNote,
    AnyEvent,
    BreakerChanged,
    Connect,
    Control,
    Dns,
    Exec,
    Exit,
    FileOp,
    Finding,
    Flow,
    Gap,
    Gpu,
    LimitHit,
    Listen,
    ModelCall,
    Resources,
    Reward,
    Session,
    Step,
    printable,
)
from jupyter_agentwatch.wire.messages import Change, Killed, WatchStatus

__all__ = ["changes_text", "count", "counts_text", "event_line", "killed_line", "left_text", "one_line", "status_text"]

_SHOWN = 120
_LATEST_NS = 1 << 62


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `count(2, "process", "processes")`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def one_line(argv: Sequence[str], limit: int = _SHOWN) -> str:
    """Return a command line as one safe line of at most `limit` characters and a note of what was cut."""
    return printable(" ".join(argv[:64]), limit)


def killed_line(killed: Killed) -> str:
    """Say what a kill did."""
    left = str(killed.survivors) if killed.survivors >= 0 else "an unknown number"
    return f"killed {count(killed.killed, 'process', 'processes')}, {left} left, {killed.latency_ms:.0f} ms"


def counts_text(counts: Tally) -> str:
    """Return the counts as one line."""
    parts = [
        count(counts.steps, "step"),
        count(counts.processes, "process", "processes"),
        f"{count(counts.allowed, 'connection')} allowed, {counts.denied} denied",
    ]
    if counts.names_refused:
        parts.append(f"{count(counts.names_refused, 'name')} refused")
    parts.append(f"{count(len(counts.files), 'file')} written")
    if counts.removed:
        parts.append(f"{counts.removed} removed")
    if counts.findings:
        parts.append(count(len(counts.findings), "finding"))
    if counts.lost:
        parts.append(f"{count(counts.lost, 'record')} LOST")
    return ", ".join(parts)


def status_text(status: WatchStatus) -> str:
    """Describe a live watch in a few lines."""
    running = ", ".join(str(step) for step in status.running_steps) or "none"
    counts = ", ".join(f"{printable(key)} {n}" for key, n in sorted(status.counts.items())) or "nothing yet"
    lines = [
        f"watch {printable(status.watch)}: {printable(status.state)}, up {status.elapsed_s:.0f} s",
        f"rung {printable(status.rung)}, limits by {printable(status.limits_by)}",
        f"workspace {printable(status.workspace)}",
        f"{count(status.processes, 'process', 'processes')} alive, {count(status.steps, 'step')}, running: {running}",
        f"recorded: {counts}",
        f"log {printable(status.log)}",
        f"head {printable(status.head)}",
    ]
    lines += [
        f"held for an answer: {ask}: {printable(what)}{left_text(status.asks_left_s.get(ask), 'denied')}"
        for ask, what in sorted(status.asks.items())
    ]
    if status.frozen_left_s is not None:
        follows = "killed" if status.on_expiry == "kill" else "let go on"
        lines.append(f"frozen{left_text(status.frozen_left_s, follows)}")
    lines += [f"note: {printable(note)}" for note in status.notes]
    return "\n".join(lines)


def left_text(seconds: float | None, what: str) -> str:
    """Say what becomes of something when the time that a person has to decide it is over; "" where it has none."""
    return "" if seconds is None else f" ({what} in {seconds:.0f} s unless a person decides)"


def changes_text(changes: Sequence[Change]) -> str:
    """Return what a step changed: one line per path, and the diffs that were kept."""
    lines: list[str] = []
    for change in changes:
        note = f" ({printable(change.note)})" if change.note else ""
        lines.append(f"{printable(change.change)} {printable(change.path, 4096)}{note}")
        lines += [printable(line, 2000) for line in change.diff.split("\n") if line]
    return "\n".join(lines) or "no change in the workspace"


def event_line(event: AnyEvent) -> str:
    """Return one record as one safe line: time of day (UTC), position, step, process, kind, verdict, what."""
    moment = datetime.fromtimestamp(min(max(event.t_wall_ns, 0), _LATEST_NS) / 1e9, UTC)
    clock = moment.isoformat(timespec="milliseconds")[11:23]
    kind = type(event).__struct_config__.tag
    who = f"step {event.step}" if event.step else ""
    pid = f"pid {event.pid}" if event.pid else ""
    return f"{clock} {event.seq:>5} {who:<7} {pid:<9} {kind!s:<7} {event.verdict:<5} {_what(event)}"


def _exec(event: Exec) -> str:
    if event.unconfirmed:
        return f"what record {event.claim_seq} asked for was not seen to run: {event.unconfirmed}"
    odd = " MISMATCH" if event.mismatch else ""
    return f"{printable(event.exe or event.path, _SHOWN)} [{one_line(event.argv)}] ({event.basis}){odd}"


def _what(event: AnyEvent) -> str:
    match event:
        case Session():
            return _session(event)
        case Step():
            ended = f"{printable(event.outcome)} exit {event.exit_code} {event.duration_s:.3f} s"
            return f"start {one_line(event.argv)}" if event.op == "start" else f"end {ended}"
        case Exec():
            return _exec(event)
        case Exit():
            how = f"signal {event.signal}" if event.signal is not None else f"exit {event.exit_code}"
            return f"{how}{' (orphan)' if event.orphan else ''}"
        case Connect() | Listen() | Dns() | Flow() | ModelCall():
            return _network(event)
        case FileOp():
            second = f" -> {printable(event.path2, _SHOWN)}" if event.path2 else ""
            return f"{printable(event.op)} {printable(event.path, _SHOWN)}{second}"
        case Gpu() | Resources():
            return _telemetry(event)
        case _:
            return _remark(event)


def _session(event: Session) -> str:
    if event.op == "open":
        return f"open rung {printable(event.rung)} workspace {printable(event.workspace, _SHOWN)}"
    return f"close {printable(event.reason)}: killed {event.killed}, {event.survivors} left"


def _network(event: Connect | Listen | Dns | Flow | ModelCall) -> str:
    match event:
        case Connect():
            errno = f" errno {event.errno}" if event.errno > 0 else ""
            return f"{event.transport} {_where(event)} [{printable(event.rule)}]{errno}"
        case Listen():
            return f"{event.op} {event.transport} {printable(event.addr, _SHOWN)}:{event.port}"
        case Dns():
            rule = f" [{printable(event.rule)}]" if event.rule else ""
            answers = ", ".join(printable(answer) for answer in event.answers[:4])
            return (
                f"{printable(event.qname)} {printable(event.qtype)} {printable(event.rcode)}{rule} {answers}".rstrip()
            )
        case Flow():
            named = printable(event.server_name) or "-"
            told = f"{printable(event.protocol)} {named} [{printable(event.rule)}]"
            moved = f"out {event.bytes_out} B, in {event.bytes_in} B"
            return f"{event.op} {_where(event)} {told if event.op == 'named' else moved}"
        case ModelCall():
            return _model_call(event)


def _where(event: Connect | Flow) -> str:
    if isinstance(event, Connect) and event.transport == "unix":
        return printable(event.addr, _SHOWN)
    host = f" ({printable(event.host)})" if event.host else ""
    return f"{printable(event.addr)}:{event.port}{host}"


def _telemetry(event: Gpu | Resources) -> str:
    if isinstance(event, Resources):
        of = printable(event.name) if event.pid else count(event.processes, "process", "processes")
        return f"{of}: {event.cpu_s:.2f} s CPU in {event.interval_s:.1f} s, {event.rss_bytes >> 20} MiB"
    told = f"{event.op} {printable(event.device)}{' SIMULATED' if event.simulated else ''}"
    if event.op in {"lease", "release"}:
        return f"{told} lease {event.lease}: {printable(event.purpose)}"
    if event.op == "state":
        return f"{told} {printable(event.state)} {printable(event.reason)}".rstrip()
    outside = f", {event.outside_s:.2f} s outside a lease" if event.outside_s else ""
    whose = f" by driver pid {event.driver_pid} ({event.attribution})" if event.op == "process" else ""
    return f"{told}{whose}: {event.gpu_seconds:.2f} GPU s in {event.interval_s:.1f} s{outside}"


def _model_call(event: ModelCall) -> str:
    asked = f"{event.op} {printable(event.endpoint, _SHOWN)} {printable(event.model, _SHOWN)}".rstrip()
    status = f" {event.status}" if event.status else ""
    why = f": {printable(event.reason)}" if event.reason else ""
    if event.op != "response":
        return f"{asked}{status}{why}"
    about = "about " if event.estimated else ""
    calls = f", calls {one_line(event.tool_calls)}" if event.tool_calls else ""
    tokens = f"{about}{event.input_tokens}+{event.output_tokens} tokens"
    return f"{asked}{status} {tokens}, cost {event.cost:.4f}, {event.duration_s:.2f} s{calls}{why}"


def _agent(event: AgentNote | Reward) -> str:
    run, turn = f"run {printable(event.run)}", f"turn {event.turn}"
    if isinstance(event, Reward):
        terms = ", ".join(f"{printable(name, _SHOWN)} {value:+g}" for name, value in event.terms.items())
        return f"{run} {turn}: {event.total:+g} = {terms or 'nothing'}"
    what = " ".join(printable(text, _SHOWN) for text in (event.agent, event.action, event.outcome, event.text) if text)
    thought = f" (says: {printable(event.thought, _SHOWN)})" if event.thought else ""
    cost = f" ({event.tokens_in}+{event.tokens_out} tokens, {event.cost_usd:.4f} USD)" if event.tokens_out else ""
    return f"{run} {turn if event.op == 'turn' else event.op}: {what}{thought}{cost}".rstrip()


def _remark(event: AgentNote | Reward | LimitHit | Finding | BreakerChanged | Control | Gap) -> str:
    match event:
        case AgentNote() | Reward():
            return _agent(event)
        case LimitHit():
            return f"{printable(event.limit)}: {event.value:g} of {event.maximum:g}, {printable(event.action)}"
        case Finding():
            return f"{event.severity}: {printable(event.title)} [{printable(event.rule)}]"
        case BreakerChanged():
            return f"{printable(event.before)} -> {printable(event.after)}: {printable(event.cause, _SHOWN)}"
        case Control():
            return f"{printable(event.op)} by {printable(event.by) or '?'} {printable(event.detail)}".rstrip()
        case Gap():
            return f"{count(event.lost, 'record')} lost: {printable(event.reason)}"
