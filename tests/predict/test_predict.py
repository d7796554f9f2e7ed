"""`tutelage predict`: every model of a run, tables in and out, the cascade, and what an interruption leaves."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest

from helpers.project import Command, make_project, run_to_the_end
from tutelage.predict import answer_file
from tutelage.predict.predictor import Predictor
from tutelage.utils.files import read_jsonl

STUDENT = "run/distill/scd-aw/seed-0"
TEXTS = [f"new thing {n} is {color}" for n, color in enumerate(("red", "blue", "green", "red", "blue"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a finished run."""
    folder = tmp_path_factory.mktemp("predict")
    run_to_the_end(make_project(folder, task={"decoding": "labels"}))
    return folder


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def reviews(tmp_path) -> Path:
    """A CSV whose columns are not ours."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("no", "review"), *((n, text) for n, text in enumerate(TEXTS))])
    return path


def answers(path: Path) -> list[dict]:
    return list(read_jsonl(path))


@pytest.mark.parametrize(("name", "model"), [("teacher", "teacher"), ("anchor", "anchor"), ("scd-aw", "scd-aw/seed-0")])
def test_a_run_answers_by_each_of_its_models_as_it_was_scored(folder, command, tmp_path, name, model):
    assert command("predict", folder / "run", "--model", name, "--input", folder / "data/test.jsonl",
                   "--output", tmp_path / "a.jsonl") == 0  # fmt: skip
    scored = {p["id"]: p for p in read_jsonl(folder / "run/evaluate/predictions.jsonl") if p["model"] == model}
    found = answers(tmp_path / "a.jsonl")
    assert [line["id"] for line in found] == list(scored)
    for line in found:
        assert line["raw"] == scored[line["id"]]["raw"]
        assert line["confidence"] == pytest.approx(scored[line["id"]]["confidence"], rel=1e-4)


def test_a_run_answers_by_the_student_it_hands_over(folder, command, tmp_path, reviews):
    for name, model in (("run", folder / "run"), ("student", folder / STUDENT)):
        out = tmp_path / f"{name}.jsonl"
        assert command("predict", model, "--input", reviews, "--column", "text=review", "--output", out) == 0
    assert answers(tmp_path / "run.jsonl") == answers(tmp_path / "student.jsonl")


def test_a_table_of_rows_from_standard_input_is_refused(folder, command, tmp_path):
    """Only JSON lines can be written while rows come in; they were, under the table's name."""
    assert command("predict", folder / STUDENT, "--input", "-", "--output", tmp_path / "out.csv") == 2
    assert "FILE.jsonl" in command.err and not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", ["o.xlsx", "o.csv.gz", "o.json", "o"])
def test_an_output_of_a_format_that_is_not_written_is_refused(folder, command, tmp_path, reviews, name):
    """JSON lines were written under that name."""
    words = ["predict", folder / STUDENT, "--input", reviews, "--column", "text=review", "--output"]
    assert command(*words, tmp_path / name) == 2
    assert "ends in .jsonl, .csv, .tsv or .parquet, such as o.jsonl" in command.err
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_a_table_keeps_the_inputs_columns(folder, command, tmp_path, reviews, ending):
    plain, table = tmp_path / "plain.jsonl", tmp_path / f"out.{ending}"
    for out in (plain, table):
        assert command("predict", folder / STUDENT, "--input", reviews, "--column", "text=review", "--output", out) == 0
    if ending == "parquet":
        rows = pyarrow.parquet.read_table(table).to_pylist()
    else:
        rows = list(
            csv.DictReader(table.open(newline="", encoding="utf-8"), delimiter="," if ending == "csv" else "\t")
        )
    assert list(rows[0]) == ["no", "review", "prediction", "raw", "confidence"]
    assert [row["review"] for row in rows] == TEXTS
    expected = answers(plain)
    assert [row["prediction"] for row in rows] == [line["prediction"] for line in expected]
    assert [float(row["confidence"]) for row in rows] == [line["confidence"] for line in expected]


def test_an_output_that_is_an_input_again_is_refused_for_its_columns(folder, command, tmp_path, reviews):
    assert command("predict", folder / STUDENT, "--input", reviews, "--column", "text=review",
                   "--output", tmp_path / "a.csv") == 0  # fmt: skip
    assert command("predict", folder / STUDENT, "--input", tmp_path / "a.csv", "--column", "text=review",
                   "--output", tmp_path / "b.csv") == 2  # fmt: skip
    assert "has a column 'prediction'" in command.err and not list(tmp_path.glob("b.csv*"))


def test_rows_below_the_threshold_are_answered_by_the_teacher(folder, command, tmp_path, reviews):
    """At a threshold between the student's confidences, each row has the answer of the model that it went to."""

    def predict(name: str, *words) -> list[dict]:
        out = tmp_path / f"{name}.jsonl"
        options = ["--input", reviews, "--column", "text=review", "--output", out]
        assert command("predict", folder / "run", *options, *words) == 0
        return answers(out)

    student, teacher = predict("student"), predict("teacher", "--model", "teacher")
    threshold = sorted(line["confidence"] for line in student)[2]
    mixed = predict("mixed", "--defer-below", threshold)
    assert "2 by the teacher (40%)" in command.err
    for line, small, large in zip(mixed, student, teacher, strict=True):
        taken = large if small["confidence"] < threshold else small
        who = "teacher" if taken is large else "student"
        confidence = line.pop("confidence")
        assert confidence == pytest.approx(taken["confidence"], rel=1e-4)
        assert line == {"answered_by": who} | {key: taken[key] for key in ("id", "prediction", "raw")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "run"], "add --defer-below"),
        (["--model", "teacher", "--defer-below", "0.5"], "--model is teacher"),
        (["--column", "text"], "write OURS=THEIRS"),
        (["--model", "nothing"], "no finished student 'nothing/seed-0'"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, command, reviews, words, message):
    assert command("predict", folder / "run", "--input", reviews, *words) == 2
    assert message in command.err


@pytest.mark.parametrize(
    ("usage", "why"),
    [
        ({"task": {"type": "ner"}}, "its task is ner, and the student's classification"),
        ({"task": {"labels": ["red", "no"]}}, "it has other labels than the student"),
        ({"choice": True}, "its questions have choices, and the student's free answers"),
        ({"task": {"labels": ["blue", "red", "green"]}}, None),
    ],
)
def test_a_teacher_that_gives_other_answers_is_refused(folder, command, tmp_path, reviews, usage, why):
    """Deferred rows were answered by it without a word."""
    teacher = shutil.copytree(folder / STUDENT, tmp_path / "teacher")
    (teacher / "manifest.json").unlink()
    own = json.loads((teacher / "tutelage.json").read_text())
    changed = {**own, **usage, "task": own["task"] | usage.get("task", {})}
    (teacher / "tutelage.json").write_text(json.dumps(changed))
    words = ["--input", reviews, "--column", "text=review", "--teacher", teacher, "--defer-below", "0.9"]
    assert command("predict", folder / STUDENT, *words) == (2 if why else 0)
    assert why is None or (f"{teacher} cannot answer for this student: {why}" in command.err and not command.out)


@pytest.mark.parametrize("template", [None, "Colour of {text}?"])
def test_a_column_that_is_not_there_is_named_by_the_option(folder, command, tmp_path, template):
    """The advice was a key of the recipe, and a label, which rows to predict do not have."""
    student = shutil.copytree(folder / STUDENT, tmp_path / "student")
    (student / "manifest.json").unlink()
    usage = json.loads((student / "tutelage.json").read_text())
    usage["data"]["template"] = template
    (student / "tutelage.json").write_text(json.dumps(usage))
    (tmp_path / "new.csv").write_text("message\nnew thing 0 is red\n")
    assert command("predict", student, "--input", tmp_path / "new.csv", "--column", "text=mesage") == 2
    assert "--column text=THEIR_NAME" in command.err and "data." not in command.err and "label" not in command.err
    assert template or "--column names 'mesage', which is not there" in command.err


def test_a_student_alone_has_no_other_model_and_no_teacher(folder, command, tmp_path, reviews):
    assert command("predict", folder / STUDENT, "--model", "teacher", "--input", reviews) == 2
    assert "name the run folder" in command.err
    lonely = tmp_path / "lonely"
    lonely.symlink_to(folder / STUDENT)
    (tmp_path / "copy").mkdir()
    for path in (folder / STUDENT).iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    assert command("predict", tmp_path / "copy", "--defer-below", "0.5", "--input", reviews) == 2
    assert "add --teacher RUN" in command.err


def test_an_interrupted_command_goes_on_where_it_stopped(folder, command, tmp_path, reviews, monkeypatch):
    monkeypatch.setattr(answer_file, "CHUNK", 2)
    asked, real = [], Predictor.__call__

    def stops(self, rows):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(rows))
        return real(self, rows)

    words = ["predict", folder / STUDENT, "--input", reviews, "--column", "text=review", "--output"]
    monkeypatch.setattr(Predictor, "__call__", stops)
    assert command(*words, tmp_path / "a.csv") == 130
    assert not (tmp_path / "a.csv").exists() and asked == [2, 2]
    monkeypatch.setattr(Predictor, "__call__", lambda self, rows: asked.append(len(rows)) or real(self, rows))
    other = [*words[:-1], "--defer-below", "0.5", "--output", tmp_path / "a.csv"]
    assert command(*other) == 2 and "unfinished answers of another command" in command.err
    assert command(*words, tmp_path / "a.csv") == 0
    assert "rows: 1, resumed at 4, in" in command.err
    assert asked == [2, 2, 1] and [path.name for path in tmp_path.glob("a.csv*")] == ["a.csv"]
    assert command(*words, tmp_path / "whole.csv") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_file_whose_command_was_killed_at_its_end_is_finished(folder, command, tmp_path, reviews, monkeypatch):
    out = tmp_path / "a.jsonl"
    words = ["predict", folder / STUDENT, "--input", reviews, "--column", "text=review", "--output", out]
    monkeypatch.setattr(answer_file, "discard", lambda folder: None)
    assert command(*words) == 0
    before = out.read_bytes()
    monkeypatch.undo()
    command.monkeypatch = monkeypatch
    assert command(*words) == 0 and out.read_bytes() == before
    assert [path.name for path in tmp_path.glob("a.jsonl*")] == ["a.jsonl"]
    assert command(*words) == 2 and "a.jsonl" in command.err


def test_a_file_that_appeared_meanwhile_is_not_taken_for_the_answers(folder, command, tmp_path, reviews, monkeypatch):
    out = tmp_path / "a.jsonl"
    words = ["predict", folder / STUDENT, "--input", reviews, "--column", "text=review", "--output", out]
    monkeypatch.setattr(answer_file, "discard", lambda folder: None)
    assert command(*words) == 0
    out.write_text("mine")
    assert command(*words) == 2 and out.read_text() == "mine"


def test_lists_become_json_in_a_csv(tmp_path):
    rows = [({"text": "Ada in Paris"}, None)]
    entities = [{"type": "person", "text": "Ada"}]
    found = [{"id": "1", "prediction": entities, "raw": "person: Ada", "confidence": 0.5}]
    answer_file.AnswerFile(tmp_path / "a.csv", {}).write(rows, lambda chunk: found)
    (row,) = csv.DictReader((tmp_path / "a.csv").open(newline=""))
    assert json.loads(row["prediction"]) == entities and row["text"] == "Ada in Paris"
