"""Socket addresses as raw bytes: parsing what a target passed, and calls made with exactly those bytes.

The bytes are copied once; what is parsed and judged is what the call is made with.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from jupyter_agentwatch.events import from_bytes

__all__ = ["MAX_SIZE", "Address", "bind_raw", "connect_raw", "is_inside", "listen_raw", "parse_address"]

MAX_SIZE: Final = 128
"""sizeof(struct sockaddr_storage); the kernel refuses more."""

_MAPPED: Final = bytes(10) + b"\xff\xff"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address.

    `host` is a literal for INET families (a mapped one in its IPv4 form, whatever the socket's family), and the name's
    text for UNIX ("@…" is abstract).
    """

    family: int
    host: str = ""
    port: int = 0
    scope: int = 0
    path: bytes = b""


def parse_address(raw: bytes) -> Address | None:
    """Parse the bytes of a sockaddr; None where they are too short for their family or the family is unknown."""
    if len(raw) < 2:
        return None
    (family,) = struct.unpack_from("=H", raw)
    if family == socket.AF_UNSPEC:
        return Address(family)
    if family == socket.AF_UNIX:
        return _unix(raw[2:])
    if family == socket.AF_INET and len(raw) >= 8:
        return Address(family, socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big"))
    if family == socket.AF_INET6 and len(raw) >= 24:
        scope = struct.unpack_from("=I", raw, 24)[0] if len(raw) >= 28 else 0
        # By its bytes: the text of ::ffff:1:2:3, which is no mapped address, has the same prefix.
        is_mapped = raw[8:20] == _MAPPED
        host = socket.inet_ntop(socket.AF_INET, raw[20:24]) if is_mapped else socket.inet_ntop(family, raw[8:24])
        return Address(family, host, int.from_bytes(raw[2:4], "big"), scope)
    return None


def _unix(name: bytes) -> Address:
    if name[:1] == b"\0":
        return Address(socket.AF_UNIX, "@" + from_bytes(name[1:]), path=name)
    name = name.split(b"\0", 1)[0]
    return Address(socket.AF_UNIX, from_bytes(name), path=name)


@lru_cache(1024)
def is_inside(host: str) -> bool:
    """Say whether an INET literal means the sandbox itself: loopback, or the unspecified address, which is local."""
    address = ipaddress.ip_address(host)
    return address.is_loopback or address.is_unspecified


def connect_raw(fd: int, raw: bytes) -> int:
    """Connect with exactly these bytes; return 0 or the errno. May block where the socket blocks."""
    return 0 if _libc.connect(fd, raw, len(raw)) == 0 else ctypes.get_errno()


def bind_raw(fd: int, raw: bytes) -> int:
    """Bind with exactly these bytes; return 0 or the errno."""
    return 0 if _libc.bind(fd, raw, len(raw)) == 0 else ctypes.get_errno()


def listen_raw(fd: int, backlog: int) -> int:
    """Listen; return 0 or the errno."""
    return 0 if _libc.listen(fd, backlog) == 0 else ctypes.get_errno()
