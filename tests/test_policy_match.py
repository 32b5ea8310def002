"""Decisions over names, addresses, ports and protocols: the first rule decides, nothing means nothing."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.policy import (
    HOST_LOOPBACK,
    Decision,
    Network,
    NetworkMatcher,
    NetworkRule,
    decide_protocol,
    unix_allowed,
)

PROPERTY = settings(deadline=None, database=None)
PUBLIC = "8.8.8.8"


def matcher(*rules: NetworkRule, private_answers: bool = False) -> NetworkMatcher:
    return NetworkMatcher(Network(rules=list(rules), private_answers=private_answers))


def host(name: str, *ports: int, **fields: Any) -> NetworkRule:
    return NetworkRule(host=name, ports=list(ports) or [443], **fields)


def cidr(text: str, *ports: int, **fields: Any) -> NetworkRule:
    return NetworkRule(cidr=text, ports=list(ports) or [443], **fields)


def test_a_name_is_decided_by_the_first_rule_that_matches() -> None:
    """An earlier deny rule closes a name that a later wildcard allows, and only that name."""
    judge = matcher(host("secret.example.org", verdict="deny"), host("*.example.org", verdict="ask"))
    assert judge.decide_name("secret.example.org") == Decision("deny", "network.rules[0]", "any", "secret.example.org")
    assert judge.decide_name("API.Example.ORG.") == Decision("ask", "network.rules[1]", "any", "api.example.org")
    assert judge.decide_name("example.org") == Decision("deny", "no-rule")
    assert judge.decide_name("other.example") == Decision("deny", "no-rule")


def test_an_earlier_deny_closes_a_name_whatever_its_ports() -> None:
    """A name that one rule denies is not resolved for another rule's ports."""
    judge = matcher(host("api.example", 22, verdict="deny"), host("api.example", 443))
    assert judge.decide_name("api.example").rule == "network.rules[0]"
    assert judge.decide_connect(PUBLIC, 443, ["api.example"]).verdict == "allow"


def test_a_wildcard_matches_deeper_names_at_a_dot_only() -> None:
    """The pattern *.example.org matches a.example.org and a.b.example.org, not example.org nor badexample.org."""
    judge = matcher(host("*.example.org"))
    assert judge.decide_name("a.example.org").verdict == "allow"
    assert judge.decide_name("a.b.example.org").verdict == "allow"
    assert judge.decide_name("example.org").verdict == "deny"
    assert judge.decide_name("badexample.org").verdict == "deny"
    assert judge.decide_name("a.example.org.evil.example").verdict == "deny"


@pytest.mark.parametrize(
    "qname",
    [
        "",
        ".",
        "..",
        ".example.org",
        "a..example.org",
        "a.example.org..",
        "a\x00.example.org",
        "a b.example.org",
        "a\n.example.org",
        "\u212aelvin.example.org",
        "bücher.example.org",
        "a\\.example.org",
        "-a.example.org",
        "a" * 64 + ".example.org",
        "a." * 125 + "example.org",
        "127.0.0.1",
        "0x7f.1",
        "2130706433",
        "::1",
        "*.example.org",
    ],
)
def test_a_hostile_name_is_denied(qname: str) -> None:
    """What is no host name, or would be taken for an address, is denied even below an allowed domain."""
    judge = matcher(host("*.example.org"), host("*.org"))
    assert judge.decide_name(qname) == Decision("deny", "invalid-name")
    assert judge.decide_connect(PUBLIC, 443, [qname]).verdict == "deny"


@PROPERTY
@given(st.text(max_size=300), st.integers(), st.lists(st.text(max_size=20), max_size=3))
def test_hostile_input_never_raises_and_never_passes(text: str, port: int, names: list[str]) -> None:
    """Any text as a name or address gives a denial when the rules name only one host."""
    judge = matcher(host("only.example"))
    assume(text.rstrip(".").lower() != "only.example")
    assert judge.decide_name(text).verdict == "deny"
    assert judge.decide_connect(text, port, names).verdict == "deny"


labels = st.from_regex(r"[a-z]([a-z0-9_-]{0,8}[a-z])?", fullmatch=True)
domains = st.lists(labels, min_size=2, max_size=4).map(".".join)


@PROPERTY
@given(domains, st.randoms(use_true_random=False))
def test_case_and_final_dot_of_a_name_do_not_matter(name: str, random: Random) -> None:
    """Each spelling of an allowed name is allowed, with the same decision."""
    assume(not name.endswith(("localhost", "loopback")))
    spelled = "".join(char.upper() if random.random() < 0.5 else char for char in name)
    judge = matcher(host(name))
    expected = Decision("allow", "network.rules[0]", "any", name)
    assert judge.decide_name(spelled) == judge.decide_name(spelled + ".") == expected
    assert judge.decide_connect(PUBLIC, 443, [spelled + "."]) == expected


@PROPERTY
@given(st.ip_addresses(), st.integers(0, 70_000), st.lists(domains, max_size=2), st.booleans())
def test_empty_means_nothing(address: IPv4Address | IPv6Address, port: int, names: list[str], private: bool) -> None:
    """No rules, and rules without ports, allow nothing at all."""
    for rules in ([], [NetworkRule(cidr="0.0.0.0/0"), NetworkRule(cidr="::/0"), NetworkRule(host="*.example")]):
        judge = matcher(*rules, private_answers=private)
        decision = judge.decide_connect(str(address), port, names)
        assert (decision.verdict, decision.rule in ("no-rule", "own-address")) == ("deny", True)
        assert all(judge.decide_name(name).verdict == "deny" for name in [*names, "a.example"])


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("10.1.2.3", "network.rules[0]"),
        ("10.2.0.1", "network.rules[1]"),
        ("203.0.113.9", "network.rules[2]"),
        ("2001:db8::9", "network.rules[3]"),
        ("fe80::1%eth0", "network.rules[4]"),
    ],
)
def test_the_first_range_that_holds_the_address_decides(address: str, rule: str) -> None:
    """Address rules are tried in order; a scope id of IPv6 does not matter."""
    judge = matcher(
        cidr("10.1.0.0/16", verdict="deny"),
        cidr("10.0.0.0/8"),
        cidr("203.0.113.9", protocol="ssh"),
        cidr("2001:db8::/32", verdict="ask"),
        cidr("fe80::/10"),
    )
    assert judge.decide_connect(address, 443, []).rule == rule


networks = st.sampled_from(["0.0.0.0/0", "8.0.0.0/7", "8.8.0.0/16", "10.0.0.0/8", "::/0", "2600::/12", "2001:db8::/32"])
some_ports = st.lists(st.sampled_from([22, 80, 443]), min_size=1, max_size=2)
verdicts = st.sampled_from(["allow", "ask", "deny"])
some_hosts = st.sampled_from(["a.example", "b.a.example", "*.a.example", "*.example", "host.loopback"])
cidr_rules = st.builds(lambda net, ports, verdict: cidr(net, *ports, verdict=verdict), networks, some_ports, verdicts)
host_rules = st.builds(
    lambda name, ports, verdict: host(name, *ports, verdict=verdict), some_hosts, some_ports, verdicts
)
rule_lists = st.lists(cidr_rules | host_rules, max_size=6)
addresses = st.sampled_from(
    ["8.8.8.8", "9.9.9.9", "10.0.0.1", "2606::1", "2001:db8::1", "127.0.0.1", "::1", HOST_LOOPBACK]
)
some_names = st.lists(st.sampled_from(["a.example", "b.a.example", "c.example", "host.loopback"]), max_size=2)


def first_match(rules: list[NetworkRule], address: str, port: int, names: list[str]) -> str:
    """Say in the plainest way which rule comes first."""
    for position, rule in enumerate(rules):
        if port not in rule.ports:
            continue
        label = f"network.rules[{position}]"
        if address == HOST_LOOPBACK:
            if rule.host == "host.loopback":
                return label
        elif rule.cidr is not None:
            if address not in ("127.0.0.1", "::1") and ip_address(address) in ip_network(rule.cidr):
                return label
        elif (
            rule.host
            and rule.host != "host.loopback"
            and any(name == rule.host or (rule.host[0] == "*" and name.endswith(rule.host[1:])) for name in names)
        ):
            public = address in ("8.8.8.8", "9.9.9.9", "2606::1")
            return label if public or rule.verdict == "deny" else "private-answer"
    return ""


@PROPERTY
@given(rule_lists, addresses, st.sampled_from([22, 80, 443, 8080]), some_names)
def test_the_first_matching_rule_decides(rules: list[NetworkRule], address: str, port: int, names: list[str]) -> None:
    """The compiled matcher agrees with trying the rules one after the other."""
    decision = matcher(*rules).decide_connect(address, port, names)
    expected = first_match(rules, address, port, names)
    if expected.startswith("network.rules"):
        position = int(expected[14:-1])
        assert (decision.rule, decision.verdict) == (expected, rules[position].verdict)
        assert bool(decision.host) == (rules[position].host is not None)
    else:
        assert decision.verdict == "deny"
        assert decision.rule == expected or (not expected and decision.rule in REASONS)


REASONS = ("no-rule", "unresolved-name", "own-address")


@PROPERTY
@given(rule_lists, st.ip_addresses(v=4), st.sampled_from([22, 80, 443]), some_names)
def test_an_ipv4_mapped_address_is_judged_as_ipv4(
    rules: list[NetworkRule], address: IPv4Address, port: int, names: list[str]
) -> None:
    """Writing an IPv4 address as IPv6 changes no decision."""
    judge = matcher(*rules)
    plain = judge.decide_connect(str(address), port, names)
    assert judge.decide_connect(f"::ffff:{address}", port, names) == plain
    assert judge.decide_connect(str(IPv6Address(0xFFFF00000000 + int(address))), port, names) == plain
    assert judge.decide_connect(f"::ffff:{address}%eth0", port, names) == plain


@PROPERTY
@given(
    rule_lists,
    st.ip_addresses(network="127.0.0.0/8") | st.sampled_from(["::1", "::", "0.0.0.0"]),
    st.sampled_from([22, 80, 443]),
    some_names,
    st.booleans(),
)
def test_loopback_is_never_a_destination_outside(
    rules: list[NetworkRule], address: object, port: int, names: list[str], private: bool
) -> None:
    """No rule and no setting lets a call out to a loopback or unspecified address, by name or by range."""
    decision = matcher(*rules, private_answers=private).decide_connect(str(address), port, names)
    assert decision.verdict == "deny"


def test_host_loopback_is_matched_by_its_own_rule_alone() -> None:
    """The stand-in address follows host.loopback rules, whatever ranges and names say."""
    wide = (cidr("0.0.0.0/0"), cidr("192.0.0.0/24"), host("*.example"))
    closed = matcher(*wide)
    assert closed.decide_connect(HOST_LOOPBACK, 443, ["a.example", "host.loopback"]).verdict == "deny"
    opened = matcher(*wide, host("host.loopback", 443, 8000, protocol="http"))
    for names in ([], ["host.loopback"], ["a.example"]):
        expected = Decision("allow", "network.rules[3]", "http", "host.loopback")
        assert opened.decide_connect(HOST_LOOPBACK, 8000, names) == expected
        assert opened.decide_connect(f"::ffff:{HOST_LOOPBACK}", 8000, names) == expected
    assert opened.decide_connect(HOST_LOOPBACK, 22, []) == Decision("deny", "no-rule", "any", "host.loopback")
    assert opened.decide_name("Host.Loopback.").rule == "network.rules[3]"
    assert closed.decide_name("host.loopback").verdict == "deny"


def test_the_name_host_loopback_opens_no_other_address() -> None:
    """An address that claims to be host.loopback is not, unless it is the stand-in."""
    judge = matcher(host("host.loopback"))
    assert judge.decide_connect(PUBLIC, 443, ["host.loopback"]).verdict == "deny"


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "2001::1",
        "2002:a00:1::1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "::a00:1",
        "100::1",
    ],
)
def test_a_name_may_not_lead_to_an_address_that_is_not_public(address: str) -> None:
    """DNS rebinding gets "private-answer", unless the policy says that names may resolve so."""
    rules = (host("api.example"), cidr("0.0.0.0/0"), cidr("::/0"))
    refused = matcher(*rules).decide_connect(address, 443, ["api.example"])
    assert refused == Decision("deny", "private-answer", "any", "api.example")
    allowed = matcher(*rules, private_answers=True).decide_connect(address, 443, ["api.example"])
    assert allowed == Decision("allow", "network.rules[0]", "any", "api.example")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_name_that_leads_to_loopback_stays_closed(address: str) -> None:
    """Not even `private_answers` turns an allowed name into a way to the machine's own loopback."""
    for private in (False, True):
        decision = matcher(host("api.example"), private_answers=private).decide_connect(address, 443, ["api.example"])
        assert decision == Decision("deny", "private-answer", "any", "api.example")
    assert matcher(cidr("0.0.0.0/0"), cidr("::/0")).decide_connect(address, 443, []).rule == "own-address"


@pytest.mark.parametrize("address", ["8.8.8.8", "1.0.0.1", "2606:4700::1", "64:ff9b::808:808"])
def test_a_name_may_lead_to_a_public_address(address: str) -> None:
    """A public answer, also through NAT64, is judged by the host rule alone."""
    assert matcher(host("api.example")).decide_connect(address, 443, ["api.example"]).verdict == "allow"


def test_a_refusal_says_what_is_missing() -> None:
    """An address that no name led to is told apart from one that no rule names."""
    judge = matcher(host("api.example", 443))
    assert judge.decide_connect(PUBLIC, 443, []).rule == "unresolved-name"
    assert judge.decide_connect(PUBLIC, 443, ["other.example"]).rule == "no-rule"
    assert judge.decide_connect(PUBLIC, 22, []).rule == "no-rule"
    for address in ("", "8.8.8", "08.8.8.8", "8.8.8.8%eth0", "a.example", "\x00", "8.8.8.8 ", "0x8.8.8.8"):
        assert judge.decide_connect(address, 443, ["api.example"]) == Decision("deny", "invalid-address")


def test_a_matcher_refuses_a_rule_that_makes_no_sense() -> None:
    """A rule that was never checked is an error, not a rule that is passed over."""
    with pytest.raises(PolicyError, match=r"network\.rules\[1\]\.cidr"):
        matcher(host("a.example"), cidr("10.0.0.1/8"))


def test_a_matcher_is_not_changed_by_its_policy() -> None:
    """Lists of the policy that change later open nothing."""
    network = Network(rules=[host("a.example")])
    judge = NetworkMatcher(network)
    network.rules[0].ports.append(22)
    network.rules.append(cidr("0.0.0.0/0"))
    assert judge.decide_connect(PUBLIC, 22, ["a.example"]).verdict == "deny"
    assert judge.decide_connect(PUBLIC, 443, []).verdict == "deny"


@pytest.mark.parametrize("protocol", ["stratum", "socks4", "socks5", "socks-connect"])
def test_mining_and_socks_never_pass(protocol: str) -> None:
    """No rule lets a mining login or SOCKS through, "any" included."""
    for wanted in ("any", "tls"):
        for verdict in ("allow", "ask"):
            judged = decide_protocol(Decision(verdict, "network.rules[0]", wanted, "a.example"), protocol)
            assert judged == Decision("deny", f"protocol:{protocol}", wanted, "a.example")


@pytest.mark.parametrize("protocol", ["tls", "http", "ssh", "websocket", "smtp", "dns", "ftp", "unknown"])
def test_a_protocol_passes_itself_and_any_passes_all(protocol: str) -> None:
    """A named protocol passes exactly itself; "http" is not "websocket"; "any" passes what cannot be named."""
    loose = Decision("allow", "network.rules[0]", "any")
    assert decide_protocol(loose, protocol) is loose
    for wanted in ("tls", "http", "ssh", "websocket", "smtp", "dns"):
        judged = decide_protocol(Decision("ask", "network.rules[0]", wanted), protocol)
        assert (judged.verdict, judged.rule) == (
            ("ask", "network.rules[0]") if wanted == protocol else ("deny", f"protocol:{protocol}")
        )


def test_a_denial_keeps_its_first_reason() -> None:
    """Naming the protocol of a denied flow changes neither verdict nor rule."""
    denied = Decision.refuse("udp")
    assert denied == Decision("deny", "udp", "any", "")
    assert decide_protocol(denied, "stratum") is denied
    assert decide_protocol(denied, "tls") is denied


@pytest.mark.parametrize(
    ("listed", "path", "allowed"),
    [
        (["/run/x.sock"], "/run/x.sock", True),
        (["@name"], "@name", True),
        (["/run/x.sock"], "/run/y.sock", False),
        (["/run"], "/run/x.sock", False),
        (["/run/x.sock"], "@/run/x.sock", False),
        (["name"], "@name", False),
        ([], "/run/x.sock", False),
        (["/run//x.sock"], "/run//x.sock", False),
        (["/run/../x.sock"], "/run/../x.sock", False),
        (["/run/./x.sock"], "/run/./x.sock", False),
        (["/run/x.sock/"], "/run/x.sock/", False),
        (["x.sock"], "x.sock", False),
        (["/run/x\x00"], "/run/x\x00", False),
        (["@"], "@", False),
        (["@a\x00b"], "@a\x00b", False),
        ([""], "", False),
        ("/run/x.sock", "/run/x.sock", False),
    ],
)
def test_a_unix_socket_is_allowed_by_its_exact_name(listed: list[str], path: str, allowed: bool) -> None:
    """Only a canonical absolute path or an abstract name that is listed as it stands is allowed."""
    assert unix_allowed(listed, path) is allowed
