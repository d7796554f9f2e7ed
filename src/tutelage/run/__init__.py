"""The run folder: manifests, what each stage depends on, and reading a run while it is written. Imports data and
below."""
