"""Probing: command lines that ask many hosts or many ports, or the address where clouds hand out credentials."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.decoding import range_size
from jupyter_agentwatch.detect.endpoints import parse_endpoint, zone_of
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.shells import NETCAT, NETCATS
from jupyter_agentwatch.detect.unwrap import Invocation

__all__ = ["MANY_HOSTS", "MANY_PORTS", "PROBING"]

METADATA: Final = Rule(
    id="probing.metadata",
    title="the cloud or the cluster is asked for the machine's own credentials",
    severity="high",
    technique="T1552.005",
    rationale="It hands out the machine's own credentials to whoever asks.",
    false_positives=("cloud command lines look there for a default identity",),
)
SCANNER: Final = Rule(
    id="probing.scanner",
    title="a network scanner is started",
    severity="high",
    technique="T1046",
    rationale="It asks many hosts or ports what they offer.",
    false_positives=("a check of the loopback address alone (low)", "one named host and few ports (medium)"),
)
SWEEP: Final = Rule(
    id="probing.sweep",
    title="a loop asks many hosts or ports",
    severity="high",
    technique="T1018",
    rationale="A sweep by ordinary tools is still a sweep.",
    false_positives=("waiting for a handful of one's own services (not reported)",),
)
DISCOVERY: Final = Rule(
    id="probing.discovery",
    title="neighbours on the network are listed",
    severity="low",
    technique="T1016",
    rationale="It is a usual first step, and also ordinary troubleshooting.",
    false_positives=("finding out why a connection fails",),
)
WEB_SCANNER: Final = Rule(
    id="probing.web_scanner",
    title="a tool that searches for weak points or guesses passwords is started",
    severity="high",
    technique="T1595",
    rationale="It tries paths, names, weak points or passwords at another machine.",
    false_positives=("a security test that a person ordered",),
)
MANY_HOSTS: Final = 8
"""So many values of a loop's variable in a host make a sweep."""

MANY_PORTS: Final = 12
"""So many ports of one host make a scan."""

_NMAP: Final = Grammar(
    valued="pgeDbi",
    attached="oPs",
    long_valued=frozenset(
        listed(
            "top-ports script script-args exclude-ports excludefile exclude host-timeout min-rate max-rate "
            "source-port dns-servers "
            "max-retries min-parallelism data-length scan-delay port-ratio"
        )
    ),
)
_SCANNERS: Final = listed(
    "nmap masscan zmap rustscan unicornscan naabu pnscan fping hping3 hping nping arp-scan netdiscover nbtscan fscan "
    "angryip "
    "zgrab2 zgrab ipscan smap sx netscan xscan pscan libtins-scan arping onesixtyone snmp-check"
)
_WEB_SCANNERS: Final = listed(
    "nikto gobuster dirb ffuf feroxbuster wfuzz sqlmap nuclei wpscan hydra medusa ncrack patator crackmapexec "
    "netexec nxc enum4linux "
    "smbmap amass subfinder theharvester dnsenum dnsrecon fierce kerbrute responder bettercap ettercap crowbar "
    "evil-winrm linpeas "
    "linenum kube-hunter peirates cdk pacu scoutsuite impacket-secretsdump dirsearch whatweb"
)
_HOST_LIKE: Final = lazy_pattern(r"[\w.-]\.[\w-]")
_RANGE: Final = lazy_pattern(
    r"\d+\.\d+\.\d+\.\d+/\d{1,2}|\d+\.\d+\.\d+\.(?:\d+-\d+|\*|\[)|\d+\.\d+\.(?:\d+-\d+|\*)\.|"
    r"\d+\.\d+\.\d+\.\d+-\d+\.\d+|[0-9a-f:]+::/\d+"
)
_METADATA_TEXT: Final = lazy_pattern(
    r"169\.254\.(?:169\.254|170\.(?:2|23))|metadata\.google\.internal|100\.100\.100\.200|\bfd00:ec2::254|2852039166|"
    r"0xa9fea9fe|"
    r"metadata\.(?:azure\.com|tencentyun\.com)|/latest/(?:meta-data|api/token|dynamic)|computeMetadata/v1|"
    r"instance-data\b|::ffff:a9fe|0251\.0376\.0251\.0376|AWS_CONTAINER_CREDENTIALS|ECS_CONTAINER_METADATA|"
    r"kubernetes\.io/serviceaccount/token",
    re.IGNORECASE,
)


def _ports(text: str) -> int:
    """Return how many ports a list such as "22,80,8000-8100" names; "-" and ranges without end are all of them."""
    if text in ("-", "*", "0-", "1-"):
        return 65535
    total = 0
    for part in text.replace("T:", "").replace("U:", "").split(","):
        span = re.fullmatch(r"(\d{0,5})[-:](\d{0,5})", part)
        if span:
            total += int(span[2] or 65535) - int(span[1] or 1) + 1
        elif part:
            total += range_size(part)
    return max(total, 0)


def _scanner(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, _NMAP)
    targets = [run.filled(word) for word in options.operands if re.search(r"[\w]\.[\w]|::|localhost|/\d", word)]
    asks = options.has("version", "V", "help", "h")
    if asks and not targets:
        return
    if targets and all(zone_of(target.partition("/")[0]) == "loopback" for target in targets):
        yield Hit(SCANNER, severity="low")
        return
    wide = (
        any(_RANGE.search(target) for target in targets) or len(targets) >= MANY_HOSTS or options.has("iL", "i", "iR")
    )
    single = run.name in ("nmap", "nping", "hping3", "hping", "arping", "fping")
    if run.name in ("arping", "fping") and not wide and not options.has("g", "generate"):
        yield Hit(SCANNER, severity="low")
        return
    ports = sum(_ports(value) for value in options.all("p"))
    thorough = (
        ports >= MANY_PORTS
        or not ports
        or bool(options.all("s", "script", "top-ports"))
        or options.has("A", "O", "sV", "sS")
    )
    yield Hit(SCANNER, severity=None if wide or not single or thorough else "medium")


def _netcat(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, NETCAT)
    if options.has("l", "listen") or not options.operands:
        return
    host = run.filled(options.operands[0])
    count = sum(_ports(word) * max(1, run.repeats(word)) for word in options.operands[1:48])
    many_hosts = run.repeats(options.operands[0]) >= MANY_HOSTS or range_size(options.operands[0]) >= MANY_HOSTS
    many_hosts = many_hosts or _RANGE.search(options.operands[0]) is not None
    scans = (count >= MANY_PORTS or many_hosts) and (options.has("z", "zero") or options.has("w", "v"))
    if scans or (options.has("z", "zero") and _open_loop(run, options.operands)):
        yield Hit(SWEEP, severity="low" if zone_of(host) == "loopback" else None)


def _open_loop(run: Invocation, words: Iterable[str]) -> bool:
    """Whether some word runs over a list that the text does not give, and so can be anything."""
    return any(run.repeats(word) == 0 for word in words)


def _looped(run: Invocation) -> Iterable[Hit]:
    """Any client of the network whose host or port is a loop's variable."""
    if run.name not in _CLIENTS and not any("/dev/tcp/" in r.target for r in run.redirects):
        return
    words = [*run.argv[1:], *(r.target for r in run.redirects if "/dev/tcp/" in r.target)]
    for word in words:
        count = run.repeats(word) * range_size(word)
        if count == 1:
            continue
        filled = run.filled(word)
        endpoint = parse_endpoint(filled)
        device = re.match(r"/dev/(?:tcp|udp)/([^/]+)/", filled)
        host = endpoint.host if endpoint else device[1] if device else filled
        zone = zone_of(host) if "." in host or ":" in host or device or endpoint else "loopback"
        before_host = (word.partition("/dev/tcp/")[2] if device else word).replace("{", "${")
        varies = (
            "${" in before_host.partition("?")[0].partition("://")[-1 if "://" in word else 0].partition("/")[0]
            or device
        )
        inner = zone in ("private", "link-local", "metadata") or (device is not None and zone != "loopback")
        few = (
            4 if device is not None and zone == "private" else MANY_HOSTS
        )  # nobody waits for so many doors of one host
        if varies and inner and (count >= few or count == 0):
            yield Hit(SWEEP, word)
            return
        if (
            varies
            and count >= 64
            and (run.name in ("ping", "telnet", "nc", "arping") or zone == "outside")
            and _HOST_LIKE.search(filled)
        ):
            yield Hit(SWEEP, word)
            return
        if _GUESSED.match(word) and count >= _MANY_NAMES and run.name != "ssh":
            yield Hit(SWEEP, word)
            return
    if run.name == "curl" and any(_RANGE_URL.search(word) and not _is_loopback_url(word) for word in run.argv[1:]):
        yield Hit(SWEEP)


_MANY_NAMES: Final = 6
_MANY_GUESSES: Final = 4
# The loop gives the whole name: guesses. `node${i}.lan` counts through machines that somebody has.
_GUESSED: Final = lazy_pattern(
    r"(?:\w+://)?\$\{\w+\}\.(?:[\w-]+\.){0,4}(?:internal|intra|intranet|corp|lan|local|svc|private)(?:[.:/]|$)"
)
_RANGE_URL: Final = lazy_pattern(r"://[^/]*\[\d+-\d+\]|://[^/]*:\[\d+-\d+\]|^\d+\.\d+\.\d+\.\[\d+-\d+\]")


def _is_loopback_url(word: str) -> bool:
    host = word.partition("://")[2].partition("/")[0].rpartition(":")[0]
    return zone_of(host) == "loopback" if "[" not in host else False


def _metadata(run: Invocation) -> Iterable[Hit]:
    if run.name in _TEXT_ONLY:
        return
    found = _METADATA_TEXT.search(" ".join((*run.argv[1:], *(r.target for r in run.redirects))))
    if found:
        yield Hit(METADATA, found[0])


_TEXT_ONLY: Final = frozenset(
    {"ip", "route", "iptables", "tcpdump", "nft", "export", "sudo", "sh", "bash", "dash", "zsh", "find"}
)


def _discovers(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    if run.name == "arp" or (run.name == "ip" and re.match(r"-?\w*\s*n(?:eigh(?:bou?r)?)?\b", text)):
        yield Hit(DISCOVERY)
    elif run.name == "ping" and (re.search(r"\.255(?:\s|$)|-b\b.*\.255", text)):
        yield Hit(SWEEP, severity="medium")
    elif "--help" in run.argv[1:]:
        return
    elif run.name in ("dig", "host", "nslookup", "dnsrecon") and re.search(
        r"\baxfr\b|(?:^|\s)-l\s", text, re.IGNORECASE
    ):
        yield Hit(SCANNER, f"zone transfer: {text}")
    elif run.name in ("snmpwalk", "snmpbulkwalk") or (
        run.name in ("smbclient", "rpcclient", "showmount", "ldapsearch") and re.search(r"-L|-e\b|enum|-x\b|-N\b", text)
    ):
        # Without a name and a login of one's own it is a stranger who asks.
        stranger = run.name != "ldapsearch" or not re.search(r"(?:^|\s)-[DWY]", text)
        by_number = any(zone_of(host) == "private" for host in re.findall(r"\d+\.\d+\.\d+\.\d+", text))
        yield Hit(DISCOVERY, severity="high" if by_number and stranger else "medium")
    elif run.name == "avahi-browse":
        yield Hit(DISCOVERY)


_LOOP_CODE: Final = lazy_pattern(
    r"range\(\s*\d*\s*,?\s*\d{2,5}|for\s*\(\s*(?:let\s+|var\s+|int\s+|my\s+)?\$?\w+\s*=|\.\.|ip_network\(|\.hosts\(\)|\b(?:ports|hosts)\b",
    re.IGNORECASE,
)
_CONNECT_CODE: Final = lazy_pattern(
    r"connect_ex\s*\(|create_connection\s*\(|\.connect\s*\(|urlopen\s*\(|requests\.get\s*\(|TCPSocket\.new|fsockopen|"
    r"IO::Socket::INET|net\.connect|open_connection\s*\(|socket_connect|Socket\.tcp\("
)
_SCANNING_CODE: Final = lazy_pattern(
    r"\bscapy\b.{0,2000}\b(?:sr|sr1|srp|srp1|send|sendp|srloop|arping|traceroute)\s*\(|\bnmap3?\.\w*(?:PortScanner|Nmap)\w*\s*\(|"
    r"\bmasscan\.PortScanner",
    re.DOTALL,
)
_ADDRESS_CODE: Final = lazy_pattern(r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.[\d{%$]")


def _code(run: Invocation) -> Iterable[Hit]:
    code = run.code
    if not code:
        return
    found = _METADATA_TEXT.search(code)
    if found:
        yield Hit(METADATA, found[0])
    if _SCANNING_CODE.search(code):
        yield Hit(SWEEP)
    elif _LOOP_CODE.search(code) and _CONNECT_CODE.search(code):
        is_inner = _ADDRESS_CODE.search(code) is not None or "ip_network" in code
        if is_inner or "connect_ex" in code:
            local = not is_inner and re.search(r"localhost|127\.0\.0\.1", code) is not None
            yield Hit(SWEEP, severity="low" if local else None)


def _reads_token(run: Invocation) -> Iterable[Hit]:
    """The cluster's own door key, which lies in every pod."""
    found = next((word for word in run.argv[1:] if "kubernetes.io/serviceaccount/token" in word), "")
    if found:
        yield Hit(METADATA, found)


def _all_secrets(run: Invocation) -> Iterable[Hit]:
    """The secrets of every namespace are nobody's own."""
    text = " ".join(run.argv[1:])
    if re.search(r"\bget\s+(?:\S+,)?secrets?\b", text) and re.search(r"(?:^|\s)(?:-A|--all-namespaces)\b", text):
        yield Hit(METADATA)


def _guesses(run: Invocation) -> Iterable[Hit]:
    """A password that is a loop's variable: `for p in …; do sshpass -p $p ssh …`, `curl -u admin:$p`."""
    options = parse(run.argv, Grammar(valued="pfduHXoP", long_valued=frozenset({"user", "password"}), operands=0))
    for word in options.all("p", "u", "user", "password"):
        count = run.repeats(word)
        if count != 1 and (count == 0 or count >= _MANY_GUESSES):
            yield Hit(WEB_SCANNER, word)
            return


def _web_scanner(run: Invocation) -> Iterable[Hit]:
    # To half of these tools -h is a host.
    asks = any(word in ("--version", "--help", "-V") for word in run.argv[1:3]) or run.argv[1:] in ((), ("-h",))
    yield Hit(WEB_SCANNER, severity="info" if asks else None)


_CLIENTS: Final = frozenset(
    {
        *NETCATS,
        *("redis-cli", "mongo", "mongosh", "psql", "mysql", "smbclient", "sshpass", "snmpget", "traceroute6", "httpx"),
        "ping",
        "ping6",
        "curl",
        "wget",
        "telnet",
        "ssh",
        "http",
        "dig",
        "host",
        "getent",
        "nslookup",
        "arping",
        "traceroute",
        "openssl",
    }
)
_CODE_NAMES: Final = (
    "python",
    "perl",
    "ruby",
    "php",
    "node",
    "nodejs",
    "pypy",
    "lua",
    "bun",
    "deno",
    "ipython",
    "awk",
    "gawk",
)

_COMMON: Final = (
    "kubectl ip arp ping host dig nslookup cdk smap sx responder curl cat head tail less cp base64 xxd mysql "
    "mysqladmin "
    "smbclient"
)

PROBING: Final = Ruleset(
    rules=(METADATA, SCANNER, SWEEP, DISCOVERY, WEB_SCANNER),
    by_name={
        **dict.fromkeys(_SCANNERS, (_scanner,)),
        **dict.fromkeys(_WEB_SCANNERS, (_web_scanner,)),
        **dict.fromkeys(("sshpass", "curl", "smbclient", "mysql", "mysqladmin"), (_guesses,)),
        **dict.fromkeys(("cat", "head", "tail", "less", "cp", "base64", "xxd", "jwt"), (_reads_token,)),
        **dict.fromkeys(("kubectl", "oc"), (_all_secrets,)),
        **dict.fromkeys(NETCATS, (_netcat,)),
        **dict.fromkeys(_CODE_NAMES, (_code,)),
        **dict.fromkeys(
            (
                "arp",
                "ip",
                "dig",
                "host",
                "nslookup",
                "ping",
                "snmpwalk",
                "snmpbulkwalk",
                "ldapsearch",
                "smbclient",
                "rpcclient",
                "showmount",
                "avahi-browse",
            ),
            (_discovers,),
        ),
    },
    quiet=frozenset(
        {
            *_CODE_NAMES,
            *listed(_COMMON),
        }
    ),
    marks=listed(
        "secret,169.254.,instance-data,a9fe,0251.,container_cred,serviceaccount,metadata,scapy,portscanner,"
        "100.100.100.200,ec2::254,2852039166,0xa9fea9fe,meta-data,for ,xargs,/dev/tcp/,axfr,"
        "connect,{1..,[0-,[1-,parallel,.255,arp ,neigh,ip n ,smbclient,responder",
        ",",
    ),
    shapes=(_metadata, _looped),
    shape_pattern=(
        r"instance-data|::ffff:a9fe|0251\.|container_credentials|container_metadata|serviceaccount|computemetadata|169\.254\.1|metadata\.|100\.100\.100\.200|ec2::254|2852039166|0xa9fea9fe|latest/(?:meta-data|api)|"
        r"\b(?:ping|curl|wget|ncat|netcat|telnet|nc|ssh|host|getent|nslookup|dig|redis-cli|psql|mysql)\b.*(?:\$\{\w+\}|\{\d+\.\.)|(?:ping|curl|"
        r"wget|nc|ncat|telnet)\b.*\$\w|/dev/tcp/.*(?:\$\{|\{\d+\.\.)|\[\d+-\d+\]"
    ),
)
"""What probing looks like on a command line."""
