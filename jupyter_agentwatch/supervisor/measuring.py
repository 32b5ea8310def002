"""What becomes of each telemetry sample: records at 1 Hz, findings of use outside leases, budgets that trip the watch.

Loaded after the sandbox stands. Samples are taken in on the sampler's thread, leases come from the control thread; one
lock stands between them, and nothing is written under it; another lets the end wait for what is being written.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import Event, Finding, Gpu, LimitHit, Severity, printable
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.supervisor.gpu_budgets import BudgetedUsage
from jupyter_agentwatch.supervisor.gpu_source import find_gpu
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.telemetry.digest import Digest, Entry
from jupyter_agentwatch.telemetry.leases import Lease, LeaseBook, LeaseError
from jupyter_agentwatch.telemetry.model import GpuSample, Snapshot

__all__ = ["Measuring", "Surroundings", "packed"]

_SENT: Final = 64
_SAID_AGAIN_NS: Final = 60_000_000_000
_WORTH_SAYING_S: Final = 0.1
_MANY: Final = 1024
_TRIPPED_NS: Final = 1_000_000_000
_LAST_RECORD_S: Final = 1.0
"""How long the end waits for the sampler's thread to write. It may itself wait for who ends the watch."""
_SEVERITY: Final[dict[str, Severity]] = {"exact": "high", "weak": "medium", "none": "low"}

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What measuring needs of its watch.

    Attributes:
        policy: The policy.
        recorder: Where records go.
        step_of: Returns the step of a process by its host pid, 0 where it is unknown; does not raise.
        is_running: Whether processes run: the watch is neither frozen nor ended.
        trip: Suspends the watch, with a reason. Any thread.
    """

    policy: Policy
    recorder: Recorder
    step_of: Callable[[int], int]
    is_running: Callable[[], bool]
    trip: Callable[[str], None]


@dataclass(slots=True)
class _Outside:
    seconds: float = 0.0
    seqs: tuple[int, ...] = ()
    said_ns: int = -_SAID_AGAIN_NS


class Measuring:
    """The sums, leases and budgets of one watch.

    Args:
        around: What it needs of its watch.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._book = LeaseBook()
        self._usage = BudgetedUsage(around.policy.gpus)
        self._digest = Digest(self._usage, self._book, step_of=around.step_of)
        self._last: Snapshot | None = None
        self._of_step: dict[int, int] = {}
        self._open: set[int] = set()
        self._outside: dict[tuple[str, int], _Outside] = {}
        self._told_ns = 0
        self._is_closed = False

    # -- the sampler's thread --------------------------------------------------------------------------------------

    def take(self, snapshot: Snapshot) -> None:
        """Take a sample into account, and write what it completes."""
        with self._writing:
            with self._lock:
                if self._is_closed:
                    return
                self._last = snapshot
                self._usage.know(snapshot)
                entries = self._digest.feed(snapshot)
            self._write(entries)
        self._hold_budgets(snapshot.t_mono_ns)

    def failed(self, what: str, rule: str) -> None:
        """Put on record that nothing is measured; where a budget relies on it, the watch is suspended. Any thread."""
        self._find(rule, f"GPUs and processes are not measured: {what}", "high", family="monitor")
        if self._usage:
            self._around.trip(f"gpus[].max_gpu_seconds cannot be held: {what}")

    # -- the control thread ----------------------------------------------------------------------------------------

    def lease(self, gpu: int | str, purpose: str, *, step: int = 0) -> tuple[Lease, GpuSample]:
        """Enter a lease that begins now.

        Args:
            gpu: Index or UUID.
            purpose: What for, 1 to 200 characters.
            step: The step that it is for; 0 for all.

        Returns:
            The lease, and the last sample of its device.

        Raises:
            ControlError: There is no such GPU, the policy does not grant it, or the purpose is no text for it.
        """
        with self._lock:
            sample = self._granted(gpu)
            try:
                lease = self._book.lease(sample.uuid, purpose, time.time_ns(), step=step)
            except LeaseError as error:
                raise ControlError(str(error)) from error
            self._open.add(lease.id)
            if step:
                self._of_step[step] = lease.id
        self._tell("lease", lease, sample)
        return lease, sample

    def release(self, lease_id: int) -> None:
        """End a lease; one that has ended stays as it is.

        Raises:
            ControlError: There is no such lease.
        """
        with self._lock:
            is_open = lease_id in self._open
            self._open.discard(lease_id)
            try:
                lease = self._book.release(lease_id, time.time_ns())
            except LeaseError as error:
                raise ControlError(str(error)) from error
            sample = find_gpu(lease.device, self._last.gpus) if self._last is not None else None
        if is_open:
            self._tell("release", lease, sample)

    def step_ended(self, step: int) -> None:
        """End the lease of a step, if it has one: what it left behind has none any more."""
        lease_id = self._of_step.pop(step, None)
        if lease_id is not None:
            self.release(lease_id)

    def close(self) -> None:
        """Write the last sums, and end every lease; what comes afterwards is not taken. Idempotent."""
        for lease_id in sorted(self._open):
            self.release(lease_id)
        with self._lock:
            entries = [] if self._is_closed else self._digest.flush()
            self._is_closed = True
        self._write(entries)
        # An interval that ended just now is not lost either: the log is closed after this.
        if self._writing.acquire(timeout=_LAST_RECORD_S):
            self._writing.release()

    # -- records ---------------------------------------------------------------------------------------------------

    def _granted(self, gpu: int | str) -> GpuSample:
        last, policy = self._last, self._around.policy
        sample = find_gpu(gpu, last.gpus) if last is not None else None
        if last is None or sample is None:
            reason = last.no_gpu.reason if last is not None and last.no_gpu is not None else ""
            known = ", ".join(f"{each.index} ({each.uuid})" for each in last.gpus) if last is not None else ""
            msg = f"lease: no GPU {printable(str(gpu), 100)} here: {reason or f'there are {known}'}"
            raise ControlError(msg)
        if policy.gpus or not policy.telemetry.simulate_gpus:
            named = {sample.uuid, *({sample.parent_uuid} - {""}), *(() if sample.parent_uuid else (sample.index,))}
            if not any(granted.device in named for granted in policy.gpus):
                msg = f"lease: GPU {sample.index} ({sample.uuid}) is not among the policy's gpus; add it there first"
                raise ControlError(msg)
        return sample

    def _write(self, entries: list[Entry]) -> None:
        for entry in entries:
            seq = self._record(entry.kind, basis="post", pid=entry.pid, step=entry.step, **entry.fields)
            if entry.outside and seq is not None:
                self._add_outside(entry, seq)

    def _add_outside(self, entry: Entry, seq: int) -> None:
        """Tell of use outside a lease: once a minute for each device and step, and not of a moment's."""
        fields, policy = entry.fields, self._around.policy
        sure = str(fields["attribution"])
        if fields["source"] == "trace" or (sure == "none" and not (policy.gpus or fields["simulated"])):
            return  # nothing inside can reach a GPU that was not granted: it is somebody else's use
        if len(self._outside) >= _MANY:
            self._outside.clear()
        known = self._outside.setdefault((str(fields["device"]), entry.step), _Outside())
        known.seconds += float(fields["outside_s"])
        known.seqs = (*known.seqs[-15:], seq)
        now_ns = time.monotonic_ns()
        if known.seconds < _WORTH_SAYING_S or now_ns - known.said_ns < _SAID_AGAIN_NS:
            return
        seconds, seqs = known.seconds, known.seqs
        known.seconds, known.seqs, known.said_ns = 0.0, (), now_ns
        whose = f"{'' if sure == 'exact' else 'perhaps '}by process {fields['driver_pid']}"
        label = " SIMULATED" if fields["simulated"] else ""
        title = f"{label} GPU {fields['index']} is used outside of any lease, {whose}: {seconds:.2f} GPU s"
        self._find(
            "agentwatch.gpu_outside_lease",
            title.strip(),
            _SEVERITY[sure],
            family="diversion",
            technique="T1496",
            evidence=list(seqs),
            step=entry.step,
            pid=entry.pid,
        )

    def _hold_budgets(self, now_ns: int) -> None:
        if not self._usage:
            return
        if not self._around.is_running():
            return  # what kernels that run on already use then counts, and is told of when the watch goes on
        # What runs a second after a trip was resumed, perhaps between two samples.
        if now_ns - self._told_ns > _TRIPPED_NS:
            self._usage.grant_more(now_ns)
        for overrun in self._usage.overruns(now_ns):
            self._told_ns = now_ns
            if overrun.blind:
                self.failed(f"{overrun.name}: {overrun.blind}", "agentwatch.gpu_unmeasured")
                continue
            action = "watch suspended; GPU kernels that were launched may go on"
            bound = {"limit": overrun.name, "value": overrun.used_s, "maximum": overrun.maximum_s, "action": action}
            self._record(LimitHit, verdict="deny", sync=True, **bound)
            self._around.trip(f"{overrun.name}: {overrun.used_s:.1f} of {overrun.maximum_s:g} GPU seconds are used")

    def _tell(self, op: str, lease: Lease, sample: GpuSample | None) -> None:
        simulated = sample.simulated if sample is not None else False
        fields: dict[str, Any] = {"device": lease.device, "lease": lease.id, "purpose": lease.purpose}
        self._record(Gpu, op=op, step=lease.step, simulated=simulated, **fields)

    def _find(self, rule: str, title: str, severity: Severity, **fields: Any) -> None:
        self._record(Finding, rule=rule, title=title, severity=severity, sync=True, **fields)

    def _record(self, kind: type[Event], **fields: Any) -> int | None:
        with contextlib.suppress(LogWriteError):  # the recorder has told of it, and the watch is suspended
            try:
                return self._around.recorder.record(kind, **fields)
            except ValueError:
                if not self._is_closed:
                    raise
        return None


def packed(snapshot: Snapshot) -> bytes:
    """Return a sample as it is sent: of each list of processes only the busiest 64, so that a crowd makes it no longer.

    What is left out of the sandbox's processes is counted in `unread`.
    """
    found = snapshot.resources
    if len(found.processes) > _SENT:
        busiest = sorted(found.processes, key=lambda each: (-each.cpu_percent, -each.rss_bytes))[:_SENT]
        cut = len(found.processes) - _SENT
        found = msgspec.structs.replace(found, processes=busiest, unread=found.unread + cut)
        snapshot = msgspec.structs.replace(snapshot, resources=found)
    if any(len(gpu.processes) > _SENT for gpu in snapshot.gpus):
        snapshot = msgspec.structs.replace(snapshot, gpus=[_cut(gpu) for gpu in snapshot.gpus])
    return _encode(snapshot)


def _cut(gpu: GpuSample) -> GpuSample:
    busiest = sorted(gpu.processes, key=lambda each: (-(each.utilization or 0.0), -(each.memory_bytes or 0)))
    return msgspec.structs.replace(gpu, processes=busiest[:_SENT])
