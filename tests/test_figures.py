"""Figures: what they draw, what they say of it, and that no text of the agent's becomes markup."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import comm
import msgspec
import numpy as np
import pytest
from comm.base_comm import BaseComm
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.telemetry.model import (
    GpuProcess,
    GpuSample,
    NoGpu,
    ProcessSample,
    Reading,
    Resources,
    Snapshot,
)
from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch import live_figure
from jupyter_agentwatch.watch.charts import GpuChart, ResourcesChart
from jupyter_agentwatch.watch.connections import ConnectionGrapher, connection_graph, folded_by_host
from jupyter_agentwatch.watch.figures import chart_spec, figure_text, graph_spec, plotted
from jupyter_agentwatch.watch.live_figure import LiveFigure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_agentwatch.events import AnyEvent
    from jupyter_agentwatch.watch.figures import FigureSpec

SECOND = 1_000_000_000
WALL = 1_800_000_000 * SECOND
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e$\\frac{1}{2}$&lt;b&gt;"


def a_gpu(at: float, percent: float | None = 50.0, **changes: Any) -> GpuSample:
    """Return a sample of GPU 0 so many seconds after the start; a third of it is the sandbox's."""
    t_ns = WALL + round(at * SECOND)
    used = GpuProcess(pid=7, member=True, utilization=10.0, memory_bytes=2**30, t_ns=t_ns)
    other = GpuProcess(pid=8, member=False, utilization=20.0, memory_bytes=2**30, t_ns=t_ns)
    sample = GpuSample(
        index=0,
        uuid="GPU-1",
        source="nvml",
        t_wall_ns=t_ns,
        utilization=percent,
        readings=[] if percent is None else [Reading(t_ns=t_ns, percent=percent)],
        memory_used_bytes=4 * 2**30,
        power_w=200.0,
        temperature_c=60.0,
        process_utilization=True,
        processes=[used, other],
    )
    return msgspec.structs.replace(sample, **changes)


def a_snapshot(at: float, *gpus: GpuSample, **changes: Any) -> Snapshot:
    """Return a snapshot so many seconds after the start."""
    process = ProcessSample(
        pid=7, start_ticks=1, ppid=1, name="x", state="R", cpu_s=at, cpu_percent=90.0, rss_bytes=2**20, threads=2
    )
    resources = Resources(
        t_mono_ns=round(at * SECOND) + 1,
        processes=[process],
        cpu_percent=90.0,
        rss_bytes=3 * 2**20,
        threads=2,
        read_bytes=round(at * 5_000_000),
    )
    return Snapshot(
        **{
            "seq": 0,
            "t_mono_ns": round(at * SECOND) + 1,
            "t_wall_ns": WALL + round(at * SECOND),
            "gpus": list(gpus),
            "resources": resources,
            **changes,
        }
    )


def gpu_spec(*snapshots: Snapshot, keep: int | None = None) -> FigureSpec:
    """Return the GPU figure after snapshots."""
    chart = GpuChart(keep)
    for snapshot in snapshots:
        chart.feed(snapshot)
    return chart_spec(chart)


def named(spec: FigureSpec, name: str, axis: str) -> dict[str, Any]:
    """Return the one trace of this name on this axis."""
    (found,) = [trace for trace in spec[0] if trace["name"] == name and trace["yaxis"] == axis]
    return found


# -- lines over time ------------------------------------------------------------------------------------------------


def test_the_gpu_figure_shows_the_whole_and_the_sandboxs_part_with_units() -> None:
    """Utilisation, memory, power and temperature have panels with units; the sandbox's share has a line of its own."""
    spec = gpu_spec(a_snapshot(0, a_gpu(0)), a_snapshot(1, a_gpu(1, 70.0)))
    assert named(spec, "GPU 0", "y")["y"] == [50.0, 70.0]
    assert named(spec, "GPU 0, sandbox", "y")["y"] == [10.0, 10.0]
    assert named(spec, "GPU 0", "y2")["y"] == [4.0, 4.0]
    assert named(spec, "GPU 0, sandbox", "y2")["y"] == [1.0, 1.0]
    assert named(spec, "GPU 0", "y3")["y"] == [200.0, 200.0]
    assert named(spec, "GPU 0", "y4")["y"] == [60.0, 60.0]
    figure = plotted(spec)
    titles = [figure.layout[f"yaxis{panel}"].title.text for panel in ("", "2", "3", "4")]
    assert titles == ["utilisation (%)", "memory (GiB)", "power (W)", "temperature (°C)"]
    assert figure.layout.title.text == "GPUs"
    assert figure.layout.xaxis.title.text == "time (UTC)"
    assert figure.data[0].x[0] == np.datetime64(WALL, "ns")


def test_a_measurement_is_drawn_once_at_the_drivers_own_time() -> None:
    """A sample without a new measurement adds no point, and one with three adds three."""
    three = [Reading(t_ns=WALL + SECOND + k, percent=float(k)) for k in range(3)]
    spec = gpu_spec(a_snapshot(0, a_gpu(0)), a_snapshot(0.1, a_gpu(0.1, None)), a_snapshot(1, a_gpu(1, readings=three)))
    assert named(spec, "GPU 0", "y")["x"] == [WALL, WALL + SECOND, WALL + SECOND + 1, WALL + SECOND + 2]
    later = a_gpu(0.1, None, processes=a_gpu(0).processes)  # what was measured of processes at 0 s, told once more
    assert named(gpu_spec(a_snapshot(0, a_gpu(0)), a_snapshot(0.1, later)), "GPU 0, sandbox", "y")["x"] == [WALL]


def test_an_error_is_a_gap_and_is_said() -> None:
    """While a GPU does not answer its lines are broken, and the title says why; afterwards they go on."""
    lost = a_gpu(1, state="error", error="GPU is <lost>", utilization=None, readings=[], processes=[])
    spec = gpu_spec(a_snapshot(0, a_gpu(0)), a_snapshot(1, lost))
    assert named(spec, "GPU 0", "y3")["y"] == [200.0, None]
    assert "GPU 0: GPU is &lt;lost&gt;" in spec[1]["title"]["text"]
    spec = gpu_spec(a_snapshot(0, a_gpu(0)), a_snapshot(1, lost), a_snapshot(2, a_gpu(2)))
    assert named(spec, "GPU 0", "y3")["y"] == [200.0, None, 200.0]
    assert spec[1]["title"]["text"] == "GPUs"


def test_what_is_not_real_is_labelled_everywhere() -> None:
    """A simulated GPU is SIMULATED in title, legend and across the figure; a trace is a RECORDED TRACE."""
    traces, layout = gpu_spec(a_snapshot(0, a_gpu(0, source="simulated", simulated=True)))
    assert layout["title"]["text"] == "GPUs: SIMULATED"
    assert [note["text"] for note in layout["annotations"]] == ["SIMULATED"]
    assert all("SIMULATED" in trace["name"] for trace in traces)
    assert "RECORDED TRACE" in gpu_spec(a_snapshot(0, a_gpu(0, source="trace")))[1]["title"]["text"]


def test_no_gpu_is_said_with_its_reason() -> None:
    """Without a GPU the figure has no lines at zero, but the reason; before any sample it says so."""
    traces, layout = gpu_spec(a_snapshot(0, no_gpu=NoGpu(kind="library", reason="no NVIDIA driver")))
    assert traces == []
    assert "No GPU: no NVIDIA driver" in layout["title"]["text"]
    assert "no sample" in gpu_spec()[1]["title"]["text"]
    assert plotted(gpu_spec()).data == ()


def test_the_resources_figure_shows_rates_and_counts() -> None:
    """CPU, memory, processes and threads are as measured, storage is a rate in MB/s."""
    chart = ResourcesChart()
    for second in range(3):
        chart.feed(a_snapshot(float(second)))
    lines = {line.group: line.values for line in chart.lines}
    assert lines["CPU"] == [90.0] * 3
    assert lines["resident memory"] == [3.0] * 3
    assert (lines["processes"], lines["threads"]) == ([1] * 3, [2] * 3)
    assert lines["read"] == pytest.approx([5.0, 5.0])
    assert len(plotted(chart_spec(chart)).data) == len(chart.lines)


def test_a_live_chart_keeps_so_many_points() -> None:
    """Whatever the time, a line has at most `keep` points, the newest."""
    spec = gpu_spec(*(a_snapshot(k, a_gpu(k, float(k))) for k in range(30)), keep=10)
    assert named(spec, "GPU 0", "y")["y"] == [float(k) for k in range(20, 30)]
    assert all(len(trace["x"]) == len(trace["y"]) <= 10 for trace in spec[0])


# -- connections ----------------------------------------------------------------------------------------------------


def a_story() -> list[AnyEvent]:
    """One allowed download, one refused tunnel, one refused name, one question."""
    return [
        event("exec", basis="post", pid=10, step=1, exe="/usr/bin/curl"),
        event("connect", pid=10, step=1, host="api.example.org", flow=1, rule="network.rules[0]"),
        event("flow", op="named", pid=10, step=1, host="api.example.org", protocol="tls", bytes_out=500),
        event("flow", op="closed", pid=10, step=1, host="api.example.org", bytes_out=900, bytes_in=2_000_000),
        event("exec", basis="post", pid=11, step=2, exe="/usr/bin/ssh"),
        event("connect", pid=11, step=2, addr="203.0.113.7", port=22, verdict="deny", rule="no rule matches"),
        event("connect", pid=11, step=2, addr="203.0.113.7", port=22, verdict="deny", rule="no rule matches"),
        event("dns", pid=11, step=2, qname="pool.example.net", verdict="deny", rcode="REFUSED"),
        event("connect", pid=11, step=2, host="ask.example.org", verdict="ask"),
    ]


def test_the_graph_joins_processes_to_endpoints_with_verdict_bytes_and_protocol() -> None:
    """Each process and endpoint is there once, a flow's bytes once, and a refusal is never hidden."""
    graph = connection_graph(a_story())
    assert [(node.program, node.pid, node.step) for node in graph.processes] == [
        ("/usr/bin/curl", 10, 1),
        ("/usr/bin/ssh", 11, 2),
    ]
    ends = {node.key: node for node in graph.endpoints}
    edges = {ends[edge.endpoint].host or ends[edge.endpoint].addr: edge for edge in graph.edges}
    download, tunnel, name, question = (
        edges[where] for where in ("api.example.org", "203.0.113.7", "pool.example.net", "ask.example.org")
    )
    assert (download.verdict, download.bytes_out, download.bytes_in) == ("allow", 900, 2_000_000)
    assert download.protocols == {"tls"}
    assert (tunnel.verdict, tunnel.denied, tunnel.rules) == ("deny", 2, {"no rule matches"})
    assert (name.verdict, ends[name.endpoint].transport) == ("deny", "dns")
    assert question.verdict == "ask"


def test_a_flow_that_is_refused_by_its_first_bytes_is_a_refusal() -> None:
    """An allowed connect whose protocol is not what the policy names shows as denied."""
    (edge,) = connection_graph(
        [
            event("connect", flow=5, host="api.example.org"),
            event("flow", op="named", flow=5, host="api.example.org", protocol="stratum", verdict="deny"),
        ]
    ).edges
    assert (edge.verdict, edge.allowed, edge.denied, edge.protocols) == ("deny", 1, 1, {"stratum"})


def test_a_number_that_another_program_has_later_is_another_process() -> None:
    """The program at the time of the connect counts, not the one that the number has afterwards."""
    graph = connection_graph(
        [
            event("exec", basis="post", pid=10, exe="/bin/a"),
            event("connect", pid=10),
            event("exec", basis="post", pid=10, exe="/bin/b"),
            event("connect", pid=10),
        ]
    )
    assert [node.program for node in graph.processes] == ["/bin/a", "/bin/b"]
    assert len(graph.endpoints) == 1


def test_a_crowd_is_folded_and_refusals_stay() -> None:
    """Of 2,000 endpoints at most 300 nodes are shown; the refused one is among them, and no byte is lost."""
    events = [event("connect", pid=1 + k % 400, addr=f"192.0.2.{k % 250}", port=1 + k, flow=k + 1) for k in range(2000)]
    events += [event("flow", op="closed", flow=k + 1, bytes_out=10) for k in range(2000)]
    events.append(event("connect", addr="203.0.113.9", port=4444, verdict="deny"))
    graph = connection_graph(events)
    assert len(graph.processes) + len(graph.endpoints) <= 302
    assert sum(edge.bytes_out for edge in graph.edges) == 20_000
    assert any(node.port == 4444 for node in graph.endpoints)
    assert graph.endpoints[-1].folded > 1500
    assert {edge.process for edge in graph.edges} <= {node.key for node in graph.processes}
    assert {edge.endpoint for edge in graph.edges} <= {node.key for node in graph.endpoints}
    assert len(plotted(graph_spec(graph)).data) == len(graph_spec(connection_graph([]))[0])


def test_what_an_agent_invents_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound new pairs are counted together, and the sums stay right."""
    monkeypatch.setattr("jupyter_agentwatch.watch.connections._MANY", 50)
    grapher = ConnectionGrapher()
    for k in range(500):
        grapher.feed(event("exec", basis="post", pid=k, exe=f"/bin/{k}"))
        grapher.feed(event("connect", pid=k, port=1 + k, flow=k + 1, verdict="allow" if k % 2 else "deny"))
        grapher.feed(event("flow", op="named", flow=k + 1, bytes_in=1))
    assert len(grapher._edges) <= 51
    assert len(grapher._programs) <= 50
    assert len(grapher._flows) <= 50
    graph = grapher.graph()
    assert sum(edge.allowed for edge in graph.edges) == 250
    assert sum(edge.denied for edge in graph.edges) == 250
    assert len({node.key for node in graph.endpoints}) == len(graph.endpoints)


names = st.text(max_size=20) | st.sampled_from([HOSTILE, "", "a" * 5000])
strange = st.one_of(
    st.builds(lambda n, p: event("exec", basis="post", pid=p, exe=n), names, st.integers(0, 5)),
    st.builds(
        lambda h, p, v, f: event("connect", host=h, pid=p, verdict=v, flow=f, rule=h),
        names,
        st.integers(0, 5),
        st.sampled_from(["allow", "deny", "ask"]),
        st.integers(0, 3),
    ),
    st.builds(
        lambda o, f, b, n: event("flow", op=o, flow=f, bytes_out=b, protocol=n),
        st.sampled_from(["named", "closed", "failed"]),
        st.integers(0, 3),
        st.integers(0, 2**60),
        names,
    ),
    st.builds(lambda n: event("dns", qname=n, verdict="deny"), names),
)


@given(st.lists(strange, max_size=30))
def test_any_events_make_a_figure_without_markup(events: list[AnyEvent]) -> None:
    """Whatever the order and the names, there is a figure, and plotly is given no tag, formula or control character."""
    graph = connection_graph(events, max_nodes=6)
    keys = {node.key for node in graph.processes}, {node.key for node in graph.endpoints}
    assert all(edge.process in keys[0] and edge.endpoint in keys[1] for edge in graph.edges)
    traces, layout = graph_spec(graph)
    texts = [layout["title"]["text"], *(text for trace in traces for text in trace.get("text", []))]
    for text in texts:
        plain = text.replace("<br>", "")
        assert not set(plain) & set("<>$\x1b\u202e\n")


def test_many_ports_of_a_host_are_one_endpoint_of_a_figure() -> None:
    """A scan of hosts and ports stays readable: each host once, with the number of its ports and all that was done."""
    tried = [
        event("connect", pid=7, step=4, addr=f"10.77.0.{host}", port=port, verdict="deny")
        for host in range(2, 8)
        for port in range(10)
    ]
    lone = event("connect", pid=7, step=4, addr="192.0.2.1", port=443)
    graph = folded_by_host(connection_graph([*tried, lone]))
    assert [(node.addr, node.port, node.folded) for node in graph.endpoints] == [
        *((f"10.77.0.{host}", 0, 9) for host in range(2, 8)),
        ("192.0.2.1", 443, 0),
    ]
    assert [(edge.denied, edge.allowed) for edge in graph.edges] == [*[(10, 0)] * 6, (0, 1)]
    traces, layout = graph_spec(graph)
    assert traces[-1]["text"][0] == "10.77.0.2: 10 ports"
    assert traces[-1]["text"][-1] == "192.0.2.1:443"
    assert layout["height"] < 400
    few = connection_graph(tried[:24])
    assert folded_by_host(few) is few


def test_hostile_text_is_shown_and_does_nothing() -> None:
    """Markup, formulas and controls in a program's name come out as text in the figure that plotly makes."""
    graph = connection_graph([event("exec", basis="post", pid=1, exe=f"/bin/{HOSTILE}"), event("connect", pid=1)])
    shown = plotted(graph_spec(graph)).to_json()
    assert "onerror" not in shown or "<img" not in json.loads(shown)["data"][-2]["text"][0]
    assert "&lt;img" in figure_text(HOSTILE)
    assert "&#36;" in figure_text(HOSTILE)
    assert "\\x1b" in figure_text(HOSTILE)


# -- live figures ---------------------------------------------------------------------------------------------------


class Wire(BaseComm):
    """A comm that keeps what was sent."""

    sent: list[tuple[str, Any, list[Any]]]

    def publish_msg(
        self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
    ) -> None:
        self.sent.append((msg_type, data, buffers or []))


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any, list[Any]]]]:
    """Everything that widgets send."""
    sent: list[tuple[str, Any, list[Any]]] = []
    kind = type("Kept", (Wire,), {"sent": sent})
    monkeypatch.setattr(comm, "create_comm", kind)
    # The test says when a figure is refreshed.
    monkeypatch.setattr(live_figure, "PERIOD_S", 0.01)
    yield sent
    for figure in list(live_figure._UPDATER._figures):
        figure.close()


class Told:
    """A source whose figure a test decides."""

    def __init__(self) -> None:
        self.snapshots = [a_snapshot(0, a_gpu(0))]
        self.looked = threading.Semaphore(0)
        self.is_held = False
        self.has_ended = False
        self._taken = 0
        self._chart = GpuChart(600)

    def update(self) -> bool:
        new = [] if self.is_held else self.snapshots[self._taken :]
        self._taken += len(new)
        for snapshot in new:
            self._chart.feed(snapshot)
        self.looked.release()
        return bool(new)

    def spec(self) -> FigureSpec:
        return chart_spec(self._chart)


def changed(wire: list[tuple[str, Any, list[Any]]]) -> list[dict[str, Any]]:
    """Return what plotly was told to change, update by update."""
    found = []
    for kind, data, _ in wire:
        state = (data or {}).get("state", {}) if kind == "comm_msg" else {}
        update = state.get("_py2js_update") or state.get("_py2js_restyle")
        if update:
            found.append(update)
    return found


def test_a_live_figure_is_updated_with_what_has_changed_alone(wire: list[tuple[str, Any, list[Any]]]) -> None:
    """New points reach the front-end as arrays of the lines that have them; where nothing is new nothing is sent."""
    told = Told()
    told.is_held = True
    figure = LiveFigure(told, lambda: told.has_ended)
    told.is_held = False
    begun = len(wire)
    with figure._busy:  # the updating thread waits, and this test is the one that refreshes
        told.snapshots.append(a_snapshot(1, a_gpu(1)))
    while len(figure.data) == 0:
        assert told.looked.acquire(timeout=20)
    assert len(wire) > begun
    figure.close()


def test_only_the_arrays_that_changed_are_sent(wire: list[tuple[str, Any, list[Any]]]) -> None:
    """A line that has no new point is not sent again, and neither is the layout."""
    told = Told()
    figure = LiveFigure(told, lambda: told.has_ended)
    live_figure._UPDATER.remove(figure)  # from here on, this test is the one that refreshes
    wire.clear()
    assert not figure.refresh()
    assert wire == []
    idle = a_gpu(1, None, power_w=None, temperature_c=None, memory_used_bytes=None)
    told.snapshots.append(a_snapshot(1, idle))
    assert figure.refresh()
    (update,) = changed(wire)
    told.snapshots.append(a_snapshot(1, idle))
    assert not figure.refresh()  # a sample that shows nothing else
    assert len(changed(wire)) == 1
    lines = [trace.name for trace in figure.data]
    sent = update["style_data"]
    places = update["style_traces"]
    assert [lines[place] for place in places] == ["GPU 0, sandbox"]
    assert set(sent) <= {"x", "y"}
    assert not update.get("layout_data")
    assert any(buffers for _, _, buffers in wire)  # numbers travel as bytes
    assert list(figure.data[1].x) == [WALL / 1e6, (WALL + SECOND) / 1e6]
    figure.close()


def test_a_new_gpu_appears_in_a_live_figure(wire: list[tuple[str, Any, list[Any]]]) -> None:
    """Where there are other lines than before, the figure is made anew, its title too."""
    told = Told()
    figure = LiveFigure(told, lambda: told.has_ended)
    live_figure._UPDATER.remove(figure)
    before = len(figure.data)
    second = a_gpu(1, index=1, uuid="GPU-2", source="simulated", simulated=True)
    told.snapshots.append(a_snapshot(1, a_gpu(1), second))
    assert figure.refresh()
    assert len(figure.data) == 2 * before
    assert "SIMULATED" in figure.layout.title.text
    told.snapshots.append(a_snapshot(2, a_gpu(2), second))
    assert figure.refresh()
    figure.close()


def test_a_closed_figure_is_updated_no_more(wire: list[tuple[str, Any, list[Any]]]) -> None:
    """After `close` nothing is sent, and the thread that updates ends with the last figure."""
    told = Told()
    figure = LiveFigure(told, lambda: told.has_ended)
    assert figure.is_live
    figure.close()
    count = len(wire)
    assert wire[-1][0] == "comm_close"
    told.snapshots.append(a_snapshot(1, a_gpu(1)))
    assert not figure.refresh()
    assert not figure.is_live
    thread = live_figure._UPDATER._thread
    if thread is not None:
        thread.join(20)
    assert live_figure._UPDATER._thread is None
    assert len(wire) == count


def test_a_figure_shows_the_end_and_stays(wire: list[tuple[str, Any, list[Any]]]) -> None:
    """When the watch has ended, what came last is still shown; then the figure is left as it is."""
    told = Told()
    figure = LiveFigure(told, lambda: told.has_ended)
    live_figure._UPDATER.remove(figure)
    told.snapshots.append(a_snapshot(1, a_gpu(1, 99.0)))
    told.has_ended = True
    assert figure.refresh()
    assert figure.data[0].y[-1] == 99.0
    assert not figure.is_live
    assert wire[-1][0] != "comm_close"


def test_a_figure_that_fails_does_not_stop_the_others(
    wire: list[tuple[str, Any, list[Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    """Its failure is logged, it is updated no more, and another figure goes on."""

    class Broken(Told):
        def spec(self) -> FigureSpec:
            if self._taken > 1:
                msg = "broken"
                raise RuntimeError(msg)
            return super().spec()

    broken, whole = Broken(), Told()
    first = LiveFigure(broken, lambda: False)
    second = LiveFigure(whole, lambda: False)
    broken.snapshots.append(a_snapshot(1, a_gpu(1)))
    whole.snapshots.append(a_snapshot(1, a_gpu(1, 33.0)))
    while first.is_live or second.data[0].y[-1] != 33.0:
        assert whole.looked.acquire(timeout=20)
    assert second.is_live
    assert "broken" in caplog.text
    second.close()
