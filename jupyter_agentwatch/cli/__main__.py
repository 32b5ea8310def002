"""`python -m jupyter_agentwatch.cli`: the same as `jupyter agentwatch`, for where the script is not on PATH."""

import sys

from jupyter_agentwatch.cli import main

sys.exit(main())
