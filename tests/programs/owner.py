"""Owns a watch on the folder that it is told, runs a command in it, tells what an observer needs, and waits.

Arguments: the workspace, the command's marker, and "alone" or "forked" (a child keeps all descriptors open).
"""

# ruff: noqa: T201 -- it answers on standard output

import json
import os
import signal
import sys

from jupyter_agentwatch import Watch

watch = Watch(workspace=sys.argv[1])
running = watch.start(["sh", "-c", f": {sys.argv[2]}; setsid sleep 1000 & echo up; wait"])
for _, piece in running:
    if b"up" in piece:
        break
child = 0
if sys.argv[3] == "forked":
    child = os.fork()
if sys.argv[3] == "alone" or child:
    print(json.dumps({"log": str(watch.log), "supervisor": watch.status().pid, "child": child}), flush=True)
while True:
    signal.pause()
