"""What a watch may do: the model, its reading and writing, and the decisions that follow from it. Pure.

All but the model is loaded at first use: a session's start waits for the model alone, and the supervisor never makes a
suggestion.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jupyter_agentwatch.policy.model import (
    AllowedModel,
    Audit,
    Breaker,
    Budgets,
    Detect,
    Environment,
    Filesystem,
    FirstBytes,
    Gpu,
    Limits,
    Models,
    ModelUpstream,
    Network,
    NetworkRule,
    Notify,
    Policy,
    Protocol,
    Snapshots,
    Telemetry,
)

if TYPE_CHECKING:
    from jupyter_agentwatch.policy.evidence import Candidate, LeftOut
    from jupyter_agentwatch.policy.match import Decision, NetworkMatcher, decide_protocol, unix_allowed
    from jupyter_agentwatch.policy.names import HOST_LOOPBACK
    from jupyter_agentwatch.policy.parse import (
        check_policy,
        parse_policy,
        policy_digest,
        policy_from_mapping,
        policy_to_yaml,
    )
    from jupyter_agentwatch.policy.suggest import Suggestion, suggest_policy

__all__ = [
    "HOST_LOOPBACK",
    "AllowedModel",
    "Audit",
    "Breaker",
    "Budgets",
    "Candidate",
    "Decision",
    "Detect",
    "Environment",
    "Filesystem",
    "FirstBytes",
    "Gpu",
    "LeftOut",
    "Limits",
    "ModelUpstream",
    "Models",
    "Network",
    "NetworkMatcher",
    "NetworkRule",
    "Notify",
    "Policy",
    "Protocol",
    "Snapshots",
    "Suggestion",
    "Telemetry",
    "check_policy",
    "decide_protocol",
    "parse_policy",
    "policy_digest",
    "policy_from_mapping",
    "policy_to_yaml",
    "suggest_policy",
    "unix_allowed",
]

_LATE = {
    "Candidate": "jupyter_agentwatch.policy.evidence",
    "Decision": "jupyter_agentwatch.policy.match",
    "HOST_LOOPBACK": "jupyter_agentwatch.policy.names",
    "LeftOut": "jupyter_agentwatch.policy.evidence",
    "NetworkMatcher": "jupyter_agentwatch.policy.match",
    "Suggestion": "jupyter_agentwatch.policy.suggest",
    "check_policy": "jupyter_agentwatch.policy.parse",
    "decide_protocol": "jupyter_agentwatch.policy.match",
    "parse_policy": "jupyter_agentwatch.policy.parse",
    "policy_digest": "jupyter_agentwatch.policy.parse",
    "policy_from_mapping": "jupyter_agentwatch.policy.parse",
    "policy_to_yaml": "jupyter_agentwatch.policy.parse",
    "suggest_policy": "jupyter_agentwatch.policy.suggest",
    "unix_allowed": "jupyter_agentwatch.policy.match",
}


def __getattr__(name: str) -> Any:
    home = _LATE.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
