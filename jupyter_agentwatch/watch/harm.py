"""What an incident used, what it let out, and what it cost the job that had leased the GPU: sums over the audit log.

Pure; fed with records in their order, since the incident's first sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.events import AnyEvent, Flow, Gpu, Resources
from jupyter_agentwatch.policy import Budgets

__all__ = ["Cost", "Harm", "Leak"]

_ENOUGH: Final = 3
"""Records of the leased job on either side, without which nothing is said of a slowdown."""

_MANY: Final = 10_000
_SHOWN: Final = 16
# Anchored at both ends: what stands between is the agent's own words.
_OPEN_FLOW: Final = re.compile(
    r"(\S+):(\d+) (\S*) step (\d+) pid \d+ .*out (\d+) in (\d+) for (\d+(?:\.\d+)?) s", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a step used from the first sign of an incident on: seconds, bytes, and money at the policy's prices.

    Attributes:
        cpu_s: CPU seconds of its busy processes.
        gpu_s: GPU seconds.
        bytes_out: Bytes sent to the outside.
        paid: What plaintext requests paid, as far as they say how much.
        money: What all of these are worth.
        slowdown: Share of its GPU time that the leased job lost on the same GPU meanwhile, from 0 to 1; None where no
            leased job, or too little of it, is on record before or during the incident.
    """

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    bytes_out: int = 0
    paid: float = 0.0
    money: float = 0.0
    slowdown: float | None = None

    @property
    def cpu_hours(self) -> float:
        """CPU time in hours."""
        return self.cpu_s / 3600

    @property
    def gpu_hours(self) -> float:
        """GPU time in hours."""
        return self.gpu_s / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """What passed between a step and the outside from the first sign of an incident on, by what the policy allows.

    Whole flows are counted, also where one had begun before.

    Attributes:
        bytes_out: Bytes that left.
        bytes_in: Bytes that came in.
        seconds: Time in which at least one such connection was open.
        destinations: "host:port" of those that got or gave a byte, the first 16; the agent's own words.
    """

    bytes_out: int = 0
    bytes_in: int = 0
    seconds: float = 0.0
    destinations: tuple[str, ...] = ()


@dataclass(slots=True)
class _Rate:
    """GPU seconds of a leased job, and the time in which it was seen to work."""

    gpu_s: float = 0.0
    passed_s: float = 0.0
    records: int = 0

    def add(self, event: Gpu) -> None:
        self.gpu_s += event.gpu_seconds
        self.passed_s += event.interval_s
        self.records += 1

    @property
    def is_known(self) -> bool:
        return self.records >= _ENOUGH and self.passed_s > 0 and self.gpu_s > 0


@dataclass(frozen=True, slots=True)
class _Passed:
    where: str
    bytes_out: int
    bytes_in: int
    began_ns: float
    ended_ns: int


class Harm:
    """The sums of one incident.

    Args:
        step: Its step.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._cpu_s = 0.0
        self._gpu_s = 0.0
        self._paid = 0.0
        self._devices: set[str] = set()
        self._before: dict[str, _Rate] = {}
        self._during: dict[str, _Rate] = {}
        self._flows: list[_Passed] = []
        self._open: dict[str, list[_Passed]] = {}

    def use(self, event: AnyEvent) -> None:
        """Take a record of its step, since its first sign."""
        match event:
            case Resources() if event.pid:
                self._cpu_s += event.cpu_s
            case Gpu() if event.op == "process":
                self._gpu_s += event.gpu_seconds
                if event.outside_s > 0:
                    self._devices.add(event.device)
            case Flow() if event.op == "named" and event.verdict == "allow":
                self._paid += event.amount or 0.0
            case Flow() if event.op == "closed":
                where = f"{event.addr}:{event.port}"
                if self._open.get(where):
                    self._open[where].pop()  # the record of its end counts all of it
                began = event.t_mono_ns - event.duration_s * 1e9
                named = f"{event.host or event.addr}:{event.port}"
                self._pass(_Passed(named, event.bytes_out, event.bytes_in, began, event.t_mono_ns))

    def beside(self, event: Gpu, *, since: bool) -> None:
        """Take a record of a process on a GPU, whatever its step.

        Args:
            event: The record.
            since: It comes after the incident's first sign.
        """
        if event.op == "process" and event.outside_s <= 0 < event.gpu_seconds and event.step != self._step:
            rates = self._during if since else self._before
            rates.setdefault(event.device, _Rate()).add(event)

    def stopped(self, flows: Iterable[str], now_ns: int) -> None:
        """Take the connections that were open when the breaker tripped, as its record keeps them."""
        for line in flows:
            found = _OPEN_FLOW.fullmatch(line)
            if found is not None and int(found[4]) == self._step:
                began = now_ns - float(found[7]) * 1e9
                passed = _Passed(f"{found[3] or found[1]}:{found[2]}", int(found[5]), int(found[6]), began, now_ns)
                self._open.setdefault(f"{found[1]}:{found[2]}", []).append(passed)

    def cost(self, prices: Budgets) -> Cost:
        """Return what was used, at these prices."""
        bytes_out = sum(each.bytes_out for each in self._all_flows())
        money = (
            self._cpu_s / 3600 * prices.price_cpu_hour
            + self._gpu_s / 3600 * prices.price_gpu_hour
            + bytes_out / 1e9 * prices.price_gb_out
            + self._paid
        )
        return Cost(
            cpu_s=self._cpu_s,
            gpu_s=self._gpu_s,
            bytes_out=bytes_out,
            paid=self._paid,
            money=money,
            slowdown=self._slowdown(),
        )

    def leak(self, began_ns: int) -> Leak:
        """Return what passed.

        Args:
            began_ns: Monotonic time of the incident's first sign, nanoseconds.
        """
        flows = [each for each in self._all_flows() if each.bytes_out or each.bytes_in]
        spans = sorted((max(each.began_ns, began_ns), each.ended_ns) for each in flows)
        covered, until = 0.0, float(began_ns)
        for start, end in spans:
            covered += max(0.0, end - max(start, until))
            until = max(until, end)
        return Leak(
            bytes_out=sum(each.bytes_out for each in flows),
            bytes_in=sum(each.bytes_in for each in flows),
            seconds=covered / 1e9,
            destinations=tuple(dict.fromkeys(each.where for each in flows))[:_SHOWN],
        )

    def _all_flows(self) -> list[_Passed]:
        return [*self._flows, *(each for flows in self._open.values() for each in flows)]

    def _pass(self, flow: _Passed) -> None:
        self._flows.append(flow)
        if len(self._flows) > _MANY:  # the first ones stand together as one
            one, two = self._flows[0], self._flows.pop(1)
            out, back = one.bytes_out + two.bytes_out, one.bytes_in + two.bytes_in
            self._flows[0] = _Passed(
                one.where, out, back, min(one.began_ns, two.began_ns), max(one.ended_ns, two.ended_ns)
            )

    def _slowdown(self) -> float | None:
        lost = []
        for device in self._devices:
            before, during = self._before.get(device, _Rate()), self._during.get(device, _Rate())
            if before.is_known and during.is_known:
                share = (during.gpu_s / during.passed_s) / (before.gpu_s / before.passed_s)
                lost.append(min(1.0, max(0.0, 1.0 - share)))
        return max(lost, default=None)
