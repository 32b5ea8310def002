"""Addresses as bytes from the sandbox: parsed without a crash, and understood as the kernel understands them."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.sandbox.sockaddr import (
    MAX_SIZE,
    Address,
    bind_raw,
    connect_raw,
    is_inside,
    listen_raw,
    parse_address,
)

if TYPE_CHECKING:
    from pathlib import Path

UNSPEC, UNIX, INET, INET6 = socket.AF_UNSPEC, socket.AF_UNIX, socket.AF_INET, socket.AF_INET6
FAMILIES = st.sampled_from([UNSPEC, UNIX, INET, INET6, socket.AF_NETLINK, 0xFFFF]).map(lambda n: struct.pack("=H", n))


def inet(host: str, port: int, family: int = INET) -> bytes:
    """Return a sockaddr_in."""
    return struct.pack("=H", family) + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def inet6(host: str, port: int, scope: int = 0) -> bytes:
    """Return a sockaddr_in6."""
    packed = socket.inet_pton(INET6, host)
    return struct.pack("=H", INET6) + port.to_bytes(2, "big") + bytes(4) + packed + struct.pack("=I", scope)


@given(st.one_of(st.binary(max_size=MAX_SIZE), st.builds(bytes.__add__, FAMILIES, st.binary(max_size=126))))
def test_no_bytes_can_break_the_parser(raw: bytes) -> None:
    """Any bytes give None or an address of one of four families, whose host is a literal where it must be one."""
    address = parse_address(raw)
    if address is None:
        return
    assert address.family in {UNSPEC, UNIX, INET, INET6}
    assert 0 <= address.port <= 65535
    if address.family in {INET, INET6}:
        ipaddress.ip_address(address.host)
        assert is_inside(address.host) in {True, False}
    address.host.encode()  # no lone surrogate goes into the record


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.binary(max_size=112))
def test_ipv4_is_read_as_the_kernel_does(host: ipaddress.IPv4Address, port: int, rest: bytes) -> None:
    """Address and port come from bytes 2 to 7, whatever follows them."""
    assert parse_address(inet(str(host), port)[:8] + rest) == Address(INET, str(host), port)


@given(
    st.one_of(
        st.ip_addresses(v=6), st.ip_addresses(v=6, network="::/64"), st.ip_addresses(v=6, network="::ffff:0:0/96")
    ),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
)
def test_ipv6_is_read_as_the_kernel_does(host: ipaddress.IPv6Address, port: int, scope: int) -> None:
    """Address, port and scope are read; a mapped address is judged as the IPv4 address that it means."""
    address = parse_address(inet6(str(host), port, scope))
    assert address is not None
    assert ipaddress.ip_address(address.host) == (host.ipv4_mapped or host)
    assert (address.family, address.port, address.scope) == (INET6, port, scope)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", None),
        (b"\x02", None),
        (struct.pack("=H", INET), None),
        (inet("192.0.2.1", 80)[:7], None),
        (inet6("2001:db8::1", 80)[:23], None),
        (inet6("2001:db8::1", 80)[:24], Address(INET6, "2001:db8::1", 80)),
        (struct.pack("=H", UNSPEC), Address(UNSPEC)),
        (struct.pack("=H", socket.AF_NETLINK) + bytes(10), None),
        (struct.pack("=H", UNIX), Address(UNIX)),
        (struct.pack("=H", UNIX) + b"/run/x.sock\0rest", Address(UNIX, "/run/x.sock", path=b"/run/x.sock")),
        (struct.pack("=H", UNIX) + b"/run/x.sock", Address(UNIX, "/run/x.sock", path=b"/run/x.sock")),
        (struct.pack("=H", UNIX) + b"\0a\0b", Address(UNIX, "@a\\x00b", path=b"\0a\0b")),
        (inet6("::ffff:127.0.0.1", 1), Address(INET6, "127.0.0.1", 1)),
        (inet6("::ffff:0:1", 1), Address(INET6, "0.0.0.1", 1)),
        (inet6("::ffff:1:2:3", 1), Address(INET6, "::ffff:1:2:3", 1)),
        (inet6("::127.0.0.1", 1), Address(INET6, "::127.0.0.1", 1)),
    ],
)
def test_forms_that_matter(raw: bytes, expected: Address | None) -> None:
    """Short, abstract, mapped and unknown addresses are what they are, and nothing else."""
    found = parse_address(raw)
    if expected is not None and "\\x00" in expected.host:
        assert found is not None
        assert (found.path, found.host[:2]) == (expected.path, "@a")
    else:
        assert found == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.9", "0.0.0.0", "::1", "::"])
def test_what_is_inside(host: str) -> None:
    """Loopback and the unspecified address mean the sandbox itself."""
    assert is_inside(host)


@pytest.mark.parametrize(
    "host", ["192.0.0.8", "0.0.0.1", "128.0.0.1", "10.0.0.1", "169.254.169.254", "::2", "fe80::1", "::127.0.0.1"]
)
def test_what_is_not_inside(host: str) -> None:
    """The stand-in of the host's loopback, private, link-local and look-alike addresses are outside."""
    assert not is_inside(host)


def test_calls_are_made_with_exactly_these_bytes() -> None:
    """Bind, listen and connect take the bytes as they are, and give 0 or the kernel's errno."""
    with socket.socket() as server, socket.socket() as client, socket.socket() as other:
        assert bind_raw(server.fileno(), inet("127.0.0.1", 0)) == 0
        there = inet(*server.getsockname())
        assert connect_raw(client.fileno(), there) == errno.ECONNREFUSED
        assert listen_raw(server.fileno(), 1) == 0
        assert connect_raw(client.fileno(), there) == 0
        assert connect_raw(client.fileno(), there) == errno.EISCONN
        assert connect_raw(client.fileno(), inet("0.0.0.0", 0, UNSPEC)) == 0
        assert bind_raw(other.fileno(), there) == errno.EADDRINUSE
        assert bind_raw(other.fileno(), there[:5]) == errno.EINVAL
        assert listen_raw(999_999, 1) == connect_raw(999_999, there) == errno.EBADF


def test_unix_names_are_cut_where_the_kernel_cuts_them(tmp_path: Path) -> None:
    """A path ends at its first NUL; what stands behind it names nothing."""
    path = bytes(tmp_path / "s")
    raw = struct.pack("=H", UNIX) + path + b"\0/else"
    with socket.socket(UNIX) as server:
        assert bind_raw(server.fileno(), raw) == 0
        parsed = parse_address(raw)
        assert parsed is not None
        assert server.getsockname() == parsed.host == parsed.path.decode()
