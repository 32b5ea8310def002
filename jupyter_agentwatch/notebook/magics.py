"""`%agentwatch` and `%%agentwatch`: the notebook's one watch, its commands, and its end.

What the sandbox wrote is shown as plain text only; a user's mistake is one line, never a traceback.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Self

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.display import display

from jupyter_agentwatch.audit.reader import LogTail, read_events
from jupyter_agentwatch.cli.incident_text import incident_lines
from jupyter_agentwatch.cli.policies import suggestion_text, suggestions
from jupyter_agentwatch.cli.terminal import SafeText, safe_text
from jupyter_agentwatch.cli.words import changes_text, event_line, killed_line, status_text
from jupyter_agentwatch.errors import AgentwatchError, SessionEndedError
from jupyter_agentwatch.events import AnyEvent, Dns, printable
from jupyter_agentwatch.notebook.arguments import (
    AGENT_PARSER,
    CELL_PARSER,
    LINE_PARSER,
    SUBCOMMANDS,
    HelpShown,
    parse_cell,
    parse_line,
)
from jupyter_agentwatch.notebook.front_end import FrontEndMissingError
from jupyter_agentwatch.notebook.summary import summary
from jupyter_agentwatch.policy import Policy, policy_to_yaml
from jupyter_agentwatch.watch import CommandResult, ImportableWorkspaceWarning, Watch
from jupyter_agentwatch.watch.command import shell_program
from jupyter_agentwatch.watch.opening import load_policy, with_simulated_gpus
from jupyter_agentwatch.watch.views import has_kernel

__all__ = ["AgentwatchMagics", "complete"]

_ANOTHER = "start another one with %agentwatch start"
_BATCH = 4096
_LINE = re.compile(r"\s*%?(%?)agentwatch\s")


@magics_class
class AgentwatchMagics(Magics):
    """The magics of one shell, with the watch that they use."""

    _watch: Watch | None = None
    _owned = False

    @line_cell_magic
    def agentwatch(self, line: str, cell: str | None = None) -> None:
        """Run commands in an audited sandbox, watch them, and end them."""
        with _one_line_errors():
            if cell is None:
                options = parse_line(line)
                getattr(self, f"_do_{options.command}")(options)
            else:
                self._run(parse_cell(line), cell)

    def close(self) -> None:
        """End the watch that these magics started; a watch of the user's own goes on."""
        if self._watch is not None and self._owned:
            self._watch.close()
        self._watch = None

    def _run(self, options: argparse.Namespace, cell: str) -> None:
        if self._watch is not None and self._watch.has_ended:
            # Whoever ended it, a breaker or a person, did not mean that the next cell goes on in another one.
            _refuse(f"watch {self._watch.id} has ended; {_ANOTHER}")
        former_watch = self._watch
        watch = self._ensure(options)
        if watch is not former_watch and watch.notes:
            _show(_notes_text(watch))
        if options.agent:
            self._run_agent(watch, options, cell)
            return
        log = LogTail(watch.log)
        while log.read_lines(_BATCH):  # what is on record so far belongs to other steps
            pass
        former = watch.last_result
        argv = [options.shell or shell_program(), "-c", cell]
        try:
            with _LiveOutput() as live:
                result = watch.run(argv, timeout=options.timeout, on_output=live)
        except KeyboardInterrupt:
            ended = watch.last_result
            if ended is not None and ended is not former:
                self._finish(ended, log, options.out, interrupted=True)
            raise
        except SessionEndedError as error:
            _refuse(f"{safe_text(str(error))}; {_ANOTHER}")
        self._finish(result, log, options.out)

    def _run_agent(self, watch: Watch, options: argparse.Namespace, task: str) -> None:
        from jupyter_agentwatch.agents.progress import run_text
        from jupyter_agentwatch.notebook.agent_cell import follow, start_agent

        run = start_agent(watch, options, task)
        if options.out is not None:
            self._put(options.out, run)
        try:
            follow(run)
        finally:
            _show(f"{run_text(run)}\nlog {printable(str(watch.log), 4096)}, head {watch.head}")

    def _finish(self, result: CommandResult, log: LogTail, out: str | None, *, interrupted: bool = False) -> None:
        if out is not None:
            self._put(out, result)
        # The DNS stub does not know which command asks: what was asked meanwhile counts as this one's.
        events = [
            each for each in log.read_new() if each.step == result.step or (isinstance(each, Dns) and not each.step)
        ]
        _show(summary(result, events, str(log.path), interrupted=interrupted))

    def _ensure(self, options: argparse.Namespace) -> Watch:
        """Return the notebook's watch, started if there is none; never one with another policy than was asked for."""
        policy = load_policy(options.policy) if options.policy else None
        if options.simulate_gpu:
            policy = with_simulated_gpus(policy or Policy(), options.simulate_gpu)
        watch = self._watch
        if watch is not None and not watch.has_ended:
            if policy is not None and policy != watch.policy:
                _refuse(f"watch {watch.id} runs with another policy; end it first with %agentwatch kill")
            if options.workspace and Path(options.workspace).resolve() != watch.workspace:
                _refuse(f"watch {watch.id} runs in {watch.workspace}; end it first with %agentwatch kill")
            return watch
        with warnings.catch_warnings():  # what it says is among the watch's notes, too, and these are shown
            warnings.simplefilter("ignore", ImportableWorkspaceWarning)
            self._watch = Watch(policy=policy, workspace=options.workspace or ".")
        self._owned = True
        return self._watch

    def _current(self) -> Watch:
        if self._watch is None:
            _refuse("no watch yet; start one with %agentwatch start, or run a %%agentwatch cell")
        return self._watch

    def _put(self, name: str, value: object) -> None:
        if self.shell is not None:
            self.shell.user_ns[name] = value

    # One method for each subcommand, found by its name.

    def _do_start(self, options: argparse.Namespace) -> None:
        former = self._watch
        watch = self._ensure(options)
        if watch is former:
            _show(f"watch {watch.id} runs already; end it with %agentwatch kill")
        else:
            started = f"watch {watch.id} started: rung {watch.rung}, log {printable(str(watch.log), 4096)}"
            _show("\n".join([started, *filter(None, [_notes_text(watch)])]))
        if options.out is not None:
            self._put(options.out, watch)
        if has_kernel() and not options.no_dashboard:
            try:
                _draw(watch.dashboard())
            except FrontEndMissingError as error:  # the watch stands, and is watched without it
                _show(f"note: no dashboard: {safe_text(str(error))}")

    def _do_agent(self, options: argparse.Namespace) -> None:
        self._run(options, "")

    def _do_dashboard(self, options: argparse.Namespace) -> None:
        if options.run is None:
            _draw(self._current().dashboard())
            return
        if not has_kernel():
            _refuse(f"a dashboard needs a notebook; here: jupyter agentwatch tail {safe_text(options.run)}")
        from jupyter_agentwatch.notebook.dashboard import Dashboard

        _draw(Dashboard(options.run))

    def _do_use(self, options: argparse.Namespace) -> None:
        names = self.shell.user_ns if self.shell is not None else {}
        watch = names.get(options.name)
        if not isinstance(watch, Watch):
            known = ", ".join(sorted(name for name, each in names.items() if isinstance(each, Watch))) or "none"
            _refuse(f"{options.name} is no Watch; variables that hold one: {known}")
        if self._watch not in (None, watch) and self._owned and not self._watch.has_ended:
            _refuse(f"watch {self._watch.id} of this notebook runs; end it first with %agentwatch kill")
        self._owned = self._owned and watch is self._watch
        self._watch = watch
        _show(f"%agentwatch now uses watch {watch.id}")

    def _do_status(self, _options: argparse.Namespace) -> None:
        if self._watch is None:
            _show("no watch yet; start one with %agentwatch start, or run a %%agentwatch cell")
            return
        try:
            _show(status_text(self._watch.status()))
        except SessionEndedError:
            log = printable(str(self._watch.log), 4096)
            _show(f"watch {self._watch.id} has ended; log {log}, head {self._watch.head}")

    def _do_kill(self, options: argparse.Namespace) -> None:
        if self._watch is None:
            _show("nothing to kill: no watch")
            return
        killed = self._watch.kill(options.reason)
        note = f" ({safe_text(killed.note)})" if killed.note else ""
        _show(f"watch {self._watch.id}: {killed_line(killed)}{note}, head {killed.head}")

    def _do_suspend(self, _options: argparse.Namespace) -> None:
        self._current().suspend()
        _show(f"watch {self._current().id} suspended; %agentwatch resume lets it go on, %agentwatch kill ends it")

    def _do_resume(self, _options: argparse.Namespace) -> None:
        self._current().resume()
        _show(f"watch {self._current().id} goes on")

    def _do_answer(self, options: argparse.Namespace) -> None:
        self._current().answer(options.ask, allow=options.word == "allow")
        _show(f"call {options.ask} {'allowed' if options.word == 'allow' else 'denied'}")

    def _do_doctor(self, _options: argparse.Namespace) -> None:
        from jupyter_agentwatch.sandbox.probe import probe
        from jupyter_agentwatch.sandbox.probe_report import report_text

        _show(report_text(probe()))

    def _do_policy(self, options: argparse.Namespace) -> None:
        policy = self._watch.policy if self._watch is not None else Policy()
        if options.what == "suggest":
            _show(suggestion_text(suggestions(self._current().log, policy)))
        else:
            _show(policy_to_yaml(policy, defaults=True).rstrip())

    def _do_diff(self, options: argparse.Namespace) -> None:
        _show(changes_text(self._current().diff(options.step)))

    def _do_undo(self, options: argparse.Namespace) -> None:
        _show("taken back:\n" + changes_text(self._current().undo(options.step)))

    def _do_findings(self, options: argparse.Namespace) -> None:
        watch = self._current()
        _show("\n".join(incident_lines(watch.incidents(), options.severity)) or "nothing found")
        if options.out is not None:
            self._put(options.out, watch.findings(options.severity))

    def _do_events(self, options: argparse.Namespace) -> None:
        watch = self._current()
        found = read_events(watch.log, kinds=[options.kind] if options.kind else None, step=options.step)
        wanted = (event for event in found if options.verdict in (None, event.verdict))
        last: deque[AnyEvent] = deque(wanted, maxlen=options.lines)
        _show("\n".join(event_line(event) for event in last) or "no such record")
        if options.out is not None:
            self._put(options.out, watch.events(kind=options.kind, step=options.step, verdict=options.verdict))


AgentwatchMagics.agentwatch.__doc__ = f"""{AgentwatchMagics.agentwatch.__doc__}

{LINE_PARSER.format_help()}
{CELL_PARSER.format_help()}
{AGENT_PARSER.format_help()}"""


class _LiveOutput:
    """Writes a command's output into the cell as it comes."""

    def __init__(self) -> None:
        self._safe = {1: SafeText(), 2: SafeText()}
        self._streams = {1: sys.stdout, 2: sys.stderr}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream, safe in self._safe.items():
            self._write(stream, safe.finish())

    def __call__(self, stream: int, data: bytes) -> None:
        self._write(stream, self._safe[stream].feed(data))

    def _write(self, stream: int, text: str) -> None:
        self._streams[stream].write(text)
        if self._streams[stream].isatty():  # a notebook's streams flush themselves, and for less
            self._streams[stream].flush()


@context_matcher(identifier="agentwatch")  # type: ignore[untyped-decorator]
def complete(context: CompletionContext) -> SimpleMatcherResult:
    """Complete subcommands, their options and fixed words after `%agentwatch`, and options after `%%agentwatch`."""
    before = context.text_until_cursor
    magic = _LINE.match(before)
    words = before[magic.end() :].split() if magic else []
    typed = words.pop() if words and not before[-1].isspace() else ""
    if magic is None:
        known: list[str] = []
    elif magic.group(1):
        known = AGENT_PARSER.words if words[:1] == ["agent"] else ["agent", *CELL_PARSER.words]
    else:
        known = SUBCOMMANDS.get(words[0], []) if words else list(SUBCOMMANDS)
    fitting = [SimpleCompletion(text=word, type="param") for word in known if word.startswith(typed)]
    return SimpleMatcherResult(completions=fitting, suppress=bool(fitting))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except HelpShown:
        return
    except KeyboardInterrupt:
        # An error all the same: the cells that wait behind this one must not run.
        msg = "interrupted"
        raise UsageError(msg) from None
    except (AgentwatchError, ValueError) as error:
        raise UsageError(safe_text(str(error))) from None


def _notes_text(watch: Watch) -> str:
    return "\n".join(f"note: {printable(note, 4096)}" for note in watch.notes)


def _show(text: str) -> None:
    display({"text/plain": text}, raw=True)  # type: ignore[no-untyped-call]


def _draw(widget: object) -> None:
    display(widget)  # type: ignore[no-untyped-call]


def _refuse(text: str) -> NoReturn:
    raise UsageError(text)
