"""Argument vectors are read as the tool that gets them reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.endpoints import parse_endpoint, remote_copy, zone_of
from jupyter_agentwatch.detect.tunnel_shapes import SSH, ssh_options
from jupyter_agentwatch.detect.wallets import wallet_kind

MONERO = "44AFFq5kSiGBoZ4NMDwYtN18obc8AemS33DBLWs3H7otXft3XjrpDtQGv7SqSsaBYBb98uNbr2VBBEt7f2wfn3RVGQBEP3A"


@pytest.mark.parametrize(
    "argv",
    [
        ["ssh", "-R", "1:a:2", "h"],
        ["ssh", "-R1:a:2", "h"],
        ["ssh", "-fNR", "1:a:2", "h"],
        ["ssh", "-NR1:a:2", "h"],
        ["ssh", "h", "-R", "1:a:2"],
        ["ssh", "-p", "22", "h", "-qR1:a:2"],
    ],
)
def test_ssh_reads_bundled_and_late_options(argv: list[str]) -> None:
    """Every way in which OpenSSH takes -R gives the same value and host."""
    options = parse(argv, SSH)
    assert (options.all("R"), options.operands) == (["1:a:2"], ["h"])


def test_the_remote_command_is_no_option() -> None:
    """What follows the host's command belongs to the command."""
    options = parse(["ssh", "h", "ls", "-R", "x"], SSH)
    assert not options.has("R")
    assert options.rest == ["ls", "-R", "x"]


@pytest.mark.parametrize("text", ["RemoteForward=1 a:2", "remoteforward 1 a:2", "RemoteForward = 1 a:2"])
def test_ssh_settings_are_read_in_every_spelling(text: str) -> None:
    """-o takes a key and value joined by `=` or blanks, in any case."""
    assert ssh_options(("ssh", "-o", text, "h"))[1] == {"remoteforward": "1 a:2"}


def test_long_options_abbreviations_and_the_end_of_options() -> None:
    """getopt_long's `=`, following values, unique abbreviations and `--` are honoured."""
    grammar = Grammar(valued="o", long_valued=frozenset({"output"}), long_flags=frozenset({"verbose"}))
    options = parse(["t", "--out=a", "--output", "b", "--verb", "-oc", "--", "-x"], grammar)
    assert (options.all("output", "o"), options.flags, options.operands) == (["a", "b", "c"], {"verbose"}, ["-x"])


def test_options_of_one_dash() -> None:
    """Go's flag package takes long names after one dash."""
    options = parse(["t", "-url", "x", "-v=1"], Grammar(long_valued=frozenset({"url"}), single_dash=True))
    assert (options.last("url"), options.last("v")) == ("x", "1")


@given(st.lists(st.text(max_size=8), max_size=8))
def test_no_argument_vector_raises(argv: list[str]) -> None:
    """Hostile arguments are read without an error, and no word is read twice."""
    options = parse(["t", *argv], SSH)
    assert len(options.operands) + len(options.rest) <= len(argv)


@pytest.mark.parametrize(
    ("host", "zone"),
    [
        ("127.0.0.1", "loopback"),
        ("localhost", "loopback"),
        ("::1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("172.32.0.1", "outside"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd12::1", "private"),
        ("169.254.0.1", "link-local"),
        ("169.254.169.254", "metadata"),
        ("2852039166", "metadata"),
        ("0xA9FEA9FE", "metadata"),
        ("metadata.google.internal", "metadata"),
        ("db.internal", "private"),
        ("203.0.113.5", "outside"),
        ("example.org", "outside"),
    ],
)
def test_whose_an_address_is(host: str, zone: str) -> None:
    """Every way of writing an address leads to the same answer; documentation ranges stand for the outside."""
    assert zone_of(host) == zone


def test_destinations() -> None:
    """URLs, `host:port` and remote copies are told from files."""
    url = parse_endpoint("stratum+tcp://u.w@P.example:3333")
    assert url is not None
    assert (url.scheme, url.user, url.host, url.port) == ("stratum+tcp", "u.w", "p.example", 3333)
    assert parse_endpoint("out.txt") is None
    assert parse_endpoint("a:99999") is None
    copy = remote_copy("u@h.example:~/x")
    assert copy is not None
    assert (copy.user, copy.host, copy.path) == ("u", "h.example", "~/x")
    assert remote_copy("./a:b") is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (MONERO, "Monero"),
        (f"{MONERO}.rig1", "Monero"),
        (f"XMR:{MONERO}.rig#code", "Monero"),
        ("0x71C7656EC7ab88b098defB751B7401B5f6d8976F.w", "Ethereum"),
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "Bitcoin"),
        ("kaspa:qqkqkzjvr7zwxxmjxjkmxxdwju9kjs6e9u82uh59z07vgaks6gg62v8707g73", "Kaspa"),
        ("root", ""),
        ("averylongidentifierwithoutanydigits", ""),
        ("0x1234", ""),
        ("deadbeefdeadbeefdeadbeefdeadbeefdeadbeef0", ""),
    ],
)
def test_wallets_are_told_by_their_shape(text: str, kind: str) -> None:
    """Addresses are known alone, with a worker and with a coin; names and hashes are none."""
    assert wallet_kind(text) == kind
