"""Loads compiled Sigma rules as a new watch does, in a process of its own, and prints what that took.

`python load_rules.py RULES CACHE`; the cache holds them already.
"""

import json
import sys
import time
from pathlib import Path

from jupyter_agentwatch.detect.own import own_detectors
from jupyter_agentwatch.detect.sigma_detector import SigmaDetector
from jupyter_agentwatch.detect.sigma_form import decode_rules
from jupyter_agentwatch.watch.rules import compile_files

if __name__ == "__main__":
    begun = time.perf_counter()
    compiled = compile_files([Path(sys.argv[1])], cache=Path(sys.argv[2]))
    SigmaDetector(decode_rules(compiled.data))
    loaded = time.perf_counter()
    own_detectors()
    ended = time.perf_counter()
    took = {"rules_ms": (loaded - begun) * 1000, "own_ms": (ended - loaded) * 1000}
    sys.stdout.write(json.dumps(took))
