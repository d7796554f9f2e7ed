"""A first recipe from a file: the reader accepts it, the doctor has nothing to say about it, and nothing is
overwritten."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from helpers.project import LABELS, Command, write_rows
from helpers.sound_project import rows, texts
from helpers.tiny import save_pair, tiny_model
from helpers.tokenizers_made import unigram_tokenizer
from tutelage.cli.guess_columns import guess_rows
from tutelage.cli.init import initialise
from tutelage.cli.recipe_settings import learning_rate
from tutelage.data.dataset import load_rows
from tutelage.doctor import examine_file, exit_code
from tutelage.errors import DataError, UserError
from tutelage.recipe.load import load_recipe
from tutelage.utils.format import parameter_count


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


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


def test_different_tokenizers_are_said_with_what_they_cost(tmp_path):
    teacher, student = save_pair(tmp_path / "models")
    for part in ("train", "validation", "test"):
        write_rows(tmp_path / "data" / f"{part}.jsonl", rows(part))
    assert "next byte" not in initialise("data", str(teacher), str(student)).text
    tokenizer = unigram_tokenizer()
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(student)
    tokenizer.save_pretrained(student)
    sketch = initialise("data", str(teacher), str(student), output=Path("other.yaml"))
    assert "student:  # its tokenizer is not the teacher's" in sketch.text
    assert any("compared by the next byte" in line for line in sketch.found)


def test_a_folder_with_splits_is_taken_as_it_is(tmp_path):
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows(split))
    sketch = initialise("data", output=Path("recipes/one.yaml"))
    recipe, _ = read(sketch)
    assert recipe.data.dataset == "data" and not Path("recipes/one_data").exists()
    assert (recipe.task.language, recipe.data.max_length) == ("en", 96)
    assert "SmolLM2" in recipe.teacher.model_name_or_path


def test_nothing_is_overwritten(tmp_path):
    write_csv(tmp_path / "r.csv", rows("train"))
    initialise("r.csv")
    before = Path("r.yaml").read_text()
    with pytest.raises(UserError, match="already exists"):
        initialise("r.csv")
    assert Path("r.yaml").read_text() == before
    Path("r_data/test.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="already exists"):  # another recipe, whose split files are there
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
    own = [
        {"text": f"{n * 7919}번 손님이 오늘 카드를 잃어버렸습니다", "label": ("분실", "문의")[n % 2]}
        for n in range(120)
    ]
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
    write_rows(
        tmp_path / "free.jsonl",
        [chat(text, f"it is about {text.split()[1]} {n}") for n, text in enumerate(texts(90, 2))],
    )
    assert [read(initialise(name))[0].task.type for name in ("few.jsonl", "free.jsonl")] == ["classification", "qa"]
    assert load_recipe("few.yaml").recipe.data.chat_template


def test_what_is_missing_is_said(tmp_path):
    teacher, _ = save_pair(tmp_path / "models")
    own = rows("train")
    own[5]["label"] = ["red", "blue"]
    write_rows(tmp_path / "r.jsonl", own)
    sketch = initialise("r.jsonl", str(teacher))
    load_recipe(sketch.path)
    assert any("tutelage shrink" in line for line in sketch.missing) and any(
        "multi-label" in line for line in sketch.missing
    )


def test_the_proposed_student_can_be_made_as_proposed(tmp_path, monkeypatch, capsys):
    teacher, _ = save_pair(tmp_path / "models")
    write_rows(tmp_path / "r.jsonl", rows("train"))
    (line,) = initialise("r.jsonl", str(teacher)).missing
    proposed, heal = re.findall(r"`(?:tutelage )?([^`]+)`", line)
    more = [*heal.split(), "--tokens", "2000", "--block-length", "32"]
    command = Command(monkeypatch, capsys)
    assert command(*proposed.split(), *more) == 0
    sizes = json.loads(Path("models/teacher-small/healing.json").read_text())["parameters"]
    assert parameter_count(sizes["pruned"]) in line and parameter_count(sizes["unpruned"]) in line
    assert load_recipe("r.yaml").recipe.student.model_name_or_path == "models/teacher-small"


def test_a_large_teacher_gets_adapters_and_a_student_of_its_family(tmp_path):
    write_rows(tmp_path / "r.jsonl", rows("train"))
    recipe, _ = read(initialise("r.jsonl", "Qwen/Qwen2.5-7B-Instruct"))
    assert recipe.teacher.lora is not None and recipe.student.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize(
    ("weights", "rate", "pruned_rate"),
    [
        (1e6, 3e-3, 3e-3),
        (50e6, 1e-3, 1e-3),
        (81e6, 2e-4, 5e-4),
        (135e6, 2e-4, 5e-4),
        (494e6, 1e-4, 2.5e-4),
        (3e9, 2e-5, 5e-5),
    ],
)
def test_the_larger_the_student_the_smaller_its_rate_and_a_pruned_one_has_more(weights, rate, pruned_rate):
    assert learning_rate(weights) == rate
    assert learning_rate(weights, pruned=True) == pytest.approx(pruned_rate)


def test_a_validation_file_alone_is_the_test_split_and_init_says_so(tmp_path):
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", rows(split))
    files = {split: Path(f"{split}.jsonl") for split in ("train", "validation")}
    sketch = initialise(None, "someone/a-1B", "someone/b-1B", files=files)
    assert load_recipe(sketch.path).recipe.data.test == ["validation.jsonl"]
    assert any("validation.jsonl is the test split" in line for line in sketch.found)


def test_rates_are_written_by_the_sizes_of_both_models(tmp_path):
    write_rows(tmp_path / "r.jsonl", rows("train"))
    names = ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"]
    recipe, _ = read(initialise("r.jsonl", *names))
    assert (recipe.teach.trainer["learning_rate"], recipe.distill.trainer["learning_rate"]) == (2e-4, 5e-5)
    assert "learning_rate: 5.0e-5}  # by the student's size" in Path("r.yaml").read_text()


def test_a_student_that_is_still_to_be_pruned_has_half_its_teachers_weights(tmp_path):
    write_rows(tmp_path / "r.jsonl", rows("train"))
    recipe, _ = read(initialise("r.jsonl", "someone/model-135M", None, tmp_path / "a.yaml"))
    assert recipe.distill.trainer["learning_rate"] == 5e-4


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
        {
            key: f"{value} {n}" if key in ("question", "body", "sentence", "text") else value
            for key, value in row.items()
        }
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


# --- files as people have them ---


def tickets(count: int = 120) -> list[dict]:
    return [
        {"Message": f'{text}, "quoted"\nsecond line', "Category": LABELS[n % 3]}
        for n, text in enumerate(texts(count, 4))
    ]


def test_a_spreadsheet_saved_with_semicolons_is_read(tmp_path):
    with Path("t.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["Message", "Category"], delimiter=";", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(tickets())
    recipe, found = read(initialise("t.csv"))
    assert recipe.data.columns == {"text": "Message", "label": "Category"}
    assert sum(len(own) for own in found.examples.values()) == 120
    assert all("second line" in example.prompt for example in found.examples["train"])


def test_utf_16_is_read_where_a_mark_names_it_and_named_where_none_does(tmp_path):
    table = "text\tlabel\n" + "".join(f"{text}\t{LABELS[n % 3]}\n" for n, text in enumerate(texts(60, 4)))
    Path("t.csv").write_bytes(table.encode("utf-16"))  # Excel's Unicode Text
    assert sum(len(own) for own in read(initialise("t.csv"))[1].examples.values()) == 60
    Path("u.csv").write_bytes(table.encode("utf-16-le"))
    with pytest.raises(DataError, match=r"UTF-16-LE.*data.encoding=utf-16-le.*iconv -f UTF-16-LE"):
        initialise("u.csv")


def test_a_table_without_names_of_columns_is_refused(tmp_path):
    lines = [f'"{text}",{LABELS[n % 3]}\n' for n, text in enumerate(texts(60, 4))]
    Path("t.csv").write_text("".join(lines))
    with pytest.raises(DataError, match=r"first line.*names of the columns.*header_missing"):
        initialise("t.csv")


def test_dates_and_ticket_numbers_are_no_labels(tmp_path):
    own = [
        {
            "Ticket ID": f"T-{n:036}",
            "Customer Message": text,
            "Routed To": LABELS[n % 3],
            "Opened": f"2024-01-{n % 28 + 1:02}",
        }
        for n, text in enumerate(texts(120, 4))
    ]
    write_csv(tmp_path / "t.csv", own)
    assert guess_rows(own).columns == {"text": "Customer Message", "label": "Routed To"}


def test_entities_under_the_name_of_a_label_are_entities(tmp_path):
    own = [{"text": f"number {n * 37} is it", "label": [[7, 7 + len(str(n * 37)), "ID"]]} for n in range(60)]
    write_rows(tmp_path / "doccano.jsonl", own)
    recipe, found = read(initialise("doccano.jsonl"))
    assert (recipe.task.type, recipe.data.columns) == ("ner", {"entities": "label"})
    assert found.examples["train"][0].answer.startswith("ID: ")


def test_rows_without_an_answer_are_left_out_of_the_split(tmp_path):
    own = [{"text": text, "label": LABELS[n % 3] if n % 10 else ""} for n, text in enumerate(texts(120, 4))]
    write_csv(tmp_path / "t.csv", own)
    sketch = initialise("t.csv")
    _, found = read(sketch)
    assert sketch.missing == []
    assert sum(len(one) for one in found.examples.values()) == 108
    assert any("12 of 120 rows have no answer" in line for line in sketch.found)


def test_a_validation_file_under_another_name_is_the_test(tmp_path):
    write_rows(tmp_path / "data" / "train.jsonl", rows("train"))
    write_rows(tmp_path / "data" / "dev.jsonl", rows("validation"))
    recipe, found = read(initialise("data"))
    assert recipe.data.test_split == "dev" and len(found.examples["test"]) == 60


def test_too_few_rows_to_split_are_refused(tmp_path):
    write_csv(tmp_path / "t.csv", tickets(2))
    with pytest.raises(DataError, match="2 rows"):
        initialise("t.csv")
    assert not Path("t_data").exists() and not Path("t.yaml").exists()
    Path("lines.txt").write_text("".join(f"{text}\tred\n" for text in texts(30, 2)))  # a table, read as CoNLL
    with pytest.raises(DataError, match=r"\.tsv"):
        initialise("lines.txt")


def test_a_single_label_is_told(tmp_path):
    write_csv(tmp_path / "t.csv", [{"text": text, "label": "ok"} for text in texts(120, 4)])
    assert any("one label" in line for line in initialise("t.csv").missing)


def test_questions_about_one_passage_stay_on_one_side(tmp_path):
    own = [
        {"question": f"Which word is number {k} of {n}?", "context": text, "answers": [text.split()[k]]}
        for n, text in enumerate(texts(90, 6))
        for k in range(1, 5)
    ]
    write_rows(tmp_path / "t.jsonl", own)
    _, found = read(initialise("t.jsonl"))
    passages = [{example.prompt.split("Question:")[0] for example in split} for split in found.examples.values()]
    assert not passages[0] & passages[1] and not passages[0] & passages[2] and not passages[1] & passages[2]


def test_enough_rows_are_held_out_where_there_are_enough(tmp_path):
    teacher, student = save_pair(tmp_path / "models")
    write_csv(tmp_path / "t.csv", [{"text": text, "label": LABELS[n % 3]} for n, text in enumerate(texts(260, 4))])
    checks = examine_file(initialise("t.csv", str(teacher), str(student)).path)
    assert exit_code(checks) == 0, [check for check in checks if check.status not in ("passed", "skipped")]


def test_nothing_is_said_of_lengths_of_rows_that_cannot_be_read(tmp_path):
    own = [{**row, "label": ["red", "blue"]} for row in rows("train")]
    write_rows(tmp_path / "data" / "train.jsonl", own)
    write_rows(tmp_path / "data" / "test.jsonl", rows("test"))
    sketch = initialise("data")
    assert any("multi-label" in line for line in sketch.missing)
    assert "max_length" not in sketch.text and "rows in ten" not in sketch.text


def test_what_was_guessed_is_said_in_a_line(tmp_path):
    write_csv(tmp_path / "t.csv", tickets())
    first = initialise("t.csv").found[0]
    assert "classification" in first and "Category has 3 values" in first


def test_a_small_batch_is_made_up_for_by_accumulation(tmp_path):
    own = [{"text": f"{text} " * 20, "label": LABELS[n % 3]} for n, text in enumerate(texts(400, 4))]
    write_csv(tmp_path / "t.csv", own)
    recipe, _ = read(initialise("t.csv"))
    arguments = recipe.trainer_arguments("teach")
    assert arguments["per_device_train_batch_size"] < 16
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == 16


def test_named_files_a_named_task_and_rows_without_labels(command, tmp_path):
    for name, part in (("a", "train"), ("b", "validation"), ("c", "test")):
        write_rows(tmp_path / f"{name}.jsonl", rows(part))
    write_rows(tmp_path / "more.jsonl", [{"text": f"another thing {n}"} for n in range(9)])
    words = ["--train", "a.jsonl", "--validation", "b.jsonl", "--test", "c.jsonl", "--unlabelled", "more.jsonl"]
    assert command("init", *words, "--task", "classification") == 0
    data = load_recipe("a.yaml").recipe.data
    assert (data.train, data.validation, data.test) == (["a.jsonl"], ["b.jsonl"], ["c.jsonl"])
    assert data.unlabelled == ["more.jsonl"]


@pytest.mark.parametrize(
    ("words", "found"), [([], "no rows were named"), (["a.jsonl", "--train", "a.jsonl"], "named twice")]
)
def test_rows_are_named_once(command, words, found):
    assert command("init", *words) == 2 and found in command.err and "DATA, or --train FILE" in command.err


def test_a_test_file_named_like_the_training_file_is_used(tmp_path):
    for name, part in (("train", "train"), ("dev", "validation"), ("test", "test")):
        write_rows(tmp_path / f"intents_{name}.jsonl", rows(part))
    data = read(initialise("intents_train.jsonl"))[0].data
    assert (data.validation, data.test) == (["intents_dev.jsonl"], ["intents_test.jsonl"])


@pytest.mark.parametrize("train", ["intents.jsonl", "intents_train.jsonl", "intents-training.jsonl"])
@pytest.mark.parametrize("folder", [False, True])
def test_files_named_alike_are_the_splits_of_one_set(tmp_path, train, folder):
    """The quickstart's own pair, intents.csv and intents_test.csv: its test rows were left out, and in a folder the
    test file was to be named as the training file."""
    mark = "-" if "-" in train else "_"
    for name, part in (
        (train, "train"),
        (f"intents{mark}dev.jsonl", "validation"),
        (f"intents{mark}test.jsonl", "test"),
    ):
        write_rows(tmp_path / "own" / name, rows(part))
    recipe, found = read(initialise("own" if folder else f"own/{train}"))
    assert recipe.data.train == [f"own/{train}"] and recipe.data.test == [f"own/intents{mark}test.jsonl"]
    assert recipe.data.validation == [f"own/intents{mark}dev.jsonl"] and len(found.examples["test"]) == len(
        rows("test")
    )


def test_bytes_beside_the_text_are_no_input(tmp_path):
    import pyarrow
    import pyarrow.parquet

    own = [{**row, "image": b"\xff\xd8" + bytes([n])} for n, row in enumerate(rows("train"))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(own), tmp_path / "r.parquet")
    recipe, found = read(initialise("r.parquet"))
    assert recipe.task.type == "classification" and found.examples["train"]
    assert "image" not in (tmp_path / "r_data" / "train.jsonl").read_text()


def test_the_advice_is_not_to_train_on_the_test_file(tmp_path):
    for name in ("a_test.jsonl", "b.jsonl", "c.jsonl"):
        write_rows(tmp_path / "own" / name, rows("train"))
    with pytest.raises(DataError, match=r"\(tutelage init own/b\.jsonl\)"):
        initialise("own")


@pytest.mark.parametrize("names", [("train-v1.1.json", "dev-v1.1.json"), ("eng.train", "eng.testa", "eng.testb")])
def test_squads_and_conlls_own_file_names_are_known_in_a_folder(tmp_path, names):
    for number, name in enumerate(names):
        if name.endswith(".json"):
            passages = [{"context": f"Ada {number} {n} lives in Paris.", "qas": [
                {"id": f"{number}-{n}", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 0}]}
            ]} for n in range(60)]  # fmt: skip
            text = json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": passages}]})
            text = text.replace('"answer_start": 0', f'"answer_start": {passages[0]["context"].index("Paris")}')
        else:
            text = "".join(f"Ada{number}{n} B-PER\nlives O\nin O\nParis B-LOC\n\n" for n in range(60))
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    recipe, found = read(initialise("data"))
    assert recipe.task.type == ("qa" if len(names) == 2 else "ner")
    assert all(found.examples.values())


def test_a_task_that_the_columns_do_not_fit_is_refused_and_prompts_with_answers_fit_all(tmp_path):
    write_rows(tmp_path / "r.jsonl", rows("train"))
    with pytest.raises(DataError, match="the rows look like classification"):
        initialise("r.jsonl", task="ner")
    write_rows(tmp_path / "p.jsonl", [{"prompt": f"thing {n}", "completion": LABELS[n % 3]} for n in range(60)])
    assert read(initialise("p.jsonl", task="qa"))[0].task.type == "qa"


def test_own_checkpoints_give_a_recipe_without_fine_tuning(tmp_path):
    teacher, student = save_pair(tmp_path / "models")
    for step in (4, 8):
        shutil.copytree(teacher, tmp_path / f"mine/checkpoint-{step}")
    for part in ("train", "validation", "test"):
        write_rows(tmp_path / "data" / f"{part}.jsonl", rows(part))
    recipe, _ = read(initialise("data", None, str(student), checkpoints=Path("mine")))
    assert recipe.teach.checkpoints == "mine" and not recipe.teach.trainer
    assert recipe.teacher.model_name_or_path == "mine/checkpoint-4"
    assert exit_code(examine_file(Path("data.yaml"))) in (0, 1)
