"""What the doctor says of stages that are finished: trajectory, payoff, weights, stalls."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.project import make_project
from helpers.sound_project import SIZES, sound
from tutelage.doctor import Check
from tutelage.errors import Kind
from tutelage.models.evaluation import loss_records
from tutelage.recipe.load import load_recipe
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
