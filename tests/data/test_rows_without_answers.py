"""Files of rows without gold: CoNLL without tags, texts in a .txt file, and answers that are there and not read."""

from __future__ import annotations

import pytest

from helpers.files import CLASSIFY, NER, QA, recipe, write
from tutelage.data.dataset import load_rows
from tutelage.data.readers import read_rows
from tutelage.data.unlabelled import load_unlabelled
from tutelage.errors import DataError, Kind

ENTITIES = [{"text": f"Ann {n} ran", "entities": [{"type": "PER", "text": "Ann"}]} for n in range(6)]
GOLD = {
    "ner": ENTITIES,
    "classification": [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(6)],
    "qa": [{"question": f"what {n}?", "choices": ["a box", "a car"], "answer": "a car"} for n in range(6)],
}


def unlabelled(tmp_path, task, name, content):
    """The rows without gold that a file holds."""
    rows = GOLD[task.type]
    write(tmp_path, train=rows[:4], validation=rows[4:5], test=rows[5:])
    (tmp_path / name).write_text(content, encoding="utf-8")
    run = recipe(tmp_path, task, unlabelled=[str(tmp_path / name)])
    found = load_rows(run)
    run = run.model_copy(update={"data": run.data.model_copy(update=found.decided)})
    return load_unlabelled(run, found.labels, found.examples)


def untagged(tmp_path, content, name="a.conll"):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return [row for row, _ in read_rows([str(tmp_path / name)], need_answers=False)]


@pytest.mark.parametrize("name", ["more.conll", "more.txt", "more.bio"])
def test_one_token_a_line_is_enough_where_no_answer_is_read(tmp_path, name):
    found = unlabelled(tmp_path, NER, name, "Bob\nran\n\n#fun\nwith\nEve\n")
    assert [row.prompt.splitlines()[1] for row in found.examples] == ["Text: Bob ran", "Text: #fun with Eve"]


def test_training_rows_need_their_tags(tmp_path):
    (tmp_path / "a.conll").write_text("Bob\nran\n")
    with pytest.raises(DataError, match="'Bob' has no tag"):
        read_rows([str(tmp_path / "a.conll")])


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("# id = 1\n1\tBob\t_\t_\n2\tran\t_\t_\n", {"tokens": ["Bob", "ran"]}),
        ("Bob\tNNP\nran\tVBD\n", {"tokens": ["Bob", "ran"]}),
        ("Bob B-PER\nran O\n", {"tokens": ["Bob", "ran"], "tags": ["B-PER", "O"]}),
        ("Bob B-PER\nran\n", {"tokens": ["Bob", "ran"]}),
        ("# a comment\nBob\n#\nran\n", {"tokens": ["Bob", "#", "ran"]}),
    ],
)
def test_tags_are_there_or_not_in_the_whole_file(tmp_path, content, row):
    assert untagged(tmp_path, content) == [row]


@pytest.mark.parametrize(
    "content", ["Bob ran home\nand slept\n", "Bob ran\n", "太郎は東京に行った。\n花子も行った。\n"]
)
@pytest.mark.parametrize("task", [NER, CLASSIFY])
def test_a_text_a_line_is_refused_with_the_way_to_rows(tmp_path, task, content):
    with pytest.raises(DataError) as caught:
        unlabelled(tmp_path, task, "more.txt", content)
    assert caught.value.kind == Kind.NOT_CONLL
    text = str(caught.value)
    assert "more.txt:1" in text and "a token on each line" in text and "> rows.jsonl" in text


def test_rows_of_tokens_are_refused_for_other_tasks_with_the_way_to_rows(tmp_path):
    with pytest.raises(DataError) as caught:
        unlabelled(tmp_path, CLASSIFY, "more.txt", "good\nbad\n")
    assert caught.value.kind == Kind.COLUMNS_UNRECOGNISED
    assert "read as CoNLL" in str(caught.value) and "> rows.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (NER, '{"text": "Bob slept", "entities": [{"type": "PER", "text": "Eve"}]}'),
        (NER, '{"tokens": ["Bob", "slept"], "tags": ["PER"]}'),
        (CLASSIFY, '{"text": "more", "label": ["a", "b"]}'),
        (QA, '{"question": "and?", "choices": ["a box", "a car"], "answer": "a cup"}'),
    ],
)
def test_answers_that_could_not_be_learned_are_not_read(tmp_path, task, row):
    (found,) = unlabelled(tmp_path, task, "more.jsonl", row + "\n").examples
    assert found.answer == "" and found.answers == []
