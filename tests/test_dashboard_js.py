"""The browser's part by itself: types, style, unit tests, and what a page has to load."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch.notebook.front_end import bundle_hash, view_bundle, widget_source
from tests.node import JS, node, tools

if TYPE_CHECKING:
    from pathlib import Path

MOST_GZIPPED = 450_000


@pytest.mark.parametrize(
    "argv",
    [("typescript/bin/tsc", "--noEmit"), ("eslint/bin/eslint.js", "."), ("vitest/vitest.mjs", "run")],
    ids=["types", "style", "unit tests"],
)
def test_the_sources_pass(argv: tuple[str, str]) -> None:
    """The TypeScript compiler, eslint and vitest find nothing to say about js/."""
    done = node(tools() / argv[0], *argv[1:])
    assert done.returncode == 0, done.stdout


def test_a_page_loads_no_more_than_it_must() -> None:
    """Widget, big module and labextension together stay under 450 kB gzipped, the part of each widget under 10 kB."""
    (entry,) = (JS.parent / "jupyter_agentwatch" / "labextension" / "static").glob("remoteEntry.*.js")
    parts = [widget_source().encode(), view_bundle(), entry.read_bytes()]
    sizes = [len(gzip.compress(part)) for part in parts]
    assert sum(sizes) < MOST_GZIPPED
    assert sizes[0] < 10_000


def test_the_built_parts_belong_together() -> None:
    """The widget names the big module that the extension holds, and JupyterLab is told a file that is there."""
    extension = JS.parent / "jupyter_agentwatch" / "labextension"
    about = json.loads((extension / "package.json").read_text("utf-8"))
    assert (extension / "static" / f"view.{bundle_hash()}.js").is_file()
    assert (extension / about["jupyterlab"]["_build"]["load"]).is_file()


def test_the_lock_file_names_no_address() -> None:
    """package-lock.json has integrity hashes and no address to fetch from: each machine uses its own registry."""
    lock = json.loads((JS / "package-lock.json").read_text("utf-8"))
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    assert [name for name, each in packages.items() if "resolved" in each] == []
    assert [name for name, each in packages.items() if "integrity" not in each] == []


def test_missing_assets_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the browser's part was not built, the error names the file and says how to build it."""
    from jupyter_agentwatch.notebook import front_end

    monkeypatch.setattr(front_end, "_HERE", tmp_path)
    with pytest.raises(front_end.FrontEndMissingError, match=r"widget\.js .*npm run build"):
        front_end.widget_source.__wrapped__()
