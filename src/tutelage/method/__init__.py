"""The paper (arXiv 2601.10114): schedule, weighting, divergences, the mixed loss, the split of the risk, and the
METHODS table.

No models, no files. Imports nothing of tutelage but `errors` and `records`.
"""
