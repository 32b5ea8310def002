"""Detectors stand before the first command, which waits for them: what their loading may not do, and what it must."""

from __future__ import annotations

import gc
import re
import subprocess
import sys

import pytest

from jupyter_agentwatch.detect.expressions import _Lazy, lazy_pattern
from jupyter_agentwatch.supervisor.detection import Detectors

LOADS = """
import re, sys
import jupyter_agentwatch.supervisor.core
from jupyter_agentwatch.supervisor.detection import Detectors
compiled = []
compile_now = re.compile
re.compile = lambda *given, **named: compiled.append(given) or compile_now(*given, **named)
before = set(sys.modules)
Detectors(b"", ())
print(len(compiled), "re2" in set(sys.modules) - before, "sigma" in sys.modules)
"""


def test_loading_waits_for_neither_expressions_nor_re2() -> None:
    """Without Sigma rules a watch waits neither for RE2 nor for any expression but the one that reads names."""
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "False", "False"]


def test_every_expression_compiles() -> None:
    """A mistake in an expression that is compiled late is found here, and not when an attack comes."""
    Detectors(b"", ())
    found = [each for each in gc.get_objects() if isinstance(each, _Lazy)]
    assert len(found) > 100
    for each in found:
        assert isinstance(each._compiled, re.Pattern), each._pattern


def test_a_late_expression_does_what_a_compiled_one_does() -> None:
    """Its first use and each later one give the same as `re.compile`."""
    late, soon = lazy_pattern(r"(a)(b+)", re.IGNORECASE), re.compile(r"(a)(b+)", re.IGNORECASE)
    for _ in range(2):
        assert late.findall("ab ABB") == soon.findall("ab ABB")
        assert late.sub(r"\2\1", "xABB") == soon.sub(r"\2\1", "xABB")
        assert late.fullmatch("ab") is not None
        assert late.match("b") is None
        found = late.search("xxab", 1)
        assert found is not None
        assert found.span() == (2, 4)
        assert [each.start() for each in late.finditer("abab")] == [0, 2]
    assert late.pattern == soon.pattern
    assert late.flags == soon.flags


def test_a_wrong_expression_raises_at_its_first_use() -> None:
    """It is not taken for one that finds nothing."""
    wrong = lazy_pattern("(")
    with pytest.raises(re.error, match="unterminated"):
        wrong.search("(")
