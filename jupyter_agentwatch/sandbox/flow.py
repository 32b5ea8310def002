"""What is known of a connection through the gateway, and who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from jupyter_agentwatch.policy import Decision
    from jupyter_agentwatch.sandbox.protocol import Naming

__all__ = ["LAST_BYTES", "FlowRecorder", "FlowSpec", "FlowState"]

LAST_BYTES: Final = 128
"""Bytes of each direction that are kept as evidence."""


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """One connection that the policy allowed, before a byte of it was seen.

    Attributes:
        flow: Id that joins its records.
        step: Command that made it.
        pid: Process that made it.
        addr: Destination as an address literal.
        port: Destination port.
        host: Name by which the destination is known, or "".
        decision: What the policy said about the destination. Anything but "allow" lets nothing through: one whose
            `ask` a person has granted comes with the verdict "allow".
        names: Every name that the DNS stub had answered with this address.
    """

    flow: int
    step: int
    pid: int
    addr: str
    port: int
    host: str
    decision: Decision
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FlowState:
    """A snapshot of a flow: "held" until its protocol is named, then "open", then "ended".

    `bytes_out` and `bytes_in` were passed on so far, as the sandbox sees it; `age_s` is in seconds. `last_out` and
    `last_in` are the last `LAST_BYTES` of each direction; of a flow that is or was held, of what was held.
    """

    spec: FlowSpec
    phase: str
    protocol: str
    server_name: str
    bytes_out: int
    bytes_in: int
    age_s: float
    last_out: bytes = b""
    last_in: bytes = b""


class FlowRecorder(Protocol):
    """Where flows are put on record. Called in the gateway's thread; must not wait for anything slow."""

    def named(  # noqa: D102 -- the class says it
        self, spec: FlowSpec, naming: Naming, decision: Decision, bytes_out: int, bytes_in: int
    ) -> None: ...

    def closed(  # noqa: D102 -- the class says it
        self, spec: FlowSpec, protocol: str, bytes_out: int, bytes_in: int, duration_s: float, reason: str
    ) -> None: ...
