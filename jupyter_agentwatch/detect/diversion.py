"""Diversion of computing power by command: work without a result, and work hidden from the step that started it."""

from __future__ import annotations

import re
from collections.abc import Iterable
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


def _discards(run: Invocation) -> bool:
    return any(r.op in (">", "&>", ">|", ">>") and r.target == "/dev/null" for r in run.redirects)


def _burns(run: Invocation) -> Iterable[Hit]:
    words = run.argv[1:]
    if run.name == "yes" and _discards(run):
        yield Hit(BURNER)
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
    elif run.name == "openssl" and words[:1] == ("speed",) and "-multi" in words:
        yield Hit(BURNER, severity="medium")


def _stress(run: Invocation) -> Iterable[Hit]:
    asks = len(run.argv) < 2 or any(word in ("--version", "--help", "-h", "-V") for word in run.argv[1:3])
    yield Hit(STRESS, severity="info" if asks else None)


def _bomb(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    found = re.search(r"([\w:.]{1,32})\s*\(\)\s*\{\s*\1\s*\|\s*\1\s*&\s*\}\s*;?\s*\1", text)
    if found:
        yield Hit(FORK_BOMB)


def _detached(run: Invocation) -> Iterable[Hit]:
    detached = run.is_background or bool(run.wrappers & {"nohup", "setsid", "screen", "tmux", "daemonize"})
    if not detached or not _discards(run):
        return
    if _GPU_VARIABLES & run.assigned.keys() and run.assigned.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
        yield Hit(DETACHED_GPU)
    elif run.wrappers & {"nohup", "setsid", "daemonize"}:
        hidden = re.match(r"(?:/tmp|/dev/shm|/var/tmp)/|.*/\.\w|^\./\.\w", run.argv[0]) is not None
        yield Hit(DETACHED, severity="high" if hidden else None)


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

DIVERSION: Final = Ruleset(
    rules=(BURNER, STRESS, FORK_BOMB, DETACHED_GPU, DETACHED),
    by_name={
        **dict.fromkeys(
            ("yes", "dd", "cat", "openssl", "sha256sum", "md5sum", "sha1sum", "sha512sum", "gzip", "bzip2", "xz"),
            (_burns,),
        ),
        **dict.fromkeys(_STRESSORS, (_stress,)),
        **dict.fromkeys(("sh", "bash", "dash", "zsh"), (_bomb,)),
    },
    quiet=frozenset(listed("dd cat openssl sha256sum md5sum sha1sum sha512sum gzip bzip2 xz sh bash dash zsh yes")),
    marks=listed(
        "yes,nohup,setsid,visible_devices,/dev/zero,daemonize,random,(){,() {,speed",
        ",",
    ),
    shapes=(_detached,),
    shape_pattern=r">\s?/dev/null|\(\)\s*\{\s*([\w:]+)\s*\|",
)
"""What diversion looks like on a command line."""
