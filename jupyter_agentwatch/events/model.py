"""The vocabulary: one flat, frozen record per thing that happened in a watch.

Constructors read no clock and make no ids; whoever observes an event passes both in. Text that the
agent can choose (paths, argv, host names) is stored as it came and must pass `events.text.printable`
before a person sees it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "AgentNote",
    "Basis",
    "BreakerChanged",
    "Connect",
    "Control",
    "Dns",
    "Event",
    "Exec",
    "Exit",
    "FileOp",
    "Finding",
    "Flow",
    "Gap",
    "Gpu",
    "LimitHit",
    "Listen",
    "Resources",
    "Reward",
    "Session",
    "Severity",
    "Step",
    "Verdict",
]

Verdict = Literal["allow", "deny", "ask", "kill"]
"""What the supervisor answered. `ask` records that the call is held for a person; the answer is an event of its own."""

Basis = Literal["verified", "post", "claimed"]
"""How far a record can be believed.

`verified`: the supervisor did the act itself, on bytes that it had copied; `post`: read from the kernel after the
act; `claimed`: read from memory that the target can change while the kernel reads it again.
"""

Severity = Literal["info", "low", "medium", "high", "critical"]
"""How much a finding matters, from worth knowing to an attack that is certain."""


class Event(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True
):
    """Fields that every record bears.

    Attributes:
        seq: Position in the watch's log, from 0 without gaps.
        t_mono_ns: Monotonic clock in nanoseconds; orders events when the wall clock steps back.
        t_wall_ns: Unix time in nanoseconds.
        watch: Id of the watch.
        verdict: What was answered.
        basis: How far the record can be believed.
        cell: Notebook cell id that started the step, or "".
        step: Number of the command in the watch, from 1; 0 where no command is the cause.
        pid: Process id as the host sees it; 0 where no process is the cause.
    """

    seq: int
    t_mono_ns: int
    t_wall_ns: int
    watch: str
    verdict: Verdict
    basis: Basis
    cell: str = ""
    step: int = 0
    pid: int = 0


class Session(Event, frozen=True, kw_only=True, tag="session"):
    """The watch opened (first record of a log) or closed (last record).

    `rules_sha256` is the hash of the compiled Sigma rules that run beside our own, "" for none.
    """

    op: Literal["open", "close"]
    format: int = 0
    version: str = ""
    rung: str = ""
    workspace: str = ""
    policy_sha256: str = ""
    policy: str = ""
    limits_by: str = ""
    rules_sha256: str = ""
    owner_pid: int = 0
    reason: str = ""
    killed: int = 0
    survivors: int = 0


class Step(Event, frozen=True, kw_only=True, tag="step"):
    """A command began or ended. `argv` is what the user asked for; times in seconds, memory in bytes.

    `run` and `turn`, at the start of a command that an agent asked for, say in which run and at which turn of it.
    """

    op: Literal["start", "end"]
    run: str = ""
    turn: int = 0
    argv: list[str] = []
    cwd: str = ""
    outcome: str = ""
    exit_code: int | None = None
    signal: int | None = None
    duration_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    max_rss_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class Exec(Event, frozen=True, kw_only=True, tag="exec"):
    """A program image was asked for (`claimed`) or found running (`post`).

    Every claim gets an answer: a `post` record, or a second `claimed` one that says why there can be none (a claim
    without either is one that the end of the watch has overtaken).

    Attributes:
        path: What the call named (`claimed` records).
        argv: Arguments, bounded in count and length; `argv_truncated` says when cut. In a `post` record those that the
            kernel gave the program: a script's begin with its interpreter.
        ppid: Parent when the call was made (`post` records); 0 where no call was seen.
        exe: What `/proc/<pid>/exe` said at the first call after the exec (`post` records).
        claim_seq: The `claimed` record that this one answers; -1 when there was none.
        mismatch: The program that runs, or its arguments, are not what was claimed: an attack indicator.
        unconfirmed: Why nobody saw what ran after the claim. "failed": the caller went on with the program that it
            had. "ended": the process was gone before it could be looked at. "unreadable": the kernel does not say.
            "held": the watch was suspended before the call was answered; it asks again when it is resumed.
            "refused": it was refused, because what it asked for tripped the breaker while init waited for it.
    """

    path: str = ""
    argv: list[str] = []
    argv_truncated: bool = False
    ppid: int = 0
    exe: str = ""
    claim_seq: int = -1
    mismatch: bool = False
    unconfirmed: Literal["", "failed", "ended", "unreadable", "held", "refused"] = ""


class Exit(Event, frozen=True, kw_only=True, tag="exit"):
    """A process that init reaped ended: a command's first process, or an orphan (A: `pid` 0 if it led no session)."""

    exit_code: int | None = None
    signal: int | None = None
    orphan: bool = False


class Connect(Event, frozen=True, kw_only=True, tag="connect"):
    """A destination was named in connect, sendto or sendmsg.

    Attributes:
        transport: "tcp", "udp" or "unix".
        addr: Address literal, or the path for unix ("@name" for an abstract one).
        host: Name that the DNS stub had answered with this address, or "".
        rule: The policy rule that decided, as "network.allow[2]", or the reason of a refusal.
        errno: What the caller got, 0 for success, -1 while pending.
        flow: Id that joins this record to its `flow` records; 0 for none.
    """

    transport: Literal["tcp", "udp", "unix"]
    addr: str
    port: int = 0
    host: str = ""
    rule: str = ""
    errno: int = 0
    flow: int = 0


class Listen(Event, frozen=True, kw_only=True, tag="listen"):
    """A socket was bound to a name or began to listen (inside the sandbox only)."""

    op: Literal["bind", "listen"]
    transport: Literal["tcp", "udp", "unix"]
    addr: str = ""
    port: int = 0
    errno: int = 0


class Dns(Event, frozen=True, kw_only=True, tag="dns"):
    """A name was asked for at the DNS stub."""

    qname: str
    qtype: str
    rcode: str
    answers: list[str] = []
    rule: str = ""


class Flow(Event, frozen=True, kw_only=True, tag="flow"):
    """A connection through the gateway: named by its first bytes, refused by them, ended, or never reached.

    `bytes_out` and `bytes_in` are seen from the sandbox; `server_name` is TLS SNI or HTTP Host; `reason` says why it
    closed or failed. `payment` says how its first request pays, if it does ("x402", a wallet's method …), and `amount`
    how much, None where that is not known.
    """

    op: Literal["named", "closed", "failed"]
    flow: int
    addr: str
    port: int
    host: str = ""
    protocol: str = ""
    server_name: str = ""
    rule: str = ""
    bytes_out: int = 0
    bytes_in: int = 0
    duration_s: float = 0.0
    reason: str = ""
    payment: str = ""
    amount: float | None = None


class FileOp(Event, frozen=True, kw_only=True, tag="file"):
    """A call that can change the file system was made.

    Attributes:
        op: Name of the system call.
        path: Absolute name as the call gave it; of a call on a descriptor, the kernel's name of what is open.
        path2: New name of rename and link, or the name of a symbolic link that is made.
        resolved, resolved2: What `path` and `path2` led to, where that is another name in the workspace; else "".
        mode: Permission bits that chmod and its kin ask for; None for all other calls.
    """

    op: str
    path: str
    path2: str = ""
    resolved: str = ""
    resolved2: str = ""
    mode: int | None = None


class AgentNote(Event, frozen=True, kw_only=True, tag="agent"):
    """A run of an agent began, took a turn, or ended, as the process that drives the agent says it: `claimed`.

    The end of a run that the end of its watch has cut off is the supervisor's own word: `verified`.

    Attributes:
        op: Which of the three.
        run: Id of the run in its watch.
        turn: Number of the turn, from 1; at the end that of the last one.
        agent: Name of the agent, at the beginning.
        max_steps: Most turns that it may take, at the beginning; 0 where nobody said.
        action: What it chose: "shell", "edit", "patch", "say", "finish", "unclear".
        text: The task, what the action says, or the answer; cut.
        thought: What the agent says about its choice; cut.
        outcome: What came of the action, or how the run ended.
        model: Model that chose the action, "" for none.
        tokens_in: Tokens that the model read for it.
        tokens_out: Tokens that it wrote.
        cost_usd: What it cost, US dollars.
    """

    op: Literal["begin", "turn", "end"]
    run: str
    turn: int = 0
    agent: str = ""
    max_steps: int = 0
    action: str = ""
    text: str = ""
    thought: str = ""
    outcome: str = ""
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


class Reward(Event, frozen=True, kw_only=True, tag="reward"):
    """What a turn of an agent's run earned, as a sum of named terms; always `claimed`.

    Attributes:
        run: Id of the run.
        turn: The turn that is paid.
        total: Sum of the terms.
        terms: Each part by its name; a price paid is negative.
    """

    run: str
    turn: int = 0
    total: float = 0.0
    terms: dict[str, float] = {}


class LimitHit(Event, frozen=True, kw_only=True, tag="limit"):
    """A limit of the policy was reached. `value` and `limit` are in the unit that the policy documents."""

    limit: str
    value: float
    maximum: float
    action: str


class Gpu(Event, frozen=True, kw_only=True, tag="gpu"):
    """What a GPU or one process on it did in an interval, a change of a GPU's state, or a lease of it.

    Sums over the interval that ends with this record; a number that is not known is None, or missing from the sums.

    Attributes:
        op: "device": the whole GPU; "process": one process on it, which is `pid` where `attribution` is not "none";
            "state": it began or ceased to answer; "lease" and "release": its use is expected from, or until, here.
        device: UUID of the GPU or MIG device, or what a lease named.
        index: Position in the driver's list; a MIG device has its parent's. -1 for a lease.
        name: Model, where `op` is "state".
        source: "nvml", "simulated" or "trace"; "" for a lease.
        simulated: It is not real.
        interval_s: Length of the interval, seconds.
        utilization: Mean percent of the interval in which a kernel was executing.
        utilization_max: Highest single measurement in it.
        memory_bytes: GPU memory in use at its end.
        memory_total_bytes: GPU memory.
        power_w: Power draw at its end, watts.
        temperature_c: Temperature at its end, degrees Celsius.
        gpu_seconds: Seconds in which a kernel was executing.
        energy_j: Energy used, joules.
        outside_s: The part of `gpu_seconds` that no lease covers.
        attribution: How surely a "process" record belongs to `pid`: "exact", "weak" or "none"; "" elsewhere.
        member: Whether that process is in the sandbox; None where it is not known.
        driver_pid: Its id as the driver gave it.
        state: "ok", "error" or "ended", where `op` is "state".
        reason: What the driver said.
        xids: Critical errors reported in the interval.
        lease: Id of the lease.
        purpose: What the lease is for.
    """

    op: Literal["device", "process", "state", "lease", "release"]
    device: str
    index: int = -1
    name: str = ""
    source: str = ""
    simulated: bool = False
    interval_s: float = 0.0
    utilization: float | None = None
    utilization_max: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    gpu_seconds: float = 0.0
    energy_j: float = 0.0
    outside_s: float = 0.0
    attribution: Literal["", "exact", "weak", "none"] = ""
    member: bool | None = None
    driver_pid: int = 0
    state: str = ""
    reason: str = ""
    xids: list[int] = []
    lease: int = 0
    purpose: str = ""


class Resources(Event, frozen=True, kw_only=True, tag="resources"):
    """What all processes of the sandbox, or one that is busy (`pid` is not 0), used in an interval.

    Attributes:
        interval_s: Length of the interval, seconds.
        name: Short name of the one process: its own choice.
        cpu_s: CPU time used in the interval, seconds; of all: short-lived processes included.
        rss_bytes: Resident memory at its end; of all: shared pages count for each.
        read_bytes: Bytes read from storage in the interval.
        write_bytes: Bytes written.
        processes: Processes at its end, 1 for one.
        threads: Threads at its end.
        dropped: Samples left out in the interval because sampling was late.
    """

    interval_s: float = 0.0
    name: str = ""
    cpu_s: float = 0.0
    rss_bytes: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    processes: int = 0
    threads: int = 0
    dropped: int = 0


class Finding(Event, frozen=True, kw_only=True, tag="finding"):
    """Something that a person should look at. Its verdict is that of the record that completed it.

    Attributes:
        rule: Id of the rule, as "mining.stratum" or a Sigma rule's UUID.
        title: What was seen, in one line.
        severity: How much it matters.
        family: What it is a sign of: "mining", "tunnel", "shell" …; "monitor": the state of the monitor itself.
        technique: MITRE ATT&CK id.
        rationale: Why it matters, and what else it could be.
        evidence: `seq` of the records that it rests on.
    """

    rule: str
    title: str
    severity: Severity
    family: str = ""
    technique: str = ""
    rationale: str = ""
    evidence: list[int] = []


class BreakerChanged(Event, frozen=True, kw_only=True, tag="breaker"):
    """The circuit breaker moved from one state to another.

    Attributes:
        before: State that it left.
        after: State that it is in.
        cause: What moved it, and why.
        by: Who.
        evidence: At a trip, `seq` of the findings or limits that tripped it.
        processes: At a freeze, the processes inside: "pid parent program arguments", the first 64.
        flows: At a freeze, the open connections: where to, phase, protocol and bytes, the first 64.
        last_bytes: Of these, and of those that ended last: up to 128 bytes each way, quoted, the first 16.
    """

    before: str
    after: str
    cause: str
    by: str = ""
    evidence: list[int] = []
    processes: list[str] = []
    flows: list[str] = []
    last_bytes: list[str] = []


class Control(Event, frozen=True, kw_only=True, tag="control"):
    """A client of the control socket asked for something that changes the watch."""

    op: str
    by: str = ""
    detail: str = ""


class Gap(Event, frozen=True, kw_only=True, tag="gap"):
    """Records were lost, and how many: what is missing is on record too."""

    lost: int
    reason: str
