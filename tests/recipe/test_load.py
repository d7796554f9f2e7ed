"""Recipes: reading, origins of values, dump and flatten. Mistakes are in test_recipe_mistakes.py."""

from pathlib import Path

import pytest

from helpers.recipes_in import only
from tutelage.recipe.load import dump_recipe, flatten, load_recipe, show_rows
from tutelage.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]


# --- reading ---


def test_name_and_folder_come_from_the_file(recipe_file):
    loaded = load_recipe(recipe_file())
    assert (loaded.recipe.name, loaded.recipe.output_dir) == ("bank", "runs/bank")
    assert loaded.origins["name"] == loaded.origins["output_dir"] == "default"
    assert load_recipe(recipe_file(), ["name=other"]).recipe.output_dir == "runs/other"


def test_a_number_with_an_exponent_is_a_number(recipe_file):
    loaded = load_recipe(
        recipe_file("distill:\n  trainer: {learning_rate: 1e-4}\n"), ["anchor.trainer.learning_rate=2E-5"]
    )
    assert loaded.recipe.distill.trainer == {"learning_rate": 1e-4}
    assert loaded.recipe.anchor.trainer == {"learning_rate": 2e-5}


def test_dates_times_and_leading_zeros_stay_text(recipe_file):
    loaded = load_recipe(recipe_file(), ["task.labels=[2024-01-01, 12:30, 010, x]"])
    assert loaded.recipe.task.labels == ["2024-01-01", "12:30", "010", "x"]


def test_an_empty_section_takes_its_defaults(recipe_file):
    recipe = load_recipe(recipe_file("teach:\ndistill:\n  schedule:\n  trainer:\n")).recipe
    assert recipe.teach.num_checkpoints == 4
    assert recipe.distill.trainer == {}


def test_lora_is_off_when_null_and_default_when_empty(recipe_file):
    assert load_recipe(recipe_file(), ["teacher.lora=null"]).recipe.teacher.lora is None
    assert load_recipe(recipe_file(), ["teacher.lora={}"]).recipe.teacher.lora.r == 16


def test_only_safe_yaml_is_read(complaints):
    assert "could not determine a constructor" in only(complaints("name: !!python/object/apply:os.getcwd []\n"))


# --- overrides and origins ---


def test_an_override_wins_and_leaves_its_neighbours(recipe_file):
    file = recipe_file("distill:\n  num_stages: 2\n  probe_rows: 8\n  trainer: {max_grad_norm: 0.5}\n")
    recipe = load_recipe(
        file, ["distill.num_stages=3", "distill.trainer.learning_rate=1e-4", "distill.num_stages=6"]
    ).recipe
    assert (recipe.distill.num_stages, recipe.distill.probe_rows) == (6, 8)
    assert recipe.distill.trainer == {"max_grad_norm": 0.5, "learning_rate": 1e-4}


def test_a_mapping_replaces_the_one_in_the_file(recipe_file):
    recipe = load_recipe(recipe_file(), ["teacher.lora={r: 4, lora_alpha: 8}", "teacher.lora={r: 8}"]).recipe
    assert (recipe.teacher.lora.r, recipe.teacher.lora.lora_alpha) == (8, 32)


def test_overriding_one_use_of_a_yaml_anchor_leaves_the_other(recipe_file):
    text = "task: {type: qa}\ndata: {train: t}\nteacher: &m {model_name_or_path: a}\nstudent: *m\n"
    recipe = load_recipe(recipe_file(text=text), ["student.model_name_or_path=b"]).recipe
    assert (recipe.teacher.model_name_or_path, recipe.student.model_name_or_path) == ("a", "b")


def test_origins_name_file_and_line(recipe_file):
    file = recipe_file("distill:\n  trainer:\n    learning_rate: 1e-4\n  schedule: {advance: true}\n")
    origins = load_recipe(file, ["teacher.lora.r=8", "distill.trainer.bf16=true"]).origins
    assert origins["teacher.model_name_or_path"] == "bank.yaml:5"
    assert origins["distill.trainer.learning_rate"] == "bank.yaml:10"
    assert origins["distill.schedule.advance"] == "bank.yaml:11"
    assert origins["teacher.lora.r"] == origins["distill.trainer.bf16"] == "override"
    assert (
        origins["teacher.lora.lora_alpha"]
        == origins["distill.num_stages"]
        == origins["distill.schedule.student_kl"]
        == "default"
    )


@pytest.mark.parametrize(
    "text", ["distill", "distill.num_stages", "=3", "8}", "distill..x=1", "distill.num_stages = 4"]
)
def test_a_malformed_override_shows_the_form(complaints, text):
    line = only(complaints(overrides=[text]))
    assert f"override {text!r}" in line
    assert "section.key=value" in line


def test_an_override_without_a_value_offers_null(complaints):
    assert "write data.system=null" in only(complaints(overrides=["data.system="]))


def test_an_override_that_yaml_cannot_read_is_shown_in_quotes(complaints):
    line = only(complaints(overrides=["data.template=Review: {x} y: z"]))
    assert """'data.template="Review: {x} y: z"'""" in line


def test_an_override_inside_a_list_says_to_write_it_whole(complaints):
    line = only(complaints("distill: {methods: [td]}\n", ["distill.methods.0=scd"]))
    assert 'distill.methods is ["td"], not a mapping; set distill.methods=... as a whole' in line


def test_a_wrong_override_is_reported_as_one(complaints):
    line = only(complaints(overrides=["cache.top_k=0"]))
    assert line == "override: cache.top_k: found 0, want a whole number above 0"


# --- dump, flatten, show ---


def test_a_dumped_recipe_loads_back_equal(recipe_file, tmp_path):
    hard = [
        "1e5",
        "1:30",
        "yes",
        "null",
        "010",
        "2024-01-01",
        "두통",
        "=",
        "a: b",
        "{x}",
        "- x",
        " ",
        "",
        "#x",
        "1_0",
        ".5",
        "x\ny\t",
    ]
    first = load_recipe(recipe_file(), ["teacher.lora={}", "trainer.learning_rate=1e-5"]).recipe
    task = first.task.model_copy(update={"labels": hard})
    recipe = first.model_copy(update={"task": task})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(path)
    assert again.recipe == recipe
    assert dump_recipe(again.recipe) == dump_recipe(recipe)
    assert "두통" in dump_recipe(recipe)


def test_a_dump_holds_the_defaults_in_the_order_of_the_schema(recipe_file):
    text = dump_recipe(load_recipe(recipe_file()).recipe)
    assert [line.split(":")[0] for line in text.splitlines() if not line.startswith((" ", "-"))] == list(
        Recipe.model_fields
    )
    assert "\n  probe_rows: null\n" in text


def test_flatten_has_a_key_for_every_value(recipe_file):
    flat = flatten(
        load_recipe(recipe_file(), ["trainer.lr_scheduler_kwargs={a: 1}", "data.columns.text=review"]).recipe
    )
    assert flat["distill.num_stages"] == 4
    assert flat["distill.schedule.advance"] is True
    assert flat["trainer.lr_scheduler_kwargs"] == {"a": 1}
    assert flat["data.columns.text"] == "review"
    assert flat["data.train"] == ["data/train.jsonl"]
    assert flat["teacher.lora"] is None
    assert "distill.trainer" not in flat


def test_every_value_has_an_origin(recipe_file):
    loaded = load_recipe(recipe_file(), ["trainer.bf16=true", "student.lora={}"])
    assert flatten(loaded.recipe).keys() <= loaded.origins.keys()


def test_show_has_value_origin_and_help(recipe_file):
    rows = {
        key: rest
        for key, *rest in show_rows(load_recipe(recipe_file("distill: {kd_ratio: 1}\n"), ["trainer.bf16=true"]))
    }
    assert rows["distill.kd_ratio"][:2] == [1.0, "bank.yaml:8"]
    assert rows["distill.kd_ratio"][2].startswith("Constant weights: loss = (1 - kd_ratio) CE")
    assert rows["trainer.bf16"][:2] == [True, "override"]
    assert rows["trainer.learning_rate"][:2] == [5e-5, "default"]
    assert all(help for _, _, help in rows.values())


RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_all_recipes_of_the_project_load(path):
    assert load_recipe(path).recipe.name


def test_a_moved_run_folder_can_be_given_as_a_recipe(recipe_file, tmp_path):
    run = tmp_path / "moved"
    (run / "prepare").mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe(recipe_file()).recipe), encoding="utf-8")
    assert load_recipe(run).recipe.output_dir == str(run)


def test_a_folder_with_a_recipe_that_is_not_a_run_keeps_its_output_dir(recipe_file, tmp_path):
    given = load_recipe(recipe_file()).recipe
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "recipe.yaml").write_text(dump_recipe(given), encoding="utf-8")
    assert load_recipe(tmp_path / "project").recipe.output_dir == given.output_dir
