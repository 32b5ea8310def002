"""Own a watch of the current folder, let the agent plant modules there, and then use everything of the watch.

Arguments: a file for the names of planted modules that were imported. Prints JSON: warnings, and modules planted.
"""

import contextlib
import importlib.metadata
import json
import os
import signal
import sys
import warnings
from importlib import import_module
from typing import Any

from jupyter_agentwatch import AgentwatchError, Watch

caught, program = sys.argv[1:]
optional = {"bottleneck", "numexpr", "openpyxl", "pyarrow", "simplejson", "tables", "tabulate", "this_is_nowhere"}
installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
names = sorted(optional | installed | sys.stdlib_module_names)

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    watch = Watch()
planted = watch.run(["python3", "-IS", "-c", program], stdin=json.dumps([caught, names]))
assert planted.ok, planted.stderr

step = watch.run("echo more > made; exec nowhere").step
watch.diff(step)
watch.undo(step)
table: Any = watch.events()
str(table), table._repr_html_(), str(watch.events(kind="exec")), repr(watch)
for name in ("gpu", "resources", "connections"):
    str(watch.figure(name)), watch.figure(name)._repr_mimebundle_(None, None)
    watch.figure_widget(name).close()
str(watch.telemetry()), str(watch.telemetry("process"))
watch.status()
watch.suspend()
watch.resume()
with watch.shell() as shell:
    shell.run("true")
policies: list[Any] = [{"netwrok": {}}, "nowhere.yaml"]
for policy in policies:
    with contextlib.suppress(AgentwatchError):
        Watch(policy)
os.kill(watch.status().pid, signal.SIGSTOP)
assert "SIGKILL" in watch.kill().note

before = os.path.exists(caught)
import_module("this_is_nowhere")  # the control: what is planted is found and runs

text = [[each.category.__name__, each.filename, str(each.message)] for each in said]
sys.stdout.write(json.dumps({"said": text, "caught": before, "planted": len(names), "notes": watch.notes}))
