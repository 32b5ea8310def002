"""Agents in the kernel: what an agent is, the loop that lets one work in a watch, and the agents that come with us.

An agent only chooses; what it chooses is carried out in the sandbox, recorded there, and stopped there.
"""

from jupyter_agentwatch.agents.chat import ChatAgent
from jupyter_agentwatch.agents.loop import AgentRun
from jupyter_agentwatch.agents.model import (
    Action,
    Agent,
    AgentStep,
    Budget,
    Edit,
    Finish,
    Observation,
    OnStep,
    Outcome,
    Patch,
    RewardFunction,
    Say,
    Shell,
    Unclear,
    kind_of_action,
)
from jupyter_agentwatch.agents.replay import ReplayAgent
from jupyter_agentwatch.agents.rewards import PenalisedReward, RewardLedger, priced_amounts
from jupyter_agentwatch.agents.trajectory import Trajectory, read_trajectory, write_trajectory

__all__ = [
    "Action",
    "Agent",
    "AgentRun",
    "AgentStep",
    "Budget",
    "ChatAgent",
    "Edit",
    "Finish",
    "Observation",
    "OnStep",
    "Outcome",
    "Patch",
    "PenalisedReward",
    "ReplayAgent",
    "RewardFunction",
    "RewardLedger",
    "Say",
    "Shell",
    "Trajectory",
    "Unclear",
    "kind_of_action",
    "priced_amounts",
    "read_trajectory",
    "write_trajectory",
]
