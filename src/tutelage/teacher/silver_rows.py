"""Rows without gold with the teacher's answers: answered chunk by chunk, then made into rows to train on.

A chunk is a file, so that an interrupted process goes on with the next one. The stage `silver` and `SCDTrainer` both
use this; methods that learn T*'s answers to rows with gold use the lines and what students learn of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from torch import nn

from tutelage.data.encode import EncodedRow, Encoder, Room
from tutelage.models.evaluation import EvalSet, Evaluator, OnRows
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
    """Probability in [0, 1] that T* gives to the whole `target`, its end included; without one, to what it wrote."""
    target: NotRequired[str | None]
    """What students learn of it: `raw` as the task reads it, see `BaseTask.learned`; None if they cannot. Absent in
    files of earlier versions, where they learned `raw`."""
    ended: NotRequired[bool]
    """Whether T* ended its answer within the tokens that it may have; absent in files of earlier versions."""
    left_out: NotRequired[str]
    """One of `REASONS`; absent for rows that students are trained on."""


REASONS = ("invalid", "unfinished", "unsure", "too_long")
"""Why an answer is left out: it cannot be parsed; it was cut off; T* is less sure of it than the recipe asks for; with
its prompt it is too long."""


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
    room: Room,
    on_rows: OnRows = lambda count: None,
) -> list[SilverAnswer]:
    """The teacher's answers in the order of the examples, from where an interrupted process stopped.

    load: gives T*; called once, if there is something left to answer. room: as T* reads rows. on_rows: counts the rows
    that are new.
    """
    answers: list[SilverAnswer] = []
    teacher = None
    for number, start in enumerate(range(0, len(examples), CHUNK)):
        chunk = examples[start : start + CHUNK]
        path = folder / f"answers-{number:05d}.jsonl"
        if not path.is_file():
            teacher = teacher or load()
            asked = evaluator.eval_set(chunk)
            rows = _read_again(evaluator, teacher, asked, evaluator.answers(teacher, asked, on_rows), room)
            ranks.once(partial(write_jsonl, path, rows))
        answers += list(read_jsonl(path))
    return answers


def _read_again(
    evaluator: Evaluator, teacher: nn.Module, asked: EvalSet, answers: Sequence[Answer], room: Room
) -> list[SilverAnswer]:
    """The lines of some answers. Where students learn something else than T* wrote, T* reads that as well, so that its
    confidence is in what they learn."""
    lines, again = [], {}
    for index, (example, answer) in enumerate(zip(asked.examples, answers, strict=True)):
        line = silver_answer(evaluator, example, answer)
        lines.append(line)
        target, confidence = line["target"], line["confidence"]
        if target is None or confidence is None or (answer.ended and target == answer.text.strip()):
            continue
        row = EncodedRow(example.id, example.split, list(asked.prompts[index]), evaluator.encoder.answer(target))
        if row.length <= room.tokens:  # others are left out for their length
            again[index] = row
    losses = evaluator.losses(teacher, list(again.values())) if again else []
    for (index, row), loss in zip(again.items(), losses, strict=True):
        lines[index]["confidence"] = math.exp(-float(loss) * len(row.answer))
    return lines


def silver_answer(evaluator: Evaluator, example: Example, answer: Answer) -> SilverAnswer:
    """The line of an answer, with the confidence in what T* wrote."""
    return {
        "id": example.id,
        "raw": answer.text,
        "prediction": evaluator.task.parse(answer.text, example),
        "target": evaluator.learned(answer, example),
        "ended": answer.ended,
        "confidence": answer.confidence,
    }


def kept_rows(
    rooms: Sequence[Room],
    examples: Sequence[Example],
    answers: Sequence[SilverAnswer],
    least: float = 0.0,
    spelled: Callable[[str, Sequence[EncodedRow]], bool] = lambda text, rows: True,
) -> Iterator[tuple[EncodedRow, ...]]:
    """The rows that students are trained on, with what they learn of T*'s text as the answer; says in the others why
    they are not.

    rooms: of the student, and of a teacher with its own tokenizer; each gives a form of the row. least: probability
    below which an answer is not used. spelled: whether the tokens of all forms spell the answer.
    """
    for example, answer in zip(examples, answers, strict=True):
        text = _target(answer)
        if text is None:
            answer["left_out"] = _unusable(answer)
            continue
        forms = tuple(_row(room.encoder, example, text) for room in rooms)
        if not spelled(text, forms):
            answer["left_out"] = "invalid"
        elif answer["confidence"] is None or answer["confidence"] < least:
            answer["left_out"] = "unsure"
        elif any(row.length > room.tokens for row, room in zip(forms, rooms, strict=True)):
            answer["left_out"] = "too_long"
        else:
            yield forms


def learned_rows(room: Room, rows: Sequence[EncodedRow], answers: Sequence[SilverAnswer]) -> Iterator[EncodedRow]:
    """Rows with T*'s answer in place of gold; gold stays where `left_out` then says why that cannot be learned.

    room: as students read rows.
    """
    for row, answer in zip(rows, answers, strict=True):
        text = _target(answer)
        learned = None if text is None else replace(row, answer=room.encoder.answer(text))
        if learned is None:
            answer["left_out"] = _unusable(answer)
        elif learned.length > room.tokens:
            answer["left_out"], learned = "too_long", None
        yield learned or row


def _target(answer: SilverAnswer) -> str | None:
    """What students learn of an answer; None if nothing."""
    if "target" in answer:
        return answer["target"]
    return None if answer["prediction"] is None else answer["raw"].strip()


def _unusable(answer: SilverAnswer) -> str:
    """Why there is nothing to learn of an answer."""
    return "invalid" if answer.get("ended", True) else "unfinished"


def _row(encoder: Encoder, example: Example, text: str) -> EncodedRow:
    target = encoder.answer(text)
    return EncodedRow(example.id, example.split, encoder.prompt(example, len(target)), target)


def left_out_counts(answers: Sequence[SilverAnswer]) -> dict[str, int]:
    """Number of answers that `kept_rows` left out, by reason."""
    reasons = [answer.get("left_out") for answer in answers]
    return {reason: reasons.count(reason) for reason in REASONS}
