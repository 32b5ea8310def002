"""Which notebook cell is running: what ties a command to the cell that caused it.

IPython is only looked at where it is loaded already, and never imported.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["current_cell"]

_MAX_ID = 128


def current_cell() -> str:
    """Return the id of the running notebook cell.

    Returns:
        The id that the front-end gave the cell, else "In[n]", else "" outside a kernel. In a thread it is the cell
        that started the thread, as far as the kernel knows.
    """
    shell = _shell()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return ""
    try:
        cell = kernel.get_parent("shell")["metadata"].get("cellId")
    except (AttributeError, KeyError, LookupError, TypeError):
        # A kernel's own threads, and front-ends that send no metadata, have no parent message of this form.
        cell = None
    if isinstance(cell, str) and cell:
        return cell[:_MAX_ID]
    return f"In[{shell.execution_count}]"


def _shell() -> Any:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython() if get_ipython is not None else None
