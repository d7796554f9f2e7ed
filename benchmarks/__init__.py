"""Speed and memory, measured: each module runs by itself (`python -m benchmarks.NAME`); RESULTS.md holds what came
out."""
