"""Our own detectors over connections, look-ups, flows, files and computation: what each must and must not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.detect.bounded import Recent, Said
from jupyter_agentwatch.detect.engine import KINDS
from jupyter_agentwatch.detect.own import own_detectors
from jupyter_agentwatch.testing.builders import event
from tests.flow_events import OUT, SECOND, claimed, connects, dns, feed, flow, long_label, ran, run

if TYPE_CHECKING:
    from jupyter_agentwatch.events import AnyEvent

ENDED = ("step", {"op": "end", "cpu_user_s": 1.0, "duration_s": 100.0})
GPU = {
    "op": "process",
    "device": "GPU-1",
    "member": True,
    "attribution": "exact",
    "interval_s": 5.0,
    "gpu_seconds": 5.0,
}
BUSY = ("resources", {"interval_s": 30.0, "cpu_s": 29.0, "name": "x"})
TOGETHER = ("resources", {"pid": 0, "step": 0, "interval_s": 10.0, "cpu_s": 4.0, "processes": 40, "threads": 40})
BEGUN = ("step", {"op": "start", "argv": ["sh"]})
SLOW = flow(op="closed", protocol="tls", duration_s=600.0, bytes_in=40_000, bytes_out=9_000)

POSITIVE: list[tuple[str, str, list[AnyEvent]]] = [
    ("mining.stratum", "critical", run(flow(protocol="stratum"))),
    ("mining.stratum", "critical", run(flow(protocol="stratum", port=3333, verdict="deny"))),
    ("mining.pool_name", "high", run(dns("xmr-eu1.nanopool.org"))),
    ("mining.pool_name", "high", run(dns("pool.supportxmr.com", rcode="REFUSED"))),
    ("mining.pool_name", "high", run(dns("stratum.anything.example"))),
    ("mining.pool_name", "medium", run(dns("nanopool.org"))),
    ("mining.pool_flow", "high", run(("connect", {"addr": OUT, "port": 3333, "host": "f2pool.com"}))),
    ("mining.pool_flow", "high", run(flow(protocol="tls", server_name="gulf.moneroocean.stream"))),
    ("mining.slow_flow", "high", run(*[BUSY] * 10, SLOW)),
    ("mining.slow_flow", "high", run(SLOW, *[("gpu", {**GPU, "interval_s": 30.0, "gpu_seconds": 30.0})] * 10)),
    ("mining.slow_flow", "high", run(SLOW, ("step", {"op": "end", "cpu_user_s": 900.0, "duration_s": 600.0}))),
    ("tunnel.ssh_port", "high", run(flow(protocol="ssh"))),
    ("tunnel.ssh_port", "high", run(flow(protocol="ssh", port=53))),
    ("tunnel.ssh_port", "high", run(flow(protocol="ssh", port=8080))),
    ("tunnel.ssh_port", "medium", run(flow(protocol="ssh", port=2222))),
    ("tunnel.ssh_port", "medium", run(flow(protocol="ssh", port=8022))),
    ("tunnel.service", "high", run(dns("serveo.net"))),
    ("tunnel.service", "high", run(dns("bore.pub"))),
    ("tunnel.socks_flow", "high", run(flow(protocol="socks5", port=1080))),
    ("tunnel.socks_flow", "high", run(flow(protocol="socks4", verdict="deny"))),
    (
        "tunnel.websocket",
        "high",
        run(flow(op="closed", protocol="websocket", duration_s=900.0, bytes_in=1 << 20, bytes_out=1 << 20)),
    ),
    ("tunnel.dns", "high", run(*(dns(f"{long_label(n)}.t.example", "TXT") for n in range(13)))),
    ("tunnel.dns", "high", run(*(dns(f"{long_label(n)}.{n}.t.example") for n in range(13)))),
    ("tunnel.beacon", "medium", run(*[("connect", {"addr": OUT})] * 8, apart_s=60.0)),
    ("tunnel.service", "high", run(dns("abc.ngrok-free.app"))),
    ("tunnel.service", "high", run(flow(protocol="tls", server_name="region1.v2.argotunnel.com"))),
    ("shell.connects", "high", run(ran("/usr/bin/bash"), ("connect", {"addr": OUT, "port": 4444}))),
    ("shell.after_connect", "high", run(("connect", {"addr": OUT}), claimed("/bin/sh", "sh", "-i"))),
    (
        "shell.after_connect",
        "high",
        run(("connect", {"addr": OUT}), claimed("/bin/sh", "sh", pid=8), ran("/bin/sh", pid=8, ppid=9, claim=1)),
    ),
    ("shell.after_connect", "high", run(("listen", {"op": "listen", "port": 4444}), claimed("/bin/bash", "bash"))),
    ("probing.metadata_connect", "high", connects(["169.254.169.254"], port=80)),
    ("probing.metadata_connect", "high", run(dns("metadata.google.internal", rcode="REFUSED"))),
    (
        "probing.port_scan",
        "high",
        run(*(("connect", {"addr": "10.0.0.5", "port": p, "errno": 111}) for p in range(1, 13))),
    ),
    ("probing.port_scan", "high", run(*(("connect", {"addr": OUT, "port": p}) for p in range(1, 14)))),
    ("probing.host_sweep", "high", connects(f"10.0.0.{n}" for n in range(8))),
    ("probing.host_sweep", "high", connects(f"192.168.{n}.1" for n in range(9))),
    ("probing.host_sweep", "high", connects(f"198.51.100.{n}" for n in range(20))),
    ("probing.failures", "high", connects((f"198.51.100.{n % 19}" for n in range(20)), errno=113)),
    ("probing.inner_denied", "high", connects((f"10.0.{n}.1" for n in range(4)), verdict="deny", errno=13)),
    ("probing.inner_denied", "medium", connects(["10.0.0.1"], verdict="deny", errno=13)),
    ("probing.name_guessing", "high", run(*(dns(f"h{n}.corp.example", rcode="NXDOMAIN") for n in range(40)))),
    ("exfiltration.volume", "high", run(flow(op="closed", bytes_out=200 << 20, bytes_in=1000, host="a.example"))),
    ("exfiltration.volume", "high", run(*[flow(op="closed", bytes_out=6 << 20, bytes_in=1000)] * 2)),
    ("exfiltration.volume", "medium", run(flow(op="closed", bytes_out=20 << 20, host="a.example"))),
    (
        "exfiltration.staged",
        "high",
        run(claimed("/bin/tar", "tar", "czf", "a", "/root/.ssh"), flow(op="closed", bytes_out=9000)),
    ),
    ("diversion.unleased_gpu", "high", run(("gpu", {**GPU, "outside_s": 5.0}))),
    ("diversion.unleased_gpu", "high", run(*[("gpu", {**GPU, "outside_s": 0.1})] * 51)),
    ("diversion.unleased_gpu", "medium", run(("gpu", {**GPU, "outside_s": 9.0, "attribution": "weak"}))),
    ("diversion.outlives", "medium", run(ENDED, ("connect", {"addr": OUT}))),
    ("diversion.busy_after_end", "high", run(ENDED, BUSY, BUSY)),
    ("diversion.busy_together", "high", run(BEGUN, ENDED, *[TOGETHER] * 6)),
    ("diversion.busy_together", "high", run(ENDED, *[TOGETHER] * 60)),
    ("diversion.busy_together", "high", run(ENDED, ("resources", {**TOGETHER[1], "interval_s": 60.0, "cpu_s": 600.0}))),
    ("diversion.busy_together", "high", run(BEGUN, ENDED, BEGUN, ENDED, *[TOGETHER] * 7)),
    ("diversion.busy_together", "high", run(ENDED, *[TOGETHER] * 2, BEGUN, ENDED, *[TOGETHER] * 6)),
    ("tampering.persistence_written", "high", run(("file", {"op": "openat", "path": "/home/u/.ssh/authorized_keys"}))),
    (
        "tampering.persistence_written",
        "high",
        run(("file", {"op": "rename", "path": "/tmp/x", "path2": "/etc/cron.d/x"})),
    ),
    ("tampering.persistence_written", "high", run(("file", {"op": "openat", "path": "/etc/ld.so.preload"}))),
    ("tampering.persistence_written", "medium", run(("file", {"op": "openat", "path": "/home/u/.bashrc"}))),
    ("tampering.hidden_program", "high", run(ran("/memfd:x (deleted)"))),
    ("tampering.hidden_program", "high", run(ran("/dev/shm/x"))),
    ("tampering.hidden_program", "medium", run(ran("/tmp/.x/run"))),
    ("tampering.process_memory", "high", run(("file", {"op": "openat", "path": "/proc/12/mem"}))),
    ("tampering.masquerade", "high", run(claimed("/tmp/x", "[kworker/0:1]"))),
]

IDLE_TOGETHER = ("resources", {**TOGETHER[1], "cpu_s": 0.5})


def test_lost_records_are_a_finding() -> None:
    """Each gap is told at high, with how many are missing and why."""
    (found,) = feed(run(("gap", {"lost": 12, "reason": "the disk is full", "step": 0, "pid": 0})))
    assert (found.rule, found.severity, found.family) == ("agentwatch.records_lost", "high", "monitor")
    assert found.title == "12 records were lost: the disk is full"


BENIGN: list[tuple[str, list[AnyEvent]]] = [
    ("work while a step runs", run(BEGUN, *[TOGETHER] * 60)),
    ("work while another step runs", run(BEGUN, ENDED, ("step", {"op": "start", "step": 2}), *[TOGETHER] * 60)),
    ("a server that is hardly used", run(ENDED, *[IDLE_TOGETHER] * 60)),
    ("work in short bursts", run(ENDED, *[TOGETHER, TOGETHER, IDLE_TOGETHER] * 20)),
    ("a step's last seconds", run(BEGUN, ENDED, *[TOGETHER] * 5)),
    ("work before the first step", run(*[TOGETHER] * 60)),
    (
        "a package installer",
        run(
            dns("packages.example.org"),
            *[flow(protocol="tls", host="files.example.org")] * 9,
            flow(op="closed", bytes_in=9 << 20, bytes_out=9000),
        ),
    ),
    (
        "git over ssh",
        run(
            flow(protocol="ssh", port=22, host="git.example"),
            flow(op="closed", protocol="ssh", port=22, bytes_out=4 << 20, bytes_in=9000),
        ),
    ),
    (
        "a web page about a pool",
        run(dns("pool.example.org"), flow(protocol="tls", server_name="mining-history.example")),
    ),
    (
        "reading many pages of one site",
        run(*(("connect", {"addr": OUT, "host": "a.example", "port": 443}) for _ in range(100)), apart_s=0.3),
    ),
    (
        "a crawler of many named sites",
        run(*(("connect", {"addr": f"198.51.100.{n}", "host": f"s{n}.example"}) for n in range(60))),
    ),
    ("a long training run", run(*[BUSY] * 200, *[("gpu", GPU)] * 50, ENDED)),
    (
        "training with a leased GPU beside a busy upload",
        run(
            *[("gpu", GPU)] * 99,
            flow(op="closed", protocol="tls", duration_s=600.0, bytes_in=9 << 20, bytes_out=9 << 20),
        ),
    ),
    (
        "a server and its tests on loopback",
        run(
            ("listen", {"op": "listen", "port": 8000}),
            *(("connect", {"addr": "127.0.0.1", "port": 8000}) for _ in range(200)),
            apart_s=5.0,
        ),
    ),
    ("a mesh of workers on loopback", run(*(("connect", {"addr": "127.0.0.1", "port": 40000 + n}) for n in range(20)))),
    ("a shell that waits for a port", run(ran("/bin/bash"), ("connect", {"addr": "127.0.0.1", "port": 5432}))),
    (
        "curl, then a shell script",
        run(("connect", {"addr": OUT}), claimed("/bin/sh", "sh", "-c", "make"), claimed("/bin/bash", "bash", "run.sh")),
    ),
    ("hashes looked up at a content network", run(*(dns(f"d{n}.cdn.example") for n in range(60)))),
    ("one long generated name", run(*[dns(f"{long_label(1)}.elb.region.example")] * 50)),
    ("a few wrong names", run(*(dns(f"h{n}.example", rcode="NXDOMAIN") for n in range(9)))),
    ("three hosts of a cluster", connects(["10.0.0.1", "10.0.0.2", "10.0.0.3"], port=22)),
    ("a failing mirror", connects(["198.51.100.1"] * 30, errno=111)),
    (
        "git init",
        run(*(("file", {"op": "openat", "path": f"/w/.git/hooks/{n}.sample"}) for n in ("pre-commit", "update"))),
    ),
    (
        "pip into a virtual environment",
        run(ran("/w/.venv/bin/python"), ("file", {"op": "openat", "path": "/w/.venv/lib/a.py"})),
    ),
    (
        "a notebook in the browser",
        run(
            flow(op="closed", protocol="websocket", host="hub.example", duration_s=900.0, bytes_in=9000, bytes_out=900)
        ),
    ),
    (
        "archives of code, then a push",
        run(claimed("/bin/tar", "tar", "czf", "a.tgz", "src"), flow(op="closed", bytes_out=90_000, host="a.example")),
    ),
    ("commands within their step", run(claimed("/bin/ls", "ls"), ran("/bin/ls"), ("exit", {"exit_code": 0}), ENDED)),
]


@pytest.mark.parametrize(
    ("rule", "severity", "events"), POSITIVE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_rule_sees_what_it_is_for(rule: str, severity: str, events: list[AnyEvent]) -> None:
    """The events give the rule at the severity that it promises, once, with evidence that exists."""
    found = [draft for draft in feed(events) if (draft.rule, draft.severity) == (rule, severity)]
    assert len(found) == 1
    assert set(found[0].evidence) <= {each.seq for each in events}
    assert found[0].evidence
    assert found[0].step == 1


@pytest.mark.parametrize(("story", "events"), BENIGN, ids=lambda value: value if isinstance(value, str) else "")
def test_honest_work_is_left_alone(story: str, events: list[AnyEvent]) -> None:
    """Ordinary sequences of events give nothing of severity high or above."""
    assert [draft for draft in feed(events) if draft.severity in ("high", "critical")] == []


def test_a_scan_split_over_steps_is_still_a_scan() -> None:
    """Places are also counted for the watch as a whole."""
    events = [
        event("connect", seq=n, t_mono_ns=n * SECOND, step=n, addr=f"10.0.0.{n}", port=22, errno=113)
        for n in range(1, 20)
    ]
    assert "probing.host_sweep" in {draft.rule for draft in feed(events)}


def test_a_slow_scan_outside_the_window_is_no_sweep() -> None:
    """Hosts that are asked minutes apart are not counted together."""
    events = run(*(("connect", {"addr": f"10.0.0.{n}", "port": 22}) for n in range(20)), apart_s=120.0)
    assert "probing.host_sweep" not in {draft.rule for draft in feed(events)}


def test_a_process_id_that_is_used_again_is_another_process() -> None:
    """What a process did ends with it."""
    events = run(("connect", {"addr": OUT}), ("exit", {"exit_code": 0}), claimed("/bin/sh", "sh", "-i"))
    assert "shell.after_connect" not in {draft.rule for draft in feed(events)}


def test_what_is_remembered_is_bounded() -> None:
    """The key that was used longest ago is forgotten first, and said things are forgotten last in, first out of old."""
    recent: Recent[int, list[int]] = Recent(list, limit=3)
    for key in (1, 2, 3, 1, 4):
        recent[key].append(key)
    assert [key in recent for key in (1, 2, 3, 4)] == [True, False, True, True]
    assert len(recent) == 3
    recent.forget(1)
    assert 1 not in recent
    said = Said(limit=2)
    assert [said.first(key) for key in ("a", "a", "b", "c", "a")] == [True, False, True, True, True]


HOSTILE = st.text(max_size=30)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(
                lambda a, p, h: event("connect", addr=a, port=p, host=h), HOSTILE, st.integers(0, 65535), HOSTILE
            ),
            st.builds(lambda q, t: event("dns", qname=q, qtype=t, rcode="NXDOMAIN"), HOSTILE, HOSTILE),
            st.builds(
                lambda a, n, p: event("flow", op="closed", addr=a, server_name=n, protocol=p, bytes_out=1 << 40),
                HOSTILE,
                HOSTILE,
                HOSTILE,
            ),
            st.builds(
                lambda p, v: event("exec", basis="claimed", path=p, argv=v), HOSTILE, st.lists(HOSTILE, max_size=5)
            ),
            st.builds(lambda e: event("exec", basis="post", exe=e), HOSTILE),
            st.builds(lambda o, p: event("file", op=o, path=p, path2=p), HOSTILE, HOSTILE),
        ),
        max_size=12,
    )
)
def test_no_event_raises(events: list[AnyEvent]) -> None:
    """Whatever the sandbox names, the detectors read it; every draft names a known kind of sign."""
    assert all(draft.title and draft.technique for draft in feed(events))


def test_detectors_ask_for_kinds_that_exist() -> None:
    """What a detector wants is in the vocabulary of events."""
    for detector in own_detectors():
        assert detector.kinds <= KINDS.keys()
