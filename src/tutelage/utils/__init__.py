"""Files, disk, memory, terminal output, number formats and the bootstrap: helpers that every package may use."""
