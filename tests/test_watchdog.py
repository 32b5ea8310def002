"""What holds the whole interpreter up, watchdog included, is ended by the kernel."""

from __future__ import annotations

import signal
import subprocess
import sys

SPIN = """
import re
from jupyter_agentwatch.supervisor import watchdog

watchdog._SPIN_S = 0.5
dog = watchdog.Watchdog(watched={}, stuck=print, beat=lambda answer: answer(), destroy=print)
dog.start()
re.match("(?:a|a)*b", "a" * 60)
print("over")
"""


def test_a_call_that_never_lets_go_of_the_interpreter_is_ended() -> None:
    """No thread of this process can act any more: its own timer does, and what it held dies with it."""
    done = subprocess.run([sys.executable, "-c", SPIN], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGVTALRM, "")
