"""Detectors: pure functions of (state, event) that draft findings. They read no file, no clock and no process."""

from jupyter_agentwatch.detect.model import Detector, Draft, Family

__all__ = ["Detector", "Draft", "Family"]
