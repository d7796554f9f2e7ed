"""What `tutelage predict` does with its options."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.data.readers import PlacedRow, parse_object, read_rows
from tutelage.errors import ConfigError, Place
from tutelage.predict.answer_file import AnswerFile, is_table, refuse_unsuitable
from tutelage.predict.find_model import FoundModel, find_model, find_teacher, teacher_beside
from tutelage.predict.predictor import CHUNK_BATCHES, AnswerRecord, Answers, Cascade, Predictor, in_chunks
from tutelage.utils.console import Screen, as_json, out
from tutelage.utils.files import write_jsonl
from tutelage.utils.format import counted
from tutelage.utils.integrity import content_hash

STANDARD_INPUT = "-"


def predict(
    folder: Path,
    source: str,
    output: Path | None = None,
    *,
    model: str | None = None,
    columns: Sequence[str] = (),
    defer_below: float | None = None,
    teacher: Path | None = None,
    batch_size: int = 16,
) -> None:
    """Answer every row of `source`, a file, or `-` for JSON lines on standard input.

    folder, model: see `find_model`. output: None for JSON lines on standard output. columns: `ours=theirs`.
    defer_below: confidence in [0, 1] below which the teacher answers. teacher: see `find_teacher`; default: that of the
    student's own run. Raises ConfigError for options that do not fit together, and as `find_model` and
    `AnswerFile.write`.
    """
    if output is not None:
        refuse_unsuitable(output)
    found, theirs = find_model(folder, model), columns_of(columns)
    fallback = _teacher(folder, found, defer_below, teacher)
    answers: Answers = Predictor(found, batch_size, theirs)
    encoding = answers.data.encoding
    if fallback is not None and defer_below is not None:
        answers = Cascade(answers, Predictor(fallback, batch_size, theirs), defer_below)
    if source == STANDARD_INPUT:
        if output is not None and is_table(output):
            raise ConfigError(
                f"{output} would be a table, and rows of standard input are JSON lines: name a file of rows by --input,"
                " or write JSON lines (--output FILE.jsonl)"
            )
        _stream(in_chunks(answers, _standard_input(), batch_size), output)
        return
    rows = read_rows([source], encoding, need_answers=False)
    if output is None:
        _stream(in_chunks(answers, rows, batch_size * CHUNK_BATCHES), None)
        return
    inputs = {"model": found.fingerprint, "rows": content_hash(Path(source)), "columns": theirs}
    if fallback is not None:
        inputs |= {"teacher": fallback.fingerprint, "defer_below": defer_below}
    written = AnswerFile(output, inputs).write(rows, answers)
    Screen().say(f"{output}: {_summary(written)}")


def columns_of(options: Sequence[str]) -> dict[str, str]:
    """Our name of a column -> theirs, from `--column` options. Raises ConfigError for one that is not OURS=THEIRS."""
    columns = {}
    for text in options:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"--column {text}: write OURS=THEIRS, as in --column text=review")
        columns[ours] = theirs
    return columns


def _teacher(folder: Path, found: FoundModel, defer_below: float | None, run: Path | None) -> FoundModel | None:
    """The teacher that unsure rows go to."""
    if defer_below is None:
        if run is not None:
            raise ConfigError("--teacher answers what the student is unsure of: add --defer-below, e.g. 0.8")
        return None
    if found.name in ("teacher", "anchor"):
        raise ConfigError(f"--defer-below sends rows from a student to its teacher, and --model is {found.name}")
    teacher = find_teacher(run, found.usage) if run is not None else teacher_beside(folder)
    if teacher is None:
        raise ConfigError(f"{folder} lies in no run folder, so its teacher is not known: add --teacher RUN")
    return teacher


def _stream(answers: Iterator[AnswerRecord], output: Path | None) -> None:
    if output is not None:
        write_jsonl(output, answers, new=True)
        return
    for answer in answers:
        out(as_json(answer, indent=None), flush=True)


def _summary(answers: Sequence[AnswerRecord]) -> str:
    invalid = sum(answer["prediction"] is None for answer in answers)
    deferred = sum(answer.get("answered_by") == "teacher" for answer in answers)
    parts = [counted(len(answers), "answer")]
    parts += [f"{deferred:,} by the teacher ({deferred / len(answers):.0%})"] if deferred else []
    parts += [f"{invalid:,} that cannot be parsed"] if invalid else []
    return ", ".join(parts)


def _standard_input() -> Iterator[PlacedRow]:
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        place = Place("standard input", number)
        yield parse_object(line, place), place
