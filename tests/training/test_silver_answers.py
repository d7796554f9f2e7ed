"""What becomes of a teacher's answers: what students learn of them, how sure T* is of that, and what is left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from helpers.files import example
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.data.encode import EncodedRow, Encoder, Room
from tutelage.models.evaluation import Evaluator
from tutelage.models.generation import Answer, generate_answers
from tutelage.recipe.schema import Task
from tutelage.tasks import make_task
from tutelage.tasks.qa import FreeText
from tutelage.teacher.silver_rows import answer_rows, kept_rows, learned_rows, left_out_counts

LABELS = ["pos", "neg"]
ENCODER = Encoder(byte_tokenizer(), max_length=64)
ROOM = Room(ENCODER, 64)


def rows(count=1):
    return [example({"id": f"u{n}", "prompt": f"text {n}:"}, need_answer=False) for n in range(count)]


def evaluator(task="classification", most=6):
    made = FreeText() if task == "free" else make_task(Task(type=task), LABELS if task == "classification" else None)
    return Evaluator(made, ENCODER, len(byte_tokenizer()), most)


def never_ending():
    """A model that writes `a` whatever it reads."""
    model = tiny_model(0)
    model.config.tie_word_embeddings = False
    head = nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[ord("a")] = 9.0
    model.set_output_embeddings(head)
    return model


def lines_of(written, tmp_path, monkeypatch, task="classification"):
    """The lines of answers that a model is made to give, and the model."""
    asked, model = rows(len(written)), tiny_model(0)
    monkeypatch.setattr(Evaluator, "answers", lambda self, *rest: written)
    return asked, model, answer_rows(evaluator(task), lambda: model, asked, tmp_path, ROOM)


def log_prob(model, row, text):
    """Of an answer with its end, by a plain forward pass."""
    prompt, answer = ENCODER.prompt(row), ENCODER.answer(text)
    with torch.no_grad():
        found = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return sum(float(found[len(prompt) - 1 + n, token]) for n, token in enumerate(answer))


@pytest.mark.parametrize("kept", ["cache", "none"])
def test_an_answer_says_whether_the_model_ended_it(kept, monkeypatch):
    if kept == "none":
        monkeypatch.setattr("tutelage.models.generation.cache_of", lambda output: None)
    tokenizer = byte_tokenizer()
    ending = never_ending()
    with torch.no_grad():
        ending.get_output_embeddings().bias[tokenizer.eos_token_id] = 99.0
    for model, ended, text in ((never_ending(), False, "aaaa"), (ending, True, "")):
        found = generate_answers(model, tokenizer, [[65, 66], [67]], max_new_tokens=4, batch_size=2)
        assert [(answer.text, answer.ended) for answer in found] == [(text, ended)] * 2


@pytest.mark.parametrize("task", ["classification", "qa", "free"])
def test_answers_without_an_end_are_left_out_and_counted(tmp_path, task):
    asked = rows(3)
    found = answer_rows(evaluator(task), never_ending, asked, tmp_path, ROOM)
    assert list(kept_rows([ROOM], asked, found)) == []
    assert left_out_counts(found) == {"invalid": 0, "unfinished": 3, "unsure": 0, "too_long": 0}


def test_students_learn_the_label_and_the_confidence_is_in_the_label(tmp_path, monkeypatch):
    written = [Answer("pos\nText: b", -1.0), Answer("NEG", -2.0), Answer("neg", -3.0, False), Answer("pos", -4.0)]
    asked, model, found = lines_of(written, tmp_path, monkeypatch)
    assert [line["target"] for line in found] == ["pos", "neg", "neg", "pos"]
    for row, line in zip(asked[:3], found[:3], strict=True):
        assert line["confidence"] == pytest.approx(math.exp(log_prob(model, row, line["target"])), rel=1e-4)
    assert found[3]["confidence"] == math.exp(-4)
    forms = [form for (form,) in kept_rows([ROOM], asked, found)]
    assert [row.answer for row in forms] == [ENCODER.answer(line["target"]) for line in found]


def test_what_was_left_out_before_it_was_read_again_stays_left_out(tmp_path, monkeypatch):
    written = [Answer("nothing", -1.0), Answer("POS", math.nan), Answer("neu", -1.0, False)]
    asked, _, found = lines_of(written, tmp_path, monkeypatch)
    assert list(kept_rows([ROOM], asked, found)) == []
    assert [line["left_out"] for line in found] == ["invalid", "unsure", "unfinished"]


def test_lines_of_earlier_versions_are_read_as_they_were_learned():
    asked = rows(2)
    lines = [{"id": "u0", "raw": "POS ", "prediction": "pos", "confidence": 0.5}]
    lines += [{"id": "u1", "raw": "what", "prediction": None, "confidence": 0.5}]
    ((form,),) = kept_rows([ROOM], asked, lines)
    assert form.answer == ENCODER.answer("POS") and lines[1]["left_out"] == "invalid"


def test_gold_stays_where_an_answer_cannot_be_learned():
    gold = [EncodedRow(f"r{n}", "train", [65] * 50, ENCODER.answer("neg")) for n in range(4)]
    about = {"prediction": None, "confidence": 0.5}
    lines = [
        {"id": "r0", "raw": "pos\n", "target": "pos", "ended": True, **about},
        {"id": "r1", "raw": "what", "target": None, "ended": True, **about},
        {"id": "r2", "raw": "po", "target": None, "ended": False, **about},
        {"id": "r3", "raw": "x" * 20, "target": "x" * 20, "ended": True, **about},
    ]
    found = list(learned_rows(ROOM, gold, lines))
    assert [row.answer for row in found] == [ENCODER.answer("pos")] + [ENCODER.answer("neg")] * 3
    assert [line.get("left_out") for line in lines] == [None, "invalid", "unfinished", "too_long"]
