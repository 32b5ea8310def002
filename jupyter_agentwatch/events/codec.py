"""Bytes to events and back: the one JSON form of a record, shared by the log, the wire and exports."""

from __future__ import annotations

import msgspec

from jupyter_agentwatch.events import model
from jupyter_agentwatch.events.model_call import ModelCall

__all__ = ["AnyEvent", "decode_event", "encode_event"]

AnyEvent = (
    model.Session
    | model.Step
    | model.Exec
    | model.Exit
    | model.Connect
    | model.Listen
    | model.Dns
    | model.Flow
    | model.FileOp
    | model.LimitHit
    | model.Gpu
    | model.Resources
    | model.AgentNote
    | model.Reward
    | ModelCall
    | model.Finding
    | model.BreakerChanged
    | model.Control
    | model.Gap
)
"""Every kind of record."""

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode_event(event: model.Event) -> bytes:
    """Encode one event as compact JSON without a newline.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate (see `events.text.from_bytes`).
    """
    return _ENCODER.encode(event)


def decode_event(data: bytes) -> AnyEvent:
    """Decode one event; unknown kinds and unknown fields are errors.

    Raises:
        msgspec.DecodeError: Not JSON, or not an event of this version.
        UnicodeDecodeError: A text is not UTF-8.
        RecursionError: It is nested beyond all measure.
    """
    return _DECODER.decode(data)
