"""Limits on real programs: each ends in a typed outcome and an event, and bounds what it says it bounds."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.events import BreakerChanged, Exec, FileOp, Gap, LimitHit, Step
from jupyter_agentwatch.policy import Limits
from tests.outside import LONG_S, closing, recorded, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

MIB = 1 << 20


@pytest.fixture
def limited(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Watch]:
    """Make watches with limits; they are closed after the test."""

    def make(**limits: Any) -> Watch:
        watch = Watch(Policy(limits=Limits(**limits)), tmp_path)
        request.addfinalizer(watch.close)
        return watch

    return make


def hit(watch: Watch, step: int) -> tuple[str, float, str]:
    """Return the one limit that a step ran into: its name, its bound, and the verdict."""
    (event,) = recorded(watch, LimitHit, step)
    return event.limit, event.maximum, event.verdict


ALLOCATE = "import sys; held = bytearray(int(sys.argv[1])); print('has it', flush=True); sys.stdin.read()"


def test_one_process_cannot_hold_more_memory_than_allowed(limited: Callable[..., Watch]) -> None:
    """A program that asks for more gets MemoryError; one that asks for less gets it."""
    watch = limited(memory_bytes=200 * MIB)
    result = watch.run(["python3", "-c", ALLOCATE, str(400 * MIB)])
    assert (result.outcome, result.exit_code) == ("exited", 1)
    assert "MemoryError" in result.stderr
    assert hit(watch, result.step) == ("memory_bytes", float(200 * MIB), "deny")
    assert watch.run(["python3", "-c", ALLOCATE, str(50 * MIB)]).stdout == "has it\n"


def test_all_processes_together_cannot_hold_more_memory_than_allowed(limited: Callable[..., Watch]) -> None:
    """Several that hold too much between them are killed, and it is on record."""
    watch = limited(memory_bytes=200 * MIB)
    program = f'for n in 1 2 3 4; do python3 -c "{ALLOCATE}" {80 * MIB} <&3 & done 3<&0; wait'
    running = watch.start(program, stdin=True)
    result = running.wait(LONG_S)
    assert result.outcome == "limit:memory_bytes"
    (event, *_) = recorded(watch, LimitHit)
    assert (event.limit, event.maximum, event.verdict) == ("memory_bytes", float(200 * MIB), "kill")
    assert watch.run(["true"]).ok


def test_cpu_time_is_bounded(limited: Callable[..., Watch]) -> None:
    """A busy program ends when its CPU time is used up, and is called by the limit's name."""
    watch = limited(cpu_s=1)
    result = watch.run(["python3", "-c", "while True: pass"], timeout=15)
    assert result.outcome == "limit:cpu_s"
    assert hit(watch, result.step) == ("cpu_s", 1.0, "kill")


def test_a_program_cannot_ignore_its_cpu_limit(limited: Callable[..., Watch]) -> None:
    """A program that ignores SIGXCPU ends all the same."""
    watch = limited(cpu_s=1)
    program = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    result = watch.run(["python3", "-c", program], timeout=15)
    assert result.outcome == "limit:cpu_s"
    assert hit(watch, result.step) == ("cpu_s", 1.0, "kill")


def test_the_number_of_open_files_is_bounded(limited: Callable[..., Watch]) -> None:
    """The last file that fits opens, the next one gives EMFILE, and the bound cannot be raised."""
    watch = limited(open_files=64)
    program = """
import errno, resource
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (65, 65))
except (OSError, ValueError):
    print("fixed")
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError as error:
    print(errno.errorcode[error.errno], held[-1].fileno())
"""
    assert watch.run(["python3", "-c", program]).stdout.split() == ["fixed", "EMFILE", "63"]


def test_the_size_of_a_file_is_bounded(limited: Callable[..., Watch]) -> None:
    """A file stops growing at the bound; a program that does not mind the signal for it ends by the limit's name."""
    watch = limited(file_bytes=MIB)
    result = watch.run(["dd", "if=/dev/zero", "of=large", "bs=65536", "count=64"])
    assert result.outcome == "limit:file_bytes"
    assert hit(watch, result.step) == ("file_bytes", float(MIB), "kill")
    assert (watch.workspace / "large").stat().st_size == MIB
    minding = watch.run(["python3", "-c", f"open('other', 'wb').write(bytes({2 * MIB}))"])
    assert "Errno 27" in minding.stderr


def test_output_is_counted_and_its_memory_is_bounded(limited: Callable[..., Watch]) -> None:
    """1 GiB of output: all is counted, the first part kept and marked as cut, and no memory grows with it."""
    watch = limited(output_bytes=4 * MIB)
    supervisor = psutil.Process(watch.status().pid)
    before, own = supervisor.memory_info().rss, psutil.Process().memory_info().rss
    running = watch.start(["head", "-c", "1G", "/dev/zero"])
    result = running.wait(60)
    assert (result.outcome, result.exit_code) == ("exited", 0)
    assert (result.stdout_total, len(result.stdout_bytes), result.stdout_truncated) == (1 << 30, 4 * MIB, True)
    assert supervisor.memory_info().rss - before < 100 * MIB
    assert psutil.Process().memory_info().rss - own < 100 * MIB
    (end,) = [event for event in recorded(watch, Step, result.step) if event.op == "end"]
    assert end.stdout_bytes == 1 << 30
    assert hit(watch, result.step) == ("output_bytes", float(4 * MIB), "deny")


def test_a_slow_reader_holds_the_writer_up_and_nothing_else(limited: Callable[..., Watch]) -> None:
    """Output within the bound that nobody takes yet is not lost, and other commands run meanwhile."""
    watch = limited(output_bytes=64 * MIB)
    running = watch.start(["head", "-c", "32M", "/dev/zero"])
    assert watch.run(["echo", "meanwhile"]).stdout == "meanwhile\n"
    assert len(running.wait(LONG_S).stdout_bytes) == 32 * MIB


def test_the_wall_time_of_commands_is_bounded_by_the_policy(limited: Callable[..., Watch]) -> None:
    """`command_s` ends a command by its name, also where the caller allowed more."""
    watch = limited(command_s=0.5)
    result = watch.run(["sleep", "100"], timeout=50)
    assert result.outcome == "limit:command_s"
    assert hit(watch, result.step) == ("command_s", 0.5, "kill")


def test_a_callers_timeout_ends_a_command(limited: Callable[..., Watch]) -> None:
    """A call's own timeout ends its command and only that, and is on record as what it is."""
    watch = limited()
    other = watch.start(["sh", "-c", "echo up; exec sleep 100"])
    wait_for_line(other, b"up")
    result = watch.run(["sleep", "100"], timeout=0.3)
    assert (result.outcome, result.returncode) == ("timeout", -signal.SIGKILL)
    assert hit(watch, result.step) == ("timeout", 0.3, "kill")
    assert not other.has_ended


def test_the_wall_time_of_the_watch_is_bounded(limited: Callable[..., Watch]) -> None:
    """`session_s` ends the watch with everything in it."""
    watch = limited(session_s=1.0)
    running = watch.start(["sleep", "100"])
    try:
        assert running.wait(LONG_S).outcome == "killed"
    except SessionEndedError:
        assert watch.has_ended
    watch.close()
    assert closing(watch.log).reason == "the session's wall time is over"
    (event,) = recorded(watch, LimitHit)
    assert (event.limit, event.maximum, event.verdict) == ("session_s", 1.0, "kill")
    with pytest.raises(SessionEndedError):
        watch.run(["true"])


# What bad input gets


def test_a_missing_program_gives_127(limited: Callable[..., Watch]) -> None:
    """A command that is not there, alone or in a shell, gives 127, and a folder that is not there is named."""
    watch = limited()
    result = watch.run(["no-such-program"])
    assert (result.outcome, result.returncode) == ("not-found", 127)
    assert "no-such-program" in result.stderr
    assert watch.run("no-such-program").returncode == 127
    nowhere = watch.run(["true"], cwd="no/such/folder")
    assert nowhere.outcome == "not-found"
    assert "no/such/folder" in nowhere.stderr
    ends = [event for event in recorded(watch, Step) if event.op == "end"]
    assert [event.exit_code for event in ends] == [127, 127, 127]


def test_a_program_that_cannot_be_executed_gives_126(limited: Callable[..., Watch]) -> None:
    """A file without the permission, and one that is no program, give 126."""
    watch = limited()
    (watch.workspace / "plain").write_text("x")
    (watch.workspace / "noise").write_bytes(b"\0\1\2\3")
    (watch.workspace / "noise").chmod(0o755)
    for name in ("./plain", "./noise", "/usr"):
        result = watch.run([name])
        assert (result.outcome, result.returncode) == ("not-executable", 126), name


def test_output_may_be_any_bytes(limited: Callable[..., Watch]) -> None:
    """Output that is not text arrives byte by byte as it was, names that are not text are on record."""
    watch = limited()
    every = bytes(range(256)) * 64
    result = watch.run(["cat"], stdin=every)
    assert result.stdout_bytes == every
    assert "\ufffd" in result.stdout
    result = watch.run(["python3", "-c", "open(b'name-\\xff\\n\\x1b[31m', 'w').close()"])
    assert result.ok
    assert any("name-" in event.path for event in recorded(watch, FileOp, result.step))


@pytest.mark.parametrize("command", [["echo", "a\0b"], "echo a\0b", ["a\0b"]])
def test_nul_cannot_be_given(limited: Callable[..., Watch], command: Any) -> None:
    """A NUL is refused before anything is started; nothing is on record."""
    watch = limited()
    with pytest.raises(ValueError, match="NUL"):
        watch.run(command)
    assert recorded(watch, Step) == []


@pytest.mark.parametrize("count", [1, 100])
def test_arguments_that_are_too_long_are_refused(limited: Callable[..., Watch], count: int) -> None:
    """Arguments beyond the system's bound end in "not-executable" with the reason; the watch goes on."""
    watch = limited()
    result = watch.run(["true", *["x" * (4 * MIB // count)] * count])
    assert (result.outcome, result.returncode) == ("not-executable", 126)
    assert os.strerror(7) in result.stderr
    assert watch.run(["true"]).ok
    assert watch.run(["true", "x" * 100_000]).ok


def test_descriptors_do_not_leak(limited: Callable[..., Watch]) -> None:
    """200 commands, refused ones among them, leave the supervisor with the descriptors that it had."""
    watch = limited()
    supervisor = psutil.Process(watch.status().pid)
    watch.run(["true"])
    before = supervisor.num_fds()
    for _ in range(50):
        watch.run(["true"])
        watch.run(["no-such-program"])
        watch.run(["cat"], stdin=b"x")
        watch.run(["true"], cwd="no/such/folder")
    # The last commands' pipes are closed beside their answers, and their files in /proc with the next sample.
    end = time.monotonic() + LONG_S
    while supervisor.num_fds() > before + 2:
        assert time.monotonic() < end, f"{supervisor.num_fds()} descriptors instead of {before}"
        watch.status()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0
    assert {event.step for event in recorded(watch, Exec)} >= {1}


WRITE_ON = """
import os
while True:
    try:
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        print(error.errno, flush=True)
"""


def test_the_log_has_a_bound(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A log of `audit.max_bytes` suspends the watch and says why; a resume gives it a tenth more, a kill closes it."""
    bound = 1 << 17
    watch = Watch({"audit": {"max_bytes": bound}}, tmp_path)
    request.addfinalizer(watch.close)
    running = watch.start(["python3", "-c", WRITE_ON])
    sizes = []
    for _ in range(2):
        wait_frozen(watch)
        sizes.append(watch.log.stat().st_size)
        watch.resume()
    wait_frozen(watch)
    assert any("audit.max_bytes" in note for note in watch.status().notes)
    with pytest.raises(ControlError, match="frozen"):
        watch.run(["true"])
    assert watch.kill("full").survivors == 0
    assert set(running.wait(LONG_S).stdout.split()) == {"1"}  # EPERM
    assert bound <= sizes[0] < bound * 1.05
    assert bound * 0.09 <= sizes[1] - sizes[0] < bound * 0.15  # the first size is a little over the bound
    (warning,) = recorded(watch, LimitHit)
    assert (warning.limit, warning.action) == ("audit.max_bytes", "warn")
    assert sum(gap.lost for gap in recorded(watch, Gap)) > 0
    assert len([move for move in recorded(watch, BreakerChanged) if "audit.max_bytes" in move.cause]) == 3
    assert closing(watch.log).reason == "full"


def wait_frozen(watch: Watch) -> None:
    """Wait until a watch is suspended: each request is a round of the supervisor's loop."""
    for _ in range(20_000):
        if watch.status().state == "frozen":
            return
    pytest.fail("the watch is not suspended")
