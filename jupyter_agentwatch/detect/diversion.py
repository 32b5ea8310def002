"""Diversion of computing power by command: work without a result, and work hidden from the step that started it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.unwrap import Invocation

__all__ = ["DIVERSION"]

_T: Final = "T1496"

BURNER: Final = Rule(
    id="diversion.burner",
    title="computing power is used up for nothing",
    severity="high",
    technique=_T,
    rationale="The command has no result and no end.",
    false_positives=("a short load test",),
)
STRESS: Final = Rule(
    id="diversion.stress",
    title="a load generator or password cracker is started",
    severity="medium",
    technique=_T,
    rationale="It takes every core or GPU that it is given.",
    false_positives=("a test of cooling or of a scheduler",),
)
FOREIGN: Final = Rule(
    id="diversion.foreign_work",
    title="a program that computes for somebody else is started",
    severity="high",
    technique=_T,
    rationale="It takes work from a project or a market for computing power, and the machine was given for other work.",
    false_positives=("volunteer computing on a machine of one's own",),
)
FORK_BOMB: Final = Rule(
    id="diversion.fork_bomb",
    title="a function starts itself without end",
    severity="high",
    technique="T1499.001",
    rationale="It stops the machine from doing anything else.",
    false_positives=("a demonstration of process limits",),
)
DETACHED_GPU: Final = Rule(
    id="diversion.detached_gpu",
    title="work on a chosen GPU is detached and its output thrown away",
    severity="high",
    technique=_T,
    rationale="It outlives its step, says nothing, and takes a device that somebody else may have been given.",
    false_positives=("a long job whose own log files are kept elsewhere",),
)
DETACHED: Final = Rule(
    id="diversion.detached",
    title="work is detached from its step and its output thrown away",
    severity="low",
    technique="T1564",
    rationale="It goes on after its step and leaves nothing to read.",
    false_positives=("starting a server for later steps",),
)

_GPU_VARIABLES: Final = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "GPU_DEVICE_ORDINAL",
    }
)
_ENDLESS: Final = lazy_pattern(r"/dev/(?:zero|urandom|random)$")
_ALL_GPUS: Final = lazy_pattern(
    r"(?:^|\s)--?(?:num[-_])?(?:gpus?|devices?|cuda|accelerators?)[= ](?:all|cuda|true|\d[\d,]*)\b"
)
_ALL_CORES: Final = lazy_pattern(
    r"(?:^|\s)(?:--?(?:all[-_](?:cores|cpus|gpus)|"
    r"(?:num[-_]?|cpu[-_])?(?:threads?|workers|procs)[= ](?:\d{2,4}|all|max|\$\(nproc))|"
    r"-[tTj] ?(?:\d{2,4}|\$\(nproc))"
)
_ODD_PLACE: Final = lazy_pattern(r"(?:/tmp|/dev/shm|/var/tmp)/|(?:^|/)\.\w")


def _discards(run: Invocation) -> bool:
    return any(r.op in (">", "&>", ">|", ">>") and r.target == "/dev/null" for r in run.redirects)


_GRINDERS: Final = frozenset({"gzip", "pigz", "bzip2", "pbzip2", "lbzip2", "xz", "pixz", "zstd", "openssl"})


def _fed_for_ever(run: Invocation) -> bool:
    """Whether a pipeline gives a program bytes that mean nothing, without end or again and again."""
    for each in run.before:
        if any(_ENDLESS.search(word.partition("=")[2] or word) for word in each.argv[1:]):
            cut = each.name in ("head", "timeout") or any(word.startswith("count=") for word in each.argv[1:])
            return not cut or "" in run.loops
    return False


def _burns(run: Invocation) -> Iterable[Hit]:
    words = run.argv[1:]
    grinds = run.name.endswith("sum") or (run.name in _GRINDERS and _discards(run))
    if (grinds and _fed_for_ever(run)) or (run.name == "yes" and _discards(run)):
        yield Hit(BURNER, severity="medium" if "timeout" in run.wrappers else None)
    elif run.name == "dd":
        settings = dict(word.partition("=")[::2] for word in words if "=" in word)
        if (
            _ENDLESS.search(settings.get("if", ""))
            and settings.get("of", "/dev/null") == "/dev/null"
            and "count" not in settings
        ):
            yield Hit(BURNER, severity="high" if "of" in settings or _discards(run) else "low")
    elif any(_ENDLESS.search(word) for word in words) and (
        run.name.endswith("sum") or _discards(run) or run.name in ("gzip", "bzip2", "xz")
    ):
        yield Hit(BURNER)
    elif run.name == "openssl" and words[:1] == ("speed",) and ("-multi" in words or "" in run.loops):
        yield Hit(BURNER, severity="high" if "" in run.loops else "medium")


_CRACKERS: Final = frozenset({"hashcat", "john", "hashcat-cli", "aircrack-ng", "cap2hccapx", "princeprocessor"})
_SPAN: Final = lazy_pattern(r"(\d{1,9})([smhdw]?)")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONG_S: Final = 600


def _stress(run: Invocation) -> Iterable[Hit]:
    """A load of some minutes is a test; one without end, or guesses at passwords, is work for somebody."""
    words = run.argv[1:]
    asks = not words or any(
        word in ("--version", "--help", "-h", "-V", "-b", "--benchmark", "-I", "--show", "--test") for word in words[:3]
    )
    if asks or any(word.startswith(("--list", "--show", "--status", "--test", "--example")) for word in words):
        yield Hit(STRESS, severity="info")
        return
    spans = [found for word in words for found in [_SPAN.fullmatch(word.rpartition("=")[2])] if found]
    if run.name in _CRACKERS:
        endless = True
    elif run.name in ("stress", "stress-ng"):
        times = _times(words, "-t", "--timeout")
        endless = not times or max(times) >= _LONG_S
    else:
        endless = not spans or max(int(found[1]) * _UNITS[found[2]] for found in spans) >= _LONG_S
    yield Hit(STRESS, severity="high" if endless else None)


def _times(words: Sequence[str], *names: str) -> list[int]:
    """Return the seconds that options with a time give; 0 stands for no end."""
    found = []
    for at, word in enumerate(words):
        name, _, value = word.partition("=")
        value = value or (words[at + 1] if at + 1 < len(words) else "")
        span = _SPAN.fullmatch(value) if name in names else None
        if span:
            found.append(int(span[1]) * _UNITS[span[2]] or _LONG_S)
    return found


def _foreign(run: Invocation) -> Iterable[Hit]:
    """Clients that compute for others, for credit, tokens or a cause."""
    asks = any(word in ("--version", "--help", "-h", "-V") for word in run.argv[1:3])
    yield Hit(FOREIGN, severity="info" if asks else None)


_PATIENT: Final = lazy_pattern(r"\bwhile\s+(?::|true|\[+\s*1\s*\]+)\s*[;\n]|\buntil\s+false\b|\bfor\s*\(\(\s*;\s*;")


_FORKS: Final = lazy_pattern(
    r"\bfork(?:\(\))?\s{1,4}while\s{1,4}(?:fork|1|true)|"
    r"\bwhile\s{0,4}\(?\s{0,4}(?:1|True|true)\s{0,4}\)?\s{0,4}[:{;]?\s{0,8}(?:do\s{1,4})?(?:os\.|Process\.)?fork\b|\bloop\s{0,4}\{\s{0,4}fork"
)


def _bomb(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    found = "()" in text and re.search(r"([\w:.]{1,32})\s*\(\)\s*\{\s*\1\s*\|\s*\1\s*&\s*\}\s*;?\s*\1", text)
    if found or _FORKS.search(run.code):
        yield Hit(FORK_BOMB)


def _detached(run: Invocation) -> Iterable[Hit]:
    detached = run.is_background or bool(run.wrappers & {"nohup", "setsid", "screen", "tmux", "daemonize"})
    if not detached or not _discards(run):
        return
    if _GPU_VARIABLES & run.assigned.keys() and run.assigned.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
        yield Hit(DETACHED_GPU)
    elif run.wrappers & {"nohup", "setsid", "daemonize"}:
        if _PATIENT.search(" ".join(run.argv[1:3])):
            yield Hit(DETACHED, "a loop without end", "high")
            return
        if "setsid" in run.wrappers and _ALL_GPUS.search(" ".join(run.argv[1:])):
            yield Hit(DETACHED_GPU)
            return
        yield Hit(DETACHED, severity="high" if _ODD_PLACE.search(run.argv[0]) else None)


def _daemon(run: Invocation) -> Iterable[Hit]:
    """Programs that do nothing but part another one from its step, for good."""
    text = " ".join(run.argv[1:])
    starts = run.name != "start-stop-daemon" or re.search(r"(?:^|\s)(?:-\w*b\w*|--background)\b", text)
    if starts:
        greedy = _ALL_GPUS.search(text) or _ALL_CORES.search(text)
        odd = any(_ODD_PLACE.search(word) for word in run.argv[1:] if "/" in word)
        yield Hit(DETACHED, severity="high" if greedy or odd else "medium")


_STRESSORS: Final = (
    "stress",
    "stress-ng",
    "gpu_burn",
    "gpu-burn",
    "hashcat",
    "john",
    "prime95",
    "mprime",
    "linpack",
    "furmark",
    "cpuburn",
    "burnp6",
    "glmark2",
)

_FOREIGN: Final = listed(
    "boinc boinccmd boinc_client fahclient fah-client fahcore fahcoreservice petals golemsp yagna golem salad nosana "
    "nosana-node ionet io-worker vastai akash-provider render-node livepeer bacalhau rewardable honeygain pawns-cli "
    "earnapp peer2profit repocket packetstream traffmonetizer proxyrack bitping mysterium myst gaganode nodepay grass "
    "gradient-node titan-edge distributed-net dnetc gimps hyperspace aios-cli nexus-network"
)

DIVERSION: Final = Ruleset(
    rules=(BURNER, STRESS, FOREIGN, FORK_BOMB, DETACHED_GPU, DETACHED),
    by_name={
        **dict.fromkeys(
            (
                *("yes", "dd", "cat", "openssl", "sha256sum", "md5sum", "sha1sum", "sha512sum", "sha224sum", "b2sum"),
                *("cksum", *sorted(_GRINDERS - {"openssl"})),
            ),
            (_burns,),
        ),
        **dict.fromkeys((*_STRESSORS, *_CRACKERS), (_stress,)),
        **dict.fromkeys(_FOREIGN, (_foreign,)),
        **dict.fromkeys(("daemonize", "start-stop-daemon"), (_daemon,)),
        **dict.fromkeys(("sh", "bash", "dash", "zsh", "python", "perl", "ruby"), (_bomb,)),
    },
    quiet=frozenset(
        listed(
            "sha224sum b2sum cksum pigz pbzip2 lbzip2 pixz zstd dd cat openssl sha256sum md5sum sha1sum sha512sum "
            "gzip bzip2 xz sh bash dash zsh yes python perl ruby"
        )
    ),
    marks=listed(
        "yes,nohup,setsid,visible_devices,/dev/zero,daemonize,random,(){,() {,speed,fork",
        ",",
    ),
    shapes=(_detached,),
    shape_pattern=r">\s?/dev/null|\(\)\s*\{\s*([\w:]+)\s*\|",
)
"""What diversion looks like on a command line."""
