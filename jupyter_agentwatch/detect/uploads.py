"""Exfiltration over the web: what curl, wget, HTTPie and one-line programs are told to send."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, Options, parse
from jupyter_agentwatch.detect.endpoints import Endpoint, is_address, parse_endpoint, zone_of
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.leaving import (
    DROPS,
    ENCODING,
    GATHERING,
    SECRET,
    TELLING,
    UPLOAD,
    names_before,
    sources_of,
    worth,
)
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit
from jupyter_agentwatch.detect.sensitive import is_archive, is_sensitive
from jupyter_agentwatch.detect.unwrap import Invocation

__all__ = ["code_sends", "curl_sends", "httpie_sends", "wget_sends"]

_CURL: Final = Grammar(
    valued="AbcCdDeEFhHKmoPQrTtuUwxXyYz",
    long_valued=frozenset(
        listed(
            "data data-raw data-binary data-ascii data-urlencode form form-string upload-file user header request "
            "output proxy cookie "
            "url json max-time connect-timeout user-agent referer cert key cacert write-out retry resolve config "
            "range interface "
            "doh-url url-query"
        )
    ),
)
_WGET: Final = Grammar(
    valued="oaeitTOUPlARDIXQBw",
    long_valued=frozenset(
        listed(
            "post-file body-file post-data body-data method header user password output-document directory-prefix "
            "tries timeout user-agent"
        )
    ),
)
_DATA_FILE: Final = lazy_pattern(r"\.(?:json|ya?ml|xml|graphql|gql|ndjson|txt|toml|md|csv|html?)$", re.IGNORECASE)
_IDENTIFYING: Final = frozenset({"whoami", "hostname", "id", "uname", "ifconfig", "ip", "ps", "w", "last", "cat"})


def curl_sends(run: Invocation) -> Iterable[Hit]:
    """Uploads (`-T`, `-F x=@file`), bodies from files (`-d @file`) and output of commands in any part of a request."""
    options = parse(run.argv, _CURL)
    urls = [*options.operands, *options.all("url")]
    where = next((found for url in urls if (found := parse_endpoint(url if "://" in url else f"http://{url}"))), None)
    if "xargs" in run.wrappers or any("$(" in word for word in (*options.all(*_TEXT_OPTIONS), *urls)):
        yield from _substituted(run, where)
    elif any("${" in url and _ENCODED.search(loop.first) for url in urls for loop in run.loops.values()):
        yield Hit(SECRET if any(map(is_sensitive, _loop_words(run))) else UPLOAD, severity="high")
    files, bodies = _curl_files(options)
    paths = [*files, *bodies]
    if not paths:
        return
    from_stdin = any(path in ("-", ".", "/dev/stdin") for path in paths)
    names = names_before(run) if from_stdin else set()
    paths += sources_of(run) if from_stdin else []
    severity = worth(where, paths, names)
    if severity is None:
        return
    if any(is_sensitive(path) for path in paths):
        yield Hit(SECRET)
        return
    is_body = not files and not from_stdin and all(_DATA_FILE.search(path) for path in bodies)
    if is_body and (severity == "medium" or (where is not None and _API.search(where.host))):
        return
    if severity == "high" and where is not None and not is_address(where.host) and not DROPS.search(where.host):
        # What a build has made goes where builds are kept.
        named = _PRODUCT if options.has("T", "upload-file") or from_stdin else _BELOW
        severity = "medium" if all(named.match(path) for path in paths) else severity
    puts = (
        severity == "high" and bool(options.all("T", "upload-file")) and where is not None and where.zone == "outside"
    )
    high = puts or bool(from_stdin and names & (GATHERING | ENCODING))
    yield Hit(UPLOAD, severity="high" if high else severity)


_TEXT_OPTIONS: Final = (
    *("d", "data", "data-binary", "data-raw", "data-urlencode", "F", "form", "H", "header"),
    *("A", "user-agent", "b", "cookie", "e", "referer", "u", "user", "json", "X", "request"),
)


_ENCODED: Final = lazy_pattern(r"\$\((?:\S{0,64}/)?(?:base64|base32|xxd|od|hexdump|gzip|openssl)\b")


def _loop_words(run: Invocation) -> list[str]:
    """Return the words of what the loops around a command run over."""
    return [word for loop in run.loops.values() for word in loop.first.strip("$()").split()]


def _curl_files(options: Options) -> tuple[list[str], list[str]]:
    """Return the files that are uploaded, and those whose content is the body."""
    forms = [value for value in options.all("F", "form") if re.search(r"=[@<]", value)]
    files = [value for value in options.all("T", "upload-file") if value]
    files += [re.split(r"[@<]", value, maxsplit=1)[1].partition(";")[0] for value in forms]
    texts = options.all("d", "data", "data-binary", "data-ascii", "data-urlencode", "json")
    bodies = [value.partition("@")[2] for value in texts if re.match(r"\w*@", value)]
    return files, bodies


_PRODUCT: Final = lazy_pattern(
    r"(?:\./)?(?:dist|build|target|out|release|releases|artifacts|wheelhouse|pkg)/[\w./+-]+$"
)
# A file of the working folder that a form hands over, as upload forms of every kind of service ask for.
_BELOW: Final = lazy_pattern(r"(?:\./)?(?!\.)[\w+-][\w.+-]*(?:/[\w+-][\w.+-]*)*$")
_API: Final = lazy_pattern(r"(?:^|\.)(?:hooks\.slack\.com|discord(?:app)?\.com|api\.telegram\.org)$")


def _substituted(run: Invocation, where: Endpoint | None) -> Iterable[Hit]:
    """`curl -d "$(cat /etc/passwd)"` and `curl http://host/$(whoami)`."""
    if where is not None and where.zone == "loopback":
        return
    if any(is_sensitive(path) for path in sources_of(run)) or names_before(run) & TELLING:
        yield Hit(SECRET)
        return
    nameless = where is not None and (is_address(where.host) or DROPS.search(where.host))
    if names_before(run) & (ENCODING | GATHERING | (_IDENTIFYING if nameless else set())):
        yield Hit(UPLOAD, severity="high")


def wget_sends(run: Invocation) -> Iterable[Hit]:
    """Bodies from files, and output of commands in a request."""
    options = parse(run.argv, _WGET)
    paths = options.all("post-file", "body-file")
    where = next((found for found in map(parse_endpoint, options.operands) if found), None)
    if paths:
        severity = worth(where, paths, set())
        if severity is not None:
            yield Hit(SECRET if any(is_sensitive(path) for path in paths) else UPLOAD, severity="high")
    elif any("$(" in word for word in (*options.all("post-data", "body-data", "header"), *options.operands)):
        yield from _substituted(run, where)


def httpie_sends(run: Invocation) -> Iterable[Hit]:
    """Files as fields, and a body from standard input."""
    paths = [word.partition("@")[2] for word in run.argv[1:] if re.match(r"[\w-]+@[\w~./-]", word)]
    paths += [r.target for r in run.redirects if r.op == "<"]
    hosts = [
        word if "://" in word else f"http://{word}"
        for word in run.argv[1:]
        if re.match(r"(?:https?://)?[\w-]+(?:\.|:\d)", word)
    ]
    where = next((found for found in map(parse_endpoint, hosts) if found), None)
    severity = worth(where, paths, set()) if paths and where else None
    if severity:
        yield Hit(SECRET if any(is_sensitive(path) for path in paths) else UPLOAD, severity=severity)


_CODE_SENDS: Final = lazy_pattern(
    r"requests\.(?:post|put)\s*\(|urlopen\s*\(|http\.client|httpx\.(?:post|put)|aiohttp|ftplib|smtplib|socket|"
    r"fetch\s*\(|Net::HTTP|"
    r"file_get_contents\s*\(\s*['\"]https?|LWP|axios|https?['\")]*\.(?:request|post|put)|paramiko|storbinary|sendall|"
    r"HTTP::Tiny|require\(\s*['\"](?:https?|net|tls|dgram)['\"]|TCPSocket|fsockopen|IO::Socket|stream_context_create|"
    r"urllib3|Invoke-(?:WebRequest|RestMethod)|curl_exec|websockets?\.|telnetlib|dns\.resolver|gethostbyname"
)
_CODE_OPENS: Final = lazy_pattern(
    r"\bopen\b|read_text|read_bytes|readFile|File\.|IO\.read|file_get_contents|\bfile\(|Path|createReadStream|slurp|glob|"
    r"Get-Content|ReadAll"
)
_CODE_LITERAL: Final = lazy_pattern(r"['\"]([^'\"\n]{2,200})['\"]")
_CODE_READS: Final = lazy_pattern(
    r"(?:open|read_text|read_bytes|readFileSync|File\.read|file_get_contents|Path|expanduser|createReadStream|slurp|"
    r"glob)\s{0,8}\(?\s{0,8}[rbf]?['\"]([^'\"]{2,200})['\"]"
)
_CODE_HOST: Final = lazy_pattern(r"https?://([\w.\[\]:-]+)|['\"](\d+\.\d+\.\d+\.\d+)['\"]")


def code_sends(run: Invocation) -> Iterable[Hit]:
    """A one-line program that reads a file or the environment, and sends."""
    code = run.code
    if not code or not _CODE_SENDS.search(code):
        return
    hosts = [(a or b).partition(":")[0] for a, b in _CODE_HOST.findall(code)]
    if hosts and all(zone_of(host) == "loopback" for host in hosts):
        return
    paths = _CODE_READS.findall(code)
    named = _CODE_LITERAL.findall(code) if _CODE_OPENS.search(code) else []
    named += sources_of(run)
    if any(is_sensitive(path) for path in (*paths, *named)) or re.search(
        r"os\.environ\b(?!\[|\.get)|process\.env\b(?![.\[])|%ENV|ENV\.to_", code
    ):
        yield Hit(SECRET)
    elif re.search(
        r"files\s*=|data\s*=\s*open|\.(?:post|put)\([^)]*open\(|storbinary|sendall\([^)]*(?:open|read)|sendfile", code
    ):
        bad = any(is_address(host) or DROPS.search(host) for host in hosts) or any(map(is_archive, paths))
        yield Hit(UPLOAD, severity="high" if bad else None)
