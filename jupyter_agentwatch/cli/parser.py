"""The command line's grammar: every option with its unit, every subcommand with an example. Runs nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from jupyter_agentwatch import __version__

__all__ = ["OWN_FAILURE", "Parser", "StrictParser", "build_parser", "gpu_count", "seconds"]

OWN_FAILURE = 125
"""Exit code when agentwatch itself failed, as `env` and container tools have it: a command's own codes stay clear."""

_EXAMPLES = {
    "run": """examples:
  jupyter agentwatch run -- python3 train.py --epochs 1
  jupyter agentwatch run --policy lab.yaml --timeout 600 -- sh -c 'make && make check'
  cat data.csv | jupyter agentwatch run --quiet -- sort -t, -k2 > sorted.csv""",
    "list": """examples:
  jupyter agentwatch list
  jupyter agentwatch list --all --json""",
    "kill": """examples:
  jupyter agentwatch kill              # the only live watch
  jupyter agentwatch kill 3f --reason "mining"
  jupyter agentwatch kill --all""",
    "suspend": "example:\n  jupyter agentwatch suspend 3f",
    "resume": "example:\n  jupyter agentwatch resume 3f",
    "answer": "example:\n  jupyter agentwatch answer 3f 1 allow",
    "tail": """examples:
  jupyter agentwatch tail              # the newest watch
  jupyter agentwatch tail 3f --follow
  jupyter agentwatch tail 3f --json -n 1000 | jq 'select(.verdict == "deny")'""",
    "verify": """examples:
  jupyter agentwatch verify 3f
  jupyter agentwatch verify audit.jsonl --head 9f86d081…  # the head that a notebook shows""",
    "doctor": """examples:
  jupyter agentwatch doctor
  jupyter agentwatch doctor --json""",
    "replay": """examples:
  jupyter agentwatch replay 3f
  jupyter agentwatch replay audit.jsonl --rules sigma/rules/linux ~/my-rules""",
    "hunt": """examples:
  jupyter agentwatch hunt
  jupyter agentwatch hunt --rule mining --severity high --days 7
  jupyter agentwatch hunt --text pool.example --json""",
    "report": """examples:
  jupyter agentwatch report 3f > run.md
  jupyter agentwatch report 3f --output run.html""",
    "export": """examples:
  jupyter agentwatch export --format ocsf 3f > run.ocsf.jsonl
  jupyter agentwatch export --format otel 3f --output run.otlp.jsonl""",
    "policy": """examples:
  jupyter agentwatch policy show > lab.yaml
  jupyter agentwatch policy check lab.yaml
  jupyter agentwatch policy suggest 3f
  jupyter agentwatch policy suggest 3f --pick 1,3 > lab.yaml""",
}


class StrictParser(argparse.ArgumentParser):
    """A parser that tells what it does not know, as a subcommand's too, with its own usage and the nearest option."""

    def parse_known_args(  # type: ignore[override]  # argparse's own is overloaded for its callers' namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse all of the arguments: what is left is an error."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}{self._hint(left[0])}")
        return found, left

    def _hint(self, unknown: str) -> str:
        import difflib  # only a mistake needs it

        known = [name for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(unknown.partition("=")[0], known, n=1)
        return f"; did you mean {near[0]}?" if near else ""


class Parser(StrictParser):
    """A parser whose usage errors exit with 125: 2 could be the code of the command that was to run."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, then exit."""
        self.print_usage(sys.stderr)
        self.exit(OWN_FAILURE, f"agentwatch: {message}\n")


def seconds(text: str) -> float:
    """Convert an option's text to a positive, finite number of seconds.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = f"{text!r} is not a positive number of seconds"
        raise argparse.ArgumentTypeError(msg)
    return value


def gpu_count(text: str) -> int:
    """Convert an option's text to a number of simulated GPUs, 1 to 64.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= 2 and 1 <= int(text) <= 64):
        msg = f"{text!r} is not a number of GPUs from 1 to 64"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def build_parser() -> Parser:
    """Return the parser of `jupyter agentwatch`; the result's `command` and `what` say what was chosen."""
    parser = Parser(
        prog="jupyter agentwatch",
        description="Run commands in an audited sandbox, watch them, and kill them.",
        epilog="exit codes: that of the command for run; 125 when agentwatch itself failed",
    )
    parser.add_argument("--version", action="version", version=f"jupyter_agentwatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(_subparser(commands, "run", "run a command in a sandbox of its own"))
    _add_list(_subparser(commands, "list", "list the live watches of this user"))
    _add_kill(_subparser(commands, "kill", "end everything in a watch, whatever its kernel does"))
    _add_id(_subparser(commands, "suspend", "stop every process of a watch and hold its calls"))
    _add_id(_subparser(commands, "resume", "let a suspended watch go on"))
    _add_answer(_subparser(commands, "answer", "answer a call that the policy holds for a person"))
    _add_tail(_subparser(commands, "tail", "show a watch's audit log, live or ended"))
    _add_verify(_subparser(commands, "verify", "check that no record of a log was changed, removed or cut off"))
    _add_replay(_subparser(commands, "replay", "run the detectors over a recorded log"))
    _add_hunt(_subparser(commands, "hunt", "show the findings of all logs, by what they have in common"))
    _add_report(_subparser(commands, "report", "write a run as one document"))
    _add_export(_subparser(commands, "export", "write a run's records in another system's form"))
    _add_doctor(_subparser(commands, "doctor", "try each mechanism of the sandbox on this machine"))
    _add_policy(_subparser(commands, "policy", "show, check or suggest a policy"))
    return parser


def _subparser(commands: argparse._SubParsersAction[Parser], name: str, text: str, examples: str = "") -> Parser:
    return commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_EXAMPLES[examples or name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_id(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="id of the watch, or its beginning")


def _add_run(parser: Parser) -> None:
    options = "[--policy F] [--workspace DIR] [--timeout S] [--simulate-gpu N] [--quiet]"
    parser.usage = f"jupyter agentwatch run {options} -- COMMAND ..."
    parser.add_argument("--policy", metavar="F", help="policy file (YAML); default: the workspace, no network")
    parser.add_argument("--workspace", metavar="DIR", default=".", help="folder that the command sees (default: .)")
    parser.add_argument("--timeout", metavar="S", type=seconds, help="kill the command after S seconds")
    parser.add_argument(
        "--simulate-gpu", metavar="N", type=gpu_count, help="N simulated GPUs stand for the machine's, for teaching"
    )
    parser.add_argument("--quiet", action="store_true", help="no summary line on stderr")
    parser.add_argument("argv", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")


def _add_list(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument("--all", action="store_true", help="also those that ended, from their logs")


def _add_kill(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("id", metavar="ID", nargs="?", help="id of the watch, or its beginning; may be left out for one")
    which.add_argument("--all", action="store_true", help="every live watch of this user")
    parser.add_argument("--reason", default="", help="text for the log")


def _add_answer(parser: Parser) -> None:
    _add_id(parser)
    parser.add_argument("ask", metavar="ASK", type=int, help="number of the held call, as `list --json` shows it")
    parser.add_argument("word", choices=["allow", "deny"])


def _add_tail(parser: Parser) -> None:
    parser.add_argument("log", metavar="ID", nargs="?", help="id of a watch, its beginning, or a log file")
    parser.add_argument("--json", action="store_true", help="print the log's own lines")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the watch ends")
    parser.add_argument("-n", metavar="N", dest="lines", type=_natural, default=20, help="last N records (default: 20)")


def _add_verify(parser: Parser) -> None:
    parser.add_argument("log", metavar="LOG", help="log file, or id of a watch")
    parser.add_argument("--head", metavar="HASH", help="hash that the log must contain, as shown in the notebook")


def _add_replay(parser: Parser) -> None:
    parser.add_argument("log", metavar="LOG", help="log file, or id of a watch")
    parser.add_argument("--rules", metavar="PATH", nargs="+", help="Sigma files or folders, not the policy's")
    parser.add_argument("--json", action="store_true", help="print each finding as a line of JSON")


def _add_hunt(parser: Parser) -> None:
    levels = ["info", "low", "medium", "high", "critical"]
    parser.add_argument("--rule", metavar="R", help="only this rule, or this family: mining, tunnel, shell …")
    parser.add_argument("--severity", choices=levels, default="medium", help="this one or above (default: medium)")
    parser.add_argument("--text", metavar="T", help="only findings with this text")
    parser.add_argument("--days", metavar="D", type=seconds, help="only those of the last D days")
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def _add_report(parser: Parser) -> None:
    parser.add_argument("log", metavar="LOG", nargs="?", help="log file, or id of a watch (default: the newest)")
    parser.add_argument(
        "--format", choices=["markdown", "html"], help="default: as the file's name ends, else markdown"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write, replaced if there (default: print it)")


def _add_export(parser: Parser) -> None:
    parser.add_argument("log", metavar="LOG", nargs="?", help="log file, or id of a watch (default: the newest)")
    text = "ocsf: events of the Open Cybersecurity Schema Framework; otel: OpenTelemetry log records (OTLP JSON)"
    parser.add_argument("--format", choices=["ocsf", "otel"], required=True, help=text)
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write, replaced if there (default: print it)")


def _add_doctor(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_policy(parser: Parser) -> None:
    kinds = parser.add_subparsers(dest="what", metavar="show|check|suggest", required=True)
    show = _subparser(kinds, "show", "print a policy with every default", "policy")
    show.add_argument("file", metavar="FILE", nargs="?", help="policy file; without one: the default policy")
    check = _subparser(kinds, "check", "check a policy file", "policy")
    check.add_argument("file", metavar="FILE", help="policy file")
    suggest = _subparser(kinds, "suggest", "print the smallest policy that would allow what was denied", "policy")
    suggest.add_argument("log", metavar="LOG", help="log file, or id of a watch")
    suggest.add_argument("--policy", metavar="F", help="policy to extend (default: the log's own)")
    picked = suggest.add_mutually_exclusive_group()
    picked.add_argument("--pick", metavar="1,3", type=_numbers, help="numbers of the candidates to take")
    picked.add_argument("--all", action="store_true", help="take every candidate")


def _natural(text: str) -> int:
    if not text.isdecimal():
        msg = f"{text!r} is not a number of records"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        msg = f"{text!r} is not a list of candidate numbers such as 1,3"
        raise argparse.ArgumentTypeError(msg)
    return [int(part) for part in parts]
