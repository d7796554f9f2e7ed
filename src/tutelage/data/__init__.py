"""From files to token ids: readers, columns, row formats, splits, encoding, batches. Imports recipe and tasks."""
