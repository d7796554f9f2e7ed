"""`task.verbalizers`: models learn and write short forms of labels, and every output has the labels."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from helpers.doctor_checks import found
from helpers.project import Command, color_rows, make_project, write_rows
from helpers.small_student import COLOR_ROWS, COLOR_TASK, small_student
from helpers.sound_project import SIZES, rows, sound
from helpers.tiny import byte_tokenizer, save_pair
from tutelage.cli.init import initialise
from tutelage.data.dataset import load_rows
from tutelage.data.encode import make_encoder
from tutelage.errors import ConfigError, DataError, Kind
from tutelage.export.harness import write_harness_task
from tutelage.models.generation import Answer
from tutelage.predict.predictor import Predictor
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Data, Task
from tutelage.records import Example
from tutelage.tasks.verbalizers import Verbalizers, long_labels
from tutelage.utils.files import read_jsonl

FORMS = {"red": "R", "green": "G"}
"""`blue` is written as it is."""


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def test_a_form_comes_back_as_its_label_whatever_its_case_and_what_follows():
    forms = Verbalizers({"very positive": "P", "very negative": "n", "none": "N"})
    assert [forms.written(label) for label in ("very positive", "neutral")] == ["P", "neutral"]
    assert forms.read("P") == forms.read("p") == forms.read("Ｐ ") == "very positive"
    assert forms.read("p\nmore") == "very positive\nmore"
    assert (forms.read("n"), forms.read("N")) == ("very negative", "none"), "forms that differ in case alone"
    assert forms.read("ｎ") == "ｎ", "no form by itself: two are like it"
    assert forms.read("Paris") == "Paris" and forms.read("") == ""


def test_tokens_are_those_of_the_form_and_the_prompt_lists_forms():
    task = Task(type="classification", labels=["red", "green", "blue"], verbalizers=FORMS)
    encoder = make_encoder(Data(), byte_tokenizer(), task)
    row = encoder.row(Example("a", "train", "p", "red", ["red"]))
    assert row.answer == [ord(" "), ord("R"), 256] and encoder.answer("blue")[:-1] == list(b" blue")


# --- a whole run ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with short forms; the default prompt lists the labels."""
    from helpers.project import run_to_the_end

    folder = tmp_path_factory.mktemp("verbalizers")
    task = {"type": "classification", "verbalizers": FORMS, "decoding": "labels"}
    recipe = make_project(folder, task=task, data={"template": "{labels}: {text}:"})
    run_to_the_end(recipe)
    return folder


def test_every_output_of_a_run_has_the_labels(finished):
    run = finished / "run"
    rows = list(read_jsonl(run / "prepare/rows.jsonl"))
    assert {row["answer"] for row in rows} == {"red", "green", "blue"}
    assert rows[0]["prompt"].startswith("blue, G, R: ")
    lines = list(read_jsonl(run / "evaluate/predictions.jsonl"))
    assert {line["prediction"] for line in lines} <= {"red", "green", "blue"} >= {line["raw"] for line in lines}
    assert {line["gold"] for line in lines} == {"red", "green", "blue"}
    # the longest answer is " blue" and its end in bytes
    assert json.loads((run / "prepare/data.json").read_text())["lengths"]["train"]["longest_answer"] == 6
    page = (run / "report/index.html").read_text()
    assert "green" in page


def test_predict_and_the_card_have_the_labels(finished, command, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a thing"}) + "\n")
    assert command("predict", finished / "run", "--input", tmp_path / "rows.jsonl") == 0
    answer = json.loads(command.out)
    assert answer["prediction"] == answer["raw"] and answer["raw"] in ("red", "green", "blue")
    assert command("card", finished / "run") == 0
    card = (finished / "run/distill/scd-aw/seed-0/README.md").read_text()
    assert "label_of = {'G': 'green', 'R': 'red'}" in card and "'blue, G, R: {text}:'" in card


def test_the_run_is_up_to_date_and_stale_with_other_forms(finished, command):
    assert command("prepare", finished / "recipe.yaml") == 0 and "prepare: up to date" in command.err
    assert command("prepare", finished / "recipe.yaml", "task.verbalizers={red: R}") == 2
    assert "task.verbalizers.green" in command.err


def test_a_run_without_the_key_stays_up_to_date(command, tmp_path):
    recipe = make_project(tmp_path)
    assert command("prepare", recipe) == 0
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    del written["task"]["verbalizers"]  # as an earlier version wrote it
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(written))
    assert command("prepare", recipe) == 0 and "prepare: up to date" in command.err
    student = small_student(tmp_path / "student", COLOR_ROWS, COLOR_TASK, passes=0)
    usage = json.loads((student.folder / "tutelage.json").read_text())
    del usage["task"]["verbalizers"]
    older = Predictor(replace(student, usage=usage))
    assert older.encoder.answer("red") == Predictor(student).encoder.answer("red")


# --- generated answers, and other programs ---


def test_written_forms_are_undone_before_answers_are_parsed(monkeypatch, tmp_path):
    from tutelage.models import evaluation

    task = {**COLOR_TASK, "verbalizers": FORMS}
    found = small_student(tmp_path / "student", COLOR_ROWS, task, passes=0)
    written = [Answer("R", -1.0), Answer("g", -1.0), Answer("blue", -1.0), Answer("purple", -1.0)]
    monkeypatch.setattr(evaluation, "generate_answers", lambda *args, **kwargs: written)
    answers = Predictor(found).answer(COLOR_ROWS[:4])
    assert [answer["prediction"] for answer in answers] == ["red", "green", "blue", None]
    assert [answer["raw"] for answer in answers] == ["red", "green", "blue", "purple"]


def test_the_task_of_the_harness_reads_forms_and_scores_labels(tmp_path):
    from export.test_harness import loaded

    for decoding in ("generate", "labels"):
        task = {**COLOR_TASK, "verbalizers": FORMS, "decoding": decoding}
        found = small_student(tmp_path / f"student-{decoding}", COLOR_ROWS, task, passes=0)
        write_harness_task(found, COLOR_ROWS, tmp_path / decoding)
        harness = loaded(tmp_path / decoding)
        (doc, *_) = harness.load()["test"]
        if decoding == "generate":
            assert harness.read_text(doc, [" R"])["accuracy"][1] == "red"
        else:
            assert doc["labels"] == ["red", "green", "blue"]
            assert doc["continuations"] == ["R<|end|>", "G<|end|>", "blue<|end|>"]
            assert harness.read_choice(doc, [(-9.0, False), (-1.0, False), (-9.0, False)])["accuracy"][1] == "green"


# --- advice ---


LONG = {"red": "호흡기내과", "green": "응급실 방문", "blue": "A"}
"""In bytes, with the space in front: 16, 17 and 2."""


def korean(folder):
    for split in SIZES:
        write_rows(folder / "data" / f"{split}.jsonl", [row | {"label": LONG[row["label"]]} for row in rows(split)])


def test_proposed_forms_are_no_labels_and_are_not_taken():
    found = long_labels({"a long label": 9, "short": 2, "A": 2, "another one": 12}, ["b"])
    assert found.tokens == {"another one": 12, "a long label": 9}
    assert found.forms == {"a long label": "C", "another one": "D"}
    many = long_labels({f"label {n}": 8 for n in range(30)} | {"2": 1})
    assert list(many.forms.values())[:3] == ["1", "3", "4"] and len(set(many.forms.values())) == 30


def test_the_doctor_measures_labels_and_its_advice_works(tmp_path, command):
    recipe = sound(tmp_path)
    korean(tmp_path)
    check = found(recipe, name="label_tokens")
    assert (check.status, check.kind, check.numbers["longest"]) == ("look", Kind.LABELS_LONG, 17)
    assert check.numbers["tokens"] == {"응급실 방문": 17, "호흡기내과": 16}
    assert check.change == "task.verbalizers={응급실 방문: B, 호흡기내과: C}" and "'응급실 방문' 17" in check.text
    command("doctor", recipe, check.change, "--json")
    again = {line["name"]: line for line in json.loads(command.out)}
    assert (again["label_tokens"]["status"], again["label_tokens"]["numbers"]["longest"]) == ("passed", 2)
    assert again["answers_as_tokens"]["status"] == again["rows"]["status"] == "passed"


def test_init_measures_labels_and_its_comment_can_be_switched_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher, student = save_pair(tmp_path / "models")
    korean(tmp_path)
    written = initialise("data", str(teacher), str(student))
    assert any("'응급실 방문' 17, '호흡기내과' 16" in line and "task.verbalizers" in line for line in written.found)
    assert "  # verbalizers: {응급실 방문: B, 호흡기내과: C}\n" in written.text and "16 to 17 tokens" in written.text
    written.path.write_text(written.text.replace("# verbalizers", "verbalizers"), encoding="utf-8")
    recipe = load_recipe(written.path).recipe
    assert recipe.task.verbalizers["호흡기내과"] == "C" and load_rows(recipe).labels == [
        "A",
        *sorted(LONG.values())[1:],
    ]


# --- what is refused ---


def recipe_with(folder, forms, **changes):
    return make_project(folder, task={"type": "classification", "verbalizers": forms}, **changes)


def test_numbers_are_taken_as_text_and_true_is_not(tmp_path):
    task = load_recipe(recipe_with(tmp_path, {"red": 1, "green": 2})).recipe.task
    assert task.verbalizers == {"red": "1", "green": "2"}
    with pytest.raises(ConfigError):
        load_recipe(recipe_with(tmp_path, {"red": True}))


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        ({"red": "x", "green": "x"}, "have the same short form 'x'"),
        ({"red": " x"}, "one line of text without spaces around it"),
        ({"red": "x\ny"}, "one line of text"),
        ({"red": ""}, "one line of text"),
    ],
)
def test_forms_that_no_labels_could_have(forms, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        load_recipe(recipe_with(tmp_path, forms))


def test_entities_have_no_short_forms(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.verbalizers: short forms are for labels that are the whole answer"):
        load_recipe(make_project(tmp_path, task={"type": "ner", "verbalizers": {"drug": "d"}}))


@pytest.mark.parametrize(
    ("forms", "kind", "words"),
    [
        ({"grene": "g"}, Kind.VERBALIZER_LABEL_UNKNOWN, r"'grene' is no label .* \(did you mean 'green'\?\)"),
        ({"green": "Red"}, Kind.VERBALIZER_IS_LABEL, "'Red' of 'green' reads as the label 'red'"),
        ({"green": "red", "red": "r"}, Kind.VERBALIZER_IS_LABEL, "reads as the label 'red'"),
    ],
)
def test_forms_that_do_not_fit_the_labels(forms, kind, words, tmp_path, command):
    recipe = recipe_with(tmp_path, forms)
    with pytest.raises(DataError, match=words) as caught:
        load_rows(load_recipe(recipe).recipe)
    assert [problem.kind for problem in caught.value.problems] == [kind]
    assert command("doctor", recipe, "--json") == 2
    (check,) = [check for check in json.loads(command.out) if check["kind"] == kind]
    assert (check["name"], check["status"]) == ("verbalizers", "fail")
    assert check["change"].startswith("task.verbalizers=")


def test_a_label_is_its_own_form(tmp_path):
    assert load_rows(load_recipe(recipe_with(tmp_path, {"red": "red"})).recipe).labels == ["blue", "green", "red"]


def test_a_form_that_only_one_row_allows_as_a_label(tmp_path):
    recipe = recipe_with(tmp_path, {"red": "r"})
    rows = color_rows("test", 6)
    write_rows(tmp_path / "data/test.jsonl", [{**rows[0], "labels": ["red", "R"]}, *rows[1:]])
    with pytest.raises(DataError, match="'r' of 'red' reads as the label 'R'"):
        load_rows(load_recipe(recipe).recipe)


def test_questions_have_short_forms_only_where_answers_are_closed(tmp_path):
    recipe = make_project(tmp_path, task={"type": "qa", "verbalizers": {"red": "r"}}, data={"template": None})
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        rows = [{"prompt": row["text"], "completion": row["label"]} for row in color_rows(split, count)]
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    with pytest.raises(DataError, match="closed set of answers") as caught:
        load_rows(load_recipe(recipe).recipe)
    assert caught.value.kind == Kind.VERBALIZERS_UNSUITABLE
    for split in ("train", "validation", "test"):
        rows = list(read_jsonl(tmp_path / "data" / f"{split}.jsonl"))
        write_rows(tmp_path / "data" / f"{split}.jsonl", [row | {"labels": ["red", "green", "blue"]} for row in rows])
    assert load_rows(load_recipe(recipe).recipe).choice
