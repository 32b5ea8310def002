"""Exfiltration: command lines that send files, secrets or the output of commands to somebody else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.endpoints import Endpoint, is_address, parse_endpoint, remote_copy, zone_of
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.sensitive import is_archive, is_sensitive, is_sweeping
from jupyter_agentwatch.detect.shells import NETCAT, NETCATS
from jupyter_agentwatch.detect.unwrap import Invocation
from jupyter_agentwatch.events import Severity

__all__ = ["ARCHIVED", "EXFILTRATION"]

UPLOAD: Final = Rule(
    id="exfiltration.upload",
    title="a file is sent to a server",
    severity="medium",
    technique="T1048",
    rationale="Secrets, archives, bare addresses and drop services make it high; an ordinary file to a named host is medium.",
    false_positives=("publishing a result where a person asked for it", "calling an API with a JSON body (not reported)"),
)
RAW: Final = Rule(
    id="exfiltration.raw",
    title="data is written to a bare network connection",
    severity="medium",
    technique="T1048.003",
    rationale="No protocol, no name, no login: only the two ends know what it was.",
    false_positives=("copying a folder between two machines of one's own network",),
)
SECRET: Final = Rule(
    id="exfiltration.secret",
    title="secrets are sent to another machine",
    severity="high",
    technique="T1041",
    rationale="What is sent comes from where keys, tokens and accounts are kept.",
    false_positives=("installing one's own key on a server by other means than ssh-copy-id",),
)
COPY: Final = Rule(
    id="exfiltration.copy",
    title="files are copied to another machine",
    severity="low",
    technique="T1048.002",
    rationale="The destination decides: a bare address outside, or a whole home folder, is high.",
    false_positives=("deploying, backing up, collecting results on a cluster",),
)
ARCHIVED: Final = Rule(
    id="exfiltration.archive",
    title="hidden or secret paths are put into an archive",
    severity="medium",
    technique="T1560.001",
    rationale="It is what comes before such files leave.",
    false_positives=("backing up a home folder",),
)
CLOUD: Final = Rule(
    id="exfiltration.cloud",
    title="files are copied to somebody's cloud storage",
    severity="medium",
    technique="T1567.002",
    rationale="Storage is reached by names that half the internet shares, so the name says nothing about whose it is.",
    false_positives=("saving checkpoints to one's own bucket",),
)
SERVED: Final = Rule(
    id="exfiltration.served",
    title="files are offered to whoever connects",
    severity="low",
    technique="T1048",
    rationale="A folder is published on a port.",
    false_positives=("looking at a web page under development",),
)

_CURL: Final = Grammar(
    valued="AbcCdDeEFhHKmoPQrTtuUwxXyYz",
    long_valued=frozenset(
        "data data-raw data-binary data-ascii data-urlencode form form-string upload-file user header request output proxy cookie "
        "url json max-time connect-timeout user-agent referer cert key cacert write-out retry resolve config range interface "
        "doh-url url-query".split()
    ),
)
_WGET: Final = Grammar(
    valued="oaeitTOUPlARDIXQBw",
    long_valued=frozenset("post-file body-file post-data body-data method header user password output-document directory-prefix tries timeout user-agent".split()),
)
_RSYNC: Final = Grammar(
    valued="efTBM",
    long_valued=frozenset("rsh exclude include filter port bwlimit files-from rsync-path temp-dir password-file log-file exclude-from include-from backup-dir".split()),
)
_SCP: Final = Grammar(valued="cDFiJloPSX")
_DROPS: Final = re.compile(
    r"(?:^|\.)(?:transfer\.sh|file\.io|0x0\.st|bashupload\.com|temp\.sh|termbin\.com|ix\.io|sprunge\.us|paste(?:bin|\.rs|\.ee|\.c-net\.org)(?:\.com)?|"
    r"dpaste\.(?:com|org)|hastebin\.com|catbox\.moe|litterbox\.catbox\.moe|gofile\.io|anonfiles\.com|oshi\.at|keep\.sh|tmpfiles\.org|"
    r"uguu\.se|envs\.sh|wormhole\.app|filebin\.net|webhook\.site|requestbin\.\w+|pipedream\.net|requestcatcher\.com|beeceptor\.com|"
    r"hookbin\.com|ngrok(?:-free)?\.(?:io|app|dev)|ngrok\.io|trycloudflare\.com|loca\.lt|serveo\.net|localhost\.run|interact\.sh|"
    r"oast\.\w+|oastify\.com|burpcollaborator\.net|dnslog\.cn|ceye\.io|bxss\.me|api\.telegram\.org|discord(?:app)?\.com|hooks\.slack\.com|"
    r"mega\.nz|ufile\.io|sendspace\.com|wetransfer\.com|pixeldrain\.com|send\.vis\.ee|clbin\.com|psty\.io|rentry\.co)$"
)
_DATA_FILE: Final = re.compile(r"\.(?:json|ya?ml|xml|graphql|gql|ndjson|txt|toml|md|csv|html?)$", re.I)
_GATHERING: Final = frozenset({"env", "printenv", "set", "tar", "zip", "mysqldump", "pg_dump", "pg_dumpall", "mongodump", "history", "getent", "gpg"})
_ENCODING: Final = frozenset({"base64", "base32", "xxd", "gzip", "openssl", "gpg", "zstd", "xz", "bzip2"})
_IDENTIFYING: Final = frozenset({"whoami", "hostname", "id", "uname", "ifconfig", "ip", "ps", "w", "last", "cat"})


def _sources(run: Invocation) -> list[str]:
    """Return the local paths that feed a command: its input file, and what is read earlier in its pipeline."""
    paths = [r.target for r in run.redirects if r.op == "<"]
    for each in (*run.before, *run.inner):
        paths += [word for word in each.argv[1:] if not word.startswith("-")]
        paths += [r.target for r in each.redirects if r.op == "<"]
    return paths


def _names(run: Invocation) -> set[str]:
    return {each.name for each in (*run.before, *run.inner)}


def _worth(where: Endpoint | None, paths: list[str], names: set[str]) -> Severity | None:
    """Return what sending these paths there is worth; None where it goes nowhere."""
    zone = where.zone if where else "outside"
    if zone == "loopback":
        return None
    if any(is_sensitive(path) for path in paths) or names & {"env", "printenv", "history"}:
        return "high"
    if where is None:
        return "medium"
    outside = zone == "outside"
    bulk = bool(names & _GATHERING) or any(is_archive(path) or is_sweeping(path) for path in paths)
    if outside and (is_address(where.host) or _DROPS.search(where.host)):
        return "high"
    if outside and bulk:
        return "high"
    return "medium"


def _curl(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, _CURL)
    urls = [*options.operands, *options.all("url")]
    where = next((found for found in (parse_endpoint(url if "://" in url else f"http://{url}") for url in urls) if found), None)
    files = [value for value in options.all("T", "upload-file") if value]
    files += [value.partition("@")[2] or value.partition("<")[2] for value in options.all("F", "form") if re.search(r"=[@<]", value)]
    bodies = [value for value in options.all("d", "data", "data-binary", "data-ascii", "data-urlencode", "json") if "@" in value]
    attached = [value.partition("@")[2] for value in bodies if value.startswith("@") or re.match(r"\w+@", value)]
    inner_text = [value for value in options.all("d", "data", "data-binary", "data-raw", "data-urlencode", "F", "H", "form", "header") if "$(" in value]
    inner_text += [url for url in urls if "$(" in url]
    paths = [part.partition(";")[0] for part in (*files, *attached)]
    from_stdin = any(path in ("-", ".", "/dev/stdin") for path in paths)
    if from_stdin:
        paths += _sources(run)
    names = _names(run) if from_stdin or inner_text else set()
    if inner_text:
        yield from _substituted(run, where)
    if not paths:
        return
    severity = _worth(where, paths, names)
    if severity is None:
        return
    only_bodies = not files and all(_DATA_FILE.search(path) for path in paths if path not in ("-",))
    if severity == "medium" and only_bodies and not from_stdin:
        return
    uploads = bool(options.all("T", "upload-file")) and where is not None and where.zone == "outside"
    if severity == "high" and any(is_sensitive(path) for path in paths):
        yield Hit(SECRET)
    elif only_bodies and where is not None and _API.search(where.host):
        return
    else:
        yield Hit(UPLOAD, severity="high" if uploads or (from_stdin and names & (_GATHERING | _ENCODING)) else severity)


_API: Final = re.compile(r"(?:^|\.)(?:hooks\.slack\.com|discord(?:app)?\.com|api\.telegram\.org)$")


def _substituted(run: Invocation, where: Endpoint | None) -> Iterable[Hit]:
    """`curl -d "$(cat /etc/passwd)"` and `curl http://host/$(whoami)`."""
    if where is not None and where.zone == "loopback":
        return
    if any(is_sensitive(path) for path in _sources(run)) or _names(run) & {"env", "printenv", "history"}:
        yield Hit(SECRET)
    elif _names(run) & _ENCODING or (_names(run) & _GATHERING):
        yield Hit(UPLOAD, severity="high")
    elif where is not None and _names(run) & _IDENTIFYING and (is_address(where.host) or _DROPS.search(where.host)):
        yield Hit(UPLOAD, severity="high")


def _wget(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, _WGET)
    paths = options.all("post-file", "body-file")
    where = next((found for found in map(parse_endpoint, options.operands) if found), None)
    if paths:
        severity = _worth(where, paths, set())
        if severity is not None:
            yield Hit(SECRET if any(is_sensitive(path) for path in paths) else UPLOAD, severity="high")
    elif any("$(" in word for word in (*options.all("post-data", "body-data", "header"), *options.operands)):
        yield from _substituted(run, where)


def _httpie(run: Invocation) -> Iterable[Hit]:
    paths = [word.partition("@")[2] for word in run.argv[1:] if re.match(r"[\w-]+@[\w~./-]", word)]
    paths += [r.target for r in run.redirects if r.op == "<"]
    hosts = [word if "://" in word else f"http://{word}" for word in run.argv[1:] if re.match(r"(?:https?://)?[\w-]+(?:\.|:\d)", word)]
    where = next((found for found in map(parse_endpoint, hosts) if found), None)
    severity = _worth(where, paths, set()) if paths and where else None
    if severity:
        yield Hit(SECRET if any(is_sensitive(path) for path in paths) else UPLOAD, severity=severity)


def _copies(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, _RSYNC if run.name == "rsync" else _SCP)
    words = options.operands
    if len(words) < 2:
        return
    target = remote_copy(words[-1])
    sources = [word for word in words[:-1] if remote_copy(word) is None]
    if target is None or not sources or target.zone == "loopback":
        return
    if any(is_sensitive(path) for path in sources):
        yield Hit(SECRET)
        return
    outside = target.zone == "outside" and is_address(target.host)
    sweeping = any(is_sweeping(path) for path in sources) and target.zone == "outside"
    yield Hit(COPY, severity="high" if outside else "medium" if sweeping else None)


def _ssh_pipe(run: Invocation) -> Iterable[Hit]:
    """`tar cz x | ssh host 'cat > y'` and `ssh host 'cat > y' < file`."""
    paths = _sources(run)
    if not paths and not _names(run) & _GATHERING:
        return
    options = parse(run.argv, Grammar(valued="BbcDEeFIiJLlmOoPpQRSWw", operands=1))
    host = options.operands[0].rpartition("@")[2] if options.operands else ""
    zone = zone_of(host)
    if zone == "loopback" or not (run.before or any(r.op == "<" for r in run.redirects)):
        return
    if any(is_sensitive(path) for path in paths):
        yield Hit(SECRET, " | ".join(" ".join(each.argv) for each in (*run.before[-2:], run)))
    elif zone == "outside" and is_address(host):
        yield Hit(RAW, severity="high")
    elif _names(run) & _GATHERING and any(is_sweeping(path) for path in paths):
        yield Hit(COPY, severity="medium")


def _netcat(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, NETCAT)
    inputs = any(r.op in ("<", "<<<") for r in run.redirects) or bool(run.before)
    if options.has("l", "listen", "z") or not inputs or not options.operands:
        return
    host = options.operands[0]
    yield from _raw(run, host)


def _raw(run: Invocation, host: str) -> Iterable[Hit]:
    paths = _sources(run)
    names = _names(run)
    zone = zone_of(host)
    detail = " | ".join(" ".join(each.argv) for each in (*run.before[-2:], run))
    if zone == "loopback":
        return
    if any(is_sensitive(path) for path in paths) or names & {"env", "printenv", "history"}:
        yield Hit(SECRET, detail)
        return
    files = any(r.op == "<" for r in run.redirects) or bool(names & (_GATHERING | _ENCODING | {"cat", "dd", "find"}))
    bulk = bool(names & (_GATHERING | _ENCODING))
    if files:
        yield Hit(RAW, detail, "high" if zone == "outside" and (is_address(host) or bulk or _DROPS.search(host)) else None)


def _dev_tcp(run: Invocation) -> Iterable[Hit]:
    for redirect in run.redirects:
        found = re.match(r"/dev/(?:tcp|udp)/([^/]+)/", redirect.target)
        if found and redirect.op in (">", ">>", "<>", ">&", "&>"):
            paths = [*_sources(run), *run.argv[1:]]
            if zone_of(found[1]) != "loopback" and (any(is_sensitive(p) for p in paths) or (run.name in ("cat", "tar", "base64", "dd") and run.argv[1:])):
                yield Hit(SECRET if any(is_sensitive(p) for p in paths) else RAW, " ".join(run.argv), "high")
                return


def _socket_text(run: Invocation) -> Iterable[Hit]:
    """socat, openssl s_client and telnet as pipes for files."""
    text = " ".join(run.argv[1:])
    found = re.search(r"(?:tcp4?|openssl|ssl|udp)(?:-connect)?:([^:,\s]+):\d+|-connect[= ](\S+):\d+", text, re.I)
    if not found:
        return
    host = found[1] or found[2]
    reads = [path for path in re.findall(r"(?:file|open|gopen):([^,\s]+)", text, re.I) if not path.startswith(("/dev/tty", "/dev/pts"))]
    if reads and zone_of(host) != "loopback":
        yield Hit(SECRET if any(map(is_sensitive, reads)) else RAW, severity="high")
    elif (run.before or any(r.op == "<" for r in run.redirects)) and run.name != "telnet":
        if not all(each.name in ("echo", "printf", "true", "yes", ":") for each in run.before) or any(r.op == "<" and r.target != "/dev/null" for r in run.redirects):
            yield from _raw(run, host)


def _archives(run: Invocation) -> Iterable[Hit]:
    words = [word for word in run.argv[1:] if not word.startswith("-")]
    if run.name in ("tar", "bsdtar", "gtar"):
        modes = [word for word in run.argv[1:] if re.match(r"-?[a-zA-Z]*c[a-zA-Z]*f?$", word)] or [w for w in run.argv if w == "--create"]
        if not modes:
            return
    elif run.name in ("7z", "7za", "rar") and words[:1] != ["a"]:
        return
    if any(is_sensitive(word) for word in words):
        yield Hit(ARCHIVED)


def _cloud(run: Invocation) -> Iterable[Hit]:
    words = list(run.argv[1:])
    text = " ".join(words)
    paths = [word for word in words if not word.startswith("-") and "://" not in word]
    sends = (
        (run.name == "aws" and re.search(r"\bs3\s+(?:cp|sync|mv)\s+(?!s3://)\S+.*s3://", text))
        or (run.name in ("gsutil", "gcloud") and re.search(r"\b(?:cp|rsync|mv)\s+(?:-\S+\s+)*(?!gs://)\S+.*gs://", text))
        or (run.name in ("rclone",) and re.search(r"\b(?:copy|sync|move|copyto)\s+(?!\w+:)\S+\s+\S+:", text))
        or (run.name in ("mc",) and re.search(r"\b(?:cp|mirror)\b", text))
        or (run.name in ("az", "azcopy") and re.search(r"\b(?:upload|copy)\b", text))
        or (run.name in ("b2", "s3cmd", "s5cmd", "megaput", "dropbox_uploader", "gdrive", "ipfs") and re.search(r"\b(?:upload|put|cp|sync|add)\b", text))
        or run.name in ("croc", "wormhole", "magic-wormhole", "ffsend", "transfer", "onionshare") and re.search(r"\bsend\b|\bupload\b|\S", text)
    )
    if not sends or "receive" in words:
        return
    secret = any(is_sensitive(path) for path in paths)
    peer = run.name in ("croc", "wormhole", "magic-wormhole", "ffsend", "onionshare")
    yield Hit(SECRET if secret else CLOUD, severity="high" if secret or peer else None)


def _served(run: Invocation) -> Iterable[Hit]:
    yield Hit(SERVED)


def _mails(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, Grammar(valued="sabcrqt"))
    paths = [*options.all("a", "A"), *_sources(run)]
    if any(is_sensitive(path) for path in paths):
        yield Hit(SECRET)


_CODE_SENDS: Final = re.compile(
    r"requests\.(?:post|put)\s*\(|urlopen\s*\(|http\.client|httpx\.(?:post|put)|aiohttp|ftplib|smtplib|socket|fetch\s*\(|Net::HTTP|"
    r"file_get_contents\s*\(\s*['\"]https?|LWP|axios|https?\.request|paramiko|storbinary|sendall|HTTP::Tiny"
)
_CODE_READS: Final = re.compile(
    r"(?:open|read_text|read_bytes|readFileSync|File\.read|file_get_contents|Path|expanduser|createReadStream|slurp|glob)\s*\(?\s*[rbf]?['\"]([^'\"]{2,200})['\"]"
)
_CODE_HOST: Final = re.compile(r"https?://([\w.\[\]:-]+)|['\"](\d+\.\d+\.\d+\.\d+)['\"]")


def _code(run: Invocation) -> Iterable[Hit]:
    code = run.code
    if not code or not _CODE_SENDS.search(code):
        return
    hosts = [(a or b).partition(":")[0] for a, b in _CODE_HOST.findall(code)]
    if hosts and all(zone_of(host) == "loopback" for host in hosts):
        return
    paths = _CODE_READS.findall(code)
    if any(is_sensitive(path) for path in paths) or re.search(r"os\.environ\b(?!\[|\.get)|process\.env\b(?![.\[])|%ENV|ENV\.to_", code):
        yield Hit(SECRET)
    elif re.search(r"files\s*=|data\s*=\s*open|\.(?:post|put)\([^)]*open\(|storbinary|sendall\([^)]*(?:open|read)|sendfile", code):
        bad = any(is_address(host) or _DROPS.search(host) for host in hosts) or any(map(is_archive, paths))
        yield Hit(UPLOAD, severity="high" if bad else None)


_CODE_NAMES: Final = ("python", "perl", "ruby", "php", "node", "nodejs", "pypy", "bun", "deno", "ipython")

EXFILTRATION: Final = Ruleset(
    rules=(UPLOAD, RAW, SECRET, COPY, ARCHIVED, CLOUD, SERVED),
    by_name={
        "curl": (_curl,),
        "wget": (_wget,),
        **dict.fromkeys(("http", "https", "xh"), (_httpie,)),
        **dict.fromkeys(("scp", "rsync"), (_copies,)),
        "ssh": (_ssh_pipe,),
        **dict.fromkeys(NETCATS, (_netcat,)),
        **dict.fromkeys(("socat", "openssl", "telnet"), (_socket_text,)),
        **dict.fromkeys(("tar", "bsdtar", "gtar", "zip", "7z", "7za", "rar"), (_archives,)),
        **dict.fromkeys(
            ("aws gsutil gcloud rclone mc az azcopy b2 s3cmd s5cmd megaput gdrive ipfs croc wormhole magic-wormhole ffsend onionshare").split(),
            (_cloud,),
        ),
        **dict.fromkeys(("http.server", "http-server", "simplehttpserver", "updog", "uploadserver", "pyftpdlib"), (_served,)),
        **dict.fromkeys(("mail", "mailx", "mutt", "sendmail", "swaks"), (_mails,)),
        **dict.fromkeys(_CODE_NAMES, (_code,)),
    },
    quiet=frozenset({*_CODE_NAMES, "curl", "wget", "tar", "zip", "rsync", "openssl", "mail", "http", "https", "http.server", "mc", "gcloud", "aws", "az", "7z"}),
    marks=(
        *("/dev/tcp/", "/dev/udp/", "@", "-t ", "--upload", "post-file", "body-file", "$(", "`", "-f ", "--form", "http post", "| http", "<"),
        *("s_client", "requests", "urlopen", "fetch(", "ftplib", "smtp", "s3", "gs://", "send", "upload", "storage", "sync", "rsync", "-a "),
        *(".ssh", ".aws", ".env", "/etc/", ".netrc", ".kube", "id_rsa", ".gnupg", "secret", "credential", ".pem", ".key"),
    ),
    shapes=(_dev_tcp,),
    shape_pattern=r"/dev/(?:tcp|udp)/",
)
"""What exfiltration looks like on a command line."""
