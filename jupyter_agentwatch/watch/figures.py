"""Charts and the connection graph as plain descriptions of plotly figures, which static and live figures are made of.

Every text that the agent could choose passes `figure_text`: plotly reads a kind of HTML, and MathJax between dollars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from jupyter_agentwatch.events import printable
from jupyter_agentwatch.watch.charts import Chart, Line
from jupyter_agentwatch.watch.connections import ConnectionGraph, Edge, EndpointNode, ProcessNode

if TYPE_CHECKING:
    import plotly.graph_objects as go  # type: ignore[import-untyped]

__all__ = ["FigureSpec", "chart_spec", "figure_text", "graph_spec", "plotted"]

FigureSpec = tuple[list[dict[str, Any]], dict[str, Any]]
"""Traces and layout, as plotly names their properties."""

_COLOURS: Final = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f")
_VERDICTS: Final = {"allow": ("#2e7d32", "allowed"), "deny": ("#c62828", "denied"), "ask": ("#ef6c00", "asked")}
_WIDTHS: Final = (1.0, 2.5, 5.0, 9.0)
_BYTES: Final = (10_000, 1_000_000, 100_000_000)
_ESCAPED: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})
_GAP: Final = 0.05
_PANEL_PX: Final = 130
_LEAST_PX: Final = 400
_FEW_POINTS: Final = 30


def figure_text(text: str, limit: int = 80) -> str:
    """Return hostile text that plotly shows as it is: no markup, no formula, no control characters."""
    return printable(text, limit).translate(_ESCAPED)


def chart_spec(chart: Chart) -> FigureSpec:
    """Describe lines over time, one panel below the other on one axis of time (UTC)."""
    lines = list(chart.lines)  # once: a chart may make them as they are asked for
    groups = list(dict.fromkeys(line.group for line in lines))
    traces = [_line(line, groups.index(line.group), lines) for line in lines]
    notes = [figure_text(note, 300) for note in chart.notes]
    height = (1 - _GAP * (len(chart.panels) - 1)) / len(chart.panels)
    bottom = "" if len(chart.panels) == 1 else str(len(chart.panels))
    layout: dict[str, Any] = {
        "title": {"text": ": ".join([chart.title, *notes])},
        "height": 120 + max(_PANEL_PX * len(chart.panels), _LEAST_PX),
        "hovermode": "x",
        "xaxis": {"type": "date", "title": {"text": "time (UTC)"}, "anchor": f"y{bottom}"},
        "margin": {"l": 70, "r": 20, "t": 60, "b": 50},
        "annotations": [_watermark()] if "SIMULATED" in chart.notes else [],
    }
    for panel, (name, unit) in enumerate(chart.panels):
        top = 1 - panel * (height + _GAP)
        axis: dict[str, Any] = {"title": {"text": f"{name} ({unit})"}, "rangemode": "tozero"}
        axis["domain"] = [max(0.0, top - height), top]
        layout[f"yaxis{panel + 1 if panel else ''}"] = axis
    return traces, layout


def graph_spec(graph: ConnectionGraph) -> FigureSpec:
    """Describe who talked to whom: processes on the left, endpoints on the right.

    Colour is the verdict, width grows with the bytes; what an edge stands for shows in its middle on hovering.
    """
    left = {node.key: (0.0, _height(place, len(graph.processes))) for place, node in enumerate(graph.processes)}
    right = {node.key: (1.0, _height(place, len(graph.endpoints))) for place, node in enumerate(graph.endpoints)}
    traces = [
        _edges([edge for edge in graph.edges if edge.verdict == verdict and _weight(edge) == weight], left, right, *key)
        for verdict in _VERDICTS
        for weight in range(len(_WIDTHS))
        for key in [(verdict, weight)]
    ]
    edges, names = list(graph.edges), {node.key: node for node in graph.endpoints}
    middles = [_between(left[edge.process], right[edge.endpoint]) for edge in edges]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "edges",
            "showlegend": False,
            "hoverinfo": "text",
            "x": [x for x, _ in middles],
            "y": [y for _, y in middles],
            "text": [_edge_text(edge, names[edge.endpoint]) for edge in edges],
            "marker": {"size": 9, "color": [_VERDICTS[edge.verdict][0] for edge in edges]},
        }
    )
    traces.append(_nodes("processes", left, [_process_text(node) for node in graph.processes], "middle left"))
    traces.append(_nodes("endpoints", right, [_endpoint_text(node) for node in graph.endpoints], "middle right"))
    bare = {"visible": False, "fixedrange": False}
    layout: dict[str, Any] = {
        "title": {"text": "Connections, by process and endpoint" if graph.edges else "Connections: none on record"},
        "height": 160 + 22 * max(len(graph.processes), len(graph.endpoints), 8),
        "xaxis": {**bare, "range": [-0.8, 1.8]},
        "yaxis": bare,
        "hovermode": "closest",
        "margin": {"l": 10, "r": 10, "t": 60, "b": 10},
    }
    return traces, layout


def plotted(spec: FigureSpec) -> go.Figure:
    """Return a plotly figure of its own, with dates as dates."""
    import numpy as np
    import plotly.graph_objects as go

    traces, layout = spec
    is_dated = layout["xaxis"].get("type") == "date"
    if is_dated:
        traces = [{**each, "x": np.array(each["x"], dtype="datetime64[ns]")} for each in traces]
        for each in traces:
            if len(each["x"]) <= _FEW_POINTS:  # a line of one point is none
                each["mode"] = "lines+markers"
    return go.Figure(data=traces, layout=layout)


def _line(line: Line, colour: int, lines: Sequence[Line]) -> dict[str, Any]:
    group = figure_text(line.group)
    is_first = next(each for each in lines if each.group == line.group) is line
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{group}, {line.part}" if line.part else group,
        "legendgroup": group,
        "showlegend": is_first or (bool(line.part) and line.panel == 0),
        "line": {"color": _COLOURS[colour % len(_COLOURS)], "dash": "dot" if line.part else "solid", "width": 1.5},
        "yaxis": f"y{line.panel + 1}" if line.panel else "y",
        "x": list(line.t_ns),
        "y": list(line.values),
    }


def _watermark() -> dict[str, Any]:
    return {
        "text": "SIMULATED",
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
        "showarrow": False,
        "opacity": 0.18,
        "font": {"size": 64},
        "textangle": -20,
    }


_Place = tuple[float, float]


def _height(place: int, count: int) -> float:
    return 1 - (place + 0.5) / count


def _between(one: _Place, other: _Place) -> _Place:
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2


def _weight(edge: Edge) -> int:
    return sum(edge.bytes_out + edge.bytes_in >= bound for bound in _BYTES)


def _edges(
    edges: Sequence[Edge], left: dict[str, _Place], right: dict[str, _Place], verdict: str, weight: int
) -> dict[str, Any]:
    colour, label = _VERDICTS[verdict]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for edge in edges:
        (x0, y0), (x1, y1) = left[edge.process], right[edge.endpoint]
        xs += [x0, x1, None]
        ys += [y0, y1, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label,
        "legendgroup": label,
        "showlegend": weight == 0,
        "hoverinfo": "skip",
        "line": {"color": colour, "width": _WIDTHS[weight]},
        "x": xs,
        "y": ys,
    }


def _nodes(name: str, places: dict[str, _Place], texts: list[str], side: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "showlegend": False,
        "hoverinfo": "text",
        "textposition": side,
        "marker": {"size": 12, "color": "#546e7a", "symbol": "circle" if name == "processes" else "square"},
        "x": [x for x, _ in places.values()],
        "y": [y for _, y in places.values()],
        "text": texts,
    }


def _process_text(node: ProcessNode) -> str:
    name = figure_text(node.program.rpartition("/")[2] or "?", 40)
    who = [f"pid {node.pid}"] if node.pid else []
    who += [f"step {node.step}"] if node.step else []
    return f"{name} ({', '.join(who)})" if who else name


def _endpoint_text(node: EndpointNode) -> str:
    where = figure_text(node.host or node.addr, 60)
    kind = "" if node.transport in {"tcp", ""} else f" [{node.transport}]"
    return f"{where}{node.port_text}{kind}"


def _edge_text(edge: Edge, endpoint: EndpointNode) -> str:
    attempts = [(edge.allowed, "allowed"), (edge.denied, "denied"), (edge.asked, "asked")]
    told = ", ".join(f"{count} {word}" for count, word in attempts if count)
    named = figure_text(", ".join(sorted(edge.protocols)) or "unnamed")
    rules = figure_text(", ".join(sorted(edge.rules)), 120)
    moved = f"{edge.bytes_out} bytes out, {edge.bytes_in} bytes in"
    return "<br>".join(filter(None, [_endpoint_text(endpoint), told, f"protocol {named}", moved, rules]))
