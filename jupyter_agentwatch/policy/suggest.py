"""From a log of denials to the smallest policy that would have allowed what a person picks.

Pure, and no judge: it proposes single names, addresses and ports with their evidence, never wildcards or ranges, and
never what is refused everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Flow
from jupyter_agentwatch.policy.evidence import Candidate, Collector, LeftOut
from jupyter_agentwatch.policy.model import NetworkRule, Policy
from jupyter_agentwatch.policy.parse import check_policy

__all__ = ["Suggestion", "suggest_policy"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What to pick from.

    Attributes:
        base: The policy to extend.
        candidates: What would have to be allowed, in the order of first denial.
        left_out: What is not suggested, and why.
    """

    base: Policy
    candidates: list[Candidate]
    left_out: list[LeftOut]

    def policy(self, picked: Collection[int]) -> Policy:
        """Return the base policy extended by some candidates.

        Rules that override one of the base's stand before them, the others behind, so that what the base denies or
        asks about on purpose stays as it is for everything else.

        Args:
            picked: Positions in `candidates`, from 0.

        Raises:
            PolicyError: There is no such candidate.
        """
        for position in picked:
            if not 0 <= position < len(self.candidates):
                msg = f"there is no candidate {position}: they count from 0 to {len(self.candidates) - 1}"
                raise PolicyError(msg)
        chosen = [self.candidates[position] for position in sorted(set(picked))]
        front = [each.rule for each in chosen if each.overrides and isinstance(each.rule, NetworkRule)]
        back = [each.rule for each in chosen if not each.overrides and isinstance(each.rule, NetworkRule)]
        # A name's rule refuses private addresses for good, so an address that was picked beside it must come first.
        if any(map(_is_name, front)):
            front, back = [*(rule for rule in back if not _is_name(rule)), *front], list(filter(_is_name, back))
        front.sort(key=_is_name)
        back.sort(key=_is_name)
        paths = [each.rule for each in chosen if isinstance(each.rule, str)]
        network = msgspec.structs.replace(self.base.network, rules=[*front, *self.base.network.rules, *back])
        extended = msgspec.structs.replace(self.base, network=network, unix_sockets=[*self.base.unix_sockets, *paths])
        return check_policy(extended, "<suggestion>")


def _is_name(rule: NetworkRule) -> bool:
    return rule.host is not None


def suggest_policy(events: Iterable[AnyEvent], base: Policy) -> Suggestion:
    """Collect what was denied, and propose the rules that would have allowed it.

    Names are preferred to addresses; an address stands where no name was known, or where the name led to an address
    that is not public. Ports of one host are merged. A name that was refused before any connection could show its
    port is proposed with port 443, and the reason says that this is a guess.

    Args:
        events: Records of one or more watches; only denied connect, dns and flow records count.
        base: The policy to extend; what it allows by now is left out.

    Raises:
        PolicyError: The base policy makes no sense.
    """
    checked = check_policy(base)
    collector = Collector(checked)
    for event in events:
        if event.verdict != "deny":
            continue
        if isinstance(event, Dns):
            collector.add_dns(event)
        elif isinstance(event, Flow):
            collector.add_flow(event)
        elif isinstance(event, Connect):
            collector.add_connect(event)
    return Suggestion(checked, *collector.result())
