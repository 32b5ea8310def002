"""Findings of all logs together: incidents of one shape, in however many runs, are one row."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch.cli import main
from jupyter_agentwatch.testing import event
from tests.incident_logs import SECOND, a_finding, an_exec
from tests.strategies import a_close, an_open, written

if TYPE_CHECKING:
    from pathlib import Path

    from jupyter_agentwatch.events import AnyEvent

DAY = 86_400 * SECOND


def a_run_of(folder: Path, watch: str, day: int, *records: AnyEvent) -> None:
    """Write the log of a run on some day after 2023-11-14."""
    begun = 1_700_000_000 * SECOND + day * DAY
    stamped = [
        msgspec.structs.replace(each, seq=seq, watch=watch, t_wall_ns=begun + seq * SECOND)
        for seq, each in enumerate(records, 1)
    ]
    last = a_close(len(stamped) + 1, watch=watch, t_wall_ns=begun + DAY // 2)
    written(folder / f"{watch}.jsonl", [an_open(watch=watch, t_wall_ns=begun), *stamped, last])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four runs: one thing comes up in three of them, now and then; another once; one run is quiet."""
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("AGENTWATCH_LOG_DIR", str(folder))
    mined = [a_finding(), a_finding(rule="mining.two", severity="critical", title="spoke to a pool")]
    tunnelled = a_finding(rule="tunnel.ssh_forward", family="tunnel", title="a way in")
    a_run_of(folder, "aaaaaaaa", 0, an_exec(12, 1, "/w"), *mined)
    a_run_of(folder, "bbbbbbbb", 3, *reversed(mined), tunnelled)
    a_run_of(folder, "cccccccc", 5, *mined, *(msgspec.structs.replace(each, step=9) for each in mined))
    a_run_of(folder, "dddddddd", 6, an_exec(12, 1, "/w"), a_finding(severity="low"))
    return folder


def hunted(capfd: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    """Return the rows of a hunt."""
    main(["hunt", "--json", *options])
    rows: list[dict[str, Any]] = msgspec.json.decode(capfd.readouterr().out)
    return rows


def test_what_came_up_in_several_runs_is_one_row(lab: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With every run and incident of it, the worst severity, and from when to when; what most runs have comes first."""
    mining, tunnel = hunted(capfd)
    assert (mining["shape"], mining["severity"]) == ("mining: mining.one, mining.two", "critical")
    assert (mining["watches"], mining["incidents"]) == (["aaaaaaaa", "bbbbbbbb", "cccccccc"], 4)
    assert mining["title"] == "spoke to a pool"
    assert mining["last_wall_ns"] - mining["first_wall_ns"] == 5 * DAY + 2 * SECOND
    assert (tunnel["watches"], tunnel["incidents"]) == (["bbbbbbbb"], 1)


def test_a_hunt_can_be_narrowed(lab: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By rule or family, by severity, by text; what is too small to count alone can be asked for."""
    assert [row["shape"] for row in hunted(capfd, "--rule", "tunnel")] == ["tunnel: tunnel.ssh_forward"]
    assert [row["shape"] for row in hunted(capfd, "--rule", "mining.two")] == ["mining: mining.two"]
    assert [row["shape"] for row in hunted(capfd, "--severity", "critical")] == ["mining: mining.two"]
    assert [row["watches"] for row in hunted(capfd, "--text", "a way in")] == [["bbbbbbbb"]]
    low = hunted(capfd, "--severity", "info")
    assert ("mining: mining.one", ["dddddddd"]) in [(row["shape"], row["watches"]) for row in low]


def test_the_exit_code_says_whether_anything_was_found(lab: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """0 with rows, 1 without; both in words."""
    assert main(["hunt"]) == 0
    assert "4 incidents in 3 watches (aaaaaaaa, bbbbbbbb, cccccccc)" in capfd.readouterr().out
    assert main(["hunt", "--rule", "payment"]) == 1
    assert capfd.readouterr().out == "nothing found\n"


def test_a_damaged_log_does_not_stop_the_hunt(lab: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is named, and the others are still looked through."""
    with (lab / "dddddddd.jsonl").open("ab") as file:
        file.write(b"rubbish\n")
    assert main(["hunt", "--json"]) == 0
    shown = capfd.readouterr()
    assert "dddddddd.jsonl" in shown.err
    assert len(msgspec.json.decode(shown.out)) == 2


@pytest.mark.parametrize("command", ["hunt", "replay"])
def test_json_on_a_terminal_cannot_command_it(tmp_path: Path, command: str) -> None:
    """JSON escapes ESC, and neither its one-character form nor what turns text around: on a terminal they are shown."""
    hostile = "a\x9b31m\u202eb"
    miner = ["./w", "-o", f"stratum+tcp://{hostile}:3333", "-u", "4" + "A" * 94, "--donate-level", "1"]
    claim = event("exec", basis="claimed", step=3, pid=12, path="/project/w", argv=miner)
    (tmp_path / "logs").mkdir(mode=0o700)
    a_run_of(tmp_path / "logs", "aaaaaaaa", 0, claim, a_finding(title=hostile))
    log = tmp_path / "logs" / "aaaaaaaa.jsonl"
    argv = {"hunt": ["hunt"], "replay": ["replay", str(log)]}[command]
    environ = {**os.environ, "AGENTWATCH_LOG_DIR": str(log.parent), "AGENTWATCH_RUNTIME_DIR": str(tmp_path / "run")}
    shown, terminal = os.openpty()
    with open(shown, "rb", buffering=0) as screen:
        with open(terminal, "wb") as out:
            done = subprocess.Popen(
                [sys.executable, "-m", "jupyter_agentwatch.cli", *argv, "--json"], env=environ, stdout=out
            )
        said = b""
        with suppress(OSError):  # EIO: whoever wrote has closed the terminal
            while piece := screen.read(4096):
                said += piece
        done.wait()
    text = said.decode()
    assert text.lstrip().startswith(("[", "{"))
    assert not {"\x9b", "\u202e", "\x1b"} & set(text)
    assert "\\x9b31m\\u202e" in text
