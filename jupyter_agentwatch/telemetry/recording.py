"""Records a trace of this machine's GPUs, so that a machine without one can replay it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from jupyter_agentwatch.events import printable
from jupyter_agentwatch.telemetry.backend import GpuBackend, open_gpus
from jupyter_agentwatch.telemetry.model import GpuSource
from jupyter_agentwatch.telemetry.schedule import Schedule
from jupyter_agentwatch.telemetry.trace import MAX_TRACE_BYTES, TRACE_VERSION, TraceError, TraceHeader, TraceTick

__all__ = ["record"]


def record(
    path: str | Path,
    seconds: float,
    *,
    hz: float = 10.0,
    note: str = "",
    gpus: GpuBackend | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Write a trace and return the number of its samples. Process ids are in it, names are not.

    Args:
        path: A file that does not exist yet; readable by this user only.
        seconds: How long to record.
        hz: Samples per second, 0.1 to 50.
        note: What runs meanwhile; goes into the header.
        gpus: What to record; the real GPUs by default. Closed at the end.
        sleep: Waits for the next sample.

    Raises:
        TraceError: There is no GPU, the file exists or cannot be written, or it would grow too large.
        ValueError: `seconds` or `hz` is out of range, or `note` has more than 1000 characters.
    """
    if not 0 < seconds <= 86_400:
        msg = f"seconds: {seconds} is not above 0 and up to 86400"
        raise ValueError(msg)
    if len(note) > 1000:
        msg = f"note: {len(note)} characters; 1000 are allowed"
        raise ValueError(msg)
    schedule = Schedule(hz, time.monotonic_ns())
    backend = open_gpus() if gpus is None else gpus
    try:
        header = TraceHeader(
            format="agentwatch-gpu-trace",
            version=TRACE_VERSION,
            recorded=_source(backend),
            t_wall_ns=time.time_ns(),
            note=note,
        )
        return _write(path, header, backend, schedule, seconds, sleep)
    except OSError as error:
        msg = f"{printable(str(path))}: the trace cannot be written: {error.strerror}"
        raise TraceError(msg) from error
    finally:
        backend.close()


def _source(backend: GpuBackend) -> GpuSource:
    samples = backend.sample(time.monotonic_ns(), time.time_ns(), ())
    if backend.no_gpu is not None or not samples:
        reason = backend.no_gpu.reason if backend.no_gpu is not None else "no device answered"
        msg = f"there is nothing to record: {reason}"
        raise TraceError(msg)
    return samples[0].source


def _write(
    path: str | Path,
    header: TraceHeader,
    backend: GpuBackend,
    schedule: Schedule,
    seconds: float,
    sleep: Callable[[float], None],
) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    encode = msgspec.json.Encoder().encode
    count = 0
    with open(fd, "wb") as file:
        written = file.write(encode(header) + b"\n")
        began_ns = now_ns = time.monotonic_ns()
        while now_ns - began_ns <= seconds * 1e9:
            if schedule.take(now_ns) is not None:
                tick = TraceTick(t_s=(now_ns - began_ns) / 1e9, gpus=backend.sample(now_ns, time.time_ns(), ()))
                line = encode(tick) + b"\n"
                if written + len(line) > MAX_TRACE_BYTES:
                    msg = f"{printable(str(path))}: the trace reached {MAX_TRACE_BYTES} bytes and was ended there"
                    raise TraceError(msg)
                written += file.write(line)
                count += 1
            sleep(schedule.wait_ns(time.monotonic_ns()) / 1e9)
            now_ns = time.monotonic_ns()
    return count
