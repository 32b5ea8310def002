"""Entry point of the model proxy: reads its setup from standard input, then serves until the supervisor has ended."""

from __future__ import annotations

import array
import ctypes
import os
import resource
import signal
import socket
import sys
import threading

import msgspec

from jupyter_agentwatch.proxy.server import ModelProxy
from jupyter_agentwatch.wire.model_messages import FromProxy, Open, ProxySetup, ToProxy

__all__ = ["main"]

_MAX_MESSAGE = 1 << 16
_PR_SET_DUMPABLE = 4
_MAX_MEMORY = 4 << 30
"""Bytes of address space: what comes from inside must not be able to fill the machine's memory."""


def main() -> int:
    """Serve the supervisor that started this process; end with it."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the owner's terminal and its ■ are not ours
    # Where files are not confined (rung C), this process's memory would be one of them; and no key goes into a core.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    setup = msgspec.json.decode(sys.stdin.buffer.read(), type=ProxySetup)
    control = socket.socket(fileno=setup.control)
    control.setblocking(True)
    proxy = ModelProxy(setup, _Teller(control).tell)
    decoder: msgspec.json.Decoder[ToProxy] = msgspec.json.Decoder(ToProxy)
    while True:
        fds = array.array("i")
        data, ancillary, _, _ = control.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(rights)
        if not data:
            # Threads may still wait for an upstream; nobody is left who could want its answer.
            os._exit(0)
        message = decoder.decode(data)
        if isinstance(message, Open):
            proxy.opened(message, socket.socket(fileno=fds[0]))
        else:
            proxy.judged(message)


class _Teller:
    """Sends messages from any thread, whole and one after the other."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()

    def tell(self, message: FromProxy) -> None:
        """Send a message; where the supervisor has gone, so have we."""
        try:
            with self._lock:
                self._control.send(msgspec.json.encode(message))
        except OSError:
            os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
