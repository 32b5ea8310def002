"""A shell's streams on a socket, whatever started it: told from who connected, who listened and what ran next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from jupyter_agentwatch.detect.bounded import Recent, Said
from jupyter_agentwatch.detect.endpoints import zone_of
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.detect.unwrap import SHELLS, program_name
from jupyter_agentwatch.events import AnyEvent, Connect, Exec, Exit, Listen

__all__ = ["SHELL_SOCKET_RULES", "ShellSocketDetector"]

CONNECTS: Final = Rule(
    id="shell.connects",
    title="a shell itself makes a network connection",
    severity="high",
    technique="T1059.004",
    rationale="Shells do that by /dev/tcp alone, and little else is done with it than giving the shell away.",
    false_positives=("scripts that wait until a port answers",),
)
AFTER_CONNECT: Final = Rule(
    id="shell.after_connect",
    title="a process that holds a network connection becomes, or starts, a bare shell",
    severity="high",
    technique="T1059.004",
    rationale="A shell without a script or command reads from what it was given: here, very likely the connection.",
    false_positives=(
        "a terminal server",
        "a program that starts an interactive shell for a person and also reports home",
    ),
)

_MEMORY_NS: Final = 120 * 1_000_000_000
# They neither connect nor leave a copy of themselves behind.
_PLAIN: Final = frozenset(
    listed(
        "basename cat chmod cp cut date df dirname du echo env expr false grep egrep gawk mawk sed head tail hostname "
        "id ls mkdir mkfifo mknod mktemp mv nproc printf ps pwd readlink realpath rm sleep sort stat stty tee test "
        "timeout touch tr true tty uname uniq wc which whoami xargs base64 xxd nohup setsid"
    )
)

SHELL_SOCKET_RULES: Final = (CONNECTS, AFTER_CONNECT)
"""Every rule of this detector."""


class _Process(msgspec.Struct):
    """What is known of a process: what it runs, and the last connection or listening socket that it made."""

    program: str = ""
    socket_seq: int = -1
    socket_ns: int = 0
    where: str = ""


class ShellSocketDetector:
    """Follows processes by their ids; an id is forgotten when its process ends or becomes something else."""

    name = "shell sockets"
    kinds = frozenset({"connect", "exec", "exit", "listen"})

    def __init__(self) -> None:
        self._said = Said()
        self._processes: Recent[int, _Process] = Recent(_Process, 4096)
        self._claims: Recent[int, list[list[str]]] = Recent(list, 4096)
        self._others: Recent[int, set[str]] = Recent(set)

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings that this event completes; one for each process."""
        if isinstance(event, Connect):
            return self._connect(event)
        if isinstance(event, Listen):
            if event.op == "listen" and event.transport == "tcp":
                process = self._processes[event.pid]
                process.socket_seq, process.socket_ns, process.where = event.seq, event.t_mono_ns, f"port {event.port}"
        elif isinstance(event, Exec):
            return self._claim(event) if event.basis == "claimed" else self._exec(event)
        elif isinstance(event, Exit):
            self._processes.forget(event.pid)
        return ()

    def _connect(self, event: Connect) -> Iterable[Draft]:
        if event.transport == "unix" or zone_of(event.addr) == "loopback":
            return
        process = self._processes[event.pid]
        where = f"{event.host or event.addr}:{event.port}"
        if event.errno <= 0 and event.verdict != "deny":
            process.socket_seq, process.socket_ns, process.where = event.seq, event.t_mono_ns, where
        shell = process.program in SHELLS or (not process.program and self._only_shells(event.step))
        if shell and self._said.first("connects", event.pid, where):
            yield draft(CONNECTS, event, where, severity="high")

    def _note(self, step: int, program: str) -> None:
        others = self._others[step]
        if program not in SHELLS and program not in _PLAIN and not others:
            others.add(program)

    def _only_shells(self, step: int) -> bool:
        """Return whether a process without a program of its own can only be a subshell: `(exec 3<>/dev/tcp/…)`."""
        return step in self._others and not self._others[step]

    def _claim(self, event: Exec) -> Iterable[Draft]:
        claims = self._claims[event.seq]
        claims.append(event.argv)
        self._note(event.step, program_name(event.path or (event.argv[0] if event.argv else "")))
        process = self._processes[event.pid]
        recent = process.socket_seq >= 0 and event.t_mono_ns - process.socket_ns < _MEMORY_NS
        if recent and _is_bare_shell(event.path, event.argv) and self._said.first("after", event.pid):
            yield draft(
                AFTER_CONNECT, event, f"{' '.join(event.argv)} after {process.where}", evidence=(process.socket_seq,)
            )

    def _exec(self, event: Exec) -> Iterable[Draft]:
        claim = self._claims[event.claim_seq][:1] if event.claim_seq in self._claims else []
        self._claims.forget(event.claim_seq)
        process = self._processes[event.pid]
        process.program = program_name(event.exe)
        self._note(event.step, process.program)
        if event.ppid not in self._processes:
            return
        parent = self._processes[event.ppid]
        recent = parent.socket_seq >= 0 and event.t_mono_ns - parent.socket_ns < _MEMORY_NS
        bare = claim and _is_bare_shell(event.exe, claim[0])
        if (
            recent
            and bare
            and parent.program not in ("sshd", "tmux", "screen", "jupyter")
            and self._said.first("after", event.pid)
        ):
            yield draft(
                AFTER_CONNECT,
                event,
                f"{' '.join(claim[0])}, started after {parent.where}",
                evidence=(parent.socket_seq,),
            )


def _is_bare_shell(path: str, argv: list[str]) -> bool:
    """Whether a shell takes its commands from standard input."""
    name = program_name(path or (argv[0] if argv else ""))
    if name not in SHELLS:
        return False
    return all(word.startswith("-") and not (word[1:2] != "-" and "c" in word) for word in argv[1:])
