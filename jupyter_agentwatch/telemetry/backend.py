"""What every source of GPU samples can do, and the choice of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jupyter_agentwatch.telemetry.model import GpuSample, NoGpu, ProcessSample

__all__ = ["GpuBackend", "open_gpus"]


class GpuBackend(Protocol):
    """A source of GPU samples. Used by one thread at a time; `sample` may block for as long as the driver does."""

    @property
    def no_gpu(self) -> NoGpu | None:
        """Why there is no GPU, as the last `sample` found; None where there is one."""

    def sample(self, t_mono_ns: int, t_wall_ns: int, processes: Sequence[ProcessSample]) -> list[GpuSample]:
        """Look once at every device.

        Args:
            t_mono_ns: Monotonic clock, nanoseconds; never less than at the call before.
            t_wall_ns: Unix time, nanoseconds.
            processes: The sandbox's processes; only the simulation looks at them.
        """

    def close(self) -> None:
        """Let go of the driver. Idempotent."""


def open_gpus(*, simulate: int = 0, trace: str | Path | None = None, speed: float = 1.0, seed: int = 0) -> GpuBackend:
    """Return the source that is asked for: NVML, unless told otherwise. NVML itself is first touched by `sample`.

    Args:
        simulate: Number of simulated GPUs, 0 for none.
        trace: Recorded trace to replay.
        speed: Seconds of the trace for each second that passes.
        seed: Seed of the simulation.

    Raises:
        TraceError: The trace is not one; the text names its line.
        ValueError: Both a simulation and a trace, or a number out of range.
    """
    if simulate and trace is not None:
        msg = "simulate and trace: only one of them can stand for the GPUs"
        raise ValueError(msg)
    if trace is not None:
        from jupyter_agentwatch.telemetry.trace import TraceGpus

        return TraceGpus(trace, speed=speed)
    if simulate:
        from jupyter_agentwatch.telemetry.simulated import SimulatedGpus

        return SimulatedGpus(simulate, seed=seed)
    from jupyter_agentwatch.telemetry.nvml import NvmlGpus

    return NvmlGpus()
