"""`policy` and `doctor`: what may be done, what this machine can enforce, and the smallest policy that fits a log."""

from __future__ import annotations

import argparse
from pathlib import Path

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.cli.logs import find_log
from jupyter_agentwatch.cli.output import say, say_json
from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import Session, printable
from jupyter_agentwatch.policy import (
    Candidate,
    Policy,
    Suggestion,
    parse_policy,
    policy_digest,
    policy_to_yaml,
    suggest_policy,
)
from jupyter_agentwatch.watch.opening import load_policy

__all__ = ["doctor", "policy", "suggestion_text", "suggestions"]


def suggestions(log: Path, base: Policy | None = None) -> Suggestion:
    """Return what would have to be allowed for a log's denials; `base` defaults to the policy that the log names.

    Raises:
        LogError: Not a log of ours.
        PolicyError: The log's policy cannot be read.
    """
    return suggest_policy(read_events(log), base if base is not None else _policy_of(log))


def suggestion_text(found: Suggestion) -> str:
    """Return the base policy as YAML, with the candidates and their evidence as comments before it."""
    lines = [f"# {number}. {_evidence(each)}" for number, each in enumerate(found.candidates, 1)]
    lines += [f"# not suggested: {printable(each.reason, 2000)} ({each.count} times)" for each in found.left_out]
    head = "denied, with what would allow it:" if found.candidates else "nothing was denied that a policy could allow"
    return "\n".join([f"# {head}", *lines, policy_to_yaml(found.base).rstrip()])


def doctor(options: argparse.Namespace) -> int:
    """Try each mechanism; 0 where a policy that names no rung gets one (A or B), else 1."""
    from jupyter_agentwatch.sandbox.probe import probe
    from jupyter_agentwatch.sandbox.probe_report import report_text

    report = probe()
    if options.json:
        say_json(report)
    else:
        say(report_text(report))
    return 1 if report.rung == "E" else 0


def policy(options: argparse.Namespace) -> int:
    """Show, check or suggest a policy."""
    match options.what:
        case "show":
            known = load_policy(options.file) if options.file else Policy()
            say(policy_to_yaml(known, defaults=True).rstrip())
        case "check":
            say(f"ok: {printable(options.file)}: sha256 {policy_digest(load_policy(options.file))}")
        case _:
            say(_suggested(options))
    return 0


def _suggested(options: argparse.Namespace) -> str:
    base = load_policy(options.policy) if options.policy else None
    found = suggestions(find_log(options.log), base)
    if options.all:
        return policy_to_yaml(found.policy(range(len(found.candidates)))).rstrip()
    if options.pick is None:
        return suggestion_text(found)
    known = range(1, len(found.candidates) + 1)
    unknown = [number for number in options.pick if number not in known]
    if unknown:
        msg = f"--pick: there is no candidate {unknown[0]}; there are {len(found.candidates)}"
        raise PolicyError(msg)
    return policy_to_yaml(found.policy([number - 1 for number in options.pick])).rstrip()


def _policy_of(log: Path) -> Policy:
    first = next(read_events(log))
    text = first.policy if isinstance(first, Session) else ""
    return parse_policy(text, f"the policy in {log}") if text else Policy()


def _evidence(candidate: Candidate) -> str:
    rule = candidate.rule
    if isinstance(rule, str):
        what = f"unix_sockets: {printable(rule, 4096)}"
    else:
        ports = ", ".join(map(str, rule.ports))
        what = f"{printable(rule.host or rule.cidr or '')} ports {ports} protocol {rule.protocol}"
    shown = ", ".join(f"#{seq}" for seq in candidate.seqs[:8])
    more = f"; before {candidate.overrides}" if candidate.overrides else ""
    return f"{what}: {printable(candidate.reason, 2000)} ({candidate.count} times, records {shown}{more})"
