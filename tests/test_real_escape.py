"""Real programs that try to get out of the sandbox, and what each of them gets and leaves on record."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import jupyter_agentwatch
from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.events import Connect, Exec, FileOp, Finding, Listen, Step
from jupyter_agentwatch.policy import Filesystem
from jupyter_agentwatch.sandbox.syscalls import MACHINES
from jupyter_agentwatch.wire.runtime import control_socket
from tests.outside import answer_of, last_step, put, recorded, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sandbox

MACHINE: Final = MACHINES[os.uname().machine]
NUMBER: Final = MACHINE.numbers
TOKEN: Final = "token-that-must-stay-outside-5d0c"
SECRET: Final = b"secret that must stay outside"
AT_FDCWD: Final = -100
GETPPID: Final = {"x86_64": 110, "aarch64": 173}[os.uname().machine]
NEW_USER, NEW_NET, NEW_PID, NEW_NS = 0x10000000, 0x40000000, 0x20000000, 0x00020000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """A watch with the default policy for all tests that leave it as it was; a token is set in its owner's process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_TOKEN", TOKEN)
        with Watch(workspace=tmp_path_factory.mktemp("project")) as watch:
            yield watch


def claimed(watch: Watch) -> set[tuple[str, str]]:
    """Return (path, verdict) of all file events of the last step; each must say that it is a claim of that step."""
    events = recorded(watch, FileOp, last_step(watch))
    assert {event.basis for event in events} <= {"claimed"}
    return {(event.path, event.verdict) for event in events}


# Files


def test_nothing_but_the_allow_list_exists(shared: Watch) -> None:
    """/ holds the system, an empty home, /tmp, /dev and /proc, and the folders on the way to what was granted."""
    (top, home, devices) = answer_of(shared, "files.py", "list", ["/", "/home/agent", "/dev"])
    granted = {Path(jupyter_agentwatch.__file__), shared.workspace, Path(os.__file__).resolve()}
    ways = {path.parts[1] for path in granted}
    system = {"bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"}
    ways |= {Path(prefix).parts[1] for prefix in (sys.prefix, sys.base_prefix)}
    assert set(top) <= system | ways
    assert home == []
    known = {"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty"}
    assert set(devices) == known | {"urandom", "zero"}


def test_what_lies_outside_the_workspace_cannot_be_written(shared: Watch) -> None:
    """The system, /, /proc/sys, the Python environment and our own package are read-only, and each try is on record."""
    paths = [
        *("/new", "/usr/new", "/usr/bin/env", "/etc/passwd", "/etc/new", "/home/new", "/dev/new"),
        *("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches"),
        *("/proc/sysrq-trigger", f"{sys.prefix}/new", f"{sys.base_prefix}/new", "/proc/self/root/usr/new"),
        f"{shared.workspace}/../../../../../../usr/new",
    ]
    got = answer_of(shared, "files.py", "write", paths)
    assert set(got) <= {"EROFS", "EACCES", "EPERM", "ENOENT"}, dict(zip(paths, got, strict=True))
    assert {(path, "allow") for path in paths} <= claimed(shared)


def test_the_settings_of_the_machine_and_its_devices_cannot_be_changed(shared: Watch) -> None:
    """Not one setting below /proc and no mode of a device can be changed, also where root runs the watch."""
    program = """
import os, stat
for folder, folders, names in os.walk("/proc"):
    folders[:] = [name for name in folders if not name.isdigit() and name not in {"self", "thread-self"}]
    for path in (os.path.join(folder, name) for name in names):
        try:
            with open(path, "r+b", buffering=0) as file:
                file.write(file.read(4096))
        except (OSError, ValueError):
            continue
        print(path)
for name in os.listdir("/dev"):
    path = f"/dev/{name}"
    mode = os.lstat(path).st_mode
    if stat.S_ISCHR(mode):
        try:
            os.chmod(path, stat.S_IMODE(mode))
        except OSError:
            continue
        print(path)
with open("/dev/null", "wb") as null, open("/dev/zero", "rb") as zero:
    null.write(zero.read(3))
print("end")
"""
    result = shared.run(["python3", "-c", program], timeout=20)
    assert result.stdout.split() == ["end"], result.stderr


def test_no_entry_of_proc_changes_its_mode_and_no_file_becomes_setuid(shared: Watch) -> None:
    """Where root runs the watch, /proc's entries are its own; a setuid file would outlive the watch as the user's."""
    program = """
import os, stat
for folder, folders, names in os.walk("/proc"):
    folders[:] = [name for name in folders if not name.isdigit() and name not in {"self", "thread-self"}]
    for path in (os.path.join(folder, name) for name in (*names, *folders)):
        try:
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))
        except OSError:
            continue
        print(path)
with open("tool", "w") as tool:
    for way in (os.fchmod, lambda _, mode: os.chmod("tool", mode)):
        for mode in (0o4755, 0o6755):
            try:
                way(tool.fileno(), mode)
                print(oct(mode))
            except PermissionError:
                pass
    os.fchmod(tool.fileno(), 0o755)
"""
    result = shared.run(["python3", "-c", program])
    assert (result.stdout, result.stderr) == ("", "")
    assert (shared.workspace / "tool").stat().st_mode & 0o7777 == 0o755


def test_links_do_not_lead_out(shared: Watch, tmp_path: Path) -> None:
    """A symbolic link in the workspace reaches only what exists inside, and nothing outside can be hard-linked."""
    (tmp_path / "secret").write_bytes(SECRET)
    (shared.workspace / "way-out").symlink_to(tmp_path)
    (shared.workspace / "to-usr").symlink_to("/usr")
    (shared.workspace / "to-root").symlink_to("/proc/self/root")
    (shared.workspace / "to-init").symlink_to("/proc/1/root")
    read = answer_of(shared, "files.py", "read", ["way-out/secret", "to-init/etc/passwd", "to-root/etc/shadow"])
    assert read == ["ENOENT", "EACCES", "ENOENT"]
    written = answer_of(shared, "files.py", "write", ["way-out/new", "to-usr/new", "to-root/usr/new"])
    assert written == ["ENOENT", "EROFS", "EROFS"]
    linked = shared.run(["ln", "/usr/bin/env", "linked"])
    assert not linked.ok
    linked = shared.run(["python3", "-c", "import os; os.link('/etc/passwd', 'passwd')"])
    assert "Errno 18" in linked.stderr
    ops = {(event.op, event.verdict, event.basis) for event in recorded(shared, FileOp, last_step(shared))}
    assert ("link", "allow", "claimed") in ops or ("linkat", "allow", "claimed") in ops
    assert list(tmp_path.iterdir()) == [tmp_path / "secret"]


def test_what_is_hidden_does_not_exist(shared: Watch) -> None:
    """Credentials, the log, the control socket, Jupyter's folders and other homes are not there at all."""
    home = Path.home()
    runtime = os.environ["JUPYTER_RUNTIME_DIR"]
    paths = [
        *(str(shared.log), f"{shared.log}.anchor", str(control_socket(shared.id)), runtime, "/etc/shadow"),
        *(str(home / name) for name in (".ssh", ".bash_history", ".aws", ".config", ".netrc", ".jupyter")),
        *("/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/run", "/var", "/sys", "/boot", "/mnt", "/srv", "/opt/secret"),
        *("/var/run/docker.sock", "/run/docker.sock", "/tmp/.X11-unix"),
    ]
    got = answer_of(shared, "files.py", "read", paths)
    assert dict(zip(paths, got, strict=True)) == dict.fromkeys(paths, "ENOENT")


def test_secrets_of_the_owner_are_nowhere(shared: Watch) -> None:
    """A token in the owner's environment is in no environment, file, name or memory map inside."""
    assert answer_of(shared, "search.py", TOKEN[::-1], timeout=120) == []
    plain = shared.run("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; set")
    assert TOKEN not in plain.stdout + plain.stderr
    assert "AGENTWATCH" not in plain.stdout


def test_a_command_inherits_no_descriptor(shared: Watch) -> None:
    """A command holds its three standard streams and nothing else of the supervisor's or init's."""
    result = shared.run(["python3", "-c", "import os; print(os.listdir('/proc/self/fd'))"])
    assert result.stdout.strip() == "['0', '1', '2', '3']"  # 3 is the listing itself


def test_what_is_granted_inside_the_workspace_cannot_be_moved_away(tmp_path: Path) -> None:
    """A read-only or hidden place deep in the workspace stays where it is: it cannot be replaced by moving a parent."""
    for name in ("deep/data/kept", "deep/veil/secret"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(SECRET)
    policy = Policy(filesystem=Filesystem(read=["deep/data"], hide=["deep/veil"]))
    with Watch(policy, tmp_path) as watch:
        assert watch.run("cat deep/data/kept").stdout.encode() == SECRET
        assert not watch.run("cat deep/veil/secret").ok
        watch.run("echo forged > deep/data/kept; mv deep/data elsewhere; mv deep other; mkdir -p deep/data; "
                  "echo forged > deep/data/kept")  # fmt: skip
        assert not watch.run("cat other/veil/secret deep/veil/secret").ok
    assert (tmp_path / "deep/data/kept").read_bytes() == SECRET
    assert (tmp_path / "deep/veil/secret").read_bytes() == SECRET


# Processes


def test_nobody_outside_can_be_signalled(shared: Watch) -> None:
    """Process ids of the machine mean nothing inside; the owner and the supervisor live on."""
    pids = [os.getpid(), shared.status().pid, os.getppid()]
    program = """
import os, sys
for pid in map(int, sys.argv[1:]):
    try:
        os.kill(pid, 9)
    except OSError as error:
        print(error.errno)
"""
    outside = [pid for pid in pids if pid > 300]
    got = shared.run(["python3", "-c", program, *map(str, outside)])
    assert got.stdout.split() == ["3"] * len(outside)
    assert shared.status().state == "closed"


def test_init_and_siblings_cannot_be_taken_over(shared: Watch) -> None:
    """Ptrace and process_vm_* give EPERM, init's memory cannot be opened, and no signal stops or ends init."""
    numbers = {name: NUMBER[name] for name in ("ptrace", "process_vm_readv", "process_vm_writev")}
    found = answer_of(shared, "siblings.py", numbers)
    signals = {key: value for key, value in found.items() if key.endswith("to init")}
    assert set(signals.values()) == {"sent"}
    assert found.pop("sibling's end") == "0"
    rest = {key: value for key, value in found.items() if key not in signals}
    assert set(rest.values()) <= {"EPERM", "EACCES", "EROFS"}, rest
    assert shared.run(["true"]).ok


def test_no_command_can_act_as_a_process_of_another(shared: Watch) -> None:
    """The memory of a process of an earlier step cannot be opened for writing, not even by way of /proc."""
    waiting = shared.start(["sh", "-c", "echo $$; read line"], stdin=True)
    pid = int(wait_for_line(waiting, b"\n"))
    got = answer_of(shared, "files.py", "write", [f"/proc/{pid}/mem", f"/proc/{pid}/task/{pid}/mem"])
    waiting.close_stdin()
    waiting.wait()
    assert got == ["EROFS", "EROFS"]


def test_terminals_cannot_be_typed_into(shared: Watch) -> None:
    """TIOCSTI and TIOCLINUX give EPERM, with high bits set as well."""
    assert answer_of(shared, "terminal.py")[0::2] == ["EPERM", "EPERM"]


# System calls


REFUSED: Final[dict[str, tuple[str, list[object]]]] = {
    "unshare user": ("EPERM", [NUMBER["unshare"], NEW_USER]),
    "unshare mount": ("EPERM", [NUMBER["unshare"], NEW_NS]),
    "unshare network": ("EPERM", [NUMBER["unshare"], NEW_NET]),
    "clone with a user namespace": ("EPERM", [NUMBER["clone"], NEW_USER | signal.SIGCHLD, 0, 0, 0, 0]),
    "clone with high bits": ("EPERM", [NUMBER["clone"], 1 << 40 | NEW_USER | signal.SIGCHLD, 0, 0, 0, 0]),
    "clone3": ("ENOSYS", [NUMBER["clone3"], {"bytes": struct.pack("=Q", NEW_USER).hex() + "00" * 80}, 88]),
    "mount": ("EPERM", [NUMBER["mount"], "none", "/tmp", "tmpfs", 0, ""]),
    "umount": ("EPERM", [NUMBER["umount2"], "/tmp", 2]),
    "chroot": ("EPERM", [NUMBER["chroot"], "/tmp"]),
    "pivot_root": ("EPERM", [NUMBER["pivot_root"], "/tmp", "/tmp"]),
    "setns": ("EPERM", [NUMBER["setns"], 0, 0]),
    "open_tree": ("EPERM", [NUMBER["open_tree"], AT_FDCWD, "/", 1]),
    "move_mount": ("EPERM", [NUMBER["move_mount"], AT_FDCWD, "/", AT_FDCWD, "/tmp", 0]),
    "fsopen": ("EPERM", [NUMBER["fsopen"], "tmpfs", 0]),
    "mount_setattr": ("EPERM", [NUMBER["mount_setattr"], AT_FDCWD, "/usr", 0, {"bytes": "00" * 32}, 32]),
    "io_uring_setup": ("ENOSYS", [NUMBER["io_uring_setup"], 8, {"bytes": "00" * 120}]),
    "io_uring_enter": ("ENOSYS", [NUMBER["io_uring_enter"], 0, 0, 0, 0, 0]),
    "io_uring_register": ("ENOSYS", [NUMBER["io_uring_register"], 0, 0, 0, 0]),
    "openat2": ("ENOSYS", [NUMBER["openat2"], AT_FDCWD, "/etc/passwd", {"bytes": "00" * 24}, 24]),
    "bpf": ("EPERM", [NUMBER["bpf"], 0, {"bytes": "00" * 64}, 64]),
    "keyctl": ("EPERM", [NUMBER["keyctl"], 0, -3, 0, 0, 0]),
    "add_key": ("EPERM", [NUMBER["add_key"], "user", "name", "value", 5, -3]),
    "userfaultfd": ("EPERM", [NUMBER["userfaultfd"], 1]),
    "perf_event_open": ("EPERM", [NUMBER["perf_event_open"], {"bytes": "00" * 128}, 0, -1, -1, 0]),
    "open_by_handle_at": ("EPERM", [NUMBER["open_by_handle_at"], AT_FDCWD, {"bytes": "00" * 64}, 0]),
    "name_to_handle_at": ("EPERM", [NUMBER["name_to_handle_at"], AT_FDCWD, "/etc", {"bytes": "00" * 64}, 0, 0]),
    "pidfd_getfd": ("EPERM", [NUMBER["pidfd_getfd"], 0, 0, 0]),
    "personality": ("EPERM", [NUMBER["personality"], 0x0040000]),
    "reboot": ("EPERM", [NUMBER["reboot"], 0xFEE1DEAD, 672274793, 0, 0]),
    "the call after the newest known": ("ENOSYS", [470, 0, 0, 0, 0, 0, 0]),
    "a call of the future": ("ENOSYS", [999, 0, 0, 0, 0, 0, 0]),
}


def test_dangerous_calls_are_refused(shared: Watch) -> None:
    """Namespaces, mounts, io_uring, keyrings, handles and unknown calls each get the errno of the design."""
    got = answer_of(shared, "calls.py", [call for _, call in REFUSED.values()])
    assert dict(zip(REFUSED, got, strict=True)) == {name: wanted for name, (wanted, _) in REFUSED.items()}


def test_unshare_program_fails(shared: Watch) -> None:
    """util-linux's unshare gets no user namespace."""
    result = shared.run(["unshare", "-Urm", "id"])
    assert (result.outcome, result.stdout) == ("exited", "")
    assert not result.ok


def test_an_ordinary_filter_works_and_a_listener_does_not(shared: Watch) -> None:
    """A program may filter itself; a second listener, which would take our calls, gets EBUSY; no rights are left."""
    found = answer_of(shared, "seccomp.py", {"getppid": GETPPID, "seccomp": NUMBER["seccomp"]})
    assert (found["before"], found["own filter"], found["after"]) == ("ok", "ok", "EPERM")
    assert (found["listener"], found["listener with others"]) == ("EBUSY", "EBUSY")
    assert found["no_new_privs"] == "1"
    assert int(found["capabilities"], 16) == 0
    assert int(found["bounding"], 16) == 0


@pytest.mark.parametrize("way", ["x32", "int80"])
def test_calls_by_a_foreign_table_kill_their_caller(shared: Watch, way: str) -> None:
    """x32 numbers and the 32-bit entry end the program before the call has any effect."""
    if os.uname().machine != "x86_64":
        way = "none"  # the entries exist on x86_64 only; elsewhere the program must find no such way
    result = shared.run(["python3", put(shared, "foreign.py"), way])
    assert result.outcome == "signalled"
    assert result.signal in {signal.SIGSYS, signal.SIGSEGV, signal.SIGILL, signal.SIGTRAP}
    assert result.stdout == ""
    (end,) = [event for event in recorded(shared, Step, last_step(shared)) if event.op == "end"]
    assert end.signal == result.signal


NETLINK_AUDIT, MPTCP, SCTP, SMC, ALG, PACKET, VSOCK, NETLINK = 9, 262, 132, 43, 38, 17, 40, 16
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5
SOCKETS: Final[dict[str, tuple[str, list[object]]]] = {
    "packet": ("EAFNOSUPPORT", [PACKET, RAW, 0]),
    "vsock": ("EAFNOSUPPORT", [VSOCK, STREAM, 0]),
    "alg": ("EAFNOSUPPORT", [ALG, SEQPACKET, 0]),
    "smc": ("EAFNOSUPPORT", [SMC, STREAM, 0]),
    "raw": ("EACCES", [2, RAW, 1]),
    "raw 6": ("EACCES", [10, RAW, 58]),
    "mptcp": ("EPROTONOSUPPORT", [2, STREAM, MPTCP]),
    "sctp": ("EPROTONOSUPPORT", [2, STREAM, SCTP]),
    "audit netlink": ("EPROTONOSUPPORT", [NETLINK, RAW, NETLINK_AUDIT]),
    "route netlink": ("ok", [NETLINK, RAW, 0]),
    "unix datagram": ("EACCES", [1, DGRAM, 0]),
    "unix stream": ("ok", [1, STREAM, 0]),
    "datagram pair": ("EACCES", [1, DGRAM, 0, "pair"]),
    "stream pair": ("ok", [1, STREAM, 0, "pair"]),
    "fastopen by sendto": ("ENOTSUP", [2, STREAM, 0, "fastopen"]),
    "fastopen by connect": ("ENOTSUP", [2, STREAM, 0, [6, 30, 1]]),
    "another option": ("ok", [2, STREAM, 0, [6, 1, 1]]),
}


def test_only_the_known_kinds_of_sockets_can_be_made(shared: Watch) -> None:
    """Families, types and protocols that would go round the broker are refused; ordinary ones work."""
    got = answer_of(shared, "sockets.py", [each for _, each in SOCKETS.values()])
    assert dict(zip(SOCKETS, got, strict=True)) == {name: wanted for name, (wanted, _) in SOCKETS.items()}


# UNIX sockets of the host


@contextlib.contextmanager
def served(name: str) -> Iterator[list[bytes]]:
    """Serve "outside" at a UNIX socket of the host; yields what came in, one entry for each connection."""
    arrivals: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(name)
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    caller, _ = listening.accept()
                except OSError:
                    return
                with caller:
                    arrivals.append(b"")
                    caller.sendall(b"outside")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield arrivals
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_sockets_of_the_host_are_out_of_reach(shared: Watch, tmp_path: Path) -> None:
    """A hidden one does not exist, one in the workspace is refused and on record, an abstract one is not visible."""
    within, beyond = str(shared.workspace / "docker.sock"), str(tmp_path / "docker.sock")
    with served(within) as arrivals, served(beyond) as others, served("\0agentwatch-test") as abstract:
        names = [within, "docker.sock", beyond, "@agentwatch-test", f"/proc/self/cwd/{Path(within).name}"]
        got = answer_of(shared, "unix.py", "connect", names)
    assert got[:4] == ["EACCES", "EACCES", "ENOENT", "ECONNREFUSED"]
    assert got[4] in {"EACCES", "ELOOP", "ENOENT"}
    assert (arrivals, others, abstract) == ([], [], [])
    events = recorded(shared, Connect, last_step(shared))
    refused = [(event.addr, event.verdict, event.transport, event.errno) for event in events if event.verdict == "deny"]
    assert (within, "deny", "unix", 13) in refused
    assert {event.basis for event in events} == {"verified"}


def test_a_granted_socket_of_the_host_works(tmp_path: Path) -> None:
    """A socket that the policy names can be connected to, another one beside it cannot."""
    workspace = tmp_path / "project"
    workspace.mkdir()
    granted, other = str(tmp_path / "granted.sock"), str(workspace / "other.sock")
    with (
        served(granted) as arrivals,
        served(other) as others,
        Watch(Policy(unix_sockets=[granted]), workspace) as watch,
    ):
        assert answer_of(watch, "unix.py", "connect", [granted, other]) == ["outside", "EACCES"]
        (event,) = [each for each in recorded(watch, Connect) if each.addr == granted]
    assert (event.verdict, event.rule, event.basis) == ("allow", "unix_sockets", "verified")
    assert (len(arrivals), len(others)) == (1, 0)


def test_sockets_made_inside_work(shared: Watch) -> None:
    """Programs inside serve each other by path, in the workspace and in /tmp, and by abstract names."""
    names = ["own.sock", "/tmp/own.sock", "@own"]
    assert answer_of(shared, "unix.py", "serve", names) == ["inside"] * 3
    bound = {(event.op, event.verdict) for event in recorded(shared, Listen, last_step(shared))}
    assert bound == {("bind", "allow"), ("listen", "allow")}


def test_a_host_socket_with_a_reused_inode_is_still_the_hosts(shared: Watch) -> None:
    """Binding and removing a socket inside does not open a socket that the host makes afterwards."""
    name = str(shared.workspace / "reused.sock")
    for _ in range(20):
        assert answer_of(shared, "unix.py", "serve", [name]) == ["inside"]
        Path(name).unlink()
        with served(name) as arrivals:
            assert answer_of(shared, "unix.py", "connect", [name]) == ["EACCES"]
        Path(name).unlink()
        assert arrivals == []


# What programs do every day must not look like an attack


def test_running_oneself_again_is_no_mismatch(shared: Watch) -> None:
    """/proc/self/exe, /dev/fd and a memory file name a program, too; running it so raises no finding."""
    result = shared.run(["sh", "-c", "exec /proc/self/exe -c 'exec 5</usr/bin/true; exec /dev/fd/5'"])
    assert result.ok, result.stderr
    program = """
import os
fd = os.memfd_create("copy", 0)
with open("/usr/bin/true", "rb") as file:
    os.write(fd, file.read())
os.execve(fd, ["copy"], {})
"""
    result = shared.run(["python3", "-c", program])
    assert result.ok, result.stderr
    truths = [event for event in recorded(shared, Exec) if event.basis == "post"]
    assert truths
    assert [event for event in truths if event.mismatch] == []
    titles = [event.title for event in recorded(shared, Finding) if event.rule == "agentwatch.exec_mismatch"]
    assert titles == []
    assert json.dumps(shared.status().notes) == "[]"
