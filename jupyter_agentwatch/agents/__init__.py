"""Agents in the kernel: what an agent is, the loop that lets one work in a watch, and the agents that come with us.

An agent only chooses; what it chooses is carried out in the sandbox, recorded there, and stopped there.
"""

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

__all__ = [
    "Action",
    "Agent",
    "AgentRun",
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
    "kind_of_action",
]
