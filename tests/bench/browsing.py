"""A real JupyterLab in a real Chromium for measurements, and this process's questions sent to its watches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from playwright.sync_api import Error as BrowserError

from tests.bench.ground import MeasureError
from tests.jupyter_page import Lab, running_chromium, running_lab

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browsing"]


@contextlib.contextmanager
def browsing() -> Iterator[tuple[Lab, Page]]:
    """Start a server and a browser with one page, and end both; what this process asks of watches, it asks of theirs.

    Raises:
        MeasureError: The server, the browser or the page failed.
    """
    before = dict(os.environ)
    try:
        with running_lab() as lab, running_chromium() as chromium:
            os.environ |= {"AGENTWATCH_RUNTIME_DIR": str(lab.runtime), "AGENTWATCH_LOG_DIR": str(lab.logs)}
            yield lab, chromium.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    except (BrowserError, AssertionError) as error:
        msg = f"{type(error).__name__}: {str(error)[:300]}"
        raise MeasureError(msg) from error
    finally:
        os.environ.clear()
        os.environ.update(before)
