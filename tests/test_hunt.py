"""Findings of all logs together: incidents of one shape, in however many runs, are one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch.cli import main
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
