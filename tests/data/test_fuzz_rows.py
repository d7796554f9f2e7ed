"""Rows in every file format and row format, mutated: read and scored, or refused by a user error in two seconds."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz_cases import SOUND_ROWS, RowsCase, check_rows, rows_cases, written

TASK_OF = {"entities": "ner", "tokens": "ner", "prodigy": "ner", "span": "qa", "choice": "qa", "options": "qa"}


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(rows_cases())
def test_only_user_errors_come_out_of_rows(case):
    check_rows(case)


def test_the_rows_that_are_mutated_are_sound():
    """But for chats without a chat template, and doccano's, which need a line of the recipe."""
    refused = []
    for name, row in SOUND_ROWS.items():
        rows = [{**row, "answer": 3 - n} if name in ("choice", "options") else row for n in range(1, 4)]
        content = written([_numbered(row, n) for n, row in enumerate(rows)], ".jsonl", ",")
        case = RowsCase(name, {"type": TASK_OF.get(name, "classification")}, {"overlap": "drop"}, ".jsonl", content)
        refused += [name] if check_rows(case) != "read" else []
    assert refused == ["messages", "conversations", "doccano"]


def _numbered(row, number):
    first = next(iter(row))
    value = f"{row[first]} {number}" if isinstance(row[first], str) else [*row[first][:-1], str(number)]
    return {**row, first: value}
