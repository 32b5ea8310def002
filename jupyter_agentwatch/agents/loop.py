"""The loop: ask the agent, carry out what it chose in the sandbox, tell it what came of that; in a thread of its own.

The agent is asked with nothing that a monitor saw. Whatever it does, and whatever goes wrong, the run ends once, with
one outcome, and nothing that it started runs on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jupyter_agentwatch.agents.carrying import Bench, Carried, Interrupted
from jupyter_agentwatch.agents.model import (
    Action,
    Agent,
    AgentStep,
    Budget,
    Finish,
    Observation,
    OnStep,
    Outcome,
    RewardFunction,
    Unclear,
    check_positive,
    kind_of_action,
)
from jupyter_agentwatch.agents.rewards import RewardLedger
from jupyter_agentwatch.errors import ModelError, SessionEndedError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.watch.episode import Usage

if TYPE_CHECKING:
    import asyncio

    from jupyter_agentwatch.watch.handle import Watch
    from jupyter_agentwatch.watch.turn import Turn

__all__ = ["AgentRun", "Bounds", "start_run"]

_MOST_UNCLEAR = 3
_REASON_CHARS = 2000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What ends a run, and what its agent gets.

    Attributes:
        max_steps: Most actions.
        budget: What it may cost.
        step_timeout: Seconds that one command may take; None: the policy's limit.
        output_chars: Characters of output in an observation.
        gpu: GPU that is leased to each command.
    """

    max_steps: int
    budget: Budget | None
    step_timeout: float | None
    output_chars: int
    gpu: int | str | None

    def __post_init__(self) -> None:
        """Refuse bounds that are not positive.

        Raises:
            ValueError: One of them is not.
        """
        check_positive(self, "max_steps", "step_timeout", "output_chars")


def start_run(
    watch: Watch,
    agent: Agent,
    task: str,
    bounds: Bounds,
    *,
    reward: RewardFunction | None = None,
    on_step: OnStep | None = None,
) -> AgentRun:
    """Start a run; use `Watch.run_agent`.

    Raises:
        TypeError: What is given is no agent.
        ValueError: The task is empty.
        SessionEndedError: The watch has ended.
    """
    if not task.strip():
        msg = "task is empty: say what the agent is to do"
        raise ValueError(msg)
    if not callable(getattr(agent, "act", None)):
        msg = f"agent: {type(agent).__name__} has no method act(observation)"
        raise TypeError(msg)
    if watch.has_ended:
        msg = f"watch {watch.id} has ended; start another one"
        raise SessionEndedError(msg)
    return AgentRun(watch, agent, task, bounds, reward=reward, on_step=on_step)


class AgentRun:
    """One run of an agent in a watch; `Watch.run_agent` makes it.

    `wait` or `await` it for its outcome, or iterate over it for its steps as they come; every iterator begins with the
    first. ■ in Jupyter only ends the waiting: `stop` ends the run.

    Attributes:
        id: Id of the run: what its records bear as `run`.
        agent: Name of the agent.
        task: What it is to do.
    """

    def __init__(
        self,
        watch: Watch,
        agent: Agent,
        task: str,
        bounds: Bounds,
        *,
        reward: RewardFunction | None,
        on_step: OnStep | None,
    ) -> None:
        """Put the beginning on record and start the thread; use `Watch.run_agent`."""
        self.agent = str(getattr(agent, "name", "") or type(agent).__name__)
        self.task = task
        self._watch = watch
        self._agent = agent
        self._bounds = bounds
        self._reward = reward
        self._on_step = on_step
        self._steps: list[AgentStep] = []
        self._usage = Usage()
        self._ledger = RewardLedger()
        self._outcome: Outcome | None = None
        self._reason = self._answer = ""
        self._lock = threading.Lock()
        self._wanted: Outcome | None = None
        self._is_choosing = False
        self._done = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._bench = Bench(watch, bounds.step_timeout, bounds.output_chars, bounds.gpu)
        self._episode = watch.episode(self.agent, task, max_steps=bounds.max_steps)
        self.id = self._episode.id
        self._forget_end = watch.when_ended(lambda: self._end_from_outside(Outcome.KILLED))
        threading.Thread(target=self._drive, name=f"agentwatch-run-{self.id}", daemon=True).start()

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended; None while it goes on."""
        return self._outcome

    @property
    def reason(self) -> str:
        """What went wrong, where something did: for people; the agent never gets it."""
        return self._reason

    @property
    def answer(self) -> str:
        """What the agent said when it finished. Hostile text."""
        return self._answer

    @property
    def steps(self) -> tuple[AgentStep, ...]:
        """The steps so far."""
        return tuple(self._steps)

    @property
    def usage(self) -> Usage:
        """What the run has cost so far."""
        return self._usage

    @property
    def ledger(self) -> RewardLedger:
        """What it has earned so far, turn by turn and part by part."""
        return self._ledger

    @property
    def state(self) -> str:
        """One of "running", "paused" (the watch is throttled or frozen) and "ended"."""
        if self._outcome is not None:
            return "ended"
        with contextlib.suppress(SessionEndedError):
            return "running" if self._watch.status().state == "closed" else "paused"
        return "ended"

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait for the end.

        Args:
            timeout: Seconds to wait; the run goes on when they are over.

        Raises:
            TimeoutError: It still goes on.
        """
        if not self._done.wait(timeout):
            msg = f"run {self.id} still goes on after {timeout:g} s"
            raise TimeoutError(msg)
        assert self._outcome is not None  # noqa: S101 -- set before the event
        return self._outcome

    def stop(self) -> None:
        """End the run: its agent is cancelled, its command killed. Does not wait for the end; idempotent.

        The watch lives on.
        """
        self._end_from_outside(Outcome.STOPPED)

    def __await__(self) -> Generator[object, None, Outcome]:
        """Wait for the end without blocking the event loop."""
        return self._wait_async().__await__()

    def __iter__(self) -> Iterator[AgentStep]:
        """Yield each step as it comes, to the end of the run."""
        changed = threading.Event()
        seen = 0
        with self._listening(changed.set):
            while True:
                changed.clear()
                steps, is_over = self._since(seen)
                yield from steps
                seen += len(steps)
                if is_over:
                    return
                changed.wait()

    async def __aiter__(self) -> AsyncIterator[AgentStep]:
        """Yield each step as it comes, without blocking the event loop."""
        seen = 0
        with self._listening_async() as changed:
            while True:
                changed.clear()
                steps, is_over = self._since(seen)
                for step in steps:
                    yield step
                seen += len(steps)
                if is_over:
                    return
                await changed.wait()

    def _since(self, seen: int) -> tuple[list[AgentStep], bool]:
        """Return the steps after the first `seen` ones, and whether no more will come."""
        is_over = self._done.is_set()  # asked first: a step that comes in between is then in the next answer
        return self._steps[seen:], is_over

    def __repr__(self) -> str:
        how = self._outcome.value if self._outcome else "running"
        return f"<AgentRun {self.id} of {printable(self.agent, 40)}: {how}, {len(self._steps)} steps>"

    def _drive(self) -> None:
        """The thread: turns, until something ends the run."""
        try:
            self._take_turns()
        except SessionEndedError:
            self._finish(Outcome.KILLED)
        except Interrupted:
            self._finish(self._wanted or Outcome.STOPPED)
        except ModelError as error:
            self._finish(Outcome.MODEL_ERROR, str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever an agent raises is how its run ends
            _log.debug("run %s ended by an exception", self.id, exc_info=True)
            self._finish(Outcome.AGENT_ERROR, f"{type(error).__name__}: {error}")
        finally:
            self._finish(Outcome.AGENT_ERROR, "the agent ended its thread")
            self._close_agent()

    def _take_turns(self) -> None:
        observation = Observation(task=self.task, turn=1)
        unclear = 0
        for number in range(1, self._bounds.max_steps + 1):
            if self._is_spent():
                return
            with self._episode.turn() as turn:
                start = time.monotonic()
                action = self._choose(observation)
                chosen = time.monotonic()
                if not kind_of_action(action):
                    self._finish(Outcome.NONSENSE, f"the agent returned {type(action).__name__}, which is no action")
                    return
                carried = self._bench.carry_out(action)
                step = self._account(turn, action, carried, chosen - start, time.monotonic() - chosen)
            if isinstance(action, Finish):
                self._finish(Outcome.FINISHED, answer=action.text)
                return
            unclear = unclear + 1 if isinstance(action, Unclear) else 0
            if unclear == _MOST_UNCLEAR:
                self._finish(Outcome.NONSENSE, action.problem if isinstance(action, Unclear) else "")
                return
            observation = replace(step.observation, turn=number + 1)
        self._finish(Outcome.MAX_STEPS)

    def _choose(self, observation: Observation) -> Action:
        with self._lock:
            if self._wanted is not None or self._outcome is not None:
                raise Interrupted
            self._is_choosing = True
        try:
            return self._agent.act(observation)
        finally:
            with self._lock:
                self._is_choosing = False
                if self._wanted is not None:
                    raise Interrupted

    def _account(self, turn: Turn, action: Action, carried: Carried, agent_s: float, step_s: float) -> AgentStep:
        self._usage += action.usage
        self._episode.note(
            turn,
            kind_of_action(action),
            carried.shown,
            step=carried.step,
            thought=action.thought,
            outcome=carried.told,
            usage=action.usage,
        )
        step = AgentStep(
            turn=turn.number,
            action=action,
            step=carried.step,
            observation=carried.observation(self.task, turn.number),
            account=self._watch.accounts.take(self._bench.steps),
            agent_s=agent_s,
            step_s=step_s,
        )
        if self._reward is not None:
            terms = dict(self._reward(step))
            self._episode.reward(turn, terms, step=carried.step)
            self._ledger.add(turn.number, terms)
            step = replace(step, reward=terms)
        self._steps.append(step)
        self._ring()
        if self._on_step is not None:
            self._on_step(step)
        return step

    def _is_spent(self) -> bool:
        budget, used = self._bounds.budget or Budget(), self._usage
        worked = time.monotonic() - self._bench.started - self._bench.paused_s
        bounds = {
            "cost_usd": (used.cost_usd, budget.cost_usd),
            "tokens": (used.tokens, budget.tokens),
            "seconds": (worked, budget.seconds),
        }
        for name, (value, bound) in bounds.items():
            if bound is not None and value >= bound:
                self._finish(Outcome.BUDGET, f"{name}: {value:g} of {bound:g}")
                return True
        return False

    def _end_from_outside(self, outcome: Outcome) -> None:
        """Have the run end, whatever it is at; may be called in the reader thread, so it must not wait there."""
        with self._lock:
            if self._outcome is not None or self._wanted is not None:
                return
            self._wanted = outcome
            is_choosing = self._is_choosing
        self._bench.interrupt()
        if is_choosing:
            # It may never return: the run ends without it, and what it chooses is not carried out.
            self._cancel()
            self._finish(outcome)

    def _close_agent(self) -> None:
        close = getattr(self._agent, "close", None)
        if callable(close):
            try:
                close()
            except Exception:  # noqa: BLE001 -- the run is over, and its outcome stands
                _log.warning("run %s: the agent's close() raised", self.id, exc_info=True)

    def _cancel(self) -> None:
        cancel = getattr(self._agent, "cancel", None)
        if callable(cancel):
            threading.Thread(target=cancel, name=f"agentwatch-cancel-{self.id}", daemon=True).start()

    def _finish(self, outcome: Outcome, reason: str = "", answer: str = "") -> None:
        with self._lock:
            if self._outcome is not None:
                return
            self._outcome = self._wanted or outcome
            self._reason = reason[:_REASON_CHARS]
            self._answer = answer
        self._forget_end()
        self._bench.end_leftovers()
        self._episode.end(self._outcome.value, answer or self._reason)
        self._done.set()
        self._ring()

    def _ring(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    @contextmanager
    def _listening(self, ring: Callable[[], None]) -> Iterator[None]:
        self._listeners.append(ring)
        try:
            yield
        finally:
            self._listeners.remove(ring)

    @contextmanager
    def _listening_async(self) -> Iterator[asyncio.Event]:
        # Imported here: a program without an event loop should not pay for one.
        import asyncio

        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # a closed loop has nobody left who waits
                loop.call_soon_threadsafe(changed.set)

        with self._listening(ring):
            yield changed

    async def _wait_async(self) -> Outcome:
        with self._listening_async() as changed:
            while not self._done.is_set():
                await changed.wait()
                changed.clear()
        return self.wait()
