"""`tutelage doctor`: preflight checks. What will fail, what is worth a look, and whether distillation can pay.

Only cheap work is done: rows are read and tokenized, small models are loaded for one pass, finished stages are read.
With a timing run both models are trained for a few steps in a temporary folder, which predicts time, disk and memory.
What the stages refuse is asked of the same functions, and their errors become checks. Imports training and below.
"""

from tutelage.doctor.checks import Check, exit_code, show, summary, to_json
from tutelage.doctor.examine import examine, examine_file

__all__ = ["Check", "examine", "examine_file", "exit_code", "show", "summary", "to_json"]
