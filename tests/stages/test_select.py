"""`distill.select: auto`: the student that is best on validation is handed over, plain fine-tuning among them."""

import shutil
from pathlib import Path

import pytest

from helpers.project import Command, make_project, run_to_the_end
from tutelage.analysis.run_results import read_results
from tutelage.errors import ConfigError
from tutelage.recipe.load import load_recipe, varied
from tutelage.report.card_facts import find_student
from tutelage.report.sections_scores import selection
from tutelage.utils.files import read_json, write_json, write_jsonl

BANKING = Path(__file__).parents[2] / "recipes/banking77_smollm2.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe of a finished run that selects its student."""
    path = make_project(tmp_path_factory.mktemp("select"), distill={"methods": ["scd-aw"], "select": "auto"})
    run_to_the_end(path)
    return path


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def test_td_and_sft_are_trained_beside_the_methods(recipe):
    assert load_recipe(recipe).recipe.distill.methods == ["scd-aw", "td", "sft"]
    assert load_recipe(recipe, ["distill.select=null"]).recipe.distill.methods == ["scd-aw"]
    assert load_recipe(recipe, ["distill.methods=[sft, ccd]"]).recipe.distill.methods == ["sft", "ccd", "td"]


def test_select_is_no_setting_of_one_method():
    with pytest.raises(ConfigError, match="select belong to the whole run"):
        varied(load_recipe(BANKING).recipe, "td+select=null")


def give_scores(run: Path, name: str, scores: list[float]) -> None:
    """Change the validation scores of a student, as if it had answered so."""
    folder = run / "distill" / name
    stages, kept = read_json(folder / "stages.json"), read_json(folder / "manifest.json")["kept_stage"]
    for stage in stages:
        stage["validation"]["score"] = sum(scores) / len(scores)
    (folder / "manifest.json").unlink()
    lines = [{"id": f"v{n}", "stage": kept, "nll": 1.0, "score": score} for n, score in enumerate(scores)]
    write_json(folder / "stages.json", stages)
    write_jsonl(folder / "validation_rows.jsonl", lines)
    write_json(folder / "manifest.json", {"inputs": {}, "seconds": 1.0, "finished": "2026-01-01", "kept_stage": kept})


@pytest.mark.parametrize(
    ("best", "scores"),
    [
        ("td/seed-0", {"scd-aw": [1] * 60 + [0] * 40, "td": [1] * 80 + [0] * 20, "sft": [1] * 50 + [0] * 50}),
        ("sft/seed-0", {"scd-aw": [1] * 60 + [0] * 40, "td": [1] * 50 + [0] * 50, "sft": [1] * 80 + [0] * 20}),
    ],
)
def test_validation_picks_and_says_by_how_much(recipe, tmp_path, best, scores):
    run = Path(shutil.copytree(recipe.parent / "run", tmp_path / "run"))
    for method, values in scores.items():
        give_scores(run, f"{method}/seed-0", [float(value) for value in values])
    found = selection(read_results(run))
    assert found.chosen.model == best and found.rows == 100
    assert next(row.model for row in found.students) == best
    lead = found.chosen.over_sft
    assert (lead is None) if best.startswith("sft") else (lead.value == pytest.approx(0.3) and lead.low > 0)
    assert find_student(run, None).name == best


def test_without_plain_fine_tuning_nothing_is_said_about_it(recipe, tmp_path, command):
    """Its student may not be finished yet."""
    run = Path(shutil.copytree(recipe.parent / "run", tmp_path / "run"))
    shutil.rmtree(run / "distill/sft")
    for name in ("scores.json", "checksums.json"):
        (run / "evaluate" / name).unlink()
    scores = read_json(recipe.parent / "run/evaluate/scores.json")
    del scores["models"]["sft/seed-0"]
    write_json(run / "evaluate/scores.json", scores)
    assert command("report", run, "--force") == 0
    page = (run / "report/index.html").read_text()
    assert "Selected on validation" in page and "No distilled student is better" not in page


def test_the_run_says_which_student_and_where(recipe, command):
    assert command("run", recipe) == 0
    chosen = selection(read_results(recipe.parent / "run")).chosen.model
    assert f"selected on 6 validation rows: {recipe.parent / 'run' / 'distill' / chosen}" in command.out + command.err
    page = (recipe.parent / "run/report/index.html").read_text()
    assert "Selected on validation" in page


def test_without_it_the_finished_students_stay_up_to_date(recipe, command):
    assert command("distill", recipe, "distill.select=null") == 0
    assert "distill/scd-aw/seed-0: up to date" in command.out + command.err
