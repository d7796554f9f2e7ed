"""What the doctor says of stages that are finished: trajectory, payoff, weights, stalls."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from helpers.project import make_project, write_rows
from helpers.sound_project import SIZES, rows, sound
from tutelage.analysis.worth import Gain
from tutelage.doctor import Check
from tutelage.doctor.headroom import check_more_rows
from tutelage.errors import Kind
from tutelage.models.evaluation import loss_records
from tutelage.recipe.load import load_recipe
from tutelage.records import Interval
from tutelage.run.manifest import Work
from tutelage.run.run_folder import RunFolder
from tutelage.training.run_models import RunModels
from tutelage.utils.console import Screen
from tutelage.utils.files import write_json, write_jsonl


@pytest.fixture
def models(tmp_path) -> RunModels:
    """A run whose rows are prepared."""
    from tutelage.stages import prepare

    run = RunFolder(load_recipe(sound(tmp_path)).recipe, Screen())
    prepare.run_stage(run)
    return RunModels(run)


def write_stage(models: RunModels, name: str, files) -> None:
    """A finished stage of this recipe without its work. files: called with the folder."""
    from tutelage.run.stage_inputs import inputs_of

    work = Work(models.run.folder / name, inputs_of(models.run, name))
    work.prepare()
    files(work.folder)
    work.finish(1.0)


def teach(models: RunModels, *levels: float, train=(2.0, 1.5, 1.0, 0.5), spread: float = 0.3) -> None:
    """A teacher whose checkpoints have these mean validation losses."""
    rows = models.encoded("validation")
    noise = np.random.default_rng(0).uniform(1 - spread, 1 + spread, (len(levels), len(rows)))

    def files(folder):
        checkpoints = []
        for number, level in enumerate(levels):
            name, own = f"checkpoint-{number + 1}", level * noise[0 if spread == 0 else number]
            write_jsonl(folder / "validation" / f"{name}.jsonl", loss_records(rows, own))
            checkpoints.append({"name": name, "folder": name, "score": 1 - level / 3, "nll": float(own.mean())})
        best = min(checkpoints, key=lambda c: c["nll"])["name"]
        write_json(folder / "checkpoints.json", {"best": best, "by": "loss", "checkpoints": checkpoints})
        write_jsonl(folder / "log.jsonl", [{"step": n, "ce": value} for n, value in enumerate(train)])

    write_stage(models, "teach", files)


def anchor(models: RunModels, validation, train: float = 0.3) -> None:
    """An anchor with these losses."""
    losses = {"train": np.full(SIZES["train"], train), "validation": np.broadcast_to(validation, SIZES["validation"])}
    lines = [
        {"id": row.id, "split": split, "nll": float(nll), "tokens": 5}
        for split, own in losses.items()
        for row, nll in zip(models.encoded(split), own, strict=True)
    ]
    write_stage(models, "anchor", lambda folder: write_jsonl(folder / "sample_loss.jsonl", lines))


def judged(models: RunModels) -> dict[str, Check]:
    from tutelage.doctor.checkpoint_checks import check_trajectory
    from tutelage.doctor.headroom import check_payoff

    return {check.name: check for check in [*check_trajectory(models), *check_payoff(models, None)]}


def test_a_good_trajectory_passes(models):
    teach(models, 1.0, 0.6, 0.4, 0.39)
    checks = judged(models)
    assert [checks[name].status for name in ("distinct_checkpoints", "best_checkpoint", "overfitting", "payoff")] == [
        "passed"
    ] * 3 + ["skipped"]


def test_a_first_checkpoint_that_is_the_best_asks_for_a_lower_learning_rate(models):
    teach(models, 0.4, 0.6, 0.9)
    checks = judged(models)
    assert (checks["best_checkpoint"].status, checks["best_checkpoint"].change) == (
        "look",
        "teach.trainer.learning_rate=0.0009",
    )  # 0.3 x 0.003
    assert (checks["overfitting"].status, checks["overfitting"].change) == (
        "look",
        "teach.trainer.num_train_epochs=0.67",
    )
    assert "falls from 2.000 to 0.500" in checks["overfitting"].text


def test_a_teacher_that_was_stopped_on_its_way(models):
    teach(models, 1.6, 0.8, 0.4)
    assert (judged(models)["best_checkpoint"].status, judged(models)["best_checkpoint"].change) == (
        "look",
        "teach.trainer.num_train_epochs=4",
    )


def test_checkpoints_that_say_the_same(models):
    teach(models, 1.0, 0.5, 0.5, 0.5, spread=0)
    check = judged(models)["distinct_checkpoints"]
    assert (check.status, check.change) == ("look", "teach.num_checkpoints=2")
    assert list(check.numbers["mean_difference"].values()) == pytest.approx([0.5, 0, 0])


def test_a_teacher_far_ahead_is_worth_following(models):
    teach(models, 0.8, 0.3)
    anchor(models, np.tile([0.1, 1.5], 30))
    checks = judged(models)
    assert checks["verdict"].status == "passed" and "Distil with scd-aw" in checks["verdict"].text
    assert checks["headroom"].numbers["gate_nll"] < checks["headroom"].numbers["teacher_nll"]
    masses = checks["subdomains"].numbers
    assert (
        masses["sfs_mass"] + masses["tfs_mass"] == 1
        and masses["sfs_mass_low"] < masses["sfs_mass"] < masses["sfs_mass_high"]
    )
    assert sum(checks["weights"].numbers["validation"]["histogram"]) == SIZES["validation"]


def test_a_teacher_that_is_not_ahead_is_not_worth_following(models):
    teach(models, 0.8, 0.5)
    anchor(models, 0.3)
    check = judged(models)["verdict"]
    assert (check.status, check.change) == ("look", "distill.methods=[sft]")
    assert check.kind == Kind.LEAD_TOO_SMALL


def test_few_rows_that_tell_nothing_ask_for_more(models):
    teach(models, 0.8, 0.5)
    anchor(models, np.linspace(0.0, 1.0, SIZES["validation"]))
    assert judged(models)["verdict"].kind == Kind.LEAD_UNCERTAIN


def test_equal_weights_leave_adaptive_weighting_nothing_to_do(models):
    teach(models, 0.8, 0.3, spread=0.01)
    anchor(models, 0.9)
    check = judged(models)["weights"]
    assert (check.status, check.change) == ("look", "distill.methods=[scd]")


def test_memorised_losses_make_no_weights(models):
    teach(models, 0.8, 0.3)
    anchor(models, np.linspace(0.1, 1.9, SIZES["validation"]), train=0.001)
    lines = [{"id": row.id, "split": "train", "nll": 0.002, "tokens": 5} for row in models.encoded("train")]
    write_jsonl(models.run.folder / "cache" / "checkpoint-2" / "sample_loss.jsonl", lines)
    check = judged(models)["weights"]
    assert (check.status, check.change) == ("look", "distill.methods=[scd-aw-cf]")
    assert check.kind == Kind.LOSSES_MEMORISED


def test_a_stall_of_the_run_is_told(models):
    teach(models, 0.8, 0.3)
    anchor(models, 0.9)
    seen = {
        "chosen": "checkpoint-1",
        "candidates": [{"checkpoint": "checkpoint-1"}],
        "validation": {"score": 0.1, "nll": 1.0},
    }
    stages = [{"stage": 1, "stall": None, **seen}, {"stage": 2, "stall": "chosen again", **seen}]
    write_json(models.run.folder / "distill" / "scd-aw" / "seed-0" / "stages.json", stages)
    check = judged(models)["stall"]
    assert (check.status, check.change) == ("look", "distill.schedule.advance=true") and "1 of 2 stages" in check.text


def test_the_schedule_is_asked_ahead_once_teacher_cache_and_anchor_are_there(tmp_path):
    from tutelage.stages.pipeline import run_stages

    run = RunFolder(load_recipe(make_project(tmp_path)).recipe, Screen(), anyway=True)
    run_stages(run, ("prepare", "teach", "anchor", "cache"))
    check = judged(RunModels(run))["stall"]
    assert check.status in ("passed", "look")
    assert {check.numbers["untrained"], check.numbers["anchor"]} <= set(check.numbers["checkpoints"])
    assert all(nats >= 0 for nats in check.numbers["kl_student"].values())
    assert not (tmp_path / "run" / "distill").exists()


# --- a baseline that needs no language model ---


def answerable(tmp_path, **changes) -> RunModels:
    """A run whose rows say their label, with prepared rows."""
    from tutelage.stages import prepare

    path = sound(tmp_path, **changes)
    for split in SIZES:
        shown = [{**row, "text": f"{row['text']} it is {row['label']}"} for row in rows(split)]
        write_rows(tmp_path / "data" / f"{split}.jsonl", shown)
    run = RunFolder(load_recipe(path).recipe, Screen())
    prepare.run_stage(run)
    return RunModels(run)


def scored_teacher(models: RunModels, score: float) -> None:
    """A teacher with this accuracy on the validation rows, and an anchor that is right on half of them."""
    encoded, baseline = models.encoded("validation"), {"score": 0.33, "source": "chance", "rows": SIZES["validation"]}
    right = (np.arange(SIZES["validation"]) < round(score * SIZES["validation"])).astype(float)
    losses = list(loss_records(encoded, np.ones(len(encoded))))
    own = {"name": "checkpoint-1", "folder": "checkpoint-1", "score": score, "low": score - 0.1, "high": score + 0.1}
    own |= {"nll": 1.0, "unreadable": 0.0}

    def lines(scores):
        return [{**asdict(loss), "score": float(value)} for loss, value in zip(losses, scores, strict=True)]

    def files(folder):
        write_jsonl(folder / "validation" / "checkpoint-1.jsonl", lines(right))
        taught = {"best": "checkpoint-1", "by": "score", "checkpoints": [own], "baseline": baseline}
        write_json(folder / "checkpoints.json", taught)
        write_jsonl(folder / "log.jsonl", [])

    write_stage(models, "teach", files)
    halves = lines(np.arange(SIZES["validation"]) % 2)
    write_stage(models, "anchor", lambda folder: write_jsonl(folder / "sample_loss.jsonl", halves))


def baseline(models: RunModels) -> Check:
    from tutelage.doctor import examine

    (check,) = (check for check in examine(models.run.recipe) if check.name == "baseline")
    return check


def test_the_baseline_is_scored_before_anything_is_trained(tmp_path):
    check = baseline(answerable(tmp_path))
    score = check.numbers["score"]
    assert (check.status, check.kind, check.area) == ("passed", Kind.OK, "payoff")
    assert score["value"] > 0.95 and score["low"] < score["value"] <= score["high"]
    assert (check.numbers["rows"], check.numbers["training_rows"]) == (SIZES["validation"], SIZES["train"])
    assert "accuracy 1.000" in check.text and "60 validation rows" in check.text and "teacher" not in check.text


@pytest.mark.parametrize(("score", "kind"), [(0.7, Kind.BASELINE_ENOUGH), (1.0, Kind.BASELINE_ENOUGH)])
def test_a_task_that_the_baseline_solves_may_need_no_student(score, kind, tmp_path):
    models = answerable(tmp_path)
    scored_teacher(models, score)
    check = baseline(models)
    assert (check.status, check.kind, check.change) == ("look", kind, None)
    assert (check.numbers["teacher"], check.numbers["anchor"]) == (score, 0.5)
    assert "may not need an LLM student" in check.text and f"teacher {score:.3f}" in check.text


def test_a_teacher_above_the_interval_of_the_baseline_passes(models):
    scored_teacher(models, 0.9)
    check = baseline(models)
    assert (check.status, check.kind) == ("passed", Kind.OK)
    assert "teacher 0.900 (above that interval)" in check.text


def test_a_baseline_that_has_learned_nothing_is_never_enough(models):
    """The labels of these rows cannot be told from their texts, and neither model can."""
    scored_teacher(models, 0.3)
    assert baseline(models).kind == Kind.OK


def test_the_anchor_is_left_out_where_its_metric_is_unknown(tmp_path):
    models = answerable(tmp_path, task={"metric": "macro_f1"})
    scored_teacher(models, 0.9)
    numbers = baseline(models).numbers
    assert (numbers["metric"], numbers["teacher"], numbers["anchor"]) == ("macro_f1", 0.9, None)


def test_results_of_another_recipe_are_not_compared_with_the_baseline(tmp_path):
    models = answerable(tmp_path)
    scored_teacher(models, 0.7)
    recipe = models.run.recipe.model_copy(update={"seed": models.run.recipe.seed + 1})
    assert baseline(RunModels(RunFolder(recipe, Screen()))).numbers["teacher"] is None


def test_the_baseline_does_not_apply_to_letters_of_choices(tmp_path):
    path = sound(tmp_path, task={"type": "qa"}, data={"template": "{question}\n{choices}:"})
    for split in SIZES:
        own = [
            {"id": row["id"], "question": row["text"], "choices": row["text"].split()[1:4], "answer": "ABC"[n % 3]}
            for n, row in enumerate(rows(split))
        ]
        write_rows(tmp_path / "data" / f"{split}.jsonl", own)
    check = baseline(RunModels(RunFolder(load_recipe(path).recipe, Screen())))
    assert (check.status, check.kind) == ("skipped", Kind.BASELINE_UNSUITABLE) and "does not apply" in check.text


# --- what more rows would be worth ---


def more_rows(models: RunModels) -> list[Check]:
    from tutelage.doctor import examine

    return [check for check in examine(models.run.recipe) if check.name == "more_rows"]


def test_the_curve_of_a_task_that_is_learned_is_flat(tmp_path):
    """Every row says its label, so that an eighth of them teaches as much as all."""
    (check,) = more_rows(answerable(tmp_path))
    curve, size = check.numbers["curve"], SIZES["train"]
    assert curve["rows"] == [size // 8, size // 4, size // 2, size] and curve["scores"][-1] > 0.95
    assert (check.status, check.area) == ("passed", "payoff") and curve["doubling"]["high"] < 0.05
    assert "twice as many rows with gold would add" in check.text and "not of the student" in check.text
    assert check.numbers["unlabelled"] is None and "without labels" not in check.text


def test_the_teachers_lead_is_named_beside_the_rows_without_labels(tmp_path):
    write_rows(tmp_path / "more.jsonl", [{"text": f"another {n} row of {n * n}"} for n in range(30)])
    models = answerable(tmp_path, data={"unlabelled": str(tmp_path / "more.jsonl")})
    assert more_rows(models)[0].numbers["unlabelled"] is None  # nothing is trained yet
    scored_teacher(models, 0.9)
    (check,) = more_rows(models)
    own = check.numbers["unlabelled"]
    assert own["rows"] == 30 and own["for_each_gold_row"] == 30 / SIZES["train"]
    assert own["lead"]["value"] == pytest.approx(0.4) and own["lead"]["low"] < 0.4 < own["lead"]["high"]
    assert "ahead of plain fine-tuning by +0.400 accuracy" in check.text and "30 rows without labels" in check.text


def test_a_teacher_that_is_not_ahead_has_little_to_teach():
    lead, zero = Interval(-0.02, -0.05, 0.01), Interval(0.0, 0.0, 0.0)
    check = check_more_rows("row_f1", None, Gain(0.72, 0.7, 0.75, lead, zero, 1.0, 60), 200, 500)
    assert check.numbers["curve"] is None and "500 rows without labels (2.5 for each training row" in check.text
    assert "not ahead of plain fine-tuning, -0.020 mean row F1" in check.text and "can bring little" in check.text
    assert check_more_rows("row_f1", None, None, 200, 500) is None
