"""Looks for a text wherever a process can look, and prints the places where it was found.

These are all environments, command lines and memory maps, and the files in /tmp, HOME, /dev/shm and /etc. Argument: the
text, reversed, so that this program's own command line does not hold it.
"""

# ruff: noqa: T201 -- it answers on standard output

import json
import os
import sys

wanted = sys.argv[1][::-1].encode()
found: list[str] = []


def look(path: str) -> None:
    try:
        with open(path, "rb") as file:
            if wanted in file.read(1 << 24):
                found.append(path)
    except OSError:
        return


for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
    for name in ("environ", "cmdline", "mountinfo", "maps", "net/unix"):
        look(f"/proc/{pid}/{name}")
for top in ("/tmp", "/dev/shm", os.environ["HOME"], "/etc"):
    for folder, _, names in os.walk(top):
        for name in names:
            look(os.path.join(folder, name))
if any(wanted.decode() in text for pair in os.environ.items() for text in pair):
    found.append("os.environ")
print(json.dumps(found))
