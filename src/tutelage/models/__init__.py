"""Hugging Face models: loading, adapters, pruning, output heads, decoding, scoring. Imports data and below."""
