"""`preset: paper` is the published protocol, exactly; the recipe's own values come first."""

from pathlib import Path

import pytest

from helpers.project import make_project, run_to_the_end
from tutelage.errors import ConfigError
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import TRAINER_DEFAULTS
from tutelage.utils.files import read_jsonl

RECIPE = """task: {type: classification}
data: {train: rows.jsonl}
teacher: {model_name_or_path: t}
student: {model_name_or_path: s}
"""


def write(folder: Path, more: str = "") -> Path:
    path = folder / "intents.yaml"
    path.write_text(RECIPE + more)
    return path


def test_paper_is_the_published_protocol(tmp_path):
    """DESIGN, part 1: stages of two epochs, each with a new optimizer and schedule; the anchor as it ends."""
    recipe = load_recipe(write(tmp_path, "preset: paper\n")).recipe
    assert recipe.anchor.keep == "last" and recipe.teach.best_by == "score" and recipe.teach.spacing == "steps"
    distill = recipe.distill
    assert distill.methods == ["scd-aw"] and distill.select is None
    assert (distill.num_stages, distill.epochs_per_stage, distill.stage_reset) == (4, 2.0, True)
    assert (distill.temperature, distill.start, distill.keep, distill.select_by) == (1.0, "student", "best", "score")
    assert not distill.schedule.advance and distill.schedule.student_kl == "reverse"
    assert TRAINER_DEFAULTS["adam_beta2"] == 0.95 and TRAINER_DEFAULTS["per_device_train_batch_size"] == 8


def test_the_default_differs_in_four_points(tmp_path):
    plain = load_recipe(write(tmp_path)).recipe
    paper = load_recipe(tmp_path / "intents.yaml", ["preset=paper"]).recipe
    assert (plain.anchor.keep, plain.distill.stage_reset, plain.distill.select) == ("loss", False, "auto")
    assert plain.distill.methods == ["scd-aw", "td", "sft"]
    assert plain.distill.schedule.advance and not paper.distill.schedule.advance
    same = {"methods": [], "stage_reset": False, "select": None, "schedule": paper.distill.schedule}
    assert plain.distill.model_copy(update=same) == paper.distill.model_copy(update=same)
    assert plain.teach == paper.teach


def test_a_value_of_the_recipe_overrides_the_preset_and_each_says_where_it_is_from(tmp_path):
    path = write(tmp_path, "preset: paper\ndistill:\n  stage_reset: false\nanchor:\n")
    loaded = load_recipe(path, ["teach.best_by=loss"])
    assert loaded.recipe.distill.stage_reset is False and loaded.recipe.teach.best_by == "loss"
    assert loaded.origins["distill.stage_reset"] == "intents.yaml:7"
    assert loaded.origins["teach.best_by"] == "override"
    assert loaded.origins["anchor.keep"] == loaded.origins["distill.methods"] == "preset paper"
    assert loaded.origins["distill.kd_ratio"] == "default"


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="preset"):
        load_recipe(write(tmp_path, "preset: best\n"))


def test_a_run_folder_of_an_earlier_version_keeps_what_its_version_did(tmp_path):
    """Its recipe.yaml has no key that came later; the default of today would make its results stale."""
    path = tmp_path / "run/recipe.yaml"
    (tmp_path / "run/prepare").mkdir(parents=True)
    path.write_text(RECIPE + "name: old\noutput_dir: runs/old\ndistill: {methods: [td]}\n")
    recipe = load_recipe(path).recipe
    assert (recipe.distill.stage_reset, recipe.distill.select, recipe.anchor.keep) == (True, None, "last")
    assert recipe.distill.methods == ["td"]


def test_a_run_by_the_preset_resets_each_stage_and_keeps_the_last_anchor(tmp_path):
    recipe = make_project(tmp_path, preset="paper", distill={"trainer": {"logging_steps": 1}})
    run_to_the_end(recipe)
    run = tmp_path / "run"
    assert [path.name for path in (run / "distill").iterdir() if path.is_dir()] == ["scd-aw"]
    assert not (run / "anchor/validation.json").exists()
    rates: dict[int, list[float]] = {}
    for record in read_jsonl(run / "distill/scd-aw/seed-0/log.jsonl"):
        if "learning_rate" in record:
            rates.setdefault(record["stage"], []).append(record["learning_rate"])
    assert len(rates[1]) == 3 and rates[1] == rates[2]
    assert load_recipe(run).recipe == load_recipe(recipe).recipe
