"""What a supervisor does before its sandbox stands: it loads little, and a policy that nobody has checked ends it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.policy import Filesystem, Network, NetworkRule, Policy
from jupyter_agentwatch.supervisor.descriptors import max_flows
from jupyter_agentwatch.watch.process import _START, supervisor_command
from jupyter_agentwatch.wire.framing import encode_frame
from jupyter_agentwatch.wire.messages import Launch
from jupyter_agentwatch.wire.runtime import control_socket, log_dir
from tests.outside import LONG_S, hold, marked, wait_all_ended

NOT_BEFORE_THE_SANDBOX = {
    *("ast", "asyncio", "dataclasses", "hashlib", "inspect", "logging", "random", "shutil", "ssl", "tempfile", "yaml"),
    *("typing_extensions", "jupyter_agentwatch.audit", "jupyter_agentwatch.events", "jupyter_agentwatch.policy.match"),
    *("jupyter_agentwatch.policy.parse", "jupyter_agentwatch.sandbox.gateway", "jupyter_agentwatch.supervisor.core"),
}
"""Loaded while bubblewrap starts, or never: a session's start waits for each module that comes before."""


def test_little_is_loaded_before_the_sandbox_is_started() -> None:
    """What the supervisor can import while bubblewrap starts, it does not import before."""
    run = 'sys.exit(import_module(module + ".__main__").main())'
    look = _START.replace(run, 'import_module(module + ".__main__")\nprint(*sys.modules)')
    assert look != _START
    argv = [look if word == _START else word for word in supervisor_command()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "jupyter_agentwatch.sandbox.launch" in loaded
    assert loaded & NOT_BEFORE_THE_SANDBOX == set()


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(network=Network(rules=[NetworkRule(ports=[443])])), "network.rules[0]"),
        (Policy(filesystem=Filesystem(read=["/"])), "filesystem.read[0]"),
    ],
)
def test_a_policy_that_nobody_checked_runs_nothing(tmp_path: Path, policy: Policy, field: str) -> None:
    """Who starts a supervisor with a policy that makes no sense gets the field by name, and nothing is left behind."""
    watch = "0badcafe"
    launch = Launch(
        watch=watch,
        policy=policy,
        workspace=str(tmp_path),
        socket=str(control_socket(watch)),
        log=str(log_dir() / f"{watch}.jsonl"),
        owner_pid=os.getpid(),
    )
    done = subprocess.run(
        supervisor_command(), input=encode_frame(launch), capture_output=True, timeout=LONG_S, check=False
    )
    assert done.returncode != 0
    assert b'"PolicyError"' in done.stdout
    assert field.encode() in done.stdout
    assert not Path(launch.socket).exists()
    assert not Path(launch.log).exists()
    wait_all_ended(hold(marked(str(tmp_path))))  # bubblewrap ends with the supervisor


@pytest.mark.sandbox
def test_the_table_of_open_files_never_grows_while_callers_wait(tmp_path: Path) -> None:
    """Two descriptors for each of 4,096 flows find room in the table that the kernel made at the start."""
    with Watch(workspace=tmp_path) as watch:
        status = Path(f"/proc/{watch.status().pid}/status").read_text()
    table = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("FDSize:"))
    assert table > 2 * max_flows()
