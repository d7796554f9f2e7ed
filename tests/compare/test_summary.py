"""What a summary counts, refuses and prints. Its numbers are recomputed in test_summary_recomputed.py."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.fake_comparison import cell_lines, read_lines, write_lines, write_run
from helpers.typed_json import mismatches
from tutelage.compare.cell_table import CellTable
from tutelage.compare.cells import RESULTS, Cell, ResultsFile, has_teacher
from tutelage.compare.summary.student_section import summarise_student
from tutelage.compare.summary.summarise import Summary, write_summary
from tutelage.compare.summary.table import NOTE, grid, show
from tutelage.errors import StaleArtifactError, UserError

SHARES = {"teacher": 0.95, "anchor": 0.6}


def make(folder: Path, students: dict[str, float], *, name: str = "plain", seed: int = 0, **sizes: int) -> list[dict]:
    """A run folder at folder/name with these students and their fractions of right answers; returns its lines."""
    write_run(folder / name, name, "accuracy", SHARES | students, np.random.default_rng(seed), **sizes)
    return [line for student in students for line in cell_lines(folder / name, name, student)]


def summarise(
    folder: Path, lines: list[dict], planned: dict[Cell, str] | None = None, others: dict[Cell, str] | None = None
) -> dict:
    """planned, others: fingerprints of what the cells would be made from now."""
    path = folder / "compare" / RESULTS
    write_lines(path, lines)
    return write_summary(path.parent, CellTable(ResultsFile(path).records(), planned, others) if planned else None)


def cell(line: dict) -> Cell:
    return Cell(**{name: line[name] for name in Cell.__dataclass_fields__ if name in line})


def seeds_of(method: str, *shares: float) -> dict[str, float]:
    return {f"{method}/seed-{seed}": share for seed, share in enumerate(shares)}


def validated(lines: list[dict], **scores: float) -> list[dict]:
    """The lines with these validation scores, by method; losses one less the score."""
    changed = []
    for line in lines:
        if line.get("split") == "validation" and line["method"] in scores:
            score = scores[line["method"]]
            line = line | {"value": score if line["metric"] == "score" else 1 - score}
        changed.append(line)
    return changed


# --- teacher trajectories ---


@pytest.fixture
def trajectories(tmp_path) -> tuple[Path, list[dict]]:
    """Two trajectories, two seeds; `sft` and the anchor are the same in both."""
    students = seeds_of("sft", 0.6, 0.7) | seeds_of("td", 0.7, 0.8)
    lines = make(tmp_path, students)
    second = tmp_path / "plain-teacher-1"
    write_run(second, "plain", "accuracy", SHARES | students, np.random.default_rng(0))
    for model in ("anchor", "sft/seed-0", "sft/seed-1"):
        shutil.rmtree(second / "evaluate" / model)
        shutil.copytree(tmp_path / "plain" / "evaluate" / model, second / "evaluate" / model)
    for number, model in enumerate(("teacher", "td/seed-0", "td/seed-1")):  # other answers, the same rows
        path = second / "evaluate" / model / "predictions.jsonl"
        rows = read_lines(path)
        for row in rows[: 20 + number]:
            row |= {"prediction": row["gold"], "score": 1.0, "nll": row["nll"] / 2}
        write_lines(path, rows)
    lines += [line for student in students for line in cell_lines(second, "plain", student, trajectory=1)]
    return tmp_path, lines


def test_what_does_not_depend_on_the_teacher_counts_once(trajectories):
    folder, lines = trajectories
    (both,) = summarise(folder, lines)["recipes"]
    (first_only,) = summarise(folder, [line for line in lines if line["teacher_seed"] == 0])["recipes"]
    assert both["methods"]["sft"]["score"] == first_only["methods"]["sft"]["score"]
    assert both["methods"]["sft"]["nll"] == first_only["methods"]["sft"]["nll"]
    assert both["base"]["anchor"] == first_only["base"]["anchor"] and both["base"]["anchor"]["nll"]["rows_only"]
    assert not both["base"]["teacher"]["nll"]["rows_only"]
    counted = {
        name: (method["trainings"], method["seeds"], method["trajectories"]) for name, method in both["methods"].items()
    }
    assert counted == {"sft": (2, 2, 1), "td": (4, 2, 2)}


def test_a_difference_from_a_method_without_teacher_is_paired_by_seed_for_each_teacher(trajectories):
    folder, lines = trajectories
    (recipe,) = summarise(folder, validated(lines, sft=0.9, td=0.1))["recipes"]
    against = recipe["methods"]["td"]["nll_against_best"]
    assert against["best"] == "sft"
    expected = recipe["methods"]["td"]["nll"]["value"] - recipe["methods"]["sft"]["nll"]["value"]
    assert against["difference"]["value"] == pytest.approx(expected)


def test_methods_without_teacher_can_be_the_best_with_several_teachers(trajectories):
    # Two methods without a teacher meet once a seed, and any with a teacher once a seed and teacher: neither is the
    # rarer one.
    folder, lines = trajectories
    shutil.copytree(folder / "plain/evaluate/sft", folder / "plain/evaluate/sft+restart=false")
    lines += [
        line for seed in (0, 1) for line in cell_lines(folder / "plain", "plain", f"sft+restart=false/seed-{seed}")
    ]
    (recipe,) = summarise(folder, validated(lines, **{"sft": 0.62, "sft+restart=false": 0.6, "td": 0.595}))["recipes"]
    assert recipe["best"] == {"score": "sft", "nll": "sft"}


def test_a_method_with_fewer_teachers_is_not_the_best(trajectories):
    folder, lines = trajectories
    for run in ("plain", "plain-teacher-1"):
        shutil.copytree(folder / run / "evaluate/td", folder / run / "evaluate/scd")
    lines += [line for seed in (0, 1) for line in cell_lines(folder / "plain", "plain", f"scd/seed-{seed}")]
    scores = {"sft": 0.5, "td": 0.6, "scd": 0.9}
    assert summarise(folder, validated(lines, **scores))["recipes"][0]["best"]["score"] == "td"
    second = folder / "plain-teacher-1"
    lines += [line for seed in (0, 1) for line in cell_lines(second, "plain", f"scd/seed-{seed}", trajectory=1)]
    assert summarise(folder, validated(lines, **scores))["recipes"][0]["best"]["score"] == "scd"


def test_a_method_that_learns_from_the_teachers_answers_has_a_teacher():
    assert [has_teacher(name) for name in ("sft", "sft+trainer.weight_decay=0.1", "seqkd", "td", "not-there")] == [
        False, False, True, True, True,
    ]  # fmt: skip


# --- the best ---


def test_the_best_is_chosen_on_validation_and_ranks_are_by_test(tmp_path):
    lines = make(tmp_path, seeds_of("td", 0.9, 0.9) | seeds_of("scd", 0.6, 0.6) | seeds_of("cd", 0.5, 0.5))
    (recipe,) = (summary := summarise(tmp_path, validated(lines, td=0.6, scd=0.8, cd=0.7)))["recipes"]
    assert recipe["best"] == {"score": "scd", "nll": "scd"}
    assert [recipe["methods"][name]["score_rank"] for name in ("td", "scd", "cd")] == [1, 2, 3]
    assert recipe["methods"]["td"]["score_against_best"]["difference"]["value"] > 0
    p_column = {row[1]: row[6] for row in grid(summary)[1]}
    assert p_column["scd"] == "best" and p_column["td"] not in ("best", "")


def test_equal_validation_scores_are_ordered_by_loss(tmp_path):
    lines = make(tmp_path, seeds_of("td", 0.8) | seeds_of("scd", 0.8))
    for line in lines:
        if line["split"] == "validation":
            line["value"] = {"score": 0.5, "nll": 2.0 if line["method"] == "td" else 1.0}[line["metric"]]
    assert summarise(tmp_path, lines)["recipes"][0]["best"] == {"score": "scd", "nll": "scd"}


def test_a_method_with_one_good_seed_is_not_the_best(tmp_path):
    lines = make(tmp_path, seeds_of("td", 0.8, 0.8, 0.8) | seeds_of("scd", 0.7, 0.7, 0.7) | seeds_of("jsd", 0.95))
    summary = summarise(tmp_path, validated(lines, td=0.8, scd=0.7, jsd=0.95))
    methods = summary["recipes"][0]["methods"]
    assert methods["jsd"]["score_rank"] == 1 and summary["recipes"][0]["best"]["score"] == "td"
    alone, other = methods["jsd"]["score_against_best"], methods["scd"]["score_against_best"]
    assert alone["p_holm"] is None and alone["test"] == "mcnemar_exact" and 0 < alone["p_value"] <= 1
    assert other["p_holm"] == other["p_value"]  # a family of one
    assert alone["seeds_needed"]["verdict"] == "seed_variance_unknown"
    assert {row[1]: row[6] for row in grid(summary)[1]}["jsd"] == "one seed"


def test_one_seed_each_is_corrected_but_never_significant(tmp_path):
    lines = make(tmp_path, {"td/seed-0": 0.95, "scd/seed-0": 0.2, "cd/seed-0": 0.9})
    methods = summarise(tmp_path, validated(lines, td=0.9, scd=0.1, cd=0.5))["recipes"][0]["methods"]
    against = methods["scd"]["score_against_best"]
    assert against["p_holm"] < 0.001 and against["seeds_needed"]["verdict"] == "seed_variance_unknown"


def test_without_validation_nothing_is_tested_on_the_rows_that_chose_it(tmp_path):
    lines = make(tmp_path, seeds_of("td", 0.8, 0.8) | seeds_of("scd", 0.7, 0.7))
    (recipe,) = summarise(tmp_path, [line for line in lines if line["split"] == "test"])["recipes"]
    assert recipe["best"] == {"score": None, "nll": None}
    assert not any("score_against_best" in method for method in recipe["methods"].values())


def test_equal_values_share_their_rank(tmp_path):
    lines = make(tmp_path, {"td/seed-0": 0.8, "scd/seed-0": 0.7, "cd/seed-0": 0.1})
    folder = tmp_path / "plain/evaluate"
    shutil.copytree(folder / "td/seed-0", folder / "scd/seed-0", dirs_exist_ok=True)
    lines = [line for name in ("td", "scd", "cd") for line in cell_lines(tmp_path / "plain", "plain", f"{name}/seed-0")]
    summary = summarise(tmp_path, lines)
    methods = summary["recipes"][0]["methods"]
    ranks = {name: (method["score_rank"], method["nll_rank"]) for name, method in methods.items()}
    assert ranks == {"td": (1.5, 1.5), "scd": (1.5, 1.5), "cd": (3, 3)}
    assert summary["mean_ranks"]["score"] == {"td": 1.5, "scd": 1.5, "cd": 3.0}


def test_a_tie_up_to_rounding_is_no_win():
    trained = Cell("plain", "run", "td", 0, 0)
    losses = np.array([0.1, 0.2, 0.3])

    def model(score, losses):
        return SimpleNamespace(metrics={"token_f1": score}, test_losses=losses, validation_losses={})

    models = {
        ("run", "td/seed-0"): model(0.5222222222222223, losses),
        ("run", "teacher"): model(47 / 90, losses + 1e-17),
    }
    student = summarise_student(SimpleNamespace(models=models, task=SimpleNamespace(metric="token_f1")), trained)
    assert (student["beats_teacher_in_score"], student["beats_teacher_in_nll"]) == (False, False)


def test_intervals_end_where_the_metric_does(tmp_path):
    lines = make(tmp_path, {"td/seed-0": 1.2, "td/seed-1": 0.75}, rows=40)
    method = summarise(tmp_path, lines)["recipes"][0]["methods"]["td"]
    assert method["score"]["high"] == 1.0 and method["nll"]["low"] == 0.0
    assert method["score"]["low"] >= 0.0


# --- stale and refused results ---


def test_stale_cells_do_not_count_and_are_named(tmp_path, capsys):
    lines = make(tmp_path, seeds_of("td", 0.8, 0.8) | seeds_of("scd", 0.7, 0.7) | seeds_of("cd", 0.7))
    for line in lines:
        line["inputs"] = "old" if line["method"] == "td" and line["seed"] == 1 else "new"
    plan = {cell(line): "new" for line in lines if line["seed"] == 0 and line["method"] != "cd"}
    others = {cell(line): "new" for line in lines if line["seed"] == 1}
    summary = summarise(tmp_path, lines, plan, others)
    assert mismatches(summary, Summary) == []
    (stale,) = summary["stale"]
    assert (stale["method"], stale["seed"], stale["inputs"], stale["wanted"]) == ("td", 1, "old", "new")
    methods = summary["recipes"][0]["methods"]
    assert {name: method["seeds"] for name, method in methods.items()} == {"td": 1, "scd": 2, "cd": 1}
    show(summary)
    assert "stale, not counted: plain teacher-0 td seed-1: made from other inputs" in capsys.readouterr().err
    assert summarise(tmp_path, lines)["stale"] == []


def test_a_cell_with_other_options_than_planned_is_stale(tmp_path):
    students = {"td+trainer.learning_rate=0.1/seed-0": 0.8, "td+trainer.learning_rate=0.2/seed-0": 0.7}
    lines = make(tmp_path, students)
    for line in lines:
        line["method"], line["options"] = line["method"].split("+")
    plan = {cell(line): "abc" for line in lines if line["options"].endswith("0.2")}
    (stale,) = summarise(tmp_path, lines, plan)["stale"]
    assert stale["options"] == "trainer.learning_rate=0.1" and stale["wanted"] is None
    with pytest.raises(UserError, match=r"learning_rate=0\.1' and 'trainer\.learning_rate=0\.2"):
        summarise(tmp_path, lines)


def test_a_recipe_of_two_run_folders_is_refused_or_the_planned_one_taken(tmp_path):
    first = make(tmp_path / "a", seeds_of("td", 0.8), name="same")
    second = make(tmp_path / "b", seeds_of("td", 0.5), name="same", seed=1)
    with pytest.raises(UserError, match=r"a `name` of its own.*--output") as error:
        summarise(tmp_path, first + second)
    assert str(tmp_path / "a/same") in str(error.value) and str(tmp_path / "b/same") in str(error.value)
    summary = summarise(tmp_path, first + second, {cell(second[0]): "abc"})
    assert [student["run"] for student in summary["stale"]] == [str(tmp_path / "a/same")]
    assert [student["run"] for student in summary["cells"]] == [str(tmp_path / "b/same")]


def test_results_that_predictions_contradict_are_refused(tmp_path):
    lines = make(tmp_path, seeds_of("td", 0.8, 0.8))
    line = next(line for line in lines if line["seed"] == 1 and line["metric"] == "accuracy")
    truth = line["value"]
    line["value"] = truth + 2e-9
    with pytest.raises(StaleArtifactError) as error:
        summarise(tmp_path, lines)
    assert f"plain teacher-0 td seed-1: test accuracy is {truth + 2e-9} there and {truth}" in str(error.value)
    line["value"] = truth + 1e-10
    assert summarise(tmp_path, lines)["cells"]
    path = tmp_path / "plain/evaluate/td/seed-0/predictions.jsonl"
    write_lines(path, read_lines(path)[1:])
    with pytest.raises(StaleArtifactError, match="lacks 1 of 240 test rows"):
        summarise(tmp_path, lines)


def test_validation_values_that_the_students_folder_contradicts_are_refused(tmp_path):
    lines = make(tmp_path, seeds_of("td", 0.8))
    student, said = tmp_path / "plain/distill/td/seed-0", {line["metric"]: line["value"] for line in lines[:2]}
    stages = [{"stage": 1, "validation": {"score": 0.9, "nll": 0.9}}, {"stage": 2, "validation": said}]
    write_lines(student / "manifest.json", [{"kept_stage": 2}])
    write_lines(student / "stages.json", [stages])
    assert summarise(tmp_path, lines)["cells"]
    write_lines(student / "manifest.json", [{"kept_stage": 1}])
    with pytest.raises(StaleArtifactError, match=r"td seed-0: validation score is .* there and 0\.9 from stages\.json"):
        summarise(tmp_path, lines)


def test_a_summary_does_not_depend_on_the_order_in_which_cells_ended(tmp_path):
    lines = make(tmp_path, seeds_of("td", 0.8, 0.8) | seeds_of("scd", 0.7, 0.7) | seeds_of("cd", 0.6))
    plan = {cell(line): "abc" for line in lines if line["method"] != "cd"}
    summary = summarise(tmp_path, lines, plan)
    assert [(student["method"], student["seed"]) for student in summary["cells"]] == [
        ("td", 0), ("td", 1), ("scd", 0), ("scd", 1), ("cd", 0),
    ]  # fmt: skip
    text = (tmp_path / "compare/summary.json").read_text()
    summarise(tmp_path, sorted(lines, key=lambda line: (-line["seed"], line["method"])), plan)
    assert (tmp_path / "compare/summary.json").read_text() == text


# --- printed ---


def test_failed_students_are_in_every_table(tmp_path, capsys):
    lines = make(tmp_path, seeds_of("sft", 0.6, 0.6) | seeds_of("td", 0.7))
    lines += cell_lines(tmp_path / "plain", "plain", "td/seed-1", status="failed", error="no room\nat all", seconds=1.0)
    lines += cell_lines(tmp_path / "plain", "plain", "cd/seed-0", status="failed", error="not today", seconds=1.0)
    summary = summarise(tmp_path, lines)
    assert mismatches(summary, Summary) == []
    head, rows = grid(summary)
    assert {row[1]: row[2] for row in rows if row[2]} == {"sft": "2", "td": "1, 1 failed", "cd": "0, 1 failed"}
    assert {len(row) for row in rows} == {len(head)}
    for form in ("table", "markdown", "latex", "csv", "json"):
        show(summary, form)
        shown = capsys.readouterr()
        assert "failed: plain teacher-0 td seed-1: no room\n" in shown.err
        assert "failed: plain teacher-0 cd seed-0: not today" in shown.err
        assert form in ("csv", "json") or "0, 1 failed" in shown.out
        if form == "csv":
            assert {row["model"]: row["failed"] for row in csv.DictReader(shown.out.splitlines())} == {
                "teacher": "", "anchor": "", "sft": "0", "td": "1", "cd": "1",
            }  # fmt: skip


def test_csv_has_the_numbers_of_the_summary(trajectories, capsys):
    folder, lines = trajectories
    summary = summarise(folder, lines)
    show(summary, "csv")
    rows = {row["model"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    (recipe,) = summary["recipes"]
    td = recipe["methods"]["td"]
    assert (rows["td"]["trainings"], rows["td"]["seeds"], rows["td"]["trajectories"]) == ("4", "2", "2")
    assert [float(rows["td"][f"nll_{end}"]) for end in ("value", "low", "high")] == [
        td["nll"][e] for e in ("value", "low", "high")
    ]
    assert float(rows["td"]["gap_closed_share"]) == td["gap_closed"]["share"] and rows["sft"]["gap_closed_share"] == ""
    assert (
        float(rows["teacher"]["score_value"]) == recipe["base"]["teacher"]["score"]["value"]
        and rows["teacher"]["seeds"] == ""
    )
    assert [rows[name]["best"] for name in ("sft", "td")].count("True") == 1


def test_the_table_names_its_metric_and_its_seeds_with_several_teachers(trajectories):
    folder, lines = trajectories
    head, rows = grid(summary := summarise(folder, lines))
    assert head[2:4] == ["seeds x teachers", "accuracy"] and {row[1]: row[2] for row in rows if row[2]} == {
        "sft": "2",
        "td": "2 x 2",
    }
    without_one = [line for line in lines if (line["method"], line["seed"], line["teacher_seed"]) != ("td", 1, 1)]
    assert {row[1]: row[2] for row in grid(summarise(folder, without_one))[1]}["td"] == "3 of 2 x 2"
    other = summary["recipes"][0] | {"name": "tags", "metric": "entity_f1"}
    head, rows = grid(summary | {"recipes": [*summary["recipes"], other]})
    assert head[3] == "score" and {row[0] for row in rows} == {"plain (accuracy)", "tags (entity_f1)"}


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv", "json"])
def test_the_note_follows_every_table(tmp_path, capsys, form):
    show(summarise(tmp_path, make(tmp_path, seeds_of("sft", 0.6, 0.6) | seeds_of("td", 0.7, 0.7))), form)
    out = capsys.readouterr().out
    assert (NOTE in out) is (form not in ("csv", "json"))
    if form == "latex":
        assert out.splitlines()[-1] == f"% {NOTE}"
    if form == "json":
        assert json.loads(out)["recipes"]


def test_a_gap_without_bounds_is_shown_as_such(tmp_path):
    lines = make(tmp_path, {"sft/seed-0": 0.9, "sft/seed-1": 0.5, "td/seed-0": 0.85, "td/seed-1": 0.8}, rows=40)
    summary = summarise(tmp_path, lines)
    shown = {row[1]: row[4] for row in grid(summary)[1]}
    assert shown["td"].endswith("[-, -]") and "[-, -]" in NOTE and shown["sft"] == ""


# --- TF-IDF with logistic regression ---


def answer_without_model(run: Path, wrong: int) -> None:
    """Answers of the baseline: the first rows wrong, in another order than the rows have."""
    rows = [row for row in read_lines(run / "prepare" / "rows.jsonl") if row["split"] == "test"]
    said = [None if number < wrong else row["answer"] for number, row in enumerate(rows)]
    lines = [{"id": row["id"], "prediction": answer} for row, answer in zip(rows, said, strict=True)]
    write_lines(run / "baseline" / "answers.jsonl", lines[::-1])


def test_the_baseline_has_a_row_and_is_tested_against_the_best(tmp_path, capsys):
    lines = make(tmp_path, {"td/seed-0": 0.6, "sft/seed-0": 0.5}, rows=100)
    before = summarise(tmp_path, lines)["recipes"][0]
    answer_without_model(tmp_path / "plain", wrong=4)
    result = summarise(tmp_path, lines)
    recipe = result["recipes"][0]
    assert {key: value for key, value in recipe.items() if key != "text_baseline"} == before
    baseline = recipe["text_baseline"]
    assert not mismatches(result, Summary) and baseline["score"]["value"] == pytest.approx(0.96)
    against, best = baseline["score_against_best"], recipe["best"]["score"]
    assert against["best"] == best and against["p_holm"] == against["p_value"] < 0.05
    assert against["difference"]["value"] == pytest.approx(0.96 - recipe["methods"][best]["score"]["value"])
    head, grid_lines = grid(result)
    (row,) = (line for line in grid_lines if line[1] == "tfidf")
    assert row[head.index("accuracy")].startswith("0.960 [") and row[head.index("p (Holm)")] == "0.000"
    assert row[head.index("loss (nats)")] == row[head.index("gap closed")] == ""
    show(result, form="csv")
    (numbers,) = (row for row in csv.DictReader(capsys.readouterr().out.splitlines()) if row["model"] == "tfidf")
    assert float(numbers["score_value"]) == pytest.approx(0.96) and numbers["nll_value"] == ""
    show(result)
    assert "no language model; its p is not corrected" in " ".join(capsys.readouterr().out.split())


def test_the_baseline_is_one_fixed_model_for_every_seed(tmp_path):
    """Three seeds that agree on all rows: the interval is that of one seed's rows, and it says nothing of training."""
    shares = seeds_of("td", 0.6, 0.6, 0.6)
    lines = make(tmp_path, shares, rows=100)
    for seed in (1, 2):
        folder = tmp_path / "plain" / "evaluate" / "td"
        shutil.rmtree(folder / f"seed-{seed}")
        shutil.copytree(folder / "seed-0", folder / f"seed-{seed}")
    lines = [line for student in shares for line in cell_lines(tmp_path / "plain", "plain", student)]
    answer_without_model(tmp_path / "plain", wrong=4)
    recipe = summarise(tmp_path, lines)["recipes"][0]
    difference = recipe["text_baseline"]["score_against_best"]["difference"]
    assert not difference["rows_only"] and recipe["text_baseline"]["score"]["rows_only"]
    assert difference["value"] == pytest.approx(0.96 - recipe["methods"]["td"]["score"]["value"])


def test_answers_of_the_baseline_to_other_rows_are_refused(tmp_path):
    lines = make(tmp_path, {"td/seed-0": 0.6})
    answer_without_model(tmp_path / "plain", wrong=0)
    path = tmp_path / "plain" / "baseline" / "answers.jsonl"
    write_lines(path, read_lines(path)[1:])
    with pytest.raises(StaleArtifactError, match=r"answers\.jsonl lacks 1 of 240 test rows"):
        summarise(tmp_path, lines)
