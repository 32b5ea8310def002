"""Episodes without a sandbox: what each action came to is drawn from a record that was made in the real one.

The record counts outcomes; it holds no times, so that it says nothing of how fast anything is.
"""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec
import numpy as np

from jupyter_agentwatch.agents.rome.model import EPOCHS_NEEDED, HORIZON, Flags, Move, Outcomes, Plans, Setting
from jupyter_agentwatch.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jupyter_agentwatch.agents.rome.model import Ground

__all__ = ["RECORD_SEED", "Record", "RecordedGround", "record_outcomes", "recording_plans"]

RECORD_SEED: Final = 5000
"""Seed of the plans that the record was made with; no run of the lab learns on it."""

_FORMAT: Final = 1
_FLAGS: Final = ("busy", "passed", "diverted", "alarmed")
_EPOCHS: Final = EPOCHS_NEEDED + 1
_CONTEXTS: Final = tuple(product(range(_EPOCHS), (0, 1), (0, 1)))


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of actions in the real sandbox.

    Attributes:
        format: Version of this form.
        episodes: Episodes recorded in each setting.
        seed: Seed of their plans.
        rung: Rung of the isolation ladder that they ran on.
        version: Version of this package.
        counts: Setting → "ACTION epochs tunnel passed" (how often the episode had trained before, whether it had asked
            for a tunnel, whether the tests had passed) → "busy passed diverted alarmed" as four digits → how often.
    """

    format: int = _FORMAT
    episodes: int
    seed: int
    rung: str
    version: str
    counts: dict[str, dict[str, dict[str, int]]]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read a record.

        Args:
            path: The file; default: the record that comes with the package.

        Raises:
            LogError: The file is missing or holds no record of this form.
        """
        source = files(__package__) / "recorded.json" if path is None else Path(path)
        try:
            record = msgspec.json.decode(source.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            msg = f"{source}: not a record of the lab: {error}"
            raise LogError(msg) from error
        if record.format != _FORMAT:
            msg = f"{source}: a record of form {record.format}; this version reads form {_FORMAT}"
            raise LogError(msg)
        return record

    def save(self, path: str | Path) -> None:
        """Write the record as JSON."""
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


class _Context:
    """What an episode has done so far, for many episodes at once."""

    def __init__(self, episodes: int) -> None:
        self.epochs = np.zeros(episodes, dtype=np.int64)
        self.tunnel = np.zeros(episodes, dtype=np.int64)
        self.passed = np.zeros(episodes, dtype=np.int64)

    @property
    def codes(self) -> Plans:
        return (self.epochs * 2 + self.tunnel) * 2 + self.passed

    def advance(self, actions: Plans, passed: Flags) -> None:
        self.epochs = np.minimum(EPOCHS_NEEDED, self.epochs + (actions == Move.TRAIN))
        self.tunnel |= actions == Move.TUNNEL
        self.passed |= passed


class RecordedGround:
    """Draws outcomes from a record.

    Args:
        record: The record; default: the one that comes with the package.
        seed: Seed of the draws.
    """

    def __init__(self, record: Record | None = None, *, seed: int = 0) -> None:
        self._record = record or Record.load()
        self._dice = np.random.default_rng(seed)
        self._chances = {name: _chances(counts) for name, counts in self._record.counts.items()}

    def play(self, setting: Setting, plans: Plans) -> Outcomes:
        """Look up what episodes would have come to; see `Ground`.

        Raises:
            LogError: The record has nothing about this setting, or about an action in its context.
        """
        if setting.name not in self._chances:
            msg = f"the record has nothing about the setting {setting.name!r}; record it"
            raise LogError(msg)
        chances = self._chances[setting.name]
        outcomes = Outcomes.none(plans.shape)
        context = _Context(len(plans))
        for slot in range(plans.shape[1]):
            actions = plans[:, slot]
            rows = chances[context.codes, actions]
            if (missing := rows[:, -1] == 0).any():
                row = int(np.argmax(missing))
                key = _key(Move(int(actions[row])), _CONTEXTS[int(context.codes[row])])
                msg = f"the record has nothing about {key!r} in the setting {setting.name!r}; record it"
                raise LogError(msg)
            drawn = (rows <= self._dice.random((len(plans), 1))).sum(axis=1)
            for bit, name in enumerate(_FLAGS):
                getattr(outcomes, name)[:, slot] = (drawn >> bit) & 1
            context.advance(actions, outcomes.passed[:, slot])
        return outcomes


def recording_plans(episodes: int, seed: int = RECORD_SEED) -> Plans:
    """Return plans that visit every context: half of them at random, half after the task has been done.

    Args:
        episodes: How many.
        seed: Seed of the draws.
    """
    plans = np.random.default_rng(seed).integers(0, len(Move), (episodes, HORIZON))
    plans[::2, :3] = (Move.TRAIN, Move.TRAIN, Move.TEST)
    return plans


def record_outcomes(
    ground: Ground, settings: Iterable[Setting], *, episodes: int, rung: str, version: str, seed: int = RECORD_SEED
) -> Record:
    """Play episodes and count what came of each action in its context.

    Args:
        ground: Where they take place: the real sandbox.
        settings: The settings to record.
        episodes: Episodes for each setting.
        rung: Rung of the sandbox, for the record.
        version: Version of this package, for the record.
        seed: Seed of the plans.
    """
    plans = recording_plans(episodes, seed)
    counts = {setting.name: _counted(plans, ground.play(setting, plans)) for setting in settings}
    return Record(episodes=episodes, seed=seed, rung=rung, version=version, counts=counts)


def _counted(plans: Plans, outcomes: Outcomes) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    context = _Context(len(plans))
    for slot in range(plans.shape[1]):
        actions = plans[:, slot]
        digits = np.stack([getattr(outcomes, name)[:, slot] for name in _FLAGS], axis=1).astype(np.int64)
        for action, code, flags in zip(actions, context.codes, digits, strict=True):
            key = _key(Move(int(action)), _CONTEXTS[int(code)])
            found.setdefault(key, Counter())["".join(map(str, flags))] += 1
        context.advance(actions, outcomes.passed[:, slot])
    return {key: dict(sorted(counter.items())) for key, counter in sorted(found.items())}


def _key(action: Move, context: tuple[int, int, int]) -> str:
    return " ".join(map(str, (action.name, *context)))


def _chances(counts: dict[str, dict[str, int]]) -> np.ndarray[tuple[int, int, int], np.dtype[np.float64]]:
    """Return cumulative chances by context, action and outcome (its four digits as a number, the first the lowest)."""
    table = np.zeros((len(_CONTEXTS), len(Move), 1 << len(_FLAGS)))
    for code, context in enumerate(_CONTEXTS):
        for action in Move:
            for digits, count in counts.get(_key(action, context), {}).items():
                table[code, action, sum(int(digit) << bit for bit, digit in enumerate(digits))] = count
    total = table.sum(axis=2, keepdims=True)
    return np.cumsum(table / np.maximum(total, 1), axis=2)
