"""Resource hijacking by mining: what miners are told on their command lines, whatever the binary is called.

A name is a weak sign and can be changed; a pool, a login and an algorithm together are the grammar of no other tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.endpoints import is_address, parse_endpoint, zone_of
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.pools import pool_domain, pool_service
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.unwrap import SHELLS, Invocation
from jupyter_agentwatch.detect.wallets import wallet_kind

__all__ = ["MINING", "miner_score"]

_T: Final = "T1496"  # Resource Hijacking

MINER_OPTIONS: Final = Rule(
    id="mining.miner_options",
    title="a program is told a pool, a login and how to hash",
    severity="critical",
    technique=_T,
    rationale="No other kind of program takes a pool's address, a wallet or worker and a hashing algorithm.",
    false_positives=("a test of mining software in a laboratory that studies it",),
)
KNOWN_MINER: Final = Rule(
    id="mining.known_miner",
    title="a mining program is started",
    severity="high",
    technique=_T,
    rationale="The program has the name of a miner. Names prove little, but nobody gives this one by chance.",
    false_positives=("its help or version is asked for (low)", "a program of one's own with the same name"),
)
POOL_ADDRESS: Final = Rule(
    id="mining.pool_address",
    title="a program is given the address of a mining pool",
    severity="high",
    technique=_T,
    rationale="A Stratum URL, or a pool's service name with a port, has one use.",
    false_positives=("a client of a pool's statistics, which speaks HTTP (not reported)",),
)
CONFIG: Final = Rule(
    id="mining.config",
    title="a miner's configuration or login is written",
    severity="high",
    technique=_T,
    rationale="The text has the shape of a miner's configuration (pools with url and user) or of a Stratum login.",
    false_positives=("test data for a parser of such files",),
)
NODE: Final = Rule(
    id="mining.node",
    title="a blockchain node is told to mine",
    severity="high",
    technique=_T,
    rationale="Nodes mine without a pool when they are given an address for the reward.",
    false_positives=("a private test chain (`generatetoaddress` on regtest is not reported)",),
)
PREPARATION: Final = Rule(
    id="mining.preparation",
    title="the machine is tuned as miners want it",
    severity="medium",
    technique=_T,
    rationale="RandomX gains from huge pages and from writing model-specific registers of the processor.",
    false_positives=("databases and DPDK use huge pages", "performance counters use the msr module"),
)
FETCH: Final = Rule(
    id="mining.fetch",
    title="mining software is fetched",
    severity="medium",
    technique="T1105",
    rationale="The name of a miner is in the address that is fetched.",
    false_positives=("reading its source code",),
)

_MINERS: Final = frozenset(
    listed(
        "xmrig xmrig-proxy xmrig-cuda xmrig-notls xmr-stak xmr-stak-rx minerd cpuminer cpuminer-opt cpuminer-avx2 "
        "cpuminer-sse2 "
        "cpuminer-multi ccminer ethminer cgminer bfgminer sgminer claymore nbminer t-rex trex gminer lolminer "
        "phoenixminer "
        "teamredminer nanominer bminer wildrig wildrig-multi srbminer srbminer-multi rigel onezerominer bzminer "
        "minerstat "
        "tt-miner z-enemy cryptodredge kawpowminer progpowminer ethdcrminer64 ethdcrminer multiminer xmrigcc "
        "xmrigdaemon "
        "hellminer ccminer-verus kaspa-miner karlsen-miner kaspaminer astrominer derominer dero-miner tnn-miner xlarig "
        "p2pool miniz ewbf zecminer64 optiminer gatorminer aethir moneroocean nheqminer nhqminer minergate "
        "minergate-cli "
        "packetcrypt pkt-miner raptoreum spectre-miner qubic-miner randomx-benchmark bitcoin-miner poclbm rigv "
        "peakminer coin-hive coinhive deepminer cryptoloot kdevtmpfsi kinsing pyxmrig"
    )
) - {"trex"}
_SCHEME: Final = lazy_pattern(
    r"(?:stratum[12]?|ethstratum|ethproxy|eth-proxy|stratums|daemon|zil|nicehash|ethash|kawpow|randomx|solo|raw)"
    r"(?:\+|2\+|1\+)?(?:tcps?|ssl|tls\d{0,2}|udp|wss?|https?)?://",
    re.IGNORECASE,
)
_STRATUM: Final = lazy_pattern(
    r"stratum(?:[12]|s)?(?:\+(?:tcps?|ssl|tls\d{0,2}|udp|wss?|https?))?://|ethstratum",
    re.IGNORECASE,
)
_POOL_OPTIONS: Final = {
    "o": 3,
    "pool": 3,
    "epool": 3,
    "zpool": 3,
    "pool1": 3,
    "pools": 3,
    "stratum": 3,
    "p": 3,
    "url": 2,
    "uri": 2,
    "server": 2,
    "s": 2,
    "proxy-pool": 2,
    "daemon-address": 2,
    "node": 1,
    "host": 1,
    "pool-address": 3,
    "poolurl": 3,
    "mining-url": 3,
}
_LOGIN_OPTIONS: Final = frozenset(
    listed(
        "u user wallet wal ewal zwal w userpass username address miner-address mining-address login account "
        "rewards-address "
        "payout-address pool-user coinbase mining-addr a"
    )
)
# Nothing but what deals in coins calls a login so.
_WALLET_OPTIONS: Final = frozenset({"wallet", "wal", "ewal", "miner-address", "payout-address", "mining-address"})
_ALGORITHM_OPTIONS: Final = frozenset({"a", "algo", "algorithm", "coin", "c", "cipher", "mode", "pow"})
_PASSWORD_OPTIONS: Final = frozenset({"p", "pass", "password", "epsw"})
_ALGORITHM: Final = lazy_pattern(
    r"(?:rx/\w+|cn(?:-\w+)?/\w+|cn-?(?:lite|heavy|pico|turtle|gpu)\w*|randomx?(?:hash2?|_\w+|[a-z]{1,8})?|"
    r"cryptonight\S{0,24}|"
    r"kawpow|progpow\w{0,12}|firopow|meowpow|evrprogpow|ethashb3|ethash|etchash|ubqhash|autolykos2?|octopus|"
    r"ghostrider|gr|"
    r"equihash\S{0,12}|beamhash\w{0,4}|cuck(?:oo|aroo|atoo)\w{0,8}|sha256(?:d|dt|t|csm|q)|sha512256d|scrypt\w{0,8}|"
    r"x1[1-9]\w{0,6}|x2[0-9]\w{0,3}|"
    r"ye(?:scrypt|spower)\w{0,10}|argon2\S{0,16}|verus(?:hash)?|k(?:heavyhash|arlsenhashv?2?|as|aspa)|heavyhash|"
    r"dynex(?:solve)?|nexapow|blake3\w{0,12}|zelhash|zil(?:liqa)?|lyra2\w{0,8}|neoscrypt\w{0,6}|verthash|minotaurx?|"
    r"panthera|"
    r"astrobwt\S{0,4}|xelishash\w{0,4}|pyrinhash|fishhash|skydoge|memehash|allium|flex|power2b|mike|spectrex|"
    r"xmr|monero|etc|eth|rvn|ravencoin|kas|erg|ergo|zeph|zephyr|alph|flux|btg|cfx|zec|aeon|wow|wownero|arqma|sumo|"
    r"salvium)",
    re.IGNORECASE,
)
_MINER_FLAGS: Final = frozenset(
    listed(
        "donate-level donate-over-proxy rig-id cpu-max-threads-hint cpu-priority cpu-affinity-mask randomx-mode "
        "randomx-init "
        "randomx-1gb-pages randomx-no-numa randomx-wrmsr randomx-no-rdmsr randomx-cache-qos nicehash huge-pages-jit "
        "no-huge-pages "
        "cpu-no-yield argon2-impl cuda-loader cuda-devices cuda-bfactor-hint opencl-devices opencl-platform no-cpu asm "
        "print-time retry-pause http-access-token self-select ethi etha mport allpools allcoins lhr-tune lhr worker "
        "kernel intensity gpu-intensity cpu-threads disable-gpu disable-cpu extranonce-subscribe tls-fingerprint "
        "api-worker-id "
        "mining-threads pool-timeout farm-recheck report-hashrate hash-power dcri esm eworker worker-name rigname "
        "1gb-pages pl fidelity"
    )
)
_MINING_PORTS: Final = frozenset(
    {
        3333,
        3334,
        3335,
        3336,
        4444,
        5555,
        5556,
        6666,
        7777,
        7778,
        8888,
        9999,
        10128,
        10300,
        10343,
        14433,
        14444,
        20580,
        20535,
    }
    | {
        45700,
        45560,
        3357,
        5588,
        13531,
        18080,
        18081,
        2020,
        1314,
        4242,
        3032,
        3352,
        12020,
        10001,
        10032,
        33333,
        1010,
        6060,
    }
)
_LOGIN_TEXT: Final = lazy_pattern(
    r"mining\.(?:subscribe|authorize|submit)|eth_submit(?:Login|Work|Hashrate)|EthereumStratum/|"
    r"\bmethod[\\\"']{0,4}\s*:\s*[\\\"']{1,4}login[\\\"'][^}]{0,200}\b(?:pass|agent|rigid)[\\\"']{0,4}\s*:|"
    r"[\"']type[\"']\s*:\s*[\"']auth[\"'][^}]{0,200}[\"']site_key[\"']|"
    # What libraries call the work itself.
    r"\b(?:get_)?(?:rx|randomx|cn|cryptonight|kawpow|progpow|ghostrider|yespower|verus)_?(?:slow_)?hash\w{0,8}\s*\(|"
    r"\bhashimoto_(?:full|light)\s*\(",
    re.IGNORECASE,
)
_CONFIG_TEXT: Final = lazy_pattern(
    r"\"pools\"\s*:\s*\[[^\]]{0,2000}\"(?:url|pool_address)\"|\"(?:pool_address|wallet_address)\"\s*:.{0,400}\"(?:rig_id|"
    r"pool_password|use_tls)\"|"
    r"\"donate-level\"\s*:|\"url\"\s*:\s*\"[^\"]{3,200}\".{0,400}\"user\"\s*:\s*\"[^\"]{3,200}\".{0,400}\"(?:algo|"
    r"coin|keepalive|rig-id)\"|"
    r"^\s*wallet\s*=\s*\S{20,}.{0,400}(?:pool1|rigName|coin)\s*=",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)


_STRATUM_SETTING: Final = lazy_pattern(r"^[ \t]*\w{2,20}[ \t]*[=:][ \t]*[\"']?stratum\d?\+?\w{0,4}://", re.MULTILINE)
_WALLET_TEXT: Final = lazy_pattern(r"\b[48][1-9A-HJ-NP-Za-km-z]{94}\b|\b0x[0-9a-fA-F]{40}\b|\bbc1[a-z0-9]{38,60}\b")
_PLACE_TEXT: Final = lazy_pattern(r"[\w-]{1,63}\.[\w-]{1,63}:\d{2,5}\b")


def _options(argv: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (option in lower case, value) as most miners read them; an operand has the name ""."""
    found: list[tuple[str, str]] = []
    at = 1
    while at < len(argv):
        word = argv[at]
        at += 1
        if word[:1] != "-" or len(word) < 2:
            found.append(("", word))
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and word[1] != "-" and len(word) > 2 and word[1] in "oua" and parse_endpoint(word[2:]):
            name, value, equals = word[1], word[2:], "="
        if not equals and at < len(argv) and (argv[at][:1] != "-" or len(argv[at]) < 2):
            value = argv[at]
            at += 1
        found.append((name.lower(), value))
    return found


def miner_score(argv: tuple[str, ...]) -> int:
    """Return how much an argument vector reads like a miner's; 5 is more than any other tool's, 7 is certain.

    Args:
        argv: Arguments, the program's name first.
    """
    pool = login = algorithm = password = flags = 0
    for name, value in _options(argv):
        if _STRATUM.match(value) or _STRATUM.match(value.rpartition(",")[2]):
            pool = 5
            login = max(login, 4 if wallet_kind(value.partition("://")[2].partition("@")[0]) else 0)
        elif _SCHEME.match(value) and "@" in value:
            pool = max(pool, 3)
            login = max(login, 4 if wallet_kind(value.partition("://")[2].partition("@")[0].partition(":")[0]) else 1)
        elif name in _POOL_OPTIONS:
            pool = max(pool, _pool_points(name, value))
        if name in _LOGIN_OPTIONS and value:
            login = max(login, 4 if wallet_kind(value) else 3 if name in _WALLET_OPTIONS else 1 if name != "a" else 0)
        if name in _ALGORITHM_OPTIONS and _ALGORITHM.fullmatch(value):
            algorithm = 3
        if name in _PASSWORD_OPTIONS and (value in ("x", "X", "123", "z") or re.match(r"[cd]=", value)):
            password = 1
        if name in _MINER_FLAGS:
            flags = min(4, flags + 2)
    if not pool and not (login == 4 and (algorithm or flags)):
        return 0
    if not (login or algorithm or flags):
        return 0
    return pool + login + algorithm + password + flags


def _pool_points(name: str, value: str) -> int:
    """Return the points of one pool option: 0 where its value is no destination."""
    endpoint = parse_endpoint(value)
    if endpoint is None or endpoint.path.strip("/"):
        return 0
    if endpoint.scheme in ("http", "https"):
        return 1
    if not endpoint.port:
        return 2 if pool_domain(endpoint.host) else 0
    named = 2 if pool_domain(endpoint.host) else 0
    if name == "o" and is_address(endpoint.host):
        return 4  # elsewhere -o is an output, and outputs are not called so
    return min(4, _POOL_OPTIONS[name] + (endpoint.port in _MINING_PORTS)) + named


def _grammar(run: Invocation) -> Iterable[Hit]:
    argv = tuple(run.filled(word) for word in run.argv[:64])
    score = miner_score(argv)
    if any(word.startswith(("--randomx-", "--donate-level", "--donate-over")) for word in argv[1:]):
        score = max(score, 5)  # where the rest stands in a file
    if score >= 5 and run.name not in _OTHER_GRAMMARS:
        yield Hit(MINER_OPTIONS, severity="critical" if score >= 7 else "high")
        return
    for word in argv[1:]:
        value = word.rpartition("=")[2] if word.startswith("-") else word
        endpoint = parse_endpoint(value)
        if endpoint is None or endpoint.scheme in ("http", "https", "git", "ssh"):
            continue
        if _STRATUM.match(value) or (endpoint.port and pool_service(endpoint.host)):
            yield Hit(POOL_ADDRESS, value)
            return


# Where -o, -u, -p and -a mean something else and a destination with a port is ordinary.
_OTHER_GRAMMARS: Final = frozenset(
    {"curl", "wget", "ssh", "scp", "sftp", "mysql", "psql", "docker", "kubectl", "mount", "tcpdump"}
)


_POOL_NAME: Final = lazy_pattern(r"(?:POOL|STRATUM|MINER)\w*(?:HOST|URL|URI|ADDR|SERVER|PORT)")
_SETTING: Final = lazy_pattern(r"[A-Za-z_]\w*=\S")


def _environment(run: Invocation) -> Iterable[Hit]:
    """A wallet and a pool that a start script or an image gets as variables."""
    told = ("export", "docker", "podman", "env", "kubectl", "helm", "nomad")
    words = [part for word in run.argv[1:64] for part in word.split(",")] if run.name in told else []
    values = [*run.assigned.values(), *(word.partition("=")[2] for word in words if _SETTING.match(word))]
    pools = [value for value in values if _is_pool(value)]
    pools += [value for variable, value in run.assigned.items() if _POOL_NAME.search(variable) and value]
    fetched = run.name in SHELLS and any(each.name in ("curl", "wget") for each in run.before)
    values += run.argv[1:8] if fetched else ()
    if (pools or fetched) and any(wallet_kind(value) for value in values):
        yield Hit(MINER_OPTIONS, pools[0] if pools else "a fetched script", "high")


def _is_pool(value: str) -> bool:
    endpoint = parse_endpoint(value)
    if endpoint is None:
        return False
    plain = endpoint.scheme == "" and endpoint.port > 0 and zone_of(endpoint.host) != "loopback"
    return plain or _STRATUM.match(value) is not None


def _known(run: Invocation) -> Iterable[Hit]:
    asks = any(word in ("--version", "-V", "--help", "-h", "--list-devices") for word in run.argv[1:3])
    yield Hit(KNOWN_MINER, severity="low" if asks else None)


def _texts(run: Invocation) -> Iterable[Hit]:
    text = "\n".join((*run.argv[1:], run.stdin))
    writes = any(r.op in (">", ">>", ">|", "&>") for r in run.redirects) or run.name == "tee"
    edits = run.name in ("sed", "jq", "ed", "perl") and _WALLET_TEXT.search(text) and _PLACE_TEXT.search(text)
    speaks = (
        run.name in ("nc", "ncat", "netcat", "socat", "telnet", "openssl", "websocat")
        or run.code != ""
        or "/dev/tcp" in str(run.redirects)
    )
    if speaks and run.before:
        text = "\n".join((text, *(" ".join(each.argv[1:]) for each in run.before)))
    configures = writes and (_CONFIG_TEXT.search(text) or _STRATUM_SETTING.search(text.replace("\\n", "\n")))
    client = writes and _LOGIN_TEXT.search(text) and "import socket" in text
    if edits or configures or client or (speaks and _LOGIN_TEXT.search(text)):
        yield Hit(CONFIG)


def _node(run: Invocation) -> Iterable[Hit]:
    words = [word.lower().lstrip("-").partition("=")[0] for word in run.argv[1:]]
    if "regtest" in words or "dev" in words:
        return
    mines = {
        "start-mining",
        "mine",
        "miner.etherbase",
        "miner.threads",
        "mining-threads",
        "gen",
        "generate",
        "start_mining",
    }
    if mines & set(words) or any("miner.start" in word for word in run.argv):
        yield Hit(NODE)


_PREFETCHERS: Final = frozenset({"0x1a4", "420", "0xc0011020", "0xc0011021", "0xc0011022", "0xc001102b"})


def _prepares(run: Invocation) -> Iterable[Hit]:
    words = run.argv[1:]
    if run.name in ("modprobe", "insmod") and "msr" in words:
        yield Hit(PREPARATION, severity="medium" if any("allow_writes" in word for word in words) else "low")
    elif run.name == "wrmsr":
        # The registers of the prefetchers, on every core at once: what RandomX gains from, and nothing else does.
        yield Hit(PREPARATION, severity="high" if "-a" in words and _PREFETCHERS & set(words) else None)
    elif run.name == "sysctl" and any(re.match(r"vm\.nr_hugepages=\d", w) for w in words):
        yield Hit(PREPARATION)


def _fetches(run: Invocation) -> Iterable[Hit]:
    if run.name == "git" and not {"clone", "fetch", "pull", "submodule", "remote"} & set(run.argv[1:]):
        return
    for word in run.argv[1:]:
        if "://" not in word and run.name != "git":
            continue
        pieces = re.split(r"[/?#=&@]", word.lower())
        names = {re.sub(r"[-_.](?:v?\d|linux|win|macos|focal|static|x64|git).*$", "", piece) for piece in pieces}
        if names & _MINERS:
            yield Hit(FETCH, word)
            return


_RULES: Final = (MINER_OPTIONS, KNOWN_MINER, POOL_ADDRESS, CONFIG, NODE, PREPARATION, FETCH)

MINING: Final = Ruleset(
    rules=_RULES,
    by_name={
        **dict.fromkeys(_MINERS, (_known,)),
        **dict.fromkeys(
            ("monerod", "geth", "bitcoind", "bitcoin-cli", "zcashd", "erigon", "monero-wallet-cli"), (_node,)
        ),
        **dict.fromkeys(("modprobe", "insmod", "sysctl", "wrmsr"), (_prepares,)),
        **dict.fromkeys(("curl", "wget", "git", "aria2c", "axel"), (_fetches,)),
        **dict.fromkeys(("sed", "jq", "ed"), (_texts,)),
    },
    quiet=frozenset(listed("curl wget git sysctl modprobe aria2c sed jq ed")),
    marks=listed(
        "stratum,address=,donate-level,algo,coin,pool,wallet,-wal,eth_submit,mining,0x,bc1q,kaspa:q, -o ,-u ,--url,"
        "--server,-uri,user,msr,hugepages,xmrig,miner,login,rx_hash,randomx,slow_hash,hashimoto,site_key",
        ",",
    ),
    shapes=(_grammar, _texts, _environment),
    shape_pattern=(
        r"stratum|(?:^|\s)--?(?:o|pool|epool|server|url|uri|wal|ewal|wallet|P)[= ]?\S*?[\w.\]]:\d{2,5}(?:\s|$)|"
        r"donate-level|--randomx-|"
        r"--?(?:algo|coin|algorithm)[= ]|(?:^|\s)-a \w+ |pools\b|pool_address|url\b.{3,200}\buser\b|mining\.|"
        r"[\"']login[\\\"']|eth_submit|site_key|(?:rx|randomx|cn|slow)_hash|hashimoto_|"
        r"[48][1-9A-HJ-NP-Za-km-z]{94}|0x[0-9a-f]{40}|bc1q|kaspa:q|(?:pool|stratum|mine|xmr)[\w.-]*:\d{2,5}|(?:POOL|WALLET|ADDRESS)\w*="
    ),
)
"""What mining looks like on a command line."""
