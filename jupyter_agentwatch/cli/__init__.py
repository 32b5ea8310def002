"""`jupyter agentwatch`: every action of the project for a shell, above all the kill that needs no kernel."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from jupyter_agentwatch.cli.output import remark
from jupyter_agentwatch.cli.parser import OWN_FAILURE, build_parser
from jupyter_agentwatch.cli.terminal import safe_text
from jupyter_agentwatch.errors import AgentwatchError

__all__ = ["main"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit code: that of the command for `run`, otherwise as each subcommand's help says; 125 for our own failure.
    """
    try:
        options = build_parser().parse_args(argv)
        return _handler(options.command)(options)
    except SystemExit as stop:  # --help, --version, a usage error: argparse has said it
        return stop.code if isinstance(stop.code, int) else OWN_FAILURE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _silence()
        return _BROKEN_PIPE
    except AgentwatchError as error:
        remark(safe_text(str(error)))
        return error.exit_code
    except (OSError, ValueError) as error:
        # A value that cannot be used as it is (a time limit, an argument that is no text), or the machine's refusal.
        remark(safe_text(str(error)))
        return OWN_FAILURE


def _handler(command: str) -> Callable[[argparse.Namespace], int]:
    """Return what carries out a subcommand. Imported late: `kill` must not wait for what only `run` needs."""
    if command == "run":
        from jupyter_agentwatch.cli.run import run

        return run
    if command in {"doctor", "policy"}:
        from jupyter_agentwatch.cli import policies

        return policies.doctor if command == "doctor" else policies.policy
    if command in {"hunt", "replay"}:
        from jupyter_agentwatch.cli import hunting

        return hunting.hunt if command == "hunt" else hunting.replay
    if command in {"export", "report"}:
        from jupyter_agentwatch.cli import documents

        return documents.export if command == "export" else documents.report
    if command in {"tail", "verify"}:
        from jupyter_agentwatch.cli import logs

        return logs.tail if command == "tail" else logs.verify
    from jupyter_agentwatch.cli import control

    return {
        "answer": control.answer,
        "kill": control.kill,
        "list": control.list_watches,
        "resume": control.resume,
        "suspend": control.suspend,
    }[command]


def _silence() -> None:
    """Let the interpreter's last flush go nowhere: whoever read our output is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
