"""`run`: one command in a watch of its own, as transparent as `env`: bytes, signals and exit code pass through."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.cli.holdups import holdups_told
from jupyter_agentwatch.cli.output import ByteSink, remark
from jupyter_agentwatch.cli.parser import OWN_FAILURE
from jupyter_agentwatch.cli.tally import tally
from jupyter_agentwatch.cli.words import counts_text, one_line
from jupyter_agentwatch.errors import AgentwatchError, LogError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.watch import CommandResult, Running, Watch
from jupyter_agentwatch.watch.opening import load_policy, with_simulated_gpus

__all__ = ["run"]

_STDIN_FD = 0
_PIECE_BYTES = 64 * 1024


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code, 128 and the signal's number where one ended it."""
    # Without `--`, argparse hands the words over as they are; with it, the mark comes first.
    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        remark("a command is missing; usage: jupyter agentwatch run [options] -- COMMAND ...")
        return OWN_FAILURE
    policy = with_simulated_gpus(load_policy(options.policy or None), options.simulate_gpu)
    with Watch(policy=policy, workspace=options.workspace) as watch:
        feeds = _has_input()
        running = watch.start(argv, timeout=options.timeout, stdin=feeds)
        with _interrupts(running), holdups_told(watch):
            if feeds:
                threading.Thread(target=_feed, args=(running,), name="stdin", daemon=True).start()
            _copy_output(running)
            result = running.wait()
        head = watch.kill("the command ended").head
    _explain(result)
    if not options.quiet:
        if options.simulate_gpu:
            remark(f"GPUs are SIMULATED: {options.simulate_gpu}")
        _summarise(watch.log, head)
    return result.returncode if result.returncode >= 0 else 128 - result.returncode


def _has_input() -> bool:
    """Tell whether standard input is there and no terminal: the sandbox gets no terminal of the user's."""
    try:
        mode = os.fstat(_STDIN_FD).st_mode
    except OSError:
        return False
    return not (stat.S_ISCHR(mode) and os.isatty(_STDIN_FD))


def _feed(running: Running) -> None:
    # The command need not read what it is given, and may end while this waits for more.
    with contextlib.suppress(AgentwatchError, BrokenPipeError, OSError):
        while data := os.read(_STDIN_FD, _PIECE_BYTES):
            running.write(data)
        running.close_stdin()


def _copy_output(running: Running) -> None:
    sinks = {1: ByteSink(sys.stdout.buffer), 2: ByteSink(sys.stderr.buffer)}
    for stream, data in running:
        sinks[stream].write(data)
    for sink in sinks.values():
        sink.finish()


@contextmanager
def _interrupts(running: Running) -> Iterator[None]:
    """Make the first Ctrl-C a SIGINT of the command, and the second its end.

    The news travels by the wakeup descriptor, which C code writes at once: a handler in Python would wait for the main
    thread, and one that comes just before that thread begins to wait for output would wait for the next output, too.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    former_descriptor = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    former = signal.signal(signal.SIGINT, lambda *_: None)

    def attend() -> None:
        act = running.interrupt
        while number := heard.recv(1):
            if number == bytes([signal.SIGINT]):
                with contextlib.suppress(AgentwatchError):  # the watch is ending: so is the command
                    act()
                act = running.kill

    thread = threading.Thread(target=attend, name="interrupts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        signal.set_wakeup_fd(former_descriptor)
        told.close()
        thread.join()
        heard.close()


def _explain(result: CommandResult) -> None:
    name = one_line(result.argv[:1])
    match result.outcome:
        case "exited" | "signalled" | "not-found" | "not-executable":
            pass  # the exit code says it, or the supervisor has, where the command's own errors go
        case "timeout":
            remark(f"{name}: killed after {result.duration_s:.1f} s: its time limit")
        case other:
            remark(f"{name}: ended by {printable(other)}")
    for stream, cut in (("stdout", result.stdout_truncated), ("stderr", result.stderr_truncated)):
        if cut:
            remark(f"{name}: {stream} was cut at the policy's limits.output_bytes")


def _summarise(log: Path, head: str) -> None:
    try:
        counts = counts_text(tally(read_events(log)))
    except LogError as error:
        counts = printable(str(error), 2000)
    remark(f"{counts}; log {printable(str(log), 4096)} head {head}")
