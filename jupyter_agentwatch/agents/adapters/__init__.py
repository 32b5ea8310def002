"""Agents and evaluations of other projects, run in a watch: each adapter needs its extra, and only its own.

`inspect_sandbox` (extra `inspect`), `command_env` (`rl`), `mini_swe` (`swe`).
"""
