"""Agents and evaluations of other projects, run in a watch: each adapter needs its extra, and only its own.

`inspect_sandbox` (extra `inspect`), `command_env` and `priced_env` (`rl`), `mini_swe` (`swe`), `smol_executor`
(`smolagents`), `swe_rex` (`swerex`). While a breaker has stopped the watch they wait; after a kill they end, and say
nothing of the reason.
"""
