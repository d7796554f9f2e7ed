"""compare --tune: learning rates are compared on validation; the best one is shared, or each method has its own."""

from __future__ import annotations

import json

import pytest
import yaml

from helpers.project import Command, Inline, make_project
from helpers.typed_json import mismatches
from tutelage.compare import cell_runs
from tutelage.compare.cells import ResultsFile
from tutelage.compare.summary.summarise import Summary


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(cell_runs, "LocalExecutor", Inline)
    return Command(monkeypatch, capsys)


def rates(folder):
    """By method and learning rate, validation's (score, -loss) of the kept student."""
    quality = {}
    for cell, record in ResultsFile(folder / "run/compare/tune.jsonl").records().items():
        values = {row["metric"]: row["value"] for row in record.rows}
        quality[cell.method, float(cell.options.split("=")[1])] = (values["score"], -values["nll"])
    return quality


def test_all_methods_get_the_best_rate_on_validation(tmp_path, command):
    recipe = make_project(tmp_path, tune={"grid": [1e-5, 0.003, 0.01]})
    assert command("compare", recipe, "--methods", "sft,td-aw", "--seeds", 1, "--tune") == 0, command.err
    tried = rates(tmp_path)
    assert {key for key in tried} == {("td", 1e-5), ("td", 0.003), ("td", 0.01)}
    best = max(tried, key=tried.__getitem__)[1]
    kept = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert kept["distill"]["trainer"]["learning_rate"] == best
    assert (
        json.loads((tmp_path / "run/anchor/manifest.json").read_text())["inputs"]["distill.trainer.learning_rate"]
        == best
    )
    students = {p.parent.name for p in (tmp_path / "run/distill").glob("*/seed-0/manifest.json")}
    assert not (tmp_path / "run/evaluate/td+trainer.learning_rate=0.003").exists(), "tuning must not look at test rows"
    summary = json.loads((tmp_path / "run/compare/summary.json").read_text())
    assert summary["tuning"][0]["chosen"] == best and mismatches(summary, Summary) == []
    assert command("compare", recipe, "--methods", "sft,td-aw", "--seeds", 1, "--tune") == 0
    assert "tune: 3 cells, 3 of them up to date" in command.err and "compare: 2 cells, 2 of them" in command.err
    assert students == {"seed-0"}
    command("compare", recipe, "--methods", "sft,td-aw", "--seeds", 1)
    assert "this comparison was tuned; without --tune" in command.err


def test_each_method_may_have_its_own(tmp_path, command):
    recipe = make_project(tmp_path, tune={"grid": [1e-5, 0.01], "per_method": True})
    assert command("compare", recipe, "--methods", "sft,td,scd-aw", "--seeds", 1, "--tune") == 0, command.err
    tried = rates(tmp_path)
    assert len(tried) == 6
    summary = json.loads((tmp_path / "run/compare/summary.json").read_text())
    assert set(summary["recipes"][0]["methods"]) == {"sft", "td", "scd-aw"}
    for cell in summary["cells"]:
        own = {rate: validation for (method, rate), validation in tried.items() if method == cell["method"]}
        assert cell["options"] == f"trainer.learning_rate={max(own, key=own.__getitem__):g}"


def test_the_mean_of_several_seeds_decides(tmp_path, command):
    recipe = make_project(tmp_path, tune={"grid": [1e-5, 0.01], "seeds": 2})
    assert command("compare", recipe, "--methods", "sft", "--seeds", 1, "--tune") == 0, command.err
    assert "tune: 4 cells" in command.err and "the best of 2 by the means of 2 seeds" in command.err
    of_seeds: dict[float, list[float]] = {}
    for cell, record in ResultsFile(tmp_path / "run/compare/tune.jsonl").records().items():
        loss = next(row["value"] for row in record.rows if row["metric"] == "nll")
        of_seeds.setdefault(float(cell.options.split("=")[1]), []).append(loss)
    (tuning,) = json.loads((tmp_path / "run/compare/summary.json").read_text())["tuning"]
    assert {line["learning_rate"]: line["nll"] for line in tuning["rates"]} == {
        rate: pytest.approx(sum(losses) / 2) for rate, losses in of_seeds.items()
    }


def test_a_rate_with_a_failed_seed_is_not_chosen(tmp_path, command, monkeypatch):
    recipe = make_project(tmp_path, tune={"grid": [1e-5, 0.01], "seeds": 2})
    cell = cell_runs.distill.cell

    def broken(run, models, method, seed):
        if seed == 1 and "0.01" in method:
            raise MemoryError("no room")
        return cell(run, models, method, seed)

    monkeypatch.setattr(cell_runs.distill, "cell", broken)
    assert command("compare", recipe, "--methods", "sft", "--seeds", 1, "--tune") == 0, command.err
    (tuning,) = json.loads((tmp_path / "run/compare/summary.json").read_text())["tuning"]
    assert tuning["chosen"] == 1e-5 and [line["learning_rate"] for line in tuning["rates"]] == [1e-5]


def test_the_end_of_the_grid_and_a_grid_that_fails_are_reported(tmp_path, command, monkeypatch):
    recipe = make_project(tmp_path, tune={"grid": [1e-5, 0.01]})
    assert command("compare", recipe, "--methods", "sft", "--seeds", 1, "--tune") == 0
    assert "is the end of tune.grid" in command.err

    def broken(run, models, method, seed):
        raise MemoryError("no room")

    monkeypatch.setattr(cell_runs.distill, "cell", broken)
    other = [f"output_dir={tmp_path / 'other'}"]
    assert command("compare", recipe, *other, "--methods", "sft", "--seeds", 1, "--tune") == 2
    assert "failed with every learning rate" in command.err


@pytest.mark.parametrize(
    ("tune", "words"),
    [({"on": "tdd"}, "did you mean td"), ({"grid": []}, "learning rates"), ({"grid": [-1.0]}, "above 0")],
)
def test_what_cannot_be_tuned_is_refused_with_the_recipe(tmp_path, command, tune, words):
    assert command("compare", make_project(tmp_path, tune=tune), "--tune") == 2
    assert words in command.err
