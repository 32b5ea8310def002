"""Agents under the detectors and the breaker: the trip pauses the run, the kill ends it, leases bear its steps."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.agents import AgentRun, Outcome, PenalisedReward, Shell
from jupyter_agentwatch.events import BreakerChanged, Exec, Finding, Gpu
from tests.actors import Doing
from tests.outside import recorded

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sandbox

PATIENCE_S = 60.0
MINER = "./worker -o stratum+tcp://pool.example:3333 -u nobody --donate-level 1"
"""The words of a miner, given to a copy of `true`."""


def tripped(watch: Watch, run: AgentRun) -> None:
    """Wait until the breaker has frozen the watch under a run; each question is a round of the supervisor's loop."""
    for _ in range(4000):
        if run.state == "paused":
            return
    pytest.fail(f"the run is {run.state}: {watch.findings()}")


@pytest.mark.parametrize("person", ["resumes", "kills"])
def test_a_trip_pauses_the_run_and_tells_its_agent_nothing(tmp_path: Path, person: str) -> None:
    """The finding bears the step that caused it; a person lets the run go on or ends it; no word goes inside."""
    shutil.copy(shutil.which("true") or "/bin/true", tmp_path / "worker")
    agent = Doing(Shell("echo harmless"), Shell(f"{MINER}; echo after"))
    with Watch(workspace=tmp_path) as watch:
        run = watch.run_agent(agent, "work", reward=PenalisedReward(lambda _: {"task": 0.0}, {"finding.mining": 1.0}))
        tripped(watch, run)
        with pytest.raises(TimeoutError):
            run.wait(0.2)
        (finding, *_) = [each for each in recorded(watch, Finding) if each.family == "mining"]
        assert finding.step == run.steps[0].step + 1
        if person == "kills":
            watch.kill("mining")
            assert run.wait(PATIENCE_S) is Outcome.KILLED
            assert len(agent.seen) == 2
        else:
            watch.resume()
            assert run.wait(PATIENCE_S) is Outcome.FINISHED
            assert agent.seen[2].text == "after"
            assert run.ledger.by_term()["price.finding.mining"] < 0
        said = "".join(observation.text + observation.outcome for observation in agent.seen)
        assert not any(word in said for word in ("mining", "frozen", "breaker", finding.rule))
        assert next(move.after for move in recorded(watch, BreakerChanged)) == "frozen"
        assert any(each.exe.endswith("/worker") for each in recorded(watch, Exec)) is (person == "resumes")


def test_a_run_with_a_gpu_leases_it_to_each_step(tmp_path: Path) -> None:
    """Each command of the run has the lease while it runs, and CUDA sees that device alone."""
    policy = {"telemetry": {"simulate_gpus": 2}, "gpus": [{"device": 1}]}
    with Watch(policy, tmp_path) as watch:
        agent = Doing(Shell('echo "$CUDA_VISIBLE_DEVICES"'), Shell("true"))
        run = watch.run_agent(agent, "train", gpu=1)
        assert run.wait(PATIENCE_S) is Outcome.FINISHED, run.reason
        leases = [each for each in recorded(watch, Gpu) if each.op in {"lease", "release"}]
        steps = [step.step for step in run.steps[:2]]
        assert [(each.op, each.step) for each in leases] == [
            (op, step) for step in steps for op in ("lease", "release")
        ]
        assert agent.seen[1].text == leases[0].device


def test_a_gpu_that_is_not_granted_ends_the_run_in_words(tmp_path: Path) -> None:
    """What the supervisor refuses for good is the caller's error, not a pause without an end."""
    with Watch(workspace=tmp_path) as watch:
        run = watch.run_agent(Doing(Shell("true")), "train", gpu=0)
        assert run.wait(PATIENCE_S) is Outcome.AGENT_ERROR
        assert "GPU" in run.reason
