"""Logs of incidents, written out by hand: one second between records, prices that are easy to add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from jupyter_agentwatch.events import AnyEvent
from jupyter_agentwatch.policy import Budgets, Policy
from jupyter_agentwatch.testing import event
from tests.strategies import WATCH, a_close, an_open, written

__all__ = ["POLICY", "SECOND", "a_finding", "a_log", "a_story", "an_exec"]

SECOND = 1_000_000_000
POLICY = Policy(budgets=Budgets(money=100, price_cpu_hour=3600.0, price_gpu_hour=7200.0, price_gb_out=1e6))


def a_log(folder: Path, *records: AnyEvent) -> Path:
    """Write a log of these records, one second apart, between an open and a close."""
    opened = an_open(policy=msgspec.json.encode(POLICY).decode())
    numbered = [
        msgspec.structs.replace(each, seq=seq, watch=WATCH, t_mono_ns=seq * SECOND, t_wall_ns=seq * SECOND)
        for seq, each in enumerate(records, 1)
    ]
    last = len(numbered) + 1
    return written(folder / "log.jsonl", [opened, *numbered, a_close(last, t_mono_ns=last * SECOND)])


def an_exec(pid: int, ppid: int, exe: str, **more: Any) -> AnyEvent:
    """Return the record of a program that was found running."""
    return event("exec", basis="post", step=3, pid=pid, ppid=ppid, exe=exe, argv=[exe], **more)


def a_finding(*evidence: int, **more: Any) -> AnyEvent:
    """Return a finding of the mining family about process 12 of step 3."""
    fields = {"rule": "mining.one", "title": "mined", "severity": "high", "family": "mining", "step": 3, "pid": 12}
    return event("finding", **(fields | {"evidence": list(evidence), "cell": "c1"} | more))


def a_story(folder: Path) -> Path:
    """Write the log of a step that mines: two findings, a denied flow, its costs, and the freeze."""
    return a_log(
        folder,
        event("step", op="start", step=3, argv=["sh", "-c", "mine"]),  # 1
        event("resources", step=3, pid=12, cpu_s=50.0),  # 2: before anything was noticed
        an_exec(11, 1, "/bin/sh"),  # 3
        an_exec(12, 11, "/project/worker"),  # 4
        a_finding(4),  # 5
        event("connect", step=3, pid=12, verdict="deny", addr="10.0.0.1", port=22, rule="no-rule"),  # 6
        event("flow", step=3, pid=12, verdict="deny", op="named", protocol="stratum", port=3333, rule="mining"),  # 7
        event("flow", step=3, pid=12, op="closed", flow=2, bytes_out=1000),  # 8
        event("flow", step=4, pid=30, op="closed", flow=3, bytes_out=9999),  # 9: another step's
        event("resources", step=3, pid=12, cpu_s=2.0),  # 10
        event("gpu", op="process", step=3, pid=12, gpu_seconds=1.5),  # 11
        a_finding(7, rule="mining.two", severity="critical", title="spoke to a pool"),  # 12
        event("breaker", evidence=[12], before="closed", after="frozen", cause="trip: it"),  # 13
        event("step", op="end", step=3, outcome="killed"),  # 14
    )
