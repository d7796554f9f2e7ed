"""Rows in every file format and row format, mutated: read and scored, or refused by a user error in two seconds."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz_cases import SOUND_ROWS, check_rows, rows_cases, sound_case


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(rows_cases())
def test_only_user_errors_come_out_of_rows(case):
    check_rows(case)


@pytest.mark.parametrize("row_format", SOUND_ROWS)
def test_the_rows_that_are_mutated_are_sound(row_format):
    assert check_rows(sound_case(row_format)) == "read"
