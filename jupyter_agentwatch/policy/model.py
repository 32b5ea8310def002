"""What a watch may do, as frozen data. An empty list always means nothing, never everything.

Paths may begin with `~` or `$HOME` (the user's own home on the host) and may be relative to the workspace; whoever
mounts them makes them absolute. Sizes are bytes, times are seconds. The constructors check nothing: see `check_policy`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "AllowedModel",
    "Audit",
    "Breaker",
    "Budgets",
    "Detect",
    "Environment",
    "Filesystem",
    "FirstBytes",
    "Gpu",
    "Limits",
    "ModelUpstream",
    "Models",
    "Network",
    "NetworkRule",
    "Notify",
    "Policy",
    "Protocol",
    "Snapshots",
    "Telemetry",
]

Protocol = Literal["any", "tls", "http", "ssh", "dns", "smtp", "websocket"]
"""What the first bytes must be for a flow to pass: exactly the one that is named ("http" does not pass a WebSocket
upgrade). "any" lets through what cannot be named, too, but never what is refused everywhere: mining logins, SOCKS."""

Port = Annotated[int, Meta(ge=1, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Amount = Annotated[float, Meta(ge=0)]
Threshold = Literal["info", "low", "medium", "high", "critical", "never"]

_PASSED = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "TERM")


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Filesystem(_Part, frozen=True, kw_only=True):
    """What exists inside besides the workspace, the active Python environment, the system and a fresh HOME and /tmp.

    Attributes:
        workspace: "write" (default) or "read".
        read: Files and folders that exist read-only.
        write: Files and folders that exist read-write.
        hide: Paths below anything granted that do not exist inside (an empty folder or file stands there).
        tmp_bytes: Size of each of the fresh /tmp and HOME, in bytes.
    """

    workspace: Literal["read", "write"] = "write"
    read: list[str] = []
    write: list[str] = []
    hide: list[str] = []
    tmp_bytes: Positive = 1 << 30


class NetworkRule(_Part, frozen=True, kw_only=True):
    """One destination outside the sandbox. Give exactly one of `host` and `cidr`.

    Attributes:
        host: A name ("api.example.org"), a pattern ("*.example.org": any deeper name, not the domain itself), or
            "host.loopback" for the loopback address of the machine that runs the supervisor.
        cidr: An address ("192.0.2.7", "2001:db8::1") or a range ("10.0.0.0/8"). It matches private addresses in the
            range as well, but never loopback. Names are not resolved for it.
        ports: TCP ports; an empty list allows none.
        protocol: What the first bytes must be.
        verdict: "allow", "ask" (held until a person answers) or "deny" (an exception before a later, wider rule; it
            must list ports, and a denied name is not resolved at all).
    """

    host: str | None = None
    cidr: str | None = None
    ports: list[Port] = []
    protocol: Protocol = "any"
    verdict: Literal["allow", "ask", "deny"] = "allow"


class FirstBytes(_Part, frozen=True, kw_only=True):
    """How long the gateway holds a flow's first bytes to name its protocol: whichever limit comes first.

    Attributes:
        limit_bytes: Bytes held in each direction.
        wait_s: Seconds waited after the first byte.
    """

    limit_bytes: Annotated[int, Meta(ge=64, le=65536)] = 4096
    wait_s: Annotated[float, Meta(gt=0, le=10)] = 0.3


class Network(_Part, frozen=True, kw_only=True):
    """Destinations outside the sandbox. Loopback inside the sandbox is always free. Default: nothing.

    Attributes:
        rules: The first rule that matches decides; where none does, the call is denied.
        private_answers: Let an allowed name resolve to an address that is not public: private, link-local, multicast,
            reserved (DNS rebinding otherwise turns an allowed name into a way into the host's own networks). Loopback
            stays closed: only a rule for host.loopback opens it.
        connect_timeout_s: Seconds that the gateway waits for an outside connection.
        ask_timeout_s: Seconds after which an unanswered `ask` is denied.
        first_bytes: Limits of protocol naming.
    """

    rules: list[NetworkRule] = []
    private_answers: bool = False
    connect_timeout_s: Seconds = 30.0
    ask_timeout_s: Seconds = 120.0
    first_bytes: FirstBytes = FirstBytes()


class Gpu(_Part, frozen=True, kw_only=True):
    """One GPU that exists inside.

    Attributes:
        device: Index (0) or UUID ("GPU-…").
        max_gpu_seconds: Budget of GPU time for the session, seconds in which a kernel was executing that is not known
            to be somebody else's; when it is used up, the watch is suspended, and each resume grants another tenth.
            None: no budget.
    """

    device: int | str
    max_gpu_seconds: Seconds | None = None


class Environment(_Part, frozen=True, kw_only=True):
    """Environment variables inside. Nothing else is passed on; tokens stay outside.

    Attributes:
        passed: Names copied from the kernel's environment where they are set; by default LANG, LC_ALL, LC_CTYPE, TZ
            and TERM.
        set: Names and values set.
    """

    passed: list[str] = msgspec.field(default_factory=lambda: list(_PASSED))
    set: dict[str, str] = {}


class Limits(_Part, frozen=True, kw_only=True):
    """Upper bounds; None: no bound of ours.

    Attributes:
        memory_bytes: Memory of all processes together, bytes.
        processes: Processes and threads alive together.
        cpu_s: CPU time of one process, seconds.
        open_files: Open files of one process.
        file_bytes: Size of one file written, bytes.
        output_bytes: Output kept of one command and stream, bytes; what comes after is counted, and dropped.
        command_s: Wall time of one command, seconds.
        session_s: Wall time of the watch, seconds; then it is killed.
    """

    memory_bytes: Positive | None = None
    processes: Positive | None = 1024
    cpu_s: Positive | None = None
    open_files: Annotated[int, Meta(ge=16)] = 4096
    file_bytes: Positive | None = None
    output_bytes: Positive = 16 * 1024 * 1024
    command_s: Seconds | None = None
    session_s: Seconds | None = None


class Snapshots(_Part, frozen=True, kw_only=True):
    """Pre-images kept for `diff` and `undo`.

    Attributes:
        file_bytes: A larger file is not kept (its change is still listed).
        total_bytes: Bytes kept in one watch.
    """

    file_bytes: Positive = 16 * 1024 * 1024
    total_bytes: Positive = 1 << 30


class Audit(_Part, frozen=True, kw_only=True):
    """The audit log.

    Attributes:
        max_bytes: Size of the log, bytes. At nine tenths a `limit` record warns; when it is reached, what would be
            recorded is denied and the watch is suspended, as on a full disk. Each resume then lets the log grow by
            another tenth. What ends a watch, and what a person does, is always recorded.
    """

    max_bytes: Annotated[int, Meta(ge=1 << 16)] = 2 << 30


class Notify(_Part, frozen=True, kw_only=True):
    """Whom the supervisor tells, from outside the sandbox, when the breaker trips, so that it is not lost on anybody.

    What has happened is one JSON object: watch, state, cause, evidence, log. Words in it may be the agent's.

    Attributes:
        command: Program (an absolute path) and arguments; no shell. The object is its standard input.
        url: Where the object is posted to, "http://…" or "https://…"; "" for nowhere.
        timeout_s: Seconds after which either is given up.
    """

    command: list[str] = []
    url: str = ""
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0


class Breaker(_Part, frozen=True, kw_only=True):
    """What suspends a watch without a person, and what becomes of a suspended one that nobody attends to.

    Attributes:
        freeze_at: From this severity on, one finding freezes; "never" for none.
        throttle_at: From this severity on, one finding throttles: no new connection or command, flows paused.
        two_families_at: Findings of two independent families freeze together, from this severity on.
        two_families_window_s: Within so many seconds.
        frozen_s: Seconds until `on_expiry`.
        on_expiry: "kill" or "resume".
        notify: Whom to tell.
    """

    freeze_at: Threshold = "critical"
    throttle_at: Threshold = "never"
    two_families_at: Threshold = "high"
    two_families_window_s: Seconds = 300.0
    frozen_s: Seconds = 3600.0
    on_expiry: Literal["kill", "resume"] = "kill"
    notify: Notify = Notify()


class Detect(_Part, frozen=True, kw_only=True):
    """What is looked for in the record. The project's own rules always run, but for those that are disabled.

    Attributes:
        rules: Sigma files, or folders of them: absolute paths, or such that begin with ~; never in the workspace.
        disabled: Ids (or, of Sigma rules, titles) of rules whose findings are not made.
    """

    rules: list[str] = []
    disabled: list[str] = []


class Budgets(_Part, frozen=True, kw_only=True):
    """What a whole watch may use. When one is used up, the watch is suspended, and each resume grants another tenth.

    Of connections it grants one at least.

    Attributes:
        bytes_out: Bytes sent through the gateway.
        connections: Connections allowed to outside destinations.
        cpu_s: CPU time of all processes, seconds.
        gpu_s: GPU time of all processes, seconds in which a kernel was executing.
        money: Amount, in whatever currency the prices are. Payments that plaintext requests make (x402) count with what
            they say; one that does not say its amount in a known way counts as all that is granted.
        price_cpu_hour: Price of an hour of CPU time.
        price_gpu_hour: Price of an hour of GPU time.
        price_gb_out: Price of 10⁹ bytes sent.
    """

    bytes_out: Positive | None = None
    connections: Positive | None = None
    cpu_s: Seconds | None = None
    gpu_s: Seconds | None = None
    money: Seconds | None = None
    price_cpu_hour: Amount = 0.0
    price_gpu_hour: Amount = 0.0
    price_gb_out: Amount = 0.0


class AllowedModel(_Part, frozen=True, kw_only=True):
    """One model that may be asked.

    Attributes:
        name: As it is asked for.
        price_in: Price of 10⁶ tokens given to it.
        price_out: Price of 10⁶ tokens that it writes.
    """

    name: str
    price_in: Amount = 0.0
    price_out: Amount = 0.0


class ModelUpstream(_Part, frozen=True, kw_only=True):
    """One service of models, which is asked from outside of the sandbox. Give at most one of `key_env` and `key_file`.

    Attributes:
        shape: "openai" (chat completions, responses) or "anthropic" (messages).
        url: What its paths begin with, up to the version: "https://api.example.org/v1".
        key_env: Variable of the notebook's environment that holds the key; it may not be passed inside.
        key_file: File that holds the key: an absolute path, or one that begins with ~; nothing inside may show it.
        models: What may be asked; an empty list allows none.
    """

    shape: Literal["openai", "anthropic"]
    url: str
    key_env: str = ""
    key_file: str = ""
    models: list[AllowedModel] = []


class Models(_Part, frozen=True, kw_only=True):
    """A model for agents that run inside, without a credential: an endpoint on the sandbox's own loopback.

    Commands find it by OPENAI_BASE_URL and ANTHROPIC_BASE_URL; the key that they see is a token of this watch, good for
    nothing else. Each request is on record before it leaves.

    Attributes:
        upstreams: Whom to ask; an empty list means that there is no such endpoint.
        port: Its port on 127.0.0.1, inside.
        hosted_tools: Tools that the provider carries out (web search, code, MCP) and media that it fetches may be asked
            for: they reach out past the sandbox's network policy.
        request_bytes: Size of a request, bytes.
        response_bytes: Size of an answer, bytes; a longer one is broken off.
        answer_s: Seconds that an answer may take from begin to end.
        max_requests: Requests in one watch; None: no bound.
        max_tokens: Tokens in and out in one watch; a request that would be the next one is refused when they are used
            up. None: no bound.
        max_cost: What they may cost by the prices of `models`; None: no bound.
    """

    upstreams: list[ModelUpstream] = []
    port: Annotated[int, Meta(ge=1024, le=65535)] = 8790
    hosted_tools: bool = False
    request_bytes: Annotated[int, Meta(ge=1024, le=1 << 26)] = 8 << 20
    response_bytes: Annotated[int, Meta(ge=1024, le=1 << 28)] = 32 << 20
    answer_s: Seconds = 600.0
    max_requests: Positive | None = None
    max_tokens: Positive | None = None
    max_cost: Seconds | None = None


class Telemetry(_Part, frozen=True, kw_only=True):
    """How GPUs and the sandbox's processes are measured.

    Attributes:
        hz: Samples per second while anything runs inside; otherwise one per second at most.
        simulate_gpus: Number of simulated GPUs, 0 for none. They stand for the machine's, none of which exists inside
            then, and are labelled SIMULATED wherever they are shown.
        trace: A recorded trace (JSON Lines) that stands for the machine's GPUs likewise: an absolute path, or one that
            begins with ~.
    """

    hz: Annotated[float, Meta(ge=0.1, le=50)] = 10.0
    simulate_gpus: Annotated[int, Meta(ge=0, le=64)] = 0
    trace: str | None = None

    @property
    def stands_in(self) -> bool:
        """Something stands for the machine's GPUs."""
        return self.simulate_gpus > 0 or self.trace is not None


class Policy(_Part, frozen=True, kw_only=True):
    """Everything that a watch may do. `Policy()` is the default: the workspace, no network, no GPU.

    Attributes:
        version: Version of this format.
        isolation: "required": the best of rungs A and B that this machine gives, or none. "A" or "B": exactly this
            one. "C": network and system calls are confined, files are not; only ever taken where it is asked for.
        filesystem: What exists inside.
        network: What can be reached outside.
        unix_sockets: Paths of AF_UNIX sockets on the host that may be connected to.
        gpus: GPUs that exist inside.
        environment: Variables inside.
        limits: Upper bounds.
        snapshots: Pre-images for `diff` and `undo`.
        audit: Bound of the audit log.
        breaker: What suspends a watch, and what follows.
        detect: What is looked for in the record.
        budgets: What the whole watch may use.
        telemetry: How GPUs and processes are measured.
        models: A model for agents inside.
    """

    version: Literal[1] = 1
    isolation: Literal["required", "A", "B", "C"] = "required"
    filesystem: Filesystem = Filesystem()
    network: Network = Network()
    unix_sockets: list[str] = []
    gpus: list[Gpu] = []
    environment: Environment = Environment()
    limits: Limits = Limits()
    snapshots: Snapshots = Snapshots()
    audit: Audit = Audit()
    breaker: Breaker = Breaker()
    detect: Detect = Detect()
    budgets: Budgets = Budgets()
    telemetry: Telemetry = Telemetry()
    models: Models = Models()
