"""Holds the bound on memory where no cgroup does: looks at 10 Hz while anything runs, and ends what is too large."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import LimitHit
from jupyter_agentwatch.sandbox.launch import Sandbox
from jupyter_agentwatch.supervisor.commands import Commands
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["watch_memory"]

_SAMPLE_S: Final = 0.1


async def watch_memory(bound: int, sandbox: Sandbox, commands: Commands, recorder: Recorder) -> None:
    """Kill every step that has processes, also orphans', when they have more than `bound` bytes resident together."""
    while True:
        await asyncio.sleep(_SAMPLE_S)
        if not commands.running and sandbox.members() == 0:
            continue
        used = await asyncio.to_thread(sandbox.resident_bytes)
        if used > bound:
            with contextlib.suppress(LogWriteError):
                recorder.record(
                    LimitHit,
                    verdict="kill",
                    limit="memory_bytes",
                    value=float(used),
                    maximum=float(bound),
                    action="steps killed",
                    sync=True,
                )
            for step in commands.with_processes():
                await commands.kill(step, "limit:memory_bytes")
