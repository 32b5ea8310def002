"""IPython shells of this process with the extension loaded, for tests of magics that need no kernel."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from jupyter_agentwatch.notebook import load, unload

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["displayed", "shell_with_magics"]


@contextmanager
def shell_with_magics() -> Iterator[InteractiveShell]:
    """Make the one shell of this process, without history; what its cells display is kept."""
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config, display_pub_class=CapturingDisplayPublisher)
    load(shell)
    try:
        yield shell
    finally:
        unload(shell)
        InteractiveShell.clear_instance()


def displayed(shell: InteractiveShell) -> list[dict[str, Any]]:
    """Return and forget what was displayed since the last call, each by its MIME types."""
    publisher = shell.display_pub
    assert isinstance(publisher, CapturingDisplayPublisher)
    shown = [each["data"] for each in publisher.outputs]
    publisher.outputs.clear()
    return shown
