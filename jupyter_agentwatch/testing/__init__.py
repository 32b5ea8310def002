"""Fakes and builders for tests of this project and of code that uses it.

Nothing here confines anything: `FakeSupervisor` speaks the real protocol over a real socket and runs commands as
they are, on this host, so give it only commands that the test wrote itself.
"""

from jupyter_agentwatch.testing.builders import ManualClock, event
from jupyter_agentwatch.testing.fake import FakeSupervisor, fake_supervisor
from jupyter_agentwatch.testing.scripted_model import Answer, Endless, ScriptedModel, Silence, calls

__all__ = [
    "Answer",
    "Endless",
    "FakeSupervisor",
    "ManualClock",
    "ScriptedModel",
    "Silence",
    "calls",
    "event",
    "fake_supervisor",
]
