"""The part of `Watch` that is about telemetry: leases of GPUs, samples as a table, figures of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.watch.samples import Samples
from jupyter_agentwatch.wire.client import Client
from jupyter_agentwatch.wire.messages import Ack, Leased, LeaseGpu, ReleaseGpu

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go  # type: ignore[import-untyped]

    from jupyter_agentwatch.watch.live_figure import LiveFigure
    from jupyter_agentwatch.watch.sources import FigureName
    from jupyter_agentwatch.watch.telemetry_table import SampleKind

__all__ = ["WatchTelemetry"]

_ANSWER_S: Final = 15.0
_LIVE_POINTS: Final = 600


class WatchTelemetry:
    """What `Watch` inherits. It begins with its connection, and needs no more than that and the path of its log."""

    _client: Client

    @property
    def log(self) -> Path:
        """Path of the audit log."""
        raise NotImplementedError

    def _listen(self) -> None:
        """Keep the samples that the supervisor sends from now on."""
        self._samples = Samples()
        self._client.subscribe_samples(self._samples.put)

    @contextmanager
    def lease(self, gpu: int | str, *, purpose: str) -> Iterator[Leased]:
        """Say that a GPU is going to be used, for as long as the `with` block lasts. Begin and end are on record.

        Use of a GPU outside of any lease becomes a finding.

        Args:
            gpu: Index or UUID, as in the policy's `gpus`.
            purpose: What for, as "training"; 1 to 200 characters.

        Yields:
            The lease: its number and its device.

        Raises:
            ControlError: There is no such GPU, or the policy does not grant it.
            SessionEndedError: The watch has ended.

        Example:
            >>> with watch.lease(0, purpose="training"):  # doctest: +SKIP
            ...     watch.run("python train.py")
        """
        leased = self._client.request(LeaseGpu(gpu=gpu, purpose=purpose), Leased, timeout=_ANSWER_S)
        try:
            yield leased
        finally:
            with contextlib.suppress(AgentwatchError):  # the watch has ended, and all its leases with it
                self._client.request(ReleaseGpu(lease=leased.lease), Ack, timeout=_ANSWER_S)

    def telemetry(self, kind: SampleKind | None = None) -> pd.DataFrame:
        """Return the samples that this process has been told of, as far as they are kept; also after the end.

        Args:
            kind: Only rows about "gpu", "gpu_process" (a process on a GPU), "resources" (all processes of the sandbox
                together) or "process", with only its columns; None: all of them.

        Returns:
            One row for each thing that was measured, in the order of time; `time` is UTC. Names of processes are as
            these chose them.

        Raises:
            ValueError: There is no such kind.
        """
        from jupyter_agentwatch.watch.telemetry_table import sample_table

        return sample_table(self._samples.since()[1], kind)

    def figure(self, name: FigureName) -> go.Figure:
        """Return a figure of what was measured or is on record, to be shown, styled or saved.

        Args:
            name: "gpu" (utilisation, memory, power, temperature), "resources" (CPU, memory, processes, storage),
                "connections" (who talked to whom) or "reward" (what agents' runs earned, by the parts of the reward).

        Raises:
            ValueError: There is no such figure.
            LogError: The log cannot be read.
        """
        from jupyter_agentwatch.watch.figures import plotted
        from jupyter_agentwatch.watch.sources import open_source

        source = open_source(name, self._samples, self.log)
        source.update()
        return plotted(source.spec())

    def figure_widget(self, name: FigureName) -> LiveFigure:
        """Return a live figure for any ipywidgets box: updated twice a second until it is closed or the watch ends.

        Args:
            name: As for `figure`. Of telemetry it shows the last 600 points of each line.

        Raises:
            ValueError: There is no such figure.
            LogError: The log cannot be read.
        """
        from jupyter_agentwatch.watch.live_figure import LiveFigure
        from jupyter_agentwatch.watch.sources import open_source

        client = self._client
        return LiveFigure(open_source(name, self._samples, self.log, _LIVE_POINTS), lambda: client.has_ended)
