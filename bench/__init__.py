"""The benchmarks: what the server promises in numbers, measured as ratios side by side in one run."""
