"""The real SWE-ReX, its types and its own clients' calls, on our runtime and deployment."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from swerex.deployment.hooks.abstract import DeploymentHook
from swerex.exceptions import (
    CommandTimeoutError,
    DeploymentNotStartedError,
    NonZeroExitCodeError,
    SessionDoesNotExistError,
    SessionExistsError,
)
from swerex.runtime.abstract import (
    BashAction,
    BashInterruptAction,
    CloseBashSessionRequest,
    Command,
    CreateBashSessionRequest,
    ReadFileRequest,
    UploadRequest,
    WriteFileRequest,
)

from jupyter_agentwatch.agents.adapters.swe_rex import AgentwatchDeployment, AgentwatchRuntime
from jupyter_agentwatch.errors import SessionEndedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]


def wait_exists(path: Path) -> None:
    """Wait until a file is there."""
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)  # the kernel tells only who watches the folder
    pytest.fail(f"{path} was not made")


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[AgentwatchDeployment]:
    """A deployment that was started."""
    (tmp_path / "work").mkdir()
    made = AgentwatchDeployment(workspace=tmp_path / "work")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def runtime(deployment: AgentwatchDeployment) -> AgentwatchRuntime:
    """Its runtime."""
    return deployment.runtime


async def test_a_session_keeps_its_state(runtime: AgentwatchRuntime) -> None:
    """Folder and variables last from one action to the next, and both streams come in their order."""
    await runtime.write_file(WriteFileRequest(path="rc", content="COLOUR=blue\n"))
    await runtime.create_session(CreateBashSessionRequest(startup_source=["./rc"]))
    await runtime.run_in_session(BashAction(command="mkdir -p a && cd a"))
    seen = await runtime.run_in_session(BashAction(command='basename "$PWD"; echo oops >&2; echo $COLOUR'))
    assert (seen.output, seen.exit_code) == ("a\noops\nblue\n", 0)
    with pytest.raises(SessionExistsError):
        await runtime.create_session(CreateBashSessionRequest())
    await runtime.close_session(CloseBashSessionRequest())
    with pytest.raises(SessionDoesNotExistError):
        await runtime.run_in_session(BashAction(command="true"))


async def test_exit_codes_are_checked_as_asked(runtime: AgentwatchRuntime) -> None:
    """A failure raises, is told, or is ignored."""
    await runtime.create_session(CreateBashSessionRequest())
    with pytest.raises(NonZeroExitCodeError, match=r"my words: .* exit code 3"):
        await runtime.run_in_session(BashAction(command="(exit 3)", error_msg="my words"))
    assert (await runtime.run_in_session(BashAction(command="(exit 3)", check="silent"))).exit_code == 3
    assert (await runtime.run_in_session(BashAction(command="(exit 3)", check="ignore"))).exit_code is None
    with pytest.raises(NonZeroExitCodeError):
        await runtime.execute(Command(command=["false"], check=True))
    assert (await runtime.execute(Command(command="exit 4", shell=True))).exit_code == 4


async def test_what_takes_too_long_is_ended(runtime: AgentwatchRuntime) -> None:
    """A timeout interrupts an action and kills a command; the session goes on."""
    await runtime.create_session(CreateBashSessionRequest())
    with pytest.raises(CommandTimeoutError):
        await runtime.run_in_session(BashAction(command="sleep 60", timeout=0.3))
    assert (await runtime.run_in_session(BashAction(command="echo on"))).output == "on\n"
    with pytest.raises(CommandTimeoutError):
        await runtime.execute(Command(command=["sleep", "60"], timeout=0.3))


async def test_an_action_can_be_interrupted(runtime: AgentwatchRuntime) -> None:
    """An interrupt ends the action that runs, and not its shell."""
    await runtime.create_session(CreateBashSessionRequest())
    # In one process: between two commands, the shell's own trap would take the signal.
    action = BashAction(command="sh -c 'touch begun; exec sleep 60'; true", check="silent")
    sleeping = asyncio.ensure_future(runtime.run_in_session(action))
    begun = runtime.watch.workspace / "begun"
    await asyncio.to_thread(wait_exists, begun)
    await runtime.run_in_session(BashInterruptAction())
    await asyncio.wait_for(sleeping, 30)
    assert (await runtime.run_in_session(BashAction(command="echo on"))).output == "on\n"


async def test_commands_run_as_they_are(runtime: AgentwatchRuntime) -> None:
    """Arguments, variables, folders and merged streams mean what they mean for `subprocess.run`."""
    await runtime.execute(Command(command=["mkdir", "a b"]))
    command = Command(command=["sh", "-c", 'pwd; echo "$0 $X" >&2', "*"], env={"X": "y z"}, cwd="a b")
    done = await runtime.execute(command)
    assert (done.stdout, done.stderr, done.exit_code) == (f"{runtime.watch.workspace}/a b\n", "* y z\n", 0)
    merged = await runtime.execute(command.model_copy(update={"merge_output_streams": True}))
    assert (merged.stdout, merged.stderr) == (f"{runtime.watch.workspace}/a b\n* y z\n", "")
    with pytest.raises(ValueError, match="shell=True"):
        await runtime.execute(Command(command="true"))


async def test_files_go_in_and_out(runtime: AgentwatchRuntime, tmp_path: Path) -> None:
    """Files are written with their folders, read with their encoding, and folders uploaded without links."""
    await runtime.write_file(WriteFileRequest(path="deep/er/file", content="grün\n"))
    assert (await runtime.read_file(ReadFileRequest(path="deep/er/file"))).content == "grün\n"
    with pytest.raises(FileNotFoundError):
        await runtime.read_file(ReadFileRequest(path="nowhere"))
    given = tmp_path / "given"
    (given / "sub").mkdir(parents=True)
    (given / "one").write_bytes(b"\xff\x00")
    (given / "sub" / "two").write_text("2")
    (given / "link").symlink_to("/etc/passwd")
    await runtime.upload(UploadRequest(source_path=str(given), target_path="there"))
    listed = await runtime.execute(Command(command="find there -type f -o -type l | sort", shell=True))
    assert listed.stdout == "there/one\nthere/sub/two\n"
    content = await runtime.read_file(ReadFileRequest(path="there/one", encoding="latin-1"))
    assert content.content == "\xff\x00"


async def test_a_link_leads_nowhere_that_commands_cannot_go(runtime: AgentwatchRuntime, tmp_path: Path) -> None:
    """A link that the agent made does not lead reads and writes out of the sandbox."""
    outside = tmp_path / "outside"
    outside.write_text("secret")
    await runtime.execute(Command(command=["ln", "-s", str(outside), "link"]))
    with pytest.raises(OSError):  # noqa: PT011 -- ENOENT or EACCES, by rung
        await runtime.read_file(ReadFileRequest(path="link"))
    with suppress(OSError):  # on rung A, the name belongs to the sandbox's own /tmp
        await runtime.write_file(WriteFileRequest(path="link", content="overwritten"))
    assert outside.read_text() == "secret"


async def test_terminals_are_refused(runtime: AgentwatchRuntime) -> None:
    """What these sessions cannot do is refused by name, not done half."""
    await runtime.create_session(CreateBashSessionRequest())
    with pytest.raises(NotImplementedError, match="terminal"):
        await runtime.run_in_session(BashAction(command="python3", is_interactive_command=True))


async def test_a_kill_ends_it_without_a_reason(runtime: AgentwatchRuntime) -> None:
    """After a kill the runtime is not alive and runs nothing, and says no more than that."""
    await runtime.create_session(CreateBashSessionRequest())
    runtime.watch.kill("a person's reason")
    alive = await runtime.is_alive()
    assert not alive
    assert "a person's reason" not in alive.message
    with pytest.raises(SessionEndedError):
        await runtime.run_in_session(BashAction(command="true"))
    with pytest.raises(SessionEndedError):
        await runtime.execute(Command(command=["true"]))
    await runtime.close()


async def test_a_deployment_begins_and_ends(tmp_path: Path) -> None:
    """Before its start there is no runtime, hooks are told of it, and its stop ends the watch."""
    told: list[str] = []

    class Hook(DeploymentHook):
        def on_custom_step(self, message: str) -> None:
            told.append(message)

    deployment = AgentwatchDeployment(workspace=tmp_path)
    deployment.add_hook(Hook())
    with pytest.raises(DeploymentNotStartedError):
        await deployment.is_alive()
    await deployment.start()
    watch = deployment.runtime.watch
    assert await deployment.is_alive()
    await deployment.stop()
    await deployment.stop()
    assert watch.has_ended
    assert len(told) == 1
