"""How programs that start other programs name what they start: a table of grammars, and a few that need more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed

__all__ = ["CODE_FLAGS", "REARRANGING", "WRAPPERS", "wrapped"]

Start = tuple[list[str], Mapping[str, str]]

CODE_FLAGS: Final[Mapping[str, str]] = {
    "python": "c",
    "pypy": "c",
    "ipython": "c",
    "perl": "eE",
    "ruby": "e",
    "php": "r",
    "node": "ep",
    "nodejs": "ep",
    "bun": "e",
    "deno": "",
    "lua": "e",
    "luajit": "e",
    "tclsh": "c",
    "awk": "",
    "gawk": "",
    "mawk": "",
    "nawk": "",
    "rscript": "e",
    "r": "e",
    "julia": "e",
    "gdb": "x",
    "vim": "c",
    "vi": "c",
    "pwsh": "c",
    "powershell": "c",
    "elixir": "e",
    "ghc": "e",
    "runghc": "e",
    "groovy": "e",
    "jshell": "",
    "jrunscript": "e",
    "kotlin": "e",
    "scala": "e",
    "erl": "",
    "raku": "e",
    "ocaml": "e",
    "guile": "c",
    "racket": "e",
    "sbcl": "",
    "emacs": "",
    "nvim": "c",
    "octave": "",
    "osascript": "e",
    "expect": "c",
}
"""Interpreters, and the letters after which a program text stands ("": the first operand is one)."""

_MAX_PACKAGE: Final = 512
_ASSIGNMENT: Final = lazy_pattern(r"[A-Za-z_]\w*=")
_NUMBERED: Final = lazy_pattern(r"-\d+$")

_PREFIX: Final[Mapping[str, tuple[Grammar, int]]] = {
    # (grammar up to the first operand, how many operands come before the command)
    "nohup": (Grammar(operands=0), 0),
    "setsid": (Grammar(operands=0), 0),
    "nice": (Grammar(valued="n", long_valued=frozenset({"adjustment"}), operands=0), 0),
    "ionice": (Grammar(valued="cnpPu", long_valued=frozenset({"class", "classdata"}), operands=0), 0),
    "timeout": (Grammar(valued="ks", long_valued=frozenset({"kill-after", "signal"}), operands=0), 1),
    "stdbuf": (Grammar(valued="ioe", long_valued=frozenset({"input", "output", "error"}), operands=0), 0),
    "taskset": (Grammar(operands=0), 1),
    "chrt": (Grammar(valued="TPD", operands=0), 1),
    "numactl": (Grammar(valued="miNCp", long_valued=frozenset({"membind", "cpunodebind"}), operands=0), 0),
    "time": (Grammar(valued="fo", long_valued=frozenset({"format", "output"}), operands=0), 0),
    "command": (Grammar(operands=0), 0),
    "builtin": (Grammar(operands=0), 0),
    "exec": (Grammar(valued="a", operands=0), 0),
    "sudo": (
        Grammar(valued="ugpCchrtTUD", long_valued=frozenset({"user", "group", "prompt", "chdir", "host"}), operands=0),
        0,
    ),
    "doas": (Grammar(valued="uC", operands=0), 0),
    "pkexec": (Grammar(long_valued=frozenset({"user"}), operands=0), 0),
    "runuser": (Grammar(valued="ugGs", long_valued=frozenset({"user", "group"}), operands=0), 0),
    "chroot": (Grammar(long_valued=frozenset({"userspec", "groups"}), operands=0), 1),
    "unshare": (Grammar(valued="SGR", attached="CimnpuUT", operands=0), 0),
    "firejail": (Grammar(operands=0), 0),
    "strace": (Grammar(valued="eEopsaIOPSuXb", operands=0), 0),
    "ltrace": (Grammar(valued="aeAFlnopsuxX", operands=0), 0),
    "catchsegv": (Grammar(operands=0), 0),
    "cpulimit": (Grammar(valued="lpeP", long_valued=frozenset({"limit", "pid", "exe"}), operands=0), 0),
    "cgexec": (Grammar(valued="g", operands=0), 0),
    "prlimit": (Grammar(valued="p", operands=0), 0),
    "daemonize": (Grammar(valued="acelopuE", operands=0), 0),
    "proxychains": (Grammar(valued="f", operands=0), 0),
    "proxychains4": (Grammar(valued="f", operands=0), 0),
    "torsocks": (Grammar(valued="PaupP", operands=0), 0),
    "torify": (Grammar(operands=0), 0),
    "rlwrap": (Grammar(valued="bCDefgHlOPpqsStzw", operands=0), 0),
    "unbuffer": (Grammar(operands=0), 0),
    "setarch": (Grammar(operands=0), 1),
    "linux64": (Grammar(operands=0), 0),
    "dbus-run-session": (Grammar(operands=0), 0),
    "systemd-run": (
        Grammar(
            valued="pMtHE",
            long_valued=frozenset({"unit", "property", "uid", "gid", "description", "slice"}),
            operands=0,
        ),
        0,
    ),
    "busybox": (Grammar(operands=0), 0),
    "toybox": (Grammar(operands=0), 0),
    "coproc": (Grammar(operands=0), 0),
    "mpirun": (Grammar(valued="nHx", long_valued=frozenset({"np", "hostfile"}), single_dash=True, operands=0), 0),
    "srun": (Grammar(valued="nNcptJoeiD", operands=0), 0),
    "poetry": (Grammar(operands=0), 1),
    "pdm": (Grammar(operands=0), 1),
    "uv": (Grammar(operands=0), 1),
    "bundle": (Grammar(operands=0), 1),
    "conda": (Grammar(valued="np", operands=0), 1),
    "start-stop-daemon": (Grammar(operands=0), 0),
    "systemd-inhibit": (Grammar(operands=0), 0),
    "dbus-launch": (Grammar(operands=0), 0),
    "setpriv": (Grammar(operands=0), 0),
    "valgrind": (Grammar(operands=0), 0),
    "tini": (Grammar(valued="pe", operands=0), 0),
    "dumb-init": (Grammar(valued="r", operands=0), 0),
    "faketime": (Grammar(valued="f", operands=0), 1),
    "sshpass": (Grammar(valued="fdpP", attached="e", operands=0), 0),
    "chpst": (Grammar(valued="ugUbeodnlLmcfptr0", operands=0), 0),
    "entr": (Grammar(operands=0), 0),
    "perf": (Grammar(valued="eopF", operands=0), 1),
    "xterm": (Grammar(operands=0), 0),
    "nsenter": (Grammar(valued="tSG", operands=0), 0),
}
_LAST_WORD_RUN: Final = {"poetry": "run", "pdm": "run", "uv": "run", "bundle": "exec", "conda": "run"}


def wrapped(name: str, argv: Sequence[str], stdin: str = "") -> list[Start]:
    """Return what a wrapper starts: argument vectors with the variables set for them; [] where it starts nothing.

    Args:
        name: The wrapper, as `unwrap.program_name` gives it.
        argv: Its arguments, its own name first.
        stdin: Text that it would read, where that is known (xargs).
    """
    special = _SPECIAL.get(name)
    if special is not None:
        return [(argv, assigned) for argv, assigned in special(argv, stdin) if argv and argv[0]]
    grammar, skipped = _PREFIX[name]
    words = [word for at, word in enumerate(argv) if at == 0 or not (name == "nice" and _NUMBERED.fullmatch(word))]
    options = parse(words, grammar)
    rest = options.rest or options.operands
    required = _LAST_WORD_RUN.get(name)
    if (required and rest[:1] != [required]) or (name == "command" and options.has("v", "V")):
        return []
    if name in ("chrt", "taskset") and options.has("p"):
        return []
    return _after_assignments(_inner_options(name, rest[skipped:]))


def _inner_options(name: str, words: list[str]) -> list[str]:
    """Skip options that stand between a wrapper's sub-command and its command (`conda run -n base cmd`)."""
    if name not in _LAST_WORD_RUN:
        return words
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 1 + (words[at] in ("-n", "-p", "--name", "--prefix", "--with", "--python", "--project"))
    return words[at:]


def _after_assignments(words: list[str]) -> list[Start]:
    assigned: dict[str, str] = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words[0].partition("=")
        assigned[name] = value
        words = words[1:]
    return [(words, assigned)] if words else []


_ENV: Final = Grammar(valued="uCS", long_valued=frozenset({"unset", "chdir", "split-string"}), operands=0)
_XARGS: Final = Grammar(
    valued="aEdInLPs",
    attached="eil",
    long_valued=frozenset({"arg-file", "delimiter", "max-args", "max-procs", "max-lines", "replace", "max-chars"}),
    operands=0,
)
_SU: Final = Grammar(valued="csgG", long_valued=frozenset({"command", "shell", "group"}))
_TMUX: Final = frozenset({"new-session", "new", "new-window", "neww", "split-window", "splitw", "respawn-pane"})
_TMUX_NEW: Final = Grammar(valued="cFnstxyel", operands=0)
_SCREEN: Final = Grammar(valued="SchTeprsL", operands=0)
_SHELL_JOINED: Final = Grammar(valued="n", long_valued=frozenset({"interval"}), operands=0)
_PARALLEL: Final = Grammar(valued="jaSIn", long_valued=frozenset({"jobs", "arg-file", "sshlogin"}), operands=0)
_DOCKER_RUN: Final = Grammar(
    valued="eupvwhmlac",
    long_valued=frozenset(
        listed(
            "env user publish volume workdir hostname memory label attach name network net entrypoint gpus mount "
            "device "
            "cpus env-file ip link restart runtime shm-size ulimit add-host cap-add cap-drop platform pull "
            "security-opt "
            "ipc pid userns tmpfs log-driver expose dns cpuset-cpus cidfile stop-signal volumes-from"
        )
    ),
    operands=0,
)
_DLX: Final = Grammar(valued="pc", long_valued=frozenset({"package", "from", "with", "python", "spec"}), operands=0)


def _env(argv: Sequence[str], _stdin: str) -> list[Start]:
    options = parse(argv, _ENV)
    split = options.all("S", "split-string")
    words = (split[0].split() if split else []) + (options.rest or options.operands)
    return _after_assignments(words)


def _xargs(argv: Sequence[str], stdin: str) -> list[Start]:
    options = parse(argv, _XARGS)
    rest = options.rest or options.operands
    if not rest:
        return []
    given = stdin.split()[:48]
    mark = options.last("I", "replace", "i") or ("{}" if options.has("I", "replace", "i") else "")
    if mark and given:
        first = given[0]
        if len(given) > 1 and all(word.isdigit() for word in given):
            first = f"{{{given[0]}..{given[-1]}}}"  # each of them, written so that their number can be told
        return [([word.replace(mark, first) for word in rest], {})]
    return [(rest + given, {})]


def _find(argv: Sequence[str], _stdin: str) -> list[Start]:
    starts: list[Start] = []
    words = list(argv)
    root = words[1] if len(words) > 1 else ""
    found = f"{root.rstrip('/')}/*" if root.startswith(("/", "~")) and root.strip("/") else "{}"
    for at, word in enumerate(words):
        if word in ("-exec", "-execdir", "-ok", "-okdir"):
            tail = [found if each == "{}" else each for each in words[at + 1 : at + 65]]
            end = next((i for i, each in enumerate(tail) if each in (";", "+", "\\;")), len(tail))
            starts.append((tail[:end], {}))
    return starts[:8]


def _su(argv: Sequence[str], _stdin: str) -> list[Start]:
    script = parse(argv, _SU).last("c", "command")
    return [(["sh", "-c", script], {})] if script else []


def _script_option(argv: Sequence[str], _stdin: str) -> list[Start]:
    options = parse(argv, Grammar(valued="cEIoOBT", long_valued=frozenset({"command"})))
    script = options.last("c", "command")
    return [(["sh", "-c", script], {})] if script else []


def _flock(argv: Sequence[str], _stdin: str) -> list[Start]:
    options = parse(argv, Grammar(valued="wE", long_valued=frozenset({"timeout", "wait"}), operands=0))
    rest = options.rest[1:]
    if rest[:1] in (["-c"], ["--command"]):
        return [(["sh", "-c", *rest[1:2]], {})]
    return [(rest, {})]


def _joined(argv: Sequence[str], _stdin: str) -> list[Start]:
    options = parse(argv, _SHELL_JOINED)
    text = " ".join(options.rest or options.operands)
    return [(["sh", "-c", text], {})] if text else []


def _parallel(argv: Sequence[str], _stdin: str) -> list[Start]:
    options = parse(argv, _PARALLEL)
    words = options.rest or options.operands
    end = next((at for at, word in enumerate(words) if word.startswith(":::")), len(words))
    given = words[end + 1 : end + 2]
    text = " ".join(words[:end])
    text = text.replace("{}", given[0]) if given and "{}" in text else " ".join([text, *given])
    return [(["sh", "-c", text], {})] if words[:end] else []


def _after_dashes(argv: Sequence[str], _stdin: str) -> list[Start]:
    """`kubectl exec pod -- cmd`, `gcloud compute ssh host -- cmd`: what stands after the dashes runs elsewhere."""
    words = list(argv)
    return [(words[words.index("--") + 1 :], {})] if "--" in words else []


def _tmux(argv: Sequence[str], _stdin: str) -> list[Start]:
    at = next((i for i, word in enumerate(argv) if word in _TMUX), -1)
    if at >= 0:
        options = parse(argv[at:], _TMUX_NEW)
        words = options.rest or options.operands
        return [(["sh", "-c", " ".join(words)], {})] if words else []
    if "send-keys" in argv or "send" in argv:
        at = next(i for i, word in enumerate(argv) if word in ("send-keys", "send"))
        words = [w for w in parse(argv[at:], Grammar(valued="tN")).operands if w not in ("Enter", "C-m")]
        return [(["sh", "-c", " ".join(words)], {})] if words else []
    return []


def _screen(argv: Sequence[str], _stdin: str) -> list[Start]:
    rest = parse(argv, _SCREEN).rest
    return [(rest, {})] if rest else []


def _docker(argv: Sequence[str], _stdin: str) -> list[Start]:
    words = list(argv[1:])
    at = next((i for i, word in enumerate(words) if word in ("run", "exec", "create")), -1)
    if at < 0:
        return []
    options = parse(words[at:], _DOCKER_RUN)
    if not options.rest:
        return []
    image = options.rest[0].rpartition("@")[0] or options.rest[0]
    image = re.sub(r":[\w.-]+$", "", image)
    entry = options.last("entrypoint")
    command = options.rest[1:]
    starts: list[Start] = [([entry, *command] if entry else command, {})] if entry or command else []
    if words[at] != "exec" and not entry:
        # An image runs its own program, which its name tells better than anything else.
        starts.append(([image, *command], {}))
    return starts


def _dlx(argv: Sequence[str], _stdin: str) -> list[Start]:
    words = list(argv)
    while len(words) > 1 and words[1] in ("dlx", "exec", "run", "tool", "x", "-y", "--yes", "--"):
        del words[1]
    options = parse(words, _DLX)
    rest = options.rest or options.operands
    if options.has("c") and not rest:
        return [(["sh", "-c", options.last("c")], {})]
    if not rest:
        return []
    package = re.sub(r"(?<=.)@[^/@]*$", "", rest[0][:_MAX_PACKAGE])
    return [([package, *rest[1:]], {})]


def _package_script(argv: Sequence[str], stdin: str) -> list[Start]:
    """`npm exec x`, `pnpm dlx x`, `yarn dlx x`, `bun x y`, `pipx run x`: other sub-commands start nothing by name."""
    return _dlx(argv, stdin) if argv[1:2] and argv[1] in ("dlx", "exec", "x", "run") else []


def _go(argv: Sequence[str], _stdin: str) -> list[Start]:
    if list(argv[1:2]) != ["run"]:
        return []
    words = list(argv[2:])
    while words and words[0].startswith("-"):
        words = words[1:]
    return [([words[0].partition("@")[0], *words[1:]], {})] if words and "@" in words[0] else []


def _python_module(argv: Sequence[str], _stdin: str) -> list[Start]:
    words = list(argv)
    for at, word in enumerate(words[1:], 1):
        if word[:1] != "-":
            return [(words[at:], {})]
        if word == "-m" and at + 1 < len(words):
            return [
                ([words[at + 1].split(".")[0] if "." not in words[at + 1] else words[at + 1], *words[at + 2 :]], {})
            ]
        if word in ("-c", "-"):
            return []
    return []


def _loader(argv: Sequence[str], _stdin: str) -> list[Start]:
    words = list(argv[1:])
    while words and words[0].startswith("--"):
        takes = words[0] in ("--library-path", "--preload", "--audit", "--argv0", "--inhibit-rpath")
        words = words[2:] if takes else words[1:]
    return [(words, {})]


def _start_stop(argv: Sequence[str], _stdin: str) -> list[Start]:
    grammar = Grammar(valued="xanpucdgsRN", long_valued=frozenset({"exec", "startas", "name", "pidfile", "chuid"}))
    options = parse(argv, grammar)
    program = options.last("a", "startas", "x", "exec")
    return [([program, *options.operands], {})] if program else []


_SPECIAL: Final[Mapping[str, Callable[[Sequence[str], str], list[Start]]]] = {
    "env": _env,
    "xargs": _xargs,
    "find": _find,
    "fd": _find,
    "su": _su,
    "script": _script_option,
    "flock": _flock,
    "watch": _joined,
    "parallel": _parallel,
    "tmux": _tmux,
    "screen": _screen,
    "docker": _docker,
    "podman": _docker,
    "nerdctl": _docker,
    "npx": _dlx,
    "bunx": _dlx,
    "pnpx": _dlx,
    "uvx": _dlx,
    "npm": _package_script,
    "pnpm": _package_script,
    "yarn": _package_script,
    "bun": _package_script,
    "pipx": _package_script,
    "go": _go,
    "python": _python_module,
    "pypy": _python_module,
    "ld.so": _loader,
    "start-stop-daemon": _start_stop,
    **dict.fromkeys(("kubectl", "oc", "gcloud", "lxc", "incus", "nomad", "flyctl"), _after_dashes),
}

WRAPPERS: Final = frozenset(_PREFIX) | frozenset(_SPECIAL)
"""Programs that start what their arguments name."""

REARRANGING: Final = frozenset(_SPECIAL) - {"env", "python", "pypy", "ld.so"}
"""Those of them that give what they start other words than stand side by side after it."""
