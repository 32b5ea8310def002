"""Notebooks of the repository, executed in real kernels as a reader would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import nbformat
import pytest
from nbclient import NotebookClient

__all__ = ["executed_book"]

_ROOT: Final = Path(__file__).parent.parent
_CELL_S: Final = 120


def executed_book(name: str, folder: Path) -> dict[str, Any]:
    """Execute a notebook from top to bottom; a cell that fails raises.

    Args:
        name: Its file in `notebooks`.
        folder: Where it is executed; its logs lie in the folder `log` there.

    Returns:
        The outputs of every cell by the cell's id, and the folder under "folder".
    """
    (folder / "log").mkdir(mode=0o700)
    book = nbformat.read(_ROOT / "notebooks" / name, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTWATCH_LOG_DIR", str(folder / "log"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        client = NotebookClient(
            book, timeout=_CELL_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    return {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"} | {"folder": folder}
