"""The figures that this project wants to reach, and what is known about those that it does not. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FIGURES", "Figure"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        title: What is measured, for people.
        unit: Unit of value and target; "x" for a ratio.
        statistic: How the value comes from the samples.
        target: Bound, or None where the figure is only for information.
        sense: Whether the value must stay at or below the bound, or reach it.
        floor: Why the target is out of reach where it is not met: what was measured, and what costs it.
    """

    title: str
    unit: str
    statistic: str = "median"
    target: float | None = None
    sense: Literal["<=", ">="] = "<="
    floor: str = ""


FIGURES: Final = {
    "session.ready": Figure("session ready after a warm import", "ms", target=150),
    "true.median": Figure('run(["true"]) in a running session', "ms", target=2.5),
    "true.p99": Figure('run(["true"]) in a running session', "ms", "p99"),
    "true.vs_bwrap": Figure('run(["true"]) / fresh bwrap --unshare-all true', "x", "ratio of medians", 0.7),
    "true.vs_srt_session": Figure('run(["true"]) / sandbox-runtime, session open', "x", "ratio of medians"),
    "true.vs_srt": Figure('run(["true"]) / sandbox-runtime, command line', "x", "ratio of medians"),
    "true.as_text": Figure('run("true"), that is bash -c true', "ms"),
    "import.vs_native": Figure("Python imports its standard library / native", "x", "ratio of medians", 1.05),
    "import.vs_strace": Figure("Python imports its standard library / strace", "x", "ratio of medians"),
    "grep.vs_native": Figure("grep -r over a large tree / native", "x", "ratio of medians", 1.05),
    "exec.vs_native": Figure("500 execs in a shell loop / native", "x", "ratio of medians", 1.4),
    "exec.vs_strace": Figure("500 execs in a shell loop / strace, same calls", "x", "ratio of medians", 1.0),
    "write.above_native": Figure("write-open of one file, above native", "µs", "difference of medians", 60),
    "write.vs_strace": Figure("write-open of one file, above native / strace's", "x", "ratio of differences", 1.0),
    "write.new_file": Figure("write-open of a new file each, above native", "µs", "difference of medians"),
    "build.pip": Figure("pip install of a source tree / native", "x", "ratio of medians", 1.1),
    "build.make": Figure("make of 20 C files / native", "x", "ratio of medians", 1.1),
    "connect.above_native": Figure("connect by broker and gateway, above native", "µs", "difference of medians", 300),
    "connect.p99": Figure("connect by broker and gateway, above native", "µs", "difference of p99"),
    "connect.request": Figure("connect and one HTTP exchange, above native", "µs", "difference of medians"),
    "transfer.in": Figure("1 GiB into the sandbox: throughput / native loopback", "x", "ratio of medians", 0.5, ">="),
    "transfer.out": Figure(
        "1 GiB out of the sandbox: throughput / native loopback", "x", "ratio of medians", 0.5, ">="
    ),
    "parallel.turn": Figure("longest turn of a loop, 200 connects, 500 ms dials", "ms", "maximum", 20),
    "parallel.call": Figure("longest of these connect calls", "ms", "maximum"),
    "kill.programs": Figure("kill of 1,000 exec'd programs", "ms", "maximum", 150),
    "kill.interpreters": Figure("kill of 1,000 forked interpreters", "ms", "maximum", 600),
    "kill.survivors": Figure("survivors of all these kills", "processes", "sum", 0),
    "events.one_session": Figure("mediated events per second, one session", "/s", "median of 1 s windows", 8000, ">="),
    "events.two_sessions": Figure(
        "mediated events per second, two sessions", "/s", "median of 1 s windows", 40000, ">="
    ),
    "events.lost": Figure("events lost in these", "events", "sum", 0),
    "supervisor.resident": Figure("supervisor resident after 10,000 events", "MiB", "single", 45),
    "supervisor.idle_cpu": Figure("supervisor's CPU while idle", "%", "mean", 0.3),
    "memory.connections": Figure("supervisor's growth over 10,000 connections", "MiB", "after a tenth of them", 4),
    "memory.events": Figure("supervisor's growth over 1,000,000 events", "MiB", "after a tenth of them", 4),
    "click.idle": Figure("click → last process gone, kernel idle", "ms", "maximum", 250),
    "click.sleep": Figure("click → last process gone, kernel in time.sleep", "ms", "maximum", 250),
    "click.loop": Figure("click → last process gone, kernel in a Python loop", "ms", "maximum", 250),
    "click.gil": Figure("click → last process gone, GIL held in C", "ms", "maximum", 250),
    "click.callback": Figure("click → last process gone, another callback blocks", "ms", "maximum", 250),
    "click.ack": Figure("acknowledgement over HTTP, above the kill itself", "ms", target=20),
    "click.gone": Figure("clicks that do not tell that the supervisor has gone", "clicks", "sum", 0),
    "stream.bytes": Figure("live telemetry of 8 GPUs to the browser", "kB/s", "mean", 20),
    "stream.main_thread": Figure("share of the page's main thread meanwhile", "%", "mean", 25),
    "stream.delay": Figure("sample → on screen", "ms", "p99", 600),
    "graph.frames": Figure("frames while a graph of 1,000 nodes changes", "/s", "mean", 30, ">="),
    "graph.folded": Figure("frames while a graph of 5,000 nodes changes", "/s", "mean"),
    "sampling.cpu": Figure("10 Hz samples of 100 processes, of one core", "%", "difference of means", 1),
    "bundle.gzip": Figure("the browser's modules, compressed", "kB", "sum", 450),
    "soak.browser": Figure("growth of the browser's heap", "MiB/10 min", "slope", 2),
    "soak.kernel": Figure("growth of the kernel", "MiB/10 min", "slope", 2),
    "soak.supervisor": Figure("growth of the supervisor", "MiB/10 min", "slope", 2),
    "steps.turn": Figure("one turn of an agent that runs `true`, its own time left out", "ms", target=8),
    "steps.above_command": Figure("the same, above the bare command", "ms", "difference of medians"),
    "steps.rate": Figure("steps per second of agents' runs side by side in one watch", "/s", "best", 150, ">="),
    "lab.fast": Figure("the ROME lab from its record: 7 conditions, 6 prices, 20 seeds", "s", "single", 90),
    "lab.real": Figure("the ROME lab in the sandbox: 7 conditions, 20 seeds", "s", "single", 600),
    "engine.median": Figure("detectors on one event, own rules and 210 Sigma rules", "µs", target=25),
    "engine.p99": Figure(
        "detectors on one event, own rules and 210 Sigma rules", "µs", "p99", 60, floor="these are the new shell texts"
    ),
    "engine.new_text": Figure(
        "detectors on shell text seen for the first time",
        "µs",
        "p99",
        60,
        floor=(
            "of the least of seven tries: 50 µs for half of the honest lines, 190 µs for 99 %. Some 20 µs decide "
            "whether a text is worth reading (209 literals, one expression), 15 µs read it, as much again takes "
            "wrappers off, and expressions take 20 µs for each program that it would start. A text that was seen "
            "before costs 1 µs"
        ),
    ),
    "engine.vs_azuma": Figure("the same Sigma rules on the same execs: azuma / ours", "x", "ratio of means", 20, ">="),
    "engine.load": Figure("Sigma rules loaded from the cache in a fresh process", "ms", target=30),
    "freeze.p50": Figure("record of an attack → everything stands still", "ms"),
    "freeze.p99": Figure("record of an attack → everything stands still", "ms", "p99", 20),
    "freeze.pool_bytes": Figure("payload bytes of Stratum logins that reached the pool", "bytes", "sum", 0),
    "detection.attack_lines": Figure("attack command lines found at high or above", "%", "share"),
    "detection.attack_flows": Figure("attack flows found at high or above", "%", "share"),
    "detection.attack_share": Figure("attacks of both sets found at high or above", "%", "share", 90, ">="),
    "detection.lines": Figure("honest one-liners that give a finding of high or above", "%", "share", 0.1),
    "detection.tools": Figure("real tool runs that give a finding of high or above", "runs", "sum", 0),
    "detection.frozen": Figure("honest trajectories that the breaker would freeze", "%", "share", 1),
}
"""Name → figure, in the order of the table. The targets are those of the issues that began the project's parts."""
