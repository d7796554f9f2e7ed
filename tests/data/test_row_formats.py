"""Rows in every shape and file format become the prompt and answer worked out by hand."""

from __future__ import annotations

import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from tutelage.data.dataset import load_rows
from tutelage.data.readers import read_hub, read_rows
from tutelage.data.row_formats import example_from_row
from tutelage.errors import DataError, Kind, Place, RowsError
from tutelage.recipe.schema import Data, Recipe, Task

CLASSIFY, NER, QA = Task(type="classification"), Task(type="ner"), Task(type="qa")


def example(row, task=QA, labels=None, need_answer=True, **data):
    data = Data(**data)
    return example_from_row(
        row, place=Place("f", 1), split="train", task=task, data=data, labels=labels, need_answer=need_answer
    )


@pytest.mark.parametrize(
    ("entities", "expected"),
    [
        ([{"label": "drug", "start": 6, "end": 13}], "drug: aspirin"),
        ([{"type": "drug", "text": "aspirin"}], "drug: aspirin"),
        ([["drug", "aspirin"], ["dose", "5 mg"]], "drug: aspirin\ndose: 5 mg"),
        (["drug: aspirin"], "drug: aspirin"),
        ('[["drug", "aspirin"]]', "drug: aspirin"),
        ([], "none"),
    ],
)
def test_entities_in_every_form(entities, expected):
    assert example({"text": "Takes aspirin 5 mg.", "entities": entities}, NER, template="{text}").answer == expected


def test_offsets_that_hold_another_text_are_refused():
    row = {"text": "Takes aspirin", "entities": [{"type": "drug", "text": "aspirin", "start": 5, "end": 12}]}
    with pytest.raises(DataError, match="offsets 5:12"):
        example(row, NER)


@pytest.mark.parametrize("offsets", [{"start": 6}, {"start": -7, "end": -1}, {"start": 6, "end": 99}])
def test_offsets_outside_the_text_are_refused(offsets):
    with pytest.raises(DataError, match="outside its text"):
        example({"text": "Takes aspirin", "entities": [{"type": "drug", **offsets}]}, NER)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", "PER: Ann Lee\nLOC: Rome"),  # BIO
        ("I-PER I-PER O I-LOC", "PER: Ann Lee\nLOC: Rome"),  # IOB1
        ("B-PER E-PER O S-LOC", "PER: Ann Lee\nLOC: Rome"),  # BIOES
        ("B-PER B-PER O O", "PER: Ann\nPER: Lee"),
    ],
)
def test_tags_in_every_scheme(tags, expected):
    assert example({"tokens": "Ann Lee in Rome", "tags": tags.split()}, NER).answer == expected


@pytest.mark.parametrize("answer", ["B", 1, "1", "four"])
def test_a_choice_by_letter_index_or_text(answer):
    found = example({"question": "2 + 2?", "choices": ["three", "four"], "answer": answer})
    assert (found.answer, found.labels) == ("B", ["A", "B"])
    assert "A. three\nB. four" in found.prompt


def test_a_choice_that_is_none():
    with pytest.raises(DataError, match="none of the choices"):
        example({"question": "2 + 2?", "choices": ["three", "four"], "answer": "five"})


@pytest.mark.parametrize("answers", ["Rome", ["Rome", "roma"], {"text": ["Rome"], "answer_start": [3]}])
def test_span_answers_as_string_list_or_squad(answers):
    found = example({"question": "Where?", "context": "In Rome.", "answers": answers})
    assert found.answer == found.answers[0] == "Rome"
    assert "In Rome." in found.prompt and "Where?" in found.prompt


def test_alpaca_with_and_without_input():
    assert example({"instruction": "Translate.", "input": "cat", "output": "Katze"}).prompt == "Translate.\ncat"
    assert example({"instruction": "Say hi.", "input": "", "output": "hi"}).prompt == "Say hi."


def test_chat_shapes_give_messages_and_need_the_template():
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "greeting"}]}
    found = example(row, CLASSIFY, chat_template=True, system="Be brief.")
    assert found.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert found.answer == "greeting"
    share = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "greeting"}]}
    assert example(share, CLASSIFY, chat_template=True).prompt == [{"role": "user", "content": "Hi"}]
    with pytest.raises(DataError, match="chat_template=true"):
        example(row, CLASSIFY)


def test_mapped_columns_and_templates_with_any_column():
    row = {"review": "Good", "stars": 5, "shop": "A"}
    found = example(row, CLASSIFY, columns={"text": "review", "label": "stars"}, template="{shop}: {text} ->")
    assert (found.prompt, found.answer) == ("A: Good ->", "5")
    with pytest.raises(DataError, match="nothing"):
        example({"text": "a", "label": "b"}, CLASSIFY, template="{nothing}")


@pytest.mark.parametrize(
    "data", [{"template": "{text} is {label}"}, {"template": "{text} is {stars}", "columns": {"label": "stars"}}]
)
def test_a_template_that_shows_the_gold_answer_is_refused(data):
    with pytest.raises(DataError, match="gold answer"):
        example({"text": "Good", "label": "5", "stars": "5"}, CLASSIFY, **data)


# --- labels, answers, choices ---


def test_one_label_in_a_list_is_that_label_and_several_are_refused():
    assert example({"text": "a", "label": ["x"]}, CLASSIFY).answer == "x"
    assert example({"text": "a", "label": '["x"]'}, CLASSIFY).answer == "x"
    with pytest.raises(DataError, match="multi-label is not supported"):
        example({"text": "a", "label": ["x", "y"]}, CLASSIFY)
    with pytest.raises(DataError, match="answer is empty"):
        example({"text": "a", "label": []}, CLASSIFY)


def test_labels_in_a_cell_are_a_list_and_a_gold_label_under_that_name_is_told_how():
    assert example({"text": "a", "label": "x", "labels": '["x", "y"]'}, CLASSIFY).labels == ["x", "y"]
    for row in (
        {"text": "a", "labels": 1},
        {"text": "a", "label": "x", "labels": "x"},
        {"prompt": "a", "completion": "x", "labels": 1},
    ):
        with pytest.raises(DataError, match=r"data.columns=\{label: labels\}"):
            example(row, CLASSIFY)


@pytest.mark.parametrize(
    "answers",
    [
        "Rome",
        ["Rome"],
        '["Rome"]',
        "['Rome']",
        {"text": ["Rome"], "answer_start": [3]},
        '{"text": ["Rome"]}',
        [{"text": "Rome"}],
    ],
)
def test_answers_in_every_form_for_questions_and_for_prompts(answers):
    assert example({"question": "Where?", "context": "In Rome.", "answers": answers}).answers == ["Rome"]
    assert example({"prompt": "Where?", "completion": "Roma", "answers": answers}).answers == ["Roma", "Rome"]


@pytest.mark.parametrize(
    "choices",
    [
        [{"text": "three", "label": "1"}, {"text": "four", "label": "2"}],
        {"text": ["three", "four"], "label": ["1", "2"]},
        {"1": "three", "2": "four"},
        '{"text": ["three", "four"], "label": ["1", "2"]}',
    ],
)
def test_choices_with_labels_of_their_own(choices):
    found = example({"question": "2 + 2?", "choices": choices, "answer": "2"})
    assert found.answer == "B" and "A. three\nB. four" in found.prompt


@pytest.mark.parametrize("answer", ["B", "b", "four", 1, 1.0])
def test_choices_in_columns_of_their_own(answer):
    found = example({"question": "2 + 2?", "A": "three", "B": "four", "C": None, "answer": answer})
    assert (found.answer, found.labels) == ("B", ["A", "B"])


def test_an_empty_choice_between_others_is_refused():
    with pytest.raises(DataError, match="choice 2 of 3 is empty"):
        example({"question": "2 + 2?", "A": "three", "B": None, "C": "four", "answer": "C"})


# --- entities ---


@pytest.mark.parametrize(
    "entities",
    [
        [[17, 21, "dose"], [6, 13, "drug"], [17, 21, "dose"]],
        [
            {"start": 17, "end": 21, "label": "dose"},
            {"start": 6, "end": 13, "label": "drug"},
            {"start": 17.0, "end": 21.0, "type": "dose"},
        ],
        [
            {"entity_group": "dose", "word": "5mg", "start": 17, "end": 21},
            {"entity_group": "drug", "word": "Aspirin", "start": 6, "end": 13},
            {"entity_group": "dose", "word": "5mg", "start": 17, "end": 21},
        ],
        {"start": [17, 6, 17], "end": [21, 13, 21], "label": ["dose", "drug", "dose"]},
        "drug: aspirin\ndose: 5 mg\ndose: 5 mg",
    ],
)
def test_entities_stand_in_reading_order_whatever_their_form_and_twice_stays_twice(entities):
    found = example({"text": "Takes aspirin as 5 mg.", "entities": entities}, NER)
    assert found.answer == "drug: aspirin\ndose: 5 mg\ndose: 5 mg"


def test_no_entities_and_no_answer_are_told_apart():
    assert example({"text": "Hi", "entities": "none"}, NER).answer == "none"
    with pytest.raises(DataError, match="write a JSON list"):
        example({"text": "Hi", "entities": "[{"}, NER)
    with pytest.raises(DataError, match=r"\[\] or none"):
        example({"text": "Hi", "entities": None}, NER)


@pytest.mark.parametrize(
    ("language", "tokens", "tags", "text", "answer"),
    [
        ("ja", ["東京", "タワー", "へ"], "B-LOC I-LOC O", "東京タワーへ", "LOC: 東京タワー"),
        ("zh-CN", ["我", "在", "北", "京"], "O O B-LOC I-LOC", "我在北京", "LOC: 北京"),
        ("th", ["ไป", "กรุงเทพ"], "O B-LOC", "ไปกรุงเทพ", "LOC: กรุงเทพ"),
        ("ja", ["新しい", "iPhone", "15", "を"], "O B-P I-P O", "新しいiPhone 15を", "P: iPhone 15"),
        ("zh", ["用", "A", "B", "C"], "O B-P I-P I-P", "用ABC", "P: ABC"),
        ("ko", ["서울", "타워"], "B-LOC I-LOC", "서울 타워", "LOC: 서울 타워"),
    ],
)
def test_tokens_are_joined_as_the_language_is_written(language, tokens, tags, text, answer):
    row = {"tokens": tokens, "tags": tags}
    for found in (example(row | {"language": language}, NER, template="{text}"),
                  example(row, Task(type="ner", language=language), template="{text}")):  # fmt: skip
        assert (found.prompt, found.answer) == (text, answer)


# --- chat ---


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize(
    "turns",
    [
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "greeting"},
        ],
        [{"from": "system", "value": "s"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "greeting"}],
        [{"from": "system", "value": "s"}, {"from": "user", "value": "Hi"}, {"from": "assistant", "value": "greeting"}],
    ],
)
def test_turns_by_either_names_under_either_column(column, turns):
    for value in (turns, json.dumps(turns)):
        found = example({column: value}, CLASSIFY, chat_template=True)
        assert found.answer == "greeting"
        assert found.prompt == [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}]


def test_a_trailing_user_turn_is_no_training_row_but_can_be_predicted():
    row = {"messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(DataError, match=r"must be the assistant's .*Add it"):
        example(row, CLASSIFY, chat_template=True)
    assert example(row, CLASSIFY, need_answer=False, chat_template=True).prompt == row["messages"]


def test_an_empty_text_is_refused():
    with pytest.raises(DataError, match=r"\{text\}, which is empty"):
        example({"text": " ", "label": "x"}, CLASSIFY, template="{text}:")


def test_every_file_format(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"x": "1"}\n\n{"x": "2"}\n', encoding="utf-8")
    (tmp_path / "a.json").write_text('{"data": [{"x": "1"}, {"x": "2"}]}', encoding="utf-8")
    (tmp_path / "a.csv").write_text('x,y\n007,"a, b"\n2,\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("x\ty\n007\ta\n", encoding="utf-8")
    Dataset.from_dict({"x": ["1", "2"]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.conll").write_text("-DOCSTART- O\n\nAnn NNP B-PER\nran VBD O\n\nHi UH O\n", encoding="utf-8")
    read = {
        ending: read_rows([str(tmp_path / f"a.{ending}")])
        for ending in ["jsonl", "json", "csv", "tsv", "parquet", "conll"]
    }
    assert [row["x"] for row, _ in read["jsonl"]] == ["1", "2"] and str(read["jsonl"][1][1]).endswith("a.jsonl:3")
    assert [row["x"] for row, _ in read["json"]] == ["1", "2"] == [row["x"] for row, _ in read["parquet"]]
    assert [row for row, _ in read["csv"]] == [{"x": "007", "y": "a, b"}, {"x": "2", "y": None}]
    assert read["tsv"][0][0] == {"x": "007", "y": "a"}
    assert [row for row, _ in read["conll"]] == [
        {"tokens": ["Ann", "ran"], "tags": ["B-PER", "O"]},
        {"tokens": ["Hi"], "tags": ["O"]},
    ]


def test_label_numbers_of_the_hub_become_names(monkeypatch):
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-PER"])),
                         "label": ClassLabel(names=["no", "yes"])})  # fmt: skip
    table = Dataset.from_dict({"tokens": [["Ann", "ran"]], "ner_tags": [[1, 0]], "label": [1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    ((row, place),) = read_hub("some/set", None, "train", None)
    assert row["ner_tags"] == ["B-PER", "O"] and row["label"] == "yes" and str(place) == "some/set/train:row 1"
    assert example(row, NER).answer == "PER: Ann"


def recipe(folder, **data):
    names = {"model_name_or_path": "m"}
    return Recipe(
        name="r", output_dir="o", task=CLASSIFY, data={"dataset": str(folder), **data}, teacher=names, student=names
    )


def write(folder, split, rows):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_held_out_validation_is_seeded_told_and_keeps_equal_rows_together(tmp_path):
    rows = [{"text": f"thing {n // 2}", "label": "ab"[n // 2 % 2]} for n in range(40)]  # every row twice
    write(tmp_path, "train", rows)
    write(tmp_path, "test", [{"text": "other", "label": "a"}])
    found, again = load_rows(recipe(tmp_path)), load_rows(recipe(tmp_path))
    assert found.examples == again.examples
    assert "4 of 40 training rows" in found.notes[0]
    prompts = [{e.prompt for e in found.examples[split]} for split in ("train", "validation")]
    assert not prompts[0] & prompts[1]
    ids = [e.id for split in found.examples.values() for e in split]
    assert len(set(ids)) == len(ids) and sum(name.endswith("-2") for name in ids) == 20


def test_samples_keep_the_order_of_the_file(tmp_path):
    write(tmp_path, "train", [{"id": n, "text": f"thing {n}", "label": "ab"[n % 2]} for n in range(50)])
    write(tmp_path, "validation", [{"text": "v", "label": "a"}])
    write(tmp_path, "test", [{"text": "other", "label": "a"}])
    places = [int(e.id) for e in load_rows(recipe(tmp_path, max_train_rows=10)).examples["train"]]
    assert len(places) == 10 and places == sorted(places)


def test_several_problems_come_in_one_message(tmp_path):
    write(tmp_path, "train", [{"id": 1, "text": "a", "label": "x"}, {"id": 1, "text": "b", "label": ""}])
    write(tmp_path, "validation", [{"text": "c", "label": "y"}])
    write(tmp_path, "test", [{"text": "A!", "label": "x"}])
    with pytest.raises(RowsError) as caught:
        load_rows(recipe(tmp_path))
    problems = caught.value.problems
    assert [(p.kind, p.split) for p in problems] == [
        (Kind.ANSWER_EMPTY, "train"),
        (Kind.LABEL_OUTSIDE_SET, "validation"),
        (Kind.ID_REPEATED, "train"),
        (Kind.ROW_IN_TWO_SPLITS, "train"),
    ]
    assert [(str(p.place.number), p.row) for p in problems if p.place] == [("2", None), ("2", "1")]
    for words in ("empty answers", "'y' in validation", "training rows that are also test rows", "[id_repeated]"):
        assert words in str(caught.value)


def test_labels_beside_the_data_serve_for_what_training_lacks(tmp_path):
    write(tmp_path, "train", [{"text": "a", "label": "x"}])
    write(tmp_path, "validation", [{"text": "c", "label": "y"}])
    write(tmp_path, "test", [{"text": "d", "label": "x"}])
    (tmp_path / "task.json").write_text('{"labels": ["x", "y"]}')
    assert load_rows(recipe(tmp_path)).labels == ["x", "y"]
