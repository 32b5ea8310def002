"""What decides which texts are read at all: cheap looks, never narrower than the expressions they stand for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.detect import search
from jupyter_agentwatch.detect.expressions import parted
from jupyter_agentwatch.detect.lasting import _PERSISTENT, _hints, persistence_of
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.own import COMMAND_RULES
from jupyter_agentwatch.detect.rule import Ruleset
from jupyter_agentwatch.detect.shapes import Shape, Shapes

FIXTURES = Path(__file__).parent / "fixtures" / "detect"
SHAPES = [(Shape(rules), re.compile(rules.shape_pattern, re.IGNORECASE)) for rules in COMMAND_RULES]
LINES = [
    line.rpartition("\t")[2]
    for name in ("attacks.txt", "varied_attacks.txt", "varied_benign.txt")
    for line in (FIXTURES / name).read_text("utf-8").splitlines()
    if line[:1] not in ("", "#")
]
PLACES = listed("""
/home/a/.ssh/authorized_keys /etc/cron.d/x /var/spool/cron/a /etc/systemd/system/a.service /etc/rc.local
/etc/ld.so.preload /etc/sudoers /home/a/.bashrc /home/a/.inputrc /etc/profile.d/a.sh /etc/xdg/autostart/a
/home/a/.config/autostart/a /home/a/.ipython/profile_default/startup/a.py /usr/lib/python3/sitecustomize.py
/usr/lib/python3/site-packages/a.pth /w/.git/hooks/pre-commit
""")
WORDS = sorted({word for line in LINES for word in line.split()})


def differing(text: str) -> list[str]:
    """Return the expressions of which a shape says something else than the whole expression does."""
    return [whole.pattern for shape, whole in SHAPES if whole.pattern and shape.fits(text) != bool(whole.search(text))]


def test_an_expression_in_parts_finds_what_the_whole_finds() -> None:
    """Every line of the fixtures, in upper case as well, fits the same shapes either way."""
    assert len(LINES) > 2000
    assert [line for line in LINES if differing(line) or differing(line.upper())] == []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=8).map(" ".join))
def test_no_text_fits_in_one_way_only(text: str) -> None:
    """Nor does a text of words from attacks and of any characters between them."""
    assert differing(text) == []


@pytest.mark.parametrize(
    ("expression", "fitting", "other"),
    [
        (r"a?bc|[|]x", ["bc", "|x", "abc"], ["ab", "x"]),
        (r"ab{0,2}|c{2}d", ["a", "ccd"], ["cd", "b"]),
        (r"\(a\|b\)|\.x", ["(a|b)", ".x"], ["a", "bx"]),
        (r"(?:one|two)\d|thr[e]e", ["two1", "three"], ["two", "thre"]),
        (r"(a)\1|(b)\2", ["aa", "bb"], ["ab"]),
        (r"[]|]q|w+", ["]q", "|q", "w"], ["q"]),
        (r"k|s", ["\u212a", "\u017f", "K"], ["\u0130"]),
        ("", [], ["", "a"]),
    ],
)
def test_any_expression_is_parted_rightly(expression: str, fitting: list[str], other: list[str]) -> None:
    """Bars in groups and classes, quantified letters, references back and letters of other alphabets are respected."""
    shape = Shape(Ruleset((), shape_pattern=expression))
    assert [text for text in fitting if not shape.fits(text)] == []
    assert [text for text in other if shape.fits(text)] == []


def test_marks_are_found_without_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RE2 cannot take all marks together, each is looked for alone."""
    rules = [Ruleset((), marks=("needle", "both")), Ruleset(()), Ruleset((), marks=("both", "pin"))]
    plenty, starved = Shapes(rules), Shapes(rules)
    texts = ["", "needle", "both", "a pin, a needle", "nothing"]
    places = [[plenty.all.index(shape) for shape in plenty.marked(text)] for text in texts]
    assert places == [[], [0], [0, 2], [0, 2], []]
    monkeypatch.setattr(search, "_MEMORY_BYTES", 200)
    assert [[starved.all.index(shape) for shape in starved.marked(text)] for text in texts] == places
    assert starved._marks is not None
    assert starved._marks.find("needle") is None


@pytest.mark.parametrize(("pattern", "kind"), [(pattern.pattern, kind) for pattern, kind in _PERSISTENT])
def test_every_lasting_place_is_known_by_its_name(pattern: str, kind: str) -> None:
    """Whatever an expression for files that run later matches holds one of the texts that are looked for first."""
    for text, alternative in parted(pattern):
        assert len(text) > 3, alternative
        assert any(hint in text for hint in _hints()), alternative
    assert [path for path in PLACES if persistence_of(path) == kind] != []


def test_places_of_nothing_are_told_apart() -> None:
    """Ordinary files are no persistence, though their names come near."""
    near = ["/w/.git/objects/ab", "/w/.gitignore", "/w/etc", "/w/notes.bashrc", "/w/customize.pyc", "/var/spool/mail/a"]
    assert [path for path in near if persistence_of(path)] == []
