"""From files to a run's rows: what readers keep and refuse, prompts to the letter, splits, samples, ids and label sets.

The shapes one by one are in test_shapes.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from tutelage.config import load_recipe
from tutelage.errors import DataError
from tutelage.recipe_schema import Data, Recipe, Task
from tutelage.rows import fingerprint, load_rows
from tutelage.shapes import SHAPES, content_id, detect_shape, example_from_row
from tutelage.sources import read_hub, read_rows
from tutelage.tasks import template_for

CLASSIFY, NER, QA = Task(type="classification"), Task(type="ner"), Task(type="qa")


def example(row, task=QA, labels=None, need_answer=True, **data):
    data = Data(**data)
    return example_from_row(row, where="f:1", split="train", task=task, data=data, labels=labels, need_answer=need_answer)


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows([str(path)])


def recipe(folder, task=CLASSIFY, **data):
    model = {"model_name_or_path": "m"}
    return Recipe(name="r", output_dir="o", task=task, data={"dataset": str(folder)} | data, teacher=model, student=model)


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def labelled(*texts, label="a"):
    return [{"text": text, "label": label} for text in texts]


# --- files ---


@pytest.mark.parametrize("text", ['[{"x": 1}, {"x": 2}]', '{"version": "1", "rows": [{"x": 1}, {"x": 2}]}', '{"x": 1}\n{"x": 2}\n'])
def test_json_as_a_list_an_object_with_one_list_or_lines(tmp_path, text):
    assert [row for row, _ in read(tmp_path / "a.json", "\ufeff" + text)] == [{"x": 1}, {"x": 2}]


def test_a_csv_cell_may_hold_commas_quotes_and_line_breaks(tmp_path):
    ((row, where),) = read(tmp_path / "a.csv", '\ufeffid,text\n007,"He said ""no"",\nthen left"\n')
    assert row == {"id": "007", "text": 'He said "no",\nthen left'}
    assert where.endswith("a.csv:3")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label\none,a,b\n", ["a.csv:2", "3 cells", "2 columns"]),
        ("a.csv", "text,label\none\n", ["a.csv:2", "1 cells", "2 columns"]),
        ("a.csv", "text,text\none,two\n", ["a.csv:1", "'text'", "twice"]),
        ("a.csv", "text,label\n", ["a.csv", "empty"]),
        ("a.csv", "text,label\n배송,a\n".encode("cp949"), ["a.csv", "not UTF-8", "CP949"]),
        ("a.json", "5", ["a.json", "list of rows", "int"]),
        ("a.json", '[{"x": 1}, 2]', ["a.json:row 2", "int"]),
        ("a.json", '[{"x": 1},\n {"x"}]', ["a.json:2", "JSON"]),
        ("a.jsonl", '{"x": 1}\n[1]\n', ["a.jsonl:2", "list"]),
        ("a.conll", "Ann B-PER\nran\n", ["a.conll:2", "'ran'", "no tag"]),
        ("a.parquet", "no parquet", ["a.parquet", "Parquet"]),
        ("a.xlsx", "x", ["a.xlsx", ".csv"]),
    ],
)
def test_files_that_cannot_be_read_say_where_and_why(tmp_path, name, content, words):
    with pytest.raises(DataError) as error:
        read(tmp_path / name, content)
    assert [word for word in words if word not in str(error.value)] == []


FEATURES = Features(
    {
        "text": Value("string"),
        "tokens": Sequence(Value("string")),
        "ner_tags": Sequence(ClassLabel(names=["O", "B-PER"])),
        "label": ClassLabel(names=["no", "yes"]),
        "entities": [{"start": Value("int64"), "end": Value("int64"), "label": ClassLabel(names=["drug", "dose"])}],
    }
)
TABLE = {
    "text": ["Ann ran"],
    "tokens": [["Ann", "ran"]],
    "ner_tags": [[1, 0]],
    "label": [-1],
    "entities": [[{"start": 0, "end": 3, "label": 1}]],
}


def hub(monkeypatch, splits):
    """The hub, holding a data set with these splits in memory."""
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split, revision: splits[split])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **kwargs: list(splits))


def test_label_numbers_at_any_depth_become_names_from_the_hub_and_from_its_parquet_files(tmp_path, monkeypatch):
    table = Dataset.from_dict(TABLE, features=FEATURES)
    hub(monkeypatch, {"train": table})
    table.to_parquet(tmp_path / "a.parquet")
    for ((row, _),) in (read_hub("some/set", None, "train", None), read_rows([str(tmp_path / "a.parquet")])):
        assert row["ner_tags"] == ["B-PER", "O"]
        assert row["entities"] == [{"start": 0, "end": 3, "label": "dose"}]
        assert row["label"] is None  # -1: the hub's hidden test labels


def test_tag_numbers_without_names_are_refused_instead_of_read_as_no_entity():
    with pytest.raises(DataError, match="'3'"):
        example({"tokens": ["Ann", "ran"], "tags": [3, 0]}, NER)


def test_a_file_wins_over_the_hubs_split_and_makes_results_stale(tmp_path, monkeypatch):
    table = Dataset.from_list(labelled("hub one", "hub two"))
    hub(monkeypatch, {"train": table, "test": table})
    folder = write(tmp_path / "data", test=labelled("mine"), validation=labelled("held"))
    files = {"test": [str(folder / "test.jsonl")], "validation": [str(folder / "validation.jsonl")]}
    run = recipe("some/set", **files)
    found = load_rows(run).examples
    assert (len(found["train"]), len(found["test"])) == (2, 1) and "mine" in found["test"][0].prompt
    before = fingerprint(run)
    write(folder, test=labelled("other"))
    assert before["hub"] == fingerprint(run)["hub"] and before != fingerprint(run)


# --- prompts ---


@pytest.mark.parametrize(
    ("task", "row", "prompt", "answer"),
    [
        (QA, {"prompt": "2 + 2 =", "completion": " 4 "}, "2 + 2 =", "4"),
        (QA, {"prompt": "2 + 2 =", "completion": 4}, "2 + 2 =", "4"),
        (QA, {"instruction": "Add.", "input": "2, 2", "output": 4}, "Add.\n2, 2", "4"),
        (CLASSIFY, {"text": "Hi", "label": 0}, "Choose the label that fits the text: 0, 1.\nText: Hi\nLabel:", "0"),
        (CLASSIFY, {"text": "안녕", "label": "1", "language": "ko"}, "글에 맞는 레이블을 고르세요: 0, 1.\n글: 안녕\n레이블:", "1"),
        (
            QA,
            {"question": "Where?", "context": "In Rome.", "answers": {"text": ["Rome", "in Rome"], "answer_start": [3, 0]}},
            "Answer the question with words from the text.\nText: In Rome.\nQuestion: Where?\nAnswer:",
            "Rome",
        ),
        (
            QA,
            {"question": "2 + 2?", "choices": {"text": ["1", "4"], "label": ["1", "2"]}, "answer": "1"},  # ARC: its label
            "Answer with the letter of the right choice.\nQuestion: 2 + 2?\nA. 1\nB. 4\nAnswer:",
            "A",
        ),
        (
            QA,
            {"question": "2 + 2?", "choices": '["3", "4"]', "answer": "4"},  # a CSV's cell
            "Answer with the letter of the right choice.\nQuestion: 2 + 2?\nA. 3\nB. 4\nAnswer:",
            "B",
        ),
    ],
)
def test_prompts_and_answers_to_the_letter(task, row, prompt, answer):
    found = example(row, task, labels=["0", "1"])
    assert (found.prompt, found.answer) == (prompt, answer)


def test_a_choice_named_by_the_data_sets_own_labels_comes_before_an_equal_text():
    row = {"question": "?", "choices": {"text": ["2", "4"], "label": ["1", "2"]}, "answer": "2"}
    assert example(row).answer == "B"


def test_slots_in_strings_under_other_names():
    row = {"input": "play Purple Rain by Prince", "intent": "PlayMusic", "slots": "O B-song I-song O B-artist"}
    found = example(row, NER, columns={"tokens": "input", "tags": "slots"}, template="{text}\nSlots:")
    assert (found.prompt, found.answer) == ("play Purple Rain by Prince\nSlots:", "song: Purple Rain\nartist: Prince")
    by_intent = example(row, CLASSIFY, columns={"text": "input", "label": "intent"}, template="{text}\nIntent:")
    assert (by_intent.prompt, by_intent.answer) == ("play Purple Rain by Prince\nIntent:", "PlayMusic")


def test_conversational_prompt_and_completion():
    row = {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "greeting"}]}
    found = example(row, chat_template=True)
    assert (found.prompt, found.answer) == ([{"role": "user", "content": "Hi"}], "greeting")


def test_a_plain_prompt_becomes_one_user_turn_of_the_chat_template():
    found = example({"text": "Hi", "label": "a"}, CLASSIFY, chat_template=True, template="{text}?", system="Be brief.")
    assert found.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]


def test_rows_to_predict_need_no_answer_column():
    assert example({"text": "Hi"}, CLASSIFY, need_answer=False, template="{text}:").prompt == "Hi:"
    assert example({"shop": "A"}, CLASSIFY, need_answer=False, template="{shop}:").prompt == "A:"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": None, "completion": "a"}, "prompt is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]}, "no text"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["a"]}]}, "no text"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no message in front"),
        ({"messages": [{"role": "user", "content": "a"}]}, "answer is empty"),
        ({"question": "?", "choices": "3|4", "answer": "4"}, "JSON list"),
        ({"question": "?", "choices": ["3", "4"], "answer": 2}, "none of the 2 choices"),
        ({"question": "?", "context": "c", "answers": {"text": [], "answer_start": []}}, "answer is empty"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"text": "a", "entities": [{"text": "a"}]}, "no type or no text"),
    ],
)
def test_rows_that_are_not_what_they_should_be(row, words):
    with pytest.raises(DataError, match=words) as error:
        example(row, chat_template=True)
    assert str(error.value).startswith("f:1: ")


@pytest.mark.parametrize("template", ["{text} {", "{text:d}", "{}", "{text.upper}"])
def test_templates_that_cannot_be_filled_in(template):
    with pytest.raises(DataError, match=r"f:1: .*template"):
        example({"text": "a", "label": "b"}, CLASSIFY, template=template)


# --- splits, samples, ids ---


def test_rows_of_equal_prompts_stay_on_one_side_though_other_columns_differ(tmp_path):
    rows = [{"text": f"thing {n // 4}", "label": "ab"[n % 2], "seen": f"day {n}"} for n in range(40)]  # ten texts, four rows each
    found = load_rows(recipe(write(tmp_path, train=rows, test=labelled("other")), validation_share=0.2))
    assert found.notes == ["no validation rows given: 8 of 40 training rows (20%, seed 0) are held out"]
    train, held = ({e.prompt for e in found.examples[split]} for split in ("train", "validation"))
    assert (len(train), len(held)) == (8, 2) and not train & held


def test_another_seed_holds_out_and_samples_other_rows(tmp_path):
    run = recipe(write(tmp_path, train=labelled(*"abcdefghijklmnopqrst"), test=labelled("other")), max_train_rows=9)
    first, again, other = (load_rows(run.model_copy(update={"seed": seed})).examples for seed in (0, 0, 1))
    assert first == again and len(first["train"]) == 9
    for split in ("train", "validation"):
        assert [e.id for e in first[split]] != [e.id for e in other[split]]
    texts = [e.prompt.split("Text: ")[1][0] for e in first["train"]]
    assert texts == sorted(texts)


def test_without_ids_a_hash_names_a_row_wherever_it_stands(tmp_path):
    found = load_rows(recipe(write(tmp_path, train=labelled("x", "y", "x"), test=labelled("z"), validation=labelled("v"))))
    one, two, three = found.examples["train"]
    assert one.id == content_id(one.prompt, "a") and len(one.id) == 16
    assert three.id == f"{one.id}-2" and two.id not in (one.id, three.id)


def test_mapped_ids_are_kept_and_may_stand_once(tmp_path):
    rows = [{"ref": f"00{n}", "text": f"t{n}", "label": "a"} for n in range(3)]
    write(tmp_path, train=rows, validation=[{**rows[0], "ref": "v", "text": "v"}], test=[{**rows[0], "ref": "z", "text": "z"}])
    run = recipe(tmp_path, columns={"id": "ref"})
    assert [e.id for e in load_rows(run).examples["train"]] == ["000", "001", "002"]
    write(tmp_path, test=[{**rows[0], "text": "z"}])
    with pytest.raises(DataError, match=r"000 at .*test\.jsonl:1"):
        load_rows(run)


def test_a_mapped_column_that_is_not_there_names_the_nearest(tmp_path):
    write(tmp_path, train=[{"text": "a", "label": "a", "domain": "d"}], validation=labelled("v"), test=labelled("z"))
    with pytest.raises(DataError, match=r"data\.columns\.subdomain: 'domian'; did you mean 'domain'"):
        load_rows(recipe(tmp_path, columns={"subdomain": "domian"}))


@pytest.mark.parametrize(("one", "two"), [("का", "की"), ("3 + 4", "3 < 4"), ("👍", "👎")])
def test_texts_that_differ_in_vowel_signs_or_symbols_are_not_the_same(tmp_path, one, two):
    found = load_rows(recipe(write(tmp_path, train=labelled(one), test=labelled(two), validation=labelled("v"))))
    assert len(found.examples["test"]) == 1


def test_texts_that_differ_in_width_case_and_punctuation_are_the_same(tmp_path):
    write(tmp_path, train=labelled("ＡＢＣ, 1"), validation=labelled("v"), test=labelled("abc 1!"))
    with pytest.raises(DataError, match="training rows that are test rows too"):
        load_rows(recipe(tmp_path))


# --- label sets ---


def test_entity_types_stand_in_the_prompt_as_prediction_will_see_them(tmp_path):
    rows = {split: [{"text": f"{split} aspirin", "entities": [["drug", "aspirin"]]}] for split in ("train", "validation", "test")}
    found = load_rows(recipe(write(tmp_path, **rows), NER))
    assert found.labels == ["drug"]
    assert "Types: drug. Write none" in found.examples["train"][0].prompt
    later = example({"text": "train aspirin"}, NER, labels=found.labels, need_answer=False)
    assert later.prompt == found.examples["train"][0].prompt


def test_labels_of_prompt_and_completion_rows_stand_in_templates(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": "ab"[n % 2]} for n in range(2)]
    write(tmp_path, train=rows, validation=[{"prompt": "v", "completion": "a"}], test=[{"prompt": "z", "completion": "b"}])
    found = load_rows(recipe(tmp_path, template="{labels} | {prompt}"))
    assert found.examples["test"][0].prompt == "a, b | z"


def test_labels_are_those_of_all_training_rows_sampled_or_held_out(tmp_path):
    rows = [{"text": f"t{n}", "label": f"label {n}"} for n in range(10)]
    found = load_rows(recipe(write(tmp_path, train=rows, test=[{"text": "z", "label": "label 9"}]), max_train_rows=2))
    assert len(found.labels) == 10 and len(found.examples["validation"]) == 1


def test_task_labels_win_over_the_file_beside_the_data(tmp_path):
    write(tmp_path, train=labelled("x"), validation=labelled("v"), test=labelled("z"))
    (tmp_path / "task.json").write_text('{"labels": ["a", "b"]}')
    assert load_rows(recipe(tmp_path)).labels == ["a", "b"]
    assert load_rows(recipe(tmp_path, Task(type="classification", labels=["c", "a"]))).labels == ["c", "a"]


@pytest.mark.parametrize(("content", "words"), [("{", "task.json"), ('{"labels": "a"}', "list"), ("[]", "object")])
def test_a_label_file_that_cannot_be_read(tmp_path, content, words):
    write(tmp_path, train=labelled("x"), validation=labelled("v"), test=labelled("z"))
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(DataError, match=words):
        load_rows(recipe(tmp_path))


# --- docs/your-own-data.md ---

PAGE = (Path(__file__).parents[1] / "docs" / "your-own-data.md").read_text(encoding="utf-8")


def test_every_row_on_the_page_is_of_the_shape_it_stands_for():
    rows = re.findall(r"^\| ([\w, ]+) \| (.+?) \| `(\{.+\})` \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(SHAPES)
    for (task, columns, text), shape in zip(rows, SHAPES, strict=True):
        row = json.loads(text)
        assert detect_shape(row) == shape and all(f"`{name}`" in columns for name in row)
        kind = "classification" if task.startswith("any") else task
        assert example(row, Task(type=kind), chat_template="chat" in task).answer


def test_every_recipe_on_the_page_loads(tmp_path):
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    assert len(blocks) >= 9
    model = {"model_name_or_path": "m"}
    for block in blocks:
        whole = {"task": {"type": "classification"}, "teacher": model, "student": model} | block
        whole["data"] = {"train": "a.csv", "test": "b.csv"} | whole.get("data", {})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
        assert load_recipe(tmp_path / "recipe.yaml").recipe


def test_the_default_prompts_on_the_page_are_the_codes():
    for arguments in (("classification", None), ("ner", None), ("qa", None), ("qa", None, True)):
        assert f"`{template_for(*arguments)}`".replace("\n", "\\n") in PAGE


def test_the_csv_that_opens_the_page(tmp_path):
    for name, text in (("reviews", "bad,1\ngood,5\n"), ("reviews_test", "fine,5\n")):
        (tmp_path / f"{name}.csv").write_text("review,stars\n" + text)
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    data = block["data"] | {split: str(tmp_path / block["data"][split]) for split in ("train", "test")}
    found = load_rows(recipe(tmp_path, **data | {"dataset": None, "validation": data["test"]}))
    assert [(e.prompt, e.answer) for e in found.examples["train"]] == [("Review: bad\nStars:", "1"), ("Review: good\nStars:", "5")]
