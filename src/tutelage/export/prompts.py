"""The prompts of examples as an exported model gets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.data.encode import Encoder
from tutelage.export.runtimes import Ask
from tutelage.models.evaluation import EvalSet, Evaluator
from tutelage.records import Example


def asks_for(evaluator: Evaluator, eval_set: EvalSet) -> list[Ask]:
    """A prompt for each example, in order."""
    end, written = evaluator.encoder.tokenizer.eos_token_id, evaluator.encoder.verbalizers.written
    rows = zip(eval_set.examples, eval_set.prompts, eval_set.labels, eval_set.candidates, strict=True)
    return [
        {
            "ids": list(ids),
            "text": _text(evaluator.encoder, example, list(ids)),
            "labels": list(map(written, labels)),
            "candidates": [[*candidate, end] for candidate in candidates],
        }
        for example, ids, labels, candidates in rows
    ]


def _text(encoder: Encoder, example: Example, ids: Sequence[int]) -> str | None:
    """The prompt as text, without the beginning-of-sequence that a runtime adds; None if its start was cut."""
    if len(encoder.prompt(example)) != len(ids):
        return None
    if isinstance(example.prompt, str):
        return example.prompt
    text, begin = encoder.rendered(example), encoder.tokenizer.bos_token
    return text.removeprefix(begin) if begin and begins(encoder.tokenizer, ids) else text


def begins(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether a prompt begins with the tokenizer's beginning-of-sequence."""
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def probe(text: str, *, chat: bool, system: str | None = None) -> Example:
    """A row with this prompt and no answer. chat: as a message of the user."""
    messages = [{"role": "system", "content": system}] if system else []
    prompt = [*messages, {"role": "user", "content": text}] if chat else text
    return Example("probe", "test", prompt, "", [""])
