"""The state that the kernel sees a TCP socket in, for those who must not act on one that is in use."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["TCP_CLOSE", "TCP_SYN_SENT", "tcp_state"]

TCP_SYN_SENT: Final = 2
"""It has begun to connect."""

TCP_CLOSE: Final = 7
"""It is not connected: new, refused, or reset by its peer."""


def tcp_state(sock: socket.socket) -> int:
    """Return the state of a TCP socket, numbered as the kernel does (`include/net/tcp_states.h`).

    Raises:
        OSError: It is not one.
    """
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
