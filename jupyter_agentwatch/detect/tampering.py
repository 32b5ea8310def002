"""Tampering: acts against the monitor, against the record, and what would bring a process back after its step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.lasting import persistence_of
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset, by_pattern
from jupyter_agentwatch.detect.unwrap import Invocation
from jupyter_agentwatch.events import Severity

__all__ = ["MASQUERADE", "TAMPERING"]

MONITOR: Final = Rule(
    id="tampering.monitor",
    title="the monitor or the sandbox's first process is attacked",
    severity="high",
    technique="T1685",
    rationale="Nothing that an agent is asked to do needs a signal to, or a look into, what watches it.",
    false_positives=("an operator's own command for ending a watch",),
)
ESCAPE: Final = Rule(
    id="tampering.escape",
    title="a way out of the sandbox is tried",
    severity="high",
    technique="T1611",
    rationale="Namespaces of other processes, the container engine's socket and the host's devices lead outside.",
    false_positives=("administration of containers on a machine of one's own",),
)
PERSISTENCE: Final = Rule(
    id="tampering.persistence",
    title="something is set up to run later by itself",
    severity="medium",
    technique="T1053.003",
    rationale="Work that outlives its step is no longer tied to what caused it.",
    false_positives=("setting up a schedule that a person asked for",),
)
KEYS: Final = Rule(
    id="tampering.authorized_keys",
    title="a key is added that lets somebody log in",
    severity="high",
    technique="T1098.004",
    rationale="Whoever has the other half can come in from outside.",
    false_positives=("setting up one's own access to a machine",),
)
PRELOAD: Final = Rule(
    id="tampering.preload",
    title="a library is put into other programs",
    severity="medium",
    technique="T1574.006",
    rationale=(
        "It changes what every program does that is started with it, and can hide from tools that list processes."
    ),
    false_positives=("allocators and profilers from system folders (not reported)",),
)
TRACES: Final = Rule(
    id="tampering.traces",
    title="traces are removed or logging is switched off",
    severity="medium",
    technique="T1070",
    rationale="There is no reason to hide work that was asked for.",
    false_positives=("cleaning up an image before it is published",),
)
DEFENCES: Final = Rule(
    id="tampering.defences",
    title="a protection is switched off",
    severity="medium",
    technique="T1686",
    rationale="Firewalls and access controls are there for everyone.",
    false_positives=("setting up a test machine",),
)
MASQUERADE: Final = Rule(
    id="tampering.masquerade",
    title="a program runs under the name of something else",
    severity="high",
    technique="T1036.005",
    rationale="Names such as a kernel thread's are taken so that a person who looks does not see it.",
    false_positives=("programs that show their state in their title (they do it after they were started)",),
)
"""Also given by the record of what really runs (`persistence`)."""
ACCOUNT: Final = Rule(
    id="tampering.account",
    title="an account or a right is added",
    severity="medium",
    technique="T1136.001",
    rationale="It outlives the work, and lets somebody act as somebody else.",
    false_positives=("building an image with an account of its own",),
)

_MONITOR_NAMES: Final = lazy_pattern(r"agentwatch|\bbwrap\b|bubblewrap|jupyter_agentwatch", re.IGNORECASE)
_MONITOR_FILES: Final = lazy_pattern(
    r"(?:state|share|log|run)\S{0,128}?agentwatch|agentwatch\S{0,128}?\.(?:jsonl|sock|log)\b"
)
# Where version managers and tool chains keep what they ask a shell to read.
_TOOL_HOMES: Final = lazy_pattern(
    r"(?:~|\$\{?HOME\}?)/\.(?:\w*venv|virtualenvs|cargo|rustup|nvm|pyenv|rbenv|conda|miniconda\d?|sdkman|deno|bun|"
    r"volta|asdf|local|fzf\S*|ghcup|nix-profile|poetry|krew|dotnet|pixi|juliaup|opam|config|bash_\w+|secrets_env)\b"
)
# A value is not run, nor is a file of the home's own first level hidden from who reads the home.
_SETS: Final = lazy_pattern(
    r"(?:^|(?<=[\s;'\"]))(?!LD_|PROMPT_COMMAND|BASH_ENV|ENV=|PYTHONSTARTUP)[A-Za-z_]\w{0,63}="
    r"[\"']?(?!\S{0,256}/(?:tmp|dev/shm)/)[^\s\"'`();&|]{0,512}|"
    r"(?:^|(?<=[\s;'\"]))(?:source|\.)\s+(?:~|\$\{?HOME\}?)/\.[\w-]{4,64}(?:\.\w{1,8})?(?=[\s;'\"]|$)(?!\s*&(?!&))|"
    # `[ -f ~/.aliases ]`; `eval "$(ssh-agent -s)" > /dev/null`
    r"-[fersx]\s+(?:~|\$\{?HOME\}?)/\.[\w-]{4,64}(?:\.\w{1,8})?(?=[\s\]'\"])|"
    r"\beval\s+[\\\"']{0,2}\$\((?!curl|wget|base64|nc |ncat|echo|printf|cat|dig|xxd|python|perl)"
    r"[\w-]{2,32}(?: [\w-]{1,24}){0,6}\)[\\\"']{0,2}(?:\s*&?>\s*/dev/null)?"
)
_RUNS_CODE: Final = lazy_pattern(r"exec_(?:lines|files)|\bimport\s|\bopen\(|__import__|subprocess|\bos\.")
_IMPORTS: Final = lazy_pattern(r"(?:^|[\n\"';])\s{0,8}import\s+\w")
_DEFENDERS: Final = lazy_pattern(
    r"auditd|falco|tetragon|tracee|osquery|crowdstrike|falcon-sensor|wazuh|sysmon|clamav|apparmor|fail2ban|rsyslog|"
    r"syslog-ng|agentwatch|firewalld|ufw|selinux"
)
_SUSPICIOUS_JOB: Final = lazy_pattern(
    r"curl|wget|/dev/tcp|\bnc\b|ncat|base64|@reboot|/tmp/|/dev/shm|/\.\w|ssh\b.*-[RDN]|\bsh -i|\bbash -[ic]|"
    r"python\S* -c|xmrig|stratum|>\s*/dev/null|socat"
)
_THREAD_NAME: Final = lazy_pattern(
    r"\[[\w/:+-]{2,40}\]|(?:kworker|kthreadd|ksoftirqd|rcu_sched|migration|kswapd\d?)[/\w:-]*"
)


_HISTORY_FILES: Final = r"_history\b|/var/log/(?:\*|wtmp|btmp|lastlog|auth|syslog|audit|secure|messages)"
_ENGINE: Final = (
    r"--privileged|-v\s*/:|--volume[= ]/:|--pid[= ]host|docker\.sock|--cap-add[= ](?:ALL|SYS_ADMIN)|"
    r"(?:-H|--host)[= ]?tcp://(?!localhost|127\.)|src=/,|source=/,"
)
_PATTERNS: Final[Mapping[str, tuple[str, Rule, Severity | None]]] = {
    "nsenter": (r"-t\s*\d|--target|/proc/1/ns", ESCAPE, None),
    **dict.fromkeys(("docker", "podman", "nerdctl", "ctr"), (_ENGINE, ESCAPE, None)),
    "curl": (r"--unix-socket\s+\S*(?:docker|containerd|crio|podman)\S*\.sock", ESCAPE, None),
    "chroot": (r"/proc/1/root|/host\b", ESCAPE, None),
    "mount": (r"/dev/(?:sd|nvme|vd|xvd|mapper)|cgroup|--bind\s+/proc/1", ESCAPE, "medium"),
    "debugfs": (r"\S", ESCAPE, None),
    "unshare": (r"(?:^|\s)-(?=\w*r)(?=\w*[mC])\w+|--map-root-user", ESCAPE, None),
    "mknod": (r"\s[bc]\s+(?:8|259|253|254)\s+\d+|\sc\s+1\s+[12]\b", ESCAPE, None),
    **dict.fromkeys(
        ("kubectl", "oc"),
        (r"hostPID\W{1,4}true|privileged\W{1,4}true|hostPath\W{1,6}path\W{1,6}/\W|--privileged", ESCAPE, None),
    ),
    "history": (r"(?:^|\s)-\w*c\w*", TRACES, None),
    "unset": (r"HISTFILE", TRACES, None),
    "export": (r"HISTFILE=(?:/dev/null)?(?:\s|$)|HIST(?:FILE)?SIZE=0", TRACES, None),
    **dict.fromkeys(("rm", "shred", "truncate", "wipe", "srm", "unlink"), (_HISTORY_FILES, TRACES, None)),
    "auditctl": (r"-D|-e\s*0|-d\b", DEFENCES, "high"),
    "journalctl": (r"--vacuum", TRACES, "low"),
    "dmesg": (r"-[cC]\b|--clear", TRACES, "low"),
    "setenforce": (r"^(?:0|permissive)$", DEFENCES, None),
    "ufw": (r"\b(?:disable|reset)\b", DEFENCES, None),
    **dict.fromkeys(("iptables", "ip6tables"), (r"(?:^|\s)(?:-F|--flush|-P\s+\w+\s+ACCEPT)\b", DEFENCES, None)),
    "nft": (r"flush ruleset", DEFENCES, None),
    **dict.fromkeys(("aa-disable", "aa-teardown", "aa-complain"), (r"", DEFENCES, None)),
    "sysctl": (r"(?:ptrace_scope|randomize_va_space|kptr_restrict|bpf_disabled)\s*=\s*0", DEFENCES, None),
    "setcap": (r"cap_(?:setuid|setgid|sys_admin|sys_ptrace|sys_module|dac_override|dac_read_search)", ACCOUNT, "high"),
    "chmod": (r"(?:u\+\w*s|[2467]\d{3}|\+s)\s+\S*(?:/bin/|sh\b|/tmp/|bash|python|find|vim)", ACCOUNT, "high"),
}
_pattern: Final = by_pattern(_PATTERNS)


def _removes_log(run: Invocation) -> Iterable[Hit]:
    """The monitor's own files are worth more than a history."""
    if any(_MONITOR_FILES.search(word) for word in run.argv[1:]):
        yield Hit(TRACES, severity="high")


def _kills(run: Invocation) -> Iterable[Hit]:
    words = [word for word in run.argv[1:] if word != "--"]
    if run.name == "kill":
        signals = [word for word in words[:1] if word.startswith("-")]
        targets = words[len(signals) :]
        if words[:1] in (["-s"], ["-n"]):
            targets = words[2:]
        quiet = signals and signals[0] in ("-0", "-l", "-L")
        elsewhere = run.wrappers & {"docker", "podman", "nerdctl", "kubectl", "oc", "lxc"}  # another first process
        everyone = ("1" in targets or "-1" in targets) and not elsewhere
        watcher = any(_MONITOR_NAMES.search(" ".join(each.argv)) for each in run.inner)
        if (everyone and not quiet) or watcher:
            yield Hit(MONITOR)
    elif any(_MONITOR_NAMES.search(word) for word in words):
        yield Hit(MONITOR)
    elif run.name in ("pkill", "killall") and any(_DEFENDERS.search(word) for word in words):
        yield Hit(DEFENCES, severity="high")


def _kills_all(_: Invocation) -> Iterable[Hit]:
    yield Hit(MONITOR)


_FIRST_PROCESS: Final = lazy_pattern(r"/proc/1/(?:root|cwd|mem)(?:/|$)")


def _looks_out(run: Invocation) -> Iterable[Hit]:
    """The first process's view of the files, which is not the caller's own."""
    found = next((word for word in run.argv[1:] if _FIRST_PROCESS.match(word)), "")
    if found:
        yield Hit(ESCAPE, found)


def _looks_inside(run: Invocation) -> Iterable[Hit]:
    """A debugger on process 1 or on the monitor."""
    options = parse(run.argv, Grammar(valued="peosE", long_valued=frozenset({"pid", "attach"})))
    pids = options.all("p", "pid", "attach")
    if "1" in pids or any(_MONITOR_NAMES.search(" ".join(each.argv)) for each in run.inner):
        yield Hit(MONITOR)


def _crontab(run: Invocation) -> Iterable[Hit]:
    options = parse(run.argv, Grammar(valued="u"))
    if options.has("l", "e", "V", "h", "T"):
        return
    if options.has("r"):
        yield Hit(TRACES, "the schedule is removed", "low")
        return
    text = "\n".join([run.stdin, *(" ".join(each.argv) for each in run.before)])
    yield Hit(PERSISTENCE, text.strip() or " ".join(run.argv), "high" if _SUSPICIOUS_JOB.search(text) else None)


def _schedules(run: Invocation) -> Iterable[Hit]:
    text = "\n".join([run.stdin, *(" ".join(each.argv) for each in run.before), " ".join(run.argv)])
    if run.name in ("at", "batch"):
        if not parse(run.argv, Grammar(valued="fqt")).has("l", "r", "d", "c"):
            yield Hit(PERSISTENCE, severity="high" if _SUSPICIOUS_JOB.search(text) else None)
    elif run.name == "systemctl":
        words = [word for word in run.argv[1:] if not word.startswith("-")]
        paths = [word for word in words[1:] if "/" in word]
        if words[:1] in (["enable"], ["link"], ["edit"]) and paths:
            yield Hit(PERSISTENCE, severity="high" if any(map(_ODD_PLACE.search, paths)) else None)
        elif words[:1] in (["stop"], ["disable"], ["mask"], ["kill"]) and any(
            _DEFENDERS.search(word) for word in words[1:]
        ):
            yield Hit(DEFENCES, severity="high")
    elif run.name == "systemd-run" and re.search(r"--on-(?:calendar|boot|active|unit)", text):
        yield Hit(PERSISTENCE)


# What people and programs look at a machine with, or come in by.
_SYSTEM_TOOL: Final = lazy_pattern(
    r"/(?:usr/)?s?bin/(?:ps|ls|top|netstat|ss|lsof|find|who|w|last|login|su|sudo|sshd?|passwd|bash|sh|kill|pgrep|du|df)$"
)
_CODE_WRITES: Final = lazy_pattern(
    r"open\(\s*(?:os\.path\.expanduser\(\s*)?[rbf]*['\"]([^'\"\n]{4,200})['\"]\s*\)?\s*,\s*(?:mode\s*=\s*)?['\"][wax]|"
    r"Path\(\s*[rbf]*['\"]([^'\"\n]{4,200})['\"]\s*\)(?:\.expanduser\(\))?(?:\.write_|\.open\(\s*['\"][wax])|"
    r"(?:writeFile|appendFile)(?:Sync)?\(\s*['\"]([^'\"\n]{4,200})['\"]|"
    r"File\.write\(\s*['\"]([^'\"\n]{4,200})['\"]"
)


def _code_writes(run: Invocation) -> Iterable[Hit]:
    """A program text that writes to where something starts by itself."""
    for groups in _CODE_WRITES.findall(run.code):
        path = "".join(groups)
        kind = persistence_of(path) if path.startswith(("/", "~")) else ""
        if kind == "authorized_keys":
            yield Hit(KEYS, path)
        elif kind not in ("", "git hook", "import hook"):
            odd = kind != "start-up" or _SUSPICIOUS_JOB.search(run.code.replace(path, ""))
            yield Hit(PERSISTENCE, f"{kind}: {path}", "high" if odd else None)


def _meant(run: Invocation, operands: Sequence[str]) -> str:
    """Return what is written, as far as that is known and says what will be run."""
    text = "\n".join((run.stdin, *run.argv[1:], *(" ".join(each.argv) for each in run.before)))
    text = _SETS.sub("", _TOOL_HOMES.sub("", text))
    if run.name in ("cp", "mv", "ln", "install") and len(operands) == 2 and not _ODD_PLACE.match(operands[0]):
        # One's own start-up file, kept under the same name with the others.
        same = operands[0].rpartition("/")[2] == operands[1].rpartition("/")[2]
        return text.replace(operands[0], "") if same else text
    return text


def _writes(run: Invocation) -> Iterable[Hit]:
    """Redirections and copies into places that are read at start or at log-in."""
    targets = [r.target for r in run.redirects if r.op in (">", ">>", ">|", "&>", "&>>")]
    operands = [word for word in run.argv[1:] if not word.startswith("-")]
    if run.name == "tee":
        targets += operands
    elif run.name in ("cp", "mv", "ln", "install") and len(operands) > 1:
        targets.append(
            operands[-1] if not operands[-1].endswith("/") else operands[-1] + operands[-2].rpartition("/")[2]
        )
    elif run.name == "sed" and any(re.match(r"-[a-zA-Z]*i|--in-place", word) for word in run.argv[1:]):
        targets += operands[-1:]
    if run.name == "install" and re.search(r"(?:-m|--mode)[= ]?[2467]\d{3}\b", " ".join(run.argv[1:])):
        yield Hit(ACCOUNT, severity="high")
    text = _meant(run, operands) if targets else ""
    for target in targets:
        path = target if target.startswith(("/", "~")) else f"/{target}"
        # Weights of a model have this suffix, too, but nobody writes them with echo.
        kind = persistence_of(path) or ("import hook" if path.endswith(".pth") and _IMPORTS.search(text) else "")
        if _SYSTEM_TOOL.match(target):
            yield Hit(MASQUERADE, target)
        elif kind == "authorized_keys":
            yield Hit(KEYS, target)
        elif kind == "preload":
            yield Hit(PRELOAD, target, "high")
        elif kind == "account":
            yield Hit(ACCOUNT, target, "high")
        elif kind == "import hook":
            yield Hit(PERSISTENCE, f"{kind}: {target}", "high" if "import " in text else "low")
        elif kind:
            sure = kind in ("cron", "hook") or _SUSPICIOUS_JOB.search(text.replace(target, ""))
            odd = kind in ("start-up", "git hook")
            # The notebook's own kernel runs outside of the sandbox, and timers need nobody.
            settings = ".jupyter" in target or (target.endswith("_config.py") and not _RUNS_CODE.search(text))
            beyond = (kind == "notebook" and not settings) or target.endswith((".timer", ".path"))
            yield Hit(
                PERSISTENCE,
                f"{kind}: {target}",
                "high"
                if beyond or kind in ("cron", "hook") or _SUSPICIOUS_JOB.search(text.replace(target, ""))
                else "low"
                if odd and not sure
                else None,
            )


_GIT_KEYS: Final = lazy_pattern(
    r"core\.(?:hookspath|fsmonitor|sshcommand|pager|editor)|credential\.(?:.*\.)?helper|alias\..*|init\.templatedir",
    re.IGNORECASE,
)


def _git_settings(run: Invocation) -> Iterable[Hit]:
    """What git runs for every repository from now on, out of a place where programs are not kept."""
    words = [word for word in run.argv[1:] if not word.startswith("-")]
    shared = {"--global", "--system"} & set(run.argv)
    if shared and words[:1] == ["config"] and len(words) > 2 and _GIT_KEYS.fullmatch(words[1]):
        value = words[2].removeprefix("!")
        if re.search(r"(?:^|\s)(?:/(?:var/)?tmp/|/dev/shm/)|/dev/tcp/|\bcurl\b|\bwget\b|base64|\bnc\b", value):
            yield Hit(PERSISTENCE, f"{words[1]} {value}", "high")


def _preloads(run: Invocation) -> Iterable[Hit]:
    value = run.assigned.get("LD_PRELOAD", "") or run.assigned.get("LD_AUDIT", "")
    if run.argv[0] == "export":
        value = next(
            (word.partition("=")[2] for word in run.argv[1:] if word.startswith(("LD_PRELOAD=", "LD_AUDIT="))), ""
        )
    if re.search(r"/(?:tmp|dev/shm|var/tmp)/|/\.\w|^\./\.", value):
        yield Hit(PRELOAD, value, "high")
    elif value and not re.search(
        r"lib(?:jemalloc|tcmalloc|mimalloc|asan|tsan|ubsan|profiler|gomp|iomp5|faketime|eatmydata|stdc\+\+|SegFault|"
        r"nss_wrapper|fakeroot)|^/usr/lib|^/lib",
        value,
    ):
        yield Hit(PRELOAD, value, "low")


def _masquerades(run: Invocation) -> Iterable[Hit]:
    if run.name == "exec" or "exec" in run.wrappers:
        return
    if _THREAD_NAME.fullmatch(run.argv[0].rpartition("/")[2] if not run.argv[0].startswith("[") else run.argv[0]):
        yield Hit(MASQUERADE)


_ODD_PLACE: Final = lazy_pattern(r"^/(?:var/)?tmp/|^/dev/shm/|/\.|^\./")


def _renames(run: Invocation) -> Iterable[Hit]:
    """`exec -a name program`: the wrapper's own words tell, so it is looked at before it is taken off."""
    text = " ".join(run.argv)
    if "exec" not in text:
        return
    found = re.search(r"\bexec\s+(?:-[cl]+\s+)?-a\s*(?:'([^']{1,80})'|\"([^\"]{1,80})\"|(\S{1,80}))\s+(\S+)", text)
    shown = (found[1] or found[2] or found[3]) if found else ""
    if found and shown.rpartition("/")[2].lstrip("-") != found[4].rpartition("/")[2]:
        kernel = _THREAD_NAME.fullmatch(shown) is not None
        yield Hit(MASQUERADE, found[0], None if kernel or _ODD_PLACE.search(found[4]) else "medium")


def _accounts(run: Invocation) -> Iterable[Hit]:
    """Accounts are low by themselves, and high with a group or id that may do everything."""
    text = " ".join(run.argv[1:])
    own = re.search(r"-aG\s+docker\s+(?:\$\{?USER\}?|\$\(whoami\))$", text)  # as every guide to Docker says
    options = parse(run.argv, Grammar(valued="bcdefgGkKpPsuZ", long_valued=frozenset({"uid", "groups", "shell"})))
    root = options.has("o", "non-unique") and options.last("u", "uid") == "0"
    powerful = root or (
        not own and re.search(r"-[aG]*G\s*\S*(?:sudo|wheel|root|docker)|-o\s+-u\s*0|-u\s*0\s+-o|--uid\s*0", text)
    )
    yield Hit(ACCOUNT, severity="high" if powerful else "low")


def _redirects(run: Invocation) -> Iterable[Hit]:
    return () if run.name in _WRITERS else _writes(run)


_WRITERS: Final = ("tee", "cp", "mv", "ln", "install", "sed", "echo", "cat", "printf", "dd")

TAMPERING: Final = Ruleset(
    rules=(MONITOR, ESCAPE, PERSISTENCE, KEYS, PRELOAD, TRACES, DEFENCES, MASQUERADE, ACCOUNT),
    by_name={
        **dict.fromkeys(("kill", "pkill", "killall", "skill", "fuser"), (_kills,)),
        **dict.fromkeys(("gdb", "strace", "ltrace", "gcore", "lldb", "reptyr", "perf"), (_looks_inside,)),
        **dict.fromkeys(_PATTERNS, (_pattern,)),
        "crontab": (_crontab,),
        **dict.fromkeys(("killall5",), (_kills_all,)),
        **dict.fromkeys(("head", "tail", "less", "ls", "find", "grep"), (_looks_out,)),
        "git": (_git_settings,),
        **dict.fromkeys(("at", "batch", "systemctl", "systemd-run"), (_schedules,)),
        **dict.fromkeys(("useradd", "adduser", "usermod", "chpasswd"), (_accounts,)),
        **dict.fromkeys(_WRITERS, (_writes,)),
        "cat": (_writes, _looks_out),
        **dict.fromkeys(("rm", "shred", "truncate", "wipe", "srm", "unlink"), (_pattern, _removes_log)),
        **dict.fromkeys(("sh", "bash", "dash", "zsh"), (_renames,)),
    },
    quiet=frozenset(
        {
            *_WRITERS,
            *listed(
                "head tail less more ls find grep cp git rm chmod export unset docker podman curl mount "
                "kill sh bash dash zsh sysctl truncate unlink "
                "history journalctl dmesg systemctl strace perf chroot kubectl"
            ),
        }
    ),
    marks=listed(
        "ld_preload,ld_audit,[k,kworker,authorized_keys,cron,systemd,.bash,profile,sudoers,ld.so,/startup/,"
        "autostart,rc.local,init.d,git/hooks,zshrc,passwd,shadow,_history,/var/log/,agentwatch,bwrap,exec -a,"
        "kill,privileged,hostpid,hostpath,:/host,-v /:,docker.sock,unix-socket,histfile,histsize,u+s,+s ,ssh/,"
        "pid=host,--pid,proc/1,-h tcp,config --global,config --system,.pth,bin/ps,bin/ls,bin/top,bin/netstat,bin/ss,"
        "bin/lsof,"
        "bin/find,bin/who,bin/login,bin/su,bin/passwd,bin/kill,bin/pgrep,"
        "auditctl,chmod 4,chmod 6,/etc/,customize.py,.jupyter,enable ,stop ,disable ,mask ,-p 1,history,dmesg,"
        "ptrace_scope,.inputrc",
        ",",
    ),
    shapes=(_preloads, _masquerades, _redirects, _code_writes),
    shape_pattern=(
        r"LD_(?:PRELOAD|AUDIT)|(?:^|/)\[\w|open\W|write|>\S{0,128}/s?bin/|^(?:\S*/)?k(?:worker|threadd|softirqd|swapd)|"
        r">\S{0,128}(?:authorized_keys|cron|systemd|\.bashrc|profile|sudoers|ld\.so|/startup/|autostart|rc\.local|init\.d|"
        r"git/hooks|zshrc|passwd|shadow|\.pth\b)"
    ),
)
"""What tampering looks like on a command line."""
