"""Figures of a study, as plotly figures with titles, units and captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from jupyter_agentwatch.agents.rome.inference import interval
from jupyter_agentwatch.agents.rome.study import CONDITIONS, PRICE_THRESHOLD, Study

if TYPE_CHECKING:
    import plotly.graph_objects as go  # type: ignore[import-untyped]

    from jupyter_agentwatch.agents.rome.inference import Interval
    from jupyter_agentwatch.agents.rome.study import Measure

__all__ = ["curves_figure", "dose_figure", "seeds_figure"]

_COLOURS: Final = ("#7f7f7f", "#d95f02", "#9467bd", "#2ca02c", "#e6ab02", "#8c564b", "#1f77b4")
_UNITS: Final[dict[Measure, str]] = {
    "diverted": "diverted actions per episode (of 8)",
    "success": "episodes with the task done (share)",
    "alarms": "actions with an alarm per episode (of 8)",
    "reward": "reward per episode",
}


def _colour(name: str) -> str:
    return _COLOURS[list(CONDITIONS).index(name) % len(_COLOURS)]


def _titled(figure: go.Figure, title: str, caption: str, height: int) -> go.Figure:
    figure.update_layout(title={"text": title}, height=height, margin={"l": 70, "r": 20, "t": 60, "b": 110})
    figure.add_annotation(
        text=caption, xref="paper", yref="paper", x=0, y=0, yshift=-90, showarrow=False, align="left", xanchor="left"
    )
    return figure


def _bars(intervals: list[Interval]) -> dict[str, object]:
    return {
        "type": "data",
        "array": [each.high - each.iqm for each in intervals],
        "arrayminus": [each.iqm - each.low for each in intervals],
    }


def curves_figure(study: Study) -> go.Figure:
    """Return learning curves: what is diverted, and beside it how often the task is done, in each iteration.

    Args:
        study: The study.
    """
    from plotly.subplots import make_subplots  # type: ignore[import-untyped]

    figure = make_subplots(cols=2, subplot_titles=("what the relay measured", "what a training curve shows"))
    for name, result in study.results.items():
        if not CONDITIONS[name].learns:
            continue
        curve = np.array(result.curve)
        steps = list(range(1, curve.shape[1] + 1))
        for column in (0, 1):
            points = [interval(curve[:, step - 1, column], draws=400) for step in steps]
            figure.add_scatter(
                x=steps,
                y=[point.iqm for point in points],
                error_y=_bars(points),
                name=name,
                legendgroup=name,
                showlegend=column == 0,
                line={"color": _colour(name)},
                row=1,
                col=column + 1,
            )
    figure.update_xaxes(title_text="updates of the policy", dtick=2, range=[0.5, study.training.iterations + 0.5])
    figure.update_yaxes(title_text=_UNITS["diverted"], range=[-0.15, 8], col=1)
    figure.update_yaxes(title_text=_UNITS["success"], range=[-0.02, 1.05], col=2)
    caption = f"Interquartile mean over {len(study.seeds)} seeds with its 95 % bootstrap interval; {study.mode} mode."
    return _titled(figure, "Learning under each condition", caption, 460)


def seeds_figure(study: Study, measure: Measure = "diverted") -> go.Figure:
    """Return one point for each seed under each condition, with the interquartile mean and its interval beside.

    Args:
        study: The study.
        measure: What is shown.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    names = list(study.results)
    for position, name in enumerate(names):
        values = getattr(study.results[name], measure)
        spread = np.linspace(-0.25, 0.05, len(values))
        hints = [f"seed {seed}" for seed in study.seeds]
        marker = {"color": _colour(name), "opacity": 0.5, "size": 4}
        figure.add_scatter(x=position + spread, y=values, mode="markers", text=hints, marker=marker, showlegend=False)
        found = study.results[name].interval(measure)
        big = {"color": _colour(name), "size": 11, "symbol": "diamond"}
        figure.add_scatter(
            x=[position + 0.2], y=[found.iqm], error_y=_bars([found]), marker=big, name=name, showlegend=False
        )
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, title_text="condition")
    figure.update_yaxes(title_text=_UNITS[measure], rangemode="tozero")
    caption = "One dot for each seed; diamond: interquartile mean, 95 % bootstrap interval."
    return _titled(figure, f"Every run, after learning ({study.mode} mode)", caption, 460)


def dose_figure(study: Study) -> go.Figure:
    """Return what is diverted and how often the task is done against the price of an alarm.

    Args:
        study: The study; it must have been given prices.

    Raises:
        ValueError: No prices were tried.
    """
    import plotly.graph_objects as go

    if not study.doses:
        msg = "the study tried no prices: run it with prices=PRICES"
        raise ValueError(msg)
    prices = list(study.doses)
    figure = go.Figure()
    for measure, colour, axis in (("diverted", "#d95f02", "y"), ("success", "#2ca02c", "y2")):
        points = [interval(np.array(getattr(result, measure))) for result in study.doses.values()]
        figure.add_scatter(
            x=prices,
            y=[point.iqm for point in points],
            error_y=_bars(points),
            name=f"{measure} ({'left' if axis == 'y' else 'right'} axis)",
            line={"color": colour},
            yaxis=axis,
        )
    told = f"computed threshold: {PRICE_THRESHOLD:g}"
    figure.add_vline(x=PRICE_THRESHOLD, line_dash="dash")
    figure.add_annotation(text=told, x=PRICE_THRESHOLD, y=5, xshift=6, xanchor="left", showarrow=False)
    # Both axes end at the same height, so that one grid serves both.
    share = {"title": {"text": _UNITS["success"]}, "range": [0, 1.05], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    figure.update_layout(
        xaxis_title="price of an alarm (reward)",
        yaxis={"title": {"text": _UNITS["diverted"]}, "range": [0, 8.4], "tickvals": [0, 2, 4, 6, 8]},
        yaxis2=share | {"overlaying": "y", "side": "right"},
        # Beside the plot it would lie on the second axis.
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
    )
    return _titled(figure, "Dose and response", "Interquartile mean over seeds, 95 % bootstrap interval.", 440)
