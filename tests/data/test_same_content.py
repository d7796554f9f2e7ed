"""Rows that ask the same are found in other splits and among rows without gold, however their prompts are written."""

from __future__ import annotations

import pytest

from helpers.files import CLASSIFY, QA, recipe, write
from tutelage.data.dataset import load_rows
from tutelage.data.unlabelled import load_unlabelled
from tutelage.errors import DataError, Kind

SHORT = ["불 켜", "불 꺼", "날씨 어때", "음악 틀어", "몇 시야", "알람 꺼", "문 열어", "안녕", "뭐 해", "잘 자"]
"""Too short for the search for near-duplicates."""
CHOICES = ["a box", "a car", "a cup"]
SYSTEM = {"role": "system", "content": "You are kind."}


def texts(split, *, language=None, start=0, count=3):
    own = {"language": language} if language else {}
    return [{"text": text, "label": "ab"[n % 2], **own} for n, text in enumerate(SHORT[start : start + count])]


def asked(start, *, choices=CHOICES, count=3):
    return [{"question": SHORT[n], "choices": choices, "answer": "a car"} for n in range(start, start + count)]


def chats(start, *, system=False, count=3):
    first = [SYSTEM] if system else []
    answer = {"role": "assistant", "content": "네"}
    return [{"messages": [*first, {"role": "user", "content": SHORT[n]}, answer]} for n in range(start, start + count)]


def taken(tmp_path, more, splits, task=CLASSIFY, **data):
    """The counts of the rows without gold beside these splits."""
    write(tmp_path, more=more, **splits)
    run = recipe(tmp_path, task, unlabelled=[str(tmp_path / "more.jsonl")], **data)
    rows = load_rows(run)
    run = run.model_copy(update={"data": run.data.model_copy(update=rows.decided)})
    return load_unlabelled(run, rows.labels, rows.examples).counts


@pytest.mark.parametrize("gold", ["ko", None])
@pytest.mark.parametrize("other", ["ko", "de", None])
def test_rows_without_gold_are_recognised_whatever_language_their_prompt_is_in(tmp_path, gold, other):
    splits = {
        "train": texts("train", language=gold),
        "validation": texts("validation", language=gold, start=3, count=2),
        "test": texts("test", language=gold, start=5, count=2),
    }
    more = [{**row, "label": None} for row in texts("more", language=other, count=9)]
    counts = taken(tmp_path, more, splits)
    assert counts["labelled"] == 3 and counts["overlapping"] == 4 and counts["rows"] == 2


def test_rows_without_gold_that_differ_in_language_alone_are_one(tmp_path):
    splits = {"train": texts("train"), "validation": texts("v", start=3), "test": texts("test", start=6)}
    more = [{"text": SHORT[9], "language": "ko"}, {"text": SHORT[9]}]
    assert taken(tmp_path, more, splits)["repeated"] == 1


def test_choices_in_another_order_are_the_same_question(tmp_path):
    splits = {"train": asked(0), "validation": asked(3, count=2), "test": asked(5, count=2)}
    more = [{"question": SHORT[n], "choices": CHOICES[::-1]} for n in range(9)]
    counts = taken(tmp_path, more, splits, QA)
    assert counts["labelled"] == 3 and counts["overlapping"] == 4 and counts["rows"] == 2


def test_a_chat_with_another_system_message_asks_what_a_test_row_asks(tmp_path):
    splits = {"train": chats(0), "validation": chats(3, count=2), "test": chats(5, count=2, system=True)}
    more = [{"messages": row["messages"][-2:-1]} for row in chats(5, count=4)]
    assert taken(tmp_path, more, splits, QA, chat_template=True)["overlapping"] == 2


@pytest.mark.parametrize(
    ("task", "train", "test"),
    [
        (CLASSIFY, texts("train", language="ko", count=5), texts("test")),
        (CLASSIFY, texts("train", count=5), texts("test", language="de")),
        (QA, asked(0, count=5), asked(0, choices=CHOICES[::-1])),
    ],
)
def test_gold_rows_that_ask_the_same_are_in_two_splits(tmp_path, task, train, test):
    validation = asked(8, count=2) if task == QA else texts("validation", start=8, count=2)
    write(tmp_path, train=train, validation=validation, test=test)
    with pytest.raises(DataError) as caught:
        load_rows(recipe(tmp_path, task))
    assert [problem.kind for problem in caught.value.problems] == [Kind.ROW_IN_TWO_SPLITS] * 3
    kept = load_rows(recipe(tmp_path, task, overlap="drop"))
    assert len(kept.examples["train"]) == 2 and len(kept.examples["test"]) == 3
    assert kept.notes[-1] == "3 training rows have a prompt of a later split and are left out"


def test_held_out_rows_take_rows_that_ask_the_same_along(tmp_path):
    train = [row for own in (None, "ko", "de") for row in texts("train", language=own, count=9)]
    found = load_rows(recipe(write(tmp_path, train=train, test=texts("test", start=9)), validation_fraction=0.3))
    assert len(found.examples["train"]) == 18 and len(found.examples["validation"]) == 9


def test_what_a_template_shows_besides_the_text_makes_another_question(tmp_path):
    """The same review is rated for its food and for its service."""
    train, test = ([{**row, "aspect": aspect} for row in texts("train")] for aspect in ("food", "service"))
    write(tmp_path, train=train, validation=[{**texts("v", start=8)[0], "aspect": "food"}], test=test)
    run = recipe(tmp_path, template="{text}\n{aspect}:")
    assert len(load_rows(run).examples["test"]) == 3


def test_a_system_message_may_be_the_task_of_gold_rows(tmp_path):
    write(tmp_path, train=chats(0, system=True), validation=chats(8, count=1), test=chats(0))
    assert len(load_rows(recipe(tmp_path, QA, chat_template=True)).examples["train"]) == 3
