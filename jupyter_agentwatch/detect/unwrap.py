"""Takes wrappers, shells and interpreters off a command until the programs that would really run are in sight.

It knows how nohup, sudo, xargs, docker run and the like name what they start; it judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final

import msgspec

from jupyter_agentwatch.detect.argv import Grammar, Options, parse
from jupyter_agentwatch.detect.carriers import carried
from jupyter_agentwatch.detect.decoding import MAX_TEXT, decoded, printed
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.shellscript import Command, Loop, Redirect, read_script
from jupyter_agentwatch.detect.wrappers import CODE_FLAGS, WRAPPERS, wrapped

__all__ = ["SHELLS", "Invocation", "invocations", "outermost", "program_name"]

SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "csh", "tcsh", "rbash", "rzsh"})
"""Programs that run what they read."""

_MAX_DEPTH: Final = 6
_MAX_FOUND: Final = 500
# What they are told besides the command decides what the command can do.
_ALSO_THEMSELVES: Final = frozenset(
    {
        *("docker", "podman", "nerdctl", "chroot", "systemd-run", "proxychains", "proxychains4", "torsocks", "strace"),
        *(
            "sshpass",
            "kubectl",
            "oc",
            "gcloud",
            "nice",
            "ionice",
            "chrt",
            "taskset",
            "cpulimit",
            "nsenter",
            "unshare",
            "xterm",
            "daemonize",
            "start-stop-daemon",
        ),
    }
)
_MAX_STAGES: Final = 12
_MAX_PASSED: Final = 8 * MAX_TEXT
_MAX_SHOWN: Final = 4096
_MAX_CODE: Final = 8192
_NAME_MAX: Final = 255
_SHELL: Final = Grammar(
    valued="oO", long_valued=frozenset({"rcfile", "init-file"}), long_flags=frozenset({"norc"}), operands=0
)
# Repetitions never give back what they have taken: `.1.1.1…#` could be parted in 2^127 ways.
_BUILD: Final = lazy_pattern(
    r"(?:[-_.](?:v?[0-9][\w.]*+|linux|darwin|x86|x64|x86_64|amd64|arm64|aarch64|static|musl|gnu|multi))++$"
)
_SUFFIX: Final = lazy_pattern(r"\.(?:exe|py|sh|bin|elf|run|pl|rb|js|x86_64|appimage)$")
_VERSIONED: Final = lazy_pattern(r"(python|pypy|perl|ruby|php|lua|node|gawk|tclsh)[0-9][0-9.]*$")
_CALL: Final = lazy_pattern(
    r"(?:system|popen[23]?|exec[lv]?p?e?|execSync|spawnSync|spawnl?v?p?e?|call|check_call|check_output|run|getoutput|"
    r"Popen|passthru|shell_exec|proc_open|qx|execute)\s{0,8}[({ ]\s{0,8}(?:\[\s{0,8})?[rbuf]?(['\"`])((?:(?!\1)[^\\]|"
    r"\\.){1,512}?)\1"
)
# Without `+` behind each repetition, quotes and blanks without a bracket at their end would be read in 2^48 ways.
_LIST_CALL: Final = lazy_pattern(
    r"[\[(]\s*+((?:[rbu]?(?:'(?:[^'\\]|\\.){0,256}+'|\"(?:[^\"\\]|\\.){0,256}+\")\s*+(?:,\s*+)?+){2,48}+)[\])]"
)
_LITERAL: Final = lazy_pattern(r"'([^']*)'|\"([^\"]*)\"")
_B64: Final = lazy_pattern(r"b64decode\(\s*[rbu]?['\"]([A-Za-z0-9+/=\\n]{16,65536})['\"]")


class Invocation(msgspec.Struct, frozen=True):
    """One program as it would be started.

    Attributes:
        argv: Its arguments, its own name first.
        name: Which program it is: base name in lower case without version, platform and suffix.
        from_script: It was read out of text; only an exec record of its own proves that it ran.
        redirects: Its redirections.
        assigned: Variables set for it.
        loops: `for` variables around it.
        before: What runs earlier in its pipeline, wrappers taken off.
        inner: What the substitutions in its words run.
        stdin: Text that it would read, where that is known.
        code: The program that an interpreter got as an argument or on its standard input.
        wrappers: Names of what was taken off ("nohup", "setsid", "npx" …).
        is_background: It ends in `&`.
    """

    argv: tuple[str, ...]
    name: str
    from_script: bool = False
    redirects: tuple[Redirect, ...] = ()
    assigned: Mapping[str, str] = msgspec.field(default_factory=dict)
    loops: Mapping[str, Loop] = msgspec.field(default_factory=dict)
    before: tuple[Invocation, ...] = ()
    inner: tuple[Invocation, ...] = ()
    stdin: str = ""
    code: str = ""
    wrappers: frozenset[str] = frozenset()
    is_background: bool = False

    def filled(self, word: str) -> str:
        """Return a word with its `for` variables at their first values."""
        if "${" not in word:
            return word
        for name, loop in self.loops.items():
            word = word.replace("${" + name + "}", loop.first)
        return word

    def repeats(self, word: str) -> int:
        """Return how many values a word takes in the loops around it; 0 where the text does not tell."""
        total = 1
        for name, loop in self.loops.items():
            if name and "${" + name + "}" in word:
                total *= loop.count
        return total


@lru_cache(maxsize=4096)
def program_name(word: str) -> str:
    """Return which program a word names: base name, lower case, without version, platform and suffix."""
    name = word.rpartition("/")[2][:_NAME_MAX].lower()
    if name[:1] == "-" and name[1:] in SHELLS:
        return name[1:]
    if name in ("$shell", "${shell}"):  # which of them it is, nobody says
        return "sh"
    if name.startswith(("ld-linux", "ld-musl", "ld.so")):
        return "ld.so"
    name = _SUFFIX.sub("", name)
    versioned = _VERSIONED.fullmatch(name)
    if versioned:
        return versioned[1]
    return _BUILD.sub("", name) or name


def invocations(argv: Sequence[str], *, path: str = "") -> list[Invocation]:
    """Return the programs that an argument vector would start, the innermost in place of their wrappers.

    Shells, interpreters and unknown programs stand in the list themselves; what their text starts follows them.

    Args:
        argv: Arguments, hostile.
        path: What the exec named; unlike `argv[0]` it decides which program runs.
    """
    if not argv:
        return []
    found = _Found()
    found.add(_asked(argv, path), depth=0)
    return found.items


def outermost(argv: Sequence[str], *, path: str = "") -> Invocation:
    """Return the first of the `invocations` of a shell: itself, without a look at its text.

    Args:
        argv: Arguments, at least one, hostile.
        path: What the exec named.
    """
    asked = _asked(argv, path)
    return msgspec.structs.replace(asked, argv=_cut(asked.argv))


def _asked(argv: Sequence[str], path: str) -> Invocation:
    words = tuple(argv)
    if path and program_name(path) not in ("busybox", "toybox"):
        words = (path, *words[1:])
    return Invocation(words, program_name(words[0]))


class _Found:
    """Collects what is found; its length and the characters read bound the work that a hostile text can ask for."""

    def __init__(self) -> None:
        self.items: list[Invocation] = []
        self._characters_left = MAX_TEXT
        self._passed_left = _MAX_PASSED

    def add(self, invocation: Invocation, depth: int) -> None:
        """Take wrappers off one invocation, and add it and what it starts."""
        self._add_peeled(_peeled(invocation), depth)

    def _add_peeled(self, found: Iterable[Invocation], depth: int) -> None:
        for peeled in found:
            if len(self.items) >= _MAX_FOUND:
                return
            argv = _cut(peeled.argv)
            self.items.append(peeled if argv is peeled.argv else msgspec.structs.replace(peeled, argv=argv))
            if depth < _MAX_DEPTH:
                self._follow(peeled, depth + 1)

    def _follow(self, run: Invocation, depth: int) -> None:
        for told in carried(run.name, run.argv, run.assigned, run.stdin, run.code):
            self.script(told, {}, run, depth)
        if run.name in SHELLS:
            for script, scope in _shell_texts(run):
                self.script(script, scope, run, depth)
        elif run.name in ("eval", "trap"):
            text = run.argv[1:] if run.name == "eval" else run.argv[1:2]
            self.script(" ".join(text), {}, run, depth)
        elif run.name in ("source", ".") and run.stdin:
            self.script(run.stdin, {}, run, depth)
        elif run.code:
            for script in _scripts_in(run.code):
                self.script(script, {}, run, depth)
            for words in _lists_in(run.code):
                self.add(_child(run, words), depth)
        elif run.name in ("at", "batch") and run.stdin:
            self.script(run.stdin, {}, run, depth)

    def script(self, text: str, scope: Mapping[str, str], parent: Invocation, depth: int) -> None:
        """Add what a script starts."""
        text = text[: self._characters_left]
        self._characters_left -= len(text)
        for pipeline in read_script(text, scope):
            if len(self.items) >= _MAX_FOUND:
                return
            earlier: list[Invocation] = []
            fed: str | None = None
            for command in pipeline:
                run = _from_command(command, tuple(earlier[-_MAX_STAGES:]), fed, parent)
                fed = self._printed(command, fed)
                if run is None:
                    continue
                peeled = _peeled(run)
                earlier += [*run.inner, *peeled] if run.argv[0] == "(" else peeled
                if run.argv[0] != "(":
                    self._add_peeled(peeled, depth)

    def _printed(self, command: Command, fed: str | None) -> str | None:
        """Return what the next command of a pipeline reads, where that is known."""
        body = _body(command)
        text = printed(command.words, fed if body is None else body)
        self._passed_left -= len(text or "")
        return text if self._passed_left >= 0 else None


def _cut(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the first words, so that a pattern that has to look at all of them costs little at its worst."""
    if sum(map(len, argv)) <= _MAX_SHOWN:
        return argv
    kept: list[str] = []
    left = _MAX_SHOWN
    for word in argv:
        kept.append(word[:left])
        left -= len(word)
        if left <= 0:
            break
    return tuple(kept)


def _child(parent: Invocation, words: Sequence[str]) -> Invocation:
    return Invocation(
        tuple(words), program_name(words[0]), from_script=True, loops=parent.loops, wrappers=parent.wrappers
    )


def _from_command(
    command: Command, before: tuple[Invocation, ...], fed: str | None, parent: Invocation
) -> Invocation | None:
    words = command.words
    if not words and not command.redirects:
        return None
    words = words or ("",)
    bodies = [r.body for r in command.redirects if r.op in ("<<", "<<<") and r.fd in (-1, 0)]
    inner = [
        peeled
        for pipeline in command.inner
        for each in pipeline
        if each.words and each.words[0] != "("
        for peeled in _peeled(Invocation(each.words, program_name(each.words[0]), redirects=each.redirects))
    ]
    return Invocation(
        words,
        program_name(words[0]),
        from_script=True,
        redirects=command.redirects,
        assigned=command.assigned,
        loops=command.loops or parent.loops,
        before=before,
        inner=tuple(inner[:_MAX_FOUND]),
        stdin=bodies[-1] if bodies else fed or "",
        wrappers=parent.wrappers,
        is_background=command.background,
    )


def _body(command: Command) -> str | None:
    bodies = [r.body for r in command.redirects if r.op in ("<<", "<<<")]
    return bodies[-1] if bodies else None


def _peeled(run: Invocation) -> list[Invocation]:
    """Return what is left of an invocation when its wrappers are off."""
    return [_with_code(run)] if run.name not in WRAPPERS else list(_unwrapped(run))


def _unwrapped(run: Invocation) -> Iterator[Invocation]:
    queue = [run]
    for _ in range(24):
        if not queue:
            return
        each = queue.pop(0)
        starts = wrapped(each.name, each.argv, each.stdin) if each.name in WRAPPERS else []
        if not starts or each.name in _ALSO_THEMSELVES:
            yield _with_code(each)
        for argv, assigned in starts:
            name = program_name(argv[0])
            queue.append(_inside(each, argv, name, assigned))


def _inside(outer: Invocation, argv: Sequence[str], name: str, assigned: Mapping[str, str]) -> Invocation:
    return Invocation(
        tuple(argv),
        name,
        from_script=outer.from_script,
        redirects=outer.redirects,
        assigned={**outer.assigned, **assigned},
        loops=outer.loops,
        before=outer.before,
        inner=outer.inner,
        stdin="" if outer.name == "xargs" else outer.stdin,
        wrappers=outer.wrappers | {outer.name},
        is_background=outer.is_background,
    )


def _with_code(run: Invocation) -> Invocation:
    flags = CODE_FLAGS.get(run.name)
    if flags is None:
        return run
    code = _code_argument(run, flags)[:_MAX_CODE]
    if not code and run.stdin and all(word == "-" for word in run.argv[1:]):
        code = run.stdin[:_MAX_CODE]
    if not code:
        return run
    for match in list(_B64.finditer(code))[:4]:
        code += "\n" + (decoded([(("base64", "-d"), match[1])]) or "")
    return msgspec.structs.replace(run, code=code)


def _code_argument(run: Invocation, flags: str) -> str:
    if flags == "":  # awk: the first word that is no option
        words = iter(run.argv[1:])
        for word in words:
            if word in ("-F", "-v", "-f", "eval"):
                following = next(words, "")
                if word == "eval":
                    return following
            elif not word.startswith("-"):
                return word
        return ""
    for at, word in enumerate(run.argv[1:48], 1):
        if word in ("--eval", "--execute", "--run", "eval") and at + 1 < len(run.argv):
            return run.argv[at + 1]
        if word[:1] != "-" or word == "-":
            return ""
        if word[1:2] != "-" and word[-1] in flags:
            return "\n".join(run.argv[at + 1 :])
        if len(word) > 2 and word[1] in flags and not word[2:].isalpha():
            return word[2:]
    return ""


def _shell_texts(run: Invocation) -> Iterator[tuple[str, dict[str, str]]]:
    if run.argv[1:2] == ("-c",) and run.argv[2:] and run.argv[2][:1] != "-":  # as nearly always
        is_told, rest, options = True, list(run.argv[2:]), Options()
    else:
        options = parse(run.argv, _SHELL)
        rest = options.rest or options.operands
        is_told = "c" in options.flags
    if is_told and rest:
        scope = {str(at): word for at, word in enumerate(rest[1:10])}
        scope["@"] = scope["*"] = " ".join(rest[2:])
        yield rest[0], scope
    elif run.stdin and (not rest or "s" in options.flags or rest[0] in ("/dev/stdin", "-")):
        yield run.stdin, {}


def _scripts_in(code: str) -> Iterator[str]:
    for match in islice(_CALL.finditer(code), 64):
        yield match[2].replace("\\'", "'").replace('\\"', '"')


def _lists_in(code: str) -> Iterator[list[str]]:
    for match in islice(_LIST_CALL.finditer(code), 64):
        yield [first or second for first, second in _LITERAL.findall(match[1])]
