"""From requests to questions: rows are rendered as in training, prompts are taken as they are, and what the model could
not read is refused before it waits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.data.files.problems import half_character
from tutelage.data.row_formats import Turns, content_id, with_system
from tutelage.errors import DataError, Kind, Place, Problem, RowsError
from tutelage.predict.predictor import Predictor
from tutelage.records import Example
from tutelage.serve.refused import Refused

PLACE = "request"


@dataclass(frozen=True)
class Question:
    """One row or prompt to answer."""

    example: Example
    """Rendered for the student."""
    prompt_tokens: int
    row: dict[str, Any] | None = None
    """As it came, for a teacher that renders it by other rules; None for a prompt."""


class Reader:
    """Reads requests to one model. Not for several threads at a time: tokenizers are not."""

    def __init__(self, predictor: Predictor) -> None:
        """The tokenizer is copied, so that reading and answering share none."""
        self._predictor, self._data = predictor, predictor.data
        self._encoder = replace(predictor.encoder, tokenizer=copy.deepcopy(predictor.encoder.tokenizer))
        self._reserve = predictor.found.usage["max_new_tokens"]
        positions = getattr(predictor.model.config.get_text_config(), "max_position_embeddings", None)
        longest = self._data.max_length
        self.longest = longest if positions is None else min(longest, positions - self._reserve)
        """Most tokens of a prompt."""

    def rows(self, rows: Sequence[dict[str, Any]]) -> list[Question]:
        """Raises Refused for rows that cannot be rendered or are too long: all of them, each with its number."""
        questions, problems = [], []
        for number, row in enumerate(rows, start=1):
            place = Place(PLACE, number, "row")
            try:
                example = self._predictor.example(row, place)
                questions.append(Question(example, self._tokens(example, f"row {number}"), row))
            except DataError as error:
                problems += error.problems
        if problems:
            raise Refused.for_rows(problems_error(problems))
        return questions

    def prompt(self, text: str, name: str = "prompt") -> Question:
        """A prompt as the model reads it. Raises Refused."""
        return self._question(text, name)

    def messages(self, turns: Turns) -> Question:
        """Turns of a chat: rendered by the chat template, or joined by line breaks where the model was trained without
        one. Raises Refused."""
        if self._data.chat_template:
            return self._question(with_system(turns, self._data), "messages")
        return self._question("\n".join(turn["content"] for turn in turns), "messages")

    def _question(self, prompt: str | Turns, name: str) -> Question:
        if half := half_character(prompt):
            values = {"column": name, "character": f"\\u{ord(half):04x}"}
            raise Refused.for_rows(DataError(Problem(Kind.HALF_CHARACTER, values=values)))
        example = Example(content_id(prompt, ""), "test", prompt, "", [])
        try:
            return Question(example, self._tokens(example, name))
        except DataError as error:
            raise Refused.for_rows(error) from None

    def _tokens(self, example: Example, name: str) -> int:
        """Tokens of the prompt. Raises Refused for none or too many, DataError where the chat template refuses it."""
        count = len(self._encoder.prompt(example, self._reserve))
        if count == 0:
            raise Refused(400, str(Kind.PROMPT_WITHOUT_TOKENS), f"{name}: the prompt has no tokens", name)
        if count > self.longest:
            text = f"{name}: the prompt has {count:,} tokens, and this model takes at most {self.longest:,}: shorten it"
            raise Refused(400, "context_length_exceeded", text, name)
        return count

    def answer_tokens(self, text: str) -> list[int]:
        """Token ids of an answer, without end-of-sequence."""
        return self._encoder.answer(text)[:-1] if text else []

    def cut(self, tokens: list[int]) -> str:
        """The text of the first tokens of an answer."""
        return self._encoder.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    @property
    def longest_answer(self) -> int:
        """Most tokens of an answer."""
        return self._reserve


def problems_error(problems: list[Problem]) -> RowsError | DataError:
    """A single problem as a sentence, several as a list."""
    return RowsError(*problems) if len(problems) > 1 else DataError(problems[0])
