"""The picture and the tables in a saved notebook, and the plots of a report: SVG in an image, and escaped text only.

An SVG in an image element runs no script and loads nothing, whatever stands in it. Pure.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from jupyter_agentwatch.events import printable
from jupyter_agentwatch.watch.agent_digest import AgentProgress, AgentTurn
from jupyter_agentwatch.watch.connections import Edge, EndpointNode, ProcessNode, folded_by_host
from jupyter_agentwatch.watch.story import Command, Points, Story

__all__ = ["SAVED_CLASS", "picture", "plots", "saved_html"]

SAVED_CLASS: Final = "aw-saved"
"""Class of what is saved; the dashboard's style sheet hides it beside a live dashboard."""

_WIDTH: Final = 960
_ROW: Final = 20
_NODES: Final = 24
_MANY_NODES: Final = 300
_COMMANDS: Final = 12
_FINDINGS: Final = 6
_AGENTS: Final = 3
_LAST_TURNS: Final = 5
_TURN: Final = ("turn", "action", "what", "outcome", "verdicts", "tokens", "reward")
_TABLE: Final = 50
_CHART: Final = 70
_LEFT: Final = 20
_HALF: Final = 470
_INK: Final = "#1b1b1b"
_MUTED: Final = "#5f6368"
_LINES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a4c93", "#777777")
_COLOURS: Final = {"allow": "#2e7d32", "ask": "#b26a00", "deny": "#c62828", "kill": "#c62828"}
_GRAVE: Final = frozenset({"high", "critical"})
_STATES: Final = {"closed": "running", "throttled": "THROTTLED", "frozen": "FROZEN"}
_LATEST_NS: Final = 250_000_000_000 * 10**9


def saved_html(story: Story, head: str, log: str, picture_id: str = "") -> str:
    """Return what a notebook keeps of a run: the picture, and below it the same as tables.

    Args:
        story: The run.
        head: Head hash of its record at that moment.
        log: Path of its record.
        picture_id: What later pictures of the same output bear, too, so that a page that was loaded anew finds it: two
            times 8 hexadecimal characters with "-" between them.
    """
    image = base64.b64encode(picture(story, head).encode()).decode()
    title = _text(f"agent run {story.watch} as it was at {_when(story.last_ns)}", 200)
    facts = [("log", log), ("head", head), ("workspace", story.workspace), ("why", story.why)]
    rows = [[command.number, " ".join(command.argv), _outcome(command)] for command in _newest(story, _TABLE)]
    graph = story.graph(2 * _TABLE)
    left = {node.key: _process(node) for node in graph.processes}
    right = {node.key: _endpoint(node) for node in graph.endpoints}
    edges = [
        [left[edge.process], right[edge.endpoint], edge.verdict, ", ".join(sorted(edge.rules)), edge.bytes_out]
        for edge in graph.edges[:_TABLE]
    ]
    found = [[each.severity, each.title, each.rule, each.step] for each in story.findings]
    told = [[run.line, run.task, run.answer] for run in story.agents.runs.values()]
    return "".join(
        [
            f'<div class="{SAVED_CLASS}" data-picture="{html.escape(picture_id)}">',
            f'<img alt="{title}" src="data:image/svg+xml;base64,{image}">',
            f"<details><summary>{title}, as tables</summary>",
            _table(("", ""), [[name, value] for name, value in facts if value]),
            _table(("agent run", "task", "answer"), told),
            *(_table(_TURN, _turns(run)) for run in list(story.agents.runs.values())[-_AGENTS:]),
            _table(("step", "command", "outcome"), rows),
            _table(("process", "endpoint", "verdict", "rule", "bytes out"), edges),
            _table(("severity", "finding", "rule", "step"), found),
            "</details></div>",
        ]
    )


def picture(story: Story, head: str = "") -> str:
    """Return a run as an SVG picture: state, steps, CPU and memory, who talked to whom, findings.

    Args:
        story: The run.
        head: Head hash of its record at that moment.
    """
    canvas = _Canvas()
    _draw_head(canvas, story)
    _draw_agents(canvas, story)
    _draw_commands(canvas, story)
    _draw_charts(canvas, story)
    _draw_graph(canvas, story)
    _draw_findings(canvas, story)
    canvas.line(f"record until {_when(story.last_ns)}{f', head {head}' if head else ''}", size=11, fill=_MUTED)
    return canvas.svg()


def plots(story: Story) -> str:
    """Return CPU, memory, GPUs and connections of a run as an SVG picture; "" where nothing was measured or connected.

    Args:
        story: The run.
    """
    canvas = _Canvas()
    _draw_charts(canvas, story)
    _draw_graph(canvas, story)
    return canvas.svg() if canvas.has_any else ""


class _Canvas:
    """Collects shapes from top to bottom; whatever text comes in goes out escaped."""

    def __init__(self) -> None:
        self.y = 10
        self._parts: list[str] = []

    @property
    def has_any(self) -> bool:
        return bool(self._parts)

    def shape(self, name: str, **attributes: float | str) -> None:
        told = " ".join(f'{key.replace("_", "-")}="{_number(value)}"' for key, value in attributes.items())
        self._parts.append(f"<{name} {told}/>")

    def text(self, text: str, x: float, y: float, *, most: int = 130, **attributes: float | str) -> None:
        told = "".join(f' {key.replace("_", "-")}="{_number(value)}"' for key, value in attributes.items())
        self._parts.append(f'<text x="{_number(x)}" y="{_number(y)}"{told}>{_text(text, most)}</text>')

    def line(self, text: str, *, size: int = 13, fill: str = _INK, weight: int = 400) -> None:
        self.y += _ROW
        self.text(text, _LEFT, self.y - 4, font_size=size, fill=fill, font_weight=weight)

    def svg(self) -> str:
        height = self.y + 12
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">'
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>{"".join(self._parts)}</svg>'
        )


def _draw_head(canvas: _Canvas, story: Story) -> None:
    state = _STATES.get(story.state, story.state)
    canvas.y += 4
    canvas.line(f"agent run {story.watch} · {state}", size=18, weight=700)
    if story.why:
        canvas.line(story.why, fill=_COLOURS["deny"] if story.state in {"frozen", "throttled"} else _INK)
    left = "" if story.survivors is None else f", {_count(story.survivors, 'process', 'processes')} left"
    canvas.line(
        f"isolation {story.rung} · {_count(story.steps, 'step')}, {_count(story.denied, 'refused call')}, "
        f"{_count(len(story.findings), 'finding')}{left}",
        fill=_MUTED,
    )


def _draw_agents(canvas: _Canvas, story: Story) -> None:
    for run in list(story.agents.runs.values())[-_AGENTS:]:
        _title(canvas, run.line)
        canvas.line(f"task: {run.task}", size=12, fill=_MUTED)
        for turn in list(run.turns.values())[-_LAST_TURNS:]:
            words = [f"{turn.number} {turn.action}".strip(), turn.text, turn.outcome or "goes on", turn.verdicts]
            fill = _COLOURS["deny"] if turn.findings or turn.calls["deny"] else _INK
            canvas.line(" · ".join(word for word in words if word), size=12, fill=fill)


def _draw_commands(canvas: _Canvas, story: Story) -> None:
    commands = _newest(story, _COMMANDS)
    if not commands:
        return
    _title(canvas, "Steps")
    first = commands[0].started_ns
    whole = max(1, story.last_ns - first)
    for command in commands:
        good = command.outcome in {"", "exit 0"}
        fill = _COLOURS["allow" if good else "deny"]
        canvas.line(f"{command.number} · {' '.join(command.argv)} · {_outcome(command)}", size=12)
        x = (_WIDTH - 2 * _LEFT) * (command.started_ns - first) / whole
        width = (_WIDTH - 2 * _LEFT) * ((command.ended_ns or story.last_ns) - command.started_ns) / whole
        canvas.shape("rect", x=_LEFT + x, y=canvas.y, width=max(2.0, width), height=3, fill=fill)


def _draw_charts(canvas: _Canvas, story: Story) -> None:
    charts = [
        ("CPU, % of one core", {"": story.cpu}, 1.0),
        ("memory, MiB", {"": story.memory}, 1 / 2**20),
        ("used, %", story.gpus, 1.0),
    ]
    drawn = [each for each in charts if any(len(points) > 1 for points in each[1].values())]
    for place, (name, lines, scale) in enumerate(drawn):
        _draw_chart(canvas, name, lines, _LEFT + _HALF * (place % 2), scale)
        if place % 2 or place == len(drawn) - 1:
            canvas.y += _CHART + 40
    if drawn:
        every = [t_ns for _, lines, _ in drawn for points in lines.values() for t_ns, _ in points]
        canvas.line(f"measured from {_when(min(every))} to {_when(max(every))}", size=11, fill=_MUTED)


def _draw_chart(canvas: _Canvas, name: str, lines: Mapping[str, Points], x: int, scale: float) -> None:
    top, width = canvas.y + 26, _HALF - 30
    every = [point for points in lines.values() for point in points]
    began = min(t_ns for t_ns, _ in every)
    whole = max(1, max(t_ns for t_ns, _ in every) - began)
    highest = max(*(value for _, value in every), 1e-9)
    names = f"{', '.join(lines)} " if any(lines) else ""
    words = f"{names}{name}: at most {highest * scale:.0f}"
    canvas.text(words, x, top - 8, most=70, font_weight=700, font_size=12, fill=_INK)
    canvas.shape("rect", x=x, y=top, width=width, height=_CHART, fill="none", stroke="#dadce0")
    for number, points in enumerate(lines.values()):
        places = " ".join(
            f"{_number(x + width * (t_ns - began) / whole)},{_number(top + _CHART * (1 - value / highest))}"
            for t_ns, value in points
        )
        stroke = _LINES[number % len(_LINES)]
        canvas.shape("polyline", points=places, fill="none", stroke=stroke, stroke_width=1.5)


def _draw_graph(canvas: _Canvas, story: Story) -> None:
    graph = folded_by_host(story.graph(_MANY_NODES), _NODES)
    if len(graph.processes) + len(graph.endpoints) > _NODES:
        graph = story.graph(_NODES)
    if not graph.edges:
        return
    _title(canvas, "Connections: processes, and where they wanted to")
    top = canvas.y + 14
    left = {node.key: (380.0, top + _ROW * place) for place, node in enumerate(graph.processes)}
    right = {node.key: (600.0, top + _ROW * place) for place, node in enumerate(graph.endpoints)}
    for edge in graph.edges:
        _draw_edge(canvas, edge, left[edge.process], right[edge.endpoint])
    for process in graph.processes:
        x, y = left[process.key]
        canvas.shape("rect", x=x - 5, y=y - 5, width=10, height=10, fill="#1976d2")
        canvas.text(_process(process), x - 10, y + 4, most=50, text_anchor="end", font_size=12, fill=_INK)
    for endpoint in graph.endpoints:
        x, y = right[endpoint.key]
        canvas.shape("circle", cx=x, cy=y, r=5, fill=_MUTED)
        canvas.text(_endpoint(endpoint), x + 10, y + 4, most=50, font_size=12, fill=_INK)
    canvas.y = round(top) + _ROW * max(len(left), len(right))


def _draw_edge(canvas: _Canvas, edge: Edge, start: tuple[float, float], end: tuple[float, float]) -> None:
    dashes = "4 3" if edge.verdict == "deny" else "none"
    stroke = _COLOURS[edge.verdict]
    canvas.shape(
        "line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], stroke=stroke, stroke_width=2, stroke_dasharray=dashes
    )


def _draw_findings(canvas: _Canvas, story: Story) -> None:
    if not story.findings:
        return
    _title(canvas, "Findings")
    for finding in list(story.findings)[-_FINDINGS:]:
        fill = _COLOURS["deny"] if finding.severity in _GRAVE else _INK
        canvas.line(f"{finding.severity}: {finding.title} [{finding.rule}]", size=12, fill=fill)


def _title(canvas: _Canvas, text: str) -> None:
    canvas.y += 8
    canvas.line(text, weight=700)


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _newest(story: Story, most: int) -> list[Command]:
    return list(story.commands.values())[-most:]


def _outcome(command: Command) -> str:
    if not command.outcome:
        return "running"
    return f"{command.outcome}, {(command.ended_ns - command.started_ns) / 1e9:.2f} s"


def _turns(run: AgentProgress) -> list[list[object]]:
    return [
        [turn.number, turn.action, turn.text, turn.outcome or "goes on", turn.verdicts, turn.tokens, _earned(turn)]
        for turn in list(run.turns.values())[-_TABLE:]
    ]


def _earned(turn: AgentTurn) -> str:
    return "" if turn.reward is None else f"{turn.reward:+g}"


def _process(node: ProcessNode) -> str:
    name = node.program.rpartition("/")[2] or "?"
    return f"{name} ({node.pid})" if node.pid else name


def _endpoint(node: EndpointNode) -> str:
    return f"{node.host or node.addr}{node.port_text}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    top = f"<tr>{''.join(f'<th>{each}</th>' for each in head)}</tr>" if any(head) else ""
    return f"<table>{top}{''.join(_row(row) for row in rows)}</table>"


def _row(cells: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<td>{_text(str(cell), 400)}</td>' for cell in cells)}</tr>"


def _text(text: str, most: int) -> str:
    return html.escape(printable(text, most))


def _number(value: float | str) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.6g}"


def _when(t_ns: int) -> str:
    moment = datetime.fromtimestamp(min(max(t_ns, 0), _LATEST_NS) / 1e9, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
