"""What ran is on record, truly: each claim of an exec is answered by the truth, or by a record that nobody saw it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Exec, Exit, Finding
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.programs import is_immutable
from tests.outside import recorded, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

ROUNDS: Final = 20_000
"""Most rounds of the supervisor's loop that a test waits for a record."""


def static_program(code: dict[str, bytes]) -> bytes:
    """Return an ELF file without an interpreter or a library, which runs nothing but the code for this machine."""
    body = code[os.uname().machine]
    machine = {"x86_64": 62, "aarch64": 183}[os.uname().machine]
    start = 0x400000
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<2HI3QI6H", 2, machine, 1, start + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<2I6Q", 1, 5, 0, start, start, 120 + len(body), 120 + len(body), 4096) + body


ENDS: Final = {
    "x86_64": bytes.fromhex("b8e7000000bf070000000f05"),
    "aarch64": struct.pack("<3I", 0xD2800BC8, 0xD28000E0, 0xD4000001),
}
"""exit_group(7)."""

COUNTS: Final = {
    "x86_64": bytes.fromhex("b8cc00000031ff31f631d20f05") + ENDS["x86_64"],
    "aarch64": struct.pack("<5I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800F68, 0xD4000001) + ENDS["aarch64"],
}
"""sched_getaffinity(0, 0, NULL), as Go's programs begin; then exit_group(7)."""

WAITS: Final = {
    "x86_64": bytes.fromhex("31ff31f631d24d31d2b80f0100000f05"),
    "aarch64": struct.pack("<6I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001),
}
"""ppoll(NULL, 0, NULL, NULL): until it is killed."""


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Open a watch with two static programs and some scripts in its workspace."""
    files: dict[str, bytes] = {
        "ends": static_program(ENDS),
        "counts": static_program(COUNTS),
        "waits": static_program(WAITS),
        "script": b"#! /bin/sh  -eu \nexit 3\n",
        "nested": b"#!./script one\texit 4",
        "noise": b"\0\1\2\3",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)
    with Watch(workspace=tmp_path) as made:
        yield made


def seen(watch: Watch, is_wanted: Callable[[Exec], Any], count: int = 1) -> list[Exec]:
    """Wait until so many records of execs are wanted ones, and return them."""
    for _ in range(ROUNDS):
        found = [event for event in recorded(watch, Exec) if is_wanted(event)]
        if len(found) >= count:
            return found
        watch.status()
    return pytest.fail(f"{recorded(watch, Exec)[-6:]}")


def in_python(watch: Watch, program: str, code: int = 0) -> None:
    """Run a Python program inside, and check how it ended."""
    result = watch.run(["python3", "-c", program])
    assert result.exit_code == code, result.stderr


def test_every_claim_is_answered(watch: Watch) -> None:
    """Programs of every kind, and calls that fail: each claim has one answer in the log of a closed watch."""
    program = """
import os, subprocess, threading
for name in ("./script", "./nested", "./ends", "./noise", "/usr/bin/true", "./missing"):
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                os.execv(name, [name, "a"])
            finally:
                os._exit(9)
        os.waitpid(child, 0)
subprocess.run("no-such; true; ./ends; ./noise", shell=True)
try:
    os.execv("./noise", ["./noise"])
except OSError:
    os.close(os.open("touched", os.O_WRONLY | os.O_CREAT))
threading.Thread(target=os.execv, args=("./ends", ["./ends"])).start()
"""
    in_python(watch, program, 7)
    watch.close()
    events = recorded(watch, Exec)
    claims = [event.seq for event in events if event.claim_seq < 0]
    answers = [event.claim_seq for event in events if event.claim_seq >= 0]
    assert sorted(answers) == claims
    assert len(claims) > 20
    assert all(event.unconfirmed or event.basis == "post" for event in events if event.claim_seq >= 0)
    assert [event.title for event in recorded(watch, Finding)] == []


@pytest.mark.parametrize("way", ["alone", "thread"])
def test_a_program_without_a_c_library_is_looked_at(watch: Watch, way: str) -> None:
    """A static program that makes no trapped call has its truth on record, also where a thread ran it."""
    program = "import os, threading\nprint('on', flush=True)\n"
    run = "os.execv('./waits', ['waits', 'a'])"
    program += run if way == "alone" else f"threading.Thread(target=lambda: {run}).start()"
    running = watch.start(["python3", "-c", program])
    wait_for_line(running, b"on")
    (truth,) = seen(watch, lambda event: event.exe.endswith("/waits"))
    (claim,) = [event for event in recorded(watch, Exec) if event.path.endswith("/waits")]
    assert (truth.basis, truth.argv, truth.mismatch, truth.claim_seq) == ("post", ["waits", "a"], False, claim.seq)
    assert truth.pid == claim.pid
    assert recorded(watch, Finding) == []


def test_a_program_of_go_is_seen_however_short_it_lives(watch: Watch) -> None:
    """Go's programs make no call of the C library's, but count processors first: that is where the truth is read."""
    for _ in range(10):
        in_python(watch, "import os; os.execv('./counts', ['counts', 'a'])", 7)
    truths = seen(watch, lambda event: event.exe.endswith("/counts"), 10)
    assert [truth.argv for truth in truths] == [["counts", "a"]] * 10
    assert not any(event.unconfirmed for event in recorded(watch, Exec))
    assert recorded(watch, Finding) == []


def test_what_nobody_saw_is_called_so(watch: Watch) -> None:
    """A program that ends at once leaves its truth or "ended", never nothing; a call that fails leaves "failed"."""
    in_python(watch, "import os; os.execv('./ends', ['ends'])", 7)
    (claim,) = [event for event in recorded(watch, Exec) if event.path.endswith("/ends")]
    (answer,) = seen(watch, lambda event: event.claim_seq == claim.seq)
    assert answer.exe.endswith("/ends") if answer.basis == "post" else answer.unconfirmed == "ended"
    failing = "import os\ntry: os.execv('./noise', ['noise'])\nexcept OSError: os.mkdir('folder')"
    in_python(watch, failing)
    (claim,) = [event for event in recorded(watch, Exec) if event.path.endswith("/noise")]
    (answer,) = [event for event in recorded(watch, Exec) if event.claim_seq == claim.seq]
    assert (answer.basis, answer.unconfirmed, answer.exe, answer.mismatch) == ("claimed", "failed", "", False)


def test_a_scripts_interpreter_has_the_arguments_that_the_kernel_gave_it(watch: Watch) -> None:
    """Scripts, scripts that interpret scripts, relative names and folders by descriptor raise no finding."""
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def run(call):
    child = os.fork()
    if child == 0:
        call()
        os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
here = os.open(".", os.O_PATH)
os.set_inheritable(here, True)
args = (ctypes.c_char_p * 3)(b"zero", b"x", None)
print(run(lambda: os.execv("./script", ["zero", "x"])))
print(run(lambda: os.execv("nested", ["zero", "x"])))
print(run(lambda: os.execv(os.path.abspath("script"), ["zero"])))
print(run(lambda: libc.execveat(here, b"script", args, None, 0)))
print(run(lambda: libc.execv(b"./script", None)))
"""
    result = watch.run(["python3", "-c", program])
    assert result.stdout.split() == ["3"] * 5, result.stderr
    assert recorded(watch, Finding) == []
    shells = [event for event in recorded(watch, Exec, result.step) if event.exe and event.argv[0] == "/bin/sh"]
    shell = ["/bin/sh", "-eu"]
    folder = [event.argv[2] for event in shells[3:4]]
    assert folder[0].startswith("/dev/fd/")
    assert [event.argv for event in shells] == [
        [*shell, "./script", "x"],
        [*shell, "./script", "one\texit 4", "nested", "x"],
        [*shell, str(watch.workspace / "script")],
        [*shell, *folder, "x"],
        [*shell, "./script"],
    ]


def test_long_arguments_are_cut_and_no_finding(watch: Watch) -> None:
    """Very many arguments, very long ones and none at all are no difference from what was claimed."""
    program = """
import ctypes, os
for args in (["true", "x" * 100_000, "y"], ["true"] + ["z"] * 5000, ["true", "", "", "last"], ["true", "\\udcff"]):
    if os.fork() == 0:
        os.execv("/usr/bin/true", args)
    os.wait()
if os.fork() == 0:
    ctypes.CDLL(None).execv(b"/usr/bin/true", None)
os.wait()
"""
    in_python(watch, program)
    truths = [event for event in recorded(watch, Exec) if event.exe == "/usr/bin/true"]
    assert [event.argv_truncated for event in truths] == [True, True, False, False, False]
    assert [len(event.argv) for event in truths[:4]] == [3, 48, 4, 2]
    assert [len(event.argv[1]) for event in truths[:2]] == [1024, 1]
    assert recorded(watch, Finding) == []


def test_a_program_that_changes_its_title_is_on_record_as_it_was_started(watch: Watch) -> None:
    """What a process writes over its arguments later is not what is on record, and no finding."""
    program = """
import ctypes, os
with open("/proc/self/stat", "rb") as file:
    start = int(file.read().rpartition(b")")[2].split()[45])
ctypes.memmove(start, b"kworker", 7)
assert open("/proc/self/cmdline").read().startswith("kworker")
os.mkdir("after")
"""
    in_python(watch, program)
    (truth,) = [event for event in recorded(watch, Exec) if "python" in event.exe]
    assert truth.argv == ["python3", "-c", program]
    assert recorded(watch, Finding) == []


@pytest.mark.rungs("A")  # only a mount tells that a folder cannot change
def test_only_a_plain_name_in_the_systems_folders_is_fixed(watch: Watch) -> None:
    """A name that goes through dots, lies elsewhere or is not there may come to mean another file."""
    fixed = ["/usr/bin/env"]
    others = ["/usr/../tmp/x", "/usr/./bin/env", "/usr//bin/env", "/usr/bin/../../tmp/x", "/usr", "/usr/bin/no-such"]
    others += ["/library/x", "/tmp/usr/bin/env", "usr/bin/env", "", str(watch.workspace / "script")]
    running = watch.start(["sh", "-c", "echo up; read end"], stdin=True)
    wait_for_line(running, b"up")
    root = Root(next(event.pid for event in recorded(watch, Exec) if event.exe))
    try:
        assert [path for path in fixed + others if is_immutable(root, path)] == fixed
    finally:
        root.close()


def test_short_pipelines_of_a_shell_that_catches_signals_work(watch: Watch) -> None:
    """Where no fork is trapped, none is interrupted by the end of an earlier child; elsewhere nearly none is.

    A trapped fork is taken before that, unless the scheduler lets the child end first: half of them failed where a call
    was taken only when the one before it had been served.
    """
    results = [watch.run(["sh", "-c", "(echo hi | cat) | cat"]) for _ in range(40)]
    is_trapped = "tasks counted at clone" in watch.status().limits_by
    assert [result.stdout for result in results].count("hi\n") >= (32 if is_trapped else 40), results


def test_the_end_of_a_process_names_it(watch: Watch) -> None:
    """A command's exit, and that of a daemon which it leaves behind, bear the pid and step of their exec records."""
    os.mkfifo(watch.workspace / "gate")
    watch.run(["sh", "-c", "(setsid sh -c 'read word <gate; exit 5' >/dev/null 2>&1 &); exit 3"])
    watch.run(["sh", "-c", "echo go >gate"])
    ends: list[Exit] = []
    for _ in range(ROUNDS):
        ends = [event for event in recorded(watch, Exit) if event.exit_code == 5]
        if ends:
            break
        watch.status()  # a round of the supervisor's loop
    ran = {(event.step, event.pid) for event in recorded(watch, Exec) if event.basis == "post"}
    (command,) = [event for event in recorded(watch, Exit, 1) if event.exit_code == 3]
    assert (1, command.pid) in ran
    assert not command.orphan
    (daemon,) = ends
    assert (daemon.step, daemon.pid) in ran
    assert daemon.step == 1
    assert daemon.orphan
    assert daemon.pid != command.pid
