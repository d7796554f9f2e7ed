"""Out-of-fold losses come from models that were not trained on the row, and weights are computed from them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.project import Command, make_project
from tutelage.method.weighting import adaptive_weight
from tutelage.models.evaluation import Evaluator
from tutelage.training import run_models
from tutelage.utils.files import read_jsonl


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def test_no_row_is_read_by_a_model_that_was_trained_on_it(tmp_path, command, monkeypatch):
    trained, train, read = [], run_models.fine_tune, []

    def fine_tune(model, args, rows, **more):
        trained.append({row.id for row in rows})
        return train(model, args, rows, **more)

    recipe = make_project(tmp_path, distill={"methods": ["td-aw-cf"]})
    for stage in ("prepare", "teach", "anchor", "cache"):
        assert command(stage, recipe) == 0
    monkeypatch.setattr(run_models, "fine_tune", fine_tune)
    losses = Evaluator.losses

    def reading(self, model, rows):
        read.append({row.id for row in rows})
        return losses(self, model, rows)

    monkeypatch.setattr(Evaluator, "losses", reading)
    assert command("cross-fit", recipe) == 0
    assert len(trained) == 4 and len(read) == 2 * (1 + 2)  # two folds: a student, and a teacher with two checkpoints
    for number, rows in enumerate(trained):
        fold = read[number // 2 * 3]
        assert rows.isdisjoint(fold) and len(rows | fold) == 12
    lines = list(read_jsonl(tmp_path / "run/cross_fit/sample_loss.jsonl"))
    assert [line["id"] for line in lines] == [f"train-{n}" for n in range(12)]
    assert {line["fold"] for line in lines} == {0, 1} and all(len(line["teacher"]) == 2 for line in lines)
    assert not list((tmp_path / "run/cross_fit").glob("fold-*"))


def test_weights_come_from_the_out_of_fold_losses(tmp_path, command):
    assert command("run", make_project(tmp_path), "distill.methods=[scd-aw-cf]") == 0
    losses = {line["id"]: line for line in read_jsonl(tmp_path / "run/cross_fit/sample_loss.jsonl")}
    for line in read_jsonl(tmp_path / "run/distill/scd-aw-cf/seed-0/weights.jsonl"):
        mine, theirs = losses[line["id"]]["anchor"], losses[line["id"]]["teacher"][line["checkpoint"]]
        assert (line["anchor_nll"], line["teacher_nll"]) == (mine, theirs)
        assert line["weight"] == pytest.approx(adaptive_weight(np.array([mine]), np.array([theirs]))[0])


def test_the_teachers_losses_may_be_those_of_its_own_training_rows(tmp_path, command):
    assert (
        command(
            "run", make_project(tmp_path), "distill.methods=[td-aw-cf]", "cross_fit.teacher=false", "cross_fit.folds=3"
        )
        == 0
    )
    best = json.loads((tmp_path / "run/teach/checkpoints.json").read_text())["best"]
    cached = {line["id"]: line["nll"] for line in read_jsonl(tmp_path / f"run/cache/{best}/sample_loss.jsonl")}
    lines = list(read_jsonl(tmp_path / "run/cross_fit/sample_loss.jsonl"))
    assert {line["fold"] for line in lines} == {0, 1, 2}
    assert all(line["teacher"][best] == pytest.approx(cached[line["id"]], rel=1e-6) for line in lines)
