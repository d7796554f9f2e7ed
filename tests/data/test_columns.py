"""Which column of a row is which: the shape that the task wants, mapped columns, usual other names, and nothing by
luck."""

from __future__ import annotations

import pytest

from tutelage.data.dataset import load_rows
from tutelage.data.row_formats import example_from_row
from tutelage.errors import DataError, Place
from tutelage.recipe.schema import Data, Recipe, Task
from tutelage.records import SPLITS
from tutelage.utils.files import write_jsonl

CLASSIFY, NER, QA = Task(type="classification"), Task(type="ner"), Task(type="qa")


def example(row, task=QA, labels=None, need_answer=True, **data):
    data = Data(**data)
    return example_from_row(
        row, place=Place("f", 1), split="train", task=task, data=data, labels=labels, need_answer=need_answer
    )


def test_a_row_of_several_shapes_is_read_as_the_one_that_the_task_wants():
    row = {"text": "In Rome", "label": "travel", "tokens": ["In", "Rome"], "tags": ["O", "B-LOC"]}
    row |= {"question": "Where?", "context": "In Rome", "answers": ["Rome"]}
    assert example(row, CLASSIFY).answer == "travel"
    assert example(row, NER).answer == "LOC: Rome"
    assert example(row, QA).answer == "Rome"
    for task in (CLASSIFY, NER, QA):
        assert example({"prompt": "p", "completion": "LOC: Rome", **row}, task).prompt == "p"


def test_columns_of_another_task_are_refused_and_named():
    with pytest.raises(DataError, match=r"task\.type=ner"):
        example({"tokens": ["In", "Rome"], "tags": ["O", "B-LOC"]}, CLASSIFY)


def test_a_mapped_shape_wins_over_prompt_and_completion():
    row = {"prompt": "p", "completion": "c", "review": "Good", "stars": 5}
    found = example(row, CLASSIFY, columns={"text": "review", "label": "stars"}, template="{text}:")
    assert (found.prompt, found.answer) == ("Good:", "5")
    assert example(row, CLASSIFY, columns={"id": "stars"}).answer == "c"


def test_a_column_that_is_mapped_to_tags_or_the_gold_label_is_not_the_rows_allowed_labels():
    row = {"tokens": ["In", "Rome"], "labels": ["O", "B-LOC"]}
    found = example(row, NER, columns={"tags": "labels"})
    assert (found.answer, found.labels) == ("LOC: Rome", None)
    assert example({"text": "a", "labels": ["x"]}, CLASSIFY, columns={"label": "labels"}).labels is None
    kept = {"text": "a", "label": "x", "labels": ["x", "y"], "language": "ja"}
    found = example(kept, CLASSIFY, columns={"subdomain": "language"})
    assert (found.labels, found.language, found.subdomain) == (["x", "y"], "ja", "ja")


# --- other people's names for columns ---


@pytest.mark.parametrize(
    ("row", "task", "answer"),
    [
        ({"sentence": "Hi", "intent": "greeting"}, CLASSIFY, "greeting"),
        ({"content": "Hi", "category": 1}, CLASSIFY, "1"),
        ({"text": "Hi", "label": 3, "label_text": "greeting"}, CLASSIFY, "greeting"),
        ({"text": "Hi", "label": "3", "label_text": "greeting"}, CLASSIFY, "greeting"),
        ({"text": "Hi", "label": "hello", "label_text": "greeting"}, CLASSIFY, "hello"),
        ({"input": "Hi", "intent": "greeting"}, CLASSIFY, "greeting"),
        ({"words": ["Ann", "ran"], "ner_tags": ["B-PER", "O"]}, NER, "PER: Ann"),
        ({"text": "Ann ran", "spans": [{"start": 0, "end": 3, "label": "PER"}]}, NER, "PER: Ann"),
        ({"question": "Who?", "context": "Ann ran", "answer": "Ann"}, QA, "Ann"),
        ({"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}, QA, "B"),
    ],
)
def test_usual_other_names_are_read(row, task, answer):
    assert example(row, task, labels=["x"]).answer == answer


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"sentence": "a", "content": "b", "label": "x"}, r"'sentence' and 'content' .*columns=\{text: sentence\}"),
        ({"text": "a", "category": "x", "sentiment": "y"}, r"'category' and 'sentiment' .*columns=\{label: category\}"),
        ({"question": "q", "input": "a", "label": "x"}, "unrecognised columns"),
        ({"instruction": "q", "input": "a", "label": "x"}, "unrecognised columns"),
    ],
)
def test_a_column_is_never_picked_by_luck(row, words):
    with pytest.raises(DataError, match=words):
        example(row, CLASSIFY)


def test_our_own_name_and_the_mapping_win_over_other_names():
    row = {"text": "a", "sentence": "b", "label": "x", "category": "y", "class": "z"}
    assert example(row, CLASSIFY, template="{text}").prompt == "a" and example(row, CLASSIFY).answer == "x"
    del row["label"]
    assert example(row, CLASSIFY, columns={"label": "class"}).answer == "z"


def test_the_run_says_which_columns_it_read_under_another_name(tmp_path):
    for split in SPLITS:
        write_jsonl(tmp_path / f"{split}.jsonl", [{"sentence": split, "intent": "a"}])
    model = {"model_name_or_path": "m"}
    recipe = Recipe(
        name="r", output_dir="o", task=CLASSIFY, data={"dataset": str(tmp_path)}, teacher=model, student=model
    )
    assert "sentence as text, intent as label" in load_rows(recipe).notes[0]


def test_a_template_of_other_columns_needs_no_text_or_context():
    found = example({"title": "A", "body": "b", "label": "x"}, CLASSIFY, template="{title} {body}")
    assert (found.prompt, found.answer) == ("A b", "x")
    assert example({"title": "A"}, CLASSIFY, need_answer=False, template="{title}").prompt == "A"
    assert example({"question": "2 + 2?", "answer": "4"}, QA, template="{question}").answer == "4"
    with pytest.raises(DataError, match=r"A prompt can be made of any columns: data\.template"):
        example({"question": "2 + 2?", "answer": "4"}, QA)
    with pytest.raises(DataError, match=r"\{missing\}"):
        example({"title": "A", "label": "x"}, CLASSIFY, template="{missing}")


def test_rows_to_predict_are_read_as_the_training_rows_were():
    row = {"text": "Ann  ran", "tokens": ["Ann", "ran"], "tags": ["B-PER", "O"]}
    inputs = {key: row[key] for key in ("text", "tokens")}
    assert example(row, NER).prompt == example(inputs, NER, need_answer=False).prompt


def test_the_passage_of_a_choice_stands_in_front_of_its_default_prompt():
    row = {"question": "Who?", "choices": ["he", "she"], "answer": "B", "context": "She sat."}
    found = example_from_row(row, place=Place("f", 1), split="train", task=Task(type="qa"), data=Data(), labels=None)
    assert found.prompt.startswith("She sat.\n")
    del row["context"]
    alone = example_from_row(row, place=Place("f", 1), split="train", task=Task(type="qa"), data=Data(), labels=None)
    assert found.prompt == "She sat.\n" + alone.prompt
