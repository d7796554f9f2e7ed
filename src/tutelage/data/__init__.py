"""From files to batches of token ids: readers, columns, row formats, splits, encoding, collating.

torch is imported by `collate` and `token_store` only.
"""
