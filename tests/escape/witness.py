"""What is outside of the sandbox, and sees what happens to it: files, servers, processes, memory, the machine.

Everything here is made for one run and is nobody's else. What changed is told by looking from outside, so that a
program inside that says nothing, or lies, is found out all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import resource
import secrets
import selectors
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from tests.docker_like import OTHER_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Outside"]

_VICTIM: Final = """
import os, signal, sys
os.chdir(sys.argv[1])
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b"signalled"))
held = open("secret")
keep = [open("secret") for _ in range(8)]
print("here", flush=True)
while True:
    signal.pause()
"""
_USUAL_FILES: Final = 1024
"""Soft limit of open files that most programs of a user have."""
_IPC_CREAT: Final = 0o1000
_PLACES: Final = ("/usr/bin/env", "/etc/passwd", "/etc/hosts")
_NAME_ANSWERS: Final = {
    b"rebind.": "127.0.0.1", b"rebind-own.": OTHER_ADDRESS, b"rebind-mapped.": "10.0.0.1", b"": "192.0.2.1",
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmdt.argtypes = [ctypes.c_void_p]


class Outside:
    """Victims and witnesses of one run.

    Args:
        base: Folder of the run, ours alone.
        workspace: The workspace of its watches: one server's socket lies there.
        names: Serve as the machine's name server (port 53 of loopback).
    """

    def __init__(self, base: Path, workspace: Path, *, names: bool) -> None:
        self.secret = secrets.token_hex(16)
        self.folder, self.home = base / "outside", base / "home"
        self._workspace = workspace
        self._arrivals: list[str] = []
        self._allowed = 0
        self.asked_names: list[bytes] = []
        self._held = contextlib.ExitStack()
        self._selector = selectors.DefaultSelector()
        self._ports: dict[str, int] = {}
        self._make_files()
        self._make_servers(names=names)
        self._make_processes()
        self._make_memory()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop, b"x")
        self._thread.join()
        self._held.close()
        self._selector.close()

    # -- what is there -------------------------------------------------------------------------------------------

    def _make_files(self) -> None:
        self.folder.mkdir(mode=0o700)
        self._write_secrets()
        (self.folder / "link").symlink_to(f"to-{self.secret}")

    def _write_secrets(self) -> None:
        for path in (self.folder / "secret", self.home / ".netrc", self.home / ".ssh" / "id_rsa"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"a secret: {self.secret}\n")
            path.chmod(0o600)
        with contextlib.suppress(OSError):
            os.setxattr(self.folder / "secret", "user.mark", self.secret.encode())
        (self.folder / "program").write_text(f"#!/bin/sh\necho {self.secret}\n")
        (self.folder / "program").chmod(0o700)

    def _make_servers(self, *, names: bool) -> None:
        reader, self._stop = os.pipe()
        self._held.callback(os.close, self._stop)
        self._held.callback(os.close, reader)
        self._selector.register(reader, selectors.EVENT_READ, None)
        self._ports = {
            "tcp": self._listens("tcp", socket.AF_INET, ("127.0.0.1", 0)),
            "tcp6": self._listens("tcp6", socket.AF_INET6, ("::1", 0)),
            "every": self._listens("every", socket.AF_INET, ("0.0.0.0", 0)),
            "shared": self._listens("shared", socket.AF_INET, ("127.0.0.1", 0), shared=True),
            "allowed": self._listens("allowed", socket.AF_INET, ("127.0.0.1", 0)),
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._ports["free"] = free.getsockname()[1]
        self.unix, self.docker = self.folder / "outside.sock", self._workspace / "docker.sock"
        self.abstract = f"agentwatch-{self.secret[:8]}"
        for name in (str(self.unix), str(self.docker), "\0" + self.abstract):
            self._listens(f"unix {name!r}", socket.AF_UNIX, name)
        udp = self._held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("0.0.0.0", 0))
        self._ports["udp"] = udp.getsockname()[1]
        self._selector.register(udp, selectors.EVENT_READ, lambda: self._datagram(udp))
        if names:
            asked = self._held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            asked.bind(("127.0.0.1", 53))
            self._selector.register(asked, selectors.EVENT_READ, lambda: self._answer_name(asked))

    def _listens(self, name: str, family: int, address: Any, *, shared: bool = False) -> int:
        listening = self._held.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(4096)
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ, lambda: self._arrived(name, listening))
        return 0 if family == socket.AF_UNIX else int(listening.getsockname()[1])

    def _make_processes(self) -> None:
        self.pty, slave = os.openpty()
        self._held.callback(os.close, self.pty)
        self.terminal = os.ttyname(slave)
        os.close(slave)
        self._make_victim()
        self._held.callback(self._end_victim)

    def _make_victim(self) -> None:
        slave = os.open(self.terminal, os.O_RDWR | os.O_NOCTTY)
        environment = {"API_TOKEN": self.secret, "PATH": os.environ["PATH"]}
        argv = [sys.executable, "-S", "-c", _VICTIM, str(self.folder), f"--token={self.secret}"]
        self.victim = subprocess.Popen(argv, stdin=slave, stdout=subprocess.PIPE, env=environment)
        os.close(slave)
        assert self.victim.stdout is not None
        assert self.victim.stdout.readline() == b"here\n"
        self._heard = self.victim.stdout.fileno()
        os.set_blocking(self._heard, False)

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.wait()
        if self.victim.stdout is not None:
            self.victim.stdout.close()

    def _make_memory(self) -> None:
        self.shm_key = int(self.secret[:7], 16)
        self._shm = _libc.shmget(self.shm_key, 4096, _IPC_CREAT | 0o600)
        self._shm_at = _libc.shmat(self._shm, None, 0)
        ctypes.memmove(self._shm_at, self.secret.encode(), len(self.secret))
        self._held.callback(_libc.shmctl, self._shm, 0, None)
        self._held.callback(_libc.shmdt, self._shm_at)
        self.named = f"agentwatch-{self.secret[:8]}"
        shm = Path("/dev/shm") / self.named
        shm.write_text(self.secret)
        self._held.callback(lambda: shm.unlink(missing_ok=True))
        self.queue = f"/{self.named}"
        opened = _libc.mq_open(self.queue.encode(), os.O_RDWR | os.O_CREAT, 0o600, None)
        self._queue = opened if opened >= 0 else None
        if self._queue is not None:
            _libc.mq_send(self._queue, self.secret.encode(), len(self.secret), 0)
            self._held.callback(_libc.mq_unlink, self.queue.encode())
            self._held.callback(os.close, opened)

    # -- servers -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    key.data()

    def _arrived(self, name: str, listening: socket.socket) -> None:
        caller, _ = listening.accept()
        with caller:
            if name == "allowed":
                self._allowed += 1
            elif name != "shared":  # we meet that one ourselves
                self._arrivals.append(name)

    def _datagram(self, sock: socket.socket) -> None:
        sock.recv(4096)
        self._arrivals.append("udp")

    def _answer_name(self, sock: socket.socket) -> None:
        wire, caller = sock.recvfrom(4096)
        name, at = b"", 12
        while wire[at]:
            name += wire[at + 1 : at + 1 + wire[at]] + b"."
            at += 1 + wire[at]
        self.asked_names.append(name)
        (kind,) = struct.unpack_from(">H", wire, at + 1)
        question = wire[12 : at + 5]
        answer = b""
        if kind == 1:
            host = next(host for start, host in _NAME_ANSWERS.items() if name.startswith(start))
            answer = struct.pack(">3HIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(host)
        head = wire[:2] + struct.pack(">5H", 0x8180, 1, 1 if answer else 0, 0, 0)
        sock.sendto(head + question + answer, caller)

    # -- questions from inside -----------------------------------------------------------------------------------

    def answers(self, question: dict[str, Any]) -> Any:
        """Do, outside, what a program inside asks for: it has been told to be met."""
        if "connect" in question:
            host, port = question["connect"]
            return _reaches(socket.AF_INET, (host, port))
        if "serve" in question:
            return self._serves_later(question["serve"])
        if "unix" in question:
            return _reaches(socket.AF_UNIX, question["unix"])
        if "quotas" in question:
            return {"descriptors in flight": _works(_pass_a_descriptor), "notices": _works(_be_noticed)}
        return None

    def _serves_later(self, name: str) -> bool:
        try:
            self._listens(f"unix {name!r}", socket.AF_UNIX, name)
        except OSError:
            return False
        return True

    def mend(self) -> None:
        """Put back what a program has changed that nothing held: the victim, and files that others are to find."""
        if self.victim.poll() is not None or _process(self.victim.pid)[0] is not False:
            self._end_victim()
            self._make_victim()
        os.chmod(self.folder, 0o700)
        self._write_secrets()
        if not self.docker.exists():
            self._listens(f"unix {str(self.docker)!r}", socket.AF_UNIX, str(self.docker))
        if not self.unix.exists():
            self._listens(f"unix {str(self.unix)!r}", socket.AF_UNIX, str(self.unix))

    # -- what has become of it -----------------------------------------------------------------------------------

    def world(self) -> dict[str, Any]:
        """Return what programs inside are told of the outside; the secret is not among it."""
        return self._ports | {
            "outside": str(self.folder), "secret": str(self.folder / "secret"), "home": str(self.home),
            "unix": str(self.unix), "docker": str(self.docker), "abstract": self.abstract, "pty": self.terminal,
            "shm": self.shm_key, "shmid": self._shm, "queue": self.queue, "named": self.named,
            "other": _other_address(),
            "owner_env": f"/proc/{os.getpid()}/environ", "stub": 53,
        }  # fmt: skip

    def pids(self, supervisor: int) -> dict[str, int]:
        """Return processes outside, by what they are."""
        children = psutil.Process(supervisor).children(recursive=True)
        return {"victim": self.victim.pid, "owner": os.getpid(), "supervisor": supervisor, "init": children[0].pid}

    @property
    def allowed(self) -> int:
        """Number of connections to the one server that a policy may allow."""
        return self._allowed

    def state(self, supervisor: int) -> dict[str, Any]:
        """Return everything that nothing inside may change, by what it is."""
        found: dict[str, Any] = {}
        for folder in (self.folder, self.home):
            for path in (folder, *sorted(folder.rglob("*"))):
                found[f"file {path}"] = _file(path)
        package = Path(__file__).parent.parent.parent / "jupyter_agentwatch" / "__init__.py"
        for name in (*_PLACES, os.path.realpath(sys.executable), str(package)):
            found[f"file {name}"] = _file(Path(name))
        for name, pid in {"victim": self.victim.pid, "owner": os.getpid(), "supervisor": supervisor}.items():
            found[f"process {name}"] = _process(pid)
        with contextlib.suppress(BlockingIOError):
            if os.read(self._heard, 4096):
                self._arrivals.append("a signal")
        found["arrivals"] = tuple(self._arrivals)
        found["names"] = tuple(name for name in self.asked_names if b"tunnel" in name or b"\0" in name)
        found["machine"] = (socket.gethostname(), _text("/proc/net/route"), _text("/proc/net/if_inet6"))
        found["links"] = _text("/proc/net/fib_trie")
        found["core pattern"] = _text("/proc/sys/kernel/core_pattern")
        found["memory"] = ctypes.string_at(self._shm_at, len(self.secret)) == self.secret.encode()
        found["named memory"] = _text(f"/dev/shm/{self.named}") == self.secret
        return found


def _other_address() -> str:
    """Return an address of this machine that is not loopback's, or "" where it has none."""
    found = [
        each.address for all_of in psutil.net_if_addrs().values() for each in all_of if each.family == socket.AF_INET
    ]
    outer = [address for address in found if not address.startswith("127.")]
    return OTHER_ADDRESS if OTHER_ADDRESS in outer else next(iter(outer), "")


def _file(path: Path) -> tuple[Any, ...] | None:
    try:
        info = path.lstat()
    except OSError:
        return None
    kind = (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
    return (*kind, content)


def _process(pid: int) -> tuple[Any, ...]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ("gone",)
    is_stopped = stat[0] in {b"T", b"t", b"Z", b"X"}
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    score = _text(f"/proc/{pid}/oom_score_adj")
    return (is_stopped, stat[16], limits, sorted(os.sched_getaffinity(pid)), os.sched_getscheduler(pid), score)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _reaches(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(1)
        try:
            made.connect(address)
        except OSError:
            return False
    return True


def _works(act: Callable[[], None]) -> bool:
    try:
        act()
    except OSError:
        return False
    return True


def _pass_a_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    one, other = socket.socketpair()
    resource.setrlimit(resource.RLIMIT_NOFILE, (_USUAL_FILES, hard))  # the kernel compares with the sender's own
    try:
        with one, other:
            socket.send_fds(one, [b"x"], [other.fileno()])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _be_noticed() -> None:
    fd = _libc.inotify_init1(0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    os.close(fd)
