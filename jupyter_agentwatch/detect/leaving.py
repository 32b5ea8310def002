"""What sending something somewhere is worth: whose the destination is, and where what is sent comes from."""

from __future__ import annotations

from typing import Final

from jupyter_agentwatch.detect.endpoints import Endpoint, is_address
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.rule import Rule
from jupyter_agentwatch.detect.sensitive import is_archive, is_sensitive, is_sweeping
from jupyter_agentwatch.detect.unwrap import Invocation
from jupyter_agentwatch.events import Severity

__all__ = ["DROPS", "ENCODING", "GATHERING", "SECRET", "TELLING", "UPLOAD", "names_before", "sources_of", "worth"]

UPLOAD: Final = Rule(
    id="exfiltration.upload",
    title="a file is sent to a server",
    severity="medium",
    technique="T1048",
    rationale=(
        "Secrets, archives, bare addresses and drop services make it high; an ordinary file to a named host is medium."
    ),
    false_positives=(
        "publishing a result where a person asked for it",
        "calling an API with a JSON body (not reported)",
    ),
)
"""Given for anything that is sent by a client of the web or of FTP."""
SECRET: Final = Rule(
    id="exfiltration.secret",
    title="secrets are sent to another machine",
    severity="high",
    technique="T1041",
    rationale="What is sent comes from where keys, tokens and accounts are kept.",
    false_positives=("installing one's own key on a server by other means than ssh-copy-id",),
)
"""Given wherever the source is known to be secret, whatever carries it."""
DROPS: Final = lazy_pattern(
    r"(?:^|\.)(?:transfer\.sh|file\.io|0x0\.st|bashupload\.com|temp\.sh|termbin\.com|ix\.io|sprunge\.us|paste(?:bin|"
    r"\.rs|\.ee|\.c-net\.org)(?:\.com)?|"
    r"dpaste\.(?:com|org)|hastebin\.com|catbox\.moe|litterbox\.catbox\.moe|gofile\.io|anonfiles\.com|oshi\.at|"
    r"keep\.sh|tmpfiles\.org|"
    r"uguu\.se|envs\.sh|wormhole\.app|filebin\.net|webhook\.site|requestbin\.\w+|pipedream\.net|requestcatcher\.com|"
    r"beeceptor\.com|"
    r"hookbin\.com|ngrok(?:-free)?\.(?:io|app|dev)|ngrok\.io|trycloudflare\.com|loca\.lt|serveo\.net|localhost\.run|"
    r"interact\.sh|"
    r"oast\.\w+|oastify\.com|burpcollaborator\.net|dnslog\.cn|ceye\.io|bxss\.me|api\.telegram\.org|"
    r"discord(?:app)?\.com|hooks\.slack\.com|"
    r"mega\.nz|ufile\.io|sendspace\.com|wetransfer\.com|pixeldrain\.com|send\.vis\.ee|clbin\.com|psty\.io|rentry\.co)$"
)
"""Hosts at which anybody can leave or receive data without an account."""

GATHERING: Final = frozenset(
    {
        "env",
        "printenv",
        "set",
        "tar",
        "zip",
        "mysqldump",
        "pg_dump",
        "pg_dumpall",
        "mongodump",
        "history",
        "getent",
        "gpg",
    }
)
"""Programs that put much, or everything, into their output."""

ENCODING: Final = frozenset({"base64", "base32", "xxd", "gzip", "openssl", "gpg", "zstd", "xz", "bzip2"})
"""Programs that change how data looks, as is done before it leaves."""


TELLING: Final = frozenset({"env", "printenv", "history", "a store of secrets"})
"""Programs whose output is secret whatever they are told, and what `names_before` calls those that were told so."""

_OPENS_STORE: Final = lazy_pattern(
    r"gpg2? .*--export-secret-|kubectl get secrets? .*-o|secret-tool lookup|pass show|security find-\S+ .*-w|"
    r"vault kv get|aws configure export-credentials|gh auth token|"
    r"gcloud auth .{0,40}print-\S+-token|az account get-access-token|docker secret inspect"
)


def sources_of(run: Invocation) -> list[str]:
    """Return the local paths that feed a command: its input file, and what is read earlier in its pipeline."""
    paths = [r.target for r in run.redirects if r.op == "<"]
    for each in (*run.before, *run.inner):
        paths += [word for word in each.argv[1:] if not word.startswith("-")]
        paths += [r.target for r in each.redirects if r.op == "<"]
    return paths


def names_before(run: Invocation) -> set[str]:
    """Return the programs whose output a command gets, by pipeline or substitution.

    A pipeline out of a store of secrets is one of `TELLING`; a token in a header, by substitution, is how one logs in.
    """
    names = {each.name for each in (*run.before, *run.inner)}
    if any(_OPENS_STORE.match(" ".join((each.name, *each.argv[1:]))) for each in run.before):
        names.add("a store of secrets")
    return names


def worth(where: Endpoint | None, paths: list[str], names: set[str]) -> Severity | None:
    """Return what sending something is worth; None where it does not leave the machine.

    Args:
        where: The destination; None where it is not known.
        paths: Local paths that are sent.
        names: Programs whose output is sent.
    """
    zone = where.zone if where else "outside"
    if zone == "loopback":
        return None
    if any(is_sensitive(path) for path in paths) or names & TELLING:
        return "high"
    if where is None:
        return "medium"
    outside = zone == "outside"
    bulk = bool(names & GATHERING) or any(is_archive(path) or is_sweeping(path) for path in paths)
    if outside and (is_address(where.host) or DROPS.search(where.host)):
        return "high"
    if outside and bulk:
        return "high"
    return "medium"
