"""All detectors of our own, ready for an engine: the one place that lists them."""

from __future__ import annotations

from typing import Final

from jupyter_agentwatch.detect.commands import UNREAD, CommandDetector
from jupyter_agentwatch.detect.diversion import DIVERSION
from jupyter_agentwatch.detect.exfiltration import EXFILTRATION
from jupyter_agentwatch.detect.guards import GUARDS
from jupyter_agentwatch.detect.losses import LossDetector
from jupyter_agentwatch.detect.mining import MINING
from jupyter_agentwatch.detect.mining_flows import MINING_FLOW_RULES, MiningFlowDetector
from jupyter_agentwatch.detect.model import NOTHING_DECLARED, Declared, Detector
from jupyter_agentwatch.detect.monitor_acts import MONITOR_ACTS
from jupyter_agentwatch.detect.outliving import DIVERSION_RULES, DiversionDetector
from jupyter_agentwatch.detect.payment import PAYMENT
from jupyter_agentwatch.detect.payment_flows import PAYMENT_FLOW_RULES, PaymentFlowDetector
from jupyter_agentwatch.detect.persistence import PERSISTENCE_RULES, PersistenceDetector
from jupyter_agentwatch.detect.probing import PROBING
from jupyter_agentwatch.detect.probing_windows import PROBING_WINDOW_RULES, ProbingDetector
from jupyter_agentwatch.detect.rule import Rule, Ruleset
from jupyter_agentwatch.detect.sharing import SHARING
from jupyter_agentwatch.detect.shell_sockets import SHELL_SOCKET_RULES, ShellSocketDetector
from jupyter_agentwatch.detect.shells import SHELL
from jupyter_agentwatch.detect.tampering import TAMPERING
from jupyter_agentwatch.detect.texts import TEXTS
from jupyter_agentwatch.detect.tunnel_flows import TUNNEL_FLOW_RULES, TunnelFlowDetector
from jupyter_agentwatch.detect.tunnels import TUNNEL
from jupyter_agentwatch.detect.volume import VOLUME_RULES, VolumeDetector

__all__ = ["COMMAND_RULES", "OWN_RULES", "own_detectors"]

COMMAND_RULES: Final[tuple[Ruleset, ...]] = (
    MINING,
    TUNNEL,
    SHELL,
    PROBING,
    EXFILTRATION,
    DIVERSION,
    SHARING,
    TAMPERING,
    MONITOR_ACTS,
    GUARDS,
    PAYMENT,
    TEXTS,
)
"""What every family knows about commands."""

OWN_RULES: Final[tuple[Rule, ...]] = tuple(
    {
        rule.id: rule
        for rules in (
            *(each.rules for each in COMMAND_RULES),
            *(MINING_FLOW_RULES, TUNNEL_FLOW_RULES, SHELL_SOCKET_RULES, PROBING_WINDOW_RULES),
            (UNREAD,),
            *(VOLUME_RULES, DIVERSION_RULES, PERSISTENCE_RULES, PAYMENT_FLOW_RULES),
        )
        for rule in rules
    }.values()
)
"""Every rule of our own, for a catalogue."""


def own_detectors(declared: Declared = NOTHING_DECLARED) -> list[Detector]:
    """Return new detectors, one of each kind, without any memory.

    Args:
        declared: What the policy names itself, and so is no surprise.
    """
    return [
        CommandDetector(COMMAND_RULES),
        MiningFlowDetector(declared),
        TunnelFlowDetector(declared),
        ShellSocketDetector(),
        ProbingDetector(),
        VolumeDetector(),
        DiversionDetector(),
        PersistenceDetector(),
        PaymentFlowDetector(),
        LossDetector(),
    ]
