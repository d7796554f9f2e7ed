"""Rows to token ids: prompt and answer of an example, and which rows are too long.

Prompt and answer are tokenized separately, so that training, caching and decoding see the same boundary. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

from tutelage.errors import DataError, Kind, Problem, RowsError
from tutelage.errors.wording import first_line
from tutelage.recipe.schema import Data, Task
from tutelage.records import SPLITS, Example
from tutelage.tasks.verbalizers import Verbalizers

BATCH_ROWS, BATCH_CHARACTERS = 256, 100_000
"""Rows, and characters of theirs, that are tokenized at once."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as token ids."""

    id: str
    split: str
    prompt: list[int]
    answer: list[int]
    """Answer prefix, answer and end-of-sequence."""

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def key(self) -> int:
        """Fingerprint of id and token ids as a signed 64-bit number: what a cached row is recognised by."""
        text = f"{self.id}\n{self.prompt}\n{self.answer}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


class LongRow(NamedTuple):
    """A row longer than `max_length`."""

    id: str
    prompt: int
    """Tokens."""
    answer: int
    """Tokens, end-of-sequence included."""


@dataclass
class Misfits:
    """Rows that cannot be used as they are."""

    empty: list[str] = field(default_factory=list)
    """Ids of rows whose prompt has no tokens."""
    long: list[LongRow] = field(default_factory=list)


@dataclass(frozen=True)
class Encoder:
    """Turns examples into token ids, the same way for teacher and student, training and decoding."""

    tokenizer: Any
    answer_prefix: str = " "
    max_length: int = 1024
    too_long: Literal["error", "drop", "truncate_prompt"] = "error"
    verbalizers: Verbalizers = field(default_factory=Verbalizers)
    """Short forms that stand for answers in tokens."""

    def prompt(self, example: Example, reserve: int = 0) -> list[int]:
        """Token ids of the prompt, with the tokenizer's beginning-of-sequence and never an end-of-sequence.

        With `too_long: truncate_prompt` the start is cut so that `reserve` tokens of an answer still fit. Raises
        DataError for messages that the chat template refuses.
        """
        return self._fitted(self._prompts([example])[0], reserve)

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the prompts, not cut."""
        plain = [index for index, example in enumerate(examples) if isinstance(example.prompt, str)]
        chats = [index for index, example in enumerate(examples) if not isinstance(example.prompt, str)]
        ids: list[list[int]] = [[] for _ in examples]
        for index, found in zip(plain, self._ids([examples[index].prompt for index in plain], True), strict=True):
            ids[index] = found[:-1] if found and found[-1] == self.tokenizer.eos_token_id else found
        for index, found in zip(chats, self._ids([self.rendered(examples[i]) for i in chats], False), strict=True):
            ids[index] = found
        return ids

    def _ids(self, texts: list[Any], add_special_tokens: bool) -> list[list[int]]:
        """Token ids of texts, which a tokenizer in Rust finds on several cores."""
        return self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"] if texts else []

    def _fitted(self, ids: list[int], reserve: int) -> list[int]:
        """The ids of a prompt, cut if `too_long` says so."""
        room = max(1, self.max_length - reserve)
        return list(ids) if self.too_long != "truncate_prompt" or len(ids) <= room else list(ids[-room:])

    def rendered(self, example: Example) -> str:
        """Messages as text. Raises DataError for a row that the chat template refuses, whatever it raises."""
        try:
            return self.tokenizer.apply_chat_template(example.prompt, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            values = {"reason": first_line(error)}
            raise DataError(Problem(Kind.CHAT_TEMPLATE_FAILED, row=example.id, values=values)) from error

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer: prefix, text, end-of-sequence."""
        return [*self._ids([self.answer_text(text)], False)[0], self.tokenizer.eos_token_id]

    def answer_text(self, text: str) -> str:
        """An answer as the models write it: prefix, and the short form of a label that has one."""
        return self.answer_prefix + self.verbalizers.written(text)

    def row(self, example: Example) -> EncodedRow:
        """An example as token ids; only `too_long: truncate_prompt` cuts it."""
        return self._together([example])[0]

    def _together(self, examples: Sequence[Example]) -> list[EncodedRow]:
        prompts = self._prompts(examples)
        answers = self._ids([self.answer_text(example.answer) for example in examples], False)
        rows = []
        for example, prompt, ids in zip(examples, prompts, answers, strict=True):
            answer = [*ids, self.tokenizer.eos_token_id]
            rows.append(EncodedRow(example.id, example.split, self._fitted(prompt, len(answer)), answer))
        return rows

    def fitting(
        self, examples: Iterable[Example], misfits: Misfits, other: Encoder | None = None
    ) -> Iterator[EncodedRow]:
        """The rows that fit, tokenized some at a time; the others are added to `misfits`, for `check`. other: of
        another tokenizer, with which a row has to fit as well."""
        for row, twin in chain.from_iterable(self._with_other(batch, other) for batch in _batches(examples)):
            longest = max(row, twin, key=lambda each: each.length)
            if not row.prompt or not longest.prompt:
                misfits.empty.append(row.id)
            elif longest.length <= self.max_length:
                yield row
            else:
                misfits.long.append(LongRow(row.id, len(longest.prompt), len(longest.answer)))

    def _with_other(
        self, examples: Sequence[Example], other: Encoder | None
    ) -> Iterator[tuple[EncodedRow, EncodedRow]]:
        """Each example in the tokens of both; without another tokenizer the same row twice."""
        own = self._together(examples)
        return zip(own, own if other is None else other._together(examples), strict=True)

    def fits(self, example: Example) -> bool:
        """Whether an example has at most `max_length` tokens."""
        return self.row(example).length <= self.max_length

    def check(self, misfits: Misfits) -> list[str]:
        """Ids of the rows that are left out.

        Raises DataError for rows that do not fit with `too_long: error`, and always for prompts without tokens and
        answers that are too long by themselves.
        """
        if misfits.empty:
            raise RowsError(*(Problem(Kind.PROMPT_WITHOUT_TOKENS, row=row) for row in misfits.empty))
        if misfits.long and self.too_long != "drop":
            longest = max(row.prompt + row.answer for row in misfits.long)
            values = {
                "rows": misfits.long[:3],
                "count": len(misfits.long),
                "longest": longest,
                "max_length": self.max_length,
            }
            change = f"data.max_length={longest}"
            raise DataError(Problem(Kind.ROW_TOO_LONG, key="data.max_length", change=change, values=values))
        return [row.id for row in misfits.long]


class Room(NamedTuple):
    """How many tokens a row may have, prompt and answer together, as the models read it that an encoder is for."""

    encoder: Encoder
    tokens: int
    """At most `data.max_length`."""
    why: str | None = None
    """Why fewer than that, for the user; None where they are as many."""

    def __str__(self) -> str:
        """For the user."""
        return f"{self.tokens:,} tokens{f' ({self.why})' if self.why else ''}"


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Up to `BATCH_ROWS` examples, fewer of long ones: a tokenizer holds some 100 bytes for each token of a batch."""
    batch: list[Example] = []
    size = 0
    for example in examples:
        batch.append(example)
        size += len(str(example.prompt)) + len(example.answer)
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Subset(Sequence[EncodedRow]):
    """Some rows of a sequence, read on demand."""

    def __init__(self, rows: Sequence[EncodedRow], indices: Sequence[int]) -> None:
        """indices: of the rows, in the order wanted."""
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.indices)

    def __getitem__(self, index: int) -> EncodedRow:
        """One row."""
        return self.rows[int(self.indices[index])]


def make_encoder(data: Data, tokenizer: Any, task: Task) -> Encoder:
    """The encoder that a recipe's sections describe. task: for the short forms of its labels."""
    prefix = data.answer_prefix if data.answer_prefix is not None else ("" if data.chat_template else " ")
    return Encoder(tokenizer, prefix, data.max_length, data.too_long, Verbalizers(task.verbalizers))


def fitting_test(data: Data, encoders: Callable[[], Sequence[Encoder]]) -> Callable[[Example], bool] | None:
    """Whether a row is short enough to be sampled; None where no row is left out of a sample for its length.

    encoders: makes those of both models, which a row has to fit.
    """
    if data.too_long != "drop" or not any(getattr(data, f"max_{split}_rows") for split in SPLITS):
        return None
    readers = encoders()
    return lambda example: all(encoder.fits(example) for encoder in readers)


def check_not_emptied(left: Mapping[str, int], examples: Mapping[str, Sequence[Example]], max_length: int) -> None:
    """Raises DataError for splits of which no row is left after too long ones were dropped.

    left: rows by split. examples: those before.
    """
    why = [f"they have more than data.max_length = {max_length:,} tokens"]
    problems = [
        emptied_problem(split, len(examples[split]), why, "data.max_length=MORE")
        for split in SPLITS
        if examples[split] and not left[split]
    ]
    if problems:
        raise RowsError(*problems)


def emptied_problem(split: str, read: int, left_out: Sequence[str], change: str) -> Problem:
    """All rows of a split were left out. read: how many it had. left_out: the reasons."""
    return Problem(Kind.SPLIT_EMPTIED, split, change=change, values={"read": read, "left_out": left_out})
