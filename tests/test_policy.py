"""Policies from text and back: what is accepted, and that every refusal says where and what to do."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.policy import (
    Environment,
    Filesystem,
    Gpu,
    Limits,
    Network,
    NetworkRule,
    Policy,
    check_policy,
    parse_policy,
    policy_digest,
    policy_from_mapping,
    policy_to_yaml,
)

PROPERTY = settings(deadline=None, database=None)

FULL = """\
# a comment
version: 1
filesystem:
  workspace: read
  read: [/srv/data, ~/models]
network:
  rules:
    - host: "*.Example.ORG."
      ports: [443]
      protocol: tls
    - cidr: 10.0.0.0/8
      ports: [22, 80]
      verdict: ask
  connect_timeout_s: 5
environment:
  set: {DEBUG: "yes", EMPTY: ""}
gpus:
  - device: 0
    max_gpu_seconds: 3600
limits:
  memory_bytes: 1073741824
  processes: null
"""


def refusal(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    return str(caught.value)


def rule_refusal(rule: str) -> str:
    return refusal(f"network:\n  rules:\n  - {{{rule}}}\n")


def test_a_whole_policy_is_read() -> None:
    """Each section of a policy ends in the field of the same name, host names in lower-case ASCII."""
    policy = parse_policy(FULL)
    assert policy.filesystem == Filesystem(workspace="read", read=["/srv/data", "~/models"])
    assert policy.network.rules == [
        NetworkRule(host="*.example.org", ports=[443], protocol="tls"),
        NetworkRule(cidr="10.0.0.0/8", ports=[22, 80], verdict="ask"),
    ]
    assert policy.network.connect_timeout_s == 5.0
    assert policy.environment.set == {"DEBUG": "yes", "EMPTY": ""}
    assert policy.gpus == [Gpu(device=0, max_gpu_seconds=3600.0)]
    assert policy.limits == Limits(memory_bytes=1 << 30, processes=None)


def test_the_shortest_policy_is_the_default() -> None:
    """A policy that says only its version allows nothing but the workspace."""
    policy = parse_policy("version: 1")
    assert policy == Policy()
    assert policy.network.rules == []
    assert policy.unix_sockets == []
    assert policy.gpus == []
    assert "PATH" not in policy.environment.passed


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        pytest.param("", "p.yaml:1: ", "empty", id="empty"),
        pytest.param("# only a comment\n", "p.yaml:1: ", "empty", id="comment"),
        pytest.param("[1, 2]", "p.yaml:1: ", "expected a mapping", id="list"),
        pytest.param("version: 1\nnetwrok: {}", "p.yaml:2: netwrok: ", "did you mean network?", id="near key"),
        pytest.param("version: 1\n\nzzz: {}", "p.yaml:3: zzz: ", "known here: version", id="far key"),
        pytest.param(
            "network:\n  rules:\n  - host: a.example\n    ports: [443]\n    portz: []",
            "p.yaml:5: network.rules[0].portz: ",
            "did you mean ports?",
            id="near key of a rule",
        ),
        pytest.param(
            "network:\n  rules:\n  - {cidr: 192.0.2.7, ports: [1]}\n  - host: b.example\n    ports:\n    - 22\n    - 0",
            "p.yaml:7: network.rules[1].ports[1]: ",
            "expected int >= 1, got 0",
            id="port",
        ),
        pytest.param("version: 2", "p.yaml:1: version: ", "expected 1, got 2", id="version"),
        pytest.param('version: "1"', "p.yaml:1: version: ", 'expected 1, got "1"', id="version as text"),
        pytest.param(
            "filesystem:\n  workspace: none", "p.yaml:2: filesystem.workspace: ", '"read" or "write"', id="choice"
        ),
        pytest.param("network:\n", "p.yaml:1: network: ", "leave the field out", id="null section"),
        pytest.param("network: {rules: {}}", "p.yaml:1: network.rules: ", "expected a list, got a mapping", id="type"),
        pytest.param("limits: {processes: 1.0}", "p.yaml:1: limits.processes: ", "got 1.0", id="float for int"),
        pytest.param("limits: {processes: true}", "p.yaml:1: limits.processes: ", "got true", id="bool for int"),
        pytest.param('limits: {processes: "9"}', "p.yaml:1: limits.processes: ", 'got "9"', id="text for int"),
        pytest.param(
            f"limits: {{file_bytes: {10**20}}}", "p.yaml:1: limits.file_bytes: ", "too large", id="over 64 bits"
        ),
        pytest.param("gpus:\n- max_gpu_seconds: 1", "p.yaml:2: gpus[0]: ", "device is missing", id="missing field"),
    ],
)
def test_a_wrong_shape_names_line_field_and_reason(text: str, place: str, reason: str) -> None:
    """An error begins with source, line and field, and says what was expected or what was meant."""
    told = refusal(text)
    assert told.startswith(place)
    assert reason in told


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        pytest.param("a: 1\nb: 2\na: 3", "p.yaml:3: a: ", "given twice; the first is on line 1", id="key twice"),
        pytest.param("limits: &x {}\nnetwork: *x", "p.yaml:1: limits: ", "anchors and aliases", id="anchor"),
        pytest.param("network: *x", "p.yaml:1: network: ", "must stand in quotes", id="alias"),
        pytest.param(
            "network:\n  rules:\n  - host: *.example.org",
            "p.yaml:3: ",
            'must stand in quotes, as "*.example.org"',
            id="bare wildcard",
        ),
        pytest.param("version: !!python/name:os.system 1", "p.yaml:1: version: ", "tags are not allowed", id="tag"),
        pytest.param("limits:\n  cpu_s: 010", "p.yaml:2: limits.cpu_s: ", "ambiguous", id="octal"),
        pytest.param("limits:\n  cpu_s: 1:20", "p.yaml:2: limits.cpu_s: ", "ambiguous", id="sexagesimal"),
        pytest.param("limits:\n  cpu_s: 0x10", "p.yaml:2: limits.cpu_s: ", "ambiguous", id="hexadecimal"),
        pytest.param("limits:\n  cpu_s: 1_000", "p.yaml:2: limits.cpu_s: ", "ambiguous", id="underscore"),
        pytest.param("limits:\n  session_s: .inf", "p.yaml:2: limits.session_s: ", "ambiguous", id="infinity"),
        pytest.param("environment:\n  set:\n    A: yes", "p.yaml:3: environment.set.A: ", "put it in quotes", id="yes"),
        pytest.param(
            "environment:\n  set:\n    A: 1", "p.yaml:3: environment.set.A: ", "put it in quotes", id="number"
        ),
        pytest.param("environment:\n  set:\n    no: x", "p.yaml:3: environment.set: ", '"no" is ambiguous', id="no"),
        pytest.param("1: x", "p.yaml:1: ", "1 is not a name", id="number as key"),
        pytest.param("? [a]\n: x", "p.yaml:1: ", "not a list or mapping", id="list as key"),
        pytest.param("version: 1\n<<: {}", "p.yaml:2: ", "ambiguous", id="merge key"),
        pytest.param("version: 1\nlimits: [", "p.yaml:", "not YAML: ", id="unfinished"),
        pytest.param("network:\n\trules: []", "p.yaml:2: ", "not YAML: ", id="tab"),
        pytest.param("version: 1\n---\nversion: 1", "p.yaml:2: ", "one document", id="two documents"),
        pytest.param("version: 1\n# \x00", "p.yaml:2: ", "U+0000", id="NUL"),
        pytest.param("version: 1 # \ud800", "p.yaml:1: ", "U+D800", id="surrogate"),
    ],
)
def test_ambiguous_yaml_is_refused_with_its_line(text: str, place: str, reason: str) -> None:
    """What two YAML readers could take for different things is an error, never a guess."""
    told = refusal(text)
    assert told.startswith(place)
    assert reason in told


@pytest.mark.parametrize("bomb", ["[" * 100_000, "{a: " * 50_000, "- " * 100_000, "? " * 100_000])
def test_deep_nesting_is_refused(bomb: str) -> None:
    """Text that nests without end is an error and exhausts no stack."""
    assert refusal(bomb).startswith("p.yaml:1: ")


def test_a_policy_has_at_most_a_mebibyte() -> None:
    """A text of 1 MiB is read; one byte more is refused, counted in UTF-8."""
    room = (1 << 20) - len("version: 1\n#")
    assert parse_policy("version: 1\n#" + "x" * room) == Policy()
    assert "longer than 1048576 bytes" in refusal("version: 1\n#" + "x" * room + "x")
    assert "longer than 1048576 bytes" in refusal("version: 1\n#" + "é" * (room // 2 + 1))


@pytest.mark.parametrize(
    ("rule", "field", "reason"),
    [
        ("ports: [1]", "network.rules[0]", "exactly one of host and cidr"),
        ("host: a.example, cidr: 192.0.2.7, ports: [1]", "network.rules[0]", "exactly one of host and cidr"),
        ('cidr: "", ports: [1]', "network.rules[0].cidr", "not an address"),
        ("cidr: 10.0.0.1/8, ports: [1]", "network.rules[0].cidr", "the range is 10.0.0.0/8"),
        ('cidr: "2001:db8::1/32", ports: [1]', "network.rules[0].cidr", "the range is 2001:db8::/32"),
        ("cidr: 10.0.0.0/33, ports: [1]", "network.rules[0].cidr", "not an address"),
        ("cidr: 10.0.0.0/0.255.255.255, ports: [1]", "network.rules[0].cidr", "number of leading bits"),
        ('cidr: "fe80::%eth0/64", ports: [1]', "network.rules[0].cidr", "without its scope"),
        ("cidr: a.example, ports: [1]", "network.rules[0].cidr", "a name is given as host"),
        ("cidr: 127.0.0.1, ports: [1]", "network.rules[0].cidr", "host.loopback"),
        ("cidr: 0.0.0.0, ports: [1]", "network.rules[0].cidr", "host.loopback"),
        ('cidr: "::1", ports: [1]', "network.rules[0].cidr", "host.loopback"),
        ("cidr: 192.0.0.8, ports: [1]", "network.rules[0].cidr", "stands for host.loopback"),
        ('cidr: "::ffff:10.0.0.0/104", ports: [1]', "network.rules[0].cidr", "give the IPv4"),
        ("host: 192.0.2.7, ports: [1]", "network.rules[0].host", "give it as cidr"),
        ('host: "[::1]", ports: [1]', "network.rules[0].host", "give it as cidr"),
        ("host: 0x7f.1, ports: [1]", "network.rules[0].host", "taken for an address"),
        ('host: "2130706433", ports: [1]', "network.rules[0].host", "taken for an address"),
        ('host: "*", ports: [1]', "network.rules[0].host", "wildcard may only stand in front"),
        ('host: "a.*.example", ports: [1]', "network.rules[0].host", "wildcard may only stand in front"),
        ('host: "*.*.example", ports: [1]', "network.rules[0].host", "wildcard may only stand in front"),
        ('host: "*a.example", ports: [1]', "network.rules[0].host", "wildcard may only stand in front"),
        ('host: "*.", ports: [1]', "network.rules[0].host", "missing"),
        ('host: "", ports: [1]', "network.rules[0].host", "missing"),
        ('host: "a..example", ports: [1]', "network.rules[0].host", "two dots in a row"),
        ('host: "a b.example", ports: [1]', "network.rules[0].host", "cannot have"),
        ('host: "a\\0.example", ports: [1]', "network.rules[0].host", "cannot have"),
        ('host: "https://a.example/x", ports: [1]', "network.rules[0].host", "no scheme, port or path"),
        ('host: "a.example:443", ports: [1]', "network.rules[0].host", "no scheme, port or path"),
        ("host: -a.example, ports: [1]", "network.rules[0].host", "hyphen"),
        (f"host: {'a' * 64}.example, ports: [1]", "network.rules[0].host", "more than 63"),
        (f"host: {'abcdefg.' * 31}example, ports: [1]", "network.rules[0].host", "at most 253"),
        (f'host: "*.{"abcdefg." * 30}abcdefghijkl", ports: [1]', "network.rules[0].host", "at most 253"),
        ("host: straße.example, ports: [1]", "network.rules[0].host", "xn--"),
        ("host: localhost, ports: [1]", "network.rules[0].host", "host.loopback"),
        ('host: "*.host.loopback", ports: [1]', "network.rules[0].host", "wildcard"),
        ('host: "*.loopback", ports: [1]', "network.rules[0].host", "wildcard"),
        ("host: other.loopback, ports: [1]", "network.rules[0].host", "the only name below .loopback"),
        ("host: a.example, verdict: deny", "network.rules[0].ports", "denies nothing"),
    ],
)
def test_a_rule_that_cannot_mean_what_it_says_is_refused(rule: str, field: str, reason: str) -> None:
    """A rule's error names the field and shows what to write instead."""
    told = rule_refusal(rule)
    assert told.startswith(f"p.yaml:3: {field}: ")
    assert reason in told


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("API.Example.org", "api.example.org"),
        ("api.example.org.", "api.example.org"),
        ("Bücher.Example", "xn--bcher-kva.example"),
        ("*.BÜCHER.example", "*.xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_srv.example", "_srv.example"),
        ("Host.Loopback", "host.loopback"),
        ("intranet", "intranet"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_a_host_is_kept_in_normal_form(written: str, kept: str) -> None:
    """Case, final dot and international letters of a host do not matter."""
    policy = policy_from_mapping({"network": {"rules": [{"host": written, "ports": [443]}]}})
    assert policy.network.rules[0].host == kept


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        ({"filesystem": {"read": [""]}}, "filesystem.read[0]", "missing"),
        ({"filesystem": {"write": ["a", " "]}}, "filesystem.write[1]", "missing"),
        ({"filesystem": {"hide": ["a\x00b"]}}, "filesystem.hide[0]", "control characters"),
        ({"filesystem": {"read": ["data/../../x"]}}, "filesystem.read[0]", 'without ".."'),
        ({"filesystem": {"read": ["~bob/x"]}}, "filesystem.read[0]", "only ~ and $HOME"),
        ({"filesystem": {"read": ["$DATA/x"]}}, "filesystem.read[0]", "only ~ and $HOME"),
        ({"filesystem": {"write": ["//"]}}, "filesystem.write[0]", "grant everything"),
        ({"unix_sockets": ["run/x.sock"]}, "unix_sockets[0]", "absolute"),
        ({"unix_sockets": ["@"]}, "unix_sockets[0]", "abstract"),
        ({"unix_sockets": ["/run/../x.sock"]}, "unix_sockets[0]", 'without ".."'),
        ({"environment": {"set": {"A=B": "x"}}}, 'environment.set["A=B"]', "letters, digits"),
        ({"environment": {"set": {"A": "x\x00y"}}}, "environment.set.A", "NUL"),
        ({"environment": {"set": {"A": "x" * 131072}}}, "environment.set.A", "131072 bytes"),
        ({"environment": {"set": {"A": "\ud800"}}}, "environment.set.A", "Unicode"),
        ({"environment": {"passed": ["1A"]}}, "environment.passed[0]", "letters, digits"),
        ({"gpus": [{"device": -1}]}, "gpus[0].device", "counts from 0"),
        ({"gpus": [{"device": "0"}]}, "gpus[0].device", "without quotes"),
        ({"gpus": [{"device": "tesla"}]}, "gpus[0].device", "GPU-"),
        ({"gpus": [{"device": True}]}, "gpus[0].device", "got true"),
        ({"gpus": [{"device": 0}, {"device": 0}]}, "gpus[1].device", "gpus[0]"),
        ({"gpus": [{"device": 0, "max_gpu_seconds": float("inf")}]}, "gpus[0].max_gpu_seconds", "no budget"),
        ({"limits": {"command_s": 5, "session_s": 2}}, "limits.command_s", "outlives session_s"),
        ({"limits": {"session_s": float("inf")}}, "limits.session_s", "not a number of seconds"),
        ({"network": {"first_bytes": {"wait_s": 11}}}, "network.first_bytes.wait_s", "<= 10"),
        ({"network": [1]}, "network", "expected a mapping"),
        ({"network": {"rules": "a.example"}}, "network.rules", "expected a list"),
        ({1: 2}, '["1"]', "unknown field"),
    ],
)
def test_a_mapping_is_held_to_the_same_rules(data: dict[str, object], field: str, reason: str) -> None:
    """Data made in Python gets the same checks as YAML; its errors name source and field."""
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping(data, "cell 3")
    assert str(caught.value).startswith(f"cell 3: {field}: ")
    assert reason in str(caught.value)


def test_an_error_shows_hostile_text_safely() -> None:
    """Escapes in a policy that somebody else wrote do not reach the terminal, and long text is cut."""
    told = refusal('"\\e[2J\\u202ekey": 1')
    assert told.isprintable()
    assert "\\x1b[2J\\u202ekey" in told
    assert len(refusal(f"network: {'x' * 10_000}")) < 300


def test_a_policy_made_in_python_is_checked() -> None:
    """The model's constructors check nothing, `check_policy` everything; its copy shares no list."""
    rule = NetworkRule(host="API.example", ports=[443])
    policy = Policy(network=Network(rules=[rule]))
    good = check_policy(policy)
    rule.ports.append(22)
    assert good.network.rules == [NetworkRule(host="api.example", ports=[443])]
    with pytest.raises(PolicyError, match=r"^<policy>: network\.rules\[0\]\.ports\[0\]: expected int <= 65535"):
        check_policy(Policy(network=Network(rules=[NetworkRule(host="a.example", ports=[70_000])])))


def test_parts_may_be_structs() -> None:
    """A mapping may hold parts of the model, so that a notebook can mix both."""
    network = Network(rules=[NetworkRule(host="a.example", ports=[443])])
    assert policy_from_mapping({"network": network}) == Policy(network=network)


names = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{2,6}){1,2}", fullmatch=True).filter(
    lambda name: not name.endswith(("localhost", "loopback"))
)
hosts = st.one_of(names, names.map("*.{}".format), st.just("host.loopback"))
ranges = st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "192.0.2.7", "::/0", "2001:db8::/32", "fe80::1"])
ports = st.lists(st.integers(1, 65535), max_size=4)
protocols = st.sampled_from(["any", "tls", "http", "ssh", "dns", "smtp", "websocket"])
rules = st.builds(
    lambda host, cidr, by_name, port_list, protocol, verdict: NetworkRule(
        host=host if by_name else None,
        cidr=None if by_name else cidr,
        ports=port_list or ([] if verdict != "deny" else [1]),
        protocol=protocol,
        verdict=verdict,
    ),
    hosts,
    ranges,
    st.booleans(),
    ports,
    protocols,
    st.sampled_from(["allow", "ask", "deny"]),
)
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
variables = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
paths = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).map("/srv/{}".format)
policies = st.builds(
    Policy,
    filesystem=st.builds(
        Filesystem,
        workspace=st.sampled_from(["read", "write"]),
        read=st.lists(paths.filter(lambda path: ".." not in path), max_size=3),
    ),
    network=st.builds(
        Network, rules=st.lists(rules, max_size=4), private_answers=st.booleans(), ask_timeout_s=st.floats(1e-9, 1e15)
    ),
    environment=st.builds(Environment, set=st.dictionaries(variables, values, max_size=4)),
    limits=st.builds(Limits, processes=st.none() | st.integers(1, 2**63 - 1), cpu_s=st.none() | st.integers(1, 9)),
    gpus=st.lists(st.builds(Gpu, device=st.integers(0, 7)), max_size=3, unique_by=lambda gpu: gpu.device),
)


@PROPERTY
@given(policies, st.booleans())
def test_yaml_round_trip(policy: Policy, defaults: bool) -> None:
    """What is written as YAML is read back equal, and writing it again gives the same text."""
    text = policy_to_yaml(policy, defaults=defaults)
    again = parse_policy(text)
    assert again == policy
    assert policy_to_yaml(again, defaults=defaults) == text


@PROPERTY
@given(st.text(max_size=200) | st.text("[]{}:-,\n &*!|>'\"#%ab1", max_size=80))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    """Whatever a policy file holds, reading it gives a policy or one clear error."""
    told = "p.yaml:"
    try:
        policy = parse_policy(text, "p.yaml")
        assert check_policy(policy) == policy
    except PolicyError as error:
        told = str(error)
    assert told.startswith("p.yaml:")


def test_only_what_differs_is_written() -> None:
    """Defaults are left out of YAML unless they are asked for."""
    policy = Policy(network=Network(rules=[NetworkRule(host="a.example", ports=[443])]))
    assert policy_to_yaml(policy) == "version: 1\nnetwork:\n  rules:\n  - host: a.example\n    ports:\n    - 443\n"
    assert "on_expiry: kill" in policy_to_yaml(policy, defaults=True)


def test_lists_that_are_shared_are_written_twice() -> None:
    """Two rules that share one list of ports are written without an alias, which could not be read back."""
    shared = [443, 80]
    policy = Policy(network=Network(rules=[NetworkRule(host=f"{x}.example", ports=shared) for x in "ab"]))
    for defaults in (False, True):
        assert parse_policy(policy_to_yaml(policy, defaults=defaults)) == policy


def test_the_digest_depends_on_meaning_alone() -> None:
    """The digest is the same for each way to write a policy, and another for another policy."""
    one = parse_policy("limits: {cpu_s: 9, session_s: 30}\nnetwork: {private_answers: true}")
    two = Policy(network=Network(private_answers=True), limits=Limits(session_s=30, cpu_s=9))
    assert policy_digest(one) == policy_digest(two)
    assert policy_digest(one) != policy_digest(Policy())
    assert len(bytes.fromhex(policy_digest(one))) == 32


def test_the_digest_survives_the_way_to_the_supervisor() -> None:
    """A policy has the same digest after it was sent as MessagePack."""
    policy = parse_policy(FULL)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(policy), type=Policy)
    assert sent == policy
    assert policy_digest(sent) == policy_digest(policy)


def test_the_room_loads_no_yaml_until_it_reads_some() -> None:
    """Importing the policy room, as the supervisor does, does not load PyYAML."""
    code = (
        "import sys; from jupyter_agentwatch.policy import Policy, check_policy, policy_digest;"
        "policy_digest(check_policy(Policy())); print('yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
