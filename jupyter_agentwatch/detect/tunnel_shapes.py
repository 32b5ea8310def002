"""The arguments that only tunnels have, read without regard to the program's name."""

from __future__ import annotations

import re
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, Options, parse
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.unwrap import Invocation

__all__ = ["SSH", "has_tunnel_shape", "ssh_options"]

SSH: Final = Grammar(valued="BbcDEeFIiJLlmOoPpQRSWw", operands=1)
"""OpenSSH's options; they are also read after the host, up to the command."""

_FORWARD_SPEC: Final = lazy_pattern(
    r"(?:(?:\[?[\w.:*-]*\]?):)?\d{1,5}:(?:\[[0-9a-f:]+\]|[\w.-]+):\d{1,5}(?:/(?:tcp|udp))?|\d{1,5}:/[\w./-]+|"
    r"/[\w./-]+:[\w.-]+:\d+"
)
_BOUND: Final = lazy_pattern(r"(?:\[?[\w.:*-]+\]?:)?\d{1,5}")
_DEVICES: Final = lazy_pattern(r"(?:\d+|any)(?::(?:\d+|any))?")
_DESTINATION: Final = lazy_pattern(r"(?:ssh://)?[\w.-]+@[\w.:\[\]-]+|(?:ssh://)?[\w-]+(?:\.[\w-]+)+")
_SSH_FLAGS: Final = frozenset("46AaCfGgKkMNnqsTtVvXxYy")
_SOCAT_ADDRESS: Final = lazy_pattern(
    r"(?:tcp|udp|sctp|dccp|openssl|ssl|unix|abstract|vsock|socks|proxy|tun|pipe|pty|stdio|exec|system|shell|ip)"
    r"[\w-]{0,20}(?:[:,]\S*)?|-",
    re.IGNORECASE,
)
_SOCAT_SURE: Final = lazy_pattern(
    r"(?:tcp|udp|sctp|openssl|ssl|unix|abstract|vsock)[46]?-(?:l|listen|connect|recv\w*|sendto):|"
    r"(?:exec|system|shell):\S|(?:tcp|openssl)[46]?:[\w.-]+:\d+,",
    re.IGNORECASE,
)
_NGROK_NAME: Final = lazy_pattern(r"(?:^|\s)--(?:url|domain|hostname|subdomain|remote-addr)[= ]\S+")
_SHOWN: Final = 4096


def ssh_options(argv: tuple[str, ...]) -> tuple[Options, dict[str, str]]:
    """Read an ssh command line; returns its options, and the `-o` settings with keys in lower case."""
    options = parse(argv, SSH)
    settings: dict[str, str] = {}
    for text in options.all("o"):
        key, _, value = re.sub(r"\s*=\s*|\s+", "=", text.strip(), count=1).partition("=")
        settings.setdefault(key.lower(), value)
    return options, settings


def _has_ssh_shape(run: Invocation) -> bool:
    options, settings = ssh_options(run.argv)
    specs = [value for letter in "RL" for value in options.all(letter)]
    if any(_FORWARD_SPEC.fullmatch(spec) for spec in specs) and options.operands and options.has("R", "L"):
        return True
    if {"remoteforward", "dynamicforward", "localforward"} & settings.keys():
        return True
    opened = any(_BOUND.fullmatch(value) for value in options.all("R", "D"))
    opened = opened or any(_DEVICES.fullmatch(value) for value in options.all("w"))
    quiet = not options.flags.isdisjoint({"N", "f", "T"}) and options.flags <= _SSH_FLAGS
    return bool(opened and quiet and options.operands and _DESTINATION.fullmatch(options.operands[0]))


def _has_socat_shape(run: Invocation) -> bool:
    """Two addresses in socat's grammar, one of them with what only socat says."""
    words = run.argv[-2:]
    return (
        len(run.argv) > 2
        and all(_SOCAT_ADDRESS.fullmatch(word) for word in words)
        and any(_SOCAT_SURE.match(word) for word in words)
    )


def _has_agent_shape(run: Invocation) -> bool:
    """Agents of public services: ngrok's and cloudflared's verbs with their options, frp's configuration."""
    text = " ".join(run.argv[1:])[:_SHOWN]
    verbs = {"http", "tcp", "tls", "start", "tunnel"} & set(run.argv[1:4])
    has_port = any(re.fullmatch(r"(?:[\w.-]+:)?\d{2,5}", word) for word in run.argv[1:])
    return bool(
        (verbs and re.search(r"(?:^|\s)--authtoken[= ]", text))
        or (run.argv[1:2] in (("http",), ("tcp",), ("tls",)) and has_port and _NGROK_NAME.search(text))
        or re.search(r"(?:^|\s)tunnel (?:--\S+ ){0,4}(?:--url[= ]|run\b)", text)
        or (run.argv[1:2] == ("access",) and re.search(r"--hostname[= ]\S+ .*--(?:url|listener)[= ]", text))
        or re.search(r"(?:^|\s)-(?:c|-config)[= ]\S*frp[cs]\.(?:toml|ini|ya?ml|json)(?:\s|$)", text)
    )


def _has_chisel_shape(run: Invocation) -> bool:
    words = [word for word in run.argv[1:] if not word.startswith("-")]
    if "server" in words[:1]:
        return any(word in ("--reverse", "-reverse", "--socks5", "-socks5") for word in run.argv)
    if "client" not in words[:1] or len(words) < 3:
        return False
    return any(
        re.fullmatch(r"R:\S+|(?:[\w.]+:)?\d+:socks|socks|(?:[\w.]+:){0,2}\d+:[\w.-]+:\d+(?:/udp)?|(?:R:)?\d+", word)
        for word in words[2:]
    )


def _has_url_relay_shape(run: Invocation) -> bool:
    """gost: -L=scheme://… -F=scheme://…; frp: server address and port; cloudflared: tunnel --url."""
    text = " ".join(run.argv[1:])
    return (
        re.search(r"(?:^|\s)-L[= ]?(?:\w[\w+]*://|:\d+)\S*.*\s-F[= ]?\w[\w+]*://", text) is not None
        or re.search(
            r"(?:^|\s)-[LF][= ]?(?:socks[45]?\w?|relay|ssu?|http2?|forward|mws|mtls|red|rtcp|rudp|kcp|"
            r"quic)(?:\+\w+)?://",
            text,
        )
        is not None
        or re.search(
            r"--server[_-]addr[= ]\S+.*--(?:local|remote)[_-]port[= ]\d+|(?:tcp|http|stcp) .*--(?:server_addr|"
            r"remote_port)[= ]",
            text,
        )
        is not None
        or re.search(r"^tunnel (?:.* )?(?:--url[= ]|run\b)", text) is not None
        or re.search(r"^(?:local|http|tcp|tls) \d+ --to[= ]\S+", text) is not None
        or re.search(r"-s (?:rssocks|rcsocks|ssocksd|lcx_\w+) ", text) is not None
        or re.search(
            r"(?:^|\s)-connect \S+:\d+ .*-(?:pass|socks|ignore-cert)|(?:^|\s)-ignore-cert\b.*-connect|^-server=\S+ "
            r"-vkey=",
            text,
        )
        is not None
    )


def has_tunnel_shape(run: Invocation) -> bool:
    """Return whether a program is told what only ssh, chisel, gost, frp, socat or an agent of a tunnel service is told.

    Args:
        run: The program; its name plays no part.
    """
    return (
        _has_ssh_shape(run)
        or _has_chisel_shape(run)
        or _has_url_relay_shape(run)
        or _has_socat_shape(run)
        or _has_agent_shape(run)
    )
