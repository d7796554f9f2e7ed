"""A first recipe from a file: the reader accepts it, the doctor has nothing to say about it, and nothing is overwritten."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from project import LABELS, write_rows
from sound_project import rows, texts
from tiny import save_pair
from tutelage.config import load_recipe
from tutelage.doctor import examine_file, exit_code
from tutelage.errors import DataError, UserError
from tutelage.guessing import guess_rows
from tutelage.initialise import initialise
from tutelage.rows import load_rows


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_csv(path: Path, records: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


def read(sketch):
    recipe = load_recipe(sketch.path).recipe
    return recipe, load_rows(recipe)


def test_one_csv_with_columns_of_its_own_becomes_a_recipe_that_the_doctor_passes(tmp_path):
    teacher, student = save_pair(tmp_path / "models")
    reviews = [{"key": n, "opinion": text, "grade": LABELS[n % 3]} for n, text in enumerate(texts(400, 7))]
    write_csv(tmp_path / "reviews.csv", reviews)
    sketch = initialise("reviews.csv", str(teacher), str(student))
    recipe, found = read(sketch)
    assert (sketch.path, sketch.missing) == (Path("reviews.yaml"), [])
    assert (recipe.task.type, recipe.task.labels) == ("classification", sorted(LABELS))
    assert recipe.data.columns == {"text": "opinion", "label": "grade"}
    assert {split: len(own) for split, own in found.examples.items()} == {"train": 256, "validation": 64, "test": 80}
    checks = examine_file(sketch.path)
    assert exit_code(checks) == 0, [check for check in checks if check.status not in ("passed", "skipped")]


def test_a_folder_with_splits_is_taken_as_it_is(tmp_path):
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows(split))
    sketch = initialise("data", output=Path("recipes/one.yaml"))
    recipe, _ = read(sketch)
    assert recipe.data.dataset == "data" and sketch.written == []
    assert (recipe.task.language, recipe.data.max_length) == ("en", 96)
    assert "SmolLM2" in recipe.teacher.model_name_or_path


def test_nothing_is_overwritten(tmp_path):
    write_csv(tmp_path / "r.csv", rows("train"))
    initialise("r.csv")
    before = Path("r.yaml").read_text()
    with pytest.raises(UserError, match="there already"):
        initialise("r.csv")
    assert Path("r.yaml").read_text() == before
    with pytest.raises(UserError, match="there already"):  # another recipe, whose split files are there
        initialise("r.csv", output=Path("r.yml"))
    assert not Path("r.yml").exists()


def test_rows_that_are_equal_but_for_their_answer_stay_on_one_side(tmp_path):
    own = [{"text": text, "label": label} for text in texts(60, 3) for label in ("red", "blue")]
    write_csv(tmp_path / "r.csv", own)
    _, found = read(initialise("r.csv"))
    prompts = [{example.prompt for example in own} for own in found.examples.values()]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]


def test_entities_of_a_conll_file(tmp_path):
    draw = random.Random(0)
    sentences = [f"takes O\n{draw.randint(100, 99999)} B-DOSE\nof O\naspirin{n} B-DRUG\n" for n in range(120)]
    Path("notes.conll").write_text("\n".join(sentences), encoding="utf-8")
    recipe, found = read(initialise("notes.conll"))
    assert (recipe.task.type, recipe.task.labels) == ("ner", ["DOSE", "DRUG"])
    assert found.examples["train"][0].answer.startswith("DOSE: ")


def test_korean_rows_get_their_language_and_models_that_know_it(tmp_path):
    own = [{"text": f"{n * 7919}번 손님이 오늘 카드를 잃어버렸습니다", "label": ("분실", "문의")[n % 2]} for n in range(120)]
    write_rows(tmp_path / "bank.jsonl", own)
    recipe, found = read(initialise("bank.jsonl"))
    assert recipe.task.language == "ko" and "Qwen" in recipe.teacher.model_name_or_path
    assert found.examples["train"][0].prompt.startswith("글에 맞는 레이블")


def test_many_labels_are_not_listed_in_every_prompt(tmp_path):
    own = [{"text": text, "label": f"intent {n % 30}"} for n, text in enumerate(texts(300, 5))]
    write_rows(tmp_path / "bank.jsonl", own)
    recipe, found = read(initialise("bank.jsonl"))
    assert recipe.data.template == "Text: {text}\nLabel:" and "intent" not in found.examples["train"][0].prompt


def test_conversations_are_told_by_their_answers(tmp_path):
    def chat(text, answer):
        return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}

    write_rows(tmp_path / "few.jsonl", [chat(text, LABELS[n % 3]) for n, text in enumerate(texts(90, 1))])
    write_rows(tmp_path / "free.jsonl", [chat(text, f"it is about {text.split()[1]} {n}") for n, text in enumerate(texts(90, 2))])
    assert [read(initialise(name))[0].task.type for name in ("few.jsonl", "free.jsonl")] == ["classification", "qa"]
    assert load_recipe("few.yaml").recipe.data.chat_template


def test_what_is_missing_is_said(tmp_path):
    teacher, _ = save_pair(tmp_path / "models")
    own = rows("train")
    own[5]["label"] = ""
    write_rows(tmp_path / "r.jsonl", own)
    sketch = initialise("r.jsonl", str(teacher))
    load_recipe(sketch.path)
    assert any("tutelage shrink" in line for line in sketch.missing) and any("empty" in line for line in sketch.missing)


def test_a_large_teacher_gets_adapters_and_a_student_of_its_family(tmp_path):
    write_rows(tmp_path / "r.jsonl", rows("train"))
    recipe, _ = read(initialise("r.jsonl", "Qwen/Qwen2.5-7B-Instruct"))
    assert recipe.teacher.lora is not None and recipe.student.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"


def test_leaks_between_splits_are_left_out(tmp_path):
    for split in ("train", "test"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows(split))
    with (tmp_path / "data" / "train.jsonl").open("a") as file:
        file.write(json.dumps({**rows("test")[0], "id": "again"}) + "\n")
    assert load_recipe(initialise("data").path).recipe.data.overlap == "drop"


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}, "qa"),
        ({"question": "Which?", "context": "Takes aspirin.", "answers": ["aspirin"]}, "qa"),
        ({"text": "Takes aspirin.", "entities": [["drug", "aspirin"]]}, "ner"),
        ({"body": "Takes aspirin daily", "spans_found": [{"label": "drug", "start": 6, "end": 13}]}, "ner"),
        ({"sentence": "Takes aspirin.", "intent": "drug"}, "classification"),
    ],
)
def test_the_task_follows_from_the_columns(row, task):
    own = [
        {key: f"{value} {n}" if key in ("question", "body", "sentence", "text") else value for key, value in row.items()}
        for n in range(30)
    ]
    assert guess_rows(own).task == task


def test_a_question_and_an_answer_under_other_names():
    own = [{"query": f"what is the number after {n}, please", "reply": f"it is {n + 1}"} for n in range(60)]
    guess = guess_rows(own)
    assert (guess.task, guess.columns) == ("qa", {"prompt": "query", "completion": "reply"})


def test_columns_that_tell_nothing_are_refused():
    with pytest.raises(DataError, match="rename two of them"):
        guess_rows([{"a": n, "b": n * 2} for n in range(30)])
