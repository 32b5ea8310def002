"""What this machine gives a watch, found once before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jupyter_agentwatch.sandbox.cgroup import Leaf

if TYPE_CHECKING:
    from jupyter_agentwatch.supervisor.proxy_process import ProxyProcess
    from jupyter_agentwatch.telemetry.backend import GpuBackend

__all__ = ["Host"]


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine gives a watch.

    Attributes:
        rung: Letter of the rung.
        limits_by: Who holds which limit, for people.
        count_tasks: The supervisor holds the bound on tasks.
        watch_memory: The supervisor holds the bound on memory.
        leaf: The watch's cgroup, if it has one.
        gpus: Opens the source of GPU samples.
        writable: Real names of what commands may write to, where no mounts hold that.
        proxy: The model proxy, where the policy has one.
    """

    rung: str
    limits_by: str
    count_tasks: bool
    watch_memory: bool
    leaf: Leaf | None
    gpus: Callable[[], GpuBackend]
    writable: tuple[str, ...] = ()
    proxy: ProxyProcess | None = None

    @property
    def watch_tasks(self) -> bool:
        """The kernel holds the bound on tasks by RLIMIT_NPROC, and tells nobody."""
        return not self.count_tasks and not self.asks_leaf

    @property
    def asks_leaf(self) -> bool:
        """The kernel holds the bound on tasks by the watch's cgroup, and counts what it refuses."""
        return self.leaf is not None and self.leaf.holds_processes
