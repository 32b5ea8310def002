"""What one look at GPUs and processes says. Pure: constructors read no clock, and what is not known is None.

These are live values for panels, traces and sums. What goes into the audit log are the kinds `gpu` and `resources` of
`jupyter_agentwatch.events`, which `telemetry.digest` makes from them at a lower rate.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "Attribution",
    "GpuProcess",
    "GpuSample",
    "GpuSource",
    "GpuState",
    "NoGpu",
    "NoGpuKind",
    "ProcessSample",
    "Reading",
    "Resources",
    "Snapshot",
]

Attribution = Literal["exact", "weak", "none"]
"""How surely a use of a GPU belongs to the process that it is put down to.

`exact`: the driver's process id is ours, and the process was looked at while it lived; `weak`: it rests on evidence
that can be wrong (the id may be another namespace's, the process ended before it was looked at, or a device's load was
divided among several); `none`: unattributed.
"""

GpuSource = Literal["nvml", "simulated", "trace"]
"""Where a sample comes from."""

GpuState = Literal["ok", "error", "ended"]
"""`error`: the driver or the device refuses, and it is asked again; `ended`: a recorded trace is over."""

NoGpuKind = Literal["library", "driver", "device", "permission", "other"]
"""What is missing: the NVML library, a loaded driver, a device, the right to ask, or something else."""

_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Percent = Annotated[float, Meta(ge=0, le=100)]
_Number = Annotated[float, Meta(ge=0, le=1e15)]
_Text = Annotated[str, Meta(max_length=512)]


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Immutable; what has its default is not written, and an unknown field is an error."""


class Reading(_Value, frozen=True, kw_only=True):
    """One distinct measurement of a GPU's utilisation.

    Attributes:
        t_ns: When the driver took it, Unix time in nanoseconds: the end of the interval that it speaks about.
        percent: Share of the interval in which a kernel was executing.
    """

    t_ns: _Count
    percent: _Percent


class GpuProcess(_Value, frozen=True, kw_only=True):
    """One process on one GPU.

    Attributes:
        pid: As the driver numbers it.
        sandbox_pid: As the sandbox numbers it; 0 where that is unknown or it is no member.
        start_ticks: Start time after boot in clock ticks, which with `pid` names the process for good; 0 if unknown.
        member: Whether it belongs to the sandbox; None where that cannot be known ("unattributed").
        attribution: How surely.
        step: Step that it belongs to, 0 if unknown.
        memory_bytes: GPU memory in use; None where the driver does not say.
        utilization: Percent of the interval that ended at `t_ns` in which its kernels were executing; None where the
            driver said nothing about it in the last second.
        memory_utilization: The same for memory transfers.
        t_ns: The driver's own time stamp of the two, Unix time in nanoseconds; 0 for none. The same stamp again is the
            same measurement again.
    """

    pid: _Count
    sandbox_pid: _Count = 0
    start_ticks: _Count = 0
    member: bool | None = None
    attribution: Attribution = "none"
    step: _Count = 0
    memory_bytes: _Count | None = None
    utilization: _Percent | None = None
    memory_utilization: _Percent | None = None
    t_ns: _Count = 0


class GpuSample(_Value, frozen=True, kw_only=True):
    """One GPU, or one MIG device, at one tick. None stands for what this device or driver does not tell.

    Attributes:
        index: Position in the driver's list; a MIG device has its parent's.
        uuid: Name that stays: "GPU-…" or "MIG-…".
        name: Model name.
        parent_uuid: GPU that a MIG device is a part of, "" for a whole GPU.
        instance: Of a MIG device: GPU instance and compute instance, as "1.0".
        source: Backend that it comes from.
        simulated: It is not real. True in every sample of the simulation, and of a trace recorded from it.
        state: Whether the device answers.
        error: What the driver said, where `state` is not "ok".
        t_mono_ns: When we asked, monotonic clock, nanoseconds.
        t_wall_ns: When we asked, Unix time, nanoseconds.
        utilization: Percent of the driver's last interval in which a kernel was executing.
        memory_utilization: Percent of it in which device memory was read or written.
        readings: Measurements of the utilisation that were not in any sample before, oldest first.
        stamped: The readings bear the driver's own time stamps; otherwise `t_ns` is when we asked.
        memory_used_bytes: Device memory in use.
        memory_total_bytes: Device memory.
        power_w: Power draw, watts.
        power_limit_w: Enforced power limit, watts.
        energy_j: The driver's energy counter, joules.
        temperature_c: Temperature of the chip, degrees Celsius.
        sm_clock_mhz: Clock of the multiprocessors.
        memory_clock_mhz: Clock of the memory.
        throttle_reasons: NVML's bit mask of why the clocks are lower than they could be.
        ecc_corrected: Corrected memory errors since the driver was loaded.
        ecc_uncorrected: Uncorrected ones.
        xids: Critical errors (NVIDIA's XID numbers) that were reported since the last sample.
        process_utilization: Whether the driver measures utilisation per process on this device.
        processes: Who is on it.
    """

    index: _Count
    uuid: _Text
    name: _Text = ""
    parent_uuid: _Text = ""
    instance: _Text = ""
    source: GpuSource
    simulated: bool = False
    state: GpuState = "ok"
    error: _Text = ""
    t_mono_ns: _Count = 0
    t_wall_ns: _Count = 0
    utilization: _Percent | None = None
    memory_utilization: _Percent | None = None
    readings: Annotated[list[Reading], Meta(max_length=1024)] = []
    stamped: bool = False
    memory_used_bytes: _Count | None = None
    memory_total_bytes: _Count | None = None
    power_w: _Number | None = None
    power_limit_w: _Number | None = None
    energy_j: _Number | None = None
    temperature_c: Annotated[float, Meta(ge=-273, le=1000)] | None = None
    sm_clock_mhz: _Count | None = None
    memory_clock_mhz: _Count | None = None
    throttle_reasons: _Count | None = None
    ecc_corrected: _Count | None = None
    ecc_uncorrected: _Count | None = None
    xids: Annotated[list[_Count], Meta(max_length=64)] = []
    process_utilization: bool = False
    processes: Annotated[list[GpuProcess], Meta(max_length=4096)] = []


class NoGpu(_Value, frozen=True, kw_only=True):
    """There is nothing to sample, and why: a panel says it instead of showing zeros."""

    kind: NoGpuKind
    reason: str


class ProcessSample(_Value, frozen=True, kw_only=True):
    """One process at one tick.

    Attributes:
        pid: Process id as the host sees it.
        start_ticks: Start time after boot, clock ticks; with `pid` it names the process for good.
        ppid: Parent, as the host sees it.
        name: Short name, at most 15 bytes of the process's own choice: hostile text.
        state: The kernel's letter: R running, S sleeping, D waiting for a device, T stopped, Z zombie …
        cpu_s: CPU time used so far, seconds; resolution 1/100 s.
        cpu_percent: Percent of one core over the last 0.5 to 1 s; over less only where it is younger.
        rss_bytes: Resident memory.
        threads: Threads.
        read_bytes: Bytes read from storage so far; None where the kernel does not say.
        write_bytes: Bytes caused to be written to storage so far; None as above.
    """

    pid: int
    start_ticks: int
    ppid: int
    name: str
    state: str
    cpu_s: float
    cpu_percent: float
    rss_bytes: int
    threads: int
    read_bytes: int | None = None
    write_bytes: int | None = None


class Resources(_Value, frozen=True, kw_only=True):
    """All processes of the sandbox at one tick.

    Attributes:
        t_mono_ns: When they were read.
        processes: Each one that was read.
        unread: Processes that are there and were not read: too many, or not readable.
        cpu_s: CPU time of all so far, seconds, ended processes that a living one has waited for included.
        cpu_percent: Percent of one core over the last 0.5 to 1 s, short-lived processes included.
        rss_bytes: Resident memory of all; shared pages count for each.
        threads: Threads of all.
        read_bytes: Bytes read from storage so far, by ended processes too, as far as they were seen.
        write_bytes: Bytes written, likewise.
    """

    t_mono_ns: int
    processes: list[ProcessSample] = []
    unread: int = 0
    cpu_s: float = 0.0
    cpu_percent: float = 0.0
    rss_bytes: int = 0
    threads: int = 0
    read_bytes: int = 0
    write_bytes: int = 0


class Snapshot(_Value, frozen=True, kw_only=True):
    """Everything that one tick saw.

    Attributes:
        seq: Number of the snapshot, from 0 without gaps.
        t_mono_ns: When the tick began, monotonic clock, nanoseconds.
        t_wall_ns: The same, Unix time.
        dropped: Ticks that were left out since the last snapshot because sampling was late.
        gpus: Each GPU and MIG device.
        no_gpu: Why there is none; None where there is one.
        resources: The sandbox's processes.
    """

    seq: int
    t_mono_ns: int
    t_wall_ns: int
    dropped: int = 0
    gpus: list[GpuSample] = []
    no_gpu: NoGpu | None = None
    resources: Resources
