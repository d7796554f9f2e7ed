"""Rows without gold with the teacher's answers: answered chunk by chunk, then made into rows to train on.

A chunk is a file, so that an interrupted process goes on with the next one. The stage `silver` and `SCDTrainer` both
use this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from torch import nn

from tutelage.data.encode import EncodedRow, Encoder, Room
from tutelage.models.evaluation import Evaluator, OnRows
from tutelage.models.generation import Answer
from tutelage.records import Example
from tutelage.utils import ranks
from tutelage.utils.files import read_jsonl, write_jsonl

CHUNK = 512
"""Rows answered between two saves: what an interrupted process answers again at most."""


class SilverAnswer(TypedDict):
    """A line of answers.jsonl."""

    id: str
    raw: str
    """What T* wrote."""
    prediction: Any
    """`raw` as parsed by the task; None if it cannot be."""
    confidence: float | None
    """Probability in [0, 1] that T* gives to its whole answer."""
    left_out: NotRequired[str]
    """`invalid`, `unsure` or `too_long`; absent for rows that students are trained on."""


def longest_generated(longest_answer: int) -> int:
    """Tokens that an answer may have where no setting says so. longest_answer: tokens, end-of-sequence included."""
    longest = max(longest_answer, 1)
    return longest + longest // 2 + 4


def chunk_files(folder: Path) -> Iterator[Path]:
    """What in the folder only an interrupted process needs."""
    return folder.glob("answers-*.jsonl")


def answered_before(folder: Path, rows: int) -> int:
    """How many of so many rows an interrupted process has answered."""
    chunks = len(list(chunk_files(folder)))
    return min(rows, chunks * CHUNK)


def answer_rows(
    evaluator: Evaluator,
    load: Callable[[], nn.Module],
    examples: Sequence[Example],
    folder: Path,
    on_rows: OnRows = lambda count: None,
) -> list[SilverAnswer]:
    """The teacher's answers in the order of the examples, from where an interrupted process stopped.

    load: gives T*; called once, if there is something left to answer. on_rows: counts the rows that are new.
    """
    answers: list[SilverAnswer] = []
    teacher = None
    for number, start in enumerate(range(0, len(examples), CHUNK)):
        chunk = examples[start : start + CHUNK]
        path = folder / f"answers-{number:05d}.jsonl"
        if not path.is_file():
            teacher = teacher or load()
            found = evaluator.answers(teacher, evaluator.eval_set(chunk), on_rows)
            rows = [_line(evaluator, example, answer) for example, answer in zip(chunk, found, strict=True)]
            ranks.once(partial(write_jsonl, path, rows))
        answers += list(read_jsonl(path))
    return answers


def _line(evaluator: Evaluator, example: Example, answer: Answer) -> SilverAnswer:
    parsed = evaluator.task.parse(answer.text, example)
    return {"id": example.id, "raw": answer.text, "prediction": parsed, "confidence": answer.confidence}


def kept_rows(
    rooms: Sequence[Room],
    examples: Sequence[Example],
    answers: Sequence[SilverAnswer],
    least: float = 0.0,
    spelled: Callable[[str, Sequence[EncodedRow]], bool] = lambda text, rows: True,
) -> Iterator[tuple[EncodedRow, ...]]:
    """The rows that students are trained on, with T*'s text as the answer; says in the others why they are not.

    rooms: of the student, and of a teacher with its own tokenizer; each gives a form of the row. least: probability
    below which an answer is not used. spelled: whether the tokens of all forms spell the answer.
    """
    for example, answer in zip(examples, answers, strict=True):
        text = answer["raw"].strip()
        forms = tuple(_row(room.encoder, example, text) for room in rooms)
        if answer["prediction"] is None or not spelled(text, forms):
            answer["left_out"] = "invalid"
        elif answer["confidence"] is None or answer["confidence"] < least:
            answer["left_out"] = "unsure"
        elif any(row.length > room.tokens for row, room in zip(forms, rooms, strict=True)):
            answer["left_out"] = "too_long"
        else:
            yield forms


def _row(encoder: Encoder, example: Example, text: str) -> EncodedRow:
    target = encoder.answer(text)
    return EncodedRow(example.id, example.split, encoder.prompt(example, len(target)), target)


def left_out_counts(answers: Sequence[SilverAnswer]) -> dict[str, int]:
    """Number of answers that `kept_rows` left out, by reason."""
    reasons = [answer.get("left_out") for answer in answers]
    return {reason: reasons.count(reason) for reason in ("invalid", "unsure", "too_long")}
