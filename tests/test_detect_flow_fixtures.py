"""Five sequences of records that each rule over flows, files and computation must find, and five that it must not.

The ones that it must not are near misses: a record, a byte or a second short, or the same thing where it is honest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.detect.commands import UNREAD
from jupyter_agentwatch.detect.own import COMMAND_RULES, OWN_RULES
from tests.flow_events import OUT, claimed, connects, dns, feed, flow, long_label, ran, run

if TYPE_CHECKING:
    from jupyter_agentwatch.events import AnyEvent

MIB = 1 << 20
Events = "list[AnyEvent]"
Record = tuple[str, dict[str, Any]]


def gpu(**more: Any) -> Record:
    """GPU time of a process."""
    fields = {"op": "process", "device": "GPU-1", "member": True, "attribution": "exact", "interval_s": 5.0}
    return "gpu", {**fields, "gpu_seconds": 5.0, **more}


def busy(seconds: float = 30.0, share: float = 1.0, **more: Any) -> Record:
    """CPU time of a process."""
    return "resources", {"interval_s": seconds, "cpu_s": seconds * share, "name": "x", **more}


def written(path: str, **more: Any) -> Record:
    """A file that is opened for writing."""
    return "file", {"op": "openat", "path": path, **more}


def to(addr: str = OUT, port: int = 443, **more: Any) -> Record:
    """A connect."""
    return "connect", {"addr": addr, "port": port, **more}


def closed(**more: Any) -> Record:
    """The end of a flow."""
    return flow(op="closed", **more)


def slow(**more: Any) -> Record:
    """A long flow that carried little."""
    return closed(**{"protocol": "tls", "duration_s": 600.0, "bytes_in": 40_000, "bytes_out": 9_000, **more})


END: Record = ("step", {"op": "end", "cpu_user_s": 1.0, "duration_s": 100.0})
EXIT: Record = ("exit", {"exit_code": 0})
LISTEN: Record = ("listen", {"op": "listen", "port": 4444})
SH = claimed("/bin/sh", "sh", "-i")

FOUND: dict[str, list[list[AnyEvent]]] = {
    "mining.stratum": [
        run(flow(protocol="stratum", port=port, verdict=verdict))
        for port, verdict in ((3333, "allow"), (443, "deny"), (80, "allow"), (14444, "deny"), (53, "allow"))
    ],
    "mining.pool_name": [
        run(dns(name))
        for name in (
            "nanopool.org",
            "xmr-eu1.nanopool.org.",
            "POOL.SupportXMR.com",
            "stratum.a.example",
            "xmr.pool.a.example",
        )
    ],
    "mining.pool_flow": [
        run(to(port=3333, host="f2pool.com")),
        run(flow(protocol="tls", server_name="gulf.moneroocean.stream")),
        run(to(port=443, host="stratum.a.example")),
        run(flow(protocol="unknown", port=14444, host="eu1.nanopool.org")),
        run(flow(op="named", protocol="tls", server_name="www.f2pool.com")),
    ],
    "mining.slow_flow": [
        run(*[busy()] * 5, slow()),
        run(slow(), *[gpu(interval_s=30.0, gpu_seconds=30.0)] * 5),
        run(slow(duration_s=200.0, bytes_in=10_000), *[busy()] * 5),
        run(slow(protocol="unknown"), *[busy()] * 6),
        run(slow(), ("step", {"op": "end", "cpu_user_s": 900.0, "duration_s": 600.0})),
    ],
    "tunnel.ssh_port": [run(flow(protocol="ssh", port=port)) for port in (443, 53, 80, 8443, 2200)],
    "tunnel.socks_flow": [
        run(flow(protocol="socks5", port=1080)),
        run(flow(protocol="socks4", port=443)),
        run(flow(protocol="socks5", verdict="deny")),
        run(("listen", {"op": "listen", "port": 1080})),
        run(("listen", {"op": "listen", "port": 9050})),
    ],
    "tunnel.websocket": [
        run(closed(protocol="websocket", duration_s=900.0, bytes_in=MIB, bytes_out=MIB, **more))
        for more in ({}, {"host": "a.example"}, {"server_name": OUT}, {"port": 80}, {"addr": "10.0.0.9"})
    ],
    "tunnel.dns": [
        run(*(dns(f"{long_label(n)}.t.example", kind) for n in range(13)))
        for kind in ("TXT", "NULL", "CNAME", "A", "MX")
    ],
    "tunnel.beacon": [
        run(*[to(port=port)] * 8, apart_s=gap)
        for port, gap in ((443, 60.0), (80, 30.0), (8080, 120.0), (22, 300.0), (53, 45.0))
    ],
    "tunnel.service": [
        run(dns("abc.ngrok-free.app")),
        run(flow(protocol="tls", server_name="region1.v2.argotunnel.com")),
        run(dns("x.loca.lt")),
        run(flow(protocol="tls", server_name="a.serveo.net")),
        run(flow(protocol="http", host="demo.tunnelto.dev", port=80)),
    ],
    "shell.connects": [
        run(ran(f"/usr/bin/{name}"), to(port=port))
        for name, port in (("bash", 4444), ("sh", 443), ("dash", 80), ("zsh", 1), ("ksh", 9001))
    ]
    + [
        run(ran("/usr/bin/bash"), to(pid=10)),
        run(ran("/usr/bin/bash"), ran("/usr/bin/sleep", pid=10, ppid=9), to(pid=11, port=4444)),
        run(ran("/usr/bin/dash"), EXIT, to(pid=12)),
    ],
    "shell.after_connect": [
        run(to(), SH),
        run(LISTEN, claimed("/bin/bash", "bash")),
        run(to(port=1), claimed("/bin/bash", "bash", "--norc")),
        run(to(), claimed("/bin/sh", "sh", pid=8), ran("/bin/sh", pid=8, ppid=9, claim=1)),
        run(to(), to(port=80), claimed("/bin/dash", "dash", "-i")),
    ],
    "probing.metadata_connect": [
        connects(["169.254.169.254"], port=80),
        connects(["169.254.170.2"], port=80),
        run(to("100.100.100.200", 80)),
        run(dns("metadata.google.internal", rcode="REFUSED")),
        run(to("fd00:ec2::254", 80, verdict="deny")),
    ],
    "probing.port_scan": [
        run(*(to(addr, port, errno=111) for port in range(1, 14)))
        for addr in ("10.0.0.5", OUT, "192.168.1.1", "172.16.0.9", "fd00::5")
    ],
    "probing.host_sweep": [
        connects([f"{net}.{n}" for n in range(count)])
        for net, count in (("10.0.0", 8), ("192.168.1", 9), ("198.51.100", 20), ("172.16.3", 10), ("203.0.113", 25))
    ],
    "probing.failures": [
        connects([f"{net}.{n % 15}" for n in range(20)], errno=errno)
        for net, errno in (
            ("198.51.100", 113),
            ("198.51.100", 111),
            ("203.0.113", 110),
            ("192.0.2", 101),
            ("10.9.8", 113),
        )
    ],
    "probing.inner_denied": [
        connects([addr], verdict="deny", errno=13)
        for addr in ("10.0.0.1", "192.168.0.1", "172.16.0.1", "fd00::1", "10.255.0.1")
    ],
    "probing.name_guessing": [
        run(*(dns(f"{stem}{n}.corp.example", rcode=rcode) for n in range(40)))
        for stem, rcode in (
            ("h", "NXDOMAIN"),
            ("db", "REFUSED"),
            ("x-", "NXDOMAIN"),
            ("web", "REFUSED"),
            ("a.b", "NXDOMAIN"),
        )
    ],
    "exfiltration.volume": [
        run(closed(bytes_out=200 * MIB, bytes_in=1000, host="a.example")),
        run(*[closed(bytes_out=6 * MIB, bytes_in=1000)] * 2),
        run(closed(bytes_out=20 * MIB, host="a.example")),
        run(*[closed(bytes_out=MIB, host="a.example")] * 20),
        run(closed(bytes_out=30 * MIB, bytes_in=MIB, server_name="b.example")),
    ],
    "exfiltration.staged": [
        run(claimed(f"/bin/{tool}", tool, *words), closed(bytes_out=9000))
        for tool, *words in (
            ("tar", "czf", "a", "/root/.ssh"),
            ("zip", "-r", "a.zip", "/home/u/.aws"),
            ("cp", "/root/.netrc", "a"),
            ("base64", "/root/.ssh/id_ed25519"),
            ("cat", "/root/.git-credentials"),
        )
    ],
    "diversion.unleased_gpu": [
        run(gpu(outside_s=5.0)),
        run(*[gpu(outside_s=0.1)] * 51),
        run(gpu(outside_s=9.0, attribution="weak")),
        run(gpu(outside_s=2.5), gpu(outside_s=2.5)),
        run(gpu(outside_s=6.0, member=None)),
    ],
    "diversion.outlives": [
        run(END, to()),
        run(END, to("10.0.0.1", 22)),
        run(END, LISTEN),
        run(END, claimed("/w/a", "a")),
        run(END, to(verdict="deny")),
    ],
    "diversion.busy_after_end": [
        run(END, busy(), busy()),
        run(END, busy(60.0)),
        run(END, *[busy(10.0)] * 6),
        run(END, *[busy(20.0, 0.6)] * 3),
        run(END, busy(40.0, 8.0), busy(40.0, 8.0)),
    ],
    "tampering.persistence_written": [
        run(written(path))
        for path in (
            "/home/u/.ssh/authorized_keys",
            "/etc/cron.d/x",
            "/etc/ld.so.preload",
            "/home/u/.bashrc",
            "/home/u/.config/systemd/user/a.service",
        )
    ],
    "tampering.hidden_program": [
        run(ran(exe)) for exe in ("/memfd:x (deleted)", "/dev/shm/x", "/tmp/.x/run", "/var/tmp/.a/b", "/w/a (deleted)")
    ],
    "tampering.process_memory": [
        run(written(path))
        for path in (
            "/proc/12/mem",
            "/proc/12/oom_score_adj",
            "/proc/sys/vm/nr_hugepages",
            "/proc/sysrq-trigger",
            "/sys/kernel/debug/x",
        )
    ],
}
"""What each rule must find."""

LEFT: dict[str, list[list[AnyEvent]]] = {
    "mining.stratum": [run(flow(protocol=name, port=3333)) for name in ("tls", "http", "unknown", "ssh", "websocket")],
    "mining.pool_name": [
        run(dns(name))
        for name in (
            "example.org",
            "carpool.example",
            "mining-history.example",
            "pool-supplies.example",
            "nanopool.org.example",
        )
    ],
    "mining.pool_flow": [
        run(to(port=3333, host="a.example")),
        run(flow(protocol="tls", server_name="mining-history.example")),
        run(to(port=3333)),
        run(flow(protocol="tls", server_name="f2pool.com.example")),
        run(dns("f2pool.com")),
    ],
    "mining.slow_flow": [
        run(*[busy()] * 4, slow()),
        run(*[busy()] * 9, slow(duration_s=170.0, bytes_in=1000)),
        run(*[busy()] * 9, slow(bytes_in=MIB)),
        run(*[busy(share=0.5)] * 20, slow()),
        run(*[busy()] * 9, slow(protocol="http")),
    ],
    "tunnel.ssh_port": [
        run(flow(protocol="ssh", port=22)),
        *(run(flow(protocol=p)) for p in ("tls", "http", "unknown", "smtp")),
    ],
    "tunnel.socks_flow": [
        *(run(flow(protocol=name, port=1080)) for name in ("tls", "http", "unknown")),
        run(("listen", {"op": "listen", "port": 8080})),
        run(("listen", {"op": "bind", "port": 1080})),
    ],
    "tunnel.websocket": [
        run(closed(protocol="websocket", duration_s=900.0, bytes_in=9000, bytes_out=900)),
        run(closed(protocol="websocket", duration_s=2.0, bytes_in=MIB, bytes_out=MIB)),
        run(closed(protocol="tls", duration_s=900.0, bytes_in=MIB, bytes_out=MIB)),
        run(closed(protocol="websocket", duration_s=900.0, bytes_in=MIB, bytes_out=MIB, addr="127.0.0.1")),
        run(flow(protocol="websocket")),
    ],
    "tunnel.dns": [
        run(*[dns(f"{long_label(1)}.t.example")] * 50),
        run(*(dns(f"d{n}.cdn.example") for n in range(60))),
        run(*(dns(f"{long_label(n)}.{n}.example") for n in range(9))),
        run(*(dns(f"{'a' * 40}{n}.t.example") for n in range(30))),
        run(dns("_dmarc.a.example", "TXT")),
    ],
    "tunnel.beacon": [
        run(*[to()] * 5, apart_s=60.0),
        run(*[to()] * 30, apart_s=0.2),
        run(*[to("127.0.0.1")] * 30, apart_s=60.0),
        run(*(to(port=port) for port in range(1, 9)), apart_s=60.0),
        [*run(to(), to(), to(), apart_s=60.0), *run(*[to()] * 3, apart_s=400.0)],
    ],
    "tunnel.service": [
        run(dns(name))
        for name in ("ngrok.com.example", "docs.ngrok-free.app", "www.loca.lt", "tailscale.com", "a.example")
    ],
    "shell.connects": [
        run(ran("/usr/bin/curl"), to()),
        run(ran("/usr/bin/bash"), to("127.0.0.1", 5432)),
        run(ran("/usr/bin/bash"), to("/run/x", 0, transport="unix")),
        run(ran("/usr/bin/bash"), ran("/usr/bin/python3.11", pid=10), to(pid=11)),
        run(ran("/usr/bin/python3.11"), EXIT, to()),
        run(ran("/usr/bin/bash"), claimed("/usr/bin/curl", "curl", pid=10), to(pid=10)),
        run(to(pid=10)),
    ],
    "shell.after_connect": [
        run(to(), claimed("/bin/sh", "sh", "-c", "make")),
        run(to(), claimed("/bin/bash", "bash", "run.sh")),
        run(to(), EXIT, SH),
        run(to(errno=111), SH),
        run(to("127.0.0.1"), SH),
    ],
    "probing.metadata_connect": [
        connects([addr], port=80) for addr in ("169.254.1.1", "10.0.0.1", OUT, "100.100.100.201", "127.0.0.1")
    ],
    "probing.port_scan": [
        run(*(to("10.0.0.5", port) for port in range(1, 11))),
        run(*(to(OUT, 443) for _ in range(99))),
        run(*(to("127.0.0.1", port) for port in range(1, 14))),
        run(*(to(f"10.0.0.{n}", n) for n in range(1, 6))),
        run(*(to("10.0.0.5", port) for port in range(1, 14)), apart_s=90.0),
    ],
    "probing.host_sweep": [
        connects([f"10.0.0.{n}" for n in range(7)]),
        connects([f"198.51.100.{n}" for n in range(19)]),
        run(*(to(f"198.51.100.{n}", host=f"s{n}.example") for n in range(60))),
        connects([f"127.0.0.{n}" for n in range(30)]),
        run(*(to(f"10.0.0.{n}", 22) for n in range(20)), apart_s=120.0),
    ],
    "probing.failures": [
        connects([f"198.51.100.{n % 15}" for n in range(20)]),
        connects(["198.51.100.1"] * 30, errno=111),
        connects([f"198.51.100.{n}" for n in range(15)], errno=111),
        connects([f"127.0.0.{n % 15}" for n in range(30)], errno=111),
        run(*(to(f"198.51.100.{n % 12}", errno=111 * (n % 2)) for n in range(40))),
    ],
    "probing.inner_denied": [
        connects(["10.0.0.1"], errno=111),
        connects([OUT], verdict="deny", errno=13),
        connects(["127.0.0.1"], verdict="deny", errno=13),
        connects(["10.0.0.1"]),
        run(to("/run/x", 0, transport="unix", verdict="deny")),
    ],
    "probing.name_guessing": [
        run(*(dns(f"h{n}.corp.example", rcode="NXDOMAIN") for n in range(39))),
        run(*(dns(f"h{n}.corp.example") for n in range(90))),
        run(*[dns("h.corp.example", rcode="NXDOMAIN")] * 90),
        run(*(dns(f"h{n}.corp.example", rcode="SERVFAIL") for n in range(90))),
        run(*(("dns", {"qname": f"h{n}.example", "qtype": "A", "rcode": "NXDOMAIN", "step": n}) for n in range(1, 50))),
    ],
    "exfiltration.volume": [
        run(closed(bytes_out=MIB, host="a.example")),
        run(closed(bytes_out=200 * MIB, bytes_in=100 * MIB, host="a.example")),
        run(closed(bytes_out=900 * MIB, addr="127.0.0.1")),
        run(flow(bytes_out=900 * MIB)),
        run(*(closed(bytes_out=200_000, bytes_in=5000, addr=f"198.51.100.{n}") for n in range(40))),
    ],
    "exfiltration.staged": [
        run(claimed("/bin/tar", "tar", "czf", "a", "src"), closed(bytes_out=9000)),
        run(claimed("/bin/tar", "tar", "czf", "a", "/root/.ssh"), closed(bytes_out=900)),
        run(claimed("/bin/tar", "tar", "czf", "a", "/root/.ssh"), closed(bytes_out=9000, bytes_in=90_000)),
        run(closed(bytes_out=9000), claimed("/bin/tar", "tar", "czf", "a", "/root/.ssh")),
        run(claimed("/bin/ls", "ls", "/root/.ssh"), closed(bytes_out=9000)),
    ],
    "diversion.unleased_gpu": [
        run(*[gpu()] * 99),
        run(gpu(outside_s=4.9)),
        run(gpu(outside_s=60.0, member=False)),
        run(*[gpu(op="device", outside_s=9.0)] * 9),
        run(gpu(outside_s=3.0), gpu(outside_s=3.0, device="GPU-2")),
    ],
    "diversion.outlives": [
        run(to(), END),
        run(END, ("connect", {"addr": OUT, "port": 443, "step": 2})),
        run(END, to("/run/x", 0, transport="unix")),
        run(END, busy()),
        run(END, ran("/w/a", claim=0)),
    ],
    "diversion.busy_after_end": [
        run(END, busy()),
        run(*[busy()] * 99),
        run(END, *[busy(30.0, 0.4)] * 9),
        run(END, *[busy(step=2)] * 9),
        run(END, *[busy(pid=0)] * 9),
    ],
    "tampering.persistence_written": [
        run(written(path))
        for path in (
            "/w/src/main.py",
            "/w/.git/hooks/pre-commit.sample",
            "/home/u/.ssh/known_hosts",
            "/etc/hosts",
            "/w/cron.d.txt",
        )
    ],
    "tampering.hidden_program": [
        run(ran(exe))
        for exe in (
            "/usr/bin/python3",
            "/w/.venv/bin/python",
            "/home/u/.cargo/bin/rg",
            "/tmp/a.out",
            "/w/.tox/py/bin/x",
        )
    ],
    "tampering.process_memory": [
        run(written(path)) for path in ("/proc/self/comm", "/w/mem", "/dev/null", "/proc/self/fd/1", "/w/sys/kernel")
    ],
}
"""What each rule must leave alone."""


def _cases(table: dict[str, list[list[AnyEvent]]]) -> list[Any]:
    return [
        pytest.param(rule, events, id=f"{rule}-{n}")
        for rule, fixtures in table.items()
        for n, events in enumerate(fixtures)
    ]


@pytest.mark.parametrize(("rule", "events"), _cases(FOUND))
def test_each_rule_finds_what_it_must(rule: str, events: list[AnyEvent]) -> None:
    """Each of the five sequences gives the rule."""
    assert rule in {draft.rule for draft in feed(events)}


@pytest.mark.parametrize(("rule", "events"), _cases(LEFT))
def test_each_rule_leaves_the_near_misses_alone(rule: str, events: list[AnyEvent]) -> None:
    """None of the five gives it; other rules may find them."""
    assert rule not in {draft.rule for draft in feed(events)}


def test_every_rule_over_records_has_fixtures() -> None:
    """At least five of each kind; rules over commands have theirs elsewhere, as do three newer ones."""
    elsewhere = {rule.id for each in COMMAND_RULES for rule in each.rules} | {
        "payment.request",
        "diversion.busy_together",
        UNREAD.id,
    }
    wanted = {rule.id for rule in OWN_RULES} - elsewhere
    assert FOUND.keys() == LEFT.keys() == wanted
    assert all(len(each) >= 5 for table in (FOUND, LEFT) for each in table.values())
