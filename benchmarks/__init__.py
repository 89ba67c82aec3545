"""Benchmarks: ratios and differences, measured side by side in one run. `python -m benchmarks` runs the short ones."""
