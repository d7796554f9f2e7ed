"""Answers to questions: the student's, and the teacher's where the student is unsure. Bounded: what does not fit is
refused at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, Protocol

from tutelage.errors.wording import first_line
from tutelage.predict.predictor import AnswerRecord, is_unsure
from tutelage.serve.lane import Answer, Lane
from tutelage.serve.metrics import Metrics
from tutelage.serve.reader import Question
from tutelage.serve.refused import Refused
from tutelage.utils.console import Screen

LONGEST_RETRY = 60
"""Seconds that a client is told to wait at most."""
_WEIGHT = 0.2
"""Of the newest batch in the mean of seconds a row."""


class ServedAnswer(AnswerRecord):
    """A line of `tutelage predict`; `answered_by` is always there."""

    teacher_error: NotRequired[str]
    """Why the teacher did not answer a row that was passed on; then the student's answer stands."""


class Asked(Protocol):
    """A teacher."""

    async def ask(self, question: Question) -> AnswerRecord:
        """Its answer. Raises any exception without one."""

    def close(self) -> None:
        """Answer what waits, and stop."""


@dataclass(frozen=True)
class Deferral:
    """The teacher, and which rows go to it."""

    teacher: Asked
    below: float
    """Confidence in [0, 1]."""


class Service:
    """The models of a server, with room for a number of rows."""

    def __init__(
        self,
        answer: Answer,
        *,
        role: str,
        room: int,
        batch_size: int,
        deferral: Deferral | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """answer: the model, for batches. role: what `answered_by` calls it. room: most rows that wait or are being
        answered."""
        self.metrics, self.room, self._inside = metrics or Metrics(), room, 0
        self._role, self._deferral, self._screen = role, deferral, Screen()
        self._seconds_per_row = 0.0
        self._lane = Lane(answer, batch_size, self._on_batch)
        if deferral is not None:
            self.metrics.threshold.set(deferral.below)

    async def answer(self, questions: Sequence[Question]) -> list[ServedAnswer]:
        """Answers in order. Raises Refused where the rows do not fit, now or ever, and what answering them raises."""
        count = len(questions)
        self._admit(count)
        try:
            answers = await asyncio.gather(*map(self._one, questions), return_exceptions=True)
        finally:
            self._add(-count)
        if error := next((answer for answer in answers if isinstance(answer, BaseException)), None):
            raise error
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    @property
    def is_healthy(self) -> bool:
        """Whether questions will be answered."""
        return self._lane.is_alive

    def close(self) -> None:
        """Answer what waits, and stop."""
        self._lane.close()
        if self._deferral is not None:
            self._deferral.teacher.close()

    # --- room ---

    def _admit(self, count: int) -> None:
        if count > self.room:
            text = f"{count:,} rows in a request, and this server holds at most {self.room:,}: send fewer at a time"
            raise Refused(413, "too_many_rows", text)
        if self._inside + count > self.room:
            seconds = min(max(math.ceil(self._inside * self._seconds_per_row), 1), LONGEST_RETRY)
            text = f"{self._inside:,} rows are waiting, and this server holds {self.room:,}: retry in {seconds} s"
            raise Refused(503, "queue_full", text, retry_after=seconds)
        self._add(count)

    def _add(self, count: int) -> None:
        self._inside += count
        self.metrics.inside.set(self._inside)

    def _on_batch(self, rows: int, seconds: float) -> None:
        self.metrics.batches.labels(self._role).observe(rows)
        old, new = self._seconds_per_row, seconds / rows
        self._seconds_per_row = new if not old else (1 - _WEIGHT) * old + _WEIGHT * new

    # --- answers ---

    async def _one(self, question: Question) -> ServedAnswer:
        own = await self._lane.ask(question)
        answer = _served(own, own["id"], self._role)
        if self._deferral is not None and is_unsure(own, self._deferral.below):
            answer = await self._deferred(question, answer, self._deferral)
        self.metrics.rows.labels(answer["answered_by"]).inc()
        if answer["prediction"] is None:
            self.metrics.unreadable.inc()
        return answer

    async def _deferred(self, question: Question, own: ServedAnswer, deferral: Deferral) -> ServedAnswer:
        """The teacher's answer; the student's where the teacher fails."""
        self.metrics.deferred.inc()
        confidence = "none" if own["confidence"] is None else f"{own['confidence']:.4f}"
        began = time.monotonic()
        try:
            theirs = await deferral.teacher.ask(question)
        except Exception as error:
            self.metrics.failures.inc()
            reason = f"{type(error).__name__}: {first_line(error)}"
            self._screen.warn(f"{own['id']}: confidence {confidence}, and the teacher failed: {reason}")
            return {**own, "teacher_error": reason}
        seconds = time.monotonic() - began
        self._screen.say(f"{own['id']}: confidence {confidence}, answered by the teacher in {seconds:.2f} s")
        return _served(theirs, own["id"], "teacher")


def _served(answer: AnswerRecord, row: str, answered_by: str) -> ServedAnswer:
    """row: id."""
    prediction, raw, confidence = answer["prediction"], answer["raw"], answer["confidence"]
    return {"id": row, "prediction": prediction, "raw": raw, "confidence": confidence, "answered_by": answered_by}
