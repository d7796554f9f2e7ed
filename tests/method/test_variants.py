"""Methods with settings in their name: `scd+schedule.advance=true` is another student than `scd`."""

from __future__ import annotations

import json

import pytest

from helpers.project import Command, make_project
from tutelage.errors import ConfigError
from tutelage.method.methods import find_method, split_variant
from tutelage.recipe.load import load_recipe, varied
from tutelage.utils.files import read_jsonl


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def test_a_name_splits_at_its_settings():
    assert split_variant("scd") == ("scd", [])
    assert split_variant("scd+schedule.advance=true+kd_ratio=1") == ("scd", ["schedule.advance=true", "kd_ratio=1"])
    assert split_variant("td+trainer.learning_rate=1e+3") == ("td", ["trainer.learning_rate=1e+3"])
    assert find_method("scd+kd_ratio=1") is find_method("scd")


def test_settings_are_those_of_distill_and_checked_like_them(tmp_path):
    recipe = load_recipe(make_project(tmp_path)).recipe
    found = varied(recipe, "scd+schedule.advance=true+trainer.learning_rate=0.5")
    assert found.distill.schedule.advance and found.distill.trainer == {"learning_rate": 0.5}
    assert not recipe.distill.schedule.advance
    assert varied(recipe, "td+num_stages=1+epochs_per_stage=2.0").distill.num_stages == 1
    for name, words in {
        "scd+schedule.advanse=true": "did you mean `advance`",
        "td+kd_ratio=2": "at most 1",
        "td+num_stages=4": "every method gets the same steps",
        "td+seeds=[1]": "leave them out",
        "td+trainer.run_name=a/b": "name of a folder: no `/`",
    }.items():
        with pytest.raises(ConfigError, match=words):
            varied(recipe, name)


def test_a_method_may_bring_settings_and_a_name_wins_over_them(tmp_path):
    recipe = load_recipe(make_project(tmp_path), ["distill.stage_reset=true"]).recipe
    for name in ("ccd", "ccd-aw"):
        assert recipe.distill.stage_reset and not varied(recipe, name).distill.stage_reset
        assert varied(recipe, f"{name}+stage_reset=true").distill.stage_reset


def test_a_wrong_variant_is_reported_before_anything_runs(tmp_path, command):
    assert command("compare", make_project(tmp_path), "--methods", "td,td+kd_ration=1") == 2
    assert "did you mean `kd_ratio`" in command.err and not (tmp_path / "run").exists()
    assert command("run", make_project(tmp_path), "distill.methods=[tdd+kd_ratio=1]") == 2
    assert "did you mean td" in command.err


def test_variants_lie_beside_their_method_and_are_other_students(tmp_path, command):
    variants = ["td", "td+kd_ratio=1.0", "td+kd_ratio=0.5", "td+start=anchor", "rkl"]
    recipe = make_project(tmp_path)
    assert command("run", recipe, f"distill.methods=[{','.join(variants)}]") == 0, command.err
    found = {
        v: json.loads((tmp_path / f"run/evaluate/{v}/seed-0/scores.json").read_text())["nll"]["value"] for v in variants
    }
    weights = {
        v: [line["weight"] for line in read_jsonl(tmp_path / f"run/distill/{v}/seed-0/weights.jsonl")] for v in variants
    }
    assert set(weights["td+kd_ratio=1.0"]) == {1.0}
    assert weights["td+kd_ratio=0.5"] == weights["td"] == [0.5] * len(weights["td"])
    assert found["td+kd_ratio=0.5"] == pytest.approx(found["td"], rel=1e-6)
    assert len({round(value, 9) for value in found.values()}) == len(variants) - 1
    before = (tmp_path / "run/distill/td/seed-0/manifest.json").read_text()
    assert command("run", recipe, f"distill.methods=[{','.join(variants)}]") == 0
    assert (tmp_path / "run/distill/td/seed-0/manifest.json").read_text() == before


def test_the_same_training_by_name_and_by_recipe(tmp_path, command):
    recipe = make_project(tmp_path, distill={"stage_reset": True})
    assert command("run", recipe, "distill.methods=[cd+kd_ratio=0.8,cd+stage_reset=false,ccd]") == 0
    assert (
        command("run", recipe, "distill.methods=[cd]", "distill.kd_ratio=0.8", f"output_dir={tmp_path / 'other'}") == 0
    )

    def losses(student):
        return [row["nll"] for row in read_jsonl(tmp_path / student / "seed-0/predictions.jsonl")]

    assert losses("run/evaluate/cd+kd_ratio=0.8") == losses("other/evaluate/cd")
    assert losses("run/evaluate/ccd") == losses("run/evaluate/cd+stage_reset=false") != losses("other/evaluate/cd")


def test_checkpoints_at_equal_falls_of_the_loss(tmp_path, command):
    from tutelage.stages.teach import evenly_falling

    #          0    1    2    3    4    5    6    7
    losses = [8.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.9, 1.2]
    assert evenly_falling(losses, 4) == [0, 1, 2, 7]  # 8, 5.6, 3.3 and the end
    assert evenly_falling([3.0, 2.0, 1.0], 3) == [0, 1, 2]
    assert evenly_falling([3.0, 2.0, 1.0], 1) == [2]
    assert command("teach", make_project(tmp_path)) == 2  # prepare first
    recipe = make_project(tmp_path, teach={"spacing": "loss", "num_checkpoints": 2, "trainer": {"num_train_epochs": 3}})
    for stage in ("prepare", "teach"):
        assert command(stage, recipe) == 0, command.err
    kept = json.loads((tmp_path / "run/teach/checkpoints.json").read_text())["checkpoints"]
    assert len(kept) == 2 and len(list((tmp_path / "run/teach").glob("checkpoint-*"))) == 2
    assert kept[-1]["name"] == "checkpoint-9"
