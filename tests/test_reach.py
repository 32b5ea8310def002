"""What is inside among addresses, with real sockets of this machine: on rung B only what was opened for the sandbox."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch.policy import HOST_LOOPBACK
from jupyter_agentwatch.sandbox.sockaddr import Address, parse_address
from jupyter_agentwatch.supervisor import reach as reach_module
from jupyter_agentwatch.supervisor.reach import PrivateReach, SharedReach

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_SERVER: Final = "192.0.2.53"
STUB_PORT: Final = 5353
EVERYWHERE4, EVERYWHERE6, LOOPBACK6 = "0.0.0.0", "::", "::1"


def raw4(host: str, port: int) -> bytes:
    """Return the bytes of an IPv4 address."""
    return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def raw6(host: str, port: int) -> bytes:
    """Return the bytes of an IPv6 address."""
    address = socket.inet_pton(socket.AF_INET6, host)
    return struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4) + address + bytes(4)


def at(sock: socket.socket, host: str = "127.0.0.1") -> Address:
    """Return a socket's port at a host."""
    return Address(socket.AF_INET6 if ":" in host else socket.AF_INET, host, sock.getsockname()[1])


def abstract(name: bytes) -> bytes:
    """Return the bytes of an abstract UNIX address."""
    return struct.pack("=H", socket.AF_UNIX) + name


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> SharedReach:
    """Return the reach of a sandbox on this machine's network, with a name server of ours."""
    monkeypatch.setattr(reach_module, "_name_servers", lambda: frozenset({NAME_SERVER}))
    return SharedReach(STUB_PORT)


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """Return a TCP socket."""
    with socket.socket() as sock:
        yield sock


@pytest.fixture
def tcp6() -> Iterator[socket.socket]:
    """Return a TCP socket of IPv6."""
    with socket.socket(socket.AF_INET6) as sock:
        yield sock


def test_only_a_listener_that_was_opened_here_is_inside(shared: SharedReach, tcp: socket.socket) -> None:
    """A listener of somebody else's on loopback is the host's; one that was noted is the sandbox's."""
    tcp.bind(("127.0.0.1", 0))
    tcp.listen(1)
    assert not shared.is_inside(at(tcp))
    assert not shared.is_nobody(at(tcp))
    shared.listens(tcp)
    assert shared.is_inside(at(tcp))
    assert shared.is_inside(at(tcp, EVERYWHERE4))
    assert shared.is_inside(Address(socket.AF_INET6, "127.0.0.1", tcp.getsockname()[1]))
    assert not shared.is_inside(at(tcp, "192.0.2.1"))


def test_what_has_been_closed_is_not_inside_any_more(shared: SharedReach, tcp: socket.socket) -> None:
    """The kernel's table decides, and not what was noted: the port may be somebody else's by now."""
    tcp.bind(("127.0.0.1", 0))
    tcp.listen(1)
    shared.listens(tcp)
    where = at(tcp)
    tcp.close()
    assert (shared.is_inside(where), shared.is_nobody(where)) == (False, True)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", where.port))
        stranger.listen(1)
        assert (shared.is_inside(where), shared.is_nobody(where)) == (False, False)


def test_a_port_that_a_stranger_could_answer_at_is_not_inside(shared: SharedReach) -> None:
    """Where several listeners share a port, all that could answer must be the sandbox's."""
    with socket.socket() as ours, socket.socket() as stranger:
        for sock in (ours, stranger):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        ours.listen(1)
        shared.listens(ours)
        assert shared.is_inside(at(ours))
        stranger.bind((EVERYWHERE4, ours.getsockname()[1]))
        stranger.listen(1)
        assert not shared.is_inside(at(ours))


def test_a_listener_of_both_families_is_met_by_either(shared: SharedReach, tcp6: socket.socket) -> None:
    """A socket on a mapped loopback address is reached as 127.0.0.1, and not as ::1."""
    tcp6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    tcp6.bind(("::ffff:127.0.0.1", 0))
    tcp6.listen(1)
    shared.listens(tcp6)
    assert shared.is_inside(at(tcp6))
    assert not shared.is_inside(at(tcp6, LOOPBACK6))


def test_the_machines_name_server_is_stood_in_for(shared: SharedReach) -> None:
    """Only port 53 of a name server that the machine names is answered by the stub, in the socket's own family."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "127.0.0.1")):
        raw = shared.stub_for(family, Address(family, NAME_SERVER, 53))
        assert raw is not None
        found = parse_address(raw)
        assert found is not None
        assert (found.family, found.host, found.port) == (family, host, STUB_PORT)
    assert shared.stub_for(socket.AF_INET, Address(socket.AF_INET, NAME_SERVER, 853)) is None
    assert shared.stub_for(socket.AF_INET, Address(socket.AF_INET, "192.0.2.54", 53)) is None


def test_the_hosts_loopback_has_a_name_of_its_own(shared: SharedReach) -> None:
    """To a policy, loopback that is not inside is `host.loopback`; other addresses are themselves."""
    assert shared.outside(Address(socket.AF_INET, "127.0.0.5", 80)).host == HOST_LOOPBACK
    assert shared.outside(Address(socket.AF_INET6, LOOPBACK6, 80)).host == HOST_LOOPBACK
    assert shared.outside(Address(socket.AF_INET, "192.0.2.1", 80)).host == "192.0.2.1"


@pytest.mark.parametrize(
    ("raw", "v6only", "host"),
    [
        (raw4(EVERYWHERE4, 0), 0, "127.0.0.1"),
        (raw4("127.0.0.7", 0), 0, "127.0.0.7"),
        (raw6(EVERYWHERE6, 0), 0, "::ffff:127.0.0.1"),
        (raw6(EVERYWHERE6, 0), 1, LOOPBACK6),
        (raw6("::ffff:0.0.0.0", 0), 0, "::ffff:127.0.0.1"),
        (raw6(LOOPBACK6, 0), 0, LOOPBACK6),
    ],
)
def test_everywhere_becomes_loopback(shared: SharedReach, raw: bytes, v6only: int, host: str) -> None:
    """A bind to all addresses offers nothing to the outside: it is one to loopback."""
    with socket.socket(socket.AF_INET if len(raw) == 16 else socket.AF_INET6) as sock:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        assert shared.bind(sock, raw) == 0
        assert sock.getsockname()[0] == host
        assert shared.before_listen(sock) == 0


def test_an_address_of_the_machine_is_not_available(shared: SharedReach, tcp: socket.socket) -> None:
    """A bind to anything but loopback fails as if the machine did not have it, and leaves the socket unbound."""
    assert shared.bind(tcp, raw4("192.0.2.1", 0)) == errno.EADDRNOTAVAIL
    assert shared.bind(tcp, b"\x02") == errno.EINVAL
    assert tcp.getsockname()[1] == 0


def test_a_socket_that_nobody_bound_listens_on_loopback(shared: SharedReach, tcp: socket.socket) -> None:
    """`listen` without `bind` would offer a port on all addresses: it is bound to loopback first."""
    assert shared.before_listen(tcp) == 0
    assert tcp.getsockname()[0] == "127.0.0.1"
    assert tcp.getsockname()[1] != 0


def test_a_socket_that_is_bound_elsewhere_may_not_listen(shared: SharedReach, tcp6: socket.socket) -> None:
    """However it came to be bound to all addresses, it does not listen there."""
    tcp6.bind((EVERYWHERE6, 0))
    assert shared.before_listen(tcp6) == errno.EACCES


def unique(tag: str) -> bytes:
    """Return an abstract name that nobody else has."""
    return f"\0agentwatch-test-{os.getpid()}-{tag}".encode()


def test_an_abstract_name_is_inside_while_the_sandbox_holds_it(shared: SharedReach) -> None:
    """A name is the sandbox's from its bind to its close, listening or not, and not one that a stranger bound."""
    name = unique("own")
    with socket.socket(socket.AF_UNIX) as ours:
        assert not shared.is_inside_abstract(name)
        assert shared.bind(ours, abstract(name)) == 0
        assert shared.is_inside_abstract(name)
        ours.listen(1)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(name)
            with ours.accept()[0]:  # an accepted socket has its listener's name
                assert shared.is_inside_abstract(name)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(name)
        stranger.listen(1)
        assert not shared.is_inside_abstract(name)


def test_a_name_with_line_breaks_forges_no_row(shared: SharedReach) -> None:
    """The kernel's table shows names as they are: a row made up in one cannot make a stranger's name the sandbox's."""
    name = unique("forged")
    with socket.socket(socket.AF_UNIX) as ours:
        assert shared.bind(ours, abstract(name)) == 0
        inode = os.fstat(ours.fileno()).st_ino
    with socket.socket(socket.AF_UNIX) as stranger, socket.socket(socket.AF_UNIX) as forger:
        stranger.bind(name)
        stranger.listen(1)
        row = f"0: 00000002 00000000 00010000 0001 01 {inode} @{name[1:].decode()}\n"
        assert len(row) < 100
        assert shared.bind(forger, abstract(b"\0\n" + row.encode())) == 0
        assert not shared.is_inside_abstract(name)


def test_nothing_is_inside_where_the_tables_cannot_be_read(
    shared: SharedReach, tcp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel's tables nothing is taken for the sandbox's own."""
    tcp.bind(("127.0.0.1", 0))
    tcp.listen(1)
    shared.listens(tcp)
    monkeypatch.setattr(reach_module, "_rows", lambda table: [])
    assert not shared.is_inside(at(tcp))
    assert not shared.is_inside_abstract(unique("none"))


def test_a_namespace_of_its_own_is_all_inside(tcp: socket.socket) -> None:
    """On rung A loopback and abstract names are the sandbox's, nothing is bound elsewhere, and port 53 is the stub."""
    private = PrivateReach()
    assert private.is_inside(Address(socket.AF_INET, "127.0.0.1", 1))
    assert not private.is_inside(Address(socket.AF_INET, "192.0.2.1", 1))
    assert not private.is_nobody(Address(socket.AF_INET, "127.0.0.1", 1))
    assert private.is_inside_abstract(b"\0any")
    assert private.stub_for(socket.AF_INET, Address(socket.AF_INET, NAME_SERVER, 53)) is None
    assert private.outside(Address(socket.AF_INET, "127.0.0.1", 1)).host == "127.0.0.1"
    assert (private.bind(tcp, raw4(EVERYWHERE4, 0)), private.before_listen(tcp)) == (0, 0)
    assert (private.has_namespace, SharedReach(STUB_PORT).has_namespace) == (True, False)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1%eth0\n# nameserver 192.0.2.9\n", {"192.0.2.1", "2001:db8::1"}),
        ("search example.org\n", {"127.0.0.1"}),
        ("", {"127.0.0.1"}),
    ],
)
def test_name_servers_are_read_as_the_c_library_reads_them(
    text: str, servers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zones are cut off, comments are none, and without any line it is this machine."""
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    assert reach_module._name_servers() == servers
