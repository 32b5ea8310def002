"""What the supervisor does in the place of the namespaces that a sandbox on rung B or C has not got."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jupyter_agentwatch.sandbox.notify import Listener, Notification
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.metadata import Metadata
from jupyter_agentwatch.supervisor.neighbours import NeighbourGuard
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.supervisor.shared_memory import SharedMemory
from jupyter_agentwatch.supervisor.sockets import MadeSockets

__all__ = ["StandIns"]


class StandIns:
    """Handlers of the calls that only a sandbox without namespaces has to trap, or has to treat in another way.

    Args:
        listener: Answers calls.
        tasks: Who makes them.
        root: What names are resolved in.
        recorder: Where records go.
        sockets: Makes every socket.
        init_pid: The sandbox's processes stem from this one.
        writable: Real names of what commands may write to.
        shared_memory: Folder that stands for /dev/shm.

    Attributes:
        metadata: Sets modes and times.
    """

    def __init__(
        self,
        *,
        listener: Listener,
        tasks: TaskTable,
        root: Root,
        recorder: Recorder,
        sockets: MadeSockets,
        init_pid: int,
        writable: Sequence[str],
        shared_memory: str,
    ) -> None:
        self.metadata = Metadata(root, writable)
        self._sockets = sockets
        self._guard = NeighbourGuard(listener, tasks, recorder, init_pid)
        self._shared_memory = SharedMemory(listener, tasks, recorder, shared_memory)

    def handlers(
        self, plain: Mapping[str, Callable[[Notification], None]]
    ) -> dict[str, Callable[[Notification], None]]:
        """Return what handles each call, by the call's name.

        Args:
            plain: What handles calls where namespaces hold; it still does for names outside of /dev/shm.
        """
        return {
            "socket": self._sockets.make,
            **self._guard.handlers(),
            **self._shared_memory.before(plain),
        }
