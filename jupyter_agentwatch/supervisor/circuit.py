"""The breaker in act: what stops and what goes on at each of its moves, and who is told.

A trip begins in the thread that records its cause: the gate is shut there, before the call is answered; the rest
follows on the control thread's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.breaker import BreakerState, Cause, Trip, after
from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.events import BreakerChanged, Control, LimitHit
from jupyter_agentwatch.policy import Breaker
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.supervisor.commands import Commands
from jupyter_agentwatch.supervisor.detection import Detection
from jupyter_agentwatch.supervisor.gate import Gate
from jupyter_agentwatch.supervisor.init_channel import InitChannel
from jupyter_agentwatch.supervisor.mediator import Mediator
from jupyter_agentwatch.supervisor.network_side import NetworkSide
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.supervisor.scene import connections, last_bytes, process_tree
from jupyter_agentwatch.supervisor.standstill import Standstill

__all__ = ["Circuit", "Works"]

_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Works:
    """What the breaker acts on, and how it begins what takes its time: `spawn` runs on the loop, `end` kills."""

    loop: asyncio.AbstractEventLoop
    sandbox: Sandbox
    recorder: Recorder
    gate: Gate
    mediator: Mediator
    network: NetworkSide
    commands: Commands
    init: InitChannel
    standstill: Standstill
    spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    end: Callable[[str, Cause], None]
    notes: list[str]


class Circuit:
    """The breaker of one watch. Belongs to the control thread's loop, but for `trip`, `move` and `state`.

    Args:
        works: What it acts on.
        detection: Told when a person lets the watch go on.
        policy: What follows a suspension, and who is told.
        about: What everybody who is told is told first: watch, workspace, log.
    """

    def __init__(self, works: Works, detection: Detection, policy: Breaker, about: dict[str, str]) -> None:
        self._works = works
        self._detection = detection
        self._policy = policy
        self._about = about
        self.state: BreakerState = "closed"
        self.is_running = asyncio.Event()
        self.is_running.set()
        self._freezing = asyncio.Lock()
        self._stopped_before: list[int] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._guard: asyncio.Task[Any] | None = None
        self._unwritten: dict[str, Any] | None = None
        self._writing = threading.Lock()
        self._thread = 0

    @property
    def on_expiry(self) -> str:
        """What the policy's time limit does to a frozen watch: "kill" or "resume"."""
        return self._policy.on_expiry

    @property
    def frozen_left_s(self) -> float | None:
        """Seconds until it does; None where the watch is not frozen."""
        if self.state != "frozen" or self._expiry is None:
            return None
        return round(max(0.0, self._expiry.when() - self._works.loop.time()), 3)

    async def watch_budgets(self) -> None:
        """Hold the budgets that depend on what flows have sent by now, until cancelled."""
        self._thread = threading.get_ident()
        budgets = self._detection.budgets
        while budgets.counts_bytes:
            await asyncio.sleep(_LOOK_S)
            live = {flow.spec.flow: flow.bytes_out for flow in self._works.network.flows()}
            for fields in budgets.look(live):
                with contextlib.suppress(LogWriteError):  # that has tripped the breaker already
                    self._works.recorder.record(LimitHit, verdict="deny", **fields)

    # -- trips ---------------------------------------------------------------------------------------------------

    def trip(self, trip: Trip) -> None:
        """Stop what must not go on, at once, and have the rest done. Any thread, also under the recorder's lock."""
        if self.state not in {"closed", "throttled"}:
            return
        self._works.gate.shut("tripped" if trip.cause == "trip" else "throttled")
        if threading.get_ident() == self._thread:
            self._works.network.pause()  # the flow that this is about is let through in a moment
        with contextlib.suppress(RuntimeError):  # the loop is closed: the watch has ended
            self._works.loop.call_soon_threadsafe(self._act, trip)

    def trip_for(self, why: str) -> None:
        """Freeze because the monitor itself cannot do its work. Any thread."""
        self.trip(Trip("trip", why, ()))

    def _act(self, trip: Trip) -> None:
        try:
            after(self.state, trip.cause)
        except ControlError:
            return  # somebody was faster; whoever resumes opens the gate
        self._works.spawn(self._tripped(trip))

    async def _tripped(self, trip: Trip) -> None:
        if trip.cause == "throttle":
            self.move("throttle", "supervisor", trip.why, evidence=trip.evidence, step=trip.step)
            self._hold_network()
        else:
            try:
                await self.freeze("trip", "supervisor", trip.why, evidence=trip.evidence, step=trip.step)
            except ControlError:
                return  # a person, or another trip, was faster
            except SessionEndedError:
                pass  # it is being killed, which is worth telling, too
        self._works.notes.append(f"{self.state}: {trip.why}")
        await self._tell(trip)

    async def _tell(self, trip: Trip) -> None:
        where = self._policy.notify
        if not where.command and not where.url:
            return
        from jupyter_agentwatch.supervisor.notifier import notify

        what = {**self._about, "state": self.state, "cause": trip.cause, "why": trip.why, "evidence": trip.evidence}
        for outcome in await asyncio.to_thread(notify, where, what):
            with contextlib.suppress(LogWriteError, ValueError):  # the log may be closed by now
                self._works.recorder.record(Control, op="notify", by="supervisor", detail=outcome)

    # -- moves ---------------------------------------------------------------------------------------------------

    def move(self, cause: Cause, by: str, detail: str = "", *, evidence: tuple[int, ...] = (), step: int = 0) -> None:
        """Move, and put it on record.

        Raises:
            ControlError: That cannot happen in this state.
        """
        self._begin_move(cause, by, detail, evidence, step)
        self._write_move()

    def _begin_move(self, cause: Cause, by: str, detail: str, evidence: tuple[int, ...], step: int) -> None:
        self._write_move()  # what another thread has begun
        before, self.state = self.state, after(self.state, cause)
        self._unwritten = {
            "verdict": "deny" if self.state != "closed" else "allow",
            "before": before,
            "after": self.state,
            "cause": f"{cause}: {detail}" if detail else cause,
            "by": by,
            "evidence": list(evidence),
            "step": step,
        }

    def _write_move(self, **scene: Any) -> None:
        with self._writing:
            fields, self._unwritten = self._unwritten, None
        if fields is not None:
            with contextlib.suppress(LogWriteError, ValueError):  # the log may be closed by now
                self._works.recorder.record(BreakerChanged, sync=True, **fields, **scene)

    def _hold_network(self) -> None:
        self._works.network.pause()
        self.is_running.clear()

    async def freeze(
        self, cause: Cause, by: str, detail: str = "", *, evidence: tuple[int, ...] = (), step: int = 0
    ) -> None:
        """Stop every process, hold every call, and keep what stood still on record.

        Raises:
            ControlError: The watch is frozen or has ended.
            SessionEndedError: Init did not stop them; then the watch has been killed.
        """
        works = self._works
        self._begin_move(cause, by, detail, evidence, step)
        # At once: whoever sees that it is frozen is told how long, and standing still may take its time.
        self._expiry = works.loop.call_later(self._policy.frozen_s, self._expired)
        try:
            async with self._freezing:
                self._hold_network()
                # Init waits for the exec of what it starts: were that call held, nobody could ask init to freeze.
                await works.commands.pause()
                works.gate.shut("frozen")
                try:
                    reply, _ = await works.init.ask({"op": "freeze"})
                except SessionEndedError:
                    works.commands.go_on()
                    works.end("init could not freeze the sandbox", "ended")
                    raise
                self._stopped_before = reply["frozen"]
                self._guard = works.spawn(works.standstill.keep())
        finally:
            # Written when all stands still: the disk takes longer than everything before it.
            self._write_move(
                processes=process_tree(works.sandbox.init_pid),
                flows=connections(works.network.flows()),
                last_bytes=last_bytes(works.network.flows(), works.network.lately()),
            )

    async def thaw(self, cause: Cause, by: str) -> None:
        """Let everything go on.

        Raises:
            ControlError: The watch is neither frozen nor throttled.
        """
        works, was_frozen = self._works, self.state == "frozen"
        after(self.state, cause)
        works.recorder.rearm()
        self._detection.acquit()
        self.move(cause, by)
        if self._expiry is not None:
            self._expiry.cancel()
        async with self._freezing:
            if self._guard is not None:
                self._guard.cancel()
            self.is_running.set()
            works.network.resume()
            works.gate.open("frozen", "tripped", "throttled")
            works.mediator.serve_held()
            if was_frozen:
                await works.init.ask({"op": "thaw", "keep": self._stopped_before})
                works.commands.go_on()

    def _expired(self) -> None:
        if self.state != "frozen":
            return
        if self._policy.on_expiry == "resume":
            self._works.spawn(self.thaw("expiry-resumes", "supervisor"))
        else:
            self._works.end("frozen for too long", "expiry-kills")
