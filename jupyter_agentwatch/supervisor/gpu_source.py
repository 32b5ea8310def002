"""Where a watch's GPU samples come from, and whether what its policy says of GPUs can be held with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_agentwatch.errors import AgentwatchError, PolicyError
from jupyter_agentwatch.policy import Gpu, Policy

if TYPE_CHECKING:
    from jupyter_agentwatch.telemetry.backend import GpuBackend
    from jupyter_agentwatch.telemetry.model import GpuSample

__all__ = ["checked_source", "find_gpu", "source_note"]


def checked_source(policy: Policy) -> Callable[[], GpuBackend]:
    """Return what opens the source of GPU samples, after checking it as far as the policy relies on it.

    Where the machine's own GPUs are only to be looked at, nothing is loaded and no driver is asked.

    Raises:
        PolicyError: The trace cannot be read, a GPU of the policy is not among the simulated ones, or GPU time, which
            the policy bounds, cannot be measured.
    """
    telemetry = policy.telemetry
    trace = None if telemetry.trace is None else _absolute(telemetry.trace)

    def open_source() -> GpuBackend:
        from jupyter_agentwatch.telemetry.backend import open_gpus

        return open_gpus(simulate=telemetry.simulate_gpus, trace=trace)

    relies = policy.gpus if telemetry.simulate_gpus else [gpu for gpu in policy.gpus if gpu.max_gpu_seconds is not None]
    if relies or trace is not None:
        try:
            source = open_source()
        except AgentwatchError as error:
            msg = f"telemetry.trace: {error}"
            raise PolicyError(msg) from error
        try:
            _check(policy.gpus, source)
        finally:
            source.close()
    return open_source


def find_gpu(device: int | str, samples: Sequence[GpuSample]) -> GpuSample | None:
    """Return the sample of a device: a whole GPU by index, a GPU or MIG device by UUID; None where there is none."""
    for sample in samples:
        if sample.uuid == device or (sample.index == device and not sample.parent_uuid):
            return sample
    return None


def source_note(policy: Policy) -> str:
    """Return what a person must know of the GPUs that are shown, "" where they are the machine's own."""
    telemetry = policy.telemetry
    if telemetry.simulate_gpus:
        return f"GPUs are SIMULATED: {telemetry.simulate_gpus} that do not exist follow what commands do on the CPU"
    if telemetry.trace is not None:
        return f"GPUs are a RECORDED TRACE, not this machine's: {telemetry.trace}"
    return ""


def _check(gpus: Sequence[Gpu], source: GpuBackend) -> None:
    samples = source.sample(time.monotonic_ns(), time.time_ns(), ())
    for index, gpu in enumerate(gpus):
        sample = find_gpu(gpu.device, samples)
        if sample is None and samples and samples[0].source == "simulated":
            known = ", ".join(each.uuid for each in samples)
            msg = (
                f"gpus[{index}].device: no GPU {gpu.device!r} is simulated; there are 0 to {len(samples) - 1}: {known}"
            )
            raise PolicyError(msg)
        reason = _why_not_measured(sample, source)
        if gpu.max_gpu_seconds is not None and reason:
            msg = (
                f"gpus[{index}].max_gpu_seconds: GPU time cannot be measured here, so no bound can be held: {reason}; "
                "leave it out"
            )
            raise PolicyError(msg)


def _why_not_measured(sample: GpuSample | None, source: GpuBackend) -> str:
    if sample is None:
        return source.no_gpu.reason if source.no_gpu is not None else "the driver lists no such device"
    if sample.state != "ok":
        return sample.error or "the device does not answer"
    if sample.utilization is None and not sample.process_utilization:
        return "the driver does not tell this device's utilisation"
    return ""


def _absolute(name: str) -> str:
    home = str(Path.home())
    return home + name[1:] if name == "~" or name.startswith("~/") else name.replace("$HOME", home, 1)
