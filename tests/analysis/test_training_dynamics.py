"""Losses of the same validation rows by stage, as `diagnose` summarises them: numbers derived by hand."""

import json

import pytest

from helpers.fake_run import write
from tutelage.analysis.training_dynamics import rows_by_stage, training_dynamics
from tutelage.utils.files import write_jsonl

LOSSES = {  # id: loss after stage 1, 2, 3
    "steady": (0.5, 0.5, 0.5),
    "learned": (2.0, 1.0, 0.25),
    "a bit worse": (0.5, 0.5625, 0.59375),  # never by more than 0.1 in one stage, nor in all
    "forgotten": (0.25, 1.25, 1.5),
    "came back": (0.25, 0.75, 0.25),
    "lost last": (0.5, 0.25, 0.75),
}


def lines(losses=LOSSES, stages=(1, 2, 3), scored=True):
    return [
        {"id": id, "stage": stage, "nll": row[stage - 1], "score": float(row[stage - 1] < 0.6) if scored else None}
        for stage in stages
        for id, row in losses.items()
    ]


def test_means_and_rows_that_got_better_and_worse_from_one_stage_to_the_next():
    changes = rows_by_stage(lines(), kept=3)
    assert (changes["rows"], changes["threshold"]) == (6, 0.1)
    first, second, third = changes["stages"]
    assert first == {
        "stage": 1,
        "nll": pytest.approx(4.0 / 6),
        "score": pytest.approx(5 / 6),
        "better": None,
        "worse": None,
    }
    assert (second["nll"], second["better"], second["worse"]) == (pytest.approx(4.3125 / 6), 2, 2)  # learned, lost last
    assert (third["nll"], third["better"], third["worse"]) == (pytest.approx(3.84375 / 6), 2, 2)
    assert third["score"] == pytest.approx(4 / 6)


def test_rows_that_the_kept_student_has_forgotten_are_listed_greatest_increase_first():
    forgotten = rows_by_stage(lines(), kept=3)["forgotten"]
    assert forgotten == {"stage": 3, "count": 2, "ids": ["forgotten", "lost last"]}  # by 1.25 and by 0.5 nats
    assert rows_by_stage(lines(), kept=2)["forgotten"] == {"stage": 2, "count": 2, "ids": ["forgotten", "came back"]}
    assert rows_by_stage(lines(), kept=1)["forgotten"] == {"stage": 1, "count": 0, "ids": []}
    assert rows_by_stage(lines(), kept=None)["forgotten"]["stage"] == 3


def test_at_most_twenty_ids_are_given_and_all_rows_are_counted():
    many = {f"r{n}": (0.0, 1.0 + n) for n in range(30)}
    forgotten = rows_by_stage(lines(many, (1, 2)), kept=2)["forgotten"]
    assert forgotten["count"] == 30 and forgotten["ids"] == [f"r{n}" for n in range(29, 9, -1)]


def test_rows_without_a_finite_loss_in_every_stage_are_left_out_and_scores_may_be_unknown():
    holed = LOSSES | {"steady": (0.5, float("nan"), 0.5)}
    changes = rows_by_stage([*lines(holed, scored=False), {"id": "new", "stage": 3, "nll": 1.0, "score": None}], kept=3)
    assert changes["rows"] == 5 and [stage["score"] for stage in changes["stages"]] == [None] * 3
    assert rows_by_stage([], kept=3) is None


def test_a_student_without_losses_by_row_has_none_in_the_summary(tmp_path):
    write_jsonl(tmp_path / "prepare" / "rows.jsonl", [])
    for name in ("td/seed-0", "scd/seed-0"):
        stages = [{"stage": n, "chosen": None, "validation": {"score": 0.5, "nll": 1.0}} for n in (1, 2, 3)]
        write(tmp_path / "distill" / name / "stages.json", stages)
    write(tmp_path / "distill/scd/seed-0/manifest.json", {"kept_stage": 2})
    write_jsonl(tmp_path / "distill/scd/seed-0/validation_rows.jsonl", lines())
    students = training_dynamics(tmp_path)["students"]
    assert students["td/seed-0"]["rows_by_stage"] is None
    assert students["scd/seed-0"]["rows_by_stage"]["forgotten"]["stage"] == 2
    json.dumps(students)
