"""What teacher checkpoints say about training examples, live or from the cache. Imports models and below."""
