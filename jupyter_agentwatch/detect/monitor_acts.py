"""Acts against the monitor and against other processes by other means than a signal's own command.

Programs signal and trace by their own calls, pipelines find whom to kill, and the monitor's own doors can be tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Ruleset
from jupyter_agentwatch.detect.tampering import ESCAPE, MASQUERADE, MONITOR, TRACES
from jupyter_agentwatch.detect.unwrap import Invocation

__all__ = ["MONITOR_ACTS"]

_NAME: Final = lazy_pattern(r"agentwatch|\bbwrap\b|bubblewrap", re.IGNORECASE)
_OWN_FILES: Final = lazy_pattern(
    r"(?:\.local/(?:state|share)|/run/user/\w+|/var/(?:log|lib|run)|/run|XDG_\w+\}?)/agentwatch(?:/|$)|"
    r"/agentwatch/\S{0,128}?\.(?:jsonl|sock)\b"
)
_DOOR: Final = lazy_pattern(r"agentwatch/api/runs/|/agentwatch/\S{0,128}?(?:control|\.sock)")
_SIGNALS: Final = lazy_pattern(
    r"(?:os\.|process\.|Process\.|posix_)?\bkill\s*\(?\s*(?:['\"]?\w+['\"]?\s*,\s*)?"
    r"(?:os\.getppid\(\)|process\.ppid|Process\.ppid|getppid\b|(?<![\w.])-?1(?=\s*[,)]))"
)
_TRACES_OTHERS: Final = lazy_pattern(
    r"\bptrace\s*\(\s*(?:16|0x10|0x4206|16902|PTRACE_(?:ATTACH|SEIZE))\b|process_vm_writev|"
    r"open\(\s*[rbf]*['\"]/proc/(?:1|\{[^}]+\}|%[ds])/mem['\"]"
)
_LISTS_PROCESSES: Final = lazy_pattern(
    r"(?:listdir|scandir|walk|readdirSync|readdir|opendir|iterdir|children|glob|Dir\.\w+|Path)\s*\(?\s*[rf]?['\"]/proc(?:/|['\"])|"
    r"/proc/(?:\*|\[0-9\])"
)
_SIGNALLING: Final = lazy_pattern(r"\bkill\s*\(|Process\.kill\b|\bsend_signal\s*\(|\.(?:terminate|suspend)\s*\(\)")
_SETTINGS: Final = lazy_pattern(r"(?:^|/)\.(?:jupyter|ipython|config|local)/|^/etc/|jupyter_\w*config")
_TITLE: Final = lazy_pattern(
    r"(?:\$0\s*=|setproctitle\s*\(|prctl\s*\(\s*15\s*,|process\.title\s*=|\$PROGRAM_NAME\s*=|"
    r"cli_set_process_title\s*\()\s*[rbuf]?['\"]"
    r"(?:\[[\w/:+-]{2,40}\]|kworker|kthreadd|ksoftirqd|sshd|systemd|dbus-daemon|/usr/s?bin/|/sbin/init|cron\b)"
)
_SYSTEM_FILE: Final = lazy_pattern(r"^/(?:bin|sbin|usr|etc|lib|lib64|boot)/")
_DISK: Final = lazy_pattern(r"^(?:of=)?/dev/(?:sd[a-z]|nvme\d|vd[a-z]|xvd[a-z]|mmcblk\d|mapper/|dm-\d|mem$|kmem$)")


def _plain(run: Invocation) -> str:
    """Return an invocation's words with `[a]bc`, which keeps grep from finding itself, as the `abc` that it finds."""
    return re.sub(r"\[(\w)\](?=\w)", r"\1", " ".join(run.argv[1:]))


def _finds_to_kill(run: Invocation) -> Iterable[Hit]:
    if any(_NAME.search(_plain(each)) for each in run.before if each.name not in ("cat", "echo", "printf")):
        yield Hit(MONITOR, " | ".join(" ".join(each.argv) for each in (*run.before[-3:], run)))


def _looks_for_monitor(run: Invocation) -> Iterable[Hit]:
    """`grep agentwatch /proc/*/cmdline`: a list of processes by what they are, for what is to be done to them."""
    if _NAME.search(_plain(run)) and any(re.search(r"/(?:cmdline|comm|status|environ|maps)$", w) for w in run.argv[1:]):
        yield Hit(MONITOR)


def _own_files(run: Invocation) -> Iterable[Hit]:
    targets = [r.target for r in run.redirects if r.op in (">", ">>", ">|", "&>", "&>>")]
    if run.name in ("tee", "truncate", "shred", "rm", "mv", "ln", "sed", "dd", "chattr", "chmod", "unlink"):
        targets += [word.removeprefix("of=") for word in run.argv[1:]]
    elif run.name in ("cp", "install"):
        targets += run.argv[-1:]
    found = next((target for target in targets if _OWN_FILES.search(target)), "")
    if found:
        yield Hit(MONITOR, found)


def _redirects(run: Invocation) -> Iterable[Hit]:
    return () if run.name in _FILE_TOOLS else _own_files(run)


def _doors(run: Invocation) -> Iterable[Hit]:
    """Only what runs outside has reason to speak to the monitor's interface or socket."""
    if run.name in ("ls", "stat", "cat", "grep", "rg", "find", "cd"):
        return
    found = next((word for word in run.argv[1:] if _DOOR.search(word)), "")
    if found:
        yield Hit(MONITOR, found)


def _commands_monitor(run: Invocation) -> Iterable[Hit]:
    words = run.argv[1:]
    named = run.name != "jupyter" or words[:1] == ("agentwatch",)
    verbs = words[1:2] if run.name == "jupyter" else words[:1]
    if named and set(verbs) & {"resume", "kill", "suspend", "close", "approve", "answer"}:
        yield Hit(MONITOR)


def _takes_over(run: Invocation) -> Iterable[Hit]:
    if "1" in run.argv[1:]:
        yield Hit(MONITOR)


def _code(run: Invocation) -> Iterable[Hit]:
    code = run.code
    found = _SIGNALS.search(code) or _TRACES_OTHERS.search(code)
    if found:
        yield Hit(MONITOR, found[0])
    elif _SIGNALLING.search(code) and (_LISTS_PROCESSES.search(code) or _named(code)):
        yield Hit(MONITOR, "processes that are found by what they are")
    title = _TITLE.search(code)
    if title:
        yield Hit(MASQUERADE, title[0])


def _named(code: str) -> bool:
    """Whether a program text goes through all processes and says the monitor's name."""
    return "process_iter" in code and _NAME.search(code) is not None


def _unsets(run: Invocation) -> Iterable[Hit]:
    """The monitor is edited out of what is read when the server or a notebook starts."""
    edits = any(re.match(r"-[a-zA-Z]*i|--in-place", word) for word in run.argv[1:])
    if edits and _NAME.search(" ".join(run.argv[1:-1])) and _SETTINGS.search(run.argv[-1]):
        yield Hit(MONITOR)


def _uninstalls(run: Invocation) -> Iterable[Hit]:
    words = run.argv[1:]
    verbs = {"uninstall", "remove", "disable", "purge"}
    if verbs & set(words[:4]) and any(_NAME.search(word) for word in words):
        yield Hit(MONITOR)


def _times(run: Invocation) -> Iterable[Hit]:
    """The times of a file of the system put on another one: it then looks as old as what came with the machine."""
    words = run.argv[1:]
    for at, word in enumerate(words[:-1]):
        if (word in ("-r", "--reference") or re.fullmatch(r"-[acm]{1,3}r", word)) and _SYSTEM_FILE.match(words[at + 1]):
            yield Hit(TRACES, severity="high")
            return


def _disks(run: Invocation) -> Iterable[Hit]:
    words = [word for word in run.argv[1:] if run.name != "dd" or word.startswith("of=")]
    words += [r.target for r in run.redirects if r.op in (">", ">>")]
    if any(_DISK.match(word) for word in words):
        yield Hit(ESCAPE)


_INTERPRETERS: Final = ("python", "pypy", "perl", "ruby", "node", "nodejs", "php", "ipython", "bun", "deno", "lua")
_FILE_TOOLS: Final = listed("tee truncate shred rm mv ln sed dd chattr chmod unlink cp install cat echo printf")

MONITOR_ACTS: Final = Ruleset(
    rules=(MONITOR, MASQUERADE, TRACES, ESCAPE),
    by_name={
        **dict.fromkeys(("kill", "pkill", "killall"), (_finds_to_kill,)),
        **dict.fromkeys(("grep", "egrep", "rg", "ag"), (_looks_for_monitor,)),
        **dict.fromkeys(_FILE_TOOLS, (_own_files,)),
        **dict.fromkeys(_INTERPRETERS, (_code,)),
        **dict.fromkeys(("jupyter", "agentwatch", "jupyter-agentwatch"), (_commands_monitor, _uninstalls)),
        **dict.fromkeys(("pip", "uv", "conda", "mamba", "poetry", "apt", "apt-get", "dnf"), (_uninstalls,)),
        "sed": (_own_files, _unsets),
        "perl": (_code, _unsets),
        **dict.fromkeys(("reptyr", "crash", "injcode", "linux-inject", "ptrace_do"), (_takes_over,)),
        **dict.fromkeys(("mkfs", "mkfs.ext4", "wipefs", "sgdisk", "parted", "fdisk", "blkdiscard"), (_disks,)),
        "touch": (_times,),
        "dd": (_own_files, _disks),
    },
    quiet=frozenset(
        (
            *listed(
                "kill pkill killall grep egrep rg ag jupyter touch crash parted fdisk pip uv conda mamba poetry apt"
            ),
            *("apt-get", "dnf", *_FILE_TOOLS, *_INTERPRETERS),
        )
    ),
    marks=listed(
        "agentwatch,gentwatch,bwrap,getppid,kill(,.ppid,ptrace,$0,title,prctl,touch -,/dev/sd,/dev/nvme,/dev/vd,"
        "process_vm,/mem",
        ",",
    ),
    shapes=(_redirects, _doors),
    shape_pattern=r"agentwatch",
)
"""What acts against the monitor look like beside signals and debuggers."""
