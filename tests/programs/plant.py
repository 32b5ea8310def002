"""Write a module for each name on standard input (JSON: a file, names); who imports one adds its name to that file."""

import json
import sys
from pathlib import Path

caught, names = json.load(sys.stdin)
for name in names:
    Path(f"{name}.py").write_text(f"with open({caught!r}, 'a') as caught: caught.write(__name__ + ' ')\n")
