"""`tutelage export`: a student in the format of another runtime, with its score measured again there; and its task for
lm-evaluation-harness."""
