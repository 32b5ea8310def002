"""Naming of protocols by first bytes: every grammar, every split of it, and bytes that want to be taken for another."""

from __future__ import annotations

import json
import ssl
import struct
from typing import Any

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.sandbox.protocol import Naming, name_protocol

HIDDEN = Naming("unknown", obscured=True)


def client_hello(server_name: str | None) -> bytes:
    """Return what a real TLS client sends first."""
    context = ssl.create_default_context()
    context.check_hostname = server_name is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def fragmented(record: bytes, size: int) -> bytes:
    """Cut a TLS record into records of at most `size` bytes."""
    body = record[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(record[:3] + struct.pack("!H", len(part)) + part for part in parts)


def hello_with(*entries: bytes) -> bytes:
    """Return a small ClientHello with one server_name extension for each list of entries."""
    extensions = b"".join(
        struct.pack("!HHH", 0, 2 + len(entry), len(entry)) + entry for entry in entries
    ) + struct.pack("!HH", 23, 0)
    body = (
        b"\x03\x03"
        + bytes(32)
        + b"\0"
        + b"\0\x02\x13\x01"
        + b"\x01\0"
        + struct.pack("!H", len(extensions))
        + extensions
    )
    handshake = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(handshake)) + handshake


def entry(name: bytes) -> bytes:
    """Return one host_name entry."""
    return struct.pack("!BH", 0, len(name)) + name


def first(out: bytes, in_: bytes = b"") -> Naming | None:
    """Name without waiting to the end."""
    return name_protocol(out, in_, final=False)


def last(out: bytes, in_: bytes = b"") -> Naming | None:
    """Name when nothing more comes."""
    return name_protocol(out, in_, final=True)


@pytest.mark.parametrize("size", [None, 1, 7, 100])
def test_tls_is_named_with_its_server_name_in_any_fragmentation(size: int | None) -> None:
    """A real ClientHello gives its SNI in lower case, however it is cut into records."""
    hello = client_hello("Api.Example.ORG")
    assert first(fragmented(hello, size) if size else hello) == Naming("tls", "api.example.org")


def test_tls_is_not_named_before_its_hello_is_whole() -> None:
    """Each proper prefix of a ClientHello waits, and is obscured when nothing more comes."""
    hello = client_hello("api.example.org")
    for cut in range(1, len(hello)):
        assert first(hello[:cut]) is None
        assert last(hello[:cut]) == HIDDEN


def test_tls_without_a_server_name_is_named() -> None:
    """A ClientHello without SNI is TLS with no server name, and early data after it changes nothing."""
    assert first(client_hello(None)) == Naming("tls")
    assert first(hello_with(entry(b"a.example")) + b"\x17\x03\x03\0\x05hello") == Naming("tls", "a.example")


@pytest.mark.parametrize(
    "hello",
    [
        hello_with(entry(b"a.example") + entry(b"b.example")),
        hello_with(entry(b"a.example"), entry(b"b.example")),
        hello_with(entry(b"a.example\0.b.example")),
        hello_with(entry(b"10.0.0.1")),
        hello_with(entry(b"b\xc3\xa4d.example")),
        hello_with(entry(b"")),
    ],
)
def test_tls_with_a_doubtful_server_name_is_obscured(hello: bytes) -> None:
    """Two names, or one that is no host name, are not believed."""
    assert first(hello) == Naming("tls", obscured=True)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10",  # an SSLv2 hello
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",  # a ServerHello
        b"\x16\x03\x05\x00\x05\x01\x00\x00\x01\x00",
        b"\x16\x03\x01\x00\x00\x16\x03\x01",  # an empty record
        b"\x15\x03\x01\x00\x02\x01\x00",
        b"\x16\x03\x01\x00\x02\x01\x00\x17\x03\x03\x00\x02ab",  # another record amid the hello
    ],
)
def test_what_only_looks_like_tls_is_not_tls(data: bytes) -> None:
    """Other records, other versions and other handshake messages are unknown at once."""
    assert first(data) == Naming("unknown")


@pytest.mark.parametrize("broken", [5 + 4 + 2 + 32, 5 + 4 + 2 + 32 + 2])
def test_a_hello_with_lengths_that_do_not_fit_hides_its_name(broken: int) -> None:
    """A ClientHello whose inner lengths lie is not named TLS, and its server name is not believed."""
    hello = bytearray(hello_with(entry(b"a.example")))
    hello[broken] = 0xFF
    assert first(bytes(hello)) == HIDDEN


@pytest.mark.parametrize(
    ("request_bytes", "protocol", "server_name"),
    [
        (b"GET / HTTP/1.1\r\nHost: Api.Example.org\r\n\r\n", "http", "api.example.org"),
        (b"POST /x HTTP/1.1\nhost:api.example.org:8443\n\n{}", "http", "api.example.org"),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a.example.\r\n\r\n", "http", "a.example"),
        (b"BREW /pot HTTP/1.0\r\n\r\n", "http", ""),
        (b"GET /\r\n", "http", ""),
        (b"OPTIONS * HTTP/1.1\r\nAccept: */*\r\nHost: [2001:DB8::1]:80\r\n\r\n", "http", "2001:db8::1"),
        (b"CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n", "http", "b.example"),
        (b"GET http://user@c.example:80/x HTTP/1.1\r\nHost: c.example\r\n\r\n", "http", "c.example"),
        (b"GET http://192.0.2.7/ HTTP/1.0\r\n\r\n", "http", "192.0.2.7"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12", "http", ""),
        (b"GET / HTTP/1.1\r\nHost: d.example\r\nUpgrade: WebSocket\r\n\r\n", "websocket", "d.example"),
        (b"GET / HTTP/1.1\r\nUpgrade: h2c,\r\n websocket\r\nHost: d.example\r\n\r\n", "websocket", "d.example"),
    ],
)
def test_http_is_named_with_its_host(request_bytes: bytes, protocol: str, server_name: str) -> None:
    """Requests of every form give the host that they ask for; an upgrade to WebSocket is told apart."""
    assert first(request_bytes) == Naming(protocol, server_name)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a.example\r\nhost: b.example\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example:80:90\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 0x7f000001\r\n\r\n",
    ],
)
def test_http_that_contradicts_itself_is_obscured(head: bytes) -> None:
    """Two different hosts, an invalid one or a target with spaces in it are not believed."""
    naming = first(head)
    assert naming is not None
    assert naming.protocol == "http"
    assert naming.obscured


def test_an_unfinished_http_head_is_unknown() -> None:
    """At the limit, a head that goes on is unknown; it is obscured unless it has named its host."""
    line = b"GET /index.html HTTP/1.1\r\n"
    assert last(line + b"Host: a.example\r\nX-Pad: aaa") == Naming("unknown", "a.example")
    assert last(line + b"X-Pad: aaa") == HIDDEN
    assert last(line + b"Host: a.exam") == HIDDEN
    assert last(b"GET /aaaa") == HIDDEN
    assert first(line + b"Host: a.example\r\n") is None


@pytest.mark.parametrize(
    ("out", "in_", "protocol"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", b"", "ssh"),
        (b"SSH-1.5-x\r\n", b"", "ssh"),
        (b"", b"SSH-2.0-dropbear\r\n", "ssh"),
        (b"", b"Authorised use only\r\nSSH-1.99-x\r\n", "ssh"),
        (b"", b"220 mx.example ESMTP\r\n", "smtp"),
        (b"", b"220-first line\r\n220 mx.example ESMTP\r\n", "smtp"),
        (b"", b"220 ProFTPD Server\r\n", "ftp"),
        (b"USER anonymous\r\n", b"220 FTP ready\r\n", "ftp"),
        (b"EHLO me.example\r\n", b"", "smtp"),
    ],
)
def test_protocols_whose_server_may_speak_first(out: bytes, in_: bytes, protocol: str) -> None:
    """SSH, SMTP and FTP are named by whichever side's line has come."""
    assert first(out, in_) == Naming(protocol)


@pytest.mark.parametrize(
    ("out", "in_"), [(b"", b"220 rea"), (b"", b"220 ready\r\n"), (b"SSH-", b""), (b"EHLO me", b"")]
)
def test_lines_that_may_go_on_are_waited_for(out: bytes, in_: bytes) -> None:
    """A start that fits a protocol waits, and is unknown when nothing more comes."""
    assert first(out, in_) is None
    assert last(out, in_) == Naming("unknown")


def test_what_the_client_says_outweighs_the_server() -> None:
    """An accomplice who sends an SSH banner does not make a client's bytes SSH."""
    assert first(b"\x00\x01binary", b"SSH-2.0-x\r\n") == Naming("unknown")
    assert first(b'{"method":"mining.subscribe"}', b"SSH-2.0-x\r\n") == Naming("stratum")


@pytest.mark.parametrize(
    "greeting",
    [b"\x05\x01\x00", b"\x05\x03\x00\x01\x02", b"\x05\x01\x00\x05\x01\x00\x03", b"\x05\x01\x02\x01\x04user"],
)
def test_socks5_is_named(greeting: bytes) -> None:
    """A greeting of exactly its own length is SOCKS 5, with what may follow it, from either side."""
    assert first(greeting) == Naming("socks5")
    assert first(b"", greeting) == Naming("socks5")
    assert first(greeting[:2]) is None


@pytest.mark.parametrize(
    "greeting",
    [
        b"\x04\x01\x00\x50\xc0\x00\x02\x07\x00",
        b"\x04\x02\x00\x50\xc0\x00\x02\x07me\x00",
        b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00pool.example\x00",
    ],
)
def test_socks4_is_named(greeting: bytes) -> None:
    """SOCKS 4 and 4a requests are named once they are whole."""
    assert first(greeting) == Naming("socks4")
    assert all(first(greeting[:cut]) is None for cut in range(1, len(greeting)))


@pytest.mark.parametrize(
    "data",
    [b"\x05\x00", b"\x05\x02\x00\x00", b"\x05\x01\x00GET", b"\x04\x03\x00\x50", b"\x04\x01\0\x50\x01\x02\x03\x04\0x"],
)
def test_what_only_starts_like_socks_is_unknown(data: bytes) -> None:
    """The exact grammar decides, so that a binary protocol is not refused by its first byte."""
    assert first(data) == Naming("unknown")


def test_dns_over_tcp_is_named() -> None:
    """A real query behind its length is DNS; its prefixes wait; an answer is not a query."""
    query = dns.message.make_query("a.example", "A", use_edns=0)
    wire = query.to_wire()
    framed = struct.pack("!H", len(wire)) + wire
    assert first(framed) == Naming("dns")
    assert all(first(framed[:cut]) is None for cut in range(1, len(framed)))
    answer = dns.message.make_response(query).to_wire()
    assert first(struct.pack("!H", len(answer)) + answer) == Naming("unknown")


def one_line(**message: Any) -> bytes:
    """Return a JSON line as a miner sends it."""
    return json.dumps({"id": 1, **message}).encode() + b"\n"


LOGIN = {"login": "4" + "A" * 94, "pass": "x", "agent": "XMRig/6.21"}
STRATUM = [
    one_line(method="mining.subscribe", params=["agent/1.0"]),
    one_line(method="mining.authorize", params=["user.worker", "pw"]),
    one_line(method="mining.configure", params=[]),
    one_line(method="mining.extranonce.subscribe", params=[]),
    one_line(params=["EthereumStratum/1.0.0"], method="x"),
    one_line(method="login", params=LOGIN),
    b'{"params":{"pass":"x","login":"4A"},"id":1,"method":"login","jsonrpc":"2.0"}\n',
    one_line(method="eth_submitLogin", params=["0x" + "ab" * 20]),
    one_line(method="eth_getWork", params=[]),
    one_line(method="eth_submitWork", params=["0x1", "0x2", "0x3"]),
    one_line(method="submit", params={"id": "1", "job_id": "2", "nonce": "3", "result": "4"}),
    b'  \r\n\t {  "id" : 1 ,\n "method"\t:\r\n "mining.subscribe" ,',
    b'{"id":1,"method":"\\u006dining.subscribe","params":[]}\n',
    b'{"id":1,"\\u006d\\u0065thod":"m\\u0069ning\\u002Esubscribe"}\n',
    b'{"METHOD":"Mining.Subscribe"}\n',
    b'{"method":"getinfo","method":"mining.subscribe"}\n',
    b'[{"id":1,"method":"mining.subscribe"},{"id":2,"method":"mining.authorize"}]\n',
    b'{"id":1,"method":"ping"}\n{"id":2,"method":"mining.authorize"}\n',
    b'hello\n{"method":"mining.subscribe"}\n',
    b'\xef\xbb\xbf{"method":"mining.subscribe"}',
    b'\0{"method":"mining.subscribe",}',
    b'{"x":"\\"","method":"mining.subscribe"}',
]


@pytest.mark.parametrize("data", STRATUM)
def test_each_stratum_dialect_is_named(data: bytes) -> None:
    """Logins of every dialect are named in any spelling that a pool's parser may take, from either side."""
    assert first(data) == Naming("stratum")
    assert first(b"", data) == Naming("stratum")


@pytest.mark.parametrize(
    "data",
    [
        one_line(method="initialize", params={"protocolVersion": "1"}),
        one_line(method="login", params={"username": "a", "password": "b"}),
        one_line(method="submit", params={"form": "x"}),
        one_line(method="eth_getBlockByNumber", params=["latest"]),
        one_line(method="say", params={"text": '"method":"mining.subscribe"'}),
        one_line(topic="mining.subscribe"),
        b'Content-Length: 40\r\n\r\n{"method":"initialize"}\n',
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"OPTIONS rtsp://a.example RTSP/1.0\r\n",
    ],
)
def test_other_protocols_are_unknown_at_once(data: bytes) -> None:
    """Near misses are not held back longer than needed, and are not taken for mining."""
    assert first(data) == Naming("unknown")


def test_padding_is_waited_for() -> None:
    """White space alone decides nothing."""
    assert first(b" \r\n\t") is None
    assert first(b"") is None
    assert last(b" \r\n\t") == Naming("unknown")


@given(st.binary(max_size=300), st.binary(max_size=300), st.booleans())
def test_no_bytes_raise(out: bytes, in_: bytes, final: bool) -> None:
    """Random bytes get an answer, and one that is final when it has to be."""
    naming = name_protocol(out, in_, final=final)
    assert naming is not None or not final


SEEDS = [
    client_hello("api.example.org"),
    fragmented(hello_with(entry(b"a.example")), 9),
    b"GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n",
    b"\x05\x02\x00\x02",
    b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00pool.example\x00",
    b"220-a\r\n220 b ESMTP\r\n",
    *STRATUM,
]


@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4), st.integers(0)
)
def test_no_mutation_of_a_valid_start_raises(seed: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    """Valid messages with bytes changed and cut off get an answer; a server name is always a printable, short one."""
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    naming = last(bytes(data[: 1 + cut % len(data)]))
    assert naming is not None
    assert naming.server_name.isprintable()
    assert len(naming.server_name) <= 253


@given(st.sampled_from(STRATUM), st.data())
def test_a_name_does_not_depend_on_how_bytes_arrive(data: bytes, draw: st.DataObject) -> None:
    """Whatever a prefix was held for, the whole login is named, and no prefix is named as what passes."""
    cut = draw.draw(st.integers(1, len(data) - 1))
    early = first(data[:cut])
    assert early is None or early.protocol in ("stratum", "unknown")
    assert first(data) == Naming("stratum")


@settings(deadline=None)
@given(
    st.sampled_from([b'"\\', b'{"', b'\\"', b"[[[[", b"\n", b"\x16\x03\x01\x00\x01\x01", b"GET ", b"Host: a\r\n", b" "])
)
def test_work_is_bounded_by_what_is_looked_at(unit: bytes) -> None:
    """Input made to be slow gives the same answer at any length beyond the 64 KiB that are looked at."""
    long = b'{"a":' + unit * (65536 // len(unit) + 1)
    assert name_protocol(long, b"", final=True) == name_protocol(long + unit * 10_000, b"", final=True)
    assert name_protocol(unit * 70_000, b"", final=True) is not None
