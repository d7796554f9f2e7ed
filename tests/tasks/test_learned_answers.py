"""What students learn of a teacher's answer: what the task reads of it, and nothing that was cut off."""

from __future__ import annotations

import pytest

from tutelage.recipe.schema import Task
from tutelage.records import Example
from tutelage.tasks import make_task
from tutelage.tasks.qa import FreeText

ASKED = Example("u1", "unlabelled", "Ada Lovelace lives in London:", "", [])
LABELS, TYPES = ["pos", "neg", "positive?"], ["person", "place"]
ENTITIES = "person: Ada Lovelace\nplace: London"


def learned(task, raw, *, ended=True, **options):
    labels = {"classification": LABELS, "ner": TYPES, "choice": ["A", "B"]}.get(task)
    if task == "free":
        return FreeText().learned(raw, ASKED, ended=ended)
    made = make_task(Task(type="qa" if task == "choice" else task), labels, choice=task == "choice")
    return made.learned(raw, ASKED, ended=ended, **options)


@pytest.mark.parametrize(
    ("task", "raw", "text"),
    [
        ("classification", "pos\nText: another review\nLabel: neg", "pos"),
        ("classification", "POS", "pos"),
        ("classification", "Pos itive", None),
        ("choice", "B\nA", "B"),
        ("qa", "Paris\nQuestion: where is", "Paris"),
        ("qa", "\n", None),
        ("ner", "person: Ada Lovelace\nplace：London\nAnd so on", ENTITIES),
        ("ner", "None", "none"),
        ("ner", "nothing", None),
        ("free", " one\ntwo ", "one\ntwo"),
        ("free", "", None),
    ],
)
def test_what_the_task_reads_is_learned_as_gold_is_written(task, raw, text):
    assert learned(task, raw) == text


@pytest.mark.parametrize(
    ("task", "raw", "text"),
    [
        ("classification", "neg", "neg"),
        ("classification", "pos", None),  # may have become "positive?"
        ("classification", "pos\nText: an", "pos"),
        ("choice", "B", "B"),
        ("qa", "Paris\nQuestion: wh", "Paris"),
        ("qa", "Par", None),
        ("ner", ENTITIES, None),  # there may be more of them
        ("ner", "none", None),
        ("free", "one\ntwo", None),
    ],
)
def test_of_an_answer_that_was_cut_off_only_what_is_complete_is_learned(task, raw, text):
    assert learned(task, raw, ended=False) == text


def test_a_short_form_may_be_the_start_of_another():
    forms = {"neg": "1", "pos": "10"}
    assert learned("classification", "neg", ended=False, written=forms.get) is None
    assert learned("classification", "neg", written=forms.get) == "neg"


def test_without_a_label_set_the_line_is_learned_once_it_is_complete():
    task = make_task(Task(type="classification"), None)
    assert task.learned("new label\nText", ASKED, ended=False) == "new label"
    assert task.learned("new lab", ASKED, ended=False) is None
