"""Varied sets of attacks and honest lines, each written before the rules were shown it: none may be lost again."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_agentwatch.detect.commands import CommandDetector
from jupyter_agentwatch.detect.own import COMMAND_RULES
from jupyter_agentwatch.detect.rule import SEVERITIES
from jupyter_agentwatch.testing.builders import event

FIXTURES = Path(__file__).parent / "fixtures" / "detect"
HIGH = SEVERITIES.index("high")


def lines(name: str, exceptions: str) -> tuple[list[str], set[str]]:
    """Return the lines of a set, and those that stand below the heading of the exceptions."""
    usual, _, rest = (FIXTURES / name).read_text("utf-8").partition(f"\n# {exceptions}\n")
    kept = [line for line in usual.splitlines() if line and not line.startswith("# ")]
    return kept, set(rest.splitlines())


def is_severe(line: str) -> bool:
    """Return whether fresh rules find something of severity high or above in a script."""
    argv = ["bash", "-c", line.replace("⏎", "\n")]
    found = CommandDetector(COMMAND_RULES).feed(event("exec", basis="claimed", path="/bin/bash", argv=argv))
    return any(SEVERITIES.index(draft.severity) >= HIGH for draft in found)


@pytest.mark.parametrize("family", ["mining", "tunnel", "shell", "probing", "exfiltration", "diversion", "tampering"])
def test_varied_attacks_stay_found(family: str) -> None:
    """Every line of the family that is not listed as missed gives a finding; what is listed is really missed."""
    attacks, missed = lines("varied_attacks.txt", "missed")
    mine = [line.partition("\t")[2] for line in attacks if line.startswith(family)]
    assert len(mine) >= 40
    assert [line for line in mine if not is_severe(line)] == []
    assert [line for line in missed if line.startswith(family) and is_severe(line.partition("\t")[2])] == []


def test_varied_payments_stay_found() -> None:
    """The smallest family: every line of it that is not listed as missed."""
    attacks, _ = lines("varied_attacks.txt", "missed")
    mine = [line.partition("\t")[2] for line in attacks if line.startswith("payment")]
    assert len(mine) >= 20
    assert [line for line in mine if not is_severe(line)] == []


def test_varied_honest_lines_are_left_alone() -> None:
    """No line gives a finding of severity high but those that are listed."""
    honest, alarms = lines("varied_benign.txt", "alarms")
    assert len(honest) >= 3300
    assert len(alarms) <= 4
    assert [line for line in honest if is_severe(line)] == []
