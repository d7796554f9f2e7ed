"""Unlabelled rows that a model of the pair has no positions for are left out before anything is trained."""

from __future__ import annotations

import shutil

import pytest

from helpers.files import example
from helpers.project import Command, make_project, write_rows
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.bytes.pair import Pair
from tutelage.data.encode import Encoder, Room
from tutelage.data.unlabelled import RoomTest
from tutelage.recipe.schema import Model
from tutelage.teacher.silver_rows import kept_rows
from tutelage.utils.files import read_json

LONG = "a far longer unlabelled text, which goes on and on and on"


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def save_models(folder, **positions):
    """Models with learned positions, which cannot read beyond them."""
    for role, hidden in (("teacher", 32), ("student", 16)):
        shutil.rmtree(folder / role, ignore_errors=True)
        model = tiny_model(0, "gpt2", hidden=hidden, max_position_embeddings=positions[role])
        model.save_pretrained(folder / role)
        byte_tokenizer().save_pretrained(folder / role)


@pytest.mark.parametrize("short", ["teacher", "student"])
@pytest.mark.parametrize("most", [1, 6])
def test_unlabelled_rows_beyond_the_positions_of_a_model_are_left_out(tmp_path, command, short, most):
    """Labels may be longer than what would be generated."""
    task = {"decoding": "labels", "max_new_tokens": most}
    recipe = make_project(tmp_path, task=task, data={"unlabelled": str(tmp_path / "more.jsonl")})
    save_models(tmp_path / "models", **({"teacher": 256, "student": 256} | {short: 64}))
    fitting = [{"text": f"a new thing {n}"} for n in range(4)]
    barely = [{"text": f"{n}" * 61} for n in range(3)]  # without a label 62 tokens
    write_rows(tmp_path / "more.jsonl", [*fitting, *({"text": f"{LONG} {n}"} for n in range(3)), *barely])
    for stage in ("prepare", "teach", "silver"):
        assert command(stage, recipe, *(["--anyway"] if stage != "prepare" else [])) == 0, command.err
    data = read_json(tmp_path / "run/prepare/data.json")
    assert data["unlabelled"]["rows"] == 4 and data["unlabelled"]["too_long"] == 6
    line = f"6 unlabelled rows exceed 64 tokens (positions of the {short}) with an answer and are left out"
    assert line in data["notes"]
    command("doctor", recipe)
    assert line in " ".join((command.out + command.err).split())


def test_each_model_has_room_for_its_own_tokens():
    encoder = Encoder(byte_tokenizer(), max_length=100)
    rows = [example({"prompt": "x" * length, "completion": "y"}) for length in (10, 50, 80)]
    fits = RoomTest([Room(encoder, 90), Room(encoder, 40, "positions of the teacher")], [5, 5])
    assert [fits(row) for row in rows] == [True, False, False]
    assert fits.limit == "90 tokens, or 40 tokens (positions of the teacher) with an answer"


def test_the_room_is_that_of_the_shorter_context(tmp_path):
    save_models(tmp_path, teacher=48, student=64)
    teacher, student = (Model(model_name_or_path=str(tmp_path / role)) for role in ("teacher", "student"))
    encoder = Encoder(byte_tokenizer(), max_length=100)
    pair = Pair(encoder, None, 258, False)
    assert [(room.tokens, room.why) for room in pair.rooms(teacher, student)] == [(48, "positions of the teacher")]
    of_two = Pair(encoder, Encoder(byte_tokenizer(), max_length=40), 258, True).rooms(teacher, student)
    assert [(room.tokens, room.why) for room in of_two] == [(64, "positions of the student"), (40, None)]


def test_an_answer_that_does_not_fit_is_left_out(tmp_path):
    encoder = Encoder(byte_tokenizer(), max_length=100)
    rows = [example({"prompt": "x" * 10}, need_answer=False)] * 2
    answers = [{"id": "x", "raw": text, "prediction": text, "confidence": 0.9} for text in ("y", "y" * 40)]
    assert len(list(kept_rows([Room(encoder, 40)], rows, answers))) == 1
    assert [line.get("left_out") for line in answers] == [None, "too_long"]
