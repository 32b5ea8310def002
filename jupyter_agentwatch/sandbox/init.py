"""PID 1 of the sandbox: makes the sandbox's sockets, gives up its rights, takes the filter on, and forks commands.

It runs inside, so nothing that matters may rest on it: the filter is inherited and cannot be taken off, the kernel
ends the PID namespace with it, and its reports are only news. It is handed over as a marshalled code object, must
import nothing of ours, and answers one request at a time on a SOCK_SEQPACKET socket. Its imports are a good part of a
session's start: hence the bare `_socket` and `_signal`, and no JSON library.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import array
import ctypes
import errno
import marshal
import os
import resource
import select
import stat
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Server",
    "find",
    "install_filter",
    "kill_one",
    "main",
    "processes",
    "resize",
    "send",
]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _PR_SET_NO_NEW_PRIVS = 47, 4, 38
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_SO_ATTACH_FILTER = 26
_REMOUNT_READ_ONLY = 1 | 2 | 32 | 4096  # MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND
_BIND, _NODEV_NOEXEC, _WITH_THOSE_BELOW = 4096, 4 | 8, 16384
_BACKLOG = 4096
_MAX_MESSAGE = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def main(control_fd: int) -> None:
    """Set the sandbox up as the first message says, then serve requests until the supervisor hangs up."""
    os.set_inheritable(control_fd, False)
    os.closerange(3, control_fd)
    os.closerange(control_fd + 1, 4096)
    control = socket.socket(fileno=control_fd)
    # Python's own handler would let a command interrupt PID 1; by default the kernel drops it for PID 1.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    message = control.recv(_MAX_MESSAGE)
    if not message:  # the supervisor was killed before it could say anything
        return
    setup = marshal.loads(message)  # noqa: S302 -- from the supervisor, of the same Python
    sockets = _make_sockets()
    _guard_devices()
    _become_ordinary(setup["uid"], setup["gid"], setup["numbers"]["unshare"], _guard_proc())
    _drop_rights(setup["last_cap"], setup["numbers"]["capset"])
    for name, bound in setup["rlimits"].items():
        # At the hard limit of CPU time the kernel sends SIGKILL; a second before, SIGXCPU says why.
        resource.setrlimit(getattr(resource, name), (bound, bound + (name == "RLIMIT_CPU")))
    listener = install_filter(setup["numbers"]["seccomp"], setup["filter"])
    # sendmsg is not trapped on this rung, so the listener can travel by the filtered thread itself.
    fds = [listener, *(s.fileno() for s in sockets)]
    try:
        send(control, {"ready": os.getpid()}, fds)
    except ConnectionError:  # it was killed meanwhile
        return
    os.close(listener)
    for made in sockets:
        made.close()
    Server(control).serve()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def send(control: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    """Send news or an answer to the supervisor."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    # JSON, because the supervisor must not unmarshal what comes from inside. All keys are ours, all values numbers.
    text = repr(message).replace("'", '"').replace("True", "true").replace("False", "false")
    control.sendmsg([text.encode()], rights)


def _make_sockets() -> list[socket.socket]:
    """DNS (udp, tcp), gateway listeners and parking listeners, the latter two for IPv4 and IPv6."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 53))
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    tcp.bind(("127.0.0.1", 53))
    tcp.listen(64)
    made = [udp, tcp]
    for parking in (False, True):
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            listening = socket.socket(family, socket.SOCK_STREAM)
            if parking:
                _park(listening)
            listening.bind((address, 0))
            listening.listen(_BACKLOG)
            made.append(listening)
    return made


def _guard_devices() -> None:
    # The nodes are the machine's own. Where root runs us, its user id could change their mode for everybody; a device
    # takes data on a read-only mount as well. bubblewrap's --remount-ro would add nodev.
    for name in os.listdir("/dev"):
        path = f"/dev/{name}"
        if stat.S_ISCHR(os.lstat(path).st_mode):
            _check(_libc.mount(None, path.encode(), None, _REMOUNT_READ_ONLY, None))


def _guard_proc() -> int:
    """Cover /proc by itself read-only, and return a descriptor of the one below.

    Where root runs us, its user id could change the mode of the machine's own entries for everybody; and by
    /proc/<pid>/mem a command could act as a process of another step.
    """
    below = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _check(_libc.mount(b"/proc", b"/proc", None, _BIND | _WITH_THOSE_BELOW, None))
    _check(_libc.mount(None, b"/proc", None, _REMOUNT_READ_ONLY | _NODEV_NOEXEC, None))
    return below


def _park(listening: socket.socket) -> None:
    # A filter that drops every packet keeps a SYN unanswered: the caller's socket is truly in progress until the
    # gateway, bound to the same port, meets it by a simultaneous open.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    drop = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(drop)))


def _become_ordinary(uid: int, gid: int, unshare: int, proc: int) -> None:
    """Map root, which bubblewrap needed us to be for the terminals' file system, to an ordinary user.

    The network namespace stays with the first user namespace, so no right that a process could gain in this second one
    reaches it. Programs see no root: archives unpack without changes of owner, servers that refuse root start.
    """
    clone_newuser = 0x10000000
    _check(_libc.syscall(unshare, clone_newuser))
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} 0 1"), ("gid_map", f"{gid} 0 1")):
        file = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(file, line.encode())
        os.close(file)
    os.close(proc)


def _drop_rights(last_cap: int, capset: int) -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    for cap in range(last_cap + 1):
        _libc.prctl(_PR_CAPBSET_DROP, cap, 0, 0, 0)  # refused without CAP_SETPCAP; the sets below are what counts
    header = struct.pack("=Ii", 0x20080522, 0)
    _check(_libc.syscall(capset, header, bytes(24)))
    # Not dumpable: no one of the same user may read or write this process.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def install_filter(seccomp: int, program: bytes) -> int:
    """Take the filter on, for good, and return its listener."""
    code = ctypes.create_string_buffer(program, len(program))
    filt = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    result = _libc.syscall(seccomp, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, filt)
    if result < 0 and ctypes.get_errno() == errno.EINVAL:  # before Linux 5.19
        result = _libc.syscall(seccomp, _SET_MODE_FILTER, _NEW_LISTENER, filt)
    return _check(result)


class Server:
    """Answers the supervisor's requests, one at a time, and tells of processes that have ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._steps: dict[int, int] = {}
        self._frozen = False
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until the supervisor hangs up."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        try:
            while True:
                for fd, _ in poller.poll():
                    if fd == self._wake_read:
                        os.read(fd, 512)
                        self._reap()
                    elif not self._answer():
                        return
        except ConnectionError:  # it was killed, and has left what we had said unread
            return

    def _answer(self) -> bool:
        data, ancillary, _, _ = self._control.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        fds = array.array("i")
        for _, _, rights in ancillary:
            fds.frombytes(rights)
        try:
            request = marshal.loads(data)  # noqa: S302 -- as in `main`
            if request["op"] == "in_file":
                with open(fds.pop(), "rb") as file:
                    request = marshal.load(file)  # noqa: S302 -- as in `main`
            getattr(self, "_do_" + request["op"])(request, list(fds))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _do_spawn(self, request: dict[str, Any], fds: list[int]) -> None:
        if self._frozen:
            send(self._control, {"spawned": 0, "errno": errno.EAGAIN})
            return
        try:
            pid, master = self._start(request, fds)
        except OSError as error:
            send(self._control, {"spawned": 0, "errno": error.errno or errno.EIO})
            return
        self._steps[pid] = request["step"]
        send(self._control, {"spawned": pid, "errno": 0}, [master] if master >= 0 else None)
        if master >= 0:
            os.close(master)

    def _start(self, request: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        """Start a command; return its process and its terminal's master, or -1."""
        master, slave = -1, ""
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, fd, i) for i, fd in enumerate(fds)]
        try:
            if request["pty"]:
                master, opened = os.openpty()
                slave = os.ttyname(opened)
                resize(master, request["rows"], request["columns"])
                os.close(opened)
                # Opened by the new session's leader, so that it becomes its controlling terminal.
                actions = [(os.POSIX_SPAWN_OPEN, 0, slave, os.O_RDWR, 0)]
                actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
            os.chdir(request["cwd"])
            pid = os.posix_spawn(
                find(request["argv"][0], request["env"].get("PATH", os.defpath)),
                request["argv"],
                request["env"],
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=signal.valid_signals(),
            )
        except OSError:
            if master >= 0:
                os.close(master)
            raise
        return pid, master

    def _members(self, sessions: set[int] | None = None) -> list[tuple[int, str]]:
        """All processes but init as (pid, state letter), or those of some sessions."""
        return [(pid, state) for pid, _, session, state in processes() if sessions is None or session in sessions]

    def _signal_all(self, sign: int) -> None:
        try:
            os.kill(-1, sign)
        except ProcessLookupError:
            return

    def _do_signal(self, request: dict[str, Any], _fds: list[int]) -> None:
        for pid, step in self._steps.items():
            if step == request["step"]:
                _kill_group(pid, request["signal"])

    def _do_freeze(self, _request: dict[str, Any], _fds: list[int]) -> None:
        # kill(-1) holds the task list's lock over all members, and a fork with a pending signal restarts: no
        # process escapes. Init is not stopped by its own call, so it must refuse commands.
        self._frozen = True
        stopped = [pid for pid, state in self._members() if state == "T"]
        self._signal_all(signal.SIGSTOP)
        send(self._control, {"frozen": stopped})

    def _do_thaw(self, request: dict[str, Any], _fds: list[int]) -> None:
        self._frozen = False
        asleep = set(request["keep"])  # were stopped before the freeze, by themselves
        if not asleep:
            self._signal_all(signal.SIGCONT)
        else:
            for pid, _ in self._members():
                if pid not in asleep:
                    kill_one(pid, signal.SIGCONT)
        send(self._control, {"thawed": True})

    def _do_kill_sessions(self, request: dict[str, Any], _fds: list[int]) -> None:
        sessions = set(request["sessions"])
        killed, rounds = 0, 0
        while rounds < 200:  # a forking process is caught in the next round; each round stops all it has seen
            members = [pid for pid, state in self._members(sessions) if state not in "ZX"]
            if not members:
                break
            for sign in (signal.SIGSTOP, signal.SIGKILL):
                for pid in members:
                    kill_one(pid, sign)
            killed += len(members)
            rounds += 1
            self._reap()
        send(self._control, {"killed": killed})

    def _do_sockets(self, request: dict[str, Any], _fds: list[int]) -> None:
        family = socket.AF_INET6 if request["ipv6"] else socket.AF_INET
        made = [socket.socket(family, socket.SOCK_STREAM) for _ in range(request["count"])]
        send(self._control, {"sockets": len(made), "ipv6": request["ipv6"]}, [s.fileno() for s in made])
        for each in made:
            each.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            news: dict[str, Any] = {"pid": pid, "status": status, "step": self._steps.pop(pid, 0)}
            news |= {"user": usage.ru_utime, "system": usage.ru_stime, "rss": usage.ru_maxrss * 1024}
            send(self._control, {"exit": news})


def find(name: str, path: str) -> str:
    """Look a program up in PATH as execvp does, but without a trapped call for each folder."""
    if "/" in name:
        return name
    number = errno.ENOENT
    for folder in path.split(":"):
        candidate = f"{folder or '.'}/{name}"
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            number = errno.EACCES
    raise OSError(number, os.strerror(number))


def kill_one(pid: int, sign: int) -> None:
    """Signal a process, which may be gone."""
    try:
        os.kill(pid, sign)
    except (ProcessLookupError, PermissionError):
        return


def _kill_group(pid: int, sign: int) -> None:
    try:
        os.killpg(pid, sign)
    except (ProcessLookupError, PermissionError):
        return


def processes() -> list[tuple[int, int, int, str]]:
    """All processes but this one as (pid, parent, session, state letter)."""
    found = []
    own = str(os.getpid())
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == own:
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        # The main thread may have ended before the others: then it is they who run.
        is_led_by_a_dead = fields[0] in b"ZX" and int(fields[17]) > 1
        state = "R" if is_led_by_a_dead else fields[0].decode()
        found.append((int(name), int(fields[1]), int(fields[3]), state))
    return found


def resize(master: int, rows: int, columns: int) -> None:
    """Give a terminal its size."""
    import fcntl  # only terminals need it
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))


if __name__ == "__main__":
    main(int(sys.argv[1]))
