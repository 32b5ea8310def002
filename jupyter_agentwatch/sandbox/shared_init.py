"""Init of a sandbox without namespaces: forks commands into the filter and the ruleset, and outlives the supervisor.

Two threads. The first is free of the filter, so that it can end what is left when the supervisor has died and nobody
answers trapped calls; as the nearest ancestor that asks for orphans, it stays the ancestor of everything it started.
The second has taken the filter on, and forks; each child gives up its files (Landlock) before it becomes the command.
The sandbox's processes can neither signal nor trace this process: it is outside of their Landlock domain.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import _thread
import contextlib
import ctypes
import errno
import marshal
import os
import resource
import struct
from collections.abc import Callable
from typing import Any

from jupyter_agentwatch.sandbox import init
from jupyter_agentwatch.sandbox.children import listed_offspring

__all__ = ["main"]

_PR_SET_DUMPABLE, _PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 4, 1, 36, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _PR_CAPBSET_DROP = 47, 4, 24
_TIOCSCTTY = 0x540E
_MAX_MESSAGE = 1 << 20
_MAX_ROUNDS = 1000

_libc = ctypes.CDLL(None, use_errno=True)


def main(control_fd: int) -> None:
    """Set the sandbox up as the first message says, serve requests, and end everything when the supervisor hangs up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(control_fd, False)
    control = socket.socket(fileno=control_fd)
    message = control.recv(_MAX_MESSAGE)
    if not message:  # the supervisor was killed before it could say anything
        return
    setup = marshal.loads(message)  # noqa: S302 -- from the supervisor, of the same Python
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    _drop_rights(setup["last_cap"], setup["numbers"]["capset"])
    _look_at_the_unreadable()
    for name, bound in setup["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (bound, bound + (name == "RLIMIT_CPU")))
    forker = _Forker(lambda: init.install_filter(setup["numbers"]["seccomp"], setup["filter"]))
    listener, tid = forker.start()
    try:
        init.send(control, {"ready": os.getpid(), "forker": tid}, [listener])
    except ConnectionError:  # it was killed meanwhile
        return
    os.close(listener)
    try:
        _SharedServer(control, forker, setup["ruleset"], setup["numbers"]["landlock_restrict_self"]).serve()
    finally:
        _end_everything()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _drop_rights(last_cap: int, capset: int) -> None:
    """Give up what a container's root still has; a thread's rights are its own, so this comes before the second one."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for cap in range(last_cap + 1):
        _libc.prctl(_PR_CAPBSET_DROP, cap, 0, 0, 0)
    _check(_libc.syscall(capset, struct.pack("=Ii", 0x20080522, 0), bytes(24)))


def _look_at_the_unreadable() -> None:
    """Fail where /proc hides who is unreadable (hidepid): a program that made itself so would outlive a kill."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    pid = os.fork()
    if pid == 0:
        try:
            os.close(os.open(f"/proc/{os.getppid()}/stat", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            os._exit(1)
        os._exit(0)
    hidden = os.waitpid(pid, 0)[1]
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))
    if hidden:
        raise OSError(errno.EACCES, "/proc hides processes")


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except OSError:
        return False


def _end_everything() -> None:
    """Kill every descendant. Trapped forks fail by now, so the rounds come to an end."""
    for _ in range(_MAX_ROUNDS):
        living = [pid for pid, state in _descendants() if state not in "ZX"]
        if not living:
            return
        for pid in living:
            init.kill_one(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _descendants(sessions: set[int] | None = None) -> list[tuple[int, str]]:
    children: dict[int, list[tuple[int, int, str]]] = {}
    for pid, parent, session, state in init.processes():
        children.setdefault(parent, []).append((pid, session, state))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.pop(waiting.pop(), [])
        waiting += [pid for pid, _, _ in below]
        found += [(pid, state) for pid, session, state in below if sessions is None or session in sessions]
    return found


class _Forker:
    """A thread that has taken the filter on: what it forks is in it from the first instruction."""

    def __init__(self, take_filter_on: Callable[[], int]) -> None:
        self._take_filter_on = take_filter_on
        self._asked, self._done = _thread.allocate_lock(), _thread.allocate_lock()
        self._asked.acquire()
        self._done.acquire()
        self._job: Callable[[], None] = _nothing
        self._result = self._tid = -1
        self._error: OSError | None = None

    def start(self) -> tuple[int, int]:
        """Return the listener and the thread's id."""
        _thread.start_new_thread(self._run, ())
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._result, self._tid

    def fork(self, job: Callable[[], None]) -> int:
        """Return a child that does the job, which must not return."""
        self._job, self._error = job, None
        self._asked.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        self._tid = _thread.get_native_id()
        # News of a child's end would break off a fork that waits for the supervisor's answer.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._result = self._take_filter_on()
        except OSError as error:
            self._error = error
        self._done.release()
        while True:
            self._asked.acquire()
            try:
                self._result = os.fork()
                if self._result == 0:
                    self._job()
            except OSError as error:
                self._error = error
            self._done.release()


def _nothing() -> None:
    os._exit(127)


class _SharedServer(init.Server):
    def __init__(self, control: socket.socket, forker: _Forker, ruleset: int, restrict: int) -> None:
        super().__init__(control)
        self._forker = forker
        self._ruleset = ruleset
        self._restrict = restrict

    def _start(self, request: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        master, slave = -1, -1
        program = init.find(request["argv"][0], request["env"].get("PATH", os.defpath))
        try:
            if request["pty"]:
                master, slave = os.openpty()
                init.resize(master, request["rows"], request["columns"])
                fds = [slave, slave, slave]
            pid = self._fork_into(program, request, fds)
        except OSError:
            if master >= 0:
                os.close(master)
            raise
        finally:
            if slave >= 0:
                os.close(slave)
        return pid, master

    def _fork_into(self, program: str, request: dict[str, Any], fds: list[int]) -> int:
        heard, told = os.pipe2(os.O_CLOEXEC)
        try:
            pid = self._forker.fork(lambda: self._become(program, request, fds, told))
        finally:
            os.close(told)
        try:
            problem = os.read(heard, 16)  # ends by itself when the program runs
        finally:
            os.close(heard)
        if problem:
            os.waitpid(pid, 0)
            raise OSError(int(problem), os.strerror(int(problem)))
        return pid

    def _become(self, program: str, request: dict[str, Any], fds: list[int], told: int) -> None:
        """In the child: become the command, or say why not. Nothing here may return."""
        try:
            os.setsid()
            for number in signal.valid_signals():
                if number not in {signal.SIGKILL, signal.SIGSTOP}:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for place, fd in enumerate(fds):
                os.dup2(fd, place)
            if request["pty"]:
                import fcntl  # only terminals need it

                fcntl.ioctl(0, _TIOCSCTTY, 0)
            os.chdir(request["cwd"])
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if self._ruleset >= 0:
                _check(_libc.syscall(self._restrict, self._ruleset, 0))
            keep = sorted({told, 2})
            os.closerange(keep[0] + 1, keep[1])
            os.closerange(keep[1] + 1, 4096)
            os.execve(program, request["argv"], request["env"])  # noqa: S606 -- that is what init is for
        except OSError as error:
            os.write(told, str(error.errno or errno.EIO).encode())
        finally:
            os._exit(127)

    def _members(self, sessions: set[int] | None = None) -> list[tuple[int, str]]:
        return _descendants(sessions)

    def _do_freeze(self, request: dict[str, Any], fds: list[int]) -> None:
        """Stop everybody whom the kernel's lists show, and only then look through all of /proc for the rest.

        On a machine with a thousand processes three looks at /proc are 40 ms, in which a miner would go on. What the
        lists miss is on its way to another parent.
        """
        stopped: list[int] = []
        reached: set[int] = set()
        self._frozen = True
        for _ in range(_MAX_ROUNDS):
            listed = listed_offspring(os.getpid())
            if listed is None:
                super()._do_freeze(request, fds)
                return
            new = [pid for pid in listed if pid not in reached]
            if not new:
                break
            for pid in new:
                if _is_stopped(pid):
                    stopped.append(pid)
                init.kill_one(pid, signal.SIGSTOP)
            reached.update(new)
        self._signal_all(signal.SIGSTOP)
        init.send(self._control, {"frozen": stopped})

    def _signal_all(self, sign: int) -> None:
        """Signal whoever is there, until nobody new is: forks wait meanwhile, so the rounds come to an end."""
        reached: set[int] = set()
        for _ in range(_MAX_ROUNDS):
            new = [pid for pid, _ in self._members() if pid not in reached]
            if not new:
                return
            for pid in new:
                init.kill_one(pid, sign)
            reached.update(new)
