"""Steps and ends of runs in words for people: safe lines, and few, whatever an agent wrote."""

from __future__ import annotations

import shlex

from jupyter_agentwatch.agents.loop import AgentRun
from jupyter_agentwatch.agents.model import (
    Action,
    AgentStep,
    Edit,
    Finish,
    Patch,
    Say,
    Shell,
    Unclear,
    kind_of_action,
)
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.watch.episode import Usage

__all__ = ["run_text", "step_line", "step_text"]

_SHOWN = 100
_DIFF_LINES = 12
_MARGIN = " " * 13


def step_line(step: AgentStep) -> str:
    """Return a step in one line: what was chosen, what came of it, what was refused and found, what it cost."""
    seen, account = step.observation, step.account
    how = seen.outcome if seen.exit_code is None else f"exit {seen.exit_code}"
    told = [
        f"{step.turn:>3} {kind_of_action(step.action):<7}",
        f"{printable(how, 40) or '-':<10}",
        f"{step.step_s:>7.2f} s",
        printable(_gist(step.action), _SHOWN),
    ]
    notes = [f"{account.denied} denied"] if account.denied else []
    notes += [f"{finding.severity}: {printable(finding.title, _SHOWN)}" for finding in account.findings[:3]]
    notes += [f"{len(account.findings) - 3} more findings"] if len(account.findings) > 3 else []
    notes += [_cost(step.action.usage)] if step.action.usage.tokens else []
    notes += [f"reward {sum(step.reward.values()):+g}"] if step.reward else []
    return "  ".join(told) + (f"  [{'; '.join(notes)}]" if notes else "")


def step_text(step: AgentStep) -> str:
    """Return a step's line, and below that of an edit its diff, or why nothing was changed; the first 12 lines."""
    lines = [step_line(step)]
    if isinstance(step.action, (Edit, Patch)):
        told = [line for line in step.observation.text.splitlines() if line != "[stderr]"]
        lines += [_MARGIN + printable(line, 2 * _SHOWN) for line in told[:_DIFF_LINES]]
        lines += [f"{_MARGIN}… {len(told) - _DIFF_LINES} more lines"] if len(told) > _DIFF_LINES else []
    return "\n".join(lines)


def run_text(run: AgentRun) -> str:
    """Return how a run ended, or that it goes on, in a few lines."""
    steps = run.steps
    state = run.outcome.value if run.outcome else run.state
    parts = [f"run {run.id} of {printable(run.agent, _SHOWN)}: {state} after {len(steps)} steps"]
    parts += [f"{denied} denied"] if (denied := sum(step.account.denied for step in steps)) else []
    parts += [f"{found} findings"] if (found := sum(len(step.account.findings) for step in steps)) else []
    parts += [_cost(run.usage)] if run.usage.tokens else []
    parts += [f"reward {run.ledger.total:+g}"] if run.ledger.entries else []
    lines = [", ".join(parts)]
    lines += [f"reason: {printable(run.reason, 1000)}"] if run.reason else []
    lines += [f"answer: {printable(run.answer, 4000)}"] if run.answer else []
    return "\n".join(lines)


def _gist(action: Action) -> str:
    match action:
        case Shell(command=command):
            return command if isinstance(command, str) else shlex.join(map(str, command))
        case Edit(path=path):
            return path
        case Patch(diff=diff):
            return next((line[4:].removeprefix("b/") for line in diff.splitlines() if line.startswith("+++ ")), "")
        case Say(text=text) | Finish(text=text):
            return text
        case Unclear(problem=problem):
            return problem
        case _:
            return ""


def _cost(usage: Usage) -> str:
    price = f", {usage.cost_usd:.4f} USD" if usage.cost_usd else ""
    return f"{usage.tokens_in}+{usage.tokens_out} tokens{price}"
