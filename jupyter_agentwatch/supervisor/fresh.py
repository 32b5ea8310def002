"""Holds the size of the fresh folders where they are plain folders: looks once a second, and ends what fills them.

With mounts, each of them has a size of its own, and a program that fills one gets ENOSPC; here it is killed instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import LimitHit
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.supervisor.commands import Commands
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["folder_bytes", "watch_fresh_folders"]

_LOOK_S: Final = 1.0
_SHARE: Final = 5
"""A look that takes long is followed by a pause of so many times its length."""

_MAX_ENTRIES: Final = 200_000
"""More files than this count as too much, whatever is in them: each costs the disk an inode."""


def folder_bytes(folder: Path) -> int | None:
    """Return what a folder's files take of the disk, in bytes; None where there are too many to count."""
    total, seen, waiting = 0, 0, [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > _MAX_ENTRIES:
                    return None
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total


async def watch_fresh_folders(
    folders: list[Path], bound: int, sandbox: Sandbox, commands: Commands, recorder: Recorder
) -> None:
    """Kill every step that has processes when one of the folders holds more than `bound` bytes; until cancelled."""
    pause = _LOOK_S
    while True:
        await asyncio.sleep(pause)
        if not commands.running and sandbox.members() == 0:
            continue
        begun = time.monotonic()
        sizes = [await asyncio.to_thread(folder_bytes, folder) for folder in folders]
        pause = max(_LOOK_S, _SHARE * (time.monotonic() - begun))
        if all(size is not None and size <= bound for size in sizes):
            continue
        largest = max((size for size in sizes if size is not None), default=0)
        with contextlib.suppress(LogWriteError):
            recorder.record(
                LimitHit,
                verdict="kill",
                limit="tmp_bytes",
                value=float(largest),
                maximum=float(bound),
                action="steps killed" if None not in sizes else f"steps killed: over {_MAX_ENTRIES} files",
                sync=True,
            )
        for step in commands.with_processes():
            await commands.kill(step, "limit:tmp_bytes")
