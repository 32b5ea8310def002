"""What an agent sees, what it can choose, and what comes of it: plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from jupyter_agentwatch.watch.accounts import Account
from jupyter_agentwatch.watch.command import Command
from jupyter_agentwatch.watch.episode import Usage

__all__ = [
    "Action",
    "Agent",
    "AgentStep",
    "Budget",
    "Edit",
    "Finish",
    "Observation",
    "OnStep",
    "Outcome",
    "Patch",
    "RewardFunction",
    "Say",
    "Shell",
    "Unclear",
    "check_positive",
    "kind_of_action",
]

_NO_USAGE = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What an agent chose; use one of the classes below.

    Attributes:
        thought: What it says about its choice.
        usage: What the choice cost.
    """

    thought: str = ""
    usage: Usage = _NO_USAGE


@dataclass(frozen=True, slots=True)
class Shell(Action):
    """Run a command.

    Attributes:
        command: A text is a shell script; a sequence is a program with its arguments.
        timeout: Seconds that it may take; None: what the run allows, which is also the most.
    """

    command: Command
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Edit(Action):
    """Replace a passage of a file, which must stand there exactly once.

    Attributes:
        path: The file, relative to the workspace.
        old: The passage; "" makes a new file.
        new: What comes in its place.
    """

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Patch(Action):
    """Apply a unified diff, all of it or nothing.

    Attributes:
        diff: The diff, with paths relative to the workspace.
    """

    diff: str


@dataclass(frozen=True, slots=True)
class Say(Action):
    """Say something and do nothing.

    Attributes:
        text: What it says.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Finish(Action):
    """End the run: the task is done, or cannot be.

    Attributes:
        text: The answer.
    """

    text: str = ""


@dataclass(frozen=True, slots=True)
class Unclear(Action):
    """What a model wrote cannot be understood; the run ends as nonsense after three of these in a row.

    Attributes:
        text: What it wrote; cut.
        problem: What is wrong with it: this becomes the next observation.
    """

    text: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the agent gets to see before it chooses. Text from the sandbox is as it came there, and cut.

    It holds nothing of what a monitor saw: an agent that is told why it was stopped learns to hide it.

    Attributes:
        task: What it is to do.
        turn: Number of the turn that begins, from 1.
        text: What came of the last action: a command's output, an edit's diff, or why neither was possible.
        outcome: How its command ended: "exited", "signalled", "timeout", "not-found" …; "" where there was none.
        exit_code: Exit code of the command, where it exited.
        truncated: `text` is not all of it.
    """

    task: str
    turn: int
    text: str = ""
    outcome: str = ""
    exit_code: int | None = None
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """The last action had a command or an edit, and it did not fail."""
        return self.outcome == "exited" and self.exit_code == 0


class Agent(Protocol):
    """Anything that chooses. It runs in a thread of its own, one call at a time.

    It may also have `name`, a text for the log, and `cancel()`, called from another thread when the run is to end while
    `act` is at work: `act` should then return or raise soon; what it returns is not carried out. `close()` is called
    when the run is over, in the thread of the run.
    """

    def act(self, observation: Observation, /) -> Action:
        """Choose what to do next."""


class Outcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    """The agent said so."""
    MAX_STEPS = "max_steps"
    """It had as many steps as it was allowed."""
    BUDGET = "budget"
    """It reached a bound of its budget."""
    STOPPED = "stopped"
    """Somebody called `stop`."""
    KILLED = "killed"
    """Its watch was killed or closed."""
    NONSENSE = "nonsense"
    """What it chose was no action, or its model could not be understood three times in a row."""
    MODEL_ERROR = "model_error"
    """Its model could not be reached, or refused."""
    AGENT_ERROR = "agent_error"
    """Its own code raised, or that of a reward or of a listener."""


def check_positive(bounds: object, *names: str, where: str = "") -> None:
    """Refuse bounds that are neither None nor positive.

    Args:
        bounds: What has them.
        names: The names of its attributes.
        where: What stands before the name in the message.

    Raises:
        ValueError: One of them is not.
    """
    for name in names:
        value = getattr(bounds, name)
        if value is not None and not value > 0:
            msg = f"{where}{name} is {value!r}; give a positive number"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may cost; it ends before the first action after a bound is reached.

    Attributes:
        cost_usd: US dollars, as the agent reckons them.
        tokens: Tokens read and written.
        seconds: Seconds of work; waiting for a frozen watch is none.
    """

    cost_usd: float | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that are not positive.

        Raises:
            ValueError: One of them is not.
        """
        check_positive(self, "cost_usd", "tokens", "seconds", where="budget: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStep:
    """One turn of a run, after it was carried out.

    Attributes:
        turn: Number of the turn, from 1.
        action: What the agent chose.
        step: Number of the command that carried it out in the watch; 0 for none.
        observation: What the agent gets to see of it.
        account: What the supervisor has put on record of the run's steps since the turn before: verdicts, findings,
            bytes, GPU seconds. What comes late, as a GPU's use, counts with the next turn.
        reward: What it earned, by the names of the parts.
        agent_s: Seconds in which the agent chose.
        step_s: Seconds in which the choice was carried out.
    """

    turn: int
    action: Action
    step: int
    observation: Observation
    account: Account
    reward: Mapping[str, float] = field(default_factory=dict)
    agent_s: float
    step_s: float


OnStep = Callable[[AgentStep], object]
"""Gets each step after it was carried out."""

RewardFunction = Callable[[AgentStep], Mapping[str, float]]
"""Returns what a step earned, as named terms; a step's own `reward` is still empty then."""

_KINDS: dict[type[Action], str] = {
    Shell: "shell",
    Edit: "edit",
    Patch: "patch",
    Say: "say",
    Finish: "finish",
    Unclear: "unclear",
}


def kind_of_action(action: Action) -> str:
    """Return the name of an action's kind, as the log has it: "shell", "edit" …; "" for what is none of them."""
    return _KINDS.get(type(action), "")
