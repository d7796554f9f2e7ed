"""`tutelage predict`: answers of a distilled student to new rows, rendered and parsed exactly as in training."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tutelage.data.collate import vocabulary_of
from tutelage.data.encode import make_encoder
from tutelage.data.readers import PlacedRow, parse_object, read_rows
from tutelage.data.row_formats import example_from_row
from tutelage.errors import Kind, ModelError, Place, Problem, UserError
from tutelage.models.evaluation import Evaluator
from tutelage.models.load import load_model, load_tokenizer
from tutelage.recipe.renamed import translate_nested
from tutelage.recipe.schema import Data, Model, Task
from tutelage.records import Example
from tutelage.tasks import make_task
from tutelage.utils.console import as_json, out
from tutelage.utils.files import read_json, write_jsonl
from tutelage.utils.integrity import present

CHUNK_BATCHES = 8
"""Batches read ahead from a file, so that rows of like length are decoded together. Standard input is answered batch by
batch."""


def predict_file(folder: Path, source: str, output: Path | None, batch_size: int) -> None:
    """Write one JSON line for every row of `source` (a file, or `-` for JSON lines on standard input).

    output: file for the answers; None for standard output. Raises UserError if it exists: it could be the input, or
    earlier answers.
    """
    if output is not None and output.exists():
        raise UserError(Problem(Kind.FILE_EXISTS, values={"path": str(output)}))
    answer = Predictor(folder, batch_size, read_ahead=1 if source == "-" else CHUNK_BATCHES)
    if output is not None:
        write_jsonl(output, answer(_rows(source, answer.data.encoding)), new=True)
        return
    for line in answer(_rows(source, answer.data.encoding)):
        out(as_json(line, indent=None), flush=True)


class Predictor:
    """A student with its tokenizer, prompt and parser, which are described in `tutelage.json` in its folder."""

    def __init__(self, folder: Path, batch_size: int = 16, read_ahead: int = CHUNK_BATCHES) -> None:
        """Load the student. read_ahead: batches of rows that are read before the first is answered.

        Raises ModelError if `distill` did not write the folder.
        """
        if not present(folder / "tutelage.json"):
            raise ModelError(
                f"{folder} has no tutelage.json: name the folder of a distilled student, RUN/distill/METHOD/seed-K"
            )
        usage = read_json(folder / "tutelage.json")
        self.task_section = Task(**usage["task"])
        self.data = Data(**translate_nested({"data": usage["data"]})["data"])  # keys may be of an earlier version
        model_section = Model(model_name_or_path=str(folder), dtype="auto")
        tokenizer = load_tokenizer(model_section)
        self.task = make_task(self.task_section, self.task_section.labels, choice=usage["choice"])
        encoder = make_encoder(self.data, tokenizer)
        decoding, vocabulary = self.task_section.decoding, vocabulary_of(tokenizer)
        self.evaluator = Evaluator(self.task, encoder, vocabulary, usage["max_new_tokens"], decoding, batch_size)
        self.model, self.rows_ahead = load_model(model_section), batch_size * read_ahead

    def __call__(self, rows: Iterable[PlacedRow]) -> Iterator[dict[str, Any]]:
        """Answers to (row, place) in order: id, prediction, raw text, confidence in [0, 1] or None."""
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, self.rows_ahead)):
            examples = [self._example(row, place) for row, place in chunk]
            answers = self.evaluator.answers(self.model, self.evaluator.eval_set(examples))
            for example, answer in zip(examples, answers, strict=True):
                parsed = self.task.parse(answer.text, example)
                yield {"id": example.id, "prediction": parsed, "raw": answer.text, "confidence": answer.confidence}

    def _example(self, row: dict[str, Any], place: Place) -> Example:
        return example_from_row(
            row,
            place=place,
            split="test",
            task=self.task_section,
            data=self.data,
            labels=self.task_section.labels,
            need_answer=False,
        )


def _rows(source: str, encoding: str | None) -> Iterator[PlacedRow]:
    if source != "-":
        yield from read_rows([source], encoding)
        return
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        place = Place("standard input", number)
        yield parse_object(line, place), place
