"""What real programs cost more under audit than natively, and than under strace on the same calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jupyter_agentwatch import Watch
from tests.bench.ground import PYTHON, Ground, MeasureError, alternate
from tests.bench.peers import strace, strace_missing
from tests.bench.project import MODULES, write_c_project, write_python_project
from tests.bench.table import Row, median, spread

__all__ = ["builds", "execs", "imports", "search", "writes"]

_LIBRARY = (
    "argparse ast asyncio base64 bz2 calendar cmd code codecs collections configparser contextlib copy csv ctypes "
    "dataclasses datetime decimal difflib dis email email.mime.text enum fractions ftplib functools getpass gettext "
    "glob gzip hashlib heapq html http.client http.cookiejar http.server imaplib inspect io ipaddress json logging "
    "logging.handlers lzma mimetypes multiprocessing netrc optparse pathlib pickle platform plistlib poplib pprint "
    "profile queue random re sched secrets selectors shelve shlex shutil smtplib socketserver sqlite3 ssl statistics "
    "string subprocess tarfile tempfile textwrap threading timeit tokenize trace traceback tracemalloc typing "
    "unittest unittest.mock urllib.request uuid wave weakref xml.dom.minidom xml.etree.ElementTree zipfile"
)
_EXECS = 500
_OPENS = {"same": 2000, "new": 500}


def imports(ground: Ground) -> list[Row]:
    """Import a hundred modules of the standard library in a fresh interpreter."""
    argv = (PYTHON, "-I", "-c", f"import {', '.join(_LIBRARY.split())}")
    return _beside(ground, "import", argv, ground.n(31, 3), opens=True)


def search(ground: Ground) -> list[Row]:
    """Search a tree of some thousand files for a word that is in none."""
    headers = Path("/usr/include")
    many = headers.is_dir() and sum(1 for _ in headers.rglob("*.h")) > 2000
    tree = headers if many else Path(shutil.__file__).parent
    argv = ("grep", "-r", "no-file-contains-this-" + "word", str(tree))
    return _beside(ground, "grep", argv, ground.n(31, 3), opens=False, code=1)


def execs(ground: Ground) -> list[Row]:
    """Start a program again and again from a shell."""
    loop = f"i=0; while [ $i -lt {_EXECS} ]; do /bin/true; i=$((i+1)); done"
    # Opens are left out for strace: in programs that only read, ours sees none of them.
    return _beside(ground, "exec", ("/bin/sh", "-c", loop), ground.n(15, 2), opens=False)


def _beside(ground: Ground, name: str, argv: Sequence[str], n: int, *, opens: bool, code: int = 0) -> list[Row]:
    """Time one command natively, inside, and under strace, in turns."""
    missing = strace_missing()
    with ground.session() as watch:
        ways: dict[str, Callable[[], float]] = {
            "native": lambda: ground.timed_native(argv, code=code),
            "ours": lambda: ground.timed(watch, argv, code=code),
        }
        if not missing:
            traced = strace(argv, ground.folder("tmp") / "trace", opens=opens)
            ways["strace"] = lambda: ground.timed_native(traced, code=code)
        taken = alternate(n, ways)
    shown = {way: spread(times, "ms", 1e3) for way, times in taken.items()}
    ours = median(taken["ours"])
    rows = [Row(f"{name}.vs_native", ours / median(taken["native"]), n, shown)]
    if name != "grep":
        value = None if missing else ours / median(taken["strace"])
        rows.append(Row(f"{name}.vs_strace", value, 0 if missing else n, {} if missing else shown, missing))
    return rows


def writes(ground: Ground) -> list[Row]:
    """Open files for writing in a loop that times itself."""
    n, missing = ground.n(15, 3), strace_missing()
    rows: dict[str, dict[str, list[float]]] = {}
    with ground.session() as watch:
        for mode in ("same", "new"):
            count = _OPENS[mode]
            argv = (PYTHON, "-I", "-S", "opens.py", mode, str(count))
            ways: dict[str, Callable[[], float]] = {
                "native": partial(_per_open, count, partial(ground.answer_native, argv)),
                "ours": partial(_per_open, count, partial(ground.answer, watch, argv)),
            }
            if not missing:
                traced = strace(argv, ground.folder("tmp") / "trace", opens=True)
                ways["strace"] = partial(_per_open, count, partial(ground.answer_native, traced))
            rows[mode] = alternate(n, ways)
    same, new = rows["same"], rows["new"]
    ours, peer = _above(same, "ours"), 0.0 if missing else _above(same, "strace")
    shown = {way: spread(times, "µs") for way, times in same.items()}
    return [
        Row("write.above_native", ours, n, shown, f"{_OPENS['same']} opens and closes in each sample"),
        Row("write.vs_strace", None if missing else ours / peer, n, shown, missing),
        Row("write.new_file", _above(new, "ours"), n, {way: spread(times, "µs") for way, times in new.items()}),
    ]


def _per_open(count: int, answer: Callable[[], str]) -> float:
    return int(answer()) / count / 1000


def _above(taken: dict[str, list[float]], way: str) -> float:
    return median(taken[way]) - median(taken["native"])


def builds(ground: Ground) -> list[Row]:
    """Build a Python project by pip and a C project by make, from nothing each time."""
    with ground.session() as watch:
        return [_pip(ground, watch), _make(ground, watch)]


def _pip(ground: Ground, watch: Watch) -> Row:
    for folder in (ground.native, ground.workspace):
        write_python_project(folder / "project")
    argv = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    argv += ["--no-cache-dir", "--disable-pip-version-check", "--target", "target", "./project"]
    return _build(ground, watch, "build.pip", argv, ("target", "project/build"), f"{MODULES} modules")


def _make(ground: Ground, watch: Watch) -> Row:
    missing = [tool for tool in ("cc", "make") if shutil.which(tool) is None]
    if missing:
        return Row("build.make", None, note=f"not runnable here: {', '.join(missing)} is not installed")
    for folder in (ground.native, ground.workspace):
        write_c_project(folder / "c")
    return _build(
        ground, watch, "build.make", ["make", "-s", "-C", "c"], ("c/build",), "20 C files, one after the other"
    )


def _build(ground: Ground, watch: Watch, name: str, argv: Sequence[str], products: Sequence[str], note: str) -> Row:
    def clean(folder: Path) -> None:
        for product in products:
            shutil.rmtree(folder / product, ignore_errors=True)

    def native() -> float:
        clean(ground.native)
        return ground.timed_native(argv)

    def ours() -> float:
        clean(ground.workspace)
        return ground.timed(watch, argv)

    n = ground.n(15, 1)
    taken = alternate(n, {"native": native, "ours": ours})
    built = ground.workspace / products[0]
    if not any(path.is_file() for path in built.rglob("*")):
        msg = f"{name}: nothing was built"
        raise MeasureError(msg)
    shown = {way: spread(times, "s") for way, times in taken.items()}
    return Row(name, median(taken["ours"]) / median(taken["native"]), n, shown, note)
