"""Bounds that no cgroup holds: looks on while anything runs, ends what is too large, and records what is hit.

It looks at 10 Hz, at 1 Hz where there is nothing to hold and only something to tell. What comes and goes between two
looks is not seen: memory may be over its bound for that long, and a fork, a file or an allocation that the kernel
refuses then leaves no record. Only a cgroup counts the forks that it refuses: none of these is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import LimitHit
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.sandbox.mounts import HOME
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.sandbox.usage import Usage, bytes_in_folders
from jupyter_agentwatch.supervisor.commands import Commands
from jupyter_agentwatch.supervisor.host import Host
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["BoundsWatch"]

_SAMPLE_S: Final = 0.1
_TELL_S: Final = 1.0
"""Seconds between two looks where there is nothing to hold, only to tell of."""

_SHARE: Final = 5
"""A look that takes long is followed by a pause of so many times its length: a crowd must not occupy the supervisor."""

_FULL: Final = 0.95
"""Share of a bound that the kernel holds from which it counts as reached: forks that are under way hold places, too,
and a program that was refused an allocation still has room for a smaller one."""

_FILES_EVERY: Final = 10
"""Looks between two that ask each process for its memory files, which costs the most."""


class BoundsWatch:
    """Holds the bound on memory, and tells of the bounds that the kernel holds: on tasks, open files and allocations.

    Args:
        limits: Bounds of the policy.
        host: Which of them nobody else holds, or tells of.
        sandbox: Whose.
        commands: Steps that can be ended.
        recorder: Where records go.
    """

    def __init__(self, limits: Limits, host: Host, sandbox: Sandbox, commands: Commands, recorder: Recorder) -> None:
        self._memory_bytes = limits.memory_bytes if host.watch_memory else None
        self._processes = limits.processes if host.watch_tasks else None
        self._leaf = host.leaf if host.asks_leaf else None
        self._refused = 0
        self._limits = limits
        own = () if sandbox.shares_network else ("/tmp", "/dev/shm", HOME)  # noqa: S108 -- the sandbox's own
        self._folders = [f"/proc/{sandbox.init_pid}/root{folder}" for folder in own]
        self._sandbox = sandbox
        self._commands = commands
        self._recorder = recorder
        self._told: set[tuple[str, int]] = set()
        self._in_files = 0
        self._looks = 0

    async def watch(self) -> None:
        """Look on, until cancelled."""
        holds = self._memory_bytes is not None or self._processes is not None
        sample = pause = _SAMPLE_S if holds else _TELL_S
        quiet_since = -1  # number of commands when nobody was left inside
        while True:
            await asyncio.sleep(pause)
            if self._commands.running:
                quiet_since = -1
            elif quiet_since == self._commands.steps:
                continue
            elif self._sandbox.members() == 0:
                quiet_since = self._commands.steps
                continue
            self.tell_refused()
            begun = time.monotonic()
            usage, in_files = await asyncio.to_thread(self._look)
            pause = max(sample, _SHARE * (time.monotonic() - begun))
            if self._memory_bytes is not None and usage.resident_bytes + in_files > self._memory_bytes:
                await self._end_all(usage.resident_bytes, in_files, self._memory_bytes)
            self._tell_all(usage)

    def tell_refused(self, step: int = 0) -> None:
        """Record that the cgroup has refused forks since the last time, if it has.

        Args:
            step: Whose command has just ended, 0 for none.
        """
        refused = 0 if self._leaf is None else self._leaf.refused_forks()
        if refused <= self._refused:
            return
        self._refused = refused
        bound = self._limits.processes or 0
        # The kernel does not say whom it refused: the step that has most tasks is named, or the last to have had any.
        most = _most_tasks(self._sandbox.usage(), self._commands.step_of_session)
        self._tell(most or step or self._commands.steps, "processes", bound, bound, "forks denied by the kernel")

    def _look(self) -> tuple[Usage, int]:
        if self._memory_bytes is None:
            return self._sandbox.usage(), 0
        if self._looks % _FILES_EVERY == 0:
            self._in_files = self._sandbox.bytes_in_memory_files()
        self._looks += 1
        return self._sandbox.usage(), self._in_files + bytes_in_folders(self._folders)

    async def _end_all(self, resident: int, in_files: int, bound: int) -> None:
        with contextlib.suppress(LogWriteError):
            self._recorder.record(
                LimitHit,
                verdict="kill",
                limit="memory_bytes",
                value=float(resident + in_files),
                maximum=float(bound),
                action=f"steps killed; {in_files} bytes of it are in files in memory",
                sync=True,
            )
        for step in self._commands.with_processes():
            await self._commands.kill(step, "limit:memory_bytes")
        self._looks = 0  # what they held open has gone with them

    def _tell_all(self, usage: Usage) -> None:
        step_of = self._commands.step_of_session
        total = sum(usage.tasks.values())
        if self._processes is not None and total >= self._processes * _FULL:
            # The kernel does not say whom it refused: the step that has most of them is named.
            self._tell(_most_tasks(usage, step_of), "processes", total, self._processes, "forks denied by the kernel")
        for limit, most, bound, action in (
            ("open_files", usage.open_files, self._limits.open_files, "further ones denied by the kernel"),
            ("memory_bytes", usage.data_bytes, self._limits.memory_bytes, "allocations denied by the kernel"),
        ):
            if bound is not None and most.amount >= bound * _FULL:
                self._tell(step_of(most.session), limit, most.amount, bound, action)

    def _tell(self, step: int, limit: str, value: int, bound: int, action: str) -> None:
        """Record it once for a step."""
        if (limit, step) in self._told:
            return
        self._told.add((limit, step))
        with contextlib.suppress(LogWriteError):
            self._recorder.record(
                LimitHit,
                verdict="deny",
                step=step,
                limit=limit,
                value=float(value),
                maximum=float(bound),
                action=action,
                sync=True,
            )


def _most_tasks(usage: Usage, step_of: Callable[[int], int]) -> int:
    """Return the step that has most tasks; 0 where there are none."""
    by_step = Counter[int]()
    for session, tasks in usage.tasks.items():
        by_step[step_of(session)] += tasks
    return max(by_step, key=lambda step: by_step[step], default=0)
