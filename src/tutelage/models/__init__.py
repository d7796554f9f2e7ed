"""Hugging Face models: loading, adapters, weights, output heads, decoding, scoring."""
