"""Answers, scores and gold losses of a model on examples: on validation to choose, on test to report."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tutelage.data.collate import Collator, pad_id_of
from tutelage.data.encode import EncodedRow, Encoder
from tutelage.data.token_store import in_units, length_order, unit_lengths
from tutelage.errors import ModelError
from tutelage.models.forward import evaluating, read_batch
from tutelage.models.generation import Answer, generate_answers
from tutelage.models.label_scoring import choose_labels
from tutelage.records import Example, Interval, Prediction, SampleLoss
from tutelage.tasks.base import BaseTask
from tutelage.utils import ranks
from tutelage.utils.bootstrap import bootstrap

OnRows = Callable[[int], None]
"""Called with the number of rows done since its last call."""


@dataclass(frozen=True)
class EvalSet:
    """Examples ready for models to answer: rendered and tokenized once, however many models there are."""

    examples: Sequence[Example]
    rows: Sequence[EncodedRow]
    """The examples as token ids, answers included; empty if no losses are needed."""
    prompts: list[array[int]]
    labels: list[list[str]]
    """Allowed answers of each example; empty lists where answers are free text."""
    candidates: list[list[list[int]]]
    """The labels as token ids, without end-of-sequence."""


class ValidationScores(NamedTuple):
    """A model on validation examples: what choices are made by."""

    score: float
    """The task's metric over all rows."""
    scores: list[float]
    """[rows] each row's own score in [0, 1]."""
    losses: np.ndarray
    """[rows] l_i(M): means over the answer's tokens in nats, end-of-sequence included."""
    interval: Interval
    """`score` with its 95 % interval."""
    unreadable: float
    """Fraction of rows without a readable answer."""


@dataclass(frozen=True)
class Evaluator:
    """Task, tokenizer and decoding: all of evaluation that does not depend on the model."""

    task: BaseTask
    encoder: Encoder
    vocabulary: int
    """Number of the tokenizer's entries; logits beyond it are cut off."""
    max_new_tokens: int
    decoding: str = "generate"
    """`generate` or `labels`, as task.decoding."""
    batch_size: int = 16

    def eval_set(self, examples: Sequence[Example], rows: Sequence[EncodedRow] = ()) -> EvalSet:
        """Examples ready for models to answer."""
        prompts = [array("i", self.encoder.prompt(example, self.max_new_tokens)) for example in examples]
        closed = self.decoding != "generate"
        labels = [list(example.labels or self.task.labels or []) if closed else [] for example in examples]
        encoded = {label: self.encoder.answer(label)[:-1] for label in {label for row in labels for label in row}}
        return EvalSet(examples, rows, prompts, labels, [[encoded[label] for label in row] for row in labels])

    def answers(self, model: nn.Module, eval_set: EvalSet, on_rows: OnRows | None = None) -> list[Answer]:
        """Raw answers in the order of the examples: greedy text, or the most probable of the row's labels. Short forms
        of labels (`task.verbalizers`) are undone.

        The probability of a label is that of its text among all texts, not among the labels.
        """
        batching = {"batch_size": self.batch_size, "on_batch": on_rows}
        tokenizer = self.encoder.tokenizer
        if self.decoding == "generate":
            most = self.max_new_tokens
            written = generate_answers(model, tokenizer, eval_set.prompts, max_new_tokens=most, **batching)
            return [answer._replace(text=self.encoder.verbalizers.read(answer.text)) for answer in written]
        winners = choose_labels(model, tokenizer, eval_set.prompts, eval_set.candidates, **batching)
        return [
            Answer(labels[winner.index], winner.log_prob)
            for labels, winner in zip(eval_set.labels, winners, strict=True)
        ]

    def learned(self, answer: Answer, example: Example) -> str | None:
        """The text that a student learns of a teacher's answer; see `BaseTask.learned`."""
        written = self.encoder.verbalizers.written
        return self.task.learned(answer.text, example, ended=answer.ended, written=written)

    def losses(self, model: nn.Module, rows: Sequence[EncodedRow], on_rows: OnRows | None = None) -> np.ndarray:
        """[rows] l_i(M) in nats, in the order of the rows. Raises ModelError if one is NaN or infinite."""
        losses = sample_losses(
            model,
            rows,
            vocabulary=self.vocabulary,
            pad_id=pad_id_of(self.encoder.tokenizer),
            batch_size=self.batch_size,
            on_rows=on_rows,
        )
        wrong = np.flatnonzero(~np.isfinite(losses))
        if len(wrong):
            raise ModelError(
                f"the model's loss is NaN or infinite on {len(wrong):,} of {len(rows):,} rows, the first"
                f" {rows[int(wrong[0])].id}: its training diverged, or its dtype is too narrow. Lower its"
                " learning_rate, or load it in float32"
            )
        return losses

    def predict(
        self, name: str, model: nn.Module, eval_set: EvalSet, on_rows: OnRows | None = None
    ) -> list[Prediction]:
        """Answer, parsed answer, score, loss and confidence of a model on every example. name: recorded with each."""
        answers = self.answers(model, eval_set, on_rows)
        losses = self.losses(model, eval_set.rows)
        predictions = []
        for example, answer, loss in zip(eval_set.examples, answers, losses, strict=True):
            parsed = self.task.parse(answer.text, example)
            score, gold = self.task.score(parsed, example), self.task.gold(example)
            row = (example.id, name, example.split, gold, answer.text, parsed, score, float(loss))
            predictions.append(Prediction(*row, confidence=answer.confidence))
        return predictions

    def summary(
        self, predictions: Sequence[Prediction], examples: Sequence[Example], resamples: int = 1000
    ) -> dict[str, Any]:
        """Every metric, and the mean loss, as {"value", "low", "high"} with bootstrap 95 % intervals."""
        metrics = self.task.metrics([p.prediction for p in predictions], examples, resamples=resamples)
        table = {name: interval._asdict() for name, interval in metrics.items()}
        losses = np.array([[prediction.nll] for prediction in predictions])
        table |= {name: interval._asdict() for name, interval in bootstrap(losses, _mean_nll, resamples).items()}
        return table

    def validate(self, model: nn.Module, eval_set: EvalSet, on_rows: OnRows | None = None) -> ValidationScores:
        """Score over all examples, score of each, and losses."""
        answers, examples = self.answers(model, eval_set, on_rows), eval_set.examples
        parsed = [self.task.parse(answer.text, example) for answer, example in zip(answers, examples, strict=True)]
        interval = self.task.metrics(parsed, examples)[self.task.metric]
        scores = [self.task.score(answer, example) for answer, example in zip(parsed, examples, strict=True)]
        unreadable = sum(answer is None for answer in parsed) / len(parsed)
        return ValidationScores(interval.value, scores, self.losses(model, eval_set.rows), interval, unreadable)


def _mean_nll(draws: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """[draws] mean losses; a statistic for `bootstrap`, which draws rows with replacement."""
    return {"nll": draws @ rows[:, 0] / draws.sum(1)}


@torch.no_grad()
def sample_losses(
    model: nn.Module,
    rows: Sequence[EncodedRow],
    *,
    vocabulary: int,
    pad_id: int,
    batch_size: int,
    on_rows: OnRows | None = None,
) -> np.ndarray:
    """[rows] losses in nats per answer token, by teacher-forced forward passes.

    Rows are read in batches of similar length, which several processes share out; losses come in the order of the rows.
    """
    collate, order = Collator(pad_id), length_order(rows)
    losses: dict[int, float] = {}
    with evaluating(model):
        for start in ranks.share(range(0, len(order), batch_size)):
            indices = order[start : start + batch_size]
            read = read_batch(model, collate([(index, rows[index]) for index in indices]), vocabulary)
            losses.update(zip(indices, read.row_losses.double().tolist(), strict=True))
            if on_rows:
                on_rows(len(indices) * ranks.size())
    everywhere = ranks.joined(losses)
    return in_units(np.array([everywhere[index] for index in range(len(rows))]), rows)


def loss_records(rows: Sequence[EncodedRow], nll: np.ndarray) -> Iterator[SampleLoss]:
    """The losses of rows as records, one at a time. nll: [rows]."""
    for row, loss, tokens in zip(rows, nll.tolist(), unit_lengths(rows).tolist(), strict=True):
        yield SampleLoss(row.id, row.split, loss, tokens)


def validation_records(rows: Sequence[EncodedRow], validated: ValidationScores) -> Iterator[dict[str, Any]]:
    """Loss and score of validation rows as lines of a file, one at a time."""
    for loss, score in zip(loss_records(rows, validated.losses), validated.scores, strict=True):
        yield {**asdict(loss), "score": score}
