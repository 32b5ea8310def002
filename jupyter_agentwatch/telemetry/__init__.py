"""What GPUs and processes do, sampled: NVML, a simulation or a recorded trace, and /proc.

This file imports nothing, so that a machine without a GPU pays for no part of it.
"""
