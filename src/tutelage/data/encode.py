"""Rows to token ids and batches: where an answer starts, which positions predict it, and how a batch is padded.

An *answer position* is one whose logits predict an answer token: one left of the token itself, end-of-sequence
included. A batch is padded on the left, so answers end together and the last `A` positions of every row are the answer
positions of the batch (A: its longest answer). The model is asked for those alone (`logits_to_keep=A`), so prompt
positions never meet the vocabulary. The end-of-sequence token is predicted and never read.

Prompt and answer are tokenized apart: training, caching and decoding all see the same boundary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tutelage.errors import DataError, problems
from tutelage.recipe.schema import Data
from tutelage.records import Example

IGNORED = -100
GROUPED_BATCHES = 32
"""Batches that are sorted by length together: enough that little is padded, few enough that every epoch has other
batches."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as token ids."""

    id: str
    split: str
    prompt: list[int]
    answer: list[int]
    """Answer prefix, answer and end-of-sequence."""

    @property
    def key(self) -> int:
        """Fingerprint of id and token ids as a signed 64-bit number: what a cached row is recognised by."""
        text = f"{self.id}\n{self.prompt}\n{self.answer}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


@dataclass
class Misfits:
    """Rows that cannot be used as they are."""

    empty: list[str] = field(default_factory=list)
    """Ids of rows whose prompt has no tokens."""
    long: list[tuple[str, int, int]] = field(default_factory=list)
    """(id, prompt tokens, answer tokens) of rows longer than `max_length`."""


@dataclass(frozen=True)
class Encoder:
    """Turns examples into token ids, the same way for teacher and student, training and decoding."""

    tokenizer: Any
    answer_prefix: str = " "
    max_length: int = 1024
    too_long: Literal["error", "drop", "truncate_prompt"] = "error"

    def prompt(self, example: Example, reserve: int = 0) -> list[int]:
        """Token ids of the prompt, with the tokenizer's own beginning-of-sequence and never an end.

        With `too_long: truncate_prompt` the start is cut so that `reserve` tokens of an answer still fit.
        """
        if isinstance(example.prompt, str):
            ids = self.tokenizer(example.prompt, add_special_tokens=True)["input_ids"]
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]
        else:
            text = self.tokenizer.apply_chat_template(example.prompt, tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = max(1, self.max_length - reserve)
        return list(ids) if self.too_long != "truncate_prompt" or len(ids) <= room else list(ids[-room:])

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer: prefix, text, end-of-sequence."""
        ids = self.tokenizer(self.answer_prefix + text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def row(self, example: Example) -> EncodedRow:
        """An example as token ids; only `too_long: truncate_prompt` cuts it."""
        answer = self.answer(example.answer)
        return EncodedRow(example.id, example.split, self.prompt(example, len(answer)), answer)

    def rows(self, examples: Iterable[Example]) -> tuple[list[EncodedRow], list[str]]:
        """Rows that fit into `max_length`, and the ids of those that were dropped. Raises as `check` does."""
        misfits = Misfits()
        kept = list(self.fitting(examples, misfits))
        return kept, self.check(misfits)

    def fitting(self, examples: Iterable[Example], misfits: Misfits) -> Iterator[EncodedRow]:
        """The rows that fit, one at a time; the others are noted in `misfits`, for `check`."""
        for row in map(self.row, examples):
            if not row.prompt:
                misfits.empty.append(row.id)
            elif len(row.prompt) + len(row.answer) <= self.max_length:
                yield row
            else:
                misfits.long.append((row.id, len(row.prompt), len(row.answer)))

    def check(self, misfits: Misfits) -> list[str]:
        """Ids of the rows that are left out.

        Raises DataError with `too_long: error` for rows that do not fit, and always for a prompt without tokens or an
        answer that alone is too long to be cut.
        """
        if misfits.empty:
            raise DataError(
                problems("rows that cannot be used:", [f"row {i}: the prompt has no tokens" for i in misfits.empty[:5]])
            )
        if misfits.long and self.too_long != "drop":
            raise DataError(self._too_long_message(misfits.long))
        return [name for name, _, _ in misfits.long]

    def _too_long_message(self, rows: list[tuple[str, int, int]]) -> str:
        first = ", ".join(f"{name} ({prompt} + {answer} tokens)" for name, prompt, answer in rows[:3])
        longest = max(prompt + answer for _, prompt, answer in rows)
        return (
            f"{len(rows):,} row{'s do' if len(rows) > 1 else ' does'} not fit into data.max_length = {self.max_length} tokens:"
            f" {first}{', ...' if len(rows) > 3 else ''} (prompt + answer). An answer is never cut. Three ways out:\n"
            f"  - data.max_length={longest}            keeps every row whole\n"
            "  - data.too_long=truncate_prompt   cuts the start of long prompts\n"
            "  - data.too_long=drop              leaves these rows out"
        )


class Subset(Sequence[EncodedRow]):
    """Some rows of a sequence, read as they are asked for."""

    def __init__(self, rows: Sequence[EncodedRow], places: Sequence[int]) -> None:
        """places: of the rows, in the order wanted."""
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.places)

    def __getitem__(self, place: int) -> EncodedRow:
        """One row."""
        return self.rows[int(self.places[place])]


class RowDataset(Dataset):
    """Encoded rows for a DataLoader; an item is the row and its place."""

    def __init__(self, rows: Sequence[EncodedRow]) -> None:
        """Keep `rows` as they are."""
        self.rows = rows

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, EncodedRow]:
        """(place, row)."""
        return index, self.rows[index]


@dataclass(frozen=True)
class Collator:
    """Pads rows into a batch.

    Returns input_ids, attention_mask, position_ids [B, T]; targets [B, A], the answer tokens aligned to the right with
    -100 in front; row [B], places in the data set. position_ids are always given: models with absolute positions would
    otherwise count the padding.
    """

    pad_id: int
    ahead: Callable[[Sequence[int]], None] | None = None
    """Is told the places of every batch. A trainer collates a batch before it trains on the one in front of it."""

    def __call__(self, items: Sequence[tuple[int, EncodedRow]]) -> dict[str, Tensor]:
        """Batch of (place, row) items."""
        if self.ahead:
            self.ahead([place for place, _ in items])
        lengths = [len(row.prompt) + len(row.answer) - 1 for _, row in items]
        width, answer_width = max(lengths), max(len(row.answer) for _, row in items)
        ids = np.full((len(items), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(items), width), dtype=np.int64)
        targets = np.full((len(items), answer_width), IGNORED, dtype=np.int64)
        for place, (_, row) in enumerate(items):
            ids[place, width - lengths[place] :] = row.prompt + row.answer[:-1]
            mask[place, width - lengths[place] :] = 1
            targets[place, answer_width - len(row.answer) :] = row.answer
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy((mask.cumsum(1) - 1).clip(min=0)),
            "targets": torch.from_numpy(targets),
            "row": torch.tensor([place for place, _ in items]),
        }


class LengthGroupedSampler(Sampler[int]):
    """A seeded permutation of the rows, another one each epoch, whose batches hold rows of like length.

    Rows are shuffled, sorted by length within groups of 32 batches, and the batches shuffled again. The rows that fill
    no batch come last, so that a batch is never shorter than without grouping.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """lengths: [rows] in tokens."""
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of an epoch, also of one that a restart continues."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Places of the rows."""
        random, size = np.random.default_rng([self.seed, self.epoch]), self.batch_size
        order = random.permutation(len(self.lengths))
        whole = len(order) // size * size
        groups = np.split(order[:whole], range(size * GROUPED_BATCHES, whole, size * GROUPED_BATCHES))
        ordered = np.concatenate([group[np.argsort(-self.lengths[group], kind="stable")] for group in groups])
        batches = random.permutation(ordered.reshape(-1, size))
        yield from np.concatenate([batches.reshape(-1), order[whole:]]).tolist()


def pad_id_of(tokenizer: Any) -> int:
    """The id to pad with; what it is does not matter, padding is masked everywhere."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def make_encoder(data: Data, tokenizer: Any) -> Encoder:
    """The encoder that a recipe's data section describes."""
    prefix = data.answer_prefix if data.answer_prefix is not None else ("" if data.chat_template else " ")
    return Encoder(tokenizer, prefix, data.max_length, data.too_long)
