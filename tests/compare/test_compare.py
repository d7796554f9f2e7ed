"""`tutelage compare`: every cell runs once, failures are recorded, and the numbers follow from the files."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from filelock import FileLock

from helpers.project import Command, Inline, make_project
from helpers.typed_json import mismatches
from tutelage.compare import cell_runs
from tutelage.compare.cells import Cell, ResultRow, ResultsFile
from tutelage.compare.executors import LocalExecutor
from tutelage.compare.summary.summarise import Summary
from tutelage.errors import DataError
from tutelage.utils.files import read_jsonl

METHODS = "sft,td,td-aw,scd,scd-aw"
FIELDS = Cell.__dataclass_fields__


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(cell_runs, "LocalExecutor", Inline)
    return Command(monkeypatch, capsys)


def lines(folder):
    return list(read_jsonl(folder / "run/compare/results.jsonl"))


def test_a_comparison_from_rows_to_summary(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("compare", recipe, "--methods", METHODS, "--seeds", 2, "--format", "markdown") == 0
    assert "| scd-aw |" in command.out and "10 cells, 0 of them up to date" in command.err
    summary = json.loads((tmp_path / "run/compare/summary.json").read_text())
    (recipe_summary,) = summary["recipes"]
    assert set(recipe_summary["methods"]) == set(METHODS.split(",")) and recipe_summary["rows"] == 6
    for name, method in recipe_summary["methods"].items():  # from the predictions, by other means
        files = [tmp_path / f"run/evaluate/{name}/seed-{seed}/predictions.jsonl" for seed in (0, 1)]
        rows = [list(read_jsonl(file)) for file in files]
        assert method["score"]["value"] == pytest.approx(
            np.mean([[r["prediction"] == r["gold"] for r in of_seed] for of_seed in rows])
        )
        assert method["nll"]["value"] == pytest.approx(np.mean([[r["nll"] for r in of_seed] for of_seed in rows]))
        assert method["seeds"] == 2 and method["nll"]["low"] <= method["nll"]["value"] <= method["nll"]["high"]
    answers = list(read_jsonl(tmp_path / "run/baseline/answers.jsonl"))
    baseline = recipe_summary["text_baseline"]
    assert baseline["score"]["value"] == pytest.approx(np.mean([r["prediction"] == r["gold"] for r in answers]))
    assert baseline["score_against_best"]["best"] == recipe_summary["best"]["score"] and "| tfidf |" in command.out
    effect = recipe_summary["two_by_two"]["nll"]["schedule"]["value"]
    nll = {name: method["nll"]["value"] for name, method in recipe_summary["methods"].items()}
    assert effect == pytest.approx((nll["scd"] + nll["scd-aw"] - nll["td"] - nll["td-aw"]) / 2)
    assert len(summary["cells"]) == 10 and mismatches(summary, Summary) == []
    results = [{key: value for key, value in line.items() if key not in FIELDS} for line in lines(tmp_path)]
    assert [wrong for row in results for wrong in mismatches(row, ResultRow)] == []
    for cell in summary["cells"]:
        assert cell["test"]["difference"] == pytest.approx(
            cell["test"]["deficit"] - cell["test"]["advantage"], abs=1e-9
        )
    before = lines(tmp_path)
    assert command("compare", recipe, "--methods", METHODS, "--seeds", 2) == 0
    assert "10 of them up to date" in command.err and lines(tmp_path) == before


def test_a_cell_that_fails_is_recorded_and_run_again(tmp_path, command, monkeypatch):
    recipe, real = make_project(tmp_path), cell_runs.distill.cell

    def out_of_memory(run, models, method, seed):
        if method == "td":
            raise MemoryError("no room")
        real(run, models, method, seed)

    monkeypatch.setattr(cell_runs.distill, "cell", out_of_memory)
    assert command("compare", recipe, "--methods", "sft,td", "--seeds", 1) == 1
    assert "failed: recipe teacher-0 td seed-0: MemoryError: no room" in command.err
    assert "1 of 2 students failed; the same command runs them again" in command.err
    assert [line.split("\t")[2] for line in command.out.splitlines() if "\ttd\t" in line] == ["0, 1 failed"]
    monkeypatch.setattr(cell_runs.distill, "cell", real)
    assert command("compare", recipe, "--methods", "sft,td", "--seeds", 1) == 0
    assert "2 cells, 1 of them up to date" in command.err and "failed" not in command.out + command.err
    records = ResultsFile(tmp_path / "run/compare/results.jsonl").records()
    assert [record.failed for record in records.values()] == [False, False]


def test_recorded_cells_of_other_methods_and_teachers_become_stale_with_the_recipe(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("compare", recipe, "--methods", "sft,td,scd-aw", "--seeds", 1, "--teacher-seeds", 2) == 0
    assert command("compare", recipe, "--methods", "jsd", "--seeds", 1) == 0  # nothing changed: the others still count
    assert "stale" not in command.err
    summary = json.loads((tmp_path / "run/compare/summary.json").read_text())
    assert set(summary["recipes"][0]["methods"]) == {"sft", "td", "scd-aw", "jsd"} and not summary["stale"]
    assert command("compare", recipe, "distill.epochs_per_stage=2", "--methods", "td", "--seeds", 1, "--force") == 0
    summary = json.loads((tmp_path / "run/compare/summary.json").read_text())
    assert [(cell["method"], cell["teacher_seed"]) for cell in summary["cells"]] == [("td", 0)]
    stale = {(cell["method"], cell["teacher_seed"]) for cell in summary["stale"]}
    assert stale == {("jsd", 0), ("sft", 0), ("scd-aw", 0), ("scd-aw", 1), ("td", 1)}
    assert "stale, not counted: recipe teacher-1 td seed-0" in command.err


def test_after_a_change_of_the_run_folder_only_the_new_one_counts(tmp_path, command):
    recipe, methods = make_project(tmp_path), ["--methods", "sft", "--seeds", 1, "--output", tmp_path / "both"]
    assert command("compare", recipe, *methods) == 0
    assert command("compare", recipe, f"output_dir={tmp_path / 'moved'}", *methods) == 0
    summary = json.loads((tmp_path / "both/summary.json").read_text())
    assert [cell["run"] for cell in summary["cells"]] == [str(tmp_path / "moved")]
    assert [cell["run"] for cell in summary["stale"]] == [str(tmp_path / "run")]


def test_progress_names_the_metric_of_the_recipe(tmp_path, command):
    recipe = make_project(tmp_path, task={"metric": "macro_f1"})
    assert command("compare", recipe, "--methods", "sft", "--seeds", 1) == 0
    assert "[1/1] recipe teacher-0 sft seed-0: macro_f1 0." in command.err
    assert command.out.splitlines()[0].split("\t")[3] == "macro_f1"


def test_a_comparison_in_use_names_the_setting_for_another_folder(tmp_path, command):
    recipe = make_project(tmp_path)
    for folder, way_out in (("run", "output_dir="), ("both", "--output ")):
        (tmp_path / folder).mkdir(exist_ok=True)
        with FileLock(str(tmp_path / folder / ".lock")):
            assert command("compare", recipe, "--methods", "sft", "--output", tmp_path / "both") == 2
        assert f"another process is working in {tmp_path / folder}:" in command.err and way_out in command.err


def test_teacher_seeds_share_the_anchor(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("compare", recipe, "--methods", "sft,td", "--seeds", 1, "--teacher-seeds", 2) == 0
    assert "give --seeds 2 or more" in command.err
    summary = json.loads((tmp_path / "run/compare/summary.json").read_text())
    td = summary["recipes"][0]["methods"]["td"]
    assert (td["trainings"], td["seeds"], td["trajectories"]) == (2, 1, 2)
    assert {cell["teacher_seed"] for cell in summary["cells"]} == {0, 1}
    teachers = [tmp_path / f"{run}/evaluate/teacher/predictions.jsonl" for run in ("run", "run-teacher-1")]
    assert [r["nll"] for r in read_jsonl(teachers[0])] != [r["nll"] for r in read_jsonl(teachers[1])]
    anchors = [tmp_path / f"{run}/anchor/sample_loss.jsonl" for run in ("run", "run-teacher-1")]
    assert list(read_jsonl(anchors[0])) == list(read_jsonl(anchors[1]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--methods", "td,scd-aww"], "did you mean scd-aw"),
        (["--methods", "td,td"], "2 times"),
        (["--methods", ","], "empty"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(tmp_path, command, given, words):
    assert command("compare", make_project(tmp_path), *given) == 2
    assert words in command.err and not (tmp_path / "run").exists()


def test_two_recipes_need_their_own_names_and_folders(tmp_path, command):
    recipe = make_project(tmp_path)
    assert command("compare", recipe, recipe) == 2
    for words in ("two recipes write there", "same name", "--output"):
        assert words in command.err


def test_a_line_that_was_cut_off_is_removed(tmp_path):
    cell = Cell("r", "run", "td", 0, 0)
    results = ResultsFile(tmp_path / "results.jsonl")
    results.append(cell, "abc", [{"status": "done", "metric": "accuracy"}, {"status": "done", "metric": "nll"}])
    whole = results.path.read_bytes()
    results.path.write_bytes(whole + b'{"recipe": "r", "run')
    assert len(ResultsFile(results.path).records()[cell].rows) == 2
    assert results.path.read_bytes() == whole
    results.append(cell, "def", [{"status": "failed", "error": "no"}])
    assert results.records()[cell].failed


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"status": "done"}\n{"status": "do\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"results\.jsonl, line 2 is damaged: .* its cell is run again"):
        list(ResultsFile(path)._read())


def test_another_thread_count_gives_a_warning(tmp_path, command, monkeypatch):
    recipe = make_project(tmp_path)  # its students are trained here, on one thread
    assert command("compare", recipe, "--methods", "sft", "--seeds", 1) == 0 and "threads" not in command.err
    monkeypatch.setattr(Inline, "threads", 2)
    assert command("compare", recipe, "--methods", "sft", "--seeds", 1) == 0
    assert "threads" not in command.err  # there is nothing to come
    assert command("compare", recipe, "--methods", "sft,td", "--seeds", 1) == 0
    said = " ".join(command.err.split())
    assert "2 for the students still to train, 1 for 1 of the finished ones" in said and "Keep the same --jobs" in said
    monkeypatch.setattr(Inline, "threads", 1)
    assert command("compare", recipe, "--methods", "sft,td,scd", "--seeds", 1) == 0 and "threads" not in command.err


# --- processes ---


@pytest.mark.parametrize(("ours", "jobs", "each"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_cells_divide_the_threads_of_this_process(tmp_path, monkeypatch, ours, jobs, each):
    monkeypatch.setattr(
        torch, "get_num_threads", lambda: ours
    )  # fewer than the machine has where processors are shared
    assert LocalExecutor(end_as_named, tmp_path, jobs).threads == each


def end_as_named(cell):
    print("words of", cell.method)
    if cell.method == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.method == "raises":
        raise ValueError("not today")
    if cell.method == "slow":
        time.sleep(600)  # longer than any machine takes to start a process


def test_each_cell_has_its_own_process(tmp_path):
    cells = [Cell("r", "run", method, 0, 0) for method in ("killed", "raises", "good")]
    outcomes = {o.cell.method: o for o in LocalExecutor(end_as_named, tmp_path / "logs", jobs=3).run(cells)}
    assert "SIGKILL" in outcomes["killed"].error and "memory" in outcomes["killed"].error
    assert outcomes["raises"].error == "ValueError: not today"
    assert outcomes["good"].error is None
    assert {path.read_text().splitlines()[0] for path in (tmp_path / "logs").iterdir()} >= {
        "words of raises",
        "words of good",
    }


def test_cells_stop_with_the_comparison(tmp_path):
    running = LocalExecutor(end_as_named, tmp_path / "logs", jobs=2).run(
        [Cell("r", "run", m, 0, 0) for m in ("slow", "good")]
    )
    began = time.monotonic()
    assert next(running).cell.method == "good"
    running.close()
    assert time.monotonic() - began < 500 and not multiprocessing.active_children()
