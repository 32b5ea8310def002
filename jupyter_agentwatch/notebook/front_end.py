"""The browser's part as files: which there are, where they lie, and what to do where they were not built."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from jupyter_core.paths import jupyter_path

from jupyter_agentwatch.errors import AgentwatchError

__all__ = ["FrontEndMissingError", "bundle_hash", "view_bundle", "widget_source"]

_HERE = Path(__file__).parent
_BUILD = "reinstall the package, or in a checkout run `npm ci && npm run build` in js/"
_HASH = re.compile(r"[0-9a-f]{16}")


class FrontEndMissingError(AgentwatchError):
    """The browser's part was not built, or was removed; the text says how to build it."""


@functools.cache
def widget_source() -> str:
    """Return the small module that every widget brings along: the kill switch, and a loader for the rest.

    Raises:
        FrontEndMissingError: It was not built.
    """
    return _text(_HERE / "static" / "widget.js")


@functools.cache
def bundle_hash() -> str:
    """Return the hash that names the big module: 16 hexadecimal characters.

    Raises:
        FrontEndMissingError: It was not built.
    """
    text = _text(_HERE / "static" / "bundle.txt").strip()
    if not _HASH.fullmatch(text):
        msg = f"{_HERE / 'static' / 'bundle.txt'} names no bundle: {_BUILD}"
        raise FrontEndMissingError(msg)
    return text


def view_bundle() -> bytes:
    """Return the big module, for front-ends that cannot load it from a Jupyter server.

    Raises:
        FrontEndMissingError: It is not there.
    """
    name = Path("static", f"view.{bundle_hash()}.js")
    # An installed package has it where Jupyter serves extensions from, and only there; a checkout beside its sources.
    folders = [*(Path(each) / "jupyter-agentwatch" for each in jupyter_path("labextensions"))]
    for folder in [*folders, _HERE.parent / "labextension"]:
        try:
            return (folder / name).read_bytes()
        except OSError:
            continue
    msg = f"{name.name} is in none of Jupyter's extension folders: {_BUILD}"
    raise FrontEndMissingError(msg)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}): {_BUILD}"
        raise FrontEndMissingError(msg) from error
