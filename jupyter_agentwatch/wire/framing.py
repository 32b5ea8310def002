"""Length-prefixed MessagePack on a stream socket: 4 bytes big-endian, then one message.

Pure: bytes in, messages out. A frame over `MAX_FRAME` or a message that is not ours is an error, and the
connection must then be closed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from jupyter_agentwatch.errors import ControlError

__all__ = ["MAX_FRAME", "FrameDecoder", "encode_frame"]

MAX_FRAME = 16 * 1024 * 1024
"""Largest message in bytes; output travels in pieces far below it."""

_LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()
T = TypeVar("T")


def encode_frame(message: msgspec.Struct) -> bytes:
    """Encode one message with its length in front."""
    body = _ENCODER.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameDecoder(Generic[T]):
    """Cuts a byte stream into messages of type `T`; feed it what arrived, in pieces of any size."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """Yield the messages that `data` completes.

        Raises:
            ControlError: A frame is too long, or does not hold one of our messages.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MAX_FRAME:
                msg = f"control message of {size} bytes: the limit is {MAX_FRAME}"
                raise ControlError(msg)
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                message = self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                msg = f"not a control message of this version: {error}"
                raise ControlError(msg) from error
            yield message
