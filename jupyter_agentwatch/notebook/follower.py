"""Records of a run for front-ends that have no Jupyter server to ask: read from its log, sent by the kernel."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from jupyter_agentwatch.errors import AgentwatchError, SessionEndedError
from jupyter_agentwatch.server.curves import Curves
from jupyter_agentwatch.server.history import recent_events
from jupyter_agentwatch.server.render import ended_json, status_json
from jupyter_agentwatch.server.runs import outcome_of
from jupyter_agentwatch.wire.client import Client
from jupyter_agentwatch.wire.messages import Killed
from jupyter_agentwatch.wire.runtime import audit_log, control_socket
from jupyter_agentwatch.wire.watches import watch_status

__all__ = ["Follower", "run_ended"]

_EVERY_S = 0.5
_AT_ONCE = 1000
_SAMPLES = 256
_PATIENCE = 4
_UNCOUNTED = Killed(killed=0, survivors=-1, latency_ms=0.0, head="", note="it does not answer, and its log has no end")


def run_ended(run: str) -> dict[str, Any] | None:
    """Return how a run ended, in the form of the server's answer; None where it goes on or nobody can tell.

    Args:
        run: Its id.
    """
    try:
        return ended_json(run, outcome_of(run))
    except AgentwatchError:
        return None


class Follower:
    """A thread that sends what a log gains, until it is told to stop or the run ends.

    Args:
        run: Id of the watch.
        send: Takes one message of the form that the server's stream has, plus `run_id`, and its buffers: one with the
            type "points" brings in its buffer what the stream sends as a binary message.
        after: Only records with a greater `seq` are sent.
    """

    def __init__(self, run: str, send: Callable[[dict[str, Any], list[bytes]], None], after: int = -1) -> None:
        self._run = run
        self._curves = Curves()
        self._samples: deque[bytes] = deque(maxlen=_SAMPLES)
        self._client: Client | None = None
        self._send = send
        self._after = after
        self._patience = _PATIENCE
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"agentwatch-follow-{run}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send nothing more; does not wait."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread; return whether it has ended.

        Args:
            timeout: Seconds to wait at most.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    is_live = self._tell()
                except AgentwatchError as error:
                    self._say({"type": "lost", "message": str(error)})
                    is_live = True
                if not is_live:
                    return
                self._stop.wait(_EVERY_S)
        finally:
            if self._client is not None:
                self._client.close()

    def _tell(self) -> bool:
        """Send what is new; return whether the run goes on."""
        try:
            status = watch_status(self._run, name="kernel")
        except SessionEndedError:
            ended = run_ended(self._run)
            if ended is None and self._patience > 0:
                self._patience -= 1
                return True  # it is just closing its log, which says what was left
            self._records()  # what was written last
            self._say({"type": "ended", "run": ended or ended_json(self._run, _UNCOUNTED)})
            return False
        self._say({"type": "state", "run": status_json(status)})
        self._records()
        self._telemetry()
        return True

    def _telemetry(self) -> None:
        if self._client is None or self._client.has_ended:
            self._client = Client.connect(control_socket(self._run), name="kernel")
            self._client.subscribe_samples(lambda sample, _left_out: self._samples.append(sample))
        news = self._curves.take([self._samples.popleft() for _ in range(len(self._samples))])
        if news.lines is not None:
            self._say(msgspec.json.decode(news.lines))
        if news.points is not None:
            self._say({"type": "points"}, news.points)

    def _records(self) -> None:
        events = recent_events(audit_log(self._run), self._after, _AT_ONCE)
        if events:
            self._after = events[-1]["seq"]
            self._say({"type": "events", "events": events})

    def _say(self, message: dict[str, Any], *buffers: bytes) -> None:
        if not self._stop.is_set():
            self._send({**message, "run_id": self._run}, list(buffers))
