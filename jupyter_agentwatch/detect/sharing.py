"""More of a machine than one's share, by command: priorities, neighbours slowed down, work kept below notice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset
from jupyter_agentwatch.detect.unwrap import Invocation

__all__ = ["SHARING"]

_T: Final = "T1496"

PRIORITY: Final = Rule(
    id="diversion.priority",
    title="a program is put before all others",
    severity="medium",
    technique=_T,
    rationale="What it takes in addition is taken from the job that the machine was given for.",
    false_positives=("a measurement of latency", "sound and video"),
)
NEIGHBOUR: Final = Rule(
    id="diversion.neighbour",
    title="another process is slowed down or moved aside",
    severity="medium",
    technique=_T,
    rationale="Whoever slows down a neighbour has the use of what it leaves.",
    false_positives=("somebody who gives way to a colleague's job",),
)
QUIETED: Final = Rule(
    id="diversion.quieted",
    title="detached work is kept below notice",
    severity="high",
    technique=_T,
    rationale=(
        "Low priority or a limit on CPU time keeps machines responsive and graphs flat; together with thrown-away "
        "output, a hidden place or a number of threads it is how miners stay."
    ),
    false_positives=("an index or a backup that runs in the background",),
)
LIMITS: Final = Rule(
    id="diversion.limits",
    title="a process leaves the limits that it was given, or changes them",
    severity="high",
    technique=_T,
    rationale="Control groups divide a machine between its jobs: who steps out of one takes from all others.",
    false_positives=("a container engine or scheduler at its own work",),
)
GPU_SETTINGS: Final = Rule(
    id="diversion.gpu_settings",
    title="the way in which a GPU is shared, or its limits, are changed",
    severity="medium",
    technique=_T,
    rationale="It changes what every other job on that GPU gets.",
    false_positives=("the set-up of a benchmark",),
)
SPIN: Final = Rule(
    id="diversion.spin",
    title="a loop does nothing, without end",
    severity="high",
    technique=_T,
    rationale="It keeps a processor busy for nothing, as a load that hides another one, or that starves it.",
    false_positives=("a short load test",),
)

_NICE: Final = Grammar(valued="n", long_valued=frozenset({"adjustment", "priority"}), operands=0)
_RENICE: Final = Grammar(valued="n", long_valued=frozenset({"priority", "relative"}))
_IONICE: Final = Grammar(valued="cnpPu", long_valued=frozenset({"class", "classdata", "pid"}), operands=0)
_CPULIMIT: Final = Grammar(valued="lpeP", long_valued=frozenset({"limit", "pid", "exe", "path"}), operands=0)
_CHOOM: Final = Grammar(valued="np", long_valued=frozenset({"adjust", "pid"}), operands=0)
_HIDDEN: Final = lazy_pattern(r"(?:/tmp|/dev/shm|/var/tmp)/|(?:^|/)\.\w")
_THREADS: Final = lazy_pattern(
    r"(?:^|\s)(?:--?(?:num[-_]?)?(?:threads?|workers|procs|cpu-max-threads-hint)|-t|-T|-w|-P)[= ]?"
    r"(\d{2,4}|\$\(nproc(?: --all)?\))(?:\s|$)"
)
_LOWERING: Final = frozenset({"nice", "ionice", "chrt", "cpulimit"})
_KINDS: Final = lazy_pattern(r"-[a-zA-Z]*[frd][a-zA-Z]*|--(?:fifo|rr|deadline)")
_GPU_CHANGE: Final = lazy_pattern(
    r"(?:^|\s)(?:-pl|--power-limit|-c|--compute-mode|-r|--gpu-reset|-lgc|--lock-gpu-clocks|-lmc|--lock-memory-clocks|-ac|"
    r"--applications-clocks|-mig|--multi-instance-gpu|-pm|--persistence-mode|--setpoweroverdrive|--setperflevel|--gpureset)"
    r"(?:[= ]|$)"
)
# Nobody else can use the device then, or whoever does loses what runs on it.
_GPU_ALONE: Final = lazy_pattern(
    r"EXCLUSIVE_(?:PROCESS|THREAD)|(?:-c|--compute-mode)[= ]?[13]\b|(?:^|\s)(?:-r|--gpu-reset)\b"
)
_SPIN_SHELL: Final = lazy_pattern(
    r"\b(?:while|until)\s+(?::|true|false|\[+\s*1\s*\]+|\(\(\s*1\s*\)\))\s*[;\n]\s*do\s+(?::|true)?\s*[;\n]?\s*done|"
    r"\bfor\s*\(\(\s*;\s*;\s*\)\)\s*[;\n]?\s*do\s+(?::|true)\s*[;\n]?\s*done"
)
_SPIN_CODE: Final = lazy_pattern(
    r"while\s{0,8}\(?\s{0,8}(?:1|True|true)\s{0,8}\)?\s{0,8}(?::|\{|do)\s{0,64}(?:pass\b|\}|;|\w+\s*\*\s*\w+\s*(?:$|[\n;])|\w+\s*\*\*\s*\w+)"
)


_GREEDY: Final = -15
_ABOVE_ALL: Final = 90
_SPARED: Final = lazy_pattern(r"^/proc/(?:self|\d+|\$\$|\$\{[\w$]+\})/oom_(?:score_)?adj$")
_LIMITS: Final = lazy_pattern(
    r"^/sys/fs/cgroup/(?:\S*/)?(?:cgroup\.procs|tasks|cpu\.(?:max|weight|shares|cfs_quota_us)|memory\.\S+)$"
)
_SHARE: Final = lazy_pattern(
    r"\b(?:CPUWeight|IOWeight|CPUShares|StartupCPUWeight)=(\d{4,5})\b|\bOOMScoreAdjust=-\d|\bCPUQuota=\s|\bNice=-1[5-9]|\bNice=-20"
)


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[+-]?\d{1,4}", text) else 0


def _is_detached(run: Invocation) -> bool:
    return run.is_background or bool(run.wrappers & {"nohup", "setsid", "screen", "tmux", "daemonize"})


def _quieted(run: Invocation, detail: str) -> Iterable[Hit]:
    """Say that a program is kept quiet, where something else says that it has reason to be."""
    if not _is_detached(run):
        return
    text = " ".join(run.argv[1:])
    discards = any(each.op in (">", "&>", ">|", ">>") and each.target == "/dev/null" for each in run.redirects)
    if discards or any(_HIDDEN.search(word) for word in run.argv[1:] if "/" in word):
        yield Hit(QUIETED, detail)
        return
    told = {*run.wrappers, *run.argv[:12]}
    kept = any(each.op in (">", "&>", ">|", ">>") for each in run.redirects)
    many = _THREADS.search(text) is not None
    if not kept and told & {"setsid", "daemonize"} and (many or len(told & _LOWERING) > 1):
        yield Hit(QUIETED, detail)
    elif many:
        yield Hit(QUIETED, detail, severity="medium")


def _nice(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, _NICE)
    old = [word for word in run.argv[1:2] if re.fullmatch(r"--?\d{1,2}", word)]
    given = options.last("n", "adjustment") or (old[0][1:] if old else "10")
    value = _number(given)
    if value < 0:
        yield Hit(PRIORITY, f"nice {value}", "high" if value <= _GREEDY else None)
    elif value >= 10:
        yield from _quieted(run, f"nice {value}")


def _renice(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, _RENICE)
    words = [word for word in run.argv[1:] if not word.startswith("--")]
    given = options.last("n", "priority", "relative") or (words[0] if words else "")
    value = _number(given)
    whose = [word for word in options.operands if word not in (given, "$$", "$!", "${!}")]
    if value < 0:
        yield Hit(PRIORITY, f"renice {value}", "high" if value <= _GREEDY else None)
    elif value > 0 and any(word.isdecimal() or "$(" in word for word in whose):
        yield Hit(NEIGHBOUR, f"renice {value}")


def _chrt(run: Invocation) -> Iterable[Hit]:
    words = run.argv[1:4]
    if any(_KINDS.fullmatch(word) for word in words):
        ranks = [_number(word) for word in run.argv[1:5] if word.isdecimal()]
        yield Hit(PRIORITY, "real time", "high" if max(ranks, default=0) >= _ABOVE_ALL else None)
    elif any(word in ("-i", "--idle", "-b", "--batch") for word in words):
        yield from _quieted(run, "idle")


def _ionice(run: Invocation) -> Iterable[Hit]:
    kind = parse(run.argv, _IONICE).last("c", "class")
    if kind in ("1", "realtime"):
        yield Hit(PRIORITY, "real time on storage")


def _cpulimit(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, _CPULIMIT)
    target = options.last("p", "pid", "e", "exe", "P", "path")
    if target and target not in ("$$", "$!"):
        yield Hit(NEIGHBOUR, f"cpulimit {target}")
    elif not target:
        yield from _quieted(run, "a limit on CPU time")


def _taskset(run: Invocation) -> Iterable[Hit]:
    words = run.argv[1:]
    moves = any(re.fullmatch(r"-[a-z]*p[a-z]*|--pid", word) for word in words)
    if moves and len(words) >= 3 and (words[-1].isdecimal() or "$(" in words[-1]):
        yield Hit(NEIGHBOUR, f"taskset of process {words[-1]}")


def _choom(run: Invocation) -> Iterable[Hit]:
    if _number(parse(run.argv, _CHOOM).last("n", "adjust")) < 0:
        yield Hit(PRIORITY, "spared when memory is short")


def _limits(run: Invocation) -> Iterable[Hit]:
    """What is written to where the kernel keeps shares and limits."""
    targets = [r.target for r in run.redirects if r.op in (">", ">>", ">|")]
    targets += run.argv[1:] if run.name == "tee" else ()
    for target in targets:
        if _SPARED.match(target):
            values = [*run.argv[1:], *run.stdin.split(), *(word for each in run.before for word in each.argv[1:])]
            least = min(map(_number, values), default=0)
            if least < 0:
                yield Hit(PRIORITY, "spared when memory is short", "high" if least <= -500 else None)
            return
        if _LIMITS.match(target):
            yield Hit(LIMITS, target)
            return


def _shares(run: Invocation) -> Iterable[Hit]:
    """`systemd-run -p CPUWeight=10000`, `cgclassify -g cpu:/`: more than one's share, or out of one's limits."""
    text = " ".join(run.argv[1:])
    if run.name in ("cgclassify", "cgset", "cgexec"):
        if run.name == "cgset" or re.search(r"(?:^|\s)-g\s*[\w,*]+:/(?:\s|$)", text):
            yield Hit(LIMITS)
    elif _SHARE.search(text):
        yield Hit(PRIORITY, "a greater share", "high")


def _stops_neighbour(run: Invocation) -> Iterable[Hit]:
    """Somebody's job is found by its name and made to stand still."""
    text = " ".join(run.argv[1:])
    stops = re.search(r"(?:^|\s)-(?:(?:s\s*|-signal[= ])?(?:SIG)?(?:STOP|TSTP)|19|20)\b", text)
    found = run.name != "kill" or any(
        each.name in ("pgrep", "pidof", "ps", "nvidia-smi", "fuser") for each in (*run.inner, *run.before)
    )
    if stops and found:
        yield Hit(NEIGHBOUR, "stopped", "high")


_GPU_VIEWS: Final = (("dmon",), ("pmon",), ("stats",), ("topo",), ("nvlink",), ("daemon",))


def _gpu(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    if run.argv[1:2] in _GPU_VIEWS:  # there `-c 1` is how often to look
        return
    changes = "-d" in run.argv[1:] if run.name == "nvidia-cuda-mps-control" else _GPU_CHANGE.search(text) is not None
    if changes:
        yield Hit(GPU_SETTINGS, severity="high" if _GPU_ALONE.search(text) else None)


def _spins(run: Invocation) -> Iterable[Hit]:
    text = run.code or " ".join(run.argv[1:])
    needed, pattern = ("while", _SPIN_CODE) if run.code else ("done", _SPIN_SHELL)
    if needed in text and pattern.search(text):
        yield Hit(SPIN, severity="medium" if "timeout" in run.wrappers else None)


_SHELLS: Final = ("sh", "bash", "dash", "zsh")
_INTERPRETERS: Final = ("python", "pypy", "perl", "ruby", "node")

SHARING: Final = Ruleset(
    rules=(PRIORITY, NEIGHBOUR, QUIETED, LIMITS, GPU_SETTINGS, SPIN),
    by_name={
        "nice": (_nice,),
        "renice": (_renice,),
        "chrt": (_chrt,),
        "ionice": (_ionice,),
        "cpulimit": (_cpulimit,),
        "taskset": (_taskset,),
        "choom": (_choom,),
        **dict.fromkeys(("kill", "pkill", "killall"), (_stops_neighbour,)),
        **dict.fromkeys(("systemd-run", "systemctl", "cgclassify", "cgset", "cgexec"), (_shares,)),
        **dict.fromkeys(("tee", "echo", "printf"), (_limits,)),
        **dict.fromkeys(("nvidia-smi", "rocm-smi", "nvidia-cuda-mps-control"), (_gpu,)),
        **dict.fromkeys((*_SHELLS, *_INTERPRETERS), (_spins,)),
    },
    quiet=frozenset((*_SHELLS, *_INTERPRETERS, *listed("tee echo printf kill pkill killall systemctl"))),
    marks=listed("while ,while(,until ,for ((,oom_,/sys/fs/cgroup,stop ,tstp,weight=", ","),
)
"""What taking more than one's share looks like on a command line."""
