"""What a look-up inside gets, and what it leaves on record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Dns, Finding
from tests.outside import last_step, recorded
from tests.servers import (
    inside,
    network,
    rule,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]


# Names


def test_names_are_answered_as_the_policy_says(tmp_path: Path) -> None:
    """An allowed name has its address, a denied one fails with a record, one that does not exist fails cleanly."""
    source = """
def look(name):
    try:
        found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
        return sorted({entry[4][0] for entry in found})
    except socket.gaierror as error:
        return {socket.EAI_AGAIN: "EAI_AGAIN", socket.EAI_NONAME: "EAI_NONAME", socket.EAI_FAIL: "EAI_FAIL",
                socket.EAI_NODATA: "EAI_NODATA"}.get(error.errno, error.errno)
    except UnicodeError:
        return "UnicodeError"
tell([look(n) for n in ("host.loopback", "localhost", "HOST.LOOPBACK.", "denied.example", "missing.invalid",
                        "x" * 60 + ".example", "a" * 64 + ".example")])
"""
    rules = rule(80), {"host": "*.invalid", "ports": [80]}
    with Watch(network(*rules), tmp_path) as watch:
        got = inside(watch, source)
        assert got[:3] == [["192.0.0.8"], ["127.0.0.1", "::1"], ["192.0.0.8"]] or got[1] == ["127.0.0.1"]
        assert got[0] == got[2] == ["192.0.0.8"]
        assert all(isinstance(each, str) for each in got[3:])
        found = recorded(watch, Dns)
        denied = {(e.rcode, e.rule) for e in found if e.qname == "denied.example"}
        assert denied == {("REFUSED", "no-rule")}
        assert {e.verdict for e in found if e.qname == "denied.example"} == {"deny"}
        asked = [e.rcode for e in found if e.qname == "missing.invalid"]
        assert asked[0] == "PENDING"
        assert set(asked) - {"PENDING"} <= {"NXDOMAIN", "SERVFAIL", "NOERROR"}
        assert not [e for e in found if len(e.qname.split(".")[0]) > 63]
        entry = watch.run("getent hosts host.loopback; getent hosts denied.example")
        assert (entry.stdout.split(), entry.exit_code) == (["192.0.0.8", "host.loopback"], 2)
        assert recorded(watch, Finding) == []


@pytest.mark.rungs("A")  # rung B has no datagrams
def test_raw_queries_cannot_hurt_the_name_server(tmp_path: Path) -> None:
    """Over UDP and TCP, hostile names and broken messages get an rcode or nothing, and the next query is answered."""
    source = """
def query(name, kind=1, ident=7):
    return struct.pack(">6H", ident, 256, 1, 0, 0, 0) + name + bytes([0]) + struct.pack(">2H", kind, 1)
def label(text):
    return bytes([len(text)]) + text
good = query(label(b"host") + label(b"loopback"))
def udp(wire):
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", 53))
        s.settimeout(LONG_S)
        s.send(wire)
        s.send(good)  # whatever the first one gets, this one is answered
        while True:
            answer = s.recv(4096)
            if answer[:2] == good[:2] and answer.endswith(bytes([192, 0, 0, 8])):
                return True
def tcp(*wires):
    with socket.create_connection(("127.0.0.1", 53), LONG_S) as s:
        for wire in wires:
            s.sendall(struct.pack(">H", len(wire)) + wire)
        got = []
        for _ in wires:
            size = s.recv(2, socket.MSG_WAITALL)
            got.append(s.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)[3] & 15 if size else "closed")
        return got
hostile = [
    query(label(bytes([97, 0, 98])) + label(b"example"), ident=1), query(label(b"a" * 63) * 3, ident=2),
    query(label(b"a" * 63) * 5, ident=3), query(bytes([192, 12]), ident=4), query(label(b"ab;rm -rf"), ident=5),
    query(label(b"denied"), 255, 6), bytes(12), bytes(3), b"", os.urandom(600), query(label(b"t"), 16, 8) + bytes(400),
]
tell([all([udp(wire) for wire in hostile]), tcp(good, query(label(b"denied"))), tcp(bytes(11) + good), tcp(good)])
"""
    with Watch(network(rule(80)), tmp_path) as watch:
        got = inside(watch, source)
        assert (got[0], got[1], got[3]) == (True, [0, 5], [0])
        assert recorded(watch, Finding) == []
        names = {e.qname for e in recorded(watch, Dns)}
        assert {"host.loopback", "denied"} <= names
        assert any("\\000" in name for name in names)


@pytest.mark.rungs("A")  # rung B has no datagrams
def test_a_tunnel_over_names_is_refused_and_on_record(closed: Watch) -> None:
    """Of a flood of queries that carry data in their labels, none is resolved and every one is on record."""
    source = """
s = socket.socket(type=socket.SOCK_DGRAM)
s.connect(("127.0.0.1", 53))
s.settimeout(LONG_S)
rcodes = []
for index in range(300):
    name = b"%08x" % index
    wire = struct.pack(">6H", index, 256, 1, 0, 0, 0) + bytes([8]) + name + bytes([6]) + b"tunnel" + bytes([7])
    s.send(wire + b"example" + bytes([0]) + struct.pack(">2H", 16, 1))
    rcodes.append(s.recv(600)[3] & 15)
tell(rcodes)
"""
    assert set(inside(closed, source)) == {5}
    found = [e for e in recorded(closed, Dns) if e.qname.endswith(".tunnel.example")]
    assert {e.qname for e in found} == {f"{index:08x}.tunnel.example" for index in range(300)}
    assert {(e.verdict, e.rcode, e.qtype) for e in found} == {("deny", "REFUSED", "TXT")}


@pytest.mark.rungs("A")  # rung B has no datagrams
def test_a_query_is_never_put_down_to_who_had_the_port_before(closed: Watch) -> None:
    """A query by sendmsg, which is not seen, from a port that another step has used is that of who has bound it now."""
    source = """
s = socket.socket(type=socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 40053))
s.settimeout(LONG_S)
name = sys.argv[1].encode()
wire = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + bytes([len(name)]) + name + bytes([0]) + struct.pack(">2H", 1, 1)
s.sendto(wire, ("127.0.0.1", 53)) if name == b"first" else s.sendmsg([wire], [], 0, ("127.0.0.1", 53))
tell(s.recv(600)[3] & 15)
"""
    steps = {}
    for name in ("first", "second"):
        assert inside(closed, source, name) == 5
        steps[name] = last_step(closed)
    found = {e.qname: e.step for e in recorded(closed, Dns) if e.qname in steps}
    assert found == steps
