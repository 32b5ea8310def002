"""The grammar of `%agentwatch` and `%%agentwatch`; a mistake becomes IPython's `UsageError`, never a traceback."""

from __future__ import annotations

import argparse
import difflib
import math
import shlex
from itertools import takewhile
from typing import Any, NoReturn

from IPython.core.error import UsageError

from jupyter_agentwatch.cli.parser import StrictParser, gpu_count, seconds

__all__ = [
    "AGENT_PARSER",
    "CELL_PARSER",
    "LINE_PARSER",
    "SUBCOMMANDS",
    "HelpShown",
    "MagicParser",
    "parse_cell",
    "parse_line",
]


class HelpShown(Exception):  # noqa: N818 -- no error: the user asked for the help text, and has it
    """The arguments asked for the help text, which has been printed."""


class MagicParser(StrictParser):
    """A parser that never ends the process, and knows what could be typed.

    Attributes:
        words: Options and fixed words, for completion.
    """

    def __init__(self, **options: Any) -> None:
        self.words: list[str] = []
        super().__init__(**options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument as `argparse` does."""
        self.words += [*(name for name in names if name.startswith("--")), *options.get("choices", ())]
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with the usage line."""
        text = f"{message}\n{self.format_usage().rstrip()}"
        raise UsageError(text)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Raise `HelpShown`; argparse calls this only after printing the help."""
        raise HelpShown(message or status)


def parse_line(line: str) -> argparse.Namespace:
    """Parse what stands after `%agentwatch`.

    Raises:
        UsageError: It is not understood; an unknown subcommand is told the nearest one.
        HelpShown: It asked for help.
    """
    first, _, rest = line.strip().partition(" ")
    if first == "kill" and rest.strip() not in {"-h", "--help"}:
        # The reason is taken as it stands: a kill must not fail for an apostrophe.
        return argparse.Namespace(command="kill", reason=rest.strip())
    words = _split(line, LINE_PARSER)
    if words and not words[0].startswith("-") and words[0] not in SUBCOMMANDS:
        near = difflib.get_close_matches(words[0], SUBCOMMANDS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        LINE_PARSER.error(f"unknown subcommand {words[0]!r}{hint}")
    return LINE_PARSER.parse_args(words)


def parse_cell(line: str) -> argparse.Namespace:
    """Parse what stands after `%%agentwatch`.

    Raises:
        UsageError: It is not understood.
        HelpShown: It asked for help.
    """
    first, _, rest = line.strip().partition(" ")
    parser, words = (AGENT_PARSER, rest) if first == "agent" else (CELL_PARSER, line)
    return parser.parse_args(_split(words, parser))


def _split(line: str, parser: MagicParser) -> list[str]:
    """Return the words of a line, as far as a comment."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""  # its own notion of them begins in the middle of a word, too
    try:
        return list(takewhile(lambda word: not word.startswith("#"), lexer))
    except ValueError as error:
        parser.error(f"{error}: {line.strip()!r}")


def _name(text: str) -> str:
    if not text.isidentifier():
        msg = f"{text!r} is not a variable's name"
        raise argparse.ArgumentTypeError(msg)
    return text


def _count(text: str, what: str = "a whole number from 1") -> int:
    if not text.isdecimal() or int(text) < 1:
        msg = f"{text!r} is not {what}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _step(text: str) -> int:
    return _count(text, "the number of a step")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        msg = f"{text!r} is not a positive number"
        raise argparse.ArgumentTypeError(msg)
    return value


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", metavar="F", help="policy file (YAML); default: the workspace, no network")
    parser.add_argument("--workspace", metavar="DIR", help="folder that the commands see (default: the current one)")
    parser.add_argument(
        "--simulate-gpu", metavar="N", type=gpu_count, help="N simulated GPUs stand for the machine's, for teaching"
    )


def _cell_parser() -> MagicParser:
    parser = MagicParser(
        prog="%%agentwatch",
        description="Run the cell as a shell script in the notebook's watch, which starts with the first cell. "
        "As %%%%agentwatch agent, give its text to an agent as the task.",
    )
    parser.set_defaults(agent=False)
    parser.add_argument("--timeout", metavar="S", type=seconds, help="kill the script after S seconds")
    _add_watch(parser)
    parser.add_argument("--shell", metavar="PATH", help="shell inside the sandbox (default: /bin/bash, else /bin/sh)")
    parser.add_argument("--out", metavar="NAME", type=_name, help="put the CommandResult into the variable NAME")
    return parser


def _add_agent(parser: MagicParser) -> None:
    parser.set_defaults(agent=True)
    which = parser.add_mutually_exclusive_group(required=True)
    parser.words += ["--model", "--replay"]
    which.add_argument("--model", metavar="M", help="name of a model with an OpenAI-compatible endpoint")
    which.add_argument(
        "--replay", metavar="F", help="recorded trajectory: ours, mini-swe-agent's or SWE-agent's; needs no text"
    )
    parser.add_argument("--base-url", metavar="URL", help="address of the endpoint (default: OPENAI_BASE_URL)")
    parser.add_argument("--max-steps", metavar="N", type=_count, default=50, help="most actions (default: 50)")
    price = "US dollars for a million tokens {}, where the endpoint does not say what a reply costs"
    parser.add_argument("--price-in", metavar="USD", type=_positive, default=0.0, help=price.format("read"))
    parser.add_argument("--price-out", metavar="USD", type=_positive, default=0.0, help=price.format("written"))
    parser.add_argument(
        "--max-cost", metavar="USD", type=_positive, help="end the run when it has cost so much; see the prices"
    )
    parser.add_argument("--max-tokens", metavar="N", type=_count, help="end the run when it has used so many tokens")
    parser.add_argument("--max-seconds", metavar="S", type=_positive, help="end the run after so many seconds of work")
    _add_watch(parser)
    parser.add_argument("--out", metavar="NAME", type=_name, help="put the AgentRun into the variable NAME")


def _line_parser() -> tuple[MagicParser, dict[str, MagicParser]]:
    parser = MagicParser(prog="%agentwatch", description="Start, watch and end the notebook's watch.")
    commands = parser.add_subparsers(dest="command", metavar="SUBCOMMAND", required=True)
    start = commands.add_parser("start", help="start the notebook's watch")
    _add_watch(start)
    start.add_argument("--out", metavar="NAME", type=_name, help="put the Watch into the variable NAME")
    start.add_argument("--no-dashboard", action="store_true", help="do not show the dashboard")
    # IPython takes no cell magic without a body: `%agentwatch agent --help` is for whoever has no task yet.
    agent = commands.add_parser(
        "agent",
        prog="%%agentwatch agent",
        help="let an agent work on a task: the text below %%%%agentwatch agent",
        description="Let an agent work on a task, the cell's text, in the notebook's watch; each step is one line.",
    )
    _add_agent(agent)
    dashboard = commands.add_parser("dashboard", help="show the live dashboard, with the kill switch")
    dashboard.add_argument("run", metavar="RUN", nargs="?", help="id of a run (default: the notebook's watch)")
    use = commands.add_parser("use", help="use a Watch of yours from now on")
    use.add_argument("name", metavar="NAME", type=_name, help="variable that holds the Watch")
    commands.add_parser("status", help="say what the watch does")
    kill = commands.add_parser("kill", help="end everything in the watch and close its log")
    kill.add_argument("reason", nargs="*", help="text for the log")
    commands.add_parser("suspend", help="stop every process and hold every call")
    commands.add_parser("resume", help="let a suspended watch go on")
    answer = commands.add_parser("answer", help="answer a call that the policy holds for a person")
    answer.add_argument("ask", metavar="ASK", type=_step, help="number of the held call, as `status` shows it")
    answer.add_argument("word", choices=["allow", "deny"])
    commands.add_parser("doctor", help="try each mechanism of the sandbox on this machine")
    policy = commands.add_parser("policy", help="show the policy, or suggest one that allows what was denied")
    policy.add_argument("what", nargs="?", choices=["show", "suggest"], default="show")
    diff = commands.add_parser("diff", help="show what a step changed in the workspace")
    diff.add_argument("step", metavar="STEP", type=_step, nargs="?", help="number of the step (default: the last)")
    undo = commands.add_parser("undo", help="take back what a step changed in the workspace")
    undo.add_argument("step", metavar="STEP", type=_step, help="number of the step")
    findings = commands.add_parser("findings", help="show what the detectors have found, and what came of it")
    levels = ["info", "low", "medium", "high", "critical"]
    findings.add_argument("--severity", choices=levels, default="low", help="this one or above (default: low)")
    findings.add_argument("--out", metavar="NAME", type=_name, help="put them into the variable NAME, a DataFrame")
    events = commands.add_parser("events", help="show records of the audit log")
    events.add_argument("--kind", metavar="K", help="only this kind: exec, connect, dns, file, …")
    events.add_argument("--step", metavar="STEP", type=_step, help="only this step")
    events.add_argument("--verdict", choices=["allow", "deny", "ask", "kill"], help="only this verdict")
    events.add_argument("-n", metavar="N", dest="lines", type=_count, default=20, help="last N records (default: 20)")
    events.add_argument("--out", metavar="NAME", type=_name, help="put all of them into the variable NAME, a DataFrame")
    return parser, dict(commands.choices)


CELL_PARSER = _cell_parser()
"""Parser of `%%agentwatch`."""

_LINE, _COMMANDS = _line_parser()

LINE_PARSER = _LINE
"""Parser of `%agentwatch`."""

AGENT_PARSER = _COMMANDS["agent"]
"""Parser of `%%agentwatch agent`."""

SUBCOMMANDS = {name: each.words for name, each in _COMMANDS.items()}
"""Subcommands of `%agentwatch`, each with the options and fixed words that may follow it."""
