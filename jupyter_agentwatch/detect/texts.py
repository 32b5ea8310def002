"""Texts that are written to a file or run as a program, and that say what a command line would have said.

A tunnel needs no option where a configuration or a library can be told, and a shell on a socket can be compiled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.unwrap import Invocation

__all__ = ["TEXTS"]

SOURCE: Final = Rule(
    id="shell.source",
    title="the source of a program that joins a shell to a socket is written",
    severity="high",
    technique="T1059",
    rationale="Compiled, it shows nothing of this on its command line.",
    false_positives=("an exercise in a laboratory about such shells",),
)
CONFIG: Final = Rule(
    id="tunnel.config",
    title="the configuration of a tunnel or relay is written",
    severity="high",
    technique="T1572",
    rationale="The command line of the program that will read it shows nothing.",
    false_positives=("setting up a private network that a person asked for",),
)
CODE: Final = Rule(
    id="tunnel.code",
    title="a program asks a library for a tunnel",
    severity="high",
    technique="T1572",
    rationale="Libraries forward ports as ssh and the agents of tunnel services do, without starting them.",
    false_positives=("a test of such a library",),
)

_SOCKET: Final = lazy_pattern(
    r"\bsocket\s*\(|socket\.socket|create_connection|net\.(?:Dial|Listen)|TcpStream|TcpListener|TCPSocket|"
    r"new\s+(?:\w+\.)*(?:Server)?Socket\(|TCPClient|asio::ip|net\.connect|createConnection"
)
_JOINS: Final = lazy_pattern(
    r"\bdup[23]\s*\(|\.Std(?:in|out)\s*=|from_raw_fd|Stdio::from|ProcessBuilder\s*\(|\.pipe\(\s*\w+\.stdin|"
    r"std(?:in|out)\s*=\s*(?!subprocess|PIPE|None|asyncio|open\b|sys\.)\w+(?:\.fileno\(\))?\s*[,)]|reopen\("
)
_COMPILERS: Final = frozenset({"gcc", "cc", "g++", "c++", "clang", "tcc", "rustc", "go", "tee"})
_SHELL: Final = lazy_pattern(r"[\"'](?:/(?:usr/)?bin/)?(?:ba|da|z|k|a)?sh[\"']")
_TUNNEL: Final = lazy_pattern(
    # frp and rathole
    r"^[ \t]*server_?[aA]ddr\s*=.{0,2000}^[ \t]*(?:remote_?[pP]ort|type)\s*=|^[ \t]*\[client\.services\.|"
    # stunnel; WireGuard; a hidden service
    r"^[ \t]*accept\s*=\s*\S.{0,400}^[ \t]*connect\s*=\s*\S|^[ \t]*\[Interface\].{0,800}^[ \t]*PrivateKey\s*=|"
    r"^[ \t]*HiddenServicePort\s+\d|"
    # cloudflared; ngrok; what proxies call their ways out
    r"^[ \t]*tunnel:\s*\S.{0,800}^[ \t]*ingress:|^[ \t]*authtoken:\s*\S.{0,800}^[ \t]*(?:tunnels|endpoints):|"
    r"\"outbounds\"\s*:\s*\[.{0,800}\"(?:vmess|vless|trojan|shadowsocks|socks|wireguard)\"|"
    # OpenVPN
    r"^[ \t]*dev\s+tun\w{0,8}[ \t]*$.{0,2000}^[ \t]*remote\s+\S+",
    re.MULTILINE | re.DOTALL,
)
_LIBRARY: Final = lazy_pattern(
    r"\bpyngrok\b|\bngrok\.(?:connect|forward)\s*\(|\brequest_port_forward\b|\breverse_port_forward|"
    r"forward_(?:remote|local)_(?:port|path)|\bforward_socks\b|SSHTunnelForwarder|sshtunnel\s+import\s.{0,80}\bopen_tunnel\b|sshtunnel\.open_tunnel|direct-tcpip|"
    r"\blocaltunnel\s*\(|require\(\s*['\"](?:localtunnel|@?ngrok(?:/ngrok)?|tunnel-ssh|reverse-tunnel-ssh)['\"]\s*\)|"
    r"Net::SSH.{0,200}\.forward\.(?:remote|local)|ListenTCP\(.{0,200}gossh|protocols\.portforward\b|flask_cloudflared|run_with_ngrok"
)
_LISTENS: Final = lazy_pattern(
    r"\bLocalPort\s*=>|\.listen\s*\(|createServer\s*\(|TCPServer|start_server\s*\(|\.Listen\s*\(|Listen\s*=>"
)
_DIALS: Final = lazy_pattern(
    r"IO::Socket::INET->new\(\s*['\"]|create_connection\s*\(|\.connect\s*\(|open_connection\s*\(|\.Dial\s*\(|TCPSocket\.(?:new|open)"
)
_DIALS_FAR: Final = lazy_pattern(
    r"(?:connect|connection|Dial|new|open)\s*\(\s*(?:['\"]tcp['\"]\s*,\s*)?\(?\s*"
    r"['\"](?!127\.|localhost|::1|\[::1|0\.0\.0\.0|tcp['\"]|/)[\w\[:.-]+['\"]"
    r"|\.connect\s*\(\s*\d{1,5}\s*,\s*['\"](?!127\.|localhost|::1)[\w:.-]+['\"]"
)
_COPIES: Final = lazy_pattern(
    r"send(?:all)?\(\s*\w+\.recv\(|\.pipe\(\s*\w+\s*\)\s*\.pipe\(|io\.Copy\(|copyfileobj\(|copy_stream|"
    r"\.write\(\s*(?:await\s+)?\w+\.read(?:partial)?\(|(\w+)\s*:=\s*await\s+\w+\.read\([^)]*\)\s*:\s*\w+\.write\(\s*\1|"
    r"print\s*\{?\$\w+\}?\s+\$_\s+while\s*<\$\w+>"
)
_SHELL_LINE: Final = lazy_pattern(
    r"\b(?:ba|da|z|k|a)?sh\s{1,8}-\w{0,8}i\w{0,8}[<>&|\d\s]{0,40}/dev/(?:tcp|udp)/|/dev/(?:tcp|udp)/[\w.-]{1,128}/\d{1,5}\s{1,8}0?[<>]&|"
    r"\bn(?:c|cat)\b[^\n]{0,80}\s-\w*e\s*/\S*sh\b|"
    # A page that runs what its caller asks for
    r"\b(?:system|exec|shell_exec|passthru|popen|proc_open|eval|assert)\s{0,4}\(\s{0,4}\$_(?:GET|POST|REQUEST|COOKIE)\b"
)
_DOCUMENT: Final = lazy_pattern(r"\.(?:md|rst|txt|ya?ml|json|jsonl|csv|log|html?|tex|ipynb|yar)$", re.IGNORECASE)
_DOCUMENT_ONLY: Final = lazy_pattern(r"\.(?:md|rst|txt|html?|tex|ipynb)$", re.IGNORECASE)
_BYSTANDERS: Final = frozenset(listed("git grep rg diff patch jq"))


def _written(run: Invocation) -> str:
    """Return the text that an invocation writes to a file, "" for none."""
    writes = run.name == "tee" or any(
        r.op in (">", ">>", ">|", "&>") and "/dev/" not in r.target for r in run.redirects
    )
    compiles = run.name in _COMPILERS and "-" in run.argv
    if not (writes or compiles) or run.name in _BYSTANDERS:
        return ""
    return run.stdin or "\n".join(run.argv[1:]).replace("\\n", "\n")


def _texts(run: Invocation) -> Iterable[Hit]:
    yield from _judged(run, _written(run))
    if "/dev/fd/63" in run.argv[1:] and run.name not in _BYSTANDERS:
        yield from _judged(run, _substituted(run))


def _substituted(run: Invocation) -> str:
    """Return the text that `<(echo …)` puts in the place of a file."""
    return "\n".join(" ".join((*each.argv[1:], each.stdin)) for each in run.inner)


def _compiled(run: Invocation) -> Iterable[Hit]:
    """A source that is no file: `go run <(echo …)`."""
    if "/dev/fd/63" in run.argv[1:]:
        yield from _judged(run, _substituted(run))


def _judged(run: Invocation, text: str) -> Iterable[Hit]:
    if (text and _SOCKET.search(text) and _JOINS.search(text) and _SHELL.search(text)) or (
        text and _SHELL_LINE.search(text) and not any(_DOCUMENT.search(r.target) for r in run.redirects)
    ):
        yield Hit(SOURCE, run.redirects[-1].target if run.redirects else "")
    if text and _TUNNEL.search(text) and not any(_DOCUMENT_ONLY.search(r.target) for r in run.redirects):
        yield Hit(CONFIG, run.redirects[-1].target if run.redirects else "")
    # What is written as a program is run as one in the next line, or is nobody's.
    code = run.code or (text if re.search(r"\b(?:import|require|from)\b", text) else "")
    if run.code and _LISTENS.search(code) and _DIALS.search(code) and _COPIES.search(code):
        # Who tries a server of its own dials itself, and gives back what it was sent.
        yield Hit(CODE, "a relay", None if _DIALS_FAR.search(code) else "medium")
        return
    found = _LIBRARY.search(code) if code else None
    if found and not re.search(r"\bdef test_|\bassert\b|\bexpect\(", code):
        yield Hit(CODE, found[0])


TEXTS: Final = Ruleset(
    rules=(SOURCE, CONFIG, CODE),
    by_name={**dict.fromkeys(_COMPILERS - {"tee"}, (_compiled,)), "tee": (_texts,)},
    quiet=_COMPILERS,
    marks=listed(
        "addr,interface,client.services,accept,hiddenservice,ingress,authtoken,outbounds,dev tun,dup2,stdin,"
        "$_get,$_post,$_request,$_cookie,start_server,tcpserver,"
        "ngrok,port_forward,forward,listen,localport,createserver,/dev/tcp/,/dev/udp/,tunnel,direct-tcpip,processbuilder,stdio",
        ",",
    ),
    shapes=(_texts,),
    shape_pattern=(
        r"server_?addr|client\.services|accept\s*=|\[interface\]|hiddenservice|ingress:|authtoken:|outbounds|dev\s+tun|"
        r"dup[23]|std(?:in|out|io)|processbuilder|ngrok|forward|tunnel|direct-tcpip|listen|localport|createserver|start_server|tcpserver|\$_(?:get|post|request|cookie)|"
        r"/dev/(?:tcp|udp)/|nc(?:at)? |/dev/fd/63"
    ),
)
"""What texts say that command lines would have said."""
