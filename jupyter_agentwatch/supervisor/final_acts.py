"""What is done when a watch ends: on threads that no client and no diff can occupy, and with an end to every wait."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import Finding, Session
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["FinalActs"]

_DESTROY_S: Final = 10.0
_LOG_S: Final = 5.0

T = TypeVar("T")


class FinalActs:
    """Belongs to the control thread's loop.

    Args:
        loop: That loop.
        sandbox: What is to be destroyed.
        recorder: Where the last records go.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sandbox: Sandbox, recorder: Recorder) -> None:
        self._recorder = recorder
        self._loop = loop
        self._sandbox = sandbox
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="final-act")

    async def destroy(self) -> int:
        """End every process of the sandbox; return how many are left after ten seconds at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._aside(self._sandbox.destroy), _DESTROY_S)
        return await self._aside(self._sandbox.survivors)

    async def close_log(self, last_acts: Callable[[], None], end: dict[str, Any], *, is_alarm: bool) -> str:
        """Write the last records and close the log; return what went wrong, or "".

        A thread that hangs may be holding the log, and a disk may not answer: the end of the watch does not wait.

        Args:
            last_acts: Records what is not yet on record, the breaker's last move, and what ends with the watch.
            end: Fields of the log's last record: reason, killed, survivors.
            is_alarm: A critical finding goes before: the monitor itself was attacked, or has failed.
        """

        def work() -> None:
            with contextlib.suppress(LogWriteError, ValueError):
                if is_alarm:
                    rule, title = "agentwatch.monitor_stuck", f"{end['reason']}; the watch was killed"
                    self._recorder.record(
                        Finding,
                        verdict="kill",
                        rule=rule,
                        title=title,
                        severity="critical",
                        family="monitor",
                        sync=True,
                    )
            last_acts()
            with contextlib.suppress(LogWriteError):
                self._recorder.record(Session, verdict="kill", op="close", sync=True, **end)
            self._recorder.close()

        try:
            await asyncio.wait_for(self._aside(work), _LOG_S)
        except TimeoutError:
            return f"the log could not be closed in {_LOG_S:.0f} s: its disk or a thread of the supervisor holds it up"
        return ""

    async def clear_away(self, history: WorkspaceHistory, folders: Iterable[Path]) -> None:
        """Remove what was kept of the workspace, with the watch's folders; a diff that still reads it is waited for."""

        def remove() -> None:
            history.close()
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

        await self._aside(remove)

    async def _aside(self, work: Callable[[], T]) -> T:
        try:
            future = self._threads.submit(work)
        except RuntimeError:  # the machine gives no more threads
            return work()
        return await asyncio.wrap_future(future, loop=self._loop)
