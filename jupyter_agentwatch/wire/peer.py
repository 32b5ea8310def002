"""The first and the single exchange with whoever listens on a control socket, without a thread.

Nothing is sent before the peer's user has been checked, and no answer is taken that is not of the expected class.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from jupyter_agentwatch import errors
from jupyter_agentwatch.errors import AgentwatchError, ControlError, RefusedError, SessionEndedError
from jupyter_agentwatch.wire.framing import FrameDecoder, encode_frame
from jupyter_agentwatch.wire.messages import PROTOCOL, Failed, FromSupervisor, Hello, Message, Request, Welcome

__all__ = [
    "GONE",
    "RECEIVE_BYTES",
    "answer_to",
    "check_peer",
    "error_from",
    "expect",
    "open_socket",
    "shake_hands",
    "talk",
]

GONE = "the supervisor is gone ({}); its sandbox ended with it"
"""Text of the error when the connection ends; the braces take the reason."""

RECEIVE_BYTES = 256 * 1024
"""Bytes read from a control socket at once."""

M = TypeVar("M", bound=Message)

_CREDENTIALS = struct.Struct("3i")


def check_peer(sock: socket.socket) -> int:
    """Return the process id of a connected AF_UNIX socket's other end.

    Raises:
        ControlError: It belongs neither to this user nor to root.
    """
    pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid not in {0, os.getuid()}:
        msg = f"the other end of the control socket is process {pid} of user {uid}, not yours; do not use it"
        raise ControlError(msg)
    return int(pid)


def error_from(message: Failed) -> AgentwatchError:
    """Return the exception that a refusal names; a plain `ControlError` and an unknown name become `RefusedError`."""
    kind = getattr(errors, message.error, None)
    if kind is ControlError:
        return RefusedError(message.text)
    if isinstance(kind, type) and issubclass(kind, AgentwatchError):
        return kind(message.text)
    return RefusedError(f"{message.error}: {message.text}")


def open_socket(path: str | Path, timeout: float) -> tuple[socket.socket, FrameDecoder[FromSupervisor]]:
    """Connect and check who listens.

    Raises:
        SessionEndedError: Nobody listens there.
        ControlError: Another user listens, or the connection was not taken in time.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        sock.connect(os.fspath(path))
        check_peer(sock)
    except OSError as error:
        sock.close()
        msg = f"no supervisor listens at {path}: {error.strerror or error}"
        raise (ControlError(msg) if isinstance(error, TimeoutError) else SessionEndedError(msg)) from error
    except ControlError:
        sock.close()
        raise
    return sock, FrameDecoder(msgspec.msgpack.Decoder(FromSupervisor))


def shake_hands(sock: socket.socket, frames: FrameDecoder[FromSupervisor], hello: Hello) -> Welcome:
    """Say hello over a fresh connection.

    Raises:
        SessionEndedError: The supervisor went away.
        ControlError: It is silent, or speaks another version.
    """
    welcome = expect(answer_to(talk(sock, frames, hello), hello.id), Welcome)
    if welcome.protocol != PROTOCOL:
        msg = f"the supervisor speaks version {welcome.protocol}, this client {PROTOCOL}; restart the watch"
        raise ControlError(msg)
    return welcome


def talk(sock: socket.socket, frames: FrameDecoder[FromSupervisor], *messages: Request) -> Iterator[Message]:
    """Send requests, then yield what comes back until the caller has had enough.

    Raises:
        SessionEndedError: The supervisor went away.
        ControlError: It is silent, or what it says is not of this protocol.
    """
    try:
        sock.sendall(b"".join(map(encode_frame, messages)))
        while data := sock.recv(RECEIVE_BYTES):
            yield from frames.feed(data)
    except TimeoutError as error:
        msg = f"the supervisor did not answer within {sock.gettimeout():g} s"
        raise ControlError(msg) from error
    except OSError as error:
        raise SessionEndedError(GONE.format(error.strerror)) from error
    raise SessionEndedError(GONE.format("end of stream"))


def answer_to(messages: Iterator[Message], number: int) -> Message:
    """Return the first message that answers the request with this id."""
    return next(message for message in messages if message.id == number)


def expect(message: Message | None, expected: type[M]) -> M:
    """Return a message of the expected class, or raise what a refusal names.

    Raises:
        AgentwatchError: The class that `Failed` names.
        ControlError: It is of another class.
    """
    if isinstance(message, expected):
        return message
    if isinstance(message, Failed):
        raise error_from(message)
    msg = f"the supervisor answered with {type(message).__name__} where {expected.__name__} was due"
    raise ControlError(msg)
