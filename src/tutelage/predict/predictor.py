"""Answers of one model to rows, and of a cascade: a student, and its teacher where the student is unsure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NotRequired, TypedDict

from tutelage.data.collate import vocabulary_of
from tutelage.data.encode import Encoder, make_encoder
from tutelage.data.readers import PlacedRow
from tutelage.data.row_formats import example_from_row
from tutelage.errors import DataError, Place
from tutelage.models.evaluation import Evaluator
from tutelage.predict.find_model import FoundModel
from tutelage.recipe.renamed import translate_nested
from tutelage.recipe.schema import Data, Task
from tutelage.records import Example
from tutelage.run.threads import settle_threads
from tutelage.tasks import make_task
from tutelage.utils.console import Screen

CHUNK_BATCHES = 8
"""Batches read ahead from a file, so that rows of similar length are decoded together. Standard input is answered
batch by batch."""


class AnswerRecord(TypedDict):
    """A line of the output."""

    id: str
    prediction: Any
    """The answer as parsed by the task; None if it cannot be."""
    raw: str
    """The answer as written."""
    confidence: float | None
    """Probability in [0, 1] of the whole answer, under the model that gave it."""
    answered_by: NotRequired[str]
    """`student` or `teacher`, in a cascade."""


Answers = Callable[[Sequence[PlacedRow]], list[AnswerRecord]]
"""Gives the answers to rows, in order."""


class Predictor:
    """A model with its tokenizer, prompt and parser. The model is loaded with the first rows."""

    def __init__(
        self,
        found: FoundModel,
        batch_size: int = 16,
        columns: Mapping[str, str] | None = None,
        asker: Literal["option", "request"] = "option",
    ) -> None:
        """columns: our name -> the name in the rows, beside those of the run. asker: whether who has the rows can name
        their columns by `--column`, or sends them to a server; the recipe is out of reach for both."""
        self._asker = asker
        usage = found.usage
        self.found = found
        self.task_section = Task(**usage["task"])
        data = Data(**translate_nested({"data": usage["data"]})["data"])  # keys may be of an earlier version
        self.data = data.model_copy(update={"columns": {**data.columns, **(columns or {})}})
        self.task = make_task(self.task_section, self.task_section.labels, choice=usage["choice"])
        self.batch_size = batch_size

    @cached_property
    def encoder(self) -> Encoder:
        """Turns examples into tokens; loads the tokenizer."""
        return make_encoder(self.data, self.found.tokenizer(), self.task_section)

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first asked for."""
        settle_threads(Screen().say)
        return self.found.load()

    @cached_property
    def evaluator(self) -> Evaluator:
        """Task, tokenizer and decoding of the model."""
        vocabulary, decoding = vocabulary_of(self.encoder.tokenizer), self.task_section.decoding
        longest = self.found.usage["max_new_tokens"]
        return Evaluator(self.task, self.encoder, vocabulary, longest, decoding, self.batch_size)

    def __call__(self, rows: Sequence[PlacedRow]) -> list[AnswerRecord]:
        """Raises DataError for a row that cannot be rendered."""
        return self.answer([self.example(*placed) for placed in rows])

    def answer(self, examples: Sequence[Example]) -> list[AnswerRecord]:
        """The answers to rendered rows, in order. Raises DataError for a prompt without tokens."""
        answers = self.evaluator.answers(self.model, self.evaluator.eval_set(examples))
        return [
            {
                "id": example.id,
                "prediction": self.task.parse(answer.text, example),
                "raw": answer.text,
                "confidence": answer.confidence,
            }
            for example, answer in zip(examples, answers, strict=True)
        ]

    def example(self, row: dict[str, Any], place: Place) -> Example:
        """A row, rendered as in training; its answer is not read. Raises DataError."""
        task, labels = self.task_section, self.task_section.labels
        try:
            return example_from_row(
                row, place=place, split="test", task=task, data=self.data, labels=labels, need_answer=False
            )
        except DataError as error:
            asker = {"asker": self._asker}
            raise DataError(*(replace(p, change=None, values=p.values | asker) for p in error.problems)) from None


class Cascade:
    """The student's answers, and the teacher's where the student is unsure (`is_unsure`)."""

    def __init__(self, student: Answers, teacher: Answers, defer_below: float) -> None:
        """defer_below: in [0, 1]."""
        self.student, self.teacher, self.defer_below = student, teacher, defer_below

    def __call__(self, rows: Sequence[PlacedRow]) -> list[AnswerRecord]:
        """Raises as `Predictor`."""
        answers = self.student(rows)
        unsure = [n for n, answer in enumerate(answers) if is_unsure(answer, self.defer_below)]
        deferred = dict(zip(unsure, self.teacher([rows[n] for n in unsure]) if unsure else (), strict=True))
        return [
            {**deferred.get(n, answer), "id": answer["id"], "answered_by": "teacher" if n in deferred else "student"}
            for n, answer in enumerate(answers)
        ]


def is_unsure(answer: AnswerRecord, defer_below: float) -> bool:
    """Whether a cascade passes a student's answer on to the teacher: always, if it cannot be used as it is."""
    return is_unusable(answer) or (answer["confidence"] or 0.0) < defer_below


def is_unusable(answer: AnswerRecord) -> bool:
    """Whether an answer cannot be parsed, however sure the model was of it, or has no confidence to judge it by."""
    return answer["prediction"] is None or answer["confidence"] is None


def in_chunks(answers: Answers, rows: Iterable[PlacedRow], size: int) -> Iterator[AnswerRecord]:
    """The answers, from as many rows at a time. They do not depend on the size but for rounding."""
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield from answers(chunk)
