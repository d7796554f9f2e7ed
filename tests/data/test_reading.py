"""From files to rows and prompts: what readers keep and refuse, prompts to the letter.

The row formats are in test_row_formats.py, splits and label sets in test_dataset.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from helpers.files import CLASSIFY, NER, QA, example, labelled, read, recipe, write
from tutelage.data.dataset import load_rows
from tutelage.data.readers import SPLIT_NAMES, find_files, read_hub, read_rows
from tutelage.data.row_formats import example_from_row
from tutelage.data.splits import data_fingerprint
from tutelage.errors import DataError
from tutelage.recipe.schema import Data, Task

# --- files ---


@pytest.mark.parametrize(
    "text", ['[{"x": 1}, {"x": 2}]', '{"version": "1", "rows": [{"x": 1}, {"x": 2}]}', '{"x": 1}\n{"x": 2}\n']
)
def test_json_as_a_list_an_object_with_one_list_or_lines(tmp_path, text):
    assert [row for row, _ in read(tmp_path / "a.json", "\ufeff" + text)] == [{"x": 1}, {"x": 2}]


def test_a_csv_cell_may_hold_commas_quotes_and_line_breaks(tmp_path):
    ((row, place),) = read(tmp_path / "a.csv", '\ufeffid,text\n007,"He said ""no"",\nthen left"\n')
    assert row == {"id": "007", "text": 'He said "no",\nthen left'}
    assert str(place).endswith("a.csv:3")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label\none,a,b\n", ["a.csv:2", "3 cells", "2 columns"]),
        ("a.csv", "text,label\none\n", ["a.csv:2", "1 cells", "2 columns"]),
        ("a.csv", "text,text\none,two\n", ["a.csv:1", "'text'", "column_repeated"]),
        ("a.csv", "text,label\n", ["a.csv", "empty"]),
        ("a.csv", 'text,label\n"he" said,x\n', ["a.csv:2", "CSV", "table_invalid"]),
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


def test_endings_in_capitals_and_cells_longer_than_the_librarys_limit(tmp_path):
    assert read(tmp_path / "a.JSONL", '{"x": 1}\n')[0][0] == {"x": 1}
    long = "x" * 200_000
    assert read(tmp_path / "a.CSV", f"x,y\n{long},1\n")[0][0]["x"] == long
    assert read(tmp_path / "a.TSV", "x\ty\n1\t2\n")[0][0] == {"x": "1", "y": "2"}


def test_a_tsv_without_quoting_is_read_as_it_stands(tmp_path):
    found = read(tmp_path / "a.tsv", 'text\tlabel\n"Hello" he said\tx\n5" pipe\ty\n')
    assert [row["text"] for row, _ in found] == ['"Hello" he said', '5" pipe']
    assert read(tmp_path / "b.tsv", 'text\tlabel\n"a\tb"\tx\n')[0][0] == {"text": "a\tb", "label": "x"}
    with pytest.raises(DataError, match=r"a\.tsv:3: 1 cells"):
        read(tmp_path / "a.tsv", 'text\tlabel\n"Hello" he said\tx\nlost\n')


def test_squads_nested_json_is_one_row_a_question(tmp_path):
    qas = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
        {"id": "2", "question": "What?"},
    ]
    document = {"title": "T", "paragraphs": [{"context": "Ann ran.", "qas": qas}]}
    rows = [row for row, _ in read(tmp_path / "a.json", json.dumps({"version": "1", "data": [document]}))]
    assert [(row["id"], row["context"], row["title"]) for row in rows] == [
        ("1", "Ann ran.", "T"),
        ("2", "Ann ran.", "T"),
    ]
    assert example(rows[0]).answer == "Ann"
    assert [row for row, _ in read(tmp_path / "b.json", json.dumps(document))] == rows


def test_one_row_as_a_json_object_and_several_tables(tmp_path):
    row = {"question": "?", "choices": ["3", "4"], "answer": "B", "entities": [{"type": "a"}]}
    assert [found for found, _ in read(tmp_path / "a.json", json.dumps(row))] == [row]
    with pytest.raises(DataError, match="train, test; save each in a file"):
        read(tmp_path / "b.json", '{"train": [{"x": 1}], "test": [{"x": 2}]}')


def test_comments_and_tabs_in_conll(tmp_path):
    text = "# id = 7\n# text = blood type O\nNew York\tB-LOC\n#\tO\n\n# a remark\n#1 O\n\u3000 O\n"
    rows = read(tmp_path / "a.conll", text)
    assert rows[0][0] == {"tokens": ["New York", "#"], "tags": ["B-LOC", "O"]} and str(rows[0][1]).endswith(":3")
    assert rows[1][0] == {"tokens": ["#1", "\u3000"], "tags": ["O", "O"]}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (
            ["train.jsonl", "dev.csv", "test.json"],
            {"train": ["train.jsonl"], "validation": ["dev.csv"], "test": ["test.json"]},
        ),
        (["Train.JSONL", "valid.tsv"], {"train": ["Train.JSONL"], "validation": ["valid.tsv"]}),
        (["val.csv", "validation.csv"], {"validation": ["validation.csv"]}),
        (
            ["train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"],
            {
                "train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
                "test": ["data/test-00000-of-00001.parquet"],
            },
        ),
        (["training.csv", "testing.csv"], {}),
    ],
)
def test_files_of_a_folder(tmp_path, names, found):
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / name).touch()
    there = {
        split: [Path(path).relative_to(tmp_path).as_posix() for path in paths]
        for split, paths in find_files(tmp_path).items()
    }
    assert there == found


def test_a_missing_piece_of_a_split_is_told(tmp_path):
    (tmp_path / "train-00001-of-00002.parquet").touch()
    with pytest.raises(DataError, match=r"1 of 2 parts .*data\.train="):
        find_files(tmp_path)


def test_a_folders_files_under_the_recipes_names(tmp_path):
    write(tmp_path, training=labelled("x"), validation=labelled("v"), test=labelled("z"))
    assert len(load_rows(recipe(tmp_path, train_split="training")).examples["train"]) == 1
    with pytest.raises(DataError, match=r"no file holdout\.\* .*test_split"):
        load_rows(recipe(tmp_path, train_split="training", test_split="holdout"))


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


def test_bytes_in_parquet_are_refused_only_where_a_text_is_needed(tmp_path):
    """An image beside the text made the whole file unreadable."""
    import pyarrow
    import pyarrow.parquet

    columns = {"text": [b"one", "둘".encode()], "image": [b"\xff\xd8", b"plain"], "label": ["a", "b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    rows = read_rows([str(tmp_path / "a.parquet")])
    assert [row for row, _ in rows] == [
        {"text": "one", "image": b"\xff\xd8", "label": "a"},
        {"text": "둘", "image": "plain", "label": "b"},
    ]
    row, place = rows[0]
    task = Task(type="classification", labels=["a", "b"])
    assert example_from_row(row, place=place, split="train", task=task, data=Data(), labels=["a", "b"]).answer == "a"
    for data in (Data(columns={"text": "image"}), Data(template="{image}")):
        with pytest.raises(DataError, match=r"row 1: .*bytes instead of text"):
            example_from_row(row, place=place, split="train", task=task, data=data, labels=["a", "b"])


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
    before = data_fingerprint(run.data)
    write(folder, test=labelled("other"))
    assert before["hub"] == data_fingerprint(run.data)["hub"] and before != data_fingerprint(run.data)


def test_a_hub_id_may_have_no_slash_and_other_names_of_validation(monkeypatch):
    splits = {"train": labelled("one"), "dev": labelled("two"), "test": labelled("three")}
    hub(monkeypatch, {name: Dataset.from_list(rows) for name, rows in splits.items()})
    assert {split: len(rows) for split, rows in load_rows(recipe("squad")).examples.items()} == dict.fromkeys(
        SPLIT_NAMES, 1
    )


def test_a_split_that_the_recipe_names_is_read_though_the_hub_does_not_list_it(monkeypatch):
    slices = {"train[:90%]": labelled("one"), "train[90%:]": labelled("two"), "test": labelled("three")}
    tables = {name: Dataset.from_list(rows) for name, rows in slices.items()}
    hub(monkeypatch, tables)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **kwargs: ["train", "test"])
    found = load_rows(recipe("some/set", train_split="train[:90%]", validation_split="train[90%:]"))
    assert "two" in found.examples["validation"][0].prompt and not found.notes


def test_a_name_that_is_neither_folder_nor_data_set_tells_both_readings(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(datasets, "get_dataset_split_names", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    with pytest.raises(DataError, match=r"no folder 'reviws' .*mean reviews.*Hub data set .*no network"):
        load_rows(recipe("reviws"))
    with pytest.raises(DataError, match=r"no folder './reviws'"):
        load_rows(recipe("./reviws"))
    (tmp_path / "all.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"is a file.*data\.train=all\.csv"):
        load_rows(recipe("all.csv"))


def test_validation_rows_can_be_the_test_rows_and_others_are_then_held_out(tmp_path, monkeypatch):
    splits = {"train": labelled(*"abcdefghij"), "validation": labelled("v")}
    hub(monkeypatch, {name: Dataset.from_list(rows) for name, rows in splits.items()})
    for source in ("some/set", write(tmp_path, **splits)):
        found = load_rows(recipe(source, test_split="validation"))
        assert {split: len(rows) for split, rows in found.examples.items()} == {"train": 9, "validation": 1, "test": 1}
        assert "Text: v" in found.examples["test"][0].prompt and "held out" in found.notes[0]
        with pytest.raises(DataError, match=r"data\.test_split=validation"):
            load_rows(recipe(source))


# --- prompts ---


@pytest.mark.parametrize(
    ("task", "row", "prompt", "answer"),
    [
        (QA, {"prompt": "2 + 2 =", "completion": " 4 "}, "2 + 2 =", "4"),
        (QA, {"prompt": "2 + 2 =", "completion": 4}, "2 + 2 =", "4"),
        (QA, {"instruction": "Add.", "input": "2, 2", "output": 4}, "Add.\n2, 2", "4"),
        (CLASSIFY, {"text": "Hi", "label": 0}, "Choose the label that fits the text: 0, 1.\nText: Hi\nLabel:", "0"),
        (
            CLASSIFY,
            {"text": "안녕", "label": "1", "language": "ko"},
            "글에 맞는 레이블을 고르세요: 0, 1.\n글: 안녕\n레이블:",
            "1",
        ),
        (
            QA,
            {
                "question": "Where?",
                "context": "In Rome.",
                "answers": {"text": ["Rome", "in Rome"], "answer_start": [3, 0]},
            },
            "Answer the question with words from the text.\nText: In Rome.\nQuestion: Where?\nAnswer:",
            "Rome",
        ),
        (
            QA,
            {
                "question": "2 + 2?",
                "choices": {"text": ["1", "4"], "label": ["1", "2"]},
                "answer": "1",
            },  # ARC: its label
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
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
            "no text",
        ),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["a"]}]}, "no text"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no message in front"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must be the assistant's"),
        ({"question": "?", "choices": "3|4", "answer": "4"}, "JSON list"),
        ({"question": "?", "choices": ["3", "4"], "answer": 2}, "none of the 2 choices"),
        ({"question": "?", "context": "c", "answers": {"text": [], "answer_start": []}}, "answer is empty"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"text": "a", "entities": [{"text": "a"}]}, "no type or no text"),
    ],
)
def test_rows_that_are_not_what_they_should_be(row, words):
    with pytest.raises(DataError, match=words) as error:
        example(row, NER if "tokens" in row or "text" in row else QA, chat_template=True)
    assert str(error.value).startswith("f:1: ")


@pytest.mark.parametrize("template", ["{text} {", "{text:d}", "{}", "{text.upper}"])
def test_templates_that_cannot_be_filled_in(template):
    with pytest.raises(DataError, match=r"f:1: .*template"):
        example({"text": "a", "label": "b"}, CLASSIFY, template=template)
