"""The teacher of a cascade: a model on this machine, or behind any OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI, OpenAIError

from tutelage.errors import ConfigError, ModelError, Place
from tutelage.errors.wording import first_line
from tutelage.predict.predictor import AnswerRecord, Predictor
from tutelage.records import Example
from tutelage.serve.lane import Lane, OnBatch
from tutelage.serve.reader import PLACE, Question
from tutelage.tasks.base import BaseTask
from tutelage.tasks.verbalizers import Verbalizers

KEY = "TUTELAGE_TEACHER_KEY"
"""Environment variable with the API key of the teacher's URL."""
TIMEOUT = 60.0
"""Seconds until a call of the teacher's URL is given up; the client retries twice."""
CALLS = 16
"""Calls of the teacher's URL at a time."""


class LocalTeacher:
    """A model on this machine, in a thread of its own."""

    def __init__(self, predictor: Predictor, on_batch: OnBatch = lambda rows, seconds: None) -> None:
        """predictor: renders rows by the rules of its own run."""
        self._predictor = predictor
        self._lane = Lane(self._answer, predictor.batch_size, on_batch)

    async def ask(self, question: Question) -> AnswerRecord:
        """Its answer. Raises DataError for a row that its run cannot render."""
        return await self._lane.ask(question)

    def answers(self, examples: Sequence[Example]) -> list[AnswerRecord]:
        """Answers to rendered rows; not while questions are asked."""
        return self._predictor.answer(examples)

    def close(self) -> None:
        """Answer what waits, and stop."""
        self._lane.close()

    def _answer(self, questions: Sequence[Question]) -> list[AnswerRecord]:
        return self._predictor.answer([self._rendered(question) for question in questions])

    def _rendered(self, question: Question) -> Example:
        if question.row is None:
            return question.example
        return self._predictor.example(question.row, Place(PLACE))


class RemoteTeacher:
    """A model behind a URL, asked by the student's prompt as a chat. Its text is parsed as the student's."""

    def __init__(
        self, url: str, task: BaseTask, model: str | None = None, verbalizers: Verbalizers | None = None
    ) -> None:
        """url: base URL, up to `/v1`. model: default, the only one that the server lists. verbalizers: short forms of
        labels in the student's prompts, which the teacher may answer with.

        Raises ModelError for a server that cannot be asked, ConfigError where it lists several models.
        """
        key = os.environ.get(KEY) or "none"
        self._client = OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=2)
        self._task, self._model = task, model or self._only_model(url)
        self._verbalizers = verbalizers or Verbalizers()
        self._pool = ThreadPoolExecutor(CALLS)

    def _only_model(self, url: str) -> str:
        try:
            names = [model.id for model in self._client.models.list()]
        except OpenAIError as error:
            raise ModelError(
                f"--teacher {url}: its models cannot be listed ({type(error).__name__}: {first_line(error)}). Name the"
                f" base URL, which mostly ends in /v1, set {KEY} if it needs a key, or name the model: --teacher-model"
            ) from error
        if len(names) != 1:
            listed = ", ".join(names[:10]) or "none"
            raise ConfigError(f"--teacher {url} has {len(names)} models ({listed}): choose one, --teacher-model NAME")
        return names[0]

    async def ask(self, question: Question) -> AnswerRecord:
        """Its answer. Raises OpenAIError."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, question.example)

    def answers(self, examples: Sequence[Example]) -> list[AnswerRecord]:
        """Answers to rendered rows. Raises OpenAIError."""
        return list(self._pool.map(self._ask, examples))

    def close(self) -> None:
        """Answer what waits, and stop."""
        self._pool.shutdown()
        self._client.close()

    def _ask(self, example: Example) -> AnswerRecord:
        prompt = example.prompt
        turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        completion = self._client.chat.completions.create(model=self._model, messages=turns, temperature=0)
        choice = completion.choices[0]
        raw = self._verbalizers.read((choice.message.content or "").strip())
        confidence = (choice.model_extra or {}).get("confidence")  # of a server like ours
        return {
            "id": example.id,
            "prediction": self._task.parse(raw, example),
            "raw": raw,
            "confidence": confidence if isinstance(confidence, float) and 0 <= confidence <= 1 else None,
        }
