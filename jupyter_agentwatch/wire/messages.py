"""What is said on the control socket, as closed tagged unions; pure data, no socket here.

A client sends requests, each with an id; the supervisor answers each id exactly once with a reply, and
pushes notices (output, ends, events) to the clients that asked for them.
"""

from __future__ import annotations

import msgspec

from jupyter_agentwatch.policy.model import Policy

__all__ = [
    "PROTOCOL",
    "Ack",
    "Answer",
    "Change",
    "Changes",
    "CommandEnded",
    "DiffStep",
    "EventNotice",
    "Failed",
    "FromSupervisor",
    "Hello",
    "Kill",
    "Killed",
    "Launch",
    "LaunchReport",
    "LeaseGpu",
    "Leased",
    "Message",
    "NoteAgent",
    "NoteReward",
    "Output",
    "ReleaseGpu",
    "Request",
    "Resize",
    "Resume",
    "RunCommand",
    "SampleNotice",
    "SignalStep",
    "Started",
    "Status",
    "StdinData",
    "Subscribe",
    "SubscribeSamples",
    "Suspend",
    "ToSupervisor",
    "UndoStep",
    "WatchStatus",
    "Welcome",
]

PROTOCOL = 1
"""Version of this module; a client and a supervisor of different versions refuse each other."""


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one frame on a new supervisor's standard input: what to watch, and for whom.

    Attributes:
        watch: Id of the watch.
        policy: What it may do.
        workspace: Absolute path, resolved.
        socket: Path of the control socket to make.
        log: Path of the audit log to make.
        owner_pid: Process whose end of life ends the watch.
        cell: Notebook cell that opened the watch, or "".
        environ: Those variables of the owner that `policy.environment.passed` names.
        python: Folders of the active Python environment.
        rules: Compiled Sigma rules, as `detect.sigma_form.encode_rules` gives them; b"" for none.
        model_keys: The key of each of the policy's `models.upstreams`, "" for none.
    """

    watch: str
    policy: Policy
    workspace: str
    socket: str
    log: str
    owner_pid: int
    cell: str = ""
    environ: dict[str, str] = {}
    python: list[str] = []
    rules: bytes = b""
    model_keys: list[str] = []


class LaunchReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The one line, as JSON, on a new supervisor's standard output.

    Attributes:
        ready: The sandbox stands and the control socket listens.
        error: Otherwise the name of a class in `errors`; the supervisor then exits with 125.
        text: What went wrong and what to do.
    """

    ready: bool = False
    error: str = ""
    text: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Base of what a client sends; `id` comes back in the reply. `wire.client` numbers what it sends itself."""

    id: int = 0


class Hello(Request, frozen=True, kw_only=True, tag="hello"):
    """First message of a connection. The owner's end of life ends the watch (dead-man's switch)."""

    protocol: int
    owner: bool = False
    client: str = ""


class RunCommand(Request, frozen=True, kw_only=True, tag="run"):
    """Start a command. `argv` is executed as it is, searched in PATH; `timeout_s` 0 means the policy's wall limit.

    `gpu`, an index or UUID, leases that GPU to the command until its first process ends. `run` and `turn` say for which
    turn of which run of an agent it is.
    """

    argv: list[str]
    cell: str = ""
    cwd: str = ""
    env: dict[str, str] = {}
    timeout_s: float = 0.0
    stdin: bool = False
    pty: bool = False
    rows: int = 24
    columns: int = 80
    gpu: int | str | None = None
    run: str = ""
    turn: int = 0


class NoteAgent(Request, frozen=True, kw_only=True, tag="note-agent"):
    """Put on record what a run of an agent did; the fields are those of `events.AgentNote`.

    `step` is the command that the turn was carried out by, 0 for none.
    """

    op: str
    run: str
    turn: int = 0
    step: int = 0
    cell: str = ""
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


class NoteReward(Request, frozen=True, kw_only=True, tag="note-reward"):
    """Put on record what a turn of an agent's run earned; the fields are those of `events.Reward`."""

    run: str
    turn: int = 0
    step: int = 0
    cell: str = ""
    terms: dict[str, float] = {}


class StdinData(Request, frozen=True, kw_only=True, tag="stdin"):
    """Bytes for a command's standard input; `eof` closes it afterwards."""

    step: int
    data: bytes = b""
    eof: bool = False


class Resize(Request, frozen=True, kw_only=True, tag="resize"):
    """New size of a command's terminal."""

    step: int
    rows: int
    columns: int


class SignalStep(Request, frozen=True, kw_only=True, tag="signal"):
    """`INT` reaches the command's process group; `KILL` ends every process of the step."""

    step: int
    signal: int


class Suspend(Request, frozen=True, kw_only=True, tag="suspend"):
    """Stop every process and hold every call until `Resume` or `Kill`."""

    by: str = ""


class Resume(Request, frozen=True, kw_only=True, tag="resume"):
    """Let a suspended watch go on."""

    by: str = ""


class Kill(Request, frozen=True, kw_only=True, tag="kill"):
    """End everything in the sandbox and close the log; idempotent and final."""

    reason: str = ""
    by: str = ""


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """Ask for a `WatchStatus`."""


class Subscribe(Request, frozen=True, kw_only=True, tag="subscribe"):
    """Receive every further event as an `EventNotice` (and `Gap` notices when this client is too slow)."""


class SubscribeSamples(Request, frozen=True, kw_only=True, tag="subscribe-samples"):
    """Receive every further telemetry sample as a `SampleNotice`."""


class LeaseGpu(Request, frozen=True, kw_only=True, tag="lease"):
    """Say that a GPU, named by index or UUID, is going to be used; answered by `Leased`.

    The lease ends with `ReleaseGpu` or with this connection.
    """

    gpu: int | str
    purpose: str


class ReleaseGpu(Request, frozen=True, kw_only=True, tag="release"):
    """End a lease."""

    lease: int


class DiffStep(Request, frozen=True, kw_only=True, tag="diff"):
    """Ask what a step changed in the workspace."""

    step: int


class UndoStep(Request, frozen=True, kw_only=True, tag="undo"):
    """Take back what a step changed in the workspace."""

    step: int


class Answer(Request, frozen=True, kw_only=True, tag="answer"):
    """A person's word on a call that is held with the verdict `ask`."""

    ask: int
    allow: bool
    by: str = ""


ToSupervisor = (
    Hello
    | RunCommand
    | NoteAgent
    | NoteReward
    | StdinData
    | Resize
    | SignalStep
    | Suspend
    | Resume
    | Kill
    | Status
    | Subscribe
    | SubscribeSamples
    | LeaseGpu
    | ReleaseGpu
    | DiffStep
    | UndoStep
    | Answer
)
"""Everything that a client may say."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Base of what the supervisor sends; `id` is the request's, or 0 for a notice."""

    id: int = 0


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """Answer to `Hello`."""

    protocol: int
    watch: str
    rung: str
    log: str
    head: str
    notes: list[str] = []


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """The request was carried out."""


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The request was refused; `error` is the name of a class in `errors`."""

    error: str
    text: str


class Started(Message, frozen=True, kw_only=True, tag="started"):
    """Answer to `RunCommand`: the step number. Output and end follow as notices."""

    step: int


class Output(Message, frozen=True, kw_only=True, tag="output"):
    """A piece of a command's output; `stream` is 1 or 2 (a terminal's output is 1)."""

    step: int
    stream: int
    data: bytes


class CommandEnded(Message, frozen=True, kw_only=True, tag="ended"):
    """A command's first process ended and its output pipes are drained.

    `outcome` is one of "exited", "signalled", "timeout", "limit:<name>", "not-found", "not-executable", "killed".
    Times are in seconds, memory in bytes; `stdout_bytes` counts what was written, also where it was cut.
    """

    step: int
    outcome: str
    exit_code: int | None
    signal: int | None
    duration_s: float
    cpu_user_s: float
    cpu_system_s: float
    max_rss_bytes: int
    stdout_bytes: int
    stderr_bytes: int
    stdout_truncated: bool
    stderr_truncated: bool
    head: str


class Killed(Message, frozen=True, kw_only=True, tag="killed"):
    """Answer to `Kill`: how many processes ended, how many were left (counted from outside), and how long it took.

    `survivors` -1 says that nobody could count them; `note` is "" unless the kill went another way than by `Kill`.
    """

    killed: int
    survivors: int
    latency_ms: float
    head: str
    note: str = ""


class WatchStatus(Message, frozen=True, kw_only=True, tag="status"):
    """A picture of the watch now; counts are since its start, `counts` by event kind and verdict ("connect:deny").

    `asks_left_s`: seconds until each of `asks` counts as denied; `frozen_left_s`: those until a frozen watch ends or
    goes on, as `on_expiry` says; `steps_alive`: those that run, or may have left processes; `findings`: the latest few.
    """

    watch: str
    rung: str
    state: str
    workspace: str
    log: str
    head: str
    pid: int
    owner_pid: int
    started_wall_ns: int
    elapsed_s: float
    processes: int
    running_steps: list[int]
    steps: int
    counts: dict[str, int]
    asks: dict[int, str]
    limits_by: str
    notes: list[str]
    asks_left_s: dict[int, float] = {}
    frozen_left_s: float | None = None
    on_expiry: str = ""
    steps_alive: list[int] = []
    findings: list[str] = []


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One path that a step changed. `diff` is a unified diff where both sides are text and small enough."""

    path: str
    change: str
    diff: str = ""
    note: str = ""


class Changes(Message, frozen=True, kw_only=True, tag="changes"):
    """Answer to `DiffStep` and `UndoStep`."""

    step: int
    changes: list[Change]


class Leased(Message, frozen=True, kw_only=True, tag="leased"):
    """Answer to `LeaseGpu`: the lease's number and the device that it is for."""

    lease: int
    device: str
    index: int
    simulated: bool


class SampleNotice(Message, frozen=True, kw_only=True, tag="sample"):
    """One telemetry sample: MessagePack of a `telemetry.model.Snapshot`, its lists of processes cut to the busiest.

    `left_out` counts the samples before it that were not sent because this client, or the supervisor, was too slow.
    """

    sample: bytes
    left_out: int = 0


class EventNotice(Message, frozen=True, kw_only=True, tag="event"):
    """One record as it stands in the log (JSON of `events.encode_event`).

    `left_out` counts the records before it that were not sent because this client was too slow; the log has them.
    """

    event: bytes
    left_out: int = 0


FromSupervisor = (
    Welcome
    | Ack
    | Failed
    | Started
    | Output
    | CommandEnded
    | Killed
    | WatchStatus
    | Changes
    | Leased
    | SampleNotice
    | EventNotice
)
"""Everything that the supervisor may say."""
