"""Sigma files of the user's, compiled before a watch begins: the supervisor must not load the parser.

What was compiled is kept in the user's cache under the hash of everything that it depends on. Neither the files nor the
cache may lie where the commands of the watch can write: they would disarm their own monitor.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from jupyter_agentwatch import __version__
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.sigma_form import FORMAT, Problem, decode_rules, encode_rules
from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import from_path, printable
from jupyter_agentwatch.policy import Policy

__all__ = ["CompiledFiles", "compile_files", "expanded", "load_rules", "problem_notes"]

_MAX_FILES: Final = 20_000
_MAX_TEXT: Final = 4_000_000
_USUAL: Final = 1 << 16
_MAX_COMPILED: Final = 12 << 20
_NOTES: Final = 10
_SUFFIXES: Final = frozenset({".yml", ".yaml"})
_INSTALLED: Final = lazy_pattern(r"pysigma-([^-]+)\.dist-info", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CompiledFiles:
    """Compiled rules, and those that do not run.

    Attributes:
        data: What the supervisor and a replay take; b"" for none.
        problems: Each rule that does not run, with file, line and reason.
    """

    data: bytes = b""
    problems: tuple[Problem, ...] = ()

    @property
    def sha256(self) -> str:
        """What the log names these rules by; "" for none."""
        return sha256(self.data).hexdigest() if self.data else ""


class _Kept(msgspec.Struct, frozen=True):
    data: bytes
    problems: tuple[Problem, ...]


def load_rules(policy: Policy, workspace: Path) -> CompiledFiles:
    """Compile the Sigma files that a policy names, or take them from the cache.

    Args:
        policy: The policy.
        workspace: The watch's, absolute.

    Raises:
        PolicyError: A file cannot be read, or lies where the commands could write.
    """
    if not policy.detect.rules:
        return CompiledFiles()
    paths = [expanded(text) for text in policy.detect.rules]
    writable = [workspace, *(workspace / expanded(text) for text in policy.filesystem.write)]
    for position, path in enumerate(paths):
        if _is_within(path, writable):
            msg = (
                f"detect.rules[{position}]: {_shown(path)} lies where the commands of this watch may write: "
                "keep rules in another folder"
            )
            raise PolicyError(msg)
    cache = _cache_folder()
    return compile_files(paths, policy.detect.disabled, cache=None if _is_within(cache, writable) else cache)


def compile_files(paths: Sequence[Path], disabled: Sequence[str] = (), *, cache: Path | None = None) -> CompiledFiles:
    """Compile Sigma files and folders of them.

    Args:
        paths: Files, or folders of which every `.yml` and `.yaml` file counts.
        disabled: Ids or titles of rules to leave out.
        cache: Folder of former results; None: compile in any case.

    Raises:
        PolicyError: A file cannot be read, or the rules are too many.
    """
    texts = {_shown(path): text for path, text in _texts(paths)}
    kept = cache / f"{_key(texts, disabled)}.rules" if cache is not None else None
    if kept is not None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found = msgspec.msgpack.decode(kept.read_bytes(), type=_Kept)
            decode_rules(found.data)
            return CompiledFiles(found.data, found.problems)
    from jupyter_agentwatch.detect.sigma_compile import compile_rules

    rules, problems = compile_rules(texts, excluded=disabled)
    compiled = CompiledFiles(encode_rules(rules), tuple(problems))
    if len(compiled.data) > _MAX_COMPILED:
        msg = f"detect.rules: the compiled rules have {len(compiled.data)} bytes; {_MAX_COMPILED} at most can be used"
        raise PolicyError(msg)
    if kept is not None:
        _keep(kept, compiled)
    return compiled


def expanded(text: str) -> Path:
    """Return a path of the policy with the user's home in the place of ~ or $HOME in front."""
    return Path(os.path.expanduser(re.sub(r"^\$HOME(?=/|$)", "~", text)))


def problem_notes(problems: Iterable[Problem]) -> list[str]:
    """Say in a few lines which rules do not run; those about logs that are not kept here are only counted."""
    foreign, others = 0, []
    for each in problems:
        if each.kind == "source":
            foreign += 1
        else:
            others.append(f"not in use: {each.source}:{each.line}: {each.rule}: {each.reason}")
    notes = others[:_NOTES]
    if len(others) > _NOTES:
        notes.append(f"not in use: {len(others) - _NOTES} rules more (rule_problems has all)")
    if foreign:
        rules = "1 rule is about a log that is" if foreign == 1 else f"{foreign} rules are about logs that are"
        notes.append(f"{rules} not kept here")
    return notes


def _texts(paths: Sequence[Path]) -> Iterable[tuple[Path, str]]:
    count = 0
    for position, path in enumerate(paths):
        for file in _files(path, position):
            count += 1
            if count > _MAX_FILES:
                msg = f"detect.rules[{position}]: {_shown(path)}: more than {_MAX_FILES} files"
                raise PolicyError(msg)
            try:
                with file.open("rb") as opened:
                    data = opened.read(_USUAL)  # room for the most that is read costs more than reading most files
                    if len(data) == _USUAL:
                        data += opened.read(4 * _MAX_TEXT + 1 - _USUAL)
                yield file, data.decode("utf-8", "replace")
            except OSError as error:
                msg = f"detect.rules[{position}]: cannot read {_shown(file)}: {error.strerror}"
                raise PolicyError(msg) from error


def _files(path: Path, position: int) -> list[Path]:
    if path.is_dir():
        # Half the cost of `rglob`, in the same order: a name in a folder comes before what is longer than the folder's.
        found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        kept = [each for each in found if os.path.splitext(each)[1] in _SUFFIXES and os.path.isfile(each)]
        return [Path(each) for each in sorted(kept, key=lambda each: each.split(os.sep))]
    if path.is_file():
        return [path]
    msg = f"detect.rules[{position}]: {_shown(path)}: no such file or folder"
    raise PolicyError(msg)


def _key(texts: dict[str, str], disabled: Sequence[str]) -> str:
    files = [[name, sha256(text.encode("utf-8", "replace")).hexdigest()] for name, text in texts.items()]
    return sha256(msgspec.json.encode([FORMAT, __version__, _parser_version(), sorted(disabled), files])).hexdigest()


def _parser_version() -> str:
    """Return pySigma's version; as its folder is named, because the library that reads versions takes 12 ms to load."""
    spec = find_spec("sigma")
    for folder in (spec and spec.submodule_search_locations) or ():
        names = os.listdir(Path(folder).parent)
        found = [match[1] for match in map(_INSTALLED.fullmatch, names) if match]
        if len(found) == 1:
            return found[0]
    from importlib.metadata import version

    return version("pysigma")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "jupyter-agentwatch" / "rules"


def _keep(path: Path, compiled: CompiledFiles) -> None:
    """Write the cache; where that cannot be done, the next watch compiles again."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            scratch.write_bytes(msgspec.msgpack.encode(_Kept(compiled.data, compiled.problems)))
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def _is_within(path: Path, places: Iterable[Path]) -> bool:
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(place)) for place in places)


def _shown(path: Path) -> str:
    return printable(from_path(str(path)), 4096)
