"""What every speed figure of this package rests on: shapes, arms, checks, timing, the machine's limits, the report.

`fastrnn compare` shows the report; benchmarks/ runs the same shapes and arms under pytest-benchmark. An arm is one way
to compute a Problem; a peer library becomes one by a function `Problem -> Arm` (arms.py). Above functional, layer and
torch, below cli.
"""
