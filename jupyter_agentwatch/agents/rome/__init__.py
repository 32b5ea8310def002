"""The ROME lab: a toy agent that learns, on real commands in the real sandbox, what its reward pays for.

It reproduces the signature of an incident, not the incident, and says nothing about what caused that one.
"""

from jupyter_agentwatch.agents.rome.learner import Learnt, Rewards, Training, learn
from jupyter_agentwatch.agents.rome.model import SETTINGS, Ground, Move, Outcomes, Setting
from jupyter_agentwatch.agents.rome.recorded import Record, RecordedGround, record_outcomes
from jupyter_agentwatch.agents.rome.sandboxed import SandboxGround
from jupyter_agentwatch.agents.rome.study import (
    CONDITIONS,
    FAST_SEEDS,
    PREDICTIONS,
    PRICE_THRESHOLD,
    PRICES,
    REAL_SEEDS,
    Condition,
    Prediction,
    Result,
    Study,
    compare,
    run_study,
)

__all__ = [
    "CONDITIONS",
    "FAST_SEEDS",
    "PREDICTIONS",
    "PRICES",
    "PRICE_THRESHOLD",
    "REAL_SEEDS",
    "SETTINGS",
    "Condition",
    "Ground",
    "Learnt",
    "Move",
    "Outcomes",
    "Prediction",
    "Record",
    "RecordedGround",
    "Result",
    "Rewards",
    "SandboxGround",
    "Setting",
    "Study",
    "Training",
    "compare",
    "learn",
    "record_outcomes",
    "run_study",
]
