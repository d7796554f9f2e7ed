"""Rows without gold (`data.unlabelled`): who answers them, who learns them, and what keeps them out of test."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.project import LABELS, Command, make_project, run_to_the_end, write_rows
from tutelage.models.evaluation import Evaluator
from tutelage.recipe.load import load_recipe
from tutelage.records import Example
from tutelage.run.run_folder import RunFolder
from tutelage.stages import distill
from tutelage.teacher import silver_rows
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.distillation import Distillation
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_json, read_jsonl, read_records

METHODS = ["td", "scd-aw", "sft", "seqkd", "td-aw-cf"]
NEW = [{"text": f"a new thing {n} is {LABELS[n % 3]}"} for n in range(20)]
LEAKED = [{"text": "Test thing 1 is green!"}, {"text": "validation thing 2 is blue"}]
LONG = "where the last letter of the month before went, and whom to call about the fee that came with it"
NEAR = {"text": f"I would like to know {LONG} now"}
KNOWN = [{"text": "train thing 1 is green", "label": "blue"}, {"text": "a new thing 3 is red"}]


def make_unlabelled(folder: Path, **changes) -> Path:
    """A project whose tiny models give valid answers, with 20 new rows and 5 that a run must leave out."""
    data = {"unlabelled": str(folder / "more.jsonl")} | changes.pop("data", {})
    recipe = make_project(folder, task={"decoding": "labels"}, data=data, **changes)
    write_rows(folder / "more.jsonl", [*NEW[:10], *LEAKED, NEAR, *KNOWN, *NEW[10:]])
    with (folder / "data/test.jsonl").open("a") as file:
        file.write(json.dumps({"text": f"I would like to know {LONG}", "label": "red"}) + "\n")
    return recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run with rows without gold."""
    folder = tmp_path_factory.mktemp("silver")
    recipe = make_unlabelled(folder, distill={"methods": METHODS, "save_steps": None}, cross_fit={"teacher": False})
    run_to_the_end(recipe)
    return folder / "run"


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def models(finished) -> RunModels:
    return RunModels(RunFolder(load_recipe(finished / "recipe.yaml").recipe))


def test_rows_of_validation_test_and_training_are_left_out_and_counted(finished):
    counts = read_json(finished / "prepare/data.json")["unlabelled"]
    left_out = {"repeated": 1, "labelled": 1, "overlapping": 2, "near": 1, "too_long": 0}
    assert counts == {"rows": 20, "read": 25, "shared": 0, **left_out}
    prompts = [row["prompt"] for row in read_jsonl(finished / "prepare/unlabelled.jsonl")]
    assert prompts == [f"{row['text']}:" for row in NEW]
    notes = " ".join(read_json(finished / "prepare/data.json")["notes"])
    assert "2 unlabelled rows have the prompt of a validation or test row and are left out" in notes


def test_the_answers_are_those_of_the_best_checkpoint(finished, models):
    teacher = models.load(models.run.recipe.teacher, models.run.best_teacher)
    lines = list(read_jsonl(finished / "silver/answers.jsonl"))
    rows = read_records(finished / "prepare/unlabelled.jsonl", Example)
    answers = models.evaluator.answers(teacher, models.evaluator.eval_set(rows))
    assert [line["raw"] for line in lines] == [answer.text for answer in answers]
    assert [line["confidence"] for line in lines] == pytest.approx([answer.confidence for answer in answers], rel=1e-5)
    assert {line["prediction"] for line in lines} <= set(LABELS)


def test_students_are_trained_on_gold_first_then_on_the_answers(finished, models):
    rows, lines = models.training_rows(), list(read_jsonl(finished / "silver/answers.jsonl"))
    assert len(rows) == 12 + 20
    assert [row.id for row in rows[:12]] == [row.id for row in models.encoded("train")]
    assert [row.answer for row in rows[12:]] == [models.encoder.answer(line["raw"]) for line in lines]


def test_every_method_gets_as_many_steps(finished):
    """32 rows, 4 to a batch, two stages."""
    for method in METHODS:
        steps = [line["step"] for line in read_jsonl(finished / f"distill/{method}/seed-0/log.jsonl")]
        assert max(steps) == 8, method
    assert max(line["step"] for line in read_jsonl(finished / "anchor/log.jsonl")) == 2 * 8


def test_the_weight_is_one_where_there_is_no_gold(finished, models):
    for method in ("td", "scd-aw", "td-aw-cf"):
        plan, setup = distill._plan(models.run, method, 0), distill._setup(models.run, models, method)
        weights = Distillation(plan, finished / "unused", setup).weights(models.run.teacher_checkpoints["best"])
        assert len(weights) == 32 and (weights[12:] == 1).all() and (weights[:12] < 1).all()
        lines = list(read_jsonl(finished / f"distill/{method}/seed-0/weights.jsonl"))
        assert {line["id"] for line in lines} == {row.id for row in models.encoded("train")}


def test_the_cache_holds_every_checkpoint_on_that_answer(finished, models):
    rows = models.training_rows()
    cached = CachedTeacher(finished / "cache", list(models.run.checkpoint_folders), rows)
    for name, folder in models.run.checkpoint_folders.items():
        live = models.evaluator.losses(models.load(models.run.recipe.teacher, folder), rows)
        assert np.allclose(cached.nll(name), live, atol=1e-5)


def test_the_run_is_up_to_date(finished, command):
    assert command("run", finished) == 0
    assert "silver: up to date" in command.out + command.err


def test_report_card_and_explain_know_these_rows(finished, command):
    page = (finished / "report/index.html").read_text()
    assert "Besides the 12 training rows with gold, the students were trained on 20 rows" in page
    assert "are also validation or test rows" not in page
    assert command("card", finished, "--student", "td/seed-0") == 0
    assert "Rows without gold: 20, answered by checkpoint-" in (finished / "distill/td/seed-0/README.md").read_text()
    row = next(read_jsonl(finished / "silver/answers.jsonl"))
    assert command("explain", row["id"], "--run", finished) == 0
    assert f"no gold; T* answers: {row['raw']}" in command.out and "with weight 1" in command.out


def test_less_confident_answers_are_left_out(tmp_path, command):
    recipe = make_unlabelled(tmp_path, silver={"min_confidence": 0.5})
    assert command("run", recipe) == 2  # these models are sure of nothing
    assert "[silver_emptied]" in command.err and "20 are less sure than silver.min_confidence" in command.err


def test_rows_that_are_also_test_rows_can_be_kept(tmp_path, command):
    recipe = make_unlabelled(tmp_path, data={"unlabelled_overlap": "keep"})
    assert command("prepare", recipe) == 0
    counts = read_json(tmp_path / "run/prepare/data.json")["unlabelled"]
    assert counts["rows"] == 23 and counts["overlapping"] == 2 and counts["near"] == 1 and counts["shared"] == 3


def test_another_language_or_length_is_said(tmp_path, command):
    recipe = make_unlabelled(tmp_path)
    german = "Ich möchte wissen, warum die Karte noch nicht angekommen ist und wann sie kommt, Vorgang "
    write_rows(tmp_path / "more.jsonl", [{"text": f"{german}{n * 7919}"} for n in range(12)])
    english = "I would like to know why the card has not arrived, case "
    write_rows(tmp_path / "data/train.jsonl", [{"text": f"{english}{n}", "label": LABELS[n % 3]} for n in range(12)])
    assert command("prepare", recipe) == 0
    notes = read_json(tmp_path / "run/prepare/data.json")["notes"]
    assert "unlabelled rows are mostly in de, training rows in en" in notes


def test_the_gold_of_unlabelled_rows_is_not_read(tmp_path, command):
    recipe = make_unlabelled(tmp_path)
    write_rows(tmp_path / "more.jsonl", [row | {"label": "no such label"} for row in NEW])
    assert command("prepare", recipe) == 0
    assert all(row["answer"] == "" for row in read_jsonl(tmp_path / "run/prepare/unlabelled.jsonl"))


def test_a_split_of_the_data_set_and_a_sample_of_it(tmp_path, command):
    recipe = make_unlabelled(tmp_path, data={"unlabelled": None, "unlabelled_split": "extra", "max_unlabelled_rows": 7})
    write_rows(tmp_path / "data/extra.jsonl", NEW)
    assert command("prepare", recipe) == 0
    assert read_json(tmp_path / "run/prepare/data.json")["unlabelled"]["rows"] == 7
    write_rows(tmp_path / "data/extra.jsonl", NEW[:8])
    assert command("prepare", recipe) == 2 and "data files" in command.err  # the file has changed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"unlabelled": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"unlabelled": None, "unlabelled_split": "nothing"}, "data.unlabelled_split"),
        ({"unlabelled_split": "extra"}, "leave out one of the two"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_trains(tmp_path, command, data, words):
    assert command("prepare", make_unlabelled(tmp_path, data=data)) == 2
    assert words in command.err


def test_a_file_without_a_new_row_is_refused(tmp_path, command):
    recipe = make_unlabelled(tmp_path)
    write_rows(tmp_path / "more.jsonl", LEAKED)
    assert command("prepare", recipe) == 2
    assert "2 unlabelled rows have the prompt of a validation or test row" in command.err


def test_an_interrupted_stage_answers_no_row_twice(tmp_path, command, monkeypatch):
    monkeypatch.setattr(silver_rows, "CHUNK", 8)
    recipe = make_unlabelled(tmp_path)
    for stage in ("prepare", "teach"):
        assert command(stage, recipe) == 0
    answered: list[int] = []
    answers, most = Evaluator.answers, 2

    def counting(self, model, eval_set, on_rows=None):
        if len(answered) == most:
            raise KeyboardInterrupt
        answered.append(len(eval_set.examples))
        return answers(self, model, eval_set, on_rows)

    monkeypatch.setattr(Evaluator, "answers", counting)
    assert command("silver", recipe) == 130
    most = 3
    assert command("silver", recipe) == 0
    assert answered == [8, 8, 4]
    assert "teacher's answers: 4, resumed at 16, in" in command.err
    names = ["answers.jsonl", "manifest.json", "silver.json", "train.arrow", "train.index.safetensors"]
    assert sorted(path.name for path in (tmp_path / "run/silver").iterdir()) == names
    assert read_json(tmp_path / "run/silver/silver.json")["kept"] == 20


def test_the_doctor_counts_these_rows_and_says_what_differs(tmp_path, command):
    recipe = make_unlabelled(tmp_path)
    command("doctor", recipe)
    text = " ".join((command.out + command.err).split())
    assert "unlabelled: 20 rows without gold of 25 in the files" in text
    assert "2 unlabelled rows have the prompt of a validation or test row and are left out" in text
    write_rows(tmp_path / "more.jsonl", [{"text": f"{LONG} {LONG} {n}"} for n in range(9)])
    command("doctor", recipe)
    assert "[unlabelled_differs]" in command.out + command.err
    write_rows(tmp_path / "more.jsonl", LEAKED)
    assert command("doctor", recipe) == 2
    assert "unlabelled [split_emptied]" in command.out + command.err
