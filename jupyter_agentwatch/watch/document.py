"""A document of headings, paragraphs, lists and tables, written as Markdown or as a page of HTML. Pure.

Whatever an agent could have chosen is `Quoted`, and can neither become markup, nor a link, nor a script in either form.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from jupyter_agentwatch.events import printable

__all__ = [
    "Block",
    "Heading",
    "Listing",
    "Paragraph",
    "Picture",
    "Quoted",
    "Span",
    "Table",
    "to_html",
    "to_html_page",
    "to_markdown",
]

_LONGEST: Final = 600

_STYLE: Final = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em}"
    "body{color:#1a1a1a;background:#fff}"
    "table{border-collapse:collapse;margin:.6em 0;font-size:.93em}"
    "th,td{border:1px solid #bbb;padding:.2em .5em;text-align:left;vertical-align:top}th{background:#eee}"
    "img{max-width:100%;background:#fff}"
    "code{font:13px/1.4 ui-monospace,monospace;overflow-wrap:anywhere;white-space:pre-wrap}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#1b1b1b}th{background:#333}th,td{border-color:#555}}"
)
"""The page brings its own look: it loads nothing, and a policy in its head forbids it to."""


_LOADS_NOTHING: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Quoted:
    """Hostile text: shown as it is, controls and invisible characters as `\\u....`, cut at 600 characters."""

    text: str


Span = str | Quoted
"""A piece of a line: words of ours, or somebody else's."""

_Cell = Span | Sequence[Span]


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 1 to 4."""

    level: int
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph."""

    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Listing:
    """A list, one item for each sequence of spans."""

    items: Sequence[Sequence[Span]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: names of columns, and rows of as many cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[_Cell]]


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG picture, as an image: nothing in one runs or loads. In Markdown it is left out; tables say the same.

    Attributes:
        words: What it shows, for who cannot see it.
        svg: The picture; every text in it is escaped already.
    """

    words: str
    svg: str


Block = Heading | Paragraph | Listing | Table | Picture
"""What a document is made of."""


def to_markdown(blocks: Iterable[Block]) -> str:
    """Write a document as CommonMark with tables."""
    return "\n\n".join(_markdown(block) for block in blocks if not isinstance(block, Picture)) + "\n"


def to_html(blocks: Iterable[Block]) -> str:
    """Write a document as a piece of HTML, for a place that has a look of its own."""
    return "\n".join(map(_html, blocks))


def to_html_page(title: str, blocks: Iterable[Block]) -> str:
    """Write a document as one page of HTML that needs nothing else and runs nothing.

    Args:
        title: For the window; hostile.
        blocks: What is on it.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_LOADS_NOTHING}">\n'
        f"<title>{escape(printable(title))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{to_html(blocks)}\n</body>\n</html>\n"
    )


def _markdown(block: Heading | Paragraph | Listing | Table) -> str:
    match block:
        case Heading(level, spans):
            return f"{'#' * level} {_marked(spans)}"
        case Paragraph(spans):
            return _marked(spans)
        case Listing(items):
            return "\n".join(f"* {_marked(item)}" for item in items)
        case Table(columns, rows):
            lines = [columns, ["---"] * len(columns), *([_marked(cell, in_table=True) for cell in row] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _marked(cell: _Cell, *, in_table: bool = False) -> str:
    text = "".join(_code(each) if isinstance(each, Quoted) else each for each in _spans(cell))
    return text.replace("|", "\\|") if in_table else text


def _code(quoted: Quoted) -> str:
    """Return a code span, in which nothing is markup; its fence is longer than any run of backticks inside."""
    text = printable(quoted.text, _LONGEST)
    if not text:
        return "-"
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    # A space on either side is taken away again, and keeps a backtick at an end, or a space, apart from the fence.
    space = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{space}{text}{space}{fence}"


def _html(block: Block) -> str:
    match block:
        case Heading(level, spans):
            return f"<h{level}>{_escaped(spans)}</h{level}>"
        case Paragraph(spans):
            return f"<p>{_escaped(spans)}</p>"
        case Picture(words, svg):
            image = b64encode(svg.encode("utf-8")).decode()
            return f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{image}">'
        case Listing(items):
            return "<ul>" + "".join(f"<li>{_escaped(item)}</li>" for item in items) + "</ul>"
        case Table(columns, rows):
            names = "".join(f"<th>{escape(column)}</th>" for column in columns)
            head = f"<thead><tr>{names}</tr></thead>\n" if any(columns) else ""
            body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
            return f"<table>\n{head}<tbody>\n{body}</tbody>\n</table>"


def _escaped(cell: _Cell) -> str:
    return "".join(
        (f"<code>{escape(printable(each.text, _LONGEST))}</code>" if each.text else "-")
        if isinstance(each, Quoted)
        else escape(each)
        for each in _spans(cell)
    )


def _spans(cell: _Cell) -> Sequence[Span]:
    return (cell,) if isinstance(cell, str | Quoted) else cell
