"""Acts against what guards the machine: the kernel, its security settings, mounts, attributes, firewalls and logs.

It reads what is written as well as what is run: `echo 0 > /proc/sys/…` and `sysctl` are one act.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Hit, Rule, Ruleset, by_pattern
from jupyter_agentwatch.detect.unwrap import Invocation
from jupyter_agentwatch.events import Severity

__all__ = ["GUARDS"]

KERNEL: Final = Rule(
    id="tampering.kernel",
    title="code is put into the kernel or taken out of it",
    severity="high",
    technique="T1547.006",
    rationale="What runs in the kernel is bound by no sandbox, and can hide whatever it likes.",
    false_positives=("work on a driver, on a machine of one's own",),
)
SETTING: Final = Rule(
    id="tampering.setting",
    title="a security setting of the kernel is changed",
    severity="high",
    technique="T1685",
    rationale="Such settings keep processes from reading, tracing or replacing each other.",
    false_positives=("debugging and fuzzing on a test machine (core_pattern=core is not reported)",),
)
ATTRIBUTES: Final = Rule(
    id="tampering.attributes",
    title="attributes that keep a file from being changed are set or taken away",
    severity="high",
    technique="T1222.002",
    rationale="On start-up files they keep a backdoor in place, on logs and accounts they are the protection.",
    false_positives=("copy-on-write switched off for a data folder (`chattr +C`, not reported)",),
)
MOUNT: Final = Rule(
    id="tampering.mount",
    title="a mount hides, uncovers or loosens what others rely on",
    severity="high",
    technique="T1564.013",
    rationale="A mount over /proc hides a process, one over a system file replaces it, a remount takes a limit off.",
    false_positives=("building an image or a root file system of one's own (mounts below it are not reported)",),
)
BLINDED: Final = Rule(
    id="tampering.blinded",
    title="what watches or protects the machine is stopped, removed or emptied",
    severity="high",
    technique="T1685.001",
    rationale="What is done next is meant to go unseen.",
    false_positives=("replacing one log or audit service with another",),
)

LATER: Final = Rule(
    id="tampering.later",
    title="work is handed to a scheduler outside of the command",
    severity="high",
    technique="T1053",
    rationale="The scheduler starts it, so that neither the step nor the process tree shows who asked for it.",
    false_positives=("a person asked for a schedule",),
)

_SERVICE: Final = (
    r"(?:auditd|falco\S*|tetragon|tracee|osqueryd?|falcon-sensor|wazuh\S*|ossec\S*|sysmon|clamav\S*|clamd|apparmor|"
    r"fail2ban|r?syslogd?|syslog-ng|systemd-journald|firewalld|ufw|nftables|iptables|sshguard|crowdsec|aide|"
    r"auoms|mdatp|sentinelone|sentinelagent|cbagentd?|ds_agent|filebeat|auditbeat|agentwatch|selinux-policy\S*)"
    r"(?:\.service|\.socket)?"
)
_SYSTEM_LOG: Final = (
    r"/var/log/(?:\*|wtmp|btmp|utmp|lastlog|faillog|auth|secure|syslog|messages|kern|daemon|cron|user|sudo|audit|"
    r"journal|maillog|nginx/access|apache2?/access|httpd/access)|/(?:var/)?run/utmp|/etc/audit/"
)
_HISTORY: Final = r"(?:^|/)\.(?:bash|zsh|sh|ash|ksh|fish)_history$|HISTFILE"
_GUARDED_SETTING: Final = lazy_pattern(
    r"ptrace_scope|randomize_va_space|kptr_restrict|dmesg_restrict|unprivileged_bpf_disabled|bpf_jit_harden|"
    r"modules_disabled|kexec_load_disabled|perf_event_paranoid|mmap_min_addr|suid_dumpable|sysrq|"
    r"protected_(?:sym|hard)links|protected_(?:fifos|regular)|unprivileged_userns|apparmor_restrict\w*|"
    r"yama|ftrace_enabled|core_pattern"
)
_GUARDED_FILE: Final = lazy_pattern(
    r"^/proc/sysrq-trigger|^/sys/kernel/(?:security/|debug/|tracing/|uevent_helper)|"
    r"^/sys/fs/selinux/|/release_agent$|/notify_on_release$|^/sys/fs/bpf/|^/sys/module/\w+/parameters/|"
    r"^/etc/selinux/config|^/etc/modules(?:$|-load\.d/)|^/lib/modules/|"
    r"^/proc/(?:self|\d+|\$\$|\$[({][^/]{1,64}[)}])/mem$"
)
_STRICT: Final = lazy_pattern(r"^\s*(?:[1-9]\d*|core(?:[.%\w-]*))\s*$")
_DETACHED: Final = lazy_pattern(
    r"--(?:on-(?:calendar|boot|active|startup|unit|clock)|timer-property|path-property|remain-after-exit)|"
    r"(?:^|\s)-r\s|Restart="
)
_DELETES: Final = lazy_pattern(r"[/0-9$}!]d(?:[\s;'\"]|$)")
_EMPTYING: Final = frozenset({"", ":", "true"})
_PROTECTED: Final = lazy_pattern(
    r"^(?:/etc|/var/log|/var/spool/cron|/usr|/bin|/sbin|/lib|/boot|/root)(?:/|$)|/\.ssh(?:/|$)|"
    r"/\.\w*(?:rc|profile|history|login|logout)$|/authorized_keys|/\.config/(?:systemd|autostart)"
)
_COVERED: Final = lazy_pattern(r"^/(?:proc|etc|usr|bin|sbin|lib(?:64)?|boot|sys|root|var/log|var/run)(?:/|$)|^/$")
_LOOSE: Final = frozenset({"rw", "exec", "suid", "dev"})

_PATTERNS: Final[Mapping[str, tuple[str, Rule, Severity | None]]] = {
    "kexec": (r"(?:^|\s)(?:-[lesp]\w*|--load\S*|--exec|--kexec\S*)\b", KERNEL, None),
    "bpftool": (r"\b(?:prog(?:ram)? (?:load|attach|run)|(?:net|cgroup) attach|map (?:pin|update))", KERNEL, None),
    "ip": (r"\bxdp(?:generic|drv|offload)? (?:obj|object|pinned)\b", KERNEL, None),
    "auditctl": (r"(?:^|\s)-a \S*(?:never,|,never)|(?:^|\s)-e ?0|--reset-lost|(?:^|\s)-W ", BLINDED, None),
    "firewall-cmd": (r"--panic-off|--set-default-zone=trusted|--zone=trusted", BLINDED, None),
    "nft": (r"(?:^|\s)(?:flush|delete) (?:ruleset|table|chain|rule)\b", BLINDED, None),
    "journalctl": (r"--vacuum-(?:time=\d+(?:s|sec|m|min)\b|size=\d+[BK]?(?:\s|$)|files=[01]\b)", BLINDED, None),
    "set": (r"^\+o history$", BLINDED, None),
    "shopt": (r"^-u[o]? history$|^-[ou]{2} history$", BLINDED, None),
    "logrotate": (r"--force /dev/null", BLINDED, None),
    "loginctl": (r"^enable-linger", LATER, None),
    "utmpdump": (r"-r\b|--reverse", BLINDED, None),
    **dict.fromkeys(("apparmor_parser",), (r"(?:^|\s)(?:-R|--remove)\b", BLINDED, None)),
    **dict.fromkeys(("aa-disable", "aa-teardown", "aa-complain", "aa-remove-unknown"), (r"", BLINDED, None)),
    "setenforce": (r"(?i)^(?:0|permissive)$", BLINDED, None),
    "setsebool": (r"(?i)\b(?:on|1|true)$", BLINDED, "medium"),
    "ufw": (r"\b(?:disable|reset)\b|\bdefault allow (?:in|out)|\blogging off\b", BLINDED, None),
}
_pattern: Final = by_pattern(_PATTERNS)


_REMOVING: Final = frozenset(listed("remove purge autoremove erase del -e -r -P -R -Rs -Rns --purge --remove --erase"))
_STOPPERS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("apt", "apt-get", "dnf", "yum", "zypper", "apk", "rpm", "dpkg", "pacman"), _REMOVING),
    **dict.fromkeys(("service", "rc-service", "invoke-rc.d"), frozenset({"stop", "force-stop"})),
    **dict.fromkeys(
        ("rc-update", "update-rc.d", "chkconfig"), frozenset({"off", "remove", "disable", "del", "delete"})
    ),
    "systemctl": frozenset({"stop", "disable", "mask", "kill", "revert"}),
}


def _modules(run: Invocation) -> Iterable[Hit]:
    """`modprobe msr` and the like are left to those who know what they are for."""
    options = parse(run.argv, Grammar(valued="dSC", long_valued=frozenset({"dirname", "set-version", "config"})))
    asks = options.has("n", "dry-run", "show", "D", "show-depends", "c", "showconfig", "R", "V", "version", "h", "help")
    if asks or not options.operands:
        return
    from_file = any("/" in word or word.endswith((".ko", ".ko.xz", ".ko.zst")) for word in options.operands)
    removed = run.name == "rmmod" or options.has("r", "remove")
    if run.name == "modprobe" and not from_file and not removed:
        return
    yield Hit(KERNEL)


def _sysctl(run: Invocation) -> Iterable[Hit]:
    for word in run.argv[1:]:
        key, equals, value = word.partition("=")
        if equals and _GUARDED_SETTING.search(key.replace("/", ".")) and _loosens(key, value):
            yield Hit(SETTING, word)
            return


def _loosens(key: str, value: str) -> bool:
    """Return whether a value takes a protection off: most settings protect more with a greater number."""
    value = value.strip().strip("'\"")
    if "sysrq" in key or "unprivileged_userns" in key or "suid_dumpable" in key:
        return value not in ("0", "")
    if "perf_event_paranoid" in key:
        return value in ("-1", "0")
    return _STRICT.match(value) is None


def _attributes(run: Invocation) -> Iterable[Hit]:
    words = [word for word in run.argv[1:] if word not in ("-R", "-V", "-f", "--")]
    modes = [word for word in words if re.fullmatch(r"[-+=][aiu]+[\w]*|[-+=]\w*[ai]\w*", word)]
    if modes and any(_PROTECTED.search(word.replace("${HOME}", "~")) for word in words if word not in modes):
        yield Hit(ATTRIBUTES)


def _mounts(run: Invocation) -> Iterable[Hit]:
    options = parse(
        run.argv,
        Grammar(valued="toOLUN", long_valued=frozenset({"types", "options", "source", "target"}), attached=""),
    )
    settings = {each for text in options.all("o", "options") for each in text.split(",")}
    target = options.last("target") or (options.operands[-1] if options.operands else "")
    binds = options.has("B", "bind", "R", "rbind", "M", "move") or bool({"bind", "rbind", "move"} & settings)
    source = options.operands[0] if len(options.operands) > 1 else options.last("source")
    if "remount" in settings:
        if settings & _LOOSE and not {"ro", "noexec"} <= settings:
            yield Hit(MOUNT)
        return
    over = binds or options.last("t", "types") in ("overlay", "tmpfs", "ramfs")
    if (over and _COVERED.search(target)) or (binds and (source == "/" or source.startswith("/proc/"))):
        yield Hit(MOUNT)


def _unmounts(run: Invocation) -> Iterable[Hit]:
    if any(re.match(r"/(?:proc|sys|var/log|etc|dev)(?:/|$)", word) for word in run.argv[1:]):
        yield Hit(MOUNT)


def _firewall(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    flushes = re.search(r"(?:^|\s)(?:-F|--flush|-X|--delete-chain)\b", text) and not re.search(r"-t\s*nat", text)
    opens = re.search(r"(?:-P|--policy)\s+\w+\s+ACCEPT", text)
    removes = re.search(r"(?:^|\s)(?:-D|--delete)\s+(?:INPUT|OUTPUT|FORWARD)\b", text)
    admits = re.search(r"(?:^|\s)(?:-I|--insert)\s+(?:INPUT|OUTPUT)(?:\s+1)?\s+-j\s*ACCEPT\s*$", text)
    if flushes or opens or removes or admits:
        yield Hit(BLINDED)


def _firewall_from_text(run: Invocation) -> Iterable[Hit]:
    """Rules that are read from standard input: nothing at all, or a flush."""
    empty = any(r.op == "<" and r.target == "/dev/null" for r in run.redirects)
    if (run.name != "nft" and empty) or (run.name == "nft" and "flush ruleset" in run.stdin):
        yield Hit(BLINDED)


def _removes(run: Invocation) -> Iterable[Hit]:
    """`shred` and `truncate` on a system's log have no honest reading; `rm` of a folder of logs cleans an image."""
    for word in map(run.filled, run.argv[1:]):
        if re.search(_HISTORY, word) or "/etc/audit/" in word:
            yield Hit(BLINDED, word)
            return
        if re.search(_SYSTEM_LOG, word) and (run.name != "rm" or not word.endswith(("/*", "/log", "/log/"))):
            yield Hit(BLINDED, word)
            return


def _sweeps(run: Invocation) -> Iterable[Hit]:
    """`find /var/log -delete`, without an age that makes it an ordinary clean-up."""
    words = run.argv[1:]
    swept = any(word.startswith(("/var/log", "/etc/audit")) for word in words)
    empties = "-delete" in words or bool({"truncate", "shred", "rm", "unlink"} & set(words))
    if swept and empties and not {"-mtime", "-ctime", "-mmin", "-atime"} & set(words):
        yield Hit(BLINDED)


def _stops(run: Invocation) -> Iterable[Hit]:
    """A service or package manager is told to end, or to take away, what watches."""
    verbs = _STOPPERS[run.name]
    if not verbs.isdisjoint(run.argv[1:]) and any(re.fullmatch(_SERVICE, word) for word in run.argv[1:]):
        yield Hit(BLINDED)


def _traffic(run: Invocation) -> Iterable[Hit]:
    if {"filter", "bpf"} <= set(run.argv) and not {"add", "replace"}.isdisjoint(run.argv):
        yield Hit(KERNEL)


def _kills(run: Invocation) -> Iterable[Hit]:
    for each in run.inner:
        if each.name in ("pgrep", "pidof", "cat") and re.search(
            rf"(?:^|[\s/]){_SERVICE}(?:\s|\.pid|$)", " ".join(each.argv[1:])
        ):
            yield Hit(BLINDED)
            return


def _init_script(run: Invocation) -> Iterable[Hit]:
    if (
        run.argv[0].startswith(("/etc/init.d/", "/etc/rc.d/"))
        and "stop" in run.argv[1:2]
        and re.fullmatch(_SERVICE, run.name)
    ):
        yield Hit(BLINDED)


# A script of the working folder that is put off is work; what would be started for good, or from elsewhere, is not.
_PLAIN_JOB: Final = lazy_pattern(
    r"\s*(?:(?:python3?|bash|sh|make|Rscript|sbatch) +)?(?:\./)?[\w-][\w./-]*(?: +[\w./=-]+){0,8}\s*"
)


def _worth(run: Invocation) -> Severity | None:
    """Return "medium" for a job whose text is known and plain, None otherwise."""
    texts = [run.stdin, *(" ".join(each.argv[1:]) for each in run.before if each.name in ("echo", "printf"))]
    told = [text for text in texts if text.strip()]
    return "medium" if all(_PLAIN_JOB.fullmatch(text) for text in told) and (told or "-f" in run.argv) else None


def _schedules(run: Invocation) -> Iterable[Hit]:
    text = " ".join(run.argv[1:])
    if run.name == "at":
        asks = parse(run.argv, Grammar(valued="fqt")).has("l", "r", "d", "c", "V")
        if not asks and len(run.argv) > 1:
            yield Hit(LATER, severity=_worth(run))
    elif run.name == "batch":
        if run.before or run.stdin or run.redirects or "-f" in run.argv:
            yield Hit(LATER, severity=_worth(run))
    elif _DETACHED.search(text):
        yield Hit(LATER)


def _writes(run: Invocation) -> Iterable[Hit]:
    """Redirections, and the programs that write the files which they are told."""
    operands = [word for word in run.argv[1:] if not word.startswith("-")]
    targets = [(r.target, r.op) for r in run.redirects if r.op in (">", ">>", ">|", "&>", "&>>")]
    if run.name == "tee":
        targets += [(word, ">") for word in operands]
    elif run.name in ("cp", "mv", "install", "ln") and len(operands) > 1:
        targets.append((operands[-1], ">"))
    elif run.name == "dd":
        targets += [(word[3:], ">") for word in operands if word.startswith("of=")]
    elif run.name == "sed" and any(re.match(r"-[a-zA-Z]*i|--in-place", word) for word in run.argv[1:]):
        targets += [(word, "edit") for word in operands[-1:]]
    text = run.stdin or " ".join(operands)
    for target, op in targets:
        hit = _written(run, target, op, text)
        if hit:
            yield hit
            return


def _written(run: Invocation, target: str, op: str, text: str) -> Hit | None:
    if target.startswith("/proc/sys/"):
        guarded = _GUARDED_SETTING.search(target) and _loosens(target, text)
        return Hit(SETTING, target) if guarded else None
    if _GUARDED_FILE.search(target):
        hides = run.name == "sed" and "/etc/selinux" in target and "disabled" not in text and "permissive" not in text
        return None if hides else Hit(KERNEL if "/modules" in target else SETTING, target)
    if "sysctl" in target and _GUARDED_SETTING.search(text):
        key, _, value = text.partition("=")
        return Hit(SETTING, target) if _loosens(key, value) else None
    if re.search(_SYSTEM_LOG, target) and ((op == "edit" and _DELETES.search(text)) or (op != ">>" and _is_empty(run))):
        return Hit(BLINDED, target)
    if re.search(_HISTORY, target) and (_is_empty(run) or op == "edit") and op != ">>":
        return Hit(BLINDED, target)
    return None


def _is_empty(run: Invocation) -> bool:
    """Return whether a program writes nothing, so that its target is emptied."""
    words = [word for word in run.argv[1:] if word not in ("-n", "-e", "")]
    return (
        run.name in _EMPTYING
        or (run.name in ("echo", "printf") and not words)
        or (run.name in ("cat", "cp", "ln", "install") and words[:1] == ["/dev/null"])
        or (run.name in ("ln", "cp") and "/dev/null" in words)
        or (run.name == "dd" and "if=/dev/null" in words)
    )


def _history_off(run: Invocation) -> Iterable[Hit]:
    """A history that is cleared or goes nowhere; a number of lines is an ordinary setting."""
    text = " ".join(run.argv[1:])
    cleared = run.name == "history" and re.search(r"(?:^|\s)-\w*[c]\w*", text)
    gone = run.name == "unset" and re.search(r"\bHISTFILE\b", text)
    nowhere = run.name in ("export", "declare", "typeset") and re.search(
        r"\bHISTFILE=(?:/dev/null)?(?:\s|$)|\bHIST(?:FILE)?SIZE=0\b", text
    )
    if cleared or gone or nowhere:
        yield Hit(BLINDED)
    elif run.name == "history" and re.search(r"(?:^|\s)-d\b", text):
        # A single line: most often one that a password was typed into.
        yield Hit(BLINDED, severity="medium")


def _histories(run: Invocation) -> Iterable[Hit]:
    assigned = run.assigned
    if assigned.get("HISTFILE", "-") in ("", "/dev/null") or "0" in (
        assigned.get("HISTSIZE"),
        assigned.get("HISTFILESIZE"),
    ):
        yield Hit(BLINDED, "HISTFILE")


_CODE_WRITE: Final = lazy_pattern(
    r"\bopen\(\s*['\"](/(?:proc/sys|sys|var/log)/[^'\"]{1,128})['\"]\s*,\s*(?:mode\s*=\s*)?['\"]r?[wr]\+?|"
    r"\btruncate\(?\s*['\"](/var/log/[^'\"]{1,128})"
)


def _code_writes(run: Invocation) -> Iterable[Hit]:
    """A program text that empties a system's log, or opens a guarded setting for writing."""
    found = _CODE_WRITE.search(run.code)
    if not found or found[0].endswith(("'r", '"r')):
        return
    target = found[1] or found[2]
    if re.search(_SYSTEM_LOG, target):
        yield Hit(BLINDED, target)
    elif _GUARDED_SETTING.search(target) or _GUARDED_FILE.search(target):
        yield Hit(SETTING, target)


def _redirects(run: Invocation) -> Iterable[Hit]:
    return () if run.name in _WRITERS else _writes(run)


_WRITERS: Final = ("tee", "cp", "mv", "ln", "install", "sed", "dd")
_QUIET: Final = frozenset(
    {
        *_WRITERS,
        *listed(
            "ip mount umount kill set shopt apt apt-get dnf yum zypper apk rpm dpkg pacman service systemctl rm find "
            "export declare typeset unset history sysctl modprobe journalctl tc shred truncate unlink"
        ),
    }
)

GUARDS: Final = Ruleset(
    rules=(KERNEL, SETTING, ATTRIBUTES, MOUNT, BLINDED, LATER),
    by_name={
        **dict.fromkeys(_PATTERNS, (_pattern,)),
        **dict.fromkeys(_STOPPERS, (_stops,)),
        "tc": (_traffic,),
        **dict.fromkeys(_WRITERS, (_writes,)),
        **dict.fromkeys(("insmod", "rmmod", "modprobe"), (_modules,)),
        **dict.fromkeys(
            ("iptables", "ip6tables", "iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft"),
            (_firewall,),
        ),
        **dict.fromkeys(("rm", "shred", "truncate", "wipe", "srm", "unlink"), (_removes,)),
        **dict.fromkeys(("history", "unset", "export", "declare", "typeset"), (_history_off,)),
        **dict.fromkeys(("at", "batch", "systemd-run"), (_schedules,)),
        **dict.fromkeys(("iptables-restore", "ip6tables-restore"), (_firewall_from_text,)),
        "nft": (_pattern, _firewall_from_text),
        "sysctl": (_sysctl,),
        "chattr": (_attributes,),
        "mount": (_mounts,),
        "umount": (_unmounts,),
        "find": (_sweeps,),
        "kill": (_kills,),
    },
    quiet=_QUIET,
    marks=listed(
        "mount ,/proc/,/sys/,/var/log,/etc/audit,/etc/selinux,/etc/modules,/lib/modules,sysctl,hist,_agent,"
        "notify_on_release,modprobe,vacuum,+o history,auditd,falco,tetragon,tracee,osquery,falcon,wazuh,ossec,sysmon,"
        "clam,apparmor,fail2ban,syslog,journald,firewalld,ufw,nftables,iptables,sshguard,crowdsec,auoms,mdatp,"
        "sentinel,cbagent,beat,selinux,agentwatch,init.d, xdp,rc.d, bpf ",
        ",",
    ),
    shapes=(_redirects, _init_script, _histories, _code_writes),
    shape_pattern=(
        r">\S*(?:/proc/|/sys/|/var/log/|/run/utmp|/etc/(?:audit|selinux|modules|sysctl)|_history|/lib/modules|"
        r"release_agent|notify_on_release)|/etc/(?:init|rc)\.d/|HIST(?:FILE|SIZE|FILESIZE)=|"
        r"open\W{1,3}/(?:proc/sys|var/log|sys/)|truncate\W{1,3}/var/log"
    ),
)
"""What acts against the machine's own protection look like on a command line."""
