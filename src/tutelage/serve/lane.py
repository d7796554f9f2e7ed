"""Waiting questions to one model, answered together by a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tutelage.predict.predictor import AnswerRecord
from tutelage.serve.reader import Question

Answer = Callable[[Sequence[Question]], list[AnswerRecord]]
OnBatch = Callable[[int, float], None]
"""Called with the rows of a batch and the seconds it took."""
_Waiting = tuple[Question, "Future[AnswerRecord]"]


class Lane:
    """A queue in front of a model. While a batch is answered the next one gathers; nothing waits for a batch to fill.

    Whoever asks bounds the queue.
    """

    def __init__(self, answer: Answer, batch_size: int, on_batch: OnBatch = lambda rows, seconds: None) -> None:
        """answer: the model; called in the lane's thread alone. batch_size: most rows of a call."""
        self._answer, self._batch_size, self._on_batch = answer, batch_size, on_batch
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    async def ask(self, question: Question) -> AnswerRecord:
        """The model's answer. Raises what answering this question raises."""
        future: Future[AnswerRecord] = Future()
        self._queue.put((question, future))
        return await asyncio.wrap_future(future)

    @property
    def is_alive(self) -> bool:
        """Whether questions will be answered."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            questions = [question for question, _ in batch]
            began = time.monotonic()
            try:
                answers: list[AnswerRecord | Exception] = [*self._answer(questions)]
            except Exception:
                answers = [self._alone(question) for question in questions]  # so that one row costs no other its answer
            self._on_batch(len(batch), time.monotonic() - began)
            for (_, future), answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _next_batch(self) -> list[_Waiting]:
        """The questions that have waited longest, at least one; none when the lane is closed and empty."""
        batch: list[_Waiting] = []
        while not batch:
            if (waiting := self._queue.get()) is None:
                return []
            self._take(waiting, batch)
        while len(batch) < self._batch_size:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._queue.put(None)  # for the next call
                break
            self._take(waiting, batch)
        return batch

    def _take(self, waiting: _Waiting, batch: list[_Waiting]) -> None:
        """Add a question that is still waited for."""
        if waiting[1].set_running_or_notify_cancel():
            batch.append(waiting)

    def _alone(self, question: Question) -> AnswerRecord | Exception:
        try:
            return self._answer([question])[0]
        except Exception as error:
            return error
