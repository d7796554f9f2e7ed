"""silver: T* answers the rows without gold, once; students then learn these rows from the teacher's distributions.

Writes silver/answers.jsonl (every unlabelled row: `raw` and parsed answer, `confidence`, and why it is left out),
silver/train.arrow (the rows with gold, then the kept ones with T*'s answer in place of gold) and silver/silver.json
(counts). Answers that cannot be parsed are left out, and those below `silver.min_confidence`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import write_tokens
from tutelage.errors import DataError, Kind, Problem
from tutelage.records import Example
from tutelage.run import stage_inputs
from tutelage.run.artifacts import SilverRecord
from tutelage.run.run_folder import RunFolder
from tutelage.training.run_models import RunModels
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
        pairs = list(_kept(models, examples, answers, run.recipe.silver.min_confidence))
        kept = [row for row, _ in pairs]
        counts = _counts(run, models, answers, len(kept))
        if not kept:
            change = "silver.min_confidence=0" if counts["unsure"] else None
            raise DataError(Problem(Kind.SILVER_EMPTIED, change=change, values={**counts}))
        write_jsonl(work.folder / "answers.jsonl", answers)
        write_tokens(work.folder / "train.arrow", chain(models.encoded("train"), kept))
        if models.taught is not models:
            own = (row for _, row in pairs)
            write_tokens(work.folder / "teacher.arrow", chain(models.taught.encoded("train"), own))
        write_json(work.folder / "silver.json", counts)
        run.screen.say(f"silver: {_summary(counts)}")


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
                evaluator = models.taught.evaluator
                found = evaluator.answers(teacher, evaluator.eval_set(chunk), advance)
                rows = zip(chunk, found, strict=True)
                write_jsonl(path, (_line(run, example, answer.text, answer.confidence) for example, answer in rows))
            else:
                advance(len(chunk))
            answers += list(read_jsonl(path))
    return answers


def _line(run: RunFolder, example: Example, raw: str, confidence: float | None) -> SilverAnswer:
    return {"id": example.id, "raw": raw, "prediction": run.task.parse(raw, example), "confidence": confidence}


def _kept(
    models: RunModels, examples: list[Example], answers: list[SilverAnswer], least: float
) -> Iterator[tuple[EncodedRow, EncodedRow]]:
    """The rows that students are trained on, with T*'s text as the answer, in the student's and in the teacher's
    tokens; says in the others why they are not."""
    sides = [models] if models.taught is models else [models, models.taught]
    over_bytes = len(sides) > 1 or models.run.recipe.cache.form == "bytes"
    for example, answer in zip(examples, answers, strict=True):
        text = answer["raw"].strip()
        rows = [_row(side, example, text) for side in sides]
        spelled = not over_bytes or all(side.spells(text, row.answer) for side, row in zip(sides, rows, strict=True))
        if answer["prediction"] is None or not spelled:
            answer["left_out"] = "invalid"
        elif answer["confidence"] is None or answer["confidence"] < least:
            answer["left_out"] = "unsure"
        elif any(len(row.prompt) + len(row.answer) > models.encoder.max_length for row in rows):
            answer["left_out"] = "too_long"
        else:
            yield rows[0], rows[-1]


def _row(side: RunModels, example: Example, text: str) -> EncodedRow:
    target = side.encoder.answer(text)
    return EncodedRow(example.id, example.split, side.encoder.prompt(example, len(target)), target)


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
