"""Changes the file `f` of its folder in one way of many, or under one name of many, and prints what it got.

Arguments: "way" and the name of a function below, or "name" and a name that may hold {ws}, {pid}, {tid}, {child},
{file} and {folder}: the folder, this process, its thread, a child that works in the folder, and descriptors of `f` and
of the folder.
"""

# ruff: noqa: S103, T201 -- odd modes are what it tries; it answers on standard output

import ctypes
import mmap
import os
import subprocess
import sys
import threading

TMP = os.environ["TMPDIR"]

NEW = b"after, and longer than before\n"
HERE = -100  # AT_FDCWD
FOLLOW = 0x400  # AT_SYMLINK_FOLLOW
EXCHANGE = 2  # RENAME_EXCHANGE
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def pwrite() -> None:
    fd = os.open("f", os.O_RDWR)
    os.pwrite(fd, NEW, 3)


def ftruncate() -> None:
    os.ftruncate(os.open("f", os.O_RDWR), 2)


def sparse() -> None:
    fd = os.open("f", os.O_RDWR)
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, NEW, 5 << 20)


def punch() -> None:
    fd = os.open("f", os.O_RDWR)
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if call(fd, PUNCH_HOLE, 0, 4):
        raise OSError(ctypes.get_errno(), "fallocate")


def allocate() -> None:
    os.posix_fallocate(os.open("f", os.O_RDWR), 0, 100_000)


def copy_range() -> None:
    os.copy_file_range(os.open("source", os.O_RDONLY), os.open("f", os.O_RDWR), 20)


def sendfile() -> None:
    os.sendfile(os.open("f", os.O_RDWR), os.open("source", os.O_RDONLY), 0, 20)


def splice() -> None:
    reads, writes = os.pipe()
    os.write(writes, NEW)
    os.splice(reads, os.open("f", os.O_RDWR), len(NEW))


def mapped() -> None:
    fd = os.open("f", os.O_RDWR)
    with mmap.mmap(fd, 0) as memory:
        os.close(fd)
        memory[:3] = b"map"


def rename_over() -> None:
    """What editors do: a new file is written, and takes the old one's place."""
    with open(".f.new", "wb") as file:
        file.write(NEW)
    os.rename(".f.new", "f")


def exchange() -> None:
    call = ctypes.CDLL(None, use_errno=True).renameat2
    if call(HERE, b"f", HERE, b"source", EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def folder() -> None:
    os.rename("d", "moved")
    with open("moved/e/g", "wb") as file:
        file.write(NEW)
    os.mkdir("d")


def second_name() -> None:
    os.link("f", "second")
    with open("second", "r+b") as file:
        file.write(NEW)


def name_of_descriptor() -> None:
    """A second name made by way of a descriptor, and written through."""
    fd = os.open("f", os.O_RDONLY)
    link_descriptor(fd, b"second")
    with open("second", "r+b") as file:
        file.write(NEW)


def from_nowhere() -> None:
    """A file made without a name, which then takes one."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o644)
    os.write(fd, NEW)
    link_descriptor(fd, b"named")


def link_descriptor(fd: int, name: bytes) -> None:
    # os.link follows no link unless a folder is given by a descriptor, too.
    if ctypes.CDLL(None, use_errno=True).linkat(HERE, b"/proc/self/fd/%d" % fd, HERE, name, FOLLOW):
        raise OSError(ctypes.get_errno(), "linkat")


def link_instead() -> None:
    os.unlink("f")
    os.symlink("source", "f")
    with open("f", "ab") as file:
        file.write(NEW)


def chmod() -> None:
    os.chmod("f", 0o600)


def fchmod() -> None:
    os.fchmod(os.open("f", os.O_RDONLY), 0o711)


def utime() -> None:
    os.utime("f", (1, 2))


def utime_now() -> None:
    os.utime("/proc/self/cwd/f")


def futimes() -> None:
    os.utime(os.open("f", os.O_RDONLY), (1, 2))


def utime_link() -> None:
    os.utime("link", (1, 2), follow_symlinks=False)


def utime_through() -> None:
    os.utime("link", (1, 2))


def old_utimes() -> None:
    """By the calls that only x86-64 has."""
    if os.uname().machine != "x86_64":
        utime()
        return
    call = ctypes.CDLL(None, use_errno=True).syscall
    whole, small = (ctypes.c_int64 * 2)(1, 2), (ctypes.c_int64 * 4)(1, 3, 2, 4)
    for number, *arguments in ((132, b"f", whole), (261, HERE, b"f", small), (235, b"f", small)):
        if call(number, *arguments):
            raise OSError(ctypes.get_errno(), f"call {number}")
    assert os.stat("f").st_mtime_ns == 2_000_004_000


def attributes() -> None:
    """Extended attributes and flags cannot be set: as where a file system has none."""
    libc, fd, flags = ctypes.CDLL(None, use_errno=True), os.open("f", os.O_RDONLY), ctypes.c_long(0x40)
    told = [
        libc.setxattr(b"f", b"user.x", b"1", 1, 0),
        libc.fremovexattr(fd, b"user.x"),
        libc.ioctl(fd, 0x40086602, flags),
    ]
    assert told == [-1, -1, -1]


def chmod_folder() -> None:
    os.chmod("d", 0o2750)
    os.chmod("d/e", 0o1777)


def chmod_link() -> None:
    os.symlink("f", "l")
    os.chmod("l", 0o640)


def truncate() -> None:
    os.truncate("f", 1)


def under(name: str) -> None:
    ws = os.getcwd()
    for target, link in (("f", TMP + "/l"), ("", TMP + "/d"), ("link", TMP + "/back")):
        if not os.path.lexists(link):
            os.symlink(f"{ws}/{target}", link)
    if not os.path.lexists(TMP + "/p"):
        os.symlink("/proc/self", TMP + "/p")
    file, place = os.open("f", os.O_RDONLY), os.open(ws, os.O_RDONLY)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ws) as child:
        ids = {"pid": os.getpid(), "tid": threading.get_native_id(), "child": child.pid}
        full = name.format(ws=ws, tmp=TMP, file=file, folder=place, **ids)
        os.chdir("/")
        if "cwd" in full and "child" not in name:
            os.chdir(ws)
        with open(full, "wb") as opened:
            opened.write(NEW)
        child.communicate()


if sys.argv[1] == "way":
    globals()[sys.argv[2]]()
else:
    thread = threading.Thread(target=under, args=(sys.argv[2],))
    thread.start()
    thread.join()
print("done")
