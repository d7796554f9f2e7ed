"""The benchmark of TF-IDF reads a data set, trains on samples of its rows, and tunes on validation rows alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tfidf import curve_table, measure_curve, measure_set, table
from helpers.project import write_rows
from tutelage.tasks import tfidf


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 12), ("validation", 4), ("test", 6)):
        rows = [{"prompt": f"{split} thing {n} is {'ab'[n % 2] * 3}", "completion": "ab"[n % 2]} for n in range(count)]
        write_rows(tmp_path / "letters" / f"{split}.jsonl", rows)
    return tmp_path / "letters"


def test_a_record_for_every_size_up_to_all_rows(folder):
    records = list(measure_set(folder, (5, 10, 100), [], 0))
    assert [(record["training_rows"], record["split"], record["rows"]) for record in records] == [
        (5, "test", 6), (10, "test", 6), (12, "test", 6)
    ]  # fmt: skip
    assert records[-1]["accuracy"]["value"] == 1.0 and records[-1]["guess"] == 0.5
    assert table(records).row_count == 3


def test_settings_are_scored_on_validation_rows(folder, monkeypatch):
    monkeypatch.setattr(tfidf, "INVERSE_PENALTY", tfidf.INVERSE_PENALTY)  # is put back
    records = list(measure_set(folder, (12,), [1.0, 10.0], 0))
    assert [(record["C"], record["split"], record["rows"]) for record in records] == [
        (1.0, "validation", 4), (10.0, "validation", 4)
    ]  # fmt: skip


def test_rows_are_repeated_for_the_seconds_alone(folder):
    (record,) = measure_set(folder, (5,), [], 40)
    assert record["training_rows"] == 40


def test_half_of_a_sample_predicts_the_whole(folder, monkeypatch):
    """Of 12 rows that say their letter, 6 teach all there is to know: there is no gain, and none is predicted."""
    monkeypatch.setattr("benchmarks.tfidf.DIVISORS", (3, 2))
    records = list(measure_curve(folder))
    assert [(record["rows"], record["seed"], record["gain"]) for record in records] == [(6, n, 0.0) for n in range(4)]
    assert all(record["low"] <= 0.0 <= record["high"] for record in records)
    assert curve_table(records).row_count == 1
