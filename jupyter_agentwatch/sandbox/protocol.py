"""Names a flow's protocol from the first bytes of each direction, so that a refused one is stopped before it leaves.

Pure: every byte here is hostile, so work is linear in what is held and nothing raises. What cannot be told from a
plaintext start, Stratum V2 (a Noise handshake looks like noise) or anything inside TLS, is not named here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from jupyter_agentwatch.detect.payment_requests import Payment, find_payment
from jupyter_agentwatch.policy.names import normal_address, normal_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["UNKNOWN", "Naming", "name_protocol"]

UNKNOWN: Final = "unknown"
"""The name of what no grammar here describes."""

_MAX_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Naming:
    """What the first bytes say.

    Attributes:
        protocol: "tls", "http", "websocket", "ssh", "smtp", "ftp", "dns" (over TCP), "stratum", "socks4", "socks5"
            or "unknown".
        server_name: TLS SNI, HTTP Host, or the target of a CONNECT or absolute-form request: lower case, without
            port, an address or a valid host name; "" where there is none.
        payment: What an HTTP request in plaintext pays, as far as it has come; None for nothing.
        obscured: The head names two servers or an invalid one, or had not named any when the time or the bytes that
            it was given ran out: nothing may be concluded from `server_name`.
    """

    protocol: str
    server_name: str = ""
    obscured: bool = False
    payment: Payment | None = None


@dataclass(frozen=True, slots=True)
class _Wait:
    """A grammar needs more bytes; `naming` is what holds if none come."""

    naming: Naming = Naming(UNKNOWN)


_MORE: Final = _Wait()
_HIDDEN: Final = _Wait(Naming(UNKNOWN, obscured=True))

_Answer = Naming | _Wait | None
"""What one grammar says; None: these bytes are not its own."""


def name_protocol(first_out: bytes, first_in: bytes, *, final: bool) -> Naming | None:
    """Name the protocol of a flow.

    What the client sent decides; what the server sent counts where the client has said nothing that has a grammar of
    its own (SSH, SMTP and FTP servers speak first).

    Args:
        first_out: Everything that the sandbox has sent so far, from its first byte; at most 64 KiB are looked at.
        first_in: The same of the other side.
        final: No more bytes will be waited for.

    Returns:
        None where more bytes can change the answer and `final` is false. An unfinished TLS or HTTP head is "unknown"
        and obscured when `final`.
    """
    first_out, first_in = first_out[:_MAX_BYTES], first_in[:_MAX_BYTES]
    if first_out:
        naming = _first_answer(_CLIENT, first_out, final=final)
        if naming == Naming(UNKNOWN) and _COMMAND.match(first_out):
            greeting = _greeting(first_in)
            return greeting if isinstance(greeting, Naming) else naming
        payment = find_payment(first_out) if naming is not None and naming.protocol == "http" else None
        return replace(naming, payment=payment) if naming is not None and payment is not None else naming
    if first_in:
        return _first_answer(_SERVER, first_in, final=final)
    return Naming(UNKNOWN) if final else None


def _first_answer(grammars: tuple[Callable[[bytes], _Answer], ...], data: bytes, *, final: bool) -> Naming | None:
    waits: list[Naming] = []
    for grammar in grammars:
        answer = grammar(data)
        if isinstance(answer, Naming):
            return answer
        if answer is not None:
            waits.append(answer.naming)
    if waits and not final:
        return None
    return next((naming for naming in waits if naming != Naming(UNKNOWN)), Naming(UNKNOWN))


# --- TLS (RFC 8446 §4.1.2, §5.1; RFC 6066 §3) ------------------------------------------------------------------------

_HANDSHAKE_RECORD: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0


class _MalformedError(Exception):
    """A length points outside of what it describes."""


class _Cursor:
    """Reads length-prefixed fields; a length that does not fit raises `_MalformedError`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise _MalformedError
        self._at += count
        return part

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        return self.take(self.number(width))

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._data)


def _tls(data: bytes) -> _Answer:
    hello, is_ours = _client_hello(data)
    if not is_ours:
        return None
    if hello is None:
        return _HIDDEN
    try:
        names = _sni(hello)
    except _MalformedError:
        return Naming(UNKNOWN, obscured=True)
    if len(names) > 1:
        return Naming("tls", obscured=True)
    name = normal_name(names[0].decode("ascii", "replace")) if names else ""
    return Naming("tls", name or "", obscured=name is None)


def _client_hello(data: bytes) -> tuple[bytes | None, bool]:
    """Join the records of a ClientHello: its body once it is whole, and whether the bytes can be one at all."""
    joined = bytearray()
    at = 0
    while at < len(data):
        head = data[at : at + 5]
        length = int.from_bytes(head[3:5], "big")
        is_record = head[0] == _HANDSHAKE_RECORD and head[1:2] in (b"", b"\x03") and head[2:3] <= b"\x04"
        if not is_record or (len(head) == 5 and not 0 < length <= 1 << 14):
            return None, False
        if len(head) < 5:
            break
        joined += data[at + 5 : at + 5 + length]
        at += 5 + length
        if joined and joined[0] != _CLIENT_HELLO:
            return None, False
        size = int.from_bytes(joined[1:4], "big")
        if len(joined) >= 4 and len(joined) - 4 >= size:
            return bytes(joined[4 : 4 + size]), True
    return None, True


def _sni(hello: bytes) -> list[bytes]:
    cursor = _Cursor(hello)
    if cursor.take(1) != b"\x03":
        raise _MalformedError
    cursor.take(1 + 32)
    cursor.vector(1)  # session id
    cursor.vector(2)  # cipher suites
    cursor.vector(1)  # compression methods
    names: list[bytes] = []
    extensions = _Cursor(b"" if cursor.is_at_end else cursor.vector(2))
    if not cursor.is_at_end:
        raise _MalformedError
    while not extensions.is_at_end:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind != _SERVER_NAME:
            continue
        entries = _Cursor(_Cursor(body).vector(2))
        while not entries.is_at_end:
            is_host = entries.number(1) == 0
            name = entries.vector(2)
            names += [name] if is_host else []
    return names


# --- HTTP/1 and WebSocket (RFC 9112, RFC 6455), HTTP/2 preface (RFC 9113 §3.4) ---------------------------------------

_H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_VERSION: Final = re.compile(rb"HTTP/[0-9.]{1,8}", re.IGNORECASE)
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_ABSOLUTE: Final = re.compile(rb"[a-z][a-z0-9+.-]{0,31}://([^/?#]*)", re.IGNORECASE)


def _http(data: bytes) -> _Answer:
    # Servers skip empty lines before a request (RFC 9112 §2.2), so they may not hide it.
    data = data.lstrip(b"\r\n")
    if _H2_PREFACE.startswith(data[: len(_H2_PREFACE)]):
        return Naming("http") if len(data) >= len(_H2_PREFACE) else _MORE
    line, newline, _ = data.partition(b"\n")
    # Lenient servers split at any white space, so the line is not held against the exact grammar.
    words = line.split()
    if not words or not _METHOD.fullmatch(words[0]):
        return None
    if not newline:
        return _HIDDEN if len(words) > 1 and _is_target(words[1]) else _MORE
    if len(words) < 3 or not _VERSION.fullmatch(words[-1]):
        is_simple = len(words) == 2 and words[0].upper() == b"GET" and words[1].startswith(b"/")
        return Naming("http") if is_simple else None
    end = _HEAD_END.search(data, len(line))
    fields = data[len(line) + 1 : end.start() + 1 if end else data.rfind(b"\n") + 1]
    naming = _named_request(words, fields, is_whole=end is not None)
    return naming if end else _Wait(naming)


def _is_target(word: bytes) -> bool:
    return word[:1] in (b"/", b"*") or _ABSOLUTE.match(word) is not None


def _named_request(words: list[bytes], fields: bytes, *, is_whole: bool) -> Naming:
    hosts, is_websocket = _read_fields(fields)
    absolute = _ABSOLUTE.match(words[1])
    if words[0].upper() == b"CONNECT":
        hosts.append(words[1])
    elif absolute:
        hosts.append(absolute[1].rpartition(b"@")[2])
    names = {_host(host) for host in hosts if host}
    name = next(iter(names)) if len(names) == 1 else ""
    obscured = len(names) > 1 or name is None or len(words) != 3 or (not is_whole and not names)
    protocol = "websocket" if is_websocket else "http" if is_whole else UNKNOWN
    return Naming(protocol, name or "", obscured=obscured)


def _read_fields(fields: bytes) -> tuple[list[bytes], bool]:
    """Return every Host value, and whether an upgrade to WebSocket is asked for."""
    hosts: list[bytes] = []
    is_websocket = False
    name = b""
    for line in fields.split(b"\n"):
        value = line
        if line[:1] not in (b" ", b"\t"):  # else a folded line, which goes on with the field before it
            name, _, value = line.partition(b":")
            name = name.strip().lower()
        if name == b"host":
            hosts.append(value.strip())
        elif name == b"upgrade":
            is_websocket = is_websocket or b"websocket" in value.lower()
    return hosts, is_websocket


def _host(authority: bytes) -> str | None:
    text = authority.decode("ascii", "replace")
    if text.startswith("["):
        literal, bracket, port = text[1:].partition("]")
        address = normal_address(literal) if bracket else None
        return str(address) if address and re.fullmatch(r"(:[0-9]*)?", port) else None
    name, _, port = text.partition(":")
    if not re.fullmatch(r"[0-9]*", port):
        return None
    address = normal_address(name)
    return str(address) if address else normal_name(name)


# --- SSH (RFC 4253 §4.2), SMTP (RFC 5321), FTP (RFC 959) -------------------------------------------------------------

_SSH: Final = (b"SSH-2.0-", b"SSH-1.")
_SSH_LINE: Final = re.compile(rb"^SSH-(?:2\.0-|1\.)", re.MULTILINE)
_TEXT: Final = re.compile(rb"[\t\r\n -~\x80-\xff]*\Z")
_SMTP_HELLO: Final = re.compile(rb"(?:EHLO|HELO|LHLO)(?: [^\n]*)?\n", re.IGNORECASE)
_COMMAND: Final = re.compile(rb"[A-Za-z]{3,8}(?: [^\n]*)?\r?\n")
_GREETING: Final = re.compile(rb"220[ -][^\n]*\n")


def _ssh(data: bytes) -> _Answer:
    if data.startswith(_SSH):
        return Naming("ssh")
    return _MORE if any(prefix.startswith(data) for prefix in _SSH) else None


def _ssh_server(data: bytes) -> _Answer:
    # A server may send other lines of text before its version.
    if _SSH_LINE.search(data):
        return Naming("ssh")
    return _MORE if _TEXT.match(data) else None


def _smtp_client(data: bytes) -> _Answer:
    if _SMTP_HELLO.match(data):
        return Naming("smtp")
    verb = data[:5].upper()
    is_start = b"\n" not in data and any(word.startswith(verb) for word in (b"EHLO ", b"HELO ", b"LHLO "))
    return _MORE if is_start else None


def _greeting(data: bytes) -> _Answer:
    line = _GREETING.match(data)
    if line is None:
        is_start = b"\n" not in data and (data[:4] in (b"220 ", b"220-") or b"220 ".startswith(data))
        return _MORE if is_start else None
    # 220 opens both protocols, and only by custom does the line say which: one that does not stays unnamed.
    text = data.upper()
    for word, protocol in ((b"SMTP", "smtp"), (b"FTP", "ftp")):
        if word in text:
            return Naming(protocol)
    return _MORE


# --- SOCKS 4, 4a (the protocol memos), 5 (RFC 1928) and DNS over TCP (RFC 1035 §4.2.2) -------------------------------


def _socks5(data: bytes) -> _Answer:
    if data[0] != 5 or data[1:2] == b"\0":
        return None
    size = 2 + data[1] if len(data) > 1 else 3
    methods = data[2:size]
    if len(set(methods)) != len(methods) or b"\xff" in methods:
        return None
    if len(data) < size:
        return _MORE
    # A client may send what follows without waiting: a request, or a user name.
    rest = data[size:]
    is_request = rest[:1] == b"\x05" and rest[1:2] in (b"", b"\1", b"\2", b"\3") and rest[2:3] in (b"", b"\0")
    return Naming("socks5") if not rest or is_request or rest[:1] == b"\x01" else None


def _socks4(data: bytes) -> _Answer:
    if data[0] != 4 or data[1:2] not in (b"", b"\1", b"\2"):
        return None
    if len(data) < 9:
        return _MORE
    has_name = data[4:7] == b"\0\0\0" and data[7] != 0
    texts = data[8:].split(b"\0")
    wanted = 2 if has_name else 1
    if any(len(text) > 255 for text in texts[:wanted]) or not all(map(_TEXT.match, texts[:wanted])):
        return None
    if len(texts) <= wanted:
        return _MORE
    # Nothing follows a request before its answer; what has the right start and goes on is something else.
    return Naming("socks4") if len(texts) == wanted + 1 and not texts[-1] else None


def _dns(data: bytes) -> _Answer:
    length = int.from_bytes(data[:2], "big") if len(data) > 1 else 17
    # 17 bytes are the shortest query. Longer than 1,024 is none, and would read as SOCKS 4 or 5.
    if data[0] > 4 or not 17 <= length <= 1024:
        return None
    # A query with opcode 0; then one question, no answer, no authority.
    flags, counts = data[4:6], data[6:13]
    if flags[:1] > b"\x07" or counts != b"\0\1\0\0\0\0\0"[: len(counts)]:
        return None
    if len(data) < 2 + length:
        return _MORE
    return Naming("dns") if _is_question(data[14 : 2 + length]) else None


def _is_question(data: bytes) -> bool:
    at = 0
    while at < len(data) and 0 < data[at] <= 63:
        at += 1 + data[at]
    return at < 255 and data[at : at + 1] == b"\0" and len(data) >= at + 5


# --- Stratum ---------------------------------------------------------------------------------------------------------

# Pools' parsers differ in what they forgive (duplicate keys, key case, trailing commas, several lines, batches), so the
# strings are looked at instead of a parsed document. Each opening quote ends somewhere: the scan is linear.
_LITERAL: Final = re.compile(rb'"((?:[^"\\]++|\\.|\\\Z)*+)(?:(")([ \t\r\n]*+:)?|\Z)', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(?:u00([0-9a-fA-F]{2})|(.))", re.DOTALL)
_JSON_LINE: Final = re.compile(rb"^[ \t\0]*+[\[{]", re.MULTILINE)
_PADDING: Final = b" \t\r\n\0\xef\xbb\xbf"
_MAX_LITERAL: Final = 512
_METHODS: Final = (
    *(b"mining.", b"ethereumstratum/", b"eth_submitlogin", b"eth_submitwork", b"eth_submithashrate", b"eth_getwork"),
    *(b"ckb_submitlogin", b"ckb_submitwork", b"ckb_getwork"),
)
# CryptoNote's methods have everyday names; their parameters do not.
_CRYPTONOTE: Final = (
    (b"login", frozenset({b"login"}), frozenset({b"pass", b"agent", b"algo", b"rigid"})),
    (b"submit", frozenset({b"job_id", b"nonce"}), frozenset({b"result", b"id"})),
    (b"job", frozenset({b"job_id", b"blob"}), frozenset({b"target", b"seed_hash"})),
)


def _stratum(data: bytes) -> _Answer:
    if not data.lstrip(_PADDING):
        return _MORE
    if _JSON_LINE.search(data.lstrip(_PADDING)) is None:
        return None
    methods, keys = _json_strings(data)
    if any(method.startswith(_METHODS) for method in methods):
        return Naming("stratum")
    for method, all_of, one_of in _CRYPTONOTE:
        if method in methods and all_of <= keys and one_of & keys:
            return Naming("stratum")
    return None if data.rstrip(b" \t\r\0").endswith(b"\n") else _MORE


def _json_strings(data: bytes) -> tuple[set[bytes], set[bytes]]:
    """Return the values of every "method" (and of what names the dialect), and every key; lower case, unescaped."""
    methods: set[bytes] = set()
    keys: set[bytes] = set()
    key = b""
    for literal in _LITERAL.finditer(data):
        raw, closed, colon = literal.groups()
        if not closed or len(raw) > _MAX_LITERAL:
            continue
        text = (_ESCAPE.sub(_unescaped, raw) if b"\\" in raw else raw).lower()
        if colon:
            key = text
            keys.add(text)
        elif key == b"method" or text.startswith(b"ethereumstratum/"):
            methods.add(text)
    return methods, keys


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape[1].decode()) if escape[1] else escape[2]


_CLIENT: Final = (_tls, _http, _ssh, _stratum, _socks5, _socks4, _dns, _smtp_client)
_SERVER: Final = (_greeting, _ssh_server, _stratum, _socks5, _socks4)
