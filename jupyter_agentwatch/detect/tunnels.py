"""Tunnels and relays: programs whose arguments say that traffic of one side will come out at another.

Each tool is read by its own grammar, and the shapes that only tunnels have are known under any name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.endpoints import is_open, parse_endpoint, zone_of
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.shells import NETCAT, NETCATS, SOCKET_CLIENTS, renamed_netcat
from jupyter_agentwatch.detect.tunnel_shapes import has_tunnel_shape, ssh_options
from jupyter_agentwatch.detect.tunnel_tools import TOOLS, Tool
from jupyter_agentwatch.detect.unwrap import Invocation, program_name

__all__ = ["TUNNEL"]

_T: Final = "T1572"  # Protocol Tunneling

SSH_FORWARD: Final = Rule(
    id="tunnel.ssh_forward",
    title="ssh is told to forward ports or a network device",
    severity="high",
    technique=_T,
    rationale=(
        "-R lets the far side reach in, -D and -L let this side reach past what the policy names, -w joins networks."
    ),
    false_positives=("a person forwards a notebook's port from a laptop; an agent has no reason to",),
)
SSH_VIA: Final = Rule(
    id="tunnel.ssh_via",
    title="ssh reaches its host through another host or program",
    severity="high",
    technique="T1090",
    rationale="The host that is reached is not the one that the network record shows.",
    false_positives=("clusters that are reached through a jump host",),
)
SSH_CONFIG: Final = Rule(
    id="tunnel.ssh_config",
    title="an ssh configuration with forwarding is written",
    severity="high",
    technique=_T,
    rationale="The command line of the ssh that will use it shows nothing.",
    false_positives=("setting up a development container",),
)
TOOL: Final = Rule(
    id="tunnel.tool",
    title="a tunnelling program is started",
    severity="high",
    technique=_T,
    rationale="The program exists to carry traffic through or past a boundary.",
    false_positives=("showing a web page under development to a colleague",),
)
RELAY: Final = Rule(
    id="tunnel.relay",
    title="a relay between two connections is set up",
    severity="high",
    technique="T1090",
    rationale="What comes in at one side goes out at the other: the record shows the relay, not who uses it.",
    false_positives=("a local port made to point at another one for a test",),
)
SHAPE: Final = Rule(
    id="tunnel.shape",
    title="an unknown program has the arguments of a tunnel",
    severity="high",
    technique="T1036.003",
    rationale="Renaming a tool does not change what it must be told.",
    false_positives=("a program of one's own that forwards ports",),
)
RENAMED: Final = Rule(
    id="tunnel.renamed",
    title="a program that can carry a tunnel is put under another name",
    severity="high",
    technique="T1036.003",
    rationale="The name is what people and rules look at; the program stays what it is.",
    false_positives=("a copy with a version in its name, in a folder of programs (not reported)",),
)
DEVICE: Final = Rule(
    id="tunnel.device",
    title="a tunnel device or address translation is set up",
    severity="high",
    technique=_T,
    rationale="Packets leave through something that is not the network that was granted.",
    false_positives=("building a container network",),
)
DNS_TEXT: Final = Rule(
    id="tunnel.dns_text",
    title="the output of a command becomes part of a name that is looked up",
    severity="high",
    technique="T1048.003",
    rationale="Whoever answers for the domain reads the data in the queries.",
    false_positives=("looking up names from a list, one for each line (not reported)",),
)

_FORWARDING: Final = {"r": "remoteforward", "l": "localforward", "d": "dynamicforward"}
_SSH_KEYS: Final = frozenset({"remoteforward", "localforward", "dynamicforward", "tunnel", "tunneldevice"})
_VIA_KEYS: Final = frozenset({"proxycommand", "proxyjump"})
_CONFIG_TEXT: Final = lazy_pattern(
    r"^[ \t]*(?:(?:Remote|Local|Dynamic)Forward|Tunnel(?:Device)?)[ \t=]+\S", re.IGNORECASE | re.MULTILINE
)


_ANY_PLACE: Final = lazy_pattern(r"[^/~$-][^/]*$|\./|/(?:var/)?tmp/|/dev/shm/|(?:~|/\S*)/\.\w")
# A known name proves nothing of a program in a folder where anybody can put one.
_ODD_PROGRAM: Final = lazy_pattern(r"\./|/(?:var/)?tmp/|/dev/shm/|(?:~|/\S*)/\.\w")
_CARRYING: Final = frozenset(
    listed(
        "ssh dbclient plink autossh socat ncat nc netcat chisel frpc ngrok cloudflared gost bore gs-netcat stunnel "
        "xmrig"
    )
)


def _ssh(run: Invocation) -> Iterable[Hit]:
    options, settings = ssh_options(run.argv)
    forwards = [f"-{letter} {value}" for letter in "RDLw" for value in options.all(letter) if value]
    forwards += [
        f"{key} {value}" for key, value in settings.items() if key in _SSH_KEYS and value.lower() not in ("no", "none")
    ]
    if forwards:
        severe = options.has("R", "w") or {"remoteforward", "tunnel"} & settings.keys()
        yield Hit(SSH_FORWARD, ", ".join(forwards), "critical" if severe else None)
    elif options.last("O") == "proxy":
        yield Hit(SSH_FORWARD, "-O proxy")
    elif options.has("W"):
        yield Hit(SSH_VIA, f"-W {options.last('W')}")
    via = [f"-J {value}" for value in options.all("J") if value != "none"]
    via += [f"{key} {value}" for key, value in settings.items() if key in _VIA_KEYS and value.lower() != "none"]
    if via:
        yield Hit(SSH_VIA, ", ".join(via))
    if not forwards and "N" in options.flags:
        # Nothing is run: only a configuration file can say what this connection is for.
        yield Hit(SSH_CONFIG, "ssh -N without forwards of its own", "medium" if not options.has("F") else "high")


def _autossh(run: Invocation) -> Iterable[Hit]:
    yield Hit(TOOL, " ".join(run.argv), "low" if run.argv[1:] in (("-V",), ()) else None)


def _ssh_in_tool(run: Invocation) -> Iterable[Hit]:
    """The ssh that rsync, scp, sftp and git are told to use."""
    texts = [word for word in run.argv[1:] if "ssh" in word or "=" in word]
    texts += [value for key, value in run.assigned.items() if key in ("GIT_SSH_COMMAND", "RSYNC_RSH", "GIT_SSH")]
    for text in texts:
        found = re.search(r"\b(?:Remote|Local|Dynamic)Forward\b[ =]\S+", text, re.IGNORECASE)
        if found:
            yield Hit(SSH_FORWARD, found[0])
            return
    if run.name in ("scp", "sftp"):
        settings = " ".join(parse(run.argv, Grammar(valued="cDFiJloPSXB")).all("o"))
        jump = parse(run.argv, Grammar(valued="cDFiJloPSXB")).last("J")
        if jump or re.search(r"proxy(?:command|jump)", settings, re.IGNORECASE):
            yield Hit(SSH_VIA, jump or settings, "medium")


def _ssh_config(run: Invocation) -> Iterable[Hit]:
    targets = [r.target for r in run.redirects if r.op in (">", ">>", ">|")]
    if run.name == "tee":
        targets += [word for word in run.argv[1:] if not word.startswith("-")]
    text = "\n".join((run.stdin, *run.argv[1:]))
    if targets and _CONFIG_TEXT.search(text.replace("\\n", "\n")):
        is_config = any(
            "ssh" in target or "config" in target or re.match(r"/(?:var/)?tmp/", target) for target in targets
        )
        if is_config:
            yield Hit(SSH_CONFIG, targets[0])


def _tool(run: Invocation) -> Iterable[Hit]:
    tool: Tool = TOOLS[run.name]
    words = [word.lower() for word in run.argv[1:]]
    if (
        any(word in ("--version", "--help", "-h", "-help", "version", "help", "-v") for word in words[:2])
        and len(words) < 3
    ):
        yield Hit(TOOL, " ".join(run.argv), "info")
        return
    if tool.verbs and not any(word in tool.verbs for word in words):
        return
    if tool.pattern and not re.search(tool.pattern, " ".join(run.argv[1:])):
        return
    yield Hit(TOOL, " ".join(run.argv), tool.severity)


def _socat(run: Invocation) -> Iterable[Hit]:
    words = [word for word in run.argv[1:] if not word.startswith("-") or word == "-"][-2:]
    kinds = [word.partition(":")[0].partition(",")[0].lower() for word in words]
    network = [
        re.match(r"(?:tcp|udp|openssl|ssl|sctp|dtls|socks|proxy|unix|abstract|vsock|tun|interface|ip\d?)", kind)
        is not None
        for kind in kinds
    ]
    if len(words) == 2 and all(network):
        yield Hit(RELAY)
    elif any(kind in ("tun", "interface") for kind in kinds):
        yield Hit(DEVICE)


def _netcat(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, NETCAT)
    fed_by = [each for each in run.before if each.name in SOCKET_CLIENTS]
    if fed_by:
        yield Hit(RELAY, " | ".join(" ".join(each.argv) for each in (fed_by[-1], run)))
    elif any(
        program_name(text.split(" ")[0]) in SOCKET_CLIENTS | {"ssh"}
        for text in options.all("c", "e", "exec", "sh-exec")
        if text
    ):
        yield Hit(RELAY)
    elif options.has("x", "proxy", "X", "proxy-type"):
        yield Hit(RELAY, severity="medium")
    elif options.has("l", "listen") and not options.has("z"):
        keeps = options.has("k", "keep-open")
        yield Hit(RELAY, severity="medium" if keeps or options.has("u") else "low")


def _socket_client(run: Invocation) -> Iterable[Hit]:
    fed_by = [each for each in run.before if each.name in SOCKET_CLIENTS and each.name != "openssl"]
    if fed_by and run.name in SOCKET_CLIENTS:
        yield Hit(RELAY, " | ".join(" ".join(each.argv) for each in (fed_by[-1], run)))


def _network_device(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    if run.name == "ip":
        found = re.search(
            r"\btun(?:nel|tap)\b.*\badd\b|\blink\b.*\badd\b.*\btype\s+(?:gre\w*|ipip|sit|vxlan|wireguard|ip6tnl|"
            r"geneve|fou|vti)",
            text,
        )
    elif run.name in ("iptables", "ip6tables", "nft"):
        found = re.search(r"\b(?:DNAT|REDIRECT|MASQUERADE|SNAT|TPROXY|dnat|masquerade|redirect)\b", text)
    else:
        found = re.search(r"net\.ipv[46]\.(?:conf\.\w+\.)?(?:ip_)?forward(?:ing)?\s*=\s*1", text)
    if found:
        yield Hit(DEVICE, severity="medium" if run.name == "sysctl" else None)


def _cluster_forward(run: Invocation) -> Iterable[Hit]:
    if (
        "port-forward" in run.argv[1:8]
        or run.argv[1:3] == ("reverse", "tcp")
        or (run.name == "adb" and "reverse" in run.argv)
    ):
        bound = parse(run.argv, Grammar(long_valued=frozenset({"address", "namespace"}), valued="n")).last("address")
        opened = any(is_open(word) for word in bound.split(",") if word)
        yield Hit(RELAY, severity="high" if opened else "medium")


_PROXY: Final = Grammar(
    valued="AbcCdDeEFhHKmoPQrTtuUwxXyYz",
    long_valued=frozenset(listed("proxy preproxy socks4 socks4a socks5 socks5-hostname")),
)


def _proxied(run: Invocation) -> Iterable[Hit]:
    """Somebody else's proxy is asked for an address of the inside: it stands where the caller does not."""
    options = parse(run.argv, _PROXY)
    given = [
        (f"socks5://{value}" if name.startswith("socks") else value) for name in _PROXIES for value in options.all(name)
    ]
    proxies = [found for value in given if (found := parse_endpoint(value))]
    places = [
        found for word in options.operands if (found := parse_endpoint(word if "://" in word else f"http://{word}"))
    ]
    if any(each.zone == "outside" for each in proxies) and any(each.zone in ("private", "metadata") for each in places):
        yield Hit(RELAY)


_PROXIES: Final = ("x", "proxy", "preproxy", "socks4", "socks4a", "socks5", "socks5-hostname")


def _interface(run: Invocation) -> Iterable[Hit]:
    """A tunnel's device is given an address: the other end is then a neighbour."""
    device = next((word for word in run.argv[1:3] if re.fullmatch(r"(?:tun|tap|wg|ppp|gre)\d{1,3}", word)), "")
    if device and len(run.argv) > 2 and run.argv[-1] != "down":
        yield Hit(DEVICE)


def _qemu(run: Invocation) -> Iterable[Hit]:
    if any("hostfwd=" in word or "guestfwd=" in word for word in run.argv):
        yield Hit(RELAY)


_ENCODING: Final = frozenset(
    {
        "base64",
        "base32",
        "xxd",
        "hexdump",
        "od",
        "openssl",
        "gzip",
        "tar",
        "cat",
        "whoami",
        "hostname",
        "id",
        "uname",
        "env",
        "head",
        "printenv",
        "dd",
    }
)


_REENCODES: Final = lazy_pattern(r"\b(?:base64|base32|xxd|od|hexdump|fold|split|gzip)\b")
_ENCODES: Final = r"\$\((?:\S*/)?(?:base64|base32|xxd|od|hexdump|cat|fold|openssl|gzip|split)\b"


def _dns_query(run: Invocation) -> Iterable[Hit]:
    names = [word for word in run.argv[1:] if "$(" in word or "${" in word]
    if run.name == "ping":
        padding = parse(run.argv, Grammar(valued="pcisWwtIMQTlm")).last("p")
        if padding.startswith(("$", "`")):  # the bytes that fill the packet come from somewhere
            yield Hit(DNS_TEXT, " ".join(run.argv))
            return
    # A text cut into labels, piece by piece.
    piece = next((word for word in names if re.search(r"\$\{\w{1,64}:[^}]{1,64}\}\.[\w-]+\.", word)), "")
    if piece and run.loops:
        yield Hit(DNS_TEXT, piece)
        return
    if names and "" in run.loops and _REENCODES.search(run.loops[""].first):
        yield Hit(DNS_TEXT, names[0])
        return
    for word in names:
        if re.search(r"[)}]\.(?:[\w-]+\.)*[a-z]{2,}", word) and any(each.name in _ENCODING for each in run.inner):
            yield Hit(DNS_TEXT, word)
            return
    for word in names:
        loops = [loop for name, loop in run.loops.items() if name and "${" + name + "}" in word]
        if any(re.match(_ENCODES, loop.first) for loop in loops):
            yield Hit(DNS_TEXT, word)
            return
    if not run.inner and any(re.search(r"\$\{\w+\}\.[\w.-]+\.[a-z]{2,}$", word) for word in names) and run.loops:
        encodes = any(each.name in ("base64", "base32", "xxd", "od", "fold", "split") for each in run.before)
        if encodes or "" in run.loops:
            yield Hit(DNS_TEXT, names[0], None if encodes else "medium")
    if "xargs" in run.wrappers and any(each.name in ("base64", "base32", "xxd", "od") for each in run.before):
        yield Hit(DNS_TEXT, " ".join(run.argv))


def _copies(run: Invocation) -> Iterable[Hit]:
    """`cp $(which ssh) x`: only where the new name is in the working folder, hidden, or in a folder for all."""
    operands = parse(run.argv, Grammar(valued="mogS")).operands
    if len(operands) != 2 or not _ANY_PLACE.match(operands[1]):
        return
    found = [each.argv[-1] for each in run.inner if each.name in ("which", "command", "type", "whereis", "readlink")]
    source = (found or [operands[0] if "/" in operands[0] else ""])[0]
    old, new = source.rpartition("/")[2], operands[1].rpartition("/")[2]
    if old in _CARRYING and new not in ("", ".", "..", old) and not new.startswith(f"{old}-"):
        yield Hit(RENAMED)


def _renamed(run: Invocation) -> Iterable[Hit]:
    if (run.name in _KNOWN and not _ODD_PROGRAM.match(run.argv[0])) or run.name in (
        "curl",
        "wget",
        "gcc",
        "g++",
        "clang",
        "ld",
        "cc",
        "c++",
        "docker",
        "podman",
        "kubectl",
    ):
        return
    if has_tunnel_shape(run) or renamed_netcat(run):
        yield Hit(SHAPE)


def _socks_option(run: Invocation) -> Iterable[Hit]:
    if run.name in _KNOWN or run.name in ("curl", "wget", "git", "pip", "ssh", "npm", "apt"):
        return
    for word in run.argv[1:]:
        endpoint = parse_endpoint(word.rpartition("=")[2])
        if (
            endpoint
            and endpoint.scheme.startswith("socks")
            and zone_of(endpoint.host) == "outside"
            and run.name not in CLIENTS
        ):
            yield Hit(SHAPE, word, "medium")
            return


CLIENTS: Final = frozenset({"python", "node", "aria2c", "yt-dlp", "chromium", "google-chrome", "firefox"})
"""Programs for which a SOCKS proxy is an ordinary setting."""

_CHECKS: Final[Mapping[str, tuple[Callable[[Invocation], Iterable[Hit]], ...]]] = {
    **dict.fromkeys(TOOLS, (_tool,)),
    **dict.fromkeys(NETCATS, (_netcat,)),
    **dict.fromkeys(("scp", "sftp", "rsync", "git"), (_ssh_in_tool,)),
    **dict.fromkeys(("ip", "iptables", "ip6tables", "nft", "sysctl"), (_network_device,)),
    **dict.fromkeys(("kubectl", "oc", "adb"), (_cluster_forward,)),
    **dict.fromkeys(("dig", "nslookup", "host", "ping", "drill", "kdig", "getent", "resolvectl"), (_dns_query,)),
    **dict.fromkeys(("qemu-system-x86_64", "qemu-system", "qemu-system-i386", "qemu-system-aarch64"), (_qemu,)),
    **dict.fromkeys(("telnet", "openssl"), (_socket_client,)),
    "websocat": (_tool, _socket_client),
    "curl": (_proxied,),
    "tee": (_ssh_config,),
    "ifconfig": (_interface,),
    **dict.fromkeys(("cp", "ln", "install", "mv"), (_copies,)),
    "ssh": (_ssh,),
    "slogin": (_ssh,),
    "dbclient": (_ssh,),
    "plink": (_ssh,),
    "autossh": (_autossh, _ssh),
    "socat": (_socat, _socket_client),
}
_KNOWN: Final = frozenset(_CHECKS)

TUNNEL: Final = Ruleset(
    rules=(SSH_FORWARD, SSH_VIA, SSH_CONFIG, TOOL, RELAY, SHAPE, RENAMED, DEVICE, DNS_TEXT),
    by_name=_CHECKS,
    quiet=frozenset(
        listed(
            "curl tee ifconfig cp ln install mv git rsync scp sftp ip sysctl kubectl ping host dig nslookup getent "
            "openssl gh code aws az gcloud"
        )
    ),
    marks=listed(
        ":0,:1,:2,:3,:4,:5,:6,:7,:8,:9,tcp:,tcp4:,tcp-,udp,unix,openssl,vsock,"
        "socks,ifconfig ,wireguard,tuntap,vxlan, gre,ipip,server_addr,server-addr,forward,reverse,tunnel,--to,"
        "@,-fn,-nf,-nt,-n -,authtoken,frpc.,frps.,--hostname,--url,--domain,which ssh,which s,-v ssh,bin/s,bin/n,"
        "-connect,vkey,-e ,-c /,-c sh,-c bash,exec,proxycommand,s_client,dig ,relay,$(",
        ",",
    ),
    shapes=(_renamed, _socks_option, _ssh_config),
    shape_pattern=(
        r"\d:[\w.\[\]:-]+:\d{1,5}\b|\bR:\S*(?:\d|socks)|:socks\b|-[LF][= ]?\w[\w+]*://|-L[= ]?:\d+|--server[_-]addr|"
        r"(?:Remote|Local|Dynamic)Forward|\b(?:client|server) .*(?:--?reverse|--?socks5|socks\b|R:)|\btunnel "
        r".*(?:--url|run\b)|"
        r"\d --to[= ]|-s (?:rssocks|rcsocks|ssocksd|lcx_)|-connect \S+:\d|-vkey=|socks[45]\w?://|"
        r"-\w*[ec] (?:/\S*/)?\w*sh\b|--(?:sh-)?exec[= ]|(?:^|\s)-\w{0,8}[RDw] ?(?:\S{1,64}:)?(?:\d{1,5}|any)\s|"
        r"(?:^|\s)(?:tcp|udp|openssl|unix|vsock)[46]?(?:-\w+)?:\w|--authtoken|\b(?:http|tcp|tls) .*--(?:url|domain|"
        r"hostname|subdomain)[= ]|\baccess .*--hostname|frp[cs]\."
    ),
)
"""What tunnels look like on a command line."""
