"""Executes notebooks from top to bottom in a real kernel, then says from the audit logs what was seen (`make demo`).

Everything is written below one folder (build/demo), nothing into HOME. The exit status is 1 if a cell failed, a process
survived a kill or a log does not verify.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

from jupyter_agentwatch.audit.reader import kind_of, list_logs, read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.events import AnyEvent, BreakerChanged, Connect, Control, Dns, Flow, Session, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

OUT = Path(__file__).parent.parent / "build" / "demo"
CELL_TIMEOUT_S = 120
SHOWN_LINES = 12
"""Lines of a cell's output, and places, that are shown; the executed notebook and the log have them all."""

SHORT = "/tmp"  # noqa: S108 -- the folder made in it is fresh, ours, and 0700
"""Where control sockets go: their path may have 107 bytes, and a checkout may lie deep."""


class Progress:
    """Prints one line as a code cell begins, and its output and duration as it ends."""

    def __init__(self, notebook: nbformat.NotebookNode) -> None:
        code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        self._number = {index: number for number, index in enumerate(code, 1)}
        self._started = 0.0

    def begin(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Name the cell by its first line."""
        self._started = time.monotonic()
        first = cell.source.strip().partition("\n")[0]
        print(f"[{self._number[cell_index]:2}/{len(self._number)}] {first}", flush=True)

    def end(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        """Show what came out, and how long it took."""
        del cell_index
        lines = [line for output in cell.outputs for line in _text(output).splitlines()]
        for line in lines[:SHOWN_LINES]:
            print(f"        {printable(line, 150)}")
        if len(lines) > SHOWN_LINES:
            print(f"        … {len(lines) - SHOWN_LINES} more lines")
        print(f"        {execute_reply['content']['status']}, {time.monotonic() - self._started:.2f} s", flush=True)


def _text(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return str(output.data.get("text/plain", ""))


def execute(path: Path, out: Path, runtime: Path) -> bool:
    """Run every cell of a notebook in a folder, write what came of it there, and return whether all cells succeeded."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _confine(out, runtime)
    notebook = nbformat.read(path, as_version=4)
    progress = Progress(notebook)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        config=Config({"KernelManager": {"transport": "ipc", "ip": str(runtime / "kernel" / "socket")}}),
        resources={"metadata": {"path": str(out)}},
        on_cell_execute=progress.begin,
        on_cell_executed=progress.end,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reason = error.evalue if isinstance(error, CellExecutionError) else str(error)
        print(f"\n{path.name} failed: {type(error).__name__}: {printable(reason)}", file=sys.stderr)
        return False
    finally:
        nbformat.write(notebook, out / path.name)
    return True


def _confine(out: Path, runtime: Path) -> None:
    """Point everything that a kernel writes to folders of this run, and let it find this environment's programs."""
    folders = {
        "AGENTWATCH_LOG_DIR": out / "log",
        "AGENTWATCH_RUNTIME_DIR": runtime / "watches",
        "IPYTHONDIR": out / "jupyter" / "ipython",
        "JUPYTER_CONFIG_DIR": out / "jupyter" / "config",
        "JUPYTER_DATA_DIR": out / "jupyter" / "data",
        "JUPYTER_RUNTIME_DIR": runtime / "kernel",
    }
    for variable, folder in folders.items():
        folder.mkdir(mode=0o700, parents=True)
        os.environ[variable] = str(folder)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def _destinations(events: Iterable[AnyEvent]) -> str:
    """Say where events pointed to, each destination once, as text that is safe to show."""
    places: Counter[str] = Counter()
    for event in events:
        match event:
            case Connect(host=host, addr=addr, port=port, rule=rule):
                places[f"connect {host or addr}{f':{port}' if port else ''} ({rule})"] += 1
            case Flow(host=host, addr=addr, port=port, protocol=protocol, rule=rule):
                places[f"flow {host or addr}:{port} {protocol} ({rule})"] += 1
            case Dns(qname=qname, rule=rule):
                places[f"name {qname} ({rule})"] += 1
            case _:
                places[kind_of(event)] += 1
    lines = [f"{count}x {printable(place, 120)}" for place, count in places.most_common(SHOWN_LINES)]
    if len(places) > SHOWN_LINES:
        lines.append(f"… {len(places) - SHOWN_LINES} more places")
    return "\n           ".join(lines)


def summarise(folder: Path) -> bool:
    """Print what the logs in a folder hold; return whether each verifies and no process survived."""
    logs = list_logs(folder)
    events = [event for log in logs for event in read_events(log.path)]
    kinds = Counter(kind_of(event) for event in events)
    # A flow's end repeats what was said when it was named; what people did with the watch is no act of the agent.
    ours = BreakerChanged | Control | Session
    acts = [e for e in events if not isinstance(e, ours) and not (isinstance(e, Flow) and e.op == "closed")]
    outward = [event for event in acts if isinstance(event, Connect | Flow | Dns)]
    ends = [event for event in events if isinstance(event, Session) and event.op == "close"]
    checks = [verify_log(log.path) for log in logs]
    survivors = sum(end.survivors for end in ends)
    good = bool(logs) and len(ends) == len(logs) and all(check.ok for check in checks) and survivors == 0
    print(f"\nRecorded   {len(events)} events: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    print(f"Allowed    {_destinations(e for e in outward if e.verdict == 'allow') or 'nothing outward'}")
    print(f"Denied     {_destinations(e for e in acts if e.verdict == 'deny') or 'nothing'}")
    print(f"Killed     {sum(end.killed for end in ends)} processes in {len(ends)} watches, {survivors} left")
    verified = sum(check.ok for check in checks)
    print(f"Verified   {verified} of {len(logs)} logs, {len(ends)} of them closed: {folder}")
    return good


def main() -> int:
    """Run the notebooks named on the command line, each in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--out", type=Path, default=OUT, help="where everything is written (default: build/demo)")
    asked = parser.parse_args()
    good = True
    for path in asked.notebooks:
        began = time.monotonic()
        out = asked.out.resolve() / path.stem
        print(f"\n{path.name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="aw-", dir=SHORT) as runtime:
            executed = execute(path, out, Path(runtime))
        seen = summarise(out / "log")
        good = good and executed and seen
        print(f"Executed   {out / path.name} in {time.monotonic() - began:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
