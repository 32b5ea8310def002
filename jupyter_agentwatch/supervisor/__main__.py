"""Entry point: reads one `Launch` frame from standard input, stands the sandbox up, and says how that went.

Standard output carries exactly one JSON line (`LaunchReport`); standard error goes to a file beside the log.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jupyter_agentwatch import __version__
from jupyter_agentwatch.errors import AgentwatchError, RungError
from jupyter_agentwatch.policy import Limits, Policy
from jupyter_agentwatch.sandbox.cgroup import (
    Delegation,
    Leaf,
    can_be_left,
    clear_leaves,
    find_delegation,
    leaf_name,
    limits_by,
)
from jupyter_agentwatch.sandbox.places import check_workspace, plan_places
from jupyter_agentwatch.supervisor.claims import Claim, claim_workspace, clear_away, forget_silence, sweep
from jupyter_agentwatch.supervisor.descriptors import make_room
from jupyter_agentwatch.supervisor.ground import Ground, Site, begin
from jupyter_agentwatch.wire.framing import FrameDecoder
from jupyter_agentwatch.wire.messages import Launch, LaunchReport
from jupyter_agentwatch.wire.runtime import log_dir, runtime_dir

if TYPE_CHECKING:
    from jupyter_agentwatch.audit.log import AuditLog
    from jupyter_agentwatch.supervisor.core import Supervisor
    from jupyter_agentwatch.supervisor.proxy_process import ProxyProcess

__all__ = ["main"]


def main() -> int:
    """Run one watch to its end; return the exit status (125 when it could not begin)."""
    # The owner's terminal and its ■ are not ours: only the control socket, the owner's end and SIGKILL end a watch.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # the watchdog's: whoever started us may have had it ignored
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file size limit on the log must be an error, not our end
    launch: Launch | None = None
    try:
        launch = _read_launch()
        supervisor, claim = _stand_up(launch)
    except RungError as error:
        text = str(error) if launch is None else _diagnosis(str(error), launch.policy)
        _report(LaunchReport(error="RungError", text=text))
        return error.exit_code
    except AgentwatchError as error:
        _report(LaunchReport(error=type(error).__name__, text=str(error)))
        return error.exit_code
    except OSError as error:
        _report(LaunchReport(error="RungError", text=f"the supervisor could not start: {error}"))
        return RungError.exit_code
    sweep()
    gc.freeze()  # what start-up made lives to the end: keep the collector from walking it in a handler
    gc.set_threshold(50_000)
    gc.enable()
    supervisor.run(ready=lambda: _report(LaunchReport(ready=True)))
    forget_silence(Path(launch.log))
    claim.release()
    # The log is closed and nothing is left to do. A worker thread may still sit in a connect or a name look-up, and the
    # interpreter would wait for it.
    os._exit(0)


def _delegation_for(site: Site) -> Delegation | None:
    """Return where the watch's cgroup can be, None also where its programs could move themselves out of it."""
    delegation = find_delegation()
    if delegation is None or not delegation.controllers:
        return None
    places = plan_places(site.policy, site.workspace, site.python, site.package)
    writable = [Path(os.path.realpath(each)) for each, mode in places.items() if mode == "rw"]
    return None if can_be_left(writable) else delegation


def _make_leaf(delegation: Delegation | None, watch: str, limits: Limits, ground: Ground) -> None:
    """Make the watch's cgroup, unless there is nothing for it to hold, or the kernel refuses it.

    Args:
        delegation: Where.
        watch: Whose.
        limits: Its bounds.
        ground: Who is to be in it. Without a PID namespace forks are trapped in any case, and the supervisor holds the
            bound on them.
    """
    # Init counts, too.
    processes = limits.processes + 1 if limits.processes is not None and ground.rung == "A" else None
    if delegation is None or (processes is None and "memory" not in delegation.controllers):
        return
    with contextlib.suppress(RungError):  # as where nothing is delegated
        leaf = Leaf.create(delegation, leaf_name(watch), memory_bytes=limits.memory_bytes, processes=processes)
        ground.starting.belongs_to(leaf)


def _diagnosis(text: str, policy: Policy) -> str:
    """Name the probe that fails, of each rung that would have done; where none does, say what was seen while starting.

    Args:
        text: What was seen while starting.
        policy: Whose isolation cannot be had.
    """
    from jupyter_agentwatch.sandbox.probe import why_not

    if policy.isolation != "required":
        return why_not(policy.isolation) or text
    # Root cannot try rung A any more when it has given up its rights for rung B; what was seen then has to do.
    if os.getuid() == 0 and b"\nCapEff:\t0000000000000000\n" in Path("/proc/self/status").read_bytes():
        return "; ".join(filter(None, (text, why_not("B"))))
    return why_not("A", "B") or text


def _read_launch() -> Launch:
    decoder: FrameDecoder[Launch] = FrameDecoder(msgspec.msgpack.Decoder(Launch))
    while data := os.read(0, 1 << 16):
        for launch in decoder.feed(data):
            return launch
    msg = "standard input ended before a launch frame"
    raise RungError(msg)


def _report(report: LaunchReport) -> None:
    with contextlib.suppress(BrokenPipeError):  # the owner has gone: that ends the watch in its own way
        os.write(1, msgspec.json.encode(report) + b"\n")
    # The owner waits for the end of this stream on a failure only; nothing else may ever be written to it.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.close(quiet)


def _site(launch: Launch, workspace: Path) -> Site:
    return Site(
        policy=launch.policy,
        workspace=workspace,
        python=tuple(dict.fromkeys(Path(os.path.realpath(p)) for p in (*launch.python, sys.base_prefix))),
        package=Path(__file__).resolve().parent.parent,
        passed=launch.environ,
        fresh=Path(launch.socket).with_suffix(".fresh"),
    )


def _new_log(launch: Launch, policy: Policy, *, rung: str, limits_by: str) -> AuditLog:
    from hashlib import sha256

    from jupyter_agentwatch.audit.chain import FORMAT
    from jupyter_agentwatch.policy import policy_digest
    from jupyter_agentwatch.supervisor.record import open_log

    return open_log(
        Path(launch.log),
        watch=launch.watch,
        format=FORMAT,
        cell=launch.cell,
        version=__version__,
        rung=rung,
        workspace=launch.workspace,
        policy=msgspec.json.encode(policy).decode(),
        policy_sha256=policy_digest(policy),
        limits_by=limits_by,
        rules_sha256=sha256(launch.rules).hexdigest() if launch.rules else "",
        owner_pid=launch.owner_pid,
    )


def _stand_up(launch: Launch) -> tuple[Supervisor, Claim]:
    workspace = check_workspace(Path(launch.workspace), (Path.home(), runtime_dir(), log_dir()))
    claim = claim_workspace(workspace, launch.watch)
    try:
        return _on(workspace, launch), claim
    except BaseException:
        clear_away(launch.watch)
        claim.release()
        raise


def _start_proxy(launch: Launch) -> ProxyProcess | None:
    if not launch.policy.models.upstreams:
        return None
    from jupyter_agentwatch.policy import check_policy
    from jupyter_agentwatch.supervisor.proxy_process import start_proxy

    models = check_policy(launch.policy, "the policy").models
    return start_proxy(launch.watch, models, launch.model_keys)


def _on(workspace: Path, launch: Launch) -> Supervisor:
    policy = launch.policy
    make_room()
    proxy = _start_proxy(launch)
    site = _site(launch, workspace)
    ground, next_best = begin(site)
    # While bubblewrap is at work.
    delegation = _delegation_for(site)
    _make_leaf(delegation, launch.watch, policy.limits, ground)
    # A good part of a session's start is bubblewrap's and init's, another is these imports: they run side by side, so
    # what is not needed before is imported here (tests/test_supervisor_start.py).
    from jupyter_agentwatch.policy import check_policy
    from jupyter_agentwatch.supervisor.core import Supervisor
    from jupyter_agentwatch.supervisor.gpu_source import checked_source, source_note
    from jupyter_agentwatch.supervisor.host import Host
    from jupyter_agentwatch.supervisor.record import Recorder

    # Whoever started us may not have checked it. Nothing runs inside yet, and bubblewrap ends with us.
    policy = check_policy(policy, "the policy")
    gpus = checked_source(policy)
    try:
        sandbox = ground.finish()
    except RungError as refusal:
        ground = next_best(refusal)
        clear_leaves(launch.watch)
        _make_leaf(delegation, launch.watch, policy.limits, ground)
        sandbox = ground.finish()
    leaf = sandbox.leaf
    by = limits_by(delegation if leaf is not None else None, os.getuid(), traps_forks=sandbox.traps_forks)
    log = _new_log(launch, policy, rung=ground.rung, limits_by=by)
    supervisor: Supervisor | None = None

    def log_failed(why: str) -> None:
        if supervisor is not None:
            supervisor.trip(why)

    recorder = Recorder(log, launch.watch, log_failed, max_bytes=policy.audit.max_bytes)
    supervisor = Supervisor(
        launch=launch,
        policy=policy,
        sandbox=sandbox,
        recorder=recorder,
        environment=ground.environment,
        host=Host(
            ground.rung,
            by,
            count_tasks=sandbox.traps_forks and policy.limits.processes is not None,
            watch_memory=policy.limits.memory_bytes is not None and (leaf is None or "memory" not in leaf.controllers),
            leaf=leaf,
            gpus=gpus,
            writable=ground.writable,
            proxy=proxy,
        ),
    )
    supervisor.notes += filter(None, (*ground.notes, source_note(policy)))
    return supervisor


if __name__ == "__main__":
    sys.exit(main())
