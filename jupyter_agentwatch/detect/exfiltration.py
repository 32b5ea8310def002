"""Exfiltration: command lines that send files, secrets or the output of commands to somebody else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.endpoints import is_address, is_open, remote_copy, zone_of
from jupyter_agentwatch.detect.leaving import (
    DROPS,
    ENCODING,
    GATHERING,
    SECRET,
    TELLING,
    UPLOAD,
    names_before,
    sources_of,
)
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.sensitive import is_sensitive, is_sweeping
from jupyter_agentwatch.detect.shells import NETCAT, NETCATS
from jupyter_agentwatch.detect.unwrap import Invocation
from jupyter_agentwatch.detect.uploads import code_sends, curl_sends, httpie_sends, wget_sends

__all__ = ["EXFILTRATION"]

RAW: Final = Rule(
    id="exfiltration.raw",
    title="data is written to a bare network connection",
    severity="medium",
    technique="T1048.003",
    rationale="No protocol, no name, no login: only the two ends know what it was.",
    false_positives=("copying a folder between two machines of one's own network",),
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

_RSYNC: Final = Grammar(
    valued="efTBM",
    long_valued=frozenset(
        listed(
            "rsh exclude include filter port bwlimit files-from rsync-path temp-dir password-file log-file "
            "exclude-from include-from backup-dir"
        )
    ),
)
_SCP: Final = Grammar(valued="cDFiJloPSX")


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
    paths = sources_of(run)
    if not paths and not names_before(run) & GATHERING:
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
    elif names_before(run) & GATHERING and any(is_sweeping(path) for path in paths):
        yield Hit(COPY, severity="medium")


def _netcat(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, NETCAT)
    inputs = any(r.op in ("<", "<<<") for r in run.redirects) or bool(run.before)
    if options.has("l", "listen", "z") or not inputs or not options.operands:
        return
    host = options.operands[0]
    yield from _raw(run, host)


def _raw(run: Invocation, host: str) -> Iterable[Hit]:
    paths = sources_of(run)
    names = names_before(run)
    zone = zone_of(host)
    detail = " | ".join(" ".join(each.argv) for each in (*run.before[-2:], run))
    if zone == "loopback":
        return
    if any(is_sensitive(path) for path in paths) or names & TELLING:
        yield Hit(SECRET, detail)
        return
    files = any(r.op == "<" for r in run.redirects) or bool(names & (GATHERING | ENCODING | {"cat", "dd", "find"}))
    bulk = bool(names & (GATHERING | ENCODING))
    if files:
        yield Hit(
            RAW, detail, "high" if zone == "outside" and (is_address(host) or bulk or DROPS.search(host)) else None
        )


def _dev_tcp(run: Invocation) -> Iterable[Hit]:
    for redirect in run.redirects:
        found = re.match(r"/dev/(?:tcp|udp)/([^/]+)/", redirect.target)
        if found and redirect.op in (">", ">>", "<>", ">&", "&>"):
            paths = [*sources_of(run), *run.argv[1:]]
            if zone_of(found[1]) != "loopback" and (
                any(is_sensitive(p) for p in paths) or (run.name in ("cat", "tar", "base64", "dd") and run.argv[1:])
            ):
                yield Hit(SECRET if any(is_sensitive(p) for p in paths) else RAW, " ".join(run.argv), "high")
                return


def _socket_text(run: Invocation) -> Iterable[Hit]:
    """socat, openssl s_client and telnet as pipes for files."""
    text = " ".join(run.argv[1:])
    found = re.search(
        r"(?:tcp4?|openssl|ssl|udp)(?:-connect)?:([^:,\s]+):\d+|-connect[= ](\S+):\d+", text, re.IGNORECASE
    )
    if run.name == "telnet" and any(r.op == "<" and is_sensitive(r.target) for r in run.redirects):
        yield Hit(SECRET)
        return
    if not found:
        return
    host = found[1] or found[2]
    reads = [
        path
        for path in re.findall(r"(?:file|open|gopen):([^,\s]+)", text, re.IGNORECASE)
        if not path.startswith(("/dev/tty", "/dev/pts"))
    ]
    if reads and zone_of(host) != "loopback":
        yield Hit(SECRET if any(map(is_sensitive, reads)) else RAW, severity="high")
        return
    written = [r for r in run.redirects if r.op == "<" and r.target != "/dev/null"]
    printed = [each for each in run.before if each.name not in ("echo", "printf", "true", "yes", ":")]
    if run.name != "telnet" and (written or printed):
        yield from _raw(run, host)


def _archives(run: Invocation) -> Iterable[Hit]:
    words = [word for word in run.argv[1:] if not word.startswith("-")]
    if run.name in ("tar", "bsdtar", "gtar"):
        modes = [word for word in run.argv[1:] if re.match(r"-?[a-zA-Z]*c[a-zA-Z]*f?$", word)] or [
            w for w in run.argv if w == "--create"
        ]
        if not modes:
            return
    elif run.name in ("7z", "7za", "rar") and words[:1] != ["a"]:
        return
    if any(is_sensitive(word) for word in words):
        yield Hit(ARCHIVED)


_SENDS: Final[Mapping[str, str]] = {
    "aws": r"\bs3\s+(?:cp|sync|mv)\s+(?!s3://)\S+.*s3://",
    **dict.fromkeys(("gsutil", "gcloud"), r"\b(?:cp|rsync|mv)\s+(?:-\S+\s+)*(?!gs://)\S+.*gs://"),
    "rclone": r"\b(?:copy|sync|move|copyto)\s+(?!\w+:)\S+\s+\S+:",
    "mc": r"\b(?:cp|mirror)\b",
    **dict.fromkeys(("az", "azcopy"), r"\b(?:upload|copy)\b"),
    **dict.fromkeys(("b2", "s3cmd", "s5cmd", "megaput", "gdrive", "ipfs"), r"\b(?:upload|put|cp|sync|add)\b"),
}
_PEERS: Final = ("croc", "wormhole", "magic-wormhole", "ffsend", "onionshare")


def _cloud(run: Invocation) -> Iterable[Hit]:
    if re.search(_SENDS[run.name], " ".join(run.argv[1:])):
        secret = any(is_sensitive(word) for word in run.argv[1:] if "://" not in word)
        yield Hit(SECRET if secret else CLOUD)


def _peer(run: Invocation) -> Iterable[Hit]:
    """Programs that hand a file to whoever knows a phrase."""
    if {"send", "upload", "tx"} & set(run.argv[1:]) or run.name == "onionshare":
        yield Hit(CLOUD, severity="high")


def _ftp(run: Invocation) -> Iterable[Hit]:
    """FTP clients that are told on the command line or on standard input to send."""
    text = "\n".join((*run.argv[1:], run.stdin))
    sent = re.findall(r"\b(?:m?put|send|STOR|mirror\s+(?:-R|--reverse)|-T)\b\s+(?:-\S+\s+)*(\S+)", text)
    if run.name == "ftpput":
        sent = list(run.argv[-1:])
    hosts = [word.rpartition("@")[2] for word in run.argv[1:] if is_address(word.rpartition("@")[2])]
    if any(map(is_sensitive, sent)):
        yield Hit(SECRET)
    elif sent:
        yield Hit(UPLOAD, severity="high" if any(zone_of(host) == "outside" for host in hosts) else None)


def _publishes(run: Invocation) -> Iterable[Hit]:
    """Files that a code host is given: only secrets count."""
    words = [word for word in run.argv[1:] if not word.startswith("-")]
    if run.name == "gh" and tuple(words[:2]) in (("gist", "create"), ("release", "upload"), ("gist", "edit")):
        if any(is_sensitive(word) for word in (*words[2:], *sources_of(run))):
            yield Hit(SECRET)
    elif run.name == "git" and words[:1] == ["add"] and any(is_sensitive(word) for word in words[1:]):
        yield Hit(ARCHIVED, severity="high" if {"-f", "--force"} & set(run.argv) else None)


def _says(run: Invocation) -> Iterable[Hit]:
    """Any client whose question holds what a command printed: `whois -h host "$(base64 key)"`."""
    asks = any("$(" in word or "`" in word for word in run.argv[1:]) or "xargs" in run.wrappers
    if asks and any(is_sensitive(path) for path in sources_of(run)):
        yield Hit(SECRET, " ".join(run.argv))
    elif "" in run.loops and any(is_sensitive(word) for word in run.loops[""].first.strip("$()").split()):
        yield Hit(SECRET, f"{run.loops[''].first} {' '.join(run.argv)}")


def _served(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, Grammar(valued="dbp", long_valued=frozenset({"directory", "bind", "port"})))
    secret = any(is_sensitive(word) for word in (*options.operands, *options.all("d", "directory")))
    bound = options.last("b", "bind")
    yield Hit(SERVED, " ".join(run.argv), None if not secret else "high" if not bound or is_open(bound) else "medium")


def _mails(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, Grammar(valued="sabcrqt"))
    paths = [*options.all("a", "A"), *sources_of(run)]
    if run.name == "swaks":
        paths += [word.partition("=")[2] or word for word in run.argv[1:]]
    if any(is_sensitive(path) for path in paths) or names_before(run) & TELLING:
        yield Hit(SECRET)


_CODE_NAMES: Final = ("python", "perl", "ruby", "php", "node", "nodejs", "pypy", "bun", "deno", "ipython")

EXFILTRATION: Final = Ruleset(
    rules=(UPLOAD, RAW, SECRET, COPY, ARCHIVED, CLOUD, SERVED),
    by_name={
        "curl": (curl_sends,),
        "wget": (wget_sends,),
        **dict.fromkeys(("http", "https", "xh"), (httpie_sends,)),
        **dict.fromkeys(("scp", "rsync"), (_copies,)),
        "ssh": (_ssh_pipe,),
        **dict.fromkeys(("ftp", "lftp", "sftp", "ncftpput", "ftpput", "tftp"), (_ftp,)),
        **dict.fromkeys(NETCATS, (_netcat,)),
        **dict.fromkeys(("socat", "openssl", "telnet"), (_socket_text,)),
        **dict.fromkeys(("tar", "bsdtar", "gtar", "zip", "7z", "7za", "rar"), (_archives,)),
        **dict.fromkeys(_SENDS, (_cloud,)),
        **dict.fromkeys(_PEERS, (_peer,)),
        **dict.fromkeys(
            ("http.server", "http-server", "simplehttpserver", "updog", "uploadserver", "pyftpdlib"), (_served,)
        ),
        **dict.fromkeys(("mail", "mailx", "mutt", "sendmail", "swaks"), (_mails, _says)),
        **dict.fromkeys(("whois", "finger", "dig", "host", "nslookup", "ping", "drill", "mosquitto_pub"), (_says,)),
        **dict.fromkeys(("gh", "git"), (_publishes,)),
        **dict.fromkeys(_CODE_NAMES, (code_sends,)),
    },
    quiet=frozenset(
        {
            *_CODE_NAMES,
            *listed("curl wget tar zip rsync openssl mail http https http.server mc gcloud aws az 7z gh git"),
        }
        | {"whois", "finger", "dig", "host", "nslookup", "ping"}
    ),
    marks=listed(
        "/dev/tcp/,/dev/udp/,@,-t ,--upload,post-file,body-file,$(,`,-f ,--form,http post,| http,<,s_client,"
        "requests,urlopen,fetch(,ftplib,smtp,s3,gs://,send,upload,storage,sync,rsync,-a ,.ssh,.aws,.env,/etc/,"
        ".netrc,http.server,.kube,id_rsa,.gnupg,secret,credential,.pem,.key",
        ",",
    ),
    shapes=(_dev_tcp,),
    shape_pattern=r"/dev/(?:tcp|udp)/",
)
"""What exfiltration looks like on a command line."""
