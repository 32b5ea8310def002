"""Reads, writes and changes files that lie outside of what was granted."""

# ruff: noqa: ANN001, ANN201, ANN202, S103, S606 -- it tries what must not be done
# mypy: ignore-errors

import contextlib
import ctypes
import fcntl
import glob
import os
import shutil
import stat
import struct
import subprocess

from told import call, ends, got, libc, shows, tries, way, world, writes

OUTSIDE, SECRET, VICTIM, LOG = world["outside"], world["secret"], world["pids"]["victim"], world["log"]
SYSTEM = ("/usr/bin/env", "/etc/passwd", "/etc/hosts", os.path.realpath("/usr/bin/python3"), world["package"])


def write_outside():
    """Create, append, truncate, remove, rename, link."""
    new = f"{OUTSIDE}/new"
    for path in (new, "/new", "/usr/new", "/etc/new", "/var/tmp/escaped", "/run/new", "/root/new", "/tmp/../new"):
        tries(f"create {path}", writes, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        tries(f"mkdir {path}", os.mkdir, path)
        tries(f"mkfifo {path}", os.mkfifo, path)
        tries(f"symlink {path}", os.symlink, "x", path)
    tries("nameless", lambda: os.close(os.open(OUTSIDE, os.O_TMPFILE | os.O_RDWR)))
    for path in (SECRET, *SYSTEM, "/proc/self/root" + SECRET, f"{os.getcwd()}/../../../../../../../..{SECRET}"):
        tries(f"append {path}", writes, path)
        tries(f"truncating open {path}", lambda p=path: os.close(os.open(p, os.O_RDONLY | os.O_TRUNC)))
        tries(f"truncate {path}", os.truncate, path, 0)
        tries(f"unlink {path}", os.unlink, path)
        tries(f"rename {path}", os.rename, path, path + "2")
        tries(f"rename into the workspace {path}", os.rename, path, "taken")
        with open("mine", "w") as mine:
            mine.write("x")
        tries(f"replace {path}", os.rename, "mine", path)
    with contextlib.suppress(OSError):
        os.chdir(OUTSIDE)
        tries("create after chdir", writes, "after-chdir", os.O_WRONLY | os.O_CREAT)


def read_hidden():
    """Secrets of the user and the machine."""
    home = world["home"]
    names = (".ssh/id_rsa", ".bash_history", ".netrc", ".aws/credentials", ".config", ".jupyter")
    paths = (
        SECRET,
        LOG,
        world["owner_env"],
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/sudoers",
        *(f"{home}/{n}" for n in names),
    )
    for path in paths:
        tries(f"read {path}", shows, path)
        tries(f"map {path}", lambda p=path: open(p, "rb").close())
    for folder in (OUTSIDE, home, "/root", "/home", "/var/log", "/run", "/sys/kernel", world["runtime"], "/boot"):
        found = None
        try:
            found = os.listdir(folder)
        except OSError:
            continue
        own = {"agent"} if folder == "/home" else set()
        if set(found) - own - set(world["ways"]):
            got.append(f"list {folder}: {found[:5]}")
    tries("copy", shutil.copyfile, SECRET, "copied")
    tries("send", lambda: os.sendfile(1, os.open(SECRET, os.O_RDONLY), 0, 100))
    done = subprocess.run(["cat", SECRET], capture_output=True, check=False)
    os.write(1, done.stdout)
    tries("run", lambda: subprocess.run([f"{OUTSIDE}/program"], check=True))


def links_out():
    """Names that lead out by links, also of /proc."""
    os.symlink(OUTSIDE, "way") if not os.path.lexists("way") else None
    os.symlink(SECRET, "straight") if not os.path.lexists("straight") else None
    os.symlink("/proc/self/root", "root") if not os.path.lexists("root") else None
    ways = ["way/secret", "straight", f"root{SECRET}", f"/proc/self/root{SECRET}", f"/proc/thread-self/root{SECRET}"]
    ways += [f"/proc/self/cwd/../../../../../../../..{SECRET}", f"/proc/1/root{SECRET}", f"/dev/fd/../root{SECRET}"]
    for pid in {VICTIM, *world["pids"].values(), os.getppid(), 1}:
        ways += [f"/proc/{pid}/root{SECRET}", f"/proc/{pid}/cwd/secret", f"/proc/{pid}/task/{pid}/root{SECRET}"]
        ways += [f"/proc/{pid}/fd/{fd}" for fd in range(3, 20)]
    for path in ways:
        tries(f"read {path}", shows, path)
    for path in ("way/new", "root/usr/new", f"/proc/{VICTIM}/cwd/new", f"/proc/{VICTIM}/root{OUTSIDE}/new"):
        tries(f"create {path}", writes, path, os.O_WRONLY | os.O_CREAT)
    held = None
    try:
        held = os.open(SECRET, os.O_PATH)
    except OSError:
        return
    tries("reopen a path descriptor", shows, f"/proc/self/fd/{held}")
    tries("read a path descriptor", os.read, held, 10)
    tries("chmod a path descriptor", os.chmod, f"/proc/self/fd/{held}", 0o777)
    tries("link a path descriptor", lambda: os.link(f"/proc/self/fd/{held}", "linked", follow_symlinks=True))
    tries("execute a path descriptor", lambda: call("execveat", held, b"", 0, 0, 0x1000))


def hard_links():
    """A second name inside for a file outside."""
    for number, path in enumerate((SECRET, LOG, *SYSTEM)):
        name = f"hard{number}"
        if tries(f"link {path}", os.link, path, name) is None and os.path.exists(name):
            tries(f"write through {name}", writes, name)
    tries("link out", lambda: (open("in", "w").close(), os.link("in", f"{OUTSIDE}/linked-out")))


def modes_times():
    """Modes, owners, times, attributes and flags."""
    uid, gid = os.getuid(), os.getgid()
    flags, attributes = 0x40086602, 0x401C5820
    for path in (SECRET, OUTSIDE, LOG, "/usr/bin/env", "/proc/version", "/proc/self/root" + SECRET, world["python"]):
        tries(f"chmod {path}", os.chmod, path, 0o777)
        tries(f"fchmodat2 {path}", call, 452, -100, path.encode(), 0o777, 0)
        tries(f"chown {path}", os.chown, path, uid, gid)
        tries(f"utime {path}", os.utime, path, (1, 1))
        tries(f"setxattr {path}", os.setxattr, path, "user.escaped", b"1")
        tries(f"removexattr {path}", os.removexattr, path, "user.mark")
        for way_in in (os.O_RDONLY, os.O_PATH):
            try:
                fd = os.open(path, way_in)
            except OSError:
                continue
            tries(f"fchmod {path} {way_in:o}", os.fchmod, fd, 0o777)
            tries(f"fchown {path} {way_in:o}", os.fchown, fd, uid, gid)
            tries(f"futimens {path} {way_in:o}", os.utime, fd, (1, 1))
            tries(f"chmod /proc/self/fd {path} {way_in:o}", os.chmod, f"/proc/self/fd/{fd}", 0o777)
            tries(f"utime /proc/self/fd {path} {way_in:o}", os.utime, f"/proc/self/fd/{fd}", (1, 1))
            tries(f"fsetxattr {path} {way_in:o}", os.setxattr, fd, "user.escaped", b"1")
            tries(f"flags {path} {way_in:o}", fcntl.ioctl, fd, flags, struct.pack("l", 0x40))
            tries(f"attributes {path} {way_in:o}", fcntl.ioctl, fd, attributes, bytes(28))
            os.close(fd)


def modes_race():
    """A name that turns from one's own file to one outside while its mode or time is set."""
    with open("own", "w"):
        pass
    child = os.fork()
    if child == 0:
        while True:
            os.symlink(SECRET, "turn")
            os.rename("turn", "turned")
            os.link("own", "turn2")
            os.rename("turn2", "turned")
    for index in range(world["tries"]):
        with contextlib.suppress(OSError):
            os.chmod("turned", 0o777) if index % 2 else os.utime("turned", (1, 1))
    os.kill(child, 9)
    os.waitpid(child, 0)
    return world["tries"]


def look():
    """What can be learnt of files outside without opening them."""
    tries("stat", os.stat, SECRET)
    tries("access", lambda: os.access(SECRET, os.F_OK) or os.open("/nowhere", 0))
    tries("readlink", os.readlink, f"{OUTSIDE}/link")
    tries("getxattr", lambda: os.write(1, os.getxattr(SECRET, "user.mark")))
    tries("chdir", os.chdir, OUTSIDE)


def notices():
    """Being told of what happens to files outside."""
    libc.inotify_init1.restype = ctypes.c_int
    fd = libc.inotify_init1(os.O_NONBLOCK)
    for path in (OUTSIDE, SECRET, world["home"]):
        tries(f"inotify {path}", lambda p=path: _checked(libc.inotify_add_watch(fd, p.encode(), 0xFFF)))
    tries("fanotify", call, "fanotify_init", 0x200, 0)

    def dnotify():
        fcntl.fcntl(os.open(OUTSIDE, os.O_RDONLY), 1026, 0x3F)

    tries("dnotify", dnotify)


def _checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result


def the_log():
    """Audit log, control socket and what else the supervisor keeps."""
    for path in (LOG, LOG + ".anchor", LOG + ".stderr", world["control"], world["runtime"], os.path.dirname(LOG)):
        for act in (writes, os.unlink, shows, os.rmdir):
            tries(f"{act.__name__} {path}", act, path)
        tries(f"truncate {path}", os.truncate, path, 0)
        tries(f"rename {path}", os.rename, path, path + ".old")
    for each in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(each)
        except OSError:
            continue
        if ".jsonl" in target:
            tries(f"write {each}", writes, each)


def settings():
    """The kernel's settings."""
    for path in ("sys/kernel/core_pattern", "sys/kernel/hostname", "sys/vm/drop_caches", "sysrq-trigger"):
        tries(f"open {path}", lambda p=path: os.close(os.open(f"/proc/{p}", os.O_WRONLY)))
    for folder, _, names in os.walk("/proc/sys"):
        for name in names:
            path = os.path.join(folder, name)
            tries(f"open {path}", lambda p=path: os.close(os.open(p, os.O_WRONLY)))
    for name in ("oom_score_adj", "uid_map", "setgroups", "coredump_filter", "timerslack_ns", "loginuid", "mem"):
        tries(f"open victim's {name}", lambda n=name: os.close(os.open(f"/proc/{VICTIM}/{n}", os.O_WRONLY)))
    tries("become unkillable", writes, "/proc/self/oom_score_adj", os.O_WRONLY)


def setuid():
    """Programs that run as somebody else, found and made."""
    names = [p for p in glob.glob("/usr/bin/*") if os.lstat(p).st_mode & (stat.S_ISUID | stat.S_ISGID)]
    names = [p for p in names if not os.path.islink(p)]
    shutil.copy("/usr/bin/env", "tool")
    for mode in (0o4755, 0o6755, 0o2755):
        tries(f"make {mode:o}", os.chmod, "tool", mode)
        tries(f"create {mode:o}", lambda m=mode: os.close(os.open(f"made{m}", os.O_CREAT | os.O_WRONLY, m)))
        tries(f"mknod {mode:o}", os.mknod, f"node{mode}", mode | stat.S_IFREG)
    for name in names:
        child = os.fork()
        if child == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            os.execv(name, [name, "--version"])
        with open(f"/proc/{child}/status") as status:
            for line in status:
                if line.startswith("NoNewPrivs") and line.split()[1] != "1":
                    got.append(f"{name} may have new rights")
        os.waitpid(child, 0)
    for uid in {0, 1, 65534} - {os.getuid()}:
        tries(f"setuid {uid}", os.setuid, uid)
        tries(f"setgid {uid}", os.setgid, uid)
    tries("setgroups", os.setgroups, [0])


def devices():
    """Device nodes, made and found."""
    for kind, number in (
        (stat.S_IFCHR, os.makedev(1, 1)),
        (stat.S_IFBLK, os.makedev(254, 0)),
        (stat.S_IFCHR, os.makedev(1, 8)),
    ):
        tries(f"mknod {number:x}", os.mknod, f"device{number}", 0o600 | kind, number)
    listed = (
        "mem",
        "kmsg",
        "vda",
        "sda",
        "net/tun",
        "fuse",
        "kvm",
        "loop-control",
        "tty0",
        "console",
        "rtc0",
        "vsock",
        "hpet",
    )
    for name in (*listed, "vhost-net", "userfaultfd", "snapshot", "cpu_dma_latency", "mqueue", "port"):
        tries(f"read {name}", lambda n=name: os.close(os.open(f"/dev/{n}", os.O_RDONLY | os.O_NONBLOCK)))
        tries(f"write {name}", lambda n=name: os.close(os.open(f"/dev/{n}", os.O_WRONLY | os.O_NONBLOCK)))
    for tree in ("/sys/kernel/debug", "/sys/fs/cgroup/cgroup.procs", "/sys/kernel/tracing", "/sys/power/state"):
        tries(f"open {tree}", lambda t=tree: os.close(os.open(t, os.O_RDONLY)))


def kernel_files():
    """What /proc shows to root alone, also to a root without rights."""
    skipped = {"self", "thread-self", "sys"}
    for folder, folders, names in os.walk("/proc"):
        folders[:] = [name for name in folders if not name.isdigit() and name not in skipped]
        for path in (os.path.join(folder, name) for name in names):
            if os.lstat(path).st_mode & 0o444 != 0o444:
                tries(f"read {path}", _first_byte, path)


def _first_byte(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not os.read(fd, 8):
            raise OSError(1, "empty")
    finally:
        os.close(fd)


ACTS = {
    "write": write_outside, "read": read_hidden, "links": links_out, "hard": hard_links, "modes": modes_times,
    "modes-race": modes_race, "look": look, "notices": notices, "log": the_log, "settings": settings,
    "setuid": setuid, "devices": devices, "kernel": kernel_files,
}  # fmt: skip
result = ACTS[way]()
ends(tries=result or 0)
