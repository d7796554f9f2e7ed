"""`anchor.keep`: a checkpoint of plain fine-tuning is selected on validation, only if the recipe asks for it."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from helpers.project import LABELS, Command, color_rows, make_project, write_rows
from tutelage.training.finetuning import best_checkpoint
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_jsonl


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def anchor_of(folder, command, *, wrong=False, **changes):
    """The anchor's folder of a new project with two checkpoints. wrong: whether all training labels are wrong."""
    recipe = make_project(
        folder, trainer={"learning_rate": 0.01}, distill={"epochs_per_stage": 20.0 if wrong else 1.0}, **changes
    )
    if wrong:
        rows = color_rows("train", 12)
        write_rows(folder / "data/train.jsonl", [row | {"label": LABELS[n % 3 - 1]} for n, row in enumerate(rows)])
    assert command("prepare", recipe) == 0 and command("anchor", recipe) == 0
    return folder / "run" / "anchor"


def validation_loss(anchor):
    return np.mean([row["nll"] for row in read_jsonl(anchor / "sample_loss.jsonl") if row["split"] == "validation"])


@pytest.mark.parametrize(("wrong", "place"), [(False, 1), (True, 0)])
def test_the_checkpoint_with_the_lowest_loss_is_the_anchor(tmp_path, command, wrong, place):
    kept = anchor_of(tmp_path / "kept", command, wrong=wrong, anchor={"keep": "loss"})
    seen = json.loads((kept / "validation.json").read_text())
    losses = [point["nll"] for point in seen["checkpoints"]]
    assert np.argmin(losses) == place and seen["best"] == seen["checkpoints"][place]["name"]
    assert validation_loss(kept) == pytest.approx(losses[place], abs=1e-6)
    assert f"kept is {seen['best']}" in command.err and not (kept / "trainer").exists()
    # The fine-tuning run is the same: its end is the published anchor.
    last = anchor_of(tmp_path / "last", command, wrong=wrong, anchor={"keep": "last"})
    assert validation_loss(last) == pytest.approx(losses[-1], abs=1e-6) and not (last / "validation.json").exists()
    # Anchors of versions without this option stay up to date.
    assert "anchor.keep" not in json.loads((last / "manifest.json").read_text())["inputs"]
    same = [load_file(folder / "model.safetensors") for folder in (kept, last)]
    assert all(tensor.equal(same[1][name]) for name, tensor in same[0].items()) == (place == 1)


def test_adapters_are_selected_too_and_a_resumed_stage_does_not_train_again(tmp_path, command, monkeypatch):
    recipe = make_project(tmp_path, student={"lora": {"r": 2}}, anchor={"keep": "score"})
    assert command("prepare", recipe) == 0
    eval_set = RunModels.eval_set
    monkeypatch.setattr(RunModels, "eval_set", lambda models, split: 1 / 0)
    assert command("anchor", recipe) == 1 and "ZeroDivisionError" in command.err
    monkeypatch.setattr(RunModels, "eval_set", eval_set)
    monkeypatch.setattr(RunModels, "fine_tuned", lambda *_, **__: pytest.fail("trained again"))
    assert command("anchor", recipe) == 0
    found = json.loads((tmp_path / "run/anchor/validation.json").read_text())
    assert found["best"] == best_checkpoint(found["checkpoints"], "score") and len(found["checkpoints"]) == 2
    assert (tmp_path / "run/anchor/model.safetensors").is_file()


def test_keep_without_a_fine_tuning_run_is_refused(tmp_path, command):
    given = {"model_name_or_path": str(tmp_path / "models" / "student")}
    recipe = make_project(tmp_path, anchor={"keep": "score", **given})
    assert command("anchor", recipe) != 0
    assert "anchor.keep: has no effect" in command.err and "anchor.model_name_or_path" in command.err


def test_a_given_anchor_is_taken_as_it_is(tmp_path, command):
    recipe = make_project(tmp_path, anchor={"model_name_or_path": str(tmp_path / "models" / "student")})
    assert command("prepare", recipe) == 0 and command("anchor", recipe) == 0
    assert not (tmp_path / "run/anchor/validation.json").exists()
