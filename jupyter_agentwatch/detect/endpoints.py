"""Destinations as programs name them: URLs, `host:port`, `user@host:path`, and which addresses are whose.

Pure: no name is looked up, and a name that says nothing about itself counts as outside.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal

import msgspec

from jupyter_agentwatch.detect.expressions import lazy_pattern

__all__ = ["Endpoint", "Zone", "is_address", "is_open", "parse_endpoint", "remote_copy", "zone_of"]

Zone = Literal["loopback", "metadata", "link-local", "private", "outside"]
"""Whose an address is. "metadata" is where clouds hand out credentials; documentation ranges count as "outside"."""

_METADATA: Final = frozenset(
    {
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("fd00:ec2::254", "fd20:ce::254", "metadata.google.internal", "metadata", "instance-data"),
        *("metadata.azure.com", "metadata.tencentyun.com", "metadata.platformequinix.com"),
    }
)
_URL: Final = lazy_pattern(
    r"([a-z][a-z0-9+.-]{0,31})://(?:([^/@\s]{0,256})@)?(\[[0-9a-fA-F:.]+\]|[^:/?#\s]*)(?::(\d{1,5}))?(.*)",
    re.IGNORECASE | re.DOTALL,
)
_HOST_PORT: Final = lazy_pattern(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]{1,253}):(\d{1,5})")
_COPY: Final = lazy_pattern(
    r"(?:([\w.+-]{1,64})@)?(\[[0-9a-fA-F:.]+\]|[\w.-]{1,253}|\$\{\w+\}):(?!\d+$|//)(.*)",
    re.DOTALL,
)
_INNER_NAME: Final = lazy_pattern(
    r"(?:^|\.)(?:internal|intranet|corp|lan|local|localdomain|home\.arpa|svc|cluster\.local)$"
)


class Endpoint(msgspec.Struct, frozen=True):
    """Where something goes: scheme ("" for none), user, host in lower case, port (0 for none) and what follows."""

    scheme: str
    user: str
    host: str
    port: int
    path: str = ""

    @property
    def zone(self) -> Zone:
        """Whose the host is."""
        return zone_of(self.host)


def parse_endpoint(text: str) -> Endpoint | None:
    """Read a URL or `host:port`; None for anything else."""
    url = _URL.fullmatch(text)
    if url:
        scheme, user, host, port, path = url.groups()
        return Endpoint(scheme.lower(), user or "", host.strip("[]").lower(), int(port or 0), path)
    pair = _HOST_PORT.fullmatch(text)
    if pair and int(pair[2]) <= 65535:
        return Endpoint("", "", pair[1].strip("[]").lower(), int(pair[2]))
    return None


def remote_copy(word: str) -> Endpoint | None:
    """Read `user@host:path` as scp and rsync do (also `rsync://`), or None where a word is a local path."""
    if "://" in word:
        found = parse_endpoint(word)
        return found if found and found.scheme in ("rsync", "scp", "sftp") else None
    head = word.partition(":")[0]
    if "/" in head:
        return None
    match = _COPY.fullmatch(word)
    return Endpoint("", match[1] or "", match[2].strip("[]").lower(), 0, match[3]) if match else None


def is_address(host: str) -> bool:
    """Return whether a host is an address literal rather than a name."""
    return _address(host) is not None


def is_open(host: str) -> bool:
    """Return whether a server that is bound to this address is reached from other machines."""
    return host in ("0.0.0.0", "::", "[::]", "*", "+") or zone_of(host) != "loopback"  # noqa: S104 - read, not bound


@lru_cache(maxsize=4096)
def _address(host: str) -> IPv6Address | object | None:
    if re.fullmatch(r"\d{8,10}|0x[0-9a-fA-F]{8}", host):  # how wget and curl write 169.254.169.254, too
        number = int(host, 0)
        return ip_address(number) if number < 1 << 32 else None
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=4096)
def zone_of(host: str) -> Zone:
    """Return whose a host or address is; what cannot be told is "outside".

    Args:
        host: A name or an address literal, as events and arguments have it.
    """
    host = host.lower().rstrip(".")
    address = _address(host)
    text = str(address) if address is not None else host
    if text in _METADATA:
        return "metadata"
    if address is None:
        if host in ("localhost", "host.loopback", "ip6-localhost", "") or host.endswith(".localhost"):
            return "loopback"
        return "private" if _INNER_NAME.search(host) else "outside"
    if re.match(r"127\.|0\.|::1$|::$|192\.0\.0\.8$", text):
        return "loopback"
    if re.match(r"169\.254\.|fe[89ab]", text):
        return "link-local"
    # Not `ipaddress.is_private`: it counts the documentation ranges, which stand for the outside in every example.
    inner = r"10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.|f[cd][0-9a-f]{2}:"
    return "private" if re.match(inner, text) else "outside"
