"""silver: T* answers the rows without gold, once; students then learn these rows from the teacher's distributions.

Writes silver/answers.jsonl (every unlabelled row: `raw` and parsed answer, `confidence`, and why it is left out),
silver/train.arrow (the rows with gold, then the kept ones with T*'s answer in place of gold) and silver/silver.json
(counts). Answers that cannot be parsed are left out, and those below `silver.min_confidence`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import write_tokens
from tutelage.errors import DataError, Kind, Problem
from tutelage.models.generation import Answer
from tutelage.records import Example
from tutelage.run import stage_inputs
from tutelage.run.artifacts import SilverRecord
from tutelage.run.run_folder import RunFolder
from tutelage.training.run_models import RunModels
from tutelage.utils import ranks
from tutelage.utils.files import read_jsonl, read_records, write_json, write_jsonl

CHUNK = 512
"""Rows answered between two saves: what an interrupted stage answers again at most."""


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


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage, if the recipe names rows without gold."""
    if not run.recipe.data.has_unlabelled:
        return
    inputs = stage_inputs.silver(run)
    with run.work("silver", inputs, restart_only=lambda folder: folder.glob("answers-*.jsonl")) as work:
        if work is None:
            return
        examples = read_records(run.folder / "prepare" / "unlabelled.jsonl", Example)
        answers = _answers(run, models, work.folder, examples)
        kept = list(_kept(models, examples, answers, run.recipe.silver.min_confidence))
        counts = _counts(run, models, answers, len(kept))
        if not kept:
            change = "silver.min_confidence=0" if counts["unsure"] else None
            raise DataError(Problem(Kind.SILVER_EMPTIED, change=change, values={**counts}))
        ranks.once(lambda: _write(models, work.folder, answers, kept, counts))
        run.screen.say(f"silver: {_summary(counts)}")


def _write(
    models: RunModels, folder: Path, answers: list[SilverAnswer], kept: list[EncodedRow], counts: SilverRecord
) -> None:
    write_jsonl(folder / "answers.jsonl", answers)
    write_tokens(folder / "train.arrow", chain(models.encoded("train"), kept))
    write_json(folder / "silver.json", counts)


def _answers(run: RunFolder, models: RunModels, folder: Path, examples: list[Example]) -> list[SilverAnswer]:
    """T*'s answers in the order of the examples, from where an interrupted stage stopped."""
    answers: list[SilverAnswer] = []
    teacher = None
    with run.screen.progress("teacher's answers", len(examples)) as advance:
        for number, start in enumerate(range(0, len(examples), CHUNK)):
            chunk = examples[start : start + CHUNK]
            path = folder / f"answers-{number:05d}.jsonl"
            if not path.is_file():
                teacher = teacher or models.load(run.recipe.teacher, run.best_teacher)
                found = models.evaluator.answers(teacher, models.evaluator.eval_set(chunk), advance)
                rows = [_line(run, example, answer) for example, answer in zip(chunk, found, strict=True)]
                ranks.once(partial(write_jsonl, path, rows))
            else:
                advance(len(chunk))
            answers += list(read_jsonl(path))
    return answers


def _line(run: RunFolder, example: Example, answer: Answer) -> SilverAnswer:
    parsed = run.task.parse(answer.text, example)
    return {"id": example.id, "raw": answer.text, "prediction": parsed, "confidence": answer.confidence}


def _kept(
    models: RunModels, examples: list[Example], answers: list[SilverAnswer], least: float
) -> Iterator[EncodedRow]:
    """The rows that students are trained on, with T*'s text as the answer; says in the others why they are not."""
    encoder = models.encoder
    for example, answer in zip(examples, answers, strict=True):
        target = encoder.answer(answer["raw"].strip())
        row = EncodedRow(example.id, example.split, encoder.prompt(example, len(target)), target)
        if answer["prediction"] is None:
            answer["left_out"] = "invalid"
        elif answer["confidence"] is None or answer["confidence"] < least:
            answer["left_out"] = "unsure"
        elif len(row.prompt) + len(target) > encoder.max_length:
            answer["left_out"] = "too_long"
        else:
            yield row


def _counts(run: RunFolder, models: RunModels, answers: list[SilverAnswer], kept: int) -> SilverRecord:
    reasons = [answer.get("left_out") for answer in answers]
    sure = [answer["confidence"] for answer in answers if "left_out" not in answer]
    return {
        "teacher": run.teacher_checkpoints["best"],
        "rows": len(answers),
        "kept": kept,
        "invalid": reasons.count("invalid"),
        "unsure": reasons.count("unsure"),
        "too_long": reasons.count("too_long"),
        "gold": len(models.encoded("train")),
        "confidence": float(np.mean(sure)) if sure else None,
    }


def _summary(counts: SilverRecord) -> str:
    left_out = {
        "cannot be parsed": counts["invalid"],
        "are below silver.min_confidence": counts["unsure"],
        "are too long": counts["too_long"],
    }
    parts = [f"{count:,} {why}" for why, count in left_out.items() if count]
    mean = f", mean confidence {counts['confidence']:.2f}" if counts["confidence"] is not None else ""
    rest = f"; left out: {', '.join(parts)}" if parts else ""
    return f"{counts['teacher']} answers {counts['rows']:,} rows, {counts['kept']:,} are used{mean}{rest}"
