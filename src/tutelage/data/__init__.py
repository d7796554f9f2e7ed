"""From files to batches of token ids: readers, columns, row formats, splits, encoding, collating.

May import errors, records, recipe and tasks. torch is imported by `collate` and `token_store` only.
"""
