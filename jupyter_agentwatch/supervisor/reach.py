"""What belongs to the sandbox itself among addresses: all of loopback in a network namespace, else what it opened.

Without a namespace of its own, the sandbox shares the machine's loopback with everybody: there it may talk to the
listeners that were opened for it, and offer its own on loopback only, whatever address it asked for.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from jupyter_agentwatch.policy import HOST_LOOPBACK
from jupyter_agentwatch.sandbox.sockaddr import Address, bind_raw, is_inside, parse_address

__all__ = ["PrivateReach", "Reach", "SharedReach"]

_LISTENING: Final = "0A"
_ACCEPTS: Final = "00010000"
_LOOPBACK4: Final = socket.inet_aton("127.0.0.1")
_LOOPBACK6: Final = socket.inet_pton(socket.AF_INET6, "::1")
_MAPPED_EVERYWHERE6: Final = socket.inet_pton(socket.AF_INET6, "::ffff:0.0.0.0")
_MAPPED_LOOPBACK6: Final = socket.inet_pton(socket.AF_INET6, "::ffff:127.0.0.1")
_MAX_NAMES: Final = 4096
_DNS_PORT: Final = 53

# As /proc/net/tcp and tcp6 write them, in words of the machine's byte order (both of our machines are little-endian).
_EVERYWHERE6: Final = "0" * 32
_ANSWERING6: Final = ("00000000000000000000000001000000", _EVERYWHERE6)


class Reach(Protocol):
    """Judges what is inside. `has_namespace` says whether the network namespace is the sandbox's own."""

    has_namespace: bool

    def is_inside(self, address: Address) -> bool:
        """Say whether an INET address is a listener of the sandbox's own."""

    def is_nobody(self, address: Address) -> bool:
        """Say whether a loopback address that is not inside has no listener at all."""

    def stub_for(self, family: int, address: Address) -> bytes | None:
        """Return where a question to a name server is answered, as raw bytes; None: it is none, or inside."""

    def is_inside_abstract(self, name: bytes) -> bool:
        """Say whether an abstract UNIX name was bound by the sandbox."""

    def outside(self, address: Address) -> Address:
        """Return an address that is not inside as the policy knows it."""

    def bind(self, sock: socket.socket, raw: bytes) -> int:
        """Bind to an INET or abstract address, as far as that offers nothing to the outside; return the errno."""

    def before_listen(self, sock: socket.socket) -> int:
        """Return why an INET socket may not listen where it is bound, or 0."""

    def listens(self, sock: socket.socket) -> None:
        """Note a listener that was opened for the sandbox."""


class PrivateReach:
    """In a network namespace of the sandbox's own: loopback and abstract names are its own, and offer nothing."""

    has_namespace = True

    def is_inside(self, address: Address) -> bool:
        """See `Reach`."""
        return is_inside(address.host)

    def is_nobody(self, address: Address) -> bool:  # noqa: ARG002 -- all of loopback is inside
        """See `Reach`."""
        return False

    def stub_for(self, family: int, address: Address) -> bytes | None:  # noqa: ARG002 -- the stub has port 53 inside
        """See `Reach`."""
        return None

    def is_inside_abstract(self, name: bytes) -> bool:  # noqa: ARG002 -- all of them are
        """See `Reach`."""
        return True

    def outside(self, address: Address) -> Address:
        """See `Reach`."""
        return address

    def bind(self, sock: socket.socket, raw: bytes) -> int:
        """See `Reach`."""
        return bind_raw(sock.fileno(), raw)

    def before_listen(self, sock: socket.socket) -> int:  # noqa: ARG002 -- nobody else can reach it
        """See `Reach`."""
        return 0

    def listens(self, sock: socket.socket) -> None:
        """See `Reach`."""


class SharedReach:
    """On the machine's own network. Asked by the notification thread and by workers.

    Args:
        stub_port: Loopback port of the DNS stub, which answers in the place of the machine's name servers.
    """

    has_namespace = False

    def __init__(self, stub_port: int) -> None:
        self._stub_port = stub_port
        self._name_servers = _name_servers()
        self._listeners: dict[int, set[int]] = {}
        self._names: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def is_inside(self, address: Address) -> bool:
        """See `Reach`: the port's listener, as the kernel names it now, must be one that was opened here."""
        if not is_inside(address.host):
            return False
        with self._lock:
            ours = set(self._listeners.get(address.port, ()))
        # Whoever of several the kernel would choose: all that could answer must be ours.
        there = _listening_inodes(address.host, address.port) if ours else set()
        return bool(there) and there <= ours

    def is_nobody(self, address: Address) -> bool:
        """See `Reach`. Programs that wait for a server try again when they are refused, and give up when denied."""
        return is_inside(address.host) and not _listening_inodes(address.host, address.port)

    def stub_for(self, family: int, address: Address) -> bytes | None:
        """See `Reach`. Commands ask by TCP (`RES_OPTIONS=use-vc`), since datagrams are closed here."""
        if address.port != _DNS_PORT or address.host not in self._name_servers:
            return None
        port = self._stub_port.to_bytes(2, "big")
        if family == socket.AF_INET6:
            return struct.pack("=H", family) + port + bytes(4) + _MAPPED_LOOPBACK6 + bytes(4)
        return struct.pack("=H", family) + port + _LOOPBACK4 + bytes(8)

    def is_inside_abstract(self, name: bytes) -> bool:
        """See `Reach`."""
        with self._lock:
            inode = self._names.get(name, -1)
        # A name may hold line breaks, and with them rows of its choice: those can add a socket, but take none away.
        bound, listening = _abstract_inodes(name)
        return inode in bound and listening <= {inode}

    def outside(self, address: Address) -> Address:
        """See `Reach`: what listens on this machine's loopback is `host.loopback` in a policy."""
        return replace(address, host=HOST_LOOPBACK) if is_inside(address.host) else address

    def bind(self, sock: socket.socket, raw: bytes) -> int:
        """See `Reach`. "Everywhere" becomes loopback; an address of the machine is not available."""
        address = parse_address(raw)
        if address is None:
            return errno.EINVAL
        if address.family != sock.family:
            return errno.EINVAL if sock.family == socket.AF_UNIX else errno.EAFNOSUPPORT  # as the kernel says
        if address.family == socket.AF_UNIX:
            error = bind_raw(sock.fileno(), raw)
            if error == 0:
                self._bound(sock)
            return error
        if not is_inside(address.host):
            return errno.EADDRNOTAVAIL
        return bind_raw(sock.fileno(), _on_loopback(sock, raw))

    def before_listen(self, sock: socket.socket) -> int:
        """See `Reach`. Between a look and the call, nobody can bind a socket again: the kernel refuses it."""
        if sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return errno.EOPNOTSUPP
        host, port = sock.getsockname()[:2]
        if port == 0:
            empty = struct.pack("=H", sock.family) + bytes(26 if sock.family == socket.AF_INET6 else 14)
            error = bind_raw(sock.fileno(), _on_loopback(sock, empty))
            if error not in {0, errno.EINVAL}:
                return error
            host = sock.getsockname()[0]
        return 0 if _is_loopback(host) else errno.EACCES

    def listens(self, sock: socket.socket) -> None:
        """See `Reach`."""
        if sock.family == socket.AF_UNIX:
            return
        port = sock.getsockname()[1]
        with self._lock:
            if len(self._listeners) >= _MAX_NAMES:
                self._listeners.clear()
            self._listeners.setdefault(port, set()).add(os.fstat(sock.fileno()).st_ino)

    def _bound(self, sock: socket.socket) -> None:
        name = sock.getsockname()
        with self._lock:
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()
            self._names[name if isinstance(name, bytes) else name.encode()] = os.fstat(sock.fileno()).st_ino


def _name_servers() -> frozenset[str]:
    try:
        text = Path("/etc/resolv.conf").read_text("utf-8", "replace")
    except OSError:
        text = ""
    named = [line.split()[1].partition("%")[0] for line in text.splitlines() if line.startswith("nameserver ")]
    return frozenset(named or ["127.0.0.1"])  # resolv.conf(5)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _on_loopback(sock: socket.socket, raw: bytes) -> bytes:
    """Return the bytes of a loopback address, or of one on loopback where they meant everywhere."""
    if sock.family == socket.AF_INET:
        return raw[:4] + (raw[4:8] if any(raw[4:8]) else _LOOPBACK4) + bytes(8)
    asked = raw[8:24]
    if not any(asked) and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        asked = _MAPPED_LOOPBACK6  # one that serves both families is mostly met as 127.0.0.1
    elif not any(asked):
        asked = _LOOPBACK6
    elif asked == _MAPPED_EVERYWHERE6:
        asked = _MAPPED_LOOPBACK6
    return raw[:4] + bytes(4) + asked + bytes(4)


def _listening_inodes(host: str, port: int) -> set[int]:
    """Return the inodes of the sockets that a connection to loopback could meet, from the kernel's own tables."""
    answering = _ANSWERING6 if ":" in host else _answering4(host)
    names = {f"{name}:{port:04X}" for name in answering}
    rows = [row for table in ("/proc/net/tcp", "/proc/net/tcp6") for row in _rows(table)]
    return {int(row[9]) for row in rows if row[3] == _LISTENING and row[1] in names}


def _abstract_inodes(name: bytes) -> tuple[set[int], set[int]]:
    """Return the sockets that have an abstract name, those too that its listener accepted; and its listeners."""
    shown = "@" + name[1:].decode("latin-1").replace("\0", "@")
    rows = [row for row in _rows("/proc/net/unix") if len(row) > 7 and row[7] == shown and row[6].isdecimal()]
    return {int(row[6]) for row in rows}, {int(row[6]) for row in rows if row[3] == _ACCEPTS}


def _answering4(host: str) -> tuple[str, ...]:
    asked = socket.inet_aton("127.0.0.1" if host == "0.0.0.0" else host)  # noqa: S104 -- as a destination, loopback
    shown = asked[::-1].hex().upper()
    return (shown, "0" * 8, f"0000000000000000FFFF0000{shown}", _EVERYWHERE6)


def _rows(table: str) -> list[list[str]]:
    try:
        text = Path(table).read_text("latin-1")
    except OSError:
        return []  # then nothing is inside
    return [line.split() for line in text.splitlines()[1:]]
