"""`%%agentwatch agent`: the cell's text is the task, each step a line of its output, each edit with its diff."""

from __future__ import annotations

import argparse
import sys

from jupyter_agentwatch.agents import Agent, AgentRun, Budget, ChatAgent, ReplayAgent
from jupyter_agentwatch.agents.progress import step_text
from jupyter_agentwatch.watch import Watch

__all__ = ["follow", "start_agent"]

_AS_RECORDED = "as recorded"


def start_agent(watch: Watch, options: argparse.Namespace, task: str) -> AgentRun:
    """Start the agent that a cell asks for.

    Args:
        watch: Where it works.
        options: What stands after `%%agentwatch agent`.
        task: The cell's text.

    Raises:
        ModelError: The model cannot be asked at all.
        TrajectoryError: The trajectory cannot be read.
        ValueError: The task is empty.
    """
    agent: Agent
    if options.replay is not None:
        agent = ReplayAgent(options.replay)
        task = task.strip() or agent.task or _AS_RECORDED
    else:
        prices = {"price_in": options.price_in, "price_out": options.price_out}
        agent = ChatAgent(options.model, base_url=options.base_url, **prices)
    budget = Budget(cost_usd=options.max_cost, tokens=options.max_tokens, seconds=options.max_seconds)
    return watch.run_agent(agent, task, max_steps=options.max_steps, budget=budget)


def follow(run: AgentRun) -> None:
    """Print each step as it comes, to the end of the run; ■ stops the run.

    Raises:
        KeyboardInterrupt: ■ was pressed; the run has ended.
    """
    try:
        for step in run:
            sys.stdout.write(step_text(step) + "\n")
    except KeyboardInterrupt:
        run.stop()
        run.wait()
        raise
