"""Hugging Face models: loading, pruning, heads, decoding, scoring. Imports data and below."""
