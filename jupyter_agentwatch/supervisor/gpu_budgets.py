"""Budgets of GPU time: how much of each is used up, and whether it can still be measured. Reads no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from jupyter_agentwatch.policy import Gpu
from jupyter_agentwatch.supervisor.gpu_source import find_gpu
from jupyter_agentwatch.telemetry.model import GpuSample, Snapshot
from jupyter_agentwatch.telemetry.usage import Usage, Use

__all__ = ["BudgetedUsage", "Overrun"]

_MORE: Final = 0.1
_BLIND_NS: Final = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Overrun:
    """A budget that does not hold any more.

    Attributes:
        name: Field of the policy, as "gpus[0].max_gpu_seconds".
        used_s: GPU-seconds used so far.
        maximum_s: GPU-seconds that the policy grants.
        blind: Why it is no longer known how much is used; "" where the budget is used up.
    """

    name: str
    used_s: float
    maximum_s: float
    blind: str = ""


@dataclass(slots=True)
class _Budget:
    name: str
    device: int | str
    maximum_s: float
    allowed_s: float
    used_s: float = 0.0
    uuids: set[str] = field(default_factory=set)
    seen_ns: int = 0
    is_told: bool = False


class BudgetedUsage(Usage):
    """The sums of all use, and of what the policy bounds: use that is not known to be somebody else's.

    A GPU's budget is used by its MIG devices, too.

    Args:
        gpus: The policy's GPUs.
    """

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        super().__init__()
        self._budgets = [
            _Budget(f"gpus[{index}].max_gpu_seconds", gpu.device, gpu.max_gpu_seconds, gpu.max_gpu_seconds)
            for index, gpu in enumerate(gpus)
            if gpu.max_gpu_seconds is not None
        ]

    def __bool__(self) -> bool:
        """There are budgets to be held."""
        return bool(self._budgets)

    def feed(self, sample: GpuSample) -> list[Use]:
        """Add one sample, to the budgets as well; see `telemetry.usage.Usage.feed`."""
        uses = super().feed(sample)
        for budget in self._budgets:
            if sample.uuid in budget.uuids or sample.parent_uuid in budget.uuids:
                budget.used_s += sum(use.gpu_seconds for use in uses if use.member is not False)
        return uses

    def know(self, snapshot: Snapshot) -> None:
        """Find the budgets' devices in a snapshot; call it before its samples are fed."""
        for budget in self._budgets:
            sample = find_gpu(budget.device, snapshot.gpus)
            if sample is not None:
                budget.uuids.add(sample.uuid)
            if budget.seen_ns == 0 or (sample is not None and sample.state == "ok"):
                budget.seen_ns = snapshot.t_mono_ns

    def overruns(self, now_ns: int) -> list[Overrun]:
        """Return the budgets that have ceased to hold since they were last told of.

        Args:
            now_ns: Monotonic clock, nanoseconds.
        """
        found: list[Overrun] = []
        for budget in self._budgets:
            is_blind = now_ns - budget.seen_ns > _BLIND_NS
            if not budget.is_told and (is_blind or budget.used_s > budget.allowed_s):
                budget.is_told = True
                blind = "the device has not answered for 10 s" if is_blind else ""
                found.append(Overrun(budget.name, budget.used_s, budget.maximum_s, blind))
        return found

    def grant_more(self, now_ns: int) -> None:
        """A person let the watch go on: each budget that is used up gets a tenth more.

        Args:
            now_ns: Monotonic clock, nanoseconds.
        """
        for budget in self._budgets:
            if budget.is_told:
                budget.is_told, budget.seen_ns = False, now_ns
                if budget.used_s > budget.allowed_s:
                    budget.allowed_s = budget.used_s + _MORE * budget.maximum_s
