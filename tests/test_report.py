"""A run as one document: what stands in it, and that nothing of what an agent chose becomes markup."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.cli import main
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch.document import Heading, Listing, Paragraph, Quoted, Table, to_html_page, to_markdown
from jupyter_agentwatch.watch.incidents import Incident, find_incidents
from jupyter_agentwatch.watch.report import make_report
from tests.incident_logs import a_finding, a_log, a_story, an_exec
from tests.strategies import WATCH

if TYPE_CHECKING:
    from jupyter_agentwatch.events import AnyEvent

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "`</code>`` [x](javascript:alert(1)) ![y](https://198.51.100.7/y.png) | a | b |",
    "\n\n# Forged heading\n\n| a |\n",
    "\x1b[2J\u202e\u2028",
    "&lt;b&gt; </td></tr></table><h1>",
)


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


OURS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "code"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
OUR_PICTURE = r'<img alt="CPU, [a-zA-Z,; ]*" src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)">'


def hostile_log(folder: Path, text: str) -> Path:
    """Write a log in which an agent has put a text wherever it can."""
    return a_log(
        folder,
        event("step", op="start", step=3, argv=["sh", "-c", text], cell=text),
        an_exec(12, 1, text),
        a_finding(2, title=text, rule=text, rationale=text, cell=text),
        event("connect", step=3, pid=12, verdict="deny", addr=text, port=22, rule=text),
        event("flow", step=3, pid=12, op="closed", flow=2, host=text, addr="192.0.2.1", port=443, bytes_out=5),
        event("dns", step=3, pid=12, verdict="deny", qname=text, qtype="A", rcode="REFUSED"),
        event("breaker", evidence=[3], before="closed", after="frozen", cause=text, processes=[f"12 1 {text}"]),
        event("limit", limit="memory_bytes", value=1.0, maximum=1.0, action=text),
        event("step", op="end", step=3, outcome=text),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_an_agent_says_becomes_an_element(tmp_path: Path, text: str) -> None:
    """The page has our elements and attributes, and no others; it loads nothing and runs nothing."""
    content, ours = re.subn(OUR_PICTURE, "", make_report(hostile_log(tmp_path, text)).html)
    page = Page(content)
    assert ours == 1
    assert page.elements <= OURS
    assert page.attributes <= {"lang", "charset", "http-equiv", "content"}


@pytest.mark.parametrize("text", HOSTILE)
def test_in_markdown_it_stays_in_code_spans(tmp_path: Path, text: str) -> None:
    """Outside of code spans nothing of it is left, and each line is one that we began."""
    markdown = make_report(hostile_log(tmp_path, text)).markdown
    for line in markdown.splitlines():
        bare = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", line)
        assert not re.search(r"[<>`\[]|alert|Forged", bare), line
    assert len(re.findall(r"(?m)^# ", markdown)) == 1


@given(st.text(max_size=40))
def test_a_quoted_text_never_leaves_its_place(text: str) -> None:
    """Whatever the text, the page has the same elements and the document the same lines as with a harmless one."""

    def blocks(words: str) -> list[Heading | Paragraph | Listing | Table]:
        quoted = Quoted(words)
        return [Heading(1, (quoted,)), Paragraph(("a ", quoted)), Listing([(quoted,)]), Table(("c",), [(quoted,)])]

    harmless = blocks("harmless")
    page = to_html_page("t", blocks(text or "x"))
    assert re.findall(r"<[^>]*>", page) == re.findall(r"<[^>]*>", to_html_page("t", harmless))
    assert to_markdown(blocks(text)).count("\n") == to_markdown(harmless).count("\n")


def a_measured_story(folder: Path) -> Path:
    """Return a log with measurements and a hostile endpoint."""
    made = [event("connect", step=1, pid=7, transport="tcp", host="<script>x.example", port=443, verdict="deny")]
    for cpu in (1.0, 3.0):
        made.append(event("resources", interval_s=1.0, cpu_s=cpu, rss_bytes=2**21))
        made += [event("gpu", op="device", device="g", index=i, simulated=True, utilization=40.0) for i in (0, 1)]
    return a_log(folder, *made)


def test_a_report_says_what_happened(tmp_path: Path) -> None:
    """The incident with its step, processes, evidence, cost and what was prevented; steps; connections; the head."""
    markdown = make_report(a_story(tmp_path)).markdown
    for expected in (
        f"# Watch `{WATCH}`",
        "1 incident, the worst is critical.",
        "### 1. critical: `spoke to a pool`",
        "`sh -c mine`",
        "`12 /project/worker` ← `11 /bin/sh`",
        "`connect to 10.0.0.1:22 denied [no-rule]`",
        "stratum to ",
        "1000 bytes out",
        "0.0004 GPU hours, 0.0006 CPU hours, 6.00 in money",
        "closed to frozen",
        "| 3 | - | `sh -c mine` | `killed` | 0.00 | 0.00 | 1 critical, 1 high |",
        "the log was whole",
        "jupyter agentwatch verify ",
    ):
        assert expected in markdown, expected


def test_a_report_of_a_quiet_run_says_so(tmp_path: Path) -> None:
    """No incident, no connection, no step: each is told and not left out."""
    markdown = make_report(a_log(tmp_path)).markdown
    assert "No incident. It ended" in markdown
    assert markdown.count("None") == 3


def test_a_report_of_a_changed_log_says_so(tmp_path: Path) -> None:
    """A log that does not fit its hashes is reported as what it is."""
    log = a_story(tmp_path)
    log.write_bytes(log.read_bytes().replace(b"/bin/sh", b"/bin/su"))
    assert "the log was NOT whole" in make_report(log).markdown


def test_a_page_has_plots_that_run_and_load_nothing(tmp_path: Path) -> None:
    """CPU, memory, GPUs and connections stand in the page as one image, which runs and loads nothing."""
    page = make_report(a_measured_story(tmp_path)).html
    (data,) = re.findall(OUR_PICTURE, page)
    root = ET.fromstring(base64.b64decode(data))  # noqa: S314 -- that it parses is the point; our own bytes
    shown = "\n".join(root.itertext())
    for words in (
        "CPU, % of one core: at most 300",
        "memory, MiB: at most 2",
        "GPU 0 SIMULATED, GPU 1 SIMULATED used, %",
    ):
        assert words in shown
    assert "<script>x.example:443" in shown
    kinds = {each.tag.rpartition("}")[2] for each in root.iter()}
    assert kinds == {"svg", "rect", "text", "polyline", "line", "circle"}
    assert not re.search(r"<(script|link|iframe|object)|https?://|url\(", page)
    assert "default-src 'none'" in page


def test_a_report_goes_to_a_file_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line writes HTML to .html, Markdown elsewhere or to standard output, and replaces a former file."""
    log = a_story(tmp_path)
    page = tmp_path / "run.html"
    page.write_text("before")
    assert main(["report", str(log), "-o", str(page)]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert main(["report", str(log), "-o", str(tmp_path / "run.md")]) == 0
    assert (tmp_path / "run.md").read_text().startswith("# Watch")
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".run")) == []
    capsys.readouterr()
    assert main(["report", str(log), "--format", "html"]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    """A file of something else is an error that says so, and no empty report."""
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(LogError):
        make_report(tmp_path / "x.jsonl")


# What got out, and what it cost the leased job


def test_what_leaked_is_counted_with_its_time_and_places(tmp_path: Path) -> None:
    """Two flows that overlap count their bytes twice and their time once; one that is open at the trip counts, too."""
    records: list[AnyEvent] = [
        event("exec", basis="post", step=3, pid=12, ppid=1, exe="/w", argv=["/w"]),  # 1, at second 1
        a_finding(1),  # 2
        event(
            "flow",
            step=3,
            op="closed",
            flow=1,
            addr="192.0.2.1",
            port=443,
            host="a.example",
            bytes_out=10,
            bytes_in=1,
            duration_s=2.0,
        ),  # 3: seconds 1 to 3
        event("flow", step=3, op="closed", flow=2, addr="192.0.2.2", port=80, bytes_out=5, duration_s=2.0),  # 4: 2 to 4
        event("flow", step=4, op="closed", flow=3, addr="192.0.2.3", port=80, bytes_out=99, duration_s=2.0),  # 5
        event(
            "breaker",
            evidence=[2],
            before="closed",
            after="frozen",
            cause="trip: it",
            flows=[
                "192.0.2.9:22 b.example step 3 pid 12 open ssh  out 7 in 2 for 0.5 s",
                "192.0.2.9:22 b.example step 4 pid 30 open ssh  out 70 in 20 for 0.5 s",
                "192.0.2.1:1 x step 3 out 9 in 9 for 1 s",
            ],
        ),  # 6
    ]
    leaked = _incident(a_log(tmp_path, *records)).leaked
    assert (leaked.bytes_out, leaked.bytes_in) == (22, 3)
    assert leaked.seconds == pytest.approx(3.5)
    assert leaked.destinations == ("a.example:443", "192.0.2.2:80", "b.example:22")


def test_a_flow_that_was_open_at_the_trip_counts_once(tmp_path: Path) -> None:
    """When its end is on record, that record alone counts."""
    log = a_log(
        tmp_path,
        a_finding(severity="critical"),
        event(
            "breaker",
            evidence=[1],
            before="closed",
            after="frozen",
            cause="trip: it",
            flows=["192.0.2.9:22 b.example step 3 pid 12 open ssh  out 7 in 2 for 0.5 s"],
        ),
        event(
            "flow", step=3, op="closed", flow=1, addr="192.0.2.9", port=22, host="b.example", bytes_out=8, bytes_in=2
        ),
    )
    assert _incident(log).leaked.bytes_out == 8


def test_nothing_leaked_is_zero(tmp_path: Path) -> None:
    """Denied flows without a byte are no leak."""
    denied = event("flow", step=3, op="closed", verdict="deny", flow=1, addr="192.0.2.1", port=3333, duration_s=1.0)
    leaked = _incident(a_log(tmp_path, a_finding(), denied)).leaked
    assert (leaked.bytes_out, leaked.seconds, leaked.destinations) == (0, 0.0, ())


def _gpu(step: int, pid: int, gpu_s: float, outside_s: float = 0.0) -> AnyEvent:
    return event(
        "gpu", op="process", device="GPU-1", step=step, pid=pid, interval_s=1.0, gpu_seconds=gpu_s, outside_s=outside_s
    )


def test_the_leased_job_is_slowed_down_by_what_it_lost(tmp_path: Path) -> None:
    """Its rate on the same GPU falls from 0.8 to 0.4 while another step uses it without a lease: one half."""
    before = [_gpu(1, 5, 0.8) for _ in range(4)]
    during = [each for _ in range(4) for each in (_gpu(1, 5, 0.4), _gpu(3, 12, 0.6, 0.6))]
    log = a_log(tmp_path, *before, a_finding(family="diversion"), *during)
    assert _incident(log).cost.slowdown == pytest.approx(0.5)


def test_without_enough_of_the_leased_job_no_slowdown_is_told(tmp_path: Path) -> None:
    """Two records before are too few; that is not known, and not zero."""
    log = a_log(tmp_path, *[_gpu(1, 5, 0.8)] * 2, a_finding(), *[_gpu(1, 5, 0.4), _gpu(3, 12, 0.6, 0.6)] * 4)
    assert _incident(log).cost.slowdown is None


def _incident(log: Path) -> Incident:
    (incident,) = find_incidents(log)
    return incident
