"""Commands whose arguments are longer than one message to init can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jupyter_agentwatch import Watch

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

WORD = "x" * 65536


def test_a_long_command_runs_as_it_is(closed: Watch) -> None:
    """A megabyte of arguments and an input of its own reach the program unchanged."""
    result = closed.run(["/bin/sh", "-c", 'cat; printf %s "$@" | wc -c', "sh", *[WORD] * 16], stdin="first\n")
    assert result.stdout == f"first\n{16 * len(WORD)}\n"


def test_a_command_that_is_too_long_for_linux_is_refused(closed: Watch) -> None:
    """More arguments than Linux takes are a command that cannot be executed, and the watch goes on."""
    assert closed.run(["/bin/true", *[WORD] * 40]).outcome == "not-executable"
    assert closed.run(["/bin/true"]).ok
