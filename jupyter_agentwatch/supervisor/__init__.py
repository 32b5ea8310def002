"""The supervisor process of a watch; started as `python -m jupyter_agentwatch.supervisor`, never imported elsewhere."""
