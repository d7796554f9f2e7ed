"""Renamed keys work under their old names for one version; removed keys and methods get one clear line."""

import json
import re
import shutil

import pytest

from helpers.project import Command, make_project
from helpers.recipes_in import only
from tutelage.errors import ConfigError
from tutelage.recipe.load import dump_recipe, load_recipe, varied
from tutelage.recipe.renamed import (
    EMPTIED,
    REMOVED,
    REMOVED_METHODS,
    RENAMED,
    translate_flat,
    translate_nested,
)
from tutelage.recipe.schema import Recipe
from tutelage.run.manifest import Work, digest, fingerprint
from tutelage.utils.files import read_json, write_json


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def has_key(dotted: str) -> bool:
    section = Recipe
    for name in dotted.split("."):
        if name not in section.model_fields:
            return False
        section = section.model_fields[name].annotation
    return True


def test_the_tables_agree_with_the_schema():
    assert all(has_key(new) and not has_key(old) for old, new in RENAMED.items())
    assert not any(has_key(key) for key in (*REMOVED, *EMPTIED))


def test_an_old_name_in_a_file_works_with_a_note(recipe_file):
    loaded = load_recipe(recipe_file("distill:\n  restart: false\n  schedule: {reach: forward}\ntune: {'on': cd}\n"))
    assert not loaded.recipe.distill.stage_reset and loaded.recipe.distill.schedule.student_kl == "forward"
    notes = [note.rpartition("/")[2] for note in loaded.notes]
    assert "bank.yaml:9: distill.restart is now distill.stage_reset; the old name works in this version" in notes
    assert loaded.origins["distill.stage_reset"] == "bank.yaml:9"


def test_every_old_name_works_in_an_override_and_replaces_what_the_file_says(recipe_file):
    values = {
        "data.validation_share": 0.3,
        "distill.keep_by": "loss",
        "distill.restart": False,
        "distill.schedule.reach": "forward",
        "tune.each": True,
        "tune.on": "cd",
    }
    assert values.keys() == RENAMED.keys()
    file = recipe_file("distill: {stage_reset: true, select_by: score}\n")
    loaded = load_recipe(file, [f"{old}={json.dumps(value)}" for old, value in values.items()])
    for old, value in values.items():
        section = loaded.recipe
        for name in RENAMED[old].split("."):
            section = getattr(section, name)
        assert section == value
        assert f"override: {old} is now {RENAMED[old]}; the old name works in this version" in loaded.notes
        assert loaded.origins[RENAMED[old]] == "override"


def test_present_names_get_no_note(recipe_file):
    assert (
        load_recipe(recipe_file(), ["distill.stage_reset=false", "distill.methods=[scd+stage_reset=true]"]).notes == ()
    )


def test_both_names_of_a_key_are_a_problem(complaints):
    text = "distill.restart: is the old name of distill.stage_reset, which is given too; remove distill.restart"
    assert only(complaints("distill: {restart: false, stage_reset: true}\n")) == f"bank.yaml:8: {text}"
    for overrides in (
        ["distill.restart=false", "distill.stage_reset=true"],
        ["distill={restart: false, stage_reset: true}"],
    ):
        assert only(complaints(overrides=overrides)) == f"override: {text}"


def test_a_wrong_value_under_an_old_name_is_reported_at_its_line(complaints):
    assert "bank.yaml:8: distill.stage_reset: found 3, want true or false" in complaints("distill: {restart: 3}\n")


def test_an_old_name_in_the_name_of_a_method(recipe_file):
    loaded = load_recipe(recipe_file(), ["distill.methods=[scd+restart=false]", "distill.select=null"])
    assert loaded.recipe.distill.students == ["scd+restart=false/seed-0"]
    assert not varied(loaded.recipe, "scd+restart=false").distill.stage_reset
    assert varied(loaded.recipe, "ccd+restart=true").distill.stage_reset
    (note,) = loaded.notes
    assert note.startswith("method scd+restart=false: distill.restart is now distill.stage_reset")
    with pytest.raises(ConfigError, match="which is given too"):
        varied(loaded.recipe, "scd+restart=false+stage_reset=true")


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_says_what_it_was(recipe_file, complaints, key):
    line = only(complaints(overrides=[f"{key}=0.25"]))
    assert line.startswith(f"override: {key}: was removed: {REMOVED[key].was}")
    assert "no improvement" in line and "LOG.md" in line and line.endswith("leave it out")
    loaded = load_recipe(
        recipe_file(), [f"{key}={json.dumps(REMOVED[key].off)}"]
    )  # without effect: accepted, with a note
    assert loaded.notes[0].startswith(f"override: {key} was removed")
    with pytest.raises(ConfigError, match="was removed"):
        varied(loaded.recipe, f"scd-aw+{key.removeprefix('distill.')}=0.25")


@pytest.mark.parametrize("method", REMOVED_METHODS)
def test_a_removed_method_says_what_it_was(complaints, method):
    line = only(complaints(overrides=[f"distill.methods=[{method}]"]))
    assert line == (
        f"override: distill.methods: the method {method} was removed: {REMOVED_METHODS[method]}, which gave no"
        " improvement when measured (LOG.md); leave it out"
    )
    assert f"the method {method} was removed" in only(complaints(overrides=[f"tune.method={method}"]))


# --- what an earlier version recorded ---


def as_recorded(text: str) -> str:
    """A resolved recipe as an earlier version wrote it."""
    for old, new in RENAMED.items():
        text = text.replace(f"{new.rpartition('.')[2]}: ", f"{old.rpartition('.')[2]}: ")
    assert "keep_by: " in text and "reach: " in text
    return text.replace("tune:\n  restart", "tune:\n  'on'").replace(
        "  schedule:\n",
        "  weighting: {gamma: 1.0, bias: 0.0, smooth: 0.0}\n  schedule:\n    glide: false\n    trust: null\n",
    )


def test_the_recipe_of_an_earlier_run_is_read_without_notes(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(), ["tune.grid=[0.1]"]).recipe
    (tmp_path / "run/prepare").mkdir(parents=True)
    text = dump_recipe(recipe).replace("  method: td\n", "  'on': td\n")
    (tmp_path / "run/recipe.yaml").write_text(as_recorded(text))
    loaded = load_recipe(tmp_path / "run")
    assert loaded.notes == () and loaded.recipe.distill == recipe.distill and loaded.recipe.tune == recipe.tune
    assert load_recipe(tmp_path / "run", ["distill.stage_reset=false"]).recipe.distill.stage_reset is False


def test_recorded_values_are_translated():
    recorded = {
        "distill.restart": False,
        "plan.reach": "reverse",
        "plan.glide": False,
        "plan.trust": 0.5,
        "stage teach": "x",
    }
    assert translate_flat(recorded) == {
        "distill.stage_reset": False,
        "plan.student_kl": "reverse",
        "plan.trust": 0.5,
        "stage teach": "x",
    }
    nested = {"distill": {"schedule": {"reach": "forward"}, "restart": False}, "data": None}
    assert translate_nested(nested) == {
        "distill": {"schedule": {"student_kl": "forward"}, "stage_reset": False},
        "data": None,
    }
    assert nested["distill"]["restart"] is False  # the argument is not changed


def test_a_folder_recorded_with_old_names_is_up_to_date(tmp_path):
    old, new = (
        {"distill.restart": False, "distill.keep_by": "score"},
        {"distill.stage_reset": False, "distill.select_by": "score"},
    )
    folder = tmp_path / "distill"
    Work(folder, old).prepare()
    Work(folder, old).finish(1.0)
    work = Work(folder, new)
    assert not work.changed() and not work.prepare()
    # Later stages have recorded the fingerprint of the old names, so it must not change.
    assert fingerprint(folder, new) == work.fingerprint() == digest(old)
    assert Work(folder, new | {"distill.stage_reset": True}).changed() == ["distill.stage_reset: false -> true"]


def test_a_run_of_an_earlier_version_is_not_trained_again(tmp_path, command):
    """Students, their names and a comparison with them stay valid."""
    recipe = make_project(tmp_path, distill={"methods": ["td", "td+restart=false"]})
    assert command("compare", recipe, "--methods", "td,td+restart=false", "--seeds", 1) == 0, command.err
    manifests = [tmp_path / "run/distill" / name / "seed-0/manifest.json" for name in ("td", "td+restart=false")]
    results = tmp_path / "run/compare/results.jsonl"
    text = results.read_text()
    for path in manifests:
        manifest = read_json(path)
        present, old = manifest["inputs"], {new: old for old, new in RENAMED.items()}
        manifest["inputs"] = {old.get(key, key): value for key, value in present.items()}
        assert manifest["inputs"] != present
        write_json(path, manifest)
        text = text.replace(digest(present), digest(manifest["inputs"]))
    text = re.sub(r', "checksum": "\w+"', "", text)  # earlier versions wrote none
    results.write_text(text)
    before = [path.read_text() for path in manifests]
    assert command("compare", recipe, "--methods", "td,td+restart=false", "--seeds", 1) == 0, command.err
    assert "2 cells, 2 of them up to date" in command.err
    assert "method td+restart=false: distill.restart is now distill.stage_reset" in command.err
    assert results.read_text() == text
    for path in (tmp_path / "run/evaluate").glob("td*"):
        shutil.rmtree(path)  # these scores are computed again, for the same students
    assert command("compare", recipe, "--methods", "td,td+restart=false", "--seeds", 1) == 0, command.err
    assert [path.read_text() for path in manifests] == before


def test_the_command_prints_a_note_once(tmp_path, command):
    assert command("show", make_project(tmp_path), "distill.restart=false") == 0
    assert (
        command.err.strip()
        == "override: distill.restart is now distill.stage_reset; the old name works in this version"
    )


def test_a_folder_of_scd_trainer_recorded_in_one_value_is_up_to_date(tmp_path):
    """Versions up to 0.2.0 recorded dicts, and arguments that only decide what is printed."""
    trainer, student = {"use_cpu": True, "disable_tqdm": False}, {"model_name_or_path": "x", "lora": {"r": 4}}
    old = {"student": student, "plan.trainer": trainer, "plan.keep": "best"}
    now = {"student.model_name_or_path": "x", "student.lora.r": 4, "plan.keep": "best", "plan.trainer.use_cpu": True}
    Work(tmp_path / "distill", old).prepare()
    Work(tmp_path / "anchor", {"plan": trainer}).prepare()
    Work(tmp_path / "empty", {"plan.trainer": {}}).prepare()
    assert not Work(tmp_path / "distill", now).changed()
    assert not Work(tmp_path / "anchor", {"plan.trainer.use_cpu": True}).changed()
    assert not Work(tmp_path / "empty", {"plan.trainer.run_name": "x"}).changed()
    changed = Work(tmp_path / "distill", now | {"student.lora.r": 8, "plan.trainer.use_cpu": False}).changed()
    assert changed == ["plan.trainer.use_cpu: true -> false", "student.lora.r: 4 -> 8"]
