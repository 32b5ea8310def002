"""What a watch has used of what the policy grants it: bytes, connections, CPU and GPU time, and what they cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from jupyter_agentwatch.events import Connect, Event, Flow, Gpu, Resources

if TYPE_CHECKING:
    from jupyter_agentwatch.policy import Budgets

__all__ = ["BudgetBook"]

_NAMES: Final = ("bytes_out", "connections", "cpu_s", "gpu_s", "money")
_TENTH: Final = 0.1
_LEAST: Final = MappingProxyType({"connections": 1.0, "bytes_out": 1.0})
"""The connect that was held at a trip is asked for, and counted, once more when the watch goes on."""


class BudgetBook:
    """The sums of one watch. Any thread.

    Args:
        budgets: What is granted.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._granted = {name: float(value) for name in _NAMES if (value := getattr(budgets, name)) is not None}
        self._step = {name: max(value * _TENTH, _LEAST.get(name, 0.0)) for name, value in self._granted.items()}
        self._over: set[str] = set()
        self._lock = threading.Lock()
        self._closed_bytes = 0
        self._live: dict[int, int] = {}
        self._connections = 0
        self._cpu_s = 0.0
        self._gpu_s = 0.0
        self._paid = 0.0
        # A payment that does not say its amount in a known way counts as everything that is granted, and a little more.
        self._all_money = (budgets.money or 0.0) + self._step.get("money", 0.0)

    @property
    def counts_bytes(self) -> bool:
        """A budget depends on what flows that have not ended have sent."""
        return not self._granted.keys().isdisjoint(("bytes_out", "money"))

    def used(self) -> dict[str, float]:
        """Return what has been used of everything that can be granted."""
        prices, sent = self._budgets, self._closed_bytes + sum(self._live.values())
        return {
            "bytes_out": float(sent),
            "connections": float(self._connections),
            "cpu_s": self._cpu_s,
            "gpu_s": self._gpu_s,
            "money": self._cpu_s / 3600 * prices.price_cpu_hour
            + self._gpu_s / 3600 * prices.price_gpu_hour
            + sent / 1e9 * prices.price_gb_out
            + self._paid,
        }

    def feed(self, event: Event) -> list[dict[str, Any]]:
        """Count a record; return the fields of a `limit` record for each budget that it has used up."""
        match event:
            case Connect() if event.flow and event.verdict == "allow" and event.rule != "models":
                self._connections += 1
            case Flow() if event.op == "named" and event.payment and event.verdict == "allow":
                self._paid += self._all_money if event.amount is None else event.amount
            case Flow() if event.op == "closed":
                self._closed_bytes += event.bytes_out
                self._live.pop(event.flow, None)
            case Resources() if event.pid == 0:
                self._cpu_s += event.cpu_s
            case Gpu() if event.op == "process" and event.member is not False:
                self._gpu_s += event.gpu_seconds
            case _:
                return []
        return self._used_up()

    def look(self, live: dict[int, int]) -> list[dict[str, Any]]:
        """Take into account what flows that have not ended have sent so far; return as `feed` does.

        Args:
            live: Id of each flow to its bytes; seen in the thread that records the ends of flows.
        """
        self._live = dict(live)
        return self._used_up()

    def grant(self) -> None:
        """Grant another tenth of each budget that is used up, and more where even that is."""
        used = self.used()
        with self._lock:
            for name in self._over:
                self._granted[name] = max(self._granted[name], used[name]) + self._step[name]
            self._over.clear()

    def _used_up(self) -> list[dict[str, Any]]:
        return list(self._newly_over()) if self._granted else []

    def _newly_over(self) -> Iterator[dict[str, Any]]:
        used = self.used()
        with self._lock:
            for name, granted in self._granted.items():
                if used[name] > granted and name not in self._over:
                    self._over.add(name)
                    yield {
                        "limit": f"budgets.{name}",
                        "value": used[name],
                        "maximum": granted,
                        "action": "watch suspended",
                    }
