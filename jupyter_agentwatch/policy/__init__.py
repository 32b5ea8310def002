"""What a watch may do: the model, its reading and writing, and the decisions that follow from it. Pure."""

from jupyter_agentwatch.policy.evidence import Candidate, LeftOut
from jupyter_agentwatch.policy.match import Decision, NetworkMatcher, decide_protocol, unix_allowed
from jupyter_agentwatch.policy.model import (
    Breaker,
    Environment,
    Filesystem,
    FirstBytes,
    Gpu,
    Limits,
    Network,
    NetworkRule,
    Policy,
    Protocol,
    Snapshots,
)
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
    "Breaker",
    "Candidate",
    "Decision",
    "Environment",
    "Filesystem",
    "FirstBytes",
    "Gpu",
    "LeftOut",
    "Limits",
    "Network",
    "NetworkMatcher",
    "NetworkRule",
    "Policy",
    "Protocol",
    "Snapshots",
    "Suggestion",
    "check_policy",
    "decide_protocol",
    "parse_policy",
    "policy_digest",
    "policy_from_mapping",
    "policy_to_yaml",
    "suggest_policy",
    "unix_allowed",
]
