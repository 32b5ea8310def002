"""The public handle in the kernel: start a watch, run commands in it, stop it.

Deciding, recording and killing are the supervisor's; nothing here can loosen what it enforces.
"""

from jupyter_agentwatch.watch.accounts import Account
from jupyter_agentwatch.watch.command import Command, CommandResult
from jupyter_agentwatch.watch.episode import Episode, Usage
from jupyter_agentwatch.watch.handle import Watch
from jupyter_agentwatch.watch.importable import ImportableWorkspaceWarning
from jupyter_agentwatch.watch.running import Running
from jupyter_agentwatch.watch.shell import Shell, ShellResult, Terminal
from jupyter_agentwatch.watch.turn import Turn

__all__ = [
    "Account",
    "Command",
    "CommandResult",
    "Episode",
    "ImportableWorkspaceWarning",
    "Running",
    "Shell",
    "ShellResult",
    "Terminal",
    "Turn",
    "Usage",
    "Watch",
]
