"""What every test run gets: its own runtime and log folders, honest skips, and a check that nothing is left behind.

A skipped test proves nothing, so each one is listed by name; where rung A should be there, it is a failure.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from jupyter_agentwatch import Watch
    from jupyter_agentwatch.policy import Policy
    from tests.history_agent import Agent

REQUIRE = "AGENTWATCH_REQUIRE_SANDBOX"
LEAK_PATIENCE_S = 5.0
"""Seconds that processes which are already dying at the end of the run get."""

# How long an example takes is the machine's business: on a loaded one a deadline fails what is right.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_SCRATCH = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Give this run its own folders before anything is imported; parallel runs never see each other.

    The path is short on purpose: a control socket's path may have 107 bytes.
    """
    _sandbox_required()  # a wrong value is an error now, not at the first skipped test
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it: ■ would do nothing
    scratch = Path(tempfile.mkdtemp(prefix="aw-", dir="/tmp"))
    config.stash[_SCRATCH] = scratch
    for variable, name in {
        "AGENTWATCH_LOG_DIR": "log",
        "AGENTWATCH_RUNTIME_DIR": "run",
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "jupyter-config",
        "JUPYTER_DATA_DIR": "jupyter-data",
        "JUPYTER_RUNTIME_DIR": "jupyter-run",
        "MSWEA_GLOBAL_CONFIG_DIR": "mini-swe-agent",
    }.items():
        folder = scratch / name
        folder.mkdir(mode=0o700)
        os.environ[variable] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the run's folders."""
    shutil.rmtree(config.stash[_SCRATCH], ignore_errors=True)


@cache
def _user_namespaces() -> bool:
    """Try it, with whichever tool is there: AppArmor may grant namespaces to bwrap alone."""
    tries = [
        ["unshare", "--user", "--map-root-user", "true"],
        ["bwrap", "--unshare-user", "--ro-bind", "/", "/", "true"],
    ]
    return any(
        subprocess.run(argv, check=False, capture_output=True, timeout=30).returncode == 0
        for argv in tries
        if shutil.which(argv[0])
    )


@cache
def _missing_for_rung_a() -> str:
    if not _user_namespaces():
        return "user namespaces do not work here"
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    return ""


def _sandbox_required() -> bool:
    value = os.environ.get(REQUIRE, "")
    if value not in {"", "0", "1"}:
        msg = f"{REQUIRE}={value}: 1 (a skipped sandbox test fails), 0 (it may be skipped) or unset (1 if it can run)"
        raise pytest.UsageError(msg)
    return value == "1" or (value == "" and _user_namespaces())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a sandbox test where rung A cannot be had; whether that is a failure is decided on its report."""
    if item.get_closest_marker("sandbox") and (missing := _missing_for_rung_a()):
        pytest.skip(f"rung A: {missing}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped sandbox test into a failure where rung A is required."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and item.get_closest_marker("sandbox") and _sandbox_required():
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a sandbox test may not be skipped here ({REQUIRE}): {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse a module that skips itself where rung A is required: nobody would miss the sandbox tests in it."""
    report = yield
    if report.skipped and _sandbox_required():
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: a whole module may not be skipped here ({REQUIRE}): {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every test that did not run, by name and with its reason."""
    skipped = [f"{r.nodeid}: {_reason(r)}" for r in terminalreporter.stats.get("skipped", [])]
    if skipped:
        terminalreporter.section("tests that did not run", sep="-")
        for line in sorted(skipped):
            terminalreporter.line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell `.ci/tests.py` which tests failed by their own assertions, and what else did."""
    target = session.config.getoption("--failed-to")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if target is None or reporter is None:  # a process of pytest-xdist: the one that started it writes
        return
    reports = [*reporter.stats.get("failed", []), *reporter.stats.get("error", [])]
    calls = [each.nodeid for each in reports if getattr(each, "when", "") == "call"]
    others = [each.nodeid for each in reports if getattr(each, "when", "") != "call"]
    target.write_text(json.dumps({"calls": calls, "others": others}))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    last = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
    return str(last).removeprefix("Skipped: ")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a person run on one rung what can run there, and `.ci/tests.py` see what failed."""
    parser.addoption("--rung", choices=("A", "B", "C"), help="run on this rung what can run there")
    parser.addoption("--failed-to", type=Path, help="write the names of what failed to this file, as JSON")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each rung that its module names; what names none runs on the best that there is."""
    marker = metafunc.definition.get_closest_marker("rungs")
    asked = metafunc.config.getoption("rung")
    if marker:
        named = [letter for letter in marker.args if asked in {None, letter}] or list(marker.args)
        metafunc.parametrize("rung", named, indirect=True, scope="module")
    elif asked:
        metafunc.parametrize("rung", [asked], indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def rung(request: pytest.FixtureRequest) -> Iterator[str]:
    """The rung of every watch of this process whose policy leaves it open; "" where nothing was said."""
    from jupyter_agentwatch.watch import handle, opening

    asked: str = getattr(request, "param", "")
    plain = opening.load_policy

    def on_this_rung(policy: Any) -> Policy:
        found = plain(policy)
        return msgspec.structs.replace(found, isolation=asked) if found.isolation == "required" else found

    with pytest.MonkeyPatch.context() as patch:
        if asked:
            patch.setattr(handle, "load_policy", on_this_rung)
        yield asked


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, rung: str) -> Iterator[Watch]:
    """A watch without any network, for a module's tests that leave it as it was."""
    from jupyter_agentwatch import Watch

    with Watch(workspace=tmp_path_factory.mktemp("project")) as watch:
        yield watch


@pytest.fixture(params=["openat2", "stepwise"])
def agent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent in an empty workspace, on a kernel with openat2 and on one that answers ENOSYS."""
    from jupyter_agentwatch.sandbox import beneath
    from tests.history_agent import make

    if request.param == "stepwise":
        monkeypatch.setattr(beneath, "_OPENAT2", 100_000)
    made = make(tmp_path)
    yield made
    made.kept.close()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail if a supervisor or a sandboxed process of this run outlives it."""
    yield
    runtime = os.environb[b"AGENTWATCH_RUNTIME_DIR"]
    base = os.fsencode(tmp_path_factory.getbasetemp()) + b"/"
    # With the slash: pytest-2 must not claim what belongs to a parallel run in pytest-20.
    left = [found for found in _ours(runtime, base) if not _ends(found[0])]
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    if left:
        pytest.fail("left behind: " + "; ".join(f"{pid} {what}" for pid, what in left))


def _ours(runtime: bytes, base: bytes) -> Iterator[tuple[int, str]]:
    """Yield processes that carry this run's runtime folder, or whose mounts show one of its workspaces."""
    own_mounts = os.stat("/proc/self/ns/mnt").st_ino
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
            apart = (entry / "ns/mnt").stat().st_ino != own_mounts
            mounts = (entry / "mountinfo").read_bytes() if apart else b""
        except OSError:  # it is not ours, or it has just ended
            continue
        of_this_run = runtime in environment or base in environment
        if (b"jupyter_agentwatch.supervisor" in command and of_this_run) or base in mounts:
            yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")


def _ends(pid: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(LEAK_PATIENCE_S * 1000))
    finally:
        os.close(descriptor)
