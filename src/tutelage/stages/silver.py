"""silver: T* answers the rows without gold, once; students then learn these rows from the teacher's distributions.

Writes silver/answers.jsonl (every unlabelled row: `raw` and parsed answer, the `target` that students learn,
`confidence`, and why it is left out),
silver/train.arrow (the rows with gold, then the kept ones with T*'s answer in place of gold) and silver/silver.json
(counts). Answers that cannot be parsed or were cut off are left out, and those below `silver.min_confidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import write_tokens
from tutelage.errors import DataError, Kind, Problem
from tutelage.records import Example
from tutelage.run import stage_inputs
from tutelage.run.artifacts import SilverRecord
from tutelage.run.run_folder import RunFolder
from tutelage.teacher.silver_rows import (
    SilverAnswer,
    answer_rows,
    answered_before,
    chunk_files,
    kept_rows,
    left_out_counts,
)
from tutelage.training.run_models import RunModels
from tutelage.utils import ranks
from tutelage.utils.files import read_records, write_json, write_jsonl


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage, if the recipe names rows without gold."""
    if not run.recipe.data.has_unlabelled:
        return
    inputs = stage_inputs.silver(run)
    with run.work("silver", inputs, restart_only=chunk_files) as work:
        if work is None:
            return
        examples = read_records(run.folder / "prepare" / "unlabelled.jsonl", Example)
        done = answered_before(work.folder, len(examples))
        with run.screen.progress("teacher's answers", len(examples), done) as advance:
            answers = answer_rows(
                models.taught.evaluator,
                lambda: models.load(run.recipe.teacher, run.best_teacher),
                examples,
                work.folder,
                models.rooms[-1],
                advance,
            )
        kept = _kept(models, examples, answers)
        counts = _counts(run, models, answers, len(kept))
        if not kept:
            longer = (
                f"task.max_new_tokens={2 * models.taught.evaluator.max_new_tokens}" if counts["unfinished"] else None
            )
            change = "silver.min_confidence=0" if counts["unsure"] else longer
            raise DataError(Problem(Kind.SILVER_EMPTIED, change=change, values={**counts}))
        ranks.once(lambda: _write(models, work.folder, answers, kept, counts))
        run.screen.say(f"silver: {_summary(counts)}")


def _kept(models: RunModels, examples: list[Example], answers: list[SilverAnswer]) -> list[tuple[EncodedRow, ...]]:
    """Every row that students are trained on, in the student's tokens and, where these differ, in the teacher's."""
    sides = [models] if models.taught is models else [models, models.taught]
    over_bytes = len(sides) > 1 or models.run.recipe.cache.form == "bytes"

    def spelled(text: str, rows: Sequence[EncodedRow]) -> bool:
        return not over_bytes or all(side.spells(text, row.answer) for side, row in zip(sides, rows, strict=True))

    return list(kept_rows(models.rooms, examples, answers, models.run.recipe.silver.min_confidence, spelled))


def _write(
    models: RunModels,
    folder: Path,
    answers: list[SilverAnswer],
    kept: list[tuple[EncodedRow, ...]],
    counts: SilverRecord,
) -> None:
    write_jsonl(folder / "answers.jsonl", answers)
    write_tokens(folder / "train.arrow", chain(models.encoded("train"), (rows[0] for rows in kept)))
    if models.taught is not models:
        write_tokens(folder / "teacher.arrow", chain(models.taught.encoded("train"), (rows[-1] for rows in kept)))
    write_json(folder / "silver.json", counts)


def _counts(run: RunFolder, models: RunModels, answers: list[SilverAnswer], kept: int) -> SilverRecord:
    sure = [answer["confidence"] for answer in answers if "left_out" not in answer]
    return {
        "teacher": run.teacher_checkpoints["best"],
        "rows": len(answers),
        "kept": kept,
        **left_out_counts(answers),
        "gold": len(models.encoded("train")),
        "confidence": float(np.mean(sure)) if sure else None,
    }


def _summary(counts: SilverRecord) -> str:
    left_out = {
        "cannot be parsed": counts["invalid"],
        "do not end within the tokens that an answer may have (task.max_new_tokens)": counts["unfinished"],
        "are below silver.min_confidence": counts["unsure"],
        "are too long": counts["too_long"],
    }
    parts = [f"{count:,} {why}" for why, count in left_out.items() if count]
    mean = f", mean confidence {counts['confidence']:.2f}" if counts["confidence"] is not None else ""
    rest = f"; left out: {', '.join(parts)}" if parts else ""
    return f"{counts['teacher']} answers {counts['rows']:,} rows, {counts['kept']:,} are used{mean}{rest}"
