"""The vocabulary: one flat, frozen record per thing that happened in a watch.

Constructors read no clock and make no ids; whoever observes an event passes both in. Text that the
agent can choose (paths, argv, host names) is stored as it came and must pass `events.text.printable`
before a person sees it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
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
    "LimitHit",
    "Listen",
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
    """The watch opened (first record of a log) or closed (last record)."""

    op: Literal["open", "close"]
    format: int = 0
    version: str = ""
    rung: str = ""
    workspace: str = ""
    policy_sha256: str = ""
    policy: str = ""
    limits_by: str = ""
    owner_pid: int = 0
    reason: str = ""
    killed: int = 0
    survivors: int = 0


class Step(Event, frozen=True, kw_only=True, tag="step"):
    """A command began or ended. `argv` is what the user asked for; times in seconds, memory in bytes."""

    op: Literal["start", "end"]
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

    Attributes:
        path: What the call named (`claimed` records).
        argv: Arguments, bounded in count and length; `argv_truncated` says when cut.
        ppid: Parent (`post` records), 0 where the process had ended before it was asked for.
        exe: What `/proc/<pid>/exe` said at the first call after the exec (`post` records).
        claim_seq: The `claimed` record that a `post` record answers; -1 when there was none.
        mismatch: The program that runs is not the one that was claimed: an attack indicator.
    """

    path: str = ""
    argv: list[str] = []
    argv_truncated: bool = False
    ppid: int = 0
    exe: str = ""
    claim_seq: int = -1
    mismatch: bool = False


class Exit(Event, frozen=True, kw_only=True, tag="exit"):
    """A process that init reaped ended: a command's first process, or an orphan."""

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
    closed or failed.
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


class FileOp(Event, frozen=True, kw_only=True, tag="file"):
    """A call that can change the file system was made. `path2` is the new name of rename, link and symlink."""

    op: str
    path: str
    path2: str = ""


class LimitHit(Event, frozen=True, kw_only=True, tag="limit"):
    """A limit of the policy was reached. `value` and `limit` are in the unit that the policy documents."""

    limit: str
    value: float
    maximum: float
    action: str


class Finding(Event, frozen=True, kw_only=True, tag="finding"):
    """Something that a person should look at. `technique` is a MITRE ATT&CK id."""

    rule: str
    title: str
    severity: Severity
    technique: str = ""
    evidence: list[int] = []


class BreakerChanged(Event, frozen=True, kw_only=True, tag="breaker"):
    """The circuit breaker moved from one state to another."""

    before: str
    after: str
    cause: str
    by: str = ""


class Control(Event, frozen=True, kw_only=True, tag="control"):
    """A client of the control socket asked for something that changes the watch."""

    op: str
    by: str = ""
    detail: str = ""


class Gap(Event, frozen=True, kw_only=True, tag="gap"):
    """Records were lost, and how many: what is missing is on record too."""

    lost: int
    reason: str
