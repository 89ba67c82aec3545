"""What is fast, as ratios and differences side by side in one run. `python -m benchmarks` runs all of them."""
