"""From denials to candidates: small, honest about evidence, and never what must stay closed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Exec, Flow
from jupyter_agentwatch.policy import (
    HOST_LOOPBACK,
    Network,
    NetworkMatcher,
    NetworkRule,
    Policy,
    Suggestion,
    decide_protocol,
    parse_policy,
    policy_to_yaml,
    suggest_policy,
    unix_allowed,
)

PROPERTY = settings(deadline=None, database=None)


def common(seq: int, verdict: str = "deny") -> dict[str, Any]:
    return {"seq": seq, "t_mono_ns": seq, "t_wall_ns": seq, "watch": "w", "verdict": verdict, "basis": "verified"}


def connect(seq: int, addr: str, port: int = 443, host: str = "", **fields: Any) -> Connect:
    return Connect(**{"transport": "tcp", **common(seq), **fields}, addr=addr, port=port, host=host)


def dns(seq: int, qname: str, qtype: str = "A", rule: str = "no-rule") -> Dns:
    return Dns(**common(seq), qname=qname, qtype=qtype, rcode="REFUSED", rule=rule)


def flow(seq: int, protocol: str, addr: str = "8.8.8.8", host: str = "a.example", rule: str = "") -> Flow:
    rule = rule or f"protocol:{protocol}"
    return Flow(**common(seq), op="named", flow=1, addr=addr, port=443, host=host, protocol=protocol, rule=rule)


def base(*rules: NetworkRule) -> Policy:
    return Policy(network=Network(rules=list(rules)))


def rules_of(suggestion: Suggestion) -> list[NetworkRule | str]:
    return [candidate.rule for candidate in suggestion.candidates]


def test_ports_of_one_host_are_merged() -> None:
    """Denials of one host give one rule with its ports in order, with all evidence."""
    found = suggest_policy(
        [
            connect(4, "8.8.8.8", 443, "a.example"),
            connect(7, "9.9.9.9", 80, "A.example."),
            connect(9, "8.8.8.8", 443, "a.example"),
        ],
        Policy(),
    )
    assert rules_of(found) == [NetworkRule(host="a.example", ports=[80, 443])]
    assert found.candidates[0].seqs == [4, 7, 9]
    assert found.candidates[0].count == 3
    assert found.candidates[0].reason == "a.example port 80, 443 denied 3 times"
    assert found.left_out == []


def test_a_name_is_preferred_to_an_address() -> None:
    """An address is proposed only where no name was known, or where the name led to a private one."""
    found = suggest_policy(
        [connect(1, "8.8.8.8", 443, "a.example"), connect(2, "9.9.9.9"), connect(3, "10.0.0.5", 443, "b.example")],
        Policy(),
    )
    assert rules_of(found) == [
        NetworkRule(host="a.example", ports=[443]),
        NetworkRule(cidr="9.9.9.9", ports=[443]),
        NetworkRule(cidr="10.0.0.5", ports=[443]),
    ]


def test_a_refused_name_gets_a_guessed_port() -> None:
    """A name that never got as far as a connection is proposed with 443, and the reason says that it is a guess."""
    found = suggest_policy([dns(1, "A.Example."), dns(2, "a.example", "AAAA")], Policy())
    assert rules_of(found) == [NetworkRule(host="a.example", ports=[443])]
    assert found.candidates[0].seqs == [1, 2]
    assert "the port is a guess" in found.candidates[0].reason


def test_a_refused_name_joins_its_connections() -> None:
    """Where connections to the name are on record, their port is taken and nothing is guessed."""
    found = suggest_policy([dns(1, "a.example"), connect(2, "8.8.8.8", 22, "a.example")], Policy())
    assert rules_of(found) == [NetworkRule(host="a.example", ports=[22])]
    assert found.candidates[0].seqs == [1, 2]
    assert found.candidates[0].count == 2


def test_the_stand_in_becomes_host_loopback() -> None:
    """A denied call to the machine's loopback is proposed as host.loopback, never as an address."""
    found = suggest_policy([dns(1, "host.loopback"), connect(2, HOST_LOOPBACK, 8000)], Policy())
    assert rules_of(found) == [NetworkRule(host="host.loopback", ports=[8000])]
    alone = suggest_policy([dns(1, "host.loopback")], Policy())
    assert alone.candidates == []
    assert "host.loopback" in alone.left_out[0].reason


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (flow(1, "stratum"), "never passed on"),
        (flow(1, "socks5"), "never passed on"),
        (flow(1, "tls", rule="server-name-mismatch"), "another server"),
        (flow(1, "tls", rule="server-name-hidden"), "hid its name"),
        (connect(1, "8.8.8.8", 53, transport="udp"), "UDP"),
        (connect(1, "127.0.0.1"), "loopback"),
        (connect(1, "::1"), "loopback"),
        (connect(1, "0.0.0.0"), "loopback"),
        (connect(1, "127.0.0.1", 443, "a.example"), "loopback"),
        (connect(1, "nonsense"), "not an address"),
        (connect(1, "8.8.8.8", 0), "not an address"),
        (connect(1, "/var/run/docker.sock", transport="unix"), "never suggested"),
        (connect(1, "/tmp/ssh-XX/agent.1", transport="unix"), "never suggested"),
        (connect(1, "@/tmp/.X11-unix/X0", transport="unix"), "never suggested"),
        (connect(1, "/run/../x.sock", transport="unix"), "not a plain absolute path"),
        (connect(1, "/run/\x1b[2Jx", transport="unix"), "not a plain absolute path"),
        (dns(1, "a\x00.example"), "not a host name"),
        (dns(1, "payload.example", "TXT"), "only addresses"),
        (dns(1, "x.loopback"), "cannot be given"),
    ],
)
def test_what_must_stay_closed_is_left_out_with_its_reason(event: AnyEvent, reason: str) -> None:
    """Nothing is proposed for it, and the denial is still accounted for."""
    found = suggest_policy([event], Policy())
    assert found.candidates == []
    assert [(left.seqs, left.count) for left in found.left_out] == [([1], 1)]
    assert reason in found.left_out[0].reason
    assert found.left_out[0].reason.isprintable()


def test_a_port_scan_is_left_out() -> None:
    """A host of which many ports were tried is not proposed."""
    found = suggest_policy([connect(port, "10.0.0.5", port) for port in range(1, 40)], Policy())
    assert found.candidates == []
    assert "port scan" in found.left_out[0].reason
    assert found.left_out[0].count == 39
    assert len(found.left_out[0].seqs) == 32


def test_what_is_allowed_by_now_is_left_out() -> None:
    """A denial that the base policy no longer gives is not proposed again."""
    policy = base(NetworkRule(host="a.example", ports=[443]))
    found = suggest_policy(
        [connect(1, "8.8.8.8", 443, "a.example"), dns(2, "a.example"), connect(3, "8.8.8.8", 22, "a.example")], policy
    )
    assert rules_of(found) == [NetworkRule(host="a.example", ports=[22])]
    assert found.left_out[0].count == 1


def test_only_denials_count() -> None:
    """Allowed calls and other kinds of records propose nothing."""
    events: list[AnyEvent] = [connect(1, "8.8.8.8", verdict="allow"), Exec(**common(2), path="/bin/true")]
    found = suggest_policy(events, Policy())
    assert found == Suggestion(Policy(), [], [])


def test_a_protocol_that_the_rule_did_not_name_is_proposed_as_any() -> None:
    """The rule that decided stays, and a wider one for this host and port alone goes before it."""
    policy = base(NetworkRule(host="*.example", ports=[443, 80], protocol="tls"))
    found = suggest_policy([flow(5, "ssh")], policy)
    assert rules_of(found) == [NetworkRule(host="a.example", ports=[443])]
    assert found.candidates[0].overrides == "network.rules[0]"
    assert "spoke ssh" in found.candidates[0].reason
    extended = found.policy([0])
    assert extended.network.rules == [NetworkRule(host="a.example", ports=[443]), *policy.network.rules]


def test_a_rule_is_overridden_only_where_it_decided() -> None:
    """Candidates against a deny rule stand before it, the others behind everything of the base."""
    deny = NetworkRule(cidr="9.0.0.0/8", ports=[443], verdict="deny")
    found = suggest_policy([connect(1, "9.9.9.9"), connect(2, "8.8.8.8")], base(deny))
    assert [candidate.overrides for candidate in found.candidates] == ["network.rules[0]", ""]
    first, second = rules_of(found)
    assert found.policy([1, 0]).network.rules == [first, deny, second]
    assert found.policy([1]).network.rules == [deny, second]


def test_a_name_that_is_closed_for_other_ports_is_opened() -> None:
    """A deny rule for another port also keeps the name from being resolved, so the candidate goes before it."""
    deny = NetworkRule(host="a.example", ports=[22], verdict="deny")
    found = suggest_policy([dns(1, "a.example"), connect(2, "8.8.8.8", 443, "a.example")], base(deny))
    judge = NetworkMatcher(found.policy([0]).network)
    assert judge.decide_name("a.example").verdict == "allow"
    assert judge.decide_connect("8.8.8.8", 443, ["a.example"]).verdict == "allow"
    assert judge.decide_connect("8.8.8.8", 22, ["a.example"]).verdict == "deny"


def test_a_socket_is_proposed_by_its_path() -> None:
    """A denied AF_UNIX connect gives a candidate for `unix_sockets`."""
    found = suggest_policy([connect(3, "/run/db.sock", 0, transport="unix")], Policy())
    assert rules_of(found) == ["/run/db.sock"]
    assert found.policy([0]).unix_sockets == ["/run/db.sock"]
    assert found.policy([]) == Policy()


@pytest.mark.parametrize("picked", [[1], [-1], [0, 5]])
def test_a_pick_that_does_not_exist_is_an_error(picked: list[int]) -> None:
    """Picking a number that is not on the list is an error, not a smaller policy."""
    with pytest.raises(PolicyError, match="there is no candidate"):
        suggest_policy([connect(1, "8.8.8.8")], Policy()).policy(picked)


some_hosts = st.sampled_from(["", "a.example", "b.a.example", "host.loopback", "bad name"])
some_addresses = st.sampled_from(
    ["8.8.8.8", "9.9.9.9", "10.0.0.5", "127.0.0.1", "2606::1", "fe80::1%x", "::ffff:10.0.0.5", HOST_LOOPBACK]
)
some_ports = st.sampled_from([22, 80, 443])
seqs = st.integers(0, 1000)
events = st.lists(
    st.builds(connect, seqs, some_addresses, some_ports, some_hosts)
    | st.builds(dns, seqs, some_hosts)
    | st.builds(flow, seqs, st.sampled_from(["ssh", "unknown", "stratum"]), some_addresses, some_hosts)
    | st.builds(
        lambda seq, addr: connect(seq, addr, 0, transport="unix"), seqs, st.sampled_from(["/a", "@b", "/x/bus"])
    ),
    max_size=12,
)
base_rules = st.lists(
    st.builds(
        lambda host, ports, protocol, verdict: NetworkRule(host=host, ports=ports, protocol=protocol, verdict=verdict),
        st.sampled_from(["a.example", "*.a.example", "host.loopback"]),
        st.lists(some_ports, min_size=1, max_size=2),
        st.sampled_from(["any", "tls"]),
        st.sampled_from(["allow", "deny", "ask"]),
    )
    | st.builds(
        lambda cidr, port, verdict: NetworkRule(cidr=cidr, ports=[port], verdict=verdict),
        st.sampled_from(["8.0.0.0/8", "10.0.0.0/8", "0.0.0.0/0"]),
        some_ports,
        st.sampled_from(["allow", "deny", "ask"]),
    ),
    max_size=4,
)


def passes(policy: Policy, event: AnyEvent) -> bool:
    judge = NetworkMatcher(policy.network)
    if isinstance(event, Dns):
        return judge.decide_name(event.qname).verdict == "allow"
    assert isinstance(event, Connect | Flow)
    if isinstance(event, Connect) and event.transport == "unix":
        return unix_allowed(policy.unix_sockets, event.addr)
    decision = judge.decide_connect(event.addr, event.port, [event.host])
    if isinstance(event, Flow):
        decision = decide_protocol(decision, event.protocol)
    return decision.verdict == "allow"


@PROPERTY
@given(events, base_rules)
def test_all_candidates_together_allow_all_that_was_not_left_out(
    denied: list[AnyEvent], rules: list[NetworkRule]
) -> None:
    """The policy with everything picked allows each denial, but for those that were left out with a reason."""
    denied = [msgspec.structs.replace(event, seq=seq) for seq, event in enumerate(denied)]
    found = suggest_policy(denied, base(*rules))
    extended = found.policy(range(len(found.candidates)))
    left = {seq for out in found.left_out if not out.reason.startswith("allowed by") for seq in out.seqs}
    for event in denied:
        assert event.seq in left or passes(extended, event)
    counted = sum(each.count for each in found.candidates) + sum(each.count for each in found.left_out)
    assert counted == len(denied)


@PROPERTY
@given(events, base_rules)
def test_a_suggestion_is_a_narrow_and_valid_policy(denied: list[AnyEvent], rules: list[NetworkRule]) -> None:
    """Candidates are single hosts or addresses with ports, never the stand-in, and survive YAML."""
    found = suggest_policy(denied, base(*rules))
    for rule in rules_of(found):
        if isinstance(rule, NetworkRule):
            assert rule.ports
            assert "*" not in (rule.host or "")
            assert "/" not in (rule.cidr or "")
            assert rule.cidr != HOST_LOOPBACK
    extended = found.policy(range(len(found.candidates)))
    assert parse_policy(policy_to_yaml(extended)) == extended
