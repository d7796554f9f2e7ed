"""Numbers from a run folder: intervals, tests, slices, calibration. Imports run and below; never torch."""
