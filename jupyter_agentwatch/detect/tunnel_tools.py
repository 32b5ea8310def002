"""Programs that exist to carry traffic through or past a boundary, and which of their uses do so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.events import Severity

__all__ = ["TOOLS", "Tool"]


class Tool(msgspec.Struct, frozen=True):
    """When the start of a program counts.

    Attributes:
        verbs: One of these words must be among its arguments; empty: always.
        pattern: Regular expression that its arguments, joined by blanks, must contain; "" for any.
        severity: What it is worth; None: what the rule says.
    """

    verbs: frozenset[str] = frozenset()
    pattern: str = ""
    severity: Severity | None = None


def _verbs(text: str) -> Tool:
    return Tool(verbs=frozenset(text.split()))


_ANY: Final = Tool()
_WITH_ARGUMENTS: Final = Tool(pattern=r"\S")

TOOLS: Final[Mapping[str, Tool]] = {
    **dict.fromkeys(
        listed(
            "chisel frpc frps rathole pagekite localtunnel lt iodine iodined dnscat dnscat2 dnscat2-client dns2tcpc "
            "dns2tcpd "
            "hans ptunnel ptunnel-ng icmptunnel icmpsh udp2raw udptunnel kcptun kcptun-client client_linux "
            "httptunnel htc hts "
            "wstunnel websockify ssf ssfd earthworm ew_for_linux64 revsocks rsockstun ligolo ligolo-agent ligolo-ng "
            "agent_ligolo "
            "microsocks 3proxy sockd danted srelay ss-local ss-server ss-redir ss-tunnel sslocal ssserver trojan-go "
            "naiveproxy "
            "hysteria tuic-client shadowsocks brook gsnc rinetd redir simpleproxy pproxy proxy.py tinyproxy nps npc "
            "telebit loophole "
            "localxpose loclx playit tunnelto tunnelmole tmole sish jprq expose boringproxy go-http-tunnel pwnat gost "
            "sshuttle dnstt-client slowdns corkscrew proxytunnel reGeorg regeorg neoreg suo5 tun2socks "
            "badvpn-tun2socks venom "
            "stowaway rakshasa iox nkn-tunnel untun blitz gs-netcat "
            "gs-sftp gs-mount ktunnel pgrok holesail frp lanproxy neutrino inlets inlets-pro "
            "sshtunnel icmptx"
        ),
        _WITH_ARGUMENTS,
    ),
    "ngrok": _verbs("http https tcp tls start tunnel connect api service"),
    "cloudflared": _verbs("tunnel access proxy-dns service"),
    "bore": _verbs("local server"),
    "tailscale": _verbs("funnel serve ssh nc up"),
    "tailscaled": _ANY,
    "zerotier-cli": _verbs("join"),
    "zerotier-one": _ANY,
    "wg-quick": _verbs("up"),
    "wg": _verbs("setconf addconf set"),
    "openvpn": Tool(pattern=r"--config|--remote|\.ovpn|\.conf"),
    "zrok": _verbs("share access reserve"),
    "code": _verbs("tunnel"),
    "code-server": Tool(pattern=r"--link"),
    "devtunnel": _verbs("host connect port"),
    "nebula": Tool(pattern=r"-config"),
    "n2n": _ANY,
    "xray": _verbs("run -c -config"),
    "v2ray": _verbs("run -c -config"),
    "sing-box": _verbs("run"),
    "clash": Tool(pattern=r"-[fd]\b"),
    "mihomo": Tool(pattern=r"-[fd]\b"),
    "tor": _ANY,
    "torsocks": _WITH_ARGUMENTS,
    **dict.fromkeys(("proxychains", "proxychains4"), _WITH_ARGUMENTS),
    **dict.fromkeys(("stunnel", "stunnel4", "rpivot", "microtunnel"), _WITH_ARGUMENTS),
    **dict.fromkeys(
        ("openconnect", "vpnc", "vpnc-connect", "pppd", "squid", "privoxy", "polipo", "iodine-client"), _WITH_ARGUMENTS
    ),
    **dict.fromkeys(("netbird", "mullvad", "nordvpn", "protonvpn-cli", "ipsec", "expressvpn"), _verbs("up connect c")),
    "headscale": _verbs("nodes register serve"),
    **dict.fromkeys(
        ("mitmproxy", "mitmdump", "mitmweb"), Tool(pattern=r"(?:-m|--mode)[= ]?(?:socks5|upstream|reverse)")
    ),
    "proxy": Tool(pattern=r"--hostname|--port"),
    "ssh-tunnel": _ANY,
    "websocat": Tool(pattern=r"(?:tcp-l|ws-l|wss-l|tcp-listen|socks5|unix-l|-s\b).*"),
    "teleport": _verbs("start"),
    "tsh": _verbs("proxy"),
    "warp-cli": _verbs("connect"),
    "gsocket": _ANY,
    "pinggy": _ANY,
    "serveo": _ANY,
    "lhr": _ANY,
    "gh": Tool(pattern=r"codespace ports forward", severity="medium"),
    "aws": Tool(pattern=r"ssm start-session.*PortForwarding|ec2-instance-connect open-tunnel"),
    "gcloud": Tool(pattern=r"start-iap-tunnel|cloud-shell ssh|compute ssh.*-- .*-[RDL]"),
    "az": Tool(pattern=r"bastion tunnel|relay hyco"),
}
"""Program name, as `unwrap.program_name` gives it, to when its start counts."""
