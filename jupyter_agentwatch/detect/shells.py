"""Reverse and bind shells: a shell's input and output joined to a socket, by whatever means a command line has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.endpoints import is_address, parse_endpoint, zone_of
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.unwrap import SHELLS, Invocation, program_name
from jupyter_agentwatch.detect.wrappers import CODE_FLAGS

__all__ = ["NETCAT", "NETCATS", "SHELL", "SOCKET_CLIENTS"]

_T: Final = "T1059.004"  # Command and Scripting Interpreter: Unix Shell

SOCKET_SHELL: Final = Rule(
    id="shell.socket_shell",
    title="a shell is put on a network connection",
    severity="critical",
    technique=_T,
    rationale="Whoever is at the other end of the connection types the commands from now on.",
    false_positives=("an exercise in a laboratory about such shells",),
)
CODE_SHELL: Final = Rule(
    id="shell.interpreter_socket_shell",
    title="a one-line program joins a socket to the running of commands",
    severity="high",
    technique="T1059",
    rationale="It opens a connection and gives what comes to a shell, or its own standard streams to the socket.",
    false_positives=("a test server written as a one-liner that starts programs",),
)
DEV_TCP: Final = Rule(
    id="shell.dev_tcp",
    title="the shell itself opens a network connection",
    severity="medium",
    technique=_T,
    rationale="/dev/tcp needs no program that could be watched; with a shell's streams on it, it is a reverse shell.",
    false_positives=("waiting until a port answers, without any data (info)",),
)
FETCHED_CODE: Final = Rule(
    id="shell.fetched_code",
    title="what comes from the network is run at once",
    severity="medium",
    technique="T1105",
    rationale="Nobody can have read it. From a bare address or a raw connection it is high.",
    false_positives=("installers of well-known tools are often fetched so",),
)
PTY_SHELL: Final = Rule(
    id="shell.pty",
    title="an interactive shell is started from a one-line program",
    severity="high",
    technique=_T,
    rationale="It turns a bare connection into a terminal, the usual second step of a reverse shell.",
    false_positives=("a test of terminal programs",),
)
HIDDEN_CODE: Final = Rule(
    id="shell.hidden_code",
    title="a command decodes text and runs it",
    severity="medium",
    technique="T1027",
    rationale="Text that is run need not be encoded except to keep it from being read.",
    false_positives=("start scripts that were packed to pass through several layers of quoting",),
)
SHELL_TOOL: Final = Rule(
    id="shell.tool",
    title="a program made for remote control is started",
    severity="high",
    technique="T1219",
    rationale="It gives somebody else a terminal on this machine.",
    false_positives=("a support session that a person asked for",),
)

NETCATS: Final = (
    "nc",
    "ncat",
    "netcat",
    "nc.openbsd",
    "nc.traditional",
    "pwncat",
    "rustcat",
    "rcat",
    "cryptcat",
    "sbd",
    "dbd",
    "ncat.openbsd",
)
"""Programs that join their standard streams to a socket."""

SOCKET_CLIENTS: Final = frozenset(
    {*NETCATS, "telnet", "socat", "openssl", "gnutls-cli", "websocat", "busybox-nc", "s_client", "torify"}
)
"""Programs whose standard streams are, or can be, a socket."""

NETCAT: Final = Grammar(
    valued="ceGgIiMmOPpqsTVWwXx",
    long_valued=frozenset(
        listed(
            "exec sh-exec lua-exec source source-port proxy proxy-type proxy-auth wait idle-timeout max-conns delay "
            "ssl-cert "
            "ssl-key allow allowfile deny denyfile output hex-dump"
        )
    ),
    long_flags=frozenset(
        {"listen", "keep-open", "udp", "ssl", "verbose", "nodns", "send-only", "recv-only", "broker", "zero"}
    ),
)
"""Options of the netcats; where they disagree (-c, -o, -t) the reading that hides nothing is taken."""

_SHELL_PATH: Final = (
    r"(?:/(?:usr/(?:local/)?)?bin/|\b)(?:ba|da|z|k|a|mk|c|tc|fi|pdk)?sh\b|\bcmd\.exe\b|\bpowershell\b|\bpwsh\b"
)
_IS_SHELL: Final = lazy_pattern(_SHELL_PATH)
_NETWORK_CODE: Final = lazy_pattern(
    r"\(\s*['\"]socket['\"]\s*\)|gen_tcp|\bconnectTo\b|Network\.Socket|\bsocket\s+[\w$.]+\s+\d|"
    r"socket\.(?:socket|create_connection|create_server|tcp)\b|\bsocket\s*\(|from socket import|TCPSocket|TCPServer|"
    r"UDPSocket|"
    r"IO::Socket|use Socket|\bp?fsockopen\b|stream_socket_(?:client|server)|socket_create|"
    r"net\.(?:connect|createConnection|createServer|Socket|Dial|Listen)|require\(\s*['\"](?:net|tls|dgram|"
    r"socket(?:\.core)?)['\"]|"
    r"/inet\d?/(?:tcp|udp)/|open_connection|start_server|TCPClient|Net\.Sockets|java\.net|Socket\(|tls\.connect|"
    r"socket\.connect|"
    r"Bun\.connect|socketConnection\(|using\s+Sockets|Deno\.connect|TcpStream|\bsocket\s+-?\w|make_socket|socat|socketserver|paramiko",
)
_SPAWNING_CODE: Final = lazy_pattern(
    r"dup2|pty\.spawn|subprocess|os\.system|popen|execl?v?p?e?\b|posix_spawn|spawn|child_process|shell_exec|"
    r"\bsystem\b|passthru|os[.:]cmd|sys\.process|runProcess|createProcess|\[\s?exec\s|catch\s?\{\s?exec|Deno\.(?:Command|run)|"
    r"proc_open|os\.execute|getline|\biex\b|Invoke-Expression|ProcessBuilder|getRuntime|IO\.popen|\bfork\b|reopen|"
    r"`[^`]{1,80}`|"
    r"exec\s*\{|open\s*\(\s*STD(?:IN|OUT)|STDIN->fdopen|fdopen",
    re.IGNORECASE,
)
_REMOTE_COMMAND: Final = lazy_pattern(
    r"(?:popen|system|check_output|getoutput|exec|execSync|run|shell_exec|eval)\s*\(?\s*(?:\w+[._]){0,3}"
    r"(?:recv|readLines|read|gets|fgets|receive|data|cmd|command|buf|line|\$\w+|[a-z]\b)|`\s*(?:#\{|\$)",
    re.IGNORECASE,
)
_SPAWNS: Final = r"(?:popen|system|check_output|getoutput|getstatusoutput|exec|execSync|run|call|shell_exec|eval|Popen)"
_WEB_SERVER: Final = lazy_pattern(
    r"http\.server|HTTPServer|Flask\s*\(|FastAPI\s*\(|createServer|Sinatra|aiohttp\.web|bottle"
)
_WEB_COMMAND: Final = lazy_pattern(
    _SPAWNS + r"\s{0,4}\(\s{0,4}\[?\s{0,4}(?:\w+\.){0,3}(?:rfile\.read|"
    r"request\.(?:args|form|data|json|values|get_data|query|body)|"
    r"req\.(?:query|body|params|url)|form\[|args\[)"
)
_PAGE_COMMAND: Final = lazy_pattern(_SPAWNS + r"\s{0,4}\(\s{0,4}\$_(?:GET|POST|REQUEST|COOKIE)\b")
_ANSWER: Final = lazy_pattern(
    r"\b(\w{1,40})\s{0,4}=\s{0,4}(?:await\s{1,4})?(?:\w+\.){0,3}(?:requests\.get|urlopen|httpx\.get|fetch|file_get_contents|"
    r"HTTP\.get|Net::HTTP\.get)\s{0,4}\("
)
_SPAWNED: Final = lazy_pattern(_SPAWNS + r"\s{0,4}\(\s{0,4}\[?\s{0,4}(\w{1,40})")
_PTY: Final = lazy_pattern(
    r"pty\.spawn\s*\(\s*\[?['\"][^'\"]*sh['\"]|\bsetsid\b.{0,200}\bexec\b.{0,200}sh|spawn\s+/bin/(?:ba)?sh.{0,200}interact",
    re.DOTALL,
)
_FETCHED: Final = lazy_pattern(
    r"\b(?:exec|eval|compile|Function|instance_eval|load_string)\s*\(?[^;\n]{0,120}"
    r"(?:urlopen|requests\.get|URI\.open|open-uri|file_get_contents\s*\(\s*['\"]https?|LWP|HTTP::Tiny|\bget\s*\(?['\"]https?|"
    r"Net::HTTP|fetch\s*\()|fetch\([^;\n]{0,160}\.then\(\s*eval\b"
)
_FETCHES: Final = lazy_pattern(r"\$\((?:\S{0,64}/)?(?:curl|wget|nc|ncat|netcat|dig) ([^)]*)")
_DEV_NET: Final = lazy_pattern(r"/dev/(?:tcp|udp)/([^/\s]+)/([^/\s;&|]+)")


def _netcat(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, NETCAT)
    program = options.last("e", "exec", "sh-exec", "lua-exec", "c")
    if program and (options.has("e", "exec", "sh-exec", "lua-exec") or _IS_SHELL.search(program)):
        yield Hit(SOCKET_SHELL)
        return
    if program_name(options.last("s", "shell")) in SHELLS:  # elsewhere -s is an address, and no address is a shell
        yield Hit(SOCKET_SHELL)
        return
    yield from _shell_before(run)


def _shell_before(run: Invocation) -> Iterable[Hit]:
    """A shell earlier in the pipeline sends its output to this connection."""
    if any(_reads_commands(each) for each in run.before):
        yield Hit(SOCKET_SHELL, " | ".join(" ".join(each.argv) for each in (*run.before[-3:], run)))


def _reads_commands(run: Invocation) -> bool:
    """Whether a shell takes its commands from standard input."""
    if run.name not in SHELLS:
        return False
    words = run.argv[1:]
    return not any("c" in word.lstrip("-") for word in words if word[:1] == "-" and word[1:2] != "-") and all(
        word[:1] == "-" or word == "/dev/stdin" for word in words
    )


def _shell(run: Invocation) -> Iterable[Hit]:
    """A shell whose own input is a connection, by pipeline, redirection or substitution."""
    if not (run.redirects or run.before or run.inner):
        return
    if _DEV_NET.search(" ".join(r.target for r in run.redirects)):
        yield Hit(SOCKET_SHELL, _with_redirects(run))
        return
    if _reads_commands(run):
        for each in run.before:
            if _is_connection(each) and not _is_local(each):
                yield Hit(SOCKET_SHELL, " | ".join(" ".join(one.argv) for one in (each, run)))
                return
        if any(r.op == "<&" or (r.op == ">&" and r.target.isdigit() and int(r.target) > 2) for r in run.redirects):
            yield Hit(SOCKET_SHELL, _with_redirects(run), "high")
            return
    yield from _runs_fetched(run)


def _is_connection(run: Invocation) -> bool:
    return run.name in SOCKET_CLIENTS and (run.name != "openssl" or "s_client" in run.argv)


def _is_local(run: Invocation) -> bool:
    return any(zone_of(word) == "loopback" for word in run.argv[1:] if word)


def _with_redirects(run: Invocation) -> str:
    return " ".join([*run.argv, *(f"{r.op}{r.target}" for r in run.redirects)])


def _runs_fetched(run: Invocation) -> Iterable[Hit]:
    """An interpreter that reads from curl, wget or decoded text."""
    takes_stdin = _reads_commands(run) or (run.name in CODE_FLAGS and all(w in ("-", "-u") for w in run.argv[1:]))
    sources = list(run.before) if takes_stdin else []
    if "/dev/fd/63" in run.argv[1:4] or run.name in ("eval", ".", "source") or (run.inner and "-c" in run.argv):
        sources += run.inner
    for each in sources:
        if each.name in ("curl", "wget", "fetch", "aria2c"):
            words = [word for word in each.argv[1:] if not word.startswith("-")]
            urls = [parse_endpoint(word if "://" in word else f"http://{word}") for word in words]
            bare = any(url and re.fullmatch(r"[\d.]+|[0-9a-f:]+", url.host) and url.zone == "outside" for url in urls)
            again = (
                "" in run.loops or "watch" in run.wrappers
            )  # `while … curl … | sh`: orders that are asked for again and again
            yield Hit(FETCHED_CODE, " ".join(each.argv), "high" if bare or again else None)
            return
        if each.name in ("nc", "ncat", "netcat", "dig", "nslookup") and not _is_local(each):
            yield Hit(FETCHED_CODE, " ".join(each.argv), "high")
            return
        if each.name in ("base64", "base32", "xxd") or (each.name == "openssl" and "-base64" in each.argv):
            yield Hit(HIDDEN_CODE, " ".join(each.argv))
            return


def _becomes_fetched(run: Invocation) -> Iterable[Hit]:
    """The command itself is what a client printed: `$(curl …)`, and `eval "$c"` where `c=$(curl …)`."""
    fetches = _FETCHES.match(run.argv[0])
    if fetches:
        found = [endpoint for word in fetches[1].split() if (endpoint := parse_endpoint(word.strip("'\"")))]
        if not any(endpoint.zone == "loopback" for endpoint in found):
            yield Hit(FETCHED_CODE, fetches[0], "high" if "" in run.loops else None)


def _dev_tcp(run: Invocation) -> Iterable[Hit]:
    """The shell's own network files in a redirection of any command."""
    if run.name in SHELLS:
        return
    targets = [r for r in run.redirects if _DEV_NET.search(r.target)]
    if not targets:
        return
    if run.name == "exec":
        duplex = any(r.op in ("<>", "<") or r.fd in (0, 1, 2) for r in targets)
        yield Hit(DEV_TCP, _with_redirects(run), "high" if duplex else None)
    elif len(run.argv) > 1 and run.argv[0] not in ("echo", ":", "true", "printf", "cat", "("):
        yield Hit(DEV_TCP, _with_redirects(run), "high")
    else:
        yield Hit(DEV_TCP, _with_redirects(run), "info" if run.argv[0] in ("", ":", "true", "echo") else None)


def _ztcp(run: Invocation) -> Iterable[Hit]:
    """Zsh has a network module of its own."""
    if any("." in word or word.isdigit() for word in run.argv[1:]):
        yield Hit(DEV_TCP, severity="high")


def _exec_shell(run: Invocation) -> Iterable[Hit]:
    """`exec sh <&3 >&3` and commands read from a descriptor."""
    variable = run.argv[0].startswith("${") and any(
        r.op == ">&" and r.target.isdigit() and int(r.target) > 2 for r in run.redirects
    )
    if variable:
        yield Hit(SOCKET_SHELL, _with_redirects(run), "high")


def _code(run: Invocation) -> Iterable[Hit]:
    code = run.code
    if not code:
        if run.name in CODE_FLAGS:
            yield from _runs_fetched(run)
        return
    if _NETWORK_CODE.search(code) and _SPAWNING_CODE.search(code):
        coprocess = re.search(r"\|&\s*getline\s+(\w+).*?\b\1\b\s*\|&?\s*getline", code, re.DOTALL)
        puts_streams = coprocess or re.search(r"dup2|fdopen|STDIN|reopen|<&%?d?|>&", code)
        if puts_streams or _IS_SHELL.search(code) or _REMOTE_COMMAND.search(code):
            yield Hit(CODE_SHELL)
            return
    if (_WEB_SERVER.search(code) and _WEB_COMMAND.search(code)) or _PAGE_COMMAND.search(code):
        yield Hit(CODE_SHELL, "a web page that runs what it is asked")
        return
    if _PTY.search(code):
        yield Hit(PTY_SHELL)
    orders = set(_ANSWER.findall(code)) & set(_SPAWNED.findall(code))
    if orders:
        yield Hit(FETCHED_CODE, min(orders), "high" if re.search(r"\bwhile\b|\bsleep\b", code) else None)
    fetched = _FETCHED.search(code)
    if fetched:
        hosts = re.findall(r"https?://(\[[0-9a-fA-F:]+\]|[\w.-]+)", code)
        bare = any(is_address(host.strip("[]")) and zone_of(host.strip("[]")) == "outside" for host in hosts)
        yield Hit(FETCHED_CODE, fetched[0], "high" if bare else None)


def _socat(run: Invocation) -> Iterable[Hit]:
    kinds = [word.partition(":")[0].lower() for word in run.argv[1:] if ":" in word]
    runs = [word for word in run.argv[1:] if re.match(r"(?:exec|system|shell):", word, re.IGNORECASE)]
    network = any(re.match(r"(?:tcp|udp|openssl|ssl|sctp|dtls|socks|proxy|vsock)", kind) for kind in kinds)
    if network and runs:
        is_shell = any(_IS_SHELL.search(word) for word in runs)
        yield Hit(SOCKET_SHELL, severity="critical" if is_shell else "high")
    yield from _shell_before(run)


def _client(run: Invocation) -> Iterable[Hit]:
    yield from _shell_before(run)


def _remote_control(run: Invocation) -> Iterable[Hit]:
    words = set(run.argv[1:])
    asks = bool(words & {"--version", "--help", "-V", "-h"})
    if run.name in (
        "pwncat",
        "pwncat-cs",
        "gsocket",
        "gs-netcat",
        "tmate",
        "sshx",
        "ttyd",
        "gotty",
        "wetty",
        "teleconsole",
        "upterm",
    ):
        yield Hit(SHELL_TOOL, severity="low" if asks else None)
    elif run.name == "xterm" and any(word.startswith("-display") for word in words):
        yield Hit(SOCKET_SHELL, severity="high")
    elif run.name in ("msfvenom", "msfconsole", "sliver", "sliver-client", "merlin", "villain", "hoaxshell"):
        yield Hit(SHELL_TOOL)


def _inetd(run: Invocation) -> Iterable[Hit]:
    """Servers that start a program for each connection."""
    text = " ".join(run.argv[1:])
    if run.name in (
        "tcpserver",
        "ucspi-tcp",
        "faucet",
        "websocketd",
        "systemd-socket-activate",
        "inetd",
        "xinetd",
    ) and (_IS_SHELL.search(text) or run.name == "faucet"):
        yield Hit(SOCKET_SHELL)


_CODE_NAMES: Final = tuple(CODE_FLAGS)
_REMOTE: Final = (
    *("pwncat-cs", "gsocket", "gs-netcat", "tmate", "sshx", "ttyd", "gotty", "wetty", "teleconsole", "upterm", "xterm"),
    *("msfvenom", "msfconsole", "sliver", "sliver-client", "merlin", "villain", "hoaxshell"),
)

SHELL: Final = Ruleset(
    rules=(SOCKET_SHELL, CODE_SHELL, DEV_TCP, FETCHED_CODE, PTY_SHELL, HIDDEN_CODE, SHELL_TOOL),
    by_name={
        **dict.fromkeys(NETCATS, (_netcat,)),
        **dict.fromkeys(SHELLS, (_shell,)),
        **dict.fromkeys(_CODE_NAMES, (_code,)),
        **dict.fromkeys(("telnet", "openssl", "gnutls-cli", "websocat"), (_client,)),
        **dict.fromkeys(_REMOTE, (_remote_control,)),
        **dict.fromkeys(("tcpserver", "faucet", "websocketd", "systemd-socket-activate"), (_inetd,)),
        **dict.fromkeys(("eval", "source", "."), (_runs_fetched,)),
        "socat": (_socat,),
        "ztcp": (_ztcp,),
    },
    quiet=frozenset({*SHELLS, *_CODE_NAMES, *listed("source . openssl")}),
    marks=listed(
        "gen_tcp,connectto,$_get,$_post,$_request,$_cookie,"
        "http.server,httpserver,flask,requests.get,httpx.get,deno.,"
        "/dev/tcp/,/dev/udp/,urlopen,exec(,eval,socket,pty,/inet,fsockopen,net.,'net',(net),s_client,<(,>&,<&,"
        "|>,| >,|2>,| 2>,| sh,|sh,"
        "| bash,|bash,"
        "$(curl,$(wget,$(nc,$(dig,`curl,`wget,"
        "| sudo,| python,|python,| perl,| zsh,| dash,bin/sh,bin/bash,subprocess,os.system,popen",
        ",",
    ),
    shapes=(_dev_tcp, _exec_shell, _becomes_fetched),
    shape_pattern=r"/dev/(?:tcp|udp)/|\$\{\w+\}.*>&\s?\d|^\$\((?:\S{0,64}/)?(?:curl|wget|nc|ncat|netcat|dig) ",
)
"""What shells on sockets look like on a command line."""


def _names_place(words: list[str]) -> bool:
    """Return whether the last two operands are a host, or a word for listening, and a port."""
    if len(words) < 2 or not words[-1].isdigit() or not 0 < int(words[-1]) < 65536:
        return False
    return words[-2] in ("listen", "connect") or re.search(r"\w[.:]\w", words[-2]) is not None


def renamed_netcat(run: Invocation) -> bool:
    """Return whether an unknown program is told to run a shell for a connection, as only netcats are."""
    options = parse(run.argv, NETCAT)
    program = options.last("e", "exec", "sh-exec")
    if not program or program_name(program.split(" ")[0]) not in SHELLS:
        return program_name(options.last("s", "shell")) in SHELLS and _names_place(options.operands)
    return options.has("l", "p") or any(word.isdigit() and 0 < int(word) < 65536 for word in options.operands[-1:])
