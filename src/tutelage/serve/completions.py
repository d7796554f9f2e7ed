"""Answers in the form of OpenAI's API, whole or as a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.serve.bodies import ChatBody, CompletionBody
from tutelage.serve.reader import Question, Reader
from tutelage.serve.service import ServedAnswer

OWN_FIELDS = ("prediction", "confidence", "answered_by", "teacher_error")
"""What a choice has beyond OpenAI's: the fields of `/v1/answer`, always of the whole answer."""


@dataclass(frozen=True)
class Completion:
    """The answers to one request."""

    body: ChatBody | CompletionBody
    questions: Sequence[Question]
    answers: Sequence[ServedAnswer]
    reader: Reader

    @property
    def is_chat(self) -> bool:
        """Whether choices are messages."""
        return isinstance(self.body, ChatBody)

    def whole(self) -> dict[str, Any]:
        """The response in one piece."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        texts = [self._text(answer) for answer in self.answers]
        choices = []
        for index, (text, finish) in enumerate(texts):
            content: dict[str, Any] = {"text": text}
            if self.is_chat:
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append(self._choice(index, content, finish) | self._own(index))
        return self._head(kind) | {"choices": choices, "usage": self._usage(texts)}

    def events(self) -> Iterator[str]:
        """The response as server-sent events. Answers are short: each comes in one piece."""
        head = self._head("chat.completion.chunk" if self.is_chat else "text_completion")
        texts = [self._text(answer) for answer in self.answers]
        for index, (text, finish) in enumerate(texts):
            piece: dict[str, Any] = {"text": text}
            nothing: dict[str, Any] = {"text": ""}
            if self.is_chat:
                piece, nothing = {"delta": {"role": "assistant", "content": text}}, {"delta": {}}
            yield _event(head | {"choices": [self._choice(index, piece, None)]})
            yield _event(head | {"choices": [self._choice(index, nothing, finish) | self._own(index)]})
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield _event(head | {"choices": [], "usage": self._usage(texts)})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        created = int(time.time())
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": created, "model": self.body.model}

    def _choice(self, index: int, content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}

    def _own(self, index: int) -> dict[str, Any]:
        answer: dict[str, Any] = {**self.answers[index]}
        return {name: answer[name] for name in OWN_FIELDS if name in answer}

    def _text(self, answer: ServedAnswer) -> tuple[str, str]:
        """The answer's text as the client wants it cut, and why it ends."""
        text, most = answer["raw"], self.body.most_tokens
        ends = [text.index(stop) for stop in self.body.stop or [] if stop and stop in text]
        text = text[: min(ends)] if ends else text
        tokens = self.reader.answer_tokens(text)
        if most is not None and len(tokens) > most:
            return self.reader.cut(tokens[:most]), "length"
        return text, "length" if not ends and len(tokens) >= self.reader.longest_answer else "stop"

    def _usage(self, texts: Sequence[tuple[str, str]]) -> dict[str, int]:
        asked = sum(question.prompt_tokens for question in self.questions)
        answered = sum(len(self.reader.answer_tokens(text)) for text, _ in texts)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
