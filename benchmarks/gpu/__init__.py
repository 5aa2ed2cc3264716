"""The parts of benchmarks/gpu_gate.py."""
