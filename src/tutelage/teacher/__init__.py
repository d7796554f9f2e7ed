"""What each teacher checkpoint says about a row: live, or read from the cache. Imports models and below."""
