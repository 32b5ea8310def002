"""Asks the kernel for what would take the sandbox apart: namespaces, listeners, other entries, other ways to run."""

# ruff: noqa: ANN001, ANN002, ANN201, ANN202, S606 -- it tries what must not be done
# mypy: ignore-errors

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import time

from told import call, ends, got, libc, said, shows, tries, way, world

NEW = {"user": 0x10000000, "mount": 0x20000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000, "uts": 0x04000000}
SECRET = world["secret"]


def in_child(act):
    """Do it in a child; return its exit code or, negative, its signal."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            act()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def userns():
    """Namespaces, by every call that makes or joins one."""
    for name, flag in {**NEW, "all": 0x7E020000, "time": 0x80, "cgroup": 0x02000000}.items():
        tries(f"unshare {name}", call, "unshare", flag)
        with_user = flag | NEW["user"]
        for flags in (with_user, with_user | 1 << 40):
            if flag == 0x80:
                continue
            pid = tries(f"clone {name}", call, "clone", flags | signal.SIGCHLD, 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            pid = tries(f"clone3 {name}", call, "clone3", struct.pack("=Q", flags & 0xFFFFFFFF) + bytes(80), 88)
            if pid == 0:
                os._exit(0)
    for name in ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup"):
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
            tries(f"setns {name}", call, "setns", fd, 0)
            tries(f"parent of {name}", fcntl.ioctl, fd, 0xB702)


def mounts():
    """Change what is seen."""
    tries("mount", call, "mount", b"none", b"/tmp", b"tmpfs", 0, 0)
    tries("bind", call, "mount", world["outside"].encode(), os.getcwdb(), 0, 4096, 0)
    tries("remount", call, "mount", 0, b"/usr", 0, 32 | 4096, 0)
    tries("umount", call, "umount2", b"/proc", 2)
    tries("chroot", call, "chroot", os.getcwdb())
    tries("pivot_root", call, "pivot_root", os.getcwdb(), os.getcwdb())
    tries("open_tree", call, "open_tree", -100, b"/", 1)
    tries("open_tree_attr", call, "open_tree_attr", -100, b"/", 1, 0, 0)
    tries("move_mount", call, "move_mount", -100, b"/", -100, b"/tmp", 0)
    tries("fsopen", call, "fsopen", b"tmpfs", 0)
    tries("fspick", call, "fspick", -100, b"/", 0)
    tries("mount_setattr", call, "mount_setattr", -100, b"/usr", 0, bytes(32), 32)
    tries("swapon", call, "swapon", b"swap", 0)
    tries("quotactl", call, "quotactl", 0x800001, 0, 0, 0)


def listener():
    """A second listener would be asked before the supervisor's."""
    steps = [(0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    filt = struct.pack("@HP", 1, ctypes.addressof(code))
    libc.prctl(38, 1, 0, 0, 0)
    for flags in (1 << 3, 1 << 3 | 1 << 4, 1 << 3 | 1 << 5, 1 << 3 | 1 << 32):
        tries(f"listener {flags:x}", call, "seccomp", 1, flags, filt)
    # A filter of one's own that allows everything must not win over what was there.
    call("seccomp", 1, 0, filt)
    tries("ptrace after an own filter", call, "ptrace", 16, world["pids"]["victim"], 0, 0)
    tries("unshare after an own filter", call, "unshare", NEW["user"])


def foreign():
    """The 32-bit entry and the x32 numbers; the program must die before anything happens."""
    if os.uname().machine != "x86_64":
        return "only on x86_64"

    def x32():
        libc.syscall(ctypes.c_long(0x40000000 | 39))

    def int80():
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, getpid; int 0x80; ret
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

    for act in (x32, int80):
        ended = in_child(act)
        said[act.__name__] = str(ended)
        got.extend([act.__name__] if ended >= 0 else [])
    return ""


def uring():
    """A ring that opens, connects and sends without calls."""
    tries("setup", call, "io_uring_setup", 8, bytes(120))
    tries("enter", call, "io_uring_enter", 0, 0, 0, 0, 0, 0)
    tries("register", call, "io_uring_register", 0, 0, 0, 0)
    tries("openat2", call, "openat2", -100, b"/etc/passwd", bytes(24), 24)
    tries("vmsplice", call, "vmsplice", 1, 0, 0, 0)
    for number in (470, 471, 500, 999):
        tries(f"call {number}", call, number, 0, 0, 0, 0, 0, 0)


def primitives():
    """What exploits of the kernel begin with."""
    tries("bpf map", call, "bpf", 0, struct.pack("=IIII", 2, 4, 4, 1) + bytes(112), 128)
    tries("bpf program", call, "bpf", 5, bytes(128), 128)
    tries("perf", call, "perf_event_open", struct.pack("=IIQ", 1, 112, 0) + bytes(112), 0, -1, -1, 0)
    tries("userfaultfd", call, "userfaultfd", 1)
    tries("handle", call, "name_to_handle_at", -100, b"/etc", struct.pack("=II", 64, 0) + bytes(64), bytes(4), 0)
    tries("open by handle", call, "open_by_handle_at", -100, struct.pack("=II", 8, 1) + bytes(64), 0)
    tries("module", call, "finit_module", 0, b"", 0)
    tries("kexec", call, "kexec_load", 0, 0, 0, 0)
    tries("reboot", call, "reboot", 0xFEE1DEAD, 672274793, 0, 0)
    tries("host name", call, "sethostname", b"escaped", 7)
    tries("domain name", call, "setdomainname", b"escaped", 7)
    tries("clock", call, "clock_settime", 0, struct.pack("=2q", 1, 0))
    tries("adjust clock", call, "clock_adjtime", 0, struct.pack("=I", 1) + bytes(252))
    tries("syslog", call, "syslog", 3, ctypes.create_string_buffer(64), 64)
    tries("acct", call, "acct", 0)
    tries("personality", call, "personality", 0x0040000)
    tries("ioperm", call, "ioperm", 0x70, 1, 1)
    tries("vhangup", call, "vhangup")


def keyring():
    """Keys are the user's, not the sandbox's."""
    tries("add_key", call, "add_key", b"user", b"escaped", b"x", 1, -4)
    tries("request_key", call, "request_key", b"user", b"escaped", 0, -4)
    for operation in (0, 1, 6, 11, 17):
        tries(f"keyctl {operation}", call, "keyctl", operation, -4, 0, 0, 0)


def capabilities():
    """Rights, and new ones."""
    with open("/proc/self/status") as status:
        fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        if int(fields[name], 16):
            got.append(f"{name} {fields[name].strip()}")
    if fields["NoNewPrivs"].strip() != "1":
        got.append("new rights by exec")
    tries("capset", call, "capset", struct.pack("=Ii", 0x20080522, 0), b"\xff" * 24)
    for option, argument in ((47, 2), (28, 0x2F)):
        if libc.prctl(option, argument, 21, 0, 0) == 0:
            got.append(f"prctl {option}")


def system_v():
    """Memory, queues and semaphores that are known by number."""
    libc.shmget.restype = libc.msgget.restype = libc.semget.restype = ctypes.c_int
    libc.shmat.restype = ctypes.c_void_p
    key = world["shm"]
    if world["rung"] == "A":
        found = libc.shmget(key, 0, 0)
        got.extend(["found the segment"] if found >= 0 else [])
    else:
        tries("shmget", _positive, libc.shmget, key, 0, 0)
        tries("msgget", _positive, libc.msgget, key, 0)
        tries("semget", _positive, libc.semget, key, 1, 0o600 | 0o1000)
        tries("make", _positive, libc.shmget, 0, 4096, 0o600 | 0o1000)
    for number in (*range(8), world["shmid"]):
        at = libc.shmat(number, None, 0)
        if at not in {None, ctypes.c_void_p(-1).value}:
            got.append(f"attached {number}")
            os.write(1, ctypes.string_at(at, 64))
            ctypes.memmove(at, b"escaped", 7)
        libc.shmctl(number, 0, None)
        libc.msgctl(number, 0, None)


def _positive(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "call")


def queues():
    """POSIX message queues, and memory with a name."""
    name = world["queue"].encode()
    numbers = {"x86_64": (240, 241), "aarch64": (180, 181)}[os.uname().machine]
    opened = tries("open", call, numbers[0], name, os.O_RDWR | os.O_NONBLOCK, 0, 0)
    if opened is not None:
        libc.mq_receive(opened, ctypes.create_string_buffer(8192), 8192, None)
    tries("unlink", call, numbers[1], name)
    for path in ("/dev/shm/" + world["named"], "/dev/mqueue" + world["queue"]):
        tries(f"read {path}", shows, path)
        tries(f"unlink {path}", os.unlink, path)
    with contextlib.suppress(OSError):
        if world["named"] in os.listdir("/dev/shm"):
            got.append("listed /dev/shm")


PROGRAM = """
import os, sys
try:
    sys.stdout.write(open(sys.argv[1]).read())
except OSError:
    pass
try:
    open(sys.argv[1], "a").write("x")
except OSError:
    pass
"""


def memfd():
    """A program that has no name: it may run, with no more rights than any, and is on record."""
    fd = os.memfd_create("nameless", 0)
    with open(os.path.realpath("/usr/bin/env"), "rb") as file:
        os.write(fd, file.read())
    child = os.fork()
    if child == 0:
        os.execve(fd, ["nameless", "cat", SECRET], os.environ)
    os.waitpid(child, 0)
    script = os.memfd_create("script", 0)
    os.write(script, PROGRAM.encode())
    subprocess.run(["python3", f"/proc/self/fd/{script}", SECRET], pass_fds=[script], check=False)


def ld_so():
    """A program that may not be executed, run by the loader."""
    loaders = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1")
    loader = next((each for each in loaders if os.path.exists(each)), "")
    if not loader:
        return "no loader"
    shutil.copy(os.path.realpath("/usr/bin/env"), "no-x")
    os.chmod("no-x", 0o644)
    subprocess.run([loader, "./no-x", "cat", SECRET], check=False)
    subprocess.run([loader, f"{world['outside']}/program"], check=False)
    return ""


def landlock():
    """Domains of one's own may take rights away, and give none back."""
    attributes = struct.pack("=Q", (1 << 13) - 1)
    ruleset = None
    with contextlib.suppress(OSError):
        ruleset = call("landlock_create_ruleset", attributes, 8, 0)
    if ruleset is None:
        return "no Landlock"
    for path in ("/", world["outside"]):
        with contextlib.suppress(OSError):
            held = os.open(path, os.O_PATH)
            call(445, ruleset, 1, struct.pack("=Qi", (1 << 13) - 1, held), 0)
    libc.prctl(38, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        call("landlock_restrict_self", ruleset, 0)
    tries("read", shows, SECRET)
    tries("write", lambda: os.close(os.open(SECRET, os.O_WRONLY)))
    return ""


def inherited():
    """What a command was born with."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{name}")
            if fd > 2 and not link.startswith(f"/proc/{os.getpid()}/fd"):
                got.append(f"descriptor {fd}: {link}")
            if fd <= 2 and not link.startswith(("pipe:", "socket:", "/dev/null")):
                got.append(f"stream {fd}: {link}")
    for name, value in os.environ.items():
        if any(word in name.upper() for word in ("TOKEN", "SECRET", "AGENTWATCH", "PASSWORD", "KEY")):
            got.append(f"variable {name}={value}")
    os.write(1, json.dumps(dict(os.environ)).encode())
    # The other end of one's own output must not be there to be read.
    for fd in range(3):
        with contextlib.suppress(OSError):
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NONBLOCK)
            os.close(again)


def core_dump():
    """A crash must leave no dump, and start nobody."""
    before = set(os.listdir("."))
    child = os.fork()
    if child == 0:
        import resource

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(5)
    _, status = os.waitpid(child, 0)
    got.extend(["dumped core"] if os.WCOREDUMP(status) or set(os.listdir(".")) - before else [])


def splices():
    """Pages of files that may only be read must stay as they are."""
    target = os.path.realpath("/usr/bin/env")
    with open(target, "rb") as file:
        first = file.read(64)
    reader, writer = os.pipe()
    fd = os.open(target, os.O_RDONLY)
    for _ in range(64):
        with contextlib.suppress(OSError):
            os.splice(fd, writer, 1, offset_src=0)
            os.write(writer, b"escaped")
            os.read(reader, 64)
    tries("map for writing", mmap.mmap, fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with contextlib.suppress(OSError, ValueError), mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as page:
        address = _address_of(target)
        with open("/proc/self/mem", "rb+", buffering=0) as memory:
            memory.seek(address)
            memory.write(b"x")
        page.flush()
    with open(target, "rb") as file:
        got.extend(["changed"] if file.read(64) != first else [])


def _address_of(path):
    with open("/proc/self/maps") as maps:
        return next(int(line.partition("-")[0], 16) for line in maps if line.rstrip().endswith(path))


def passes():
    """A descriptor passed between processes is judged where it is used."""
    one, other = socket.socketpair()
    child = os.fork()
    if child == 0:
        made = socket.socket()
        socket.send_fds(one, [b"x"], [made.fileno()])
        os._exit(0)
    _, (fd,), _, _ = socket.recv_fds(other, 1, 1)
    os.waitpid(child, 0)
    tries("connect a socket of another", socket.socket(fileno=fd).connect, ("127.0.0.1", world["tcp"]))


ACTS = {
    "userns": userns, "mounts": mounts, "listener": listener, "foreign": foreign, "uring": uring,
    "primitives": primitives, "keyring": keyring, "capabilities": capabilities, "system-v": system_v,
    "queues": queues, "memfd": memfd, "ld-so": ld_so, "landlock": landlock, "inherited": inherited,
    "core": core_dump, "splices": splices, "passes": passes,
}  # fmt: skip
ends(na=ACTS[way]() or "")
