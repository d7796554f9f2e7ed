"""Rows to batches: which positions predict an answer, how a batch is padded, and the order of the rows.

An *answer position* is one whose logits predict an answer token: the one left of the token, end-of-sequence included. A
batch is padded on the left, so that answers end together and the last `A` positions of every row are the answer
positions of the batch (A: its longest answer). The model is asked for the logits of those alone (`logits_to_keep=A`),
so prompt positions never meet the vocabulary. The end-of-sequence token is predicted and never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from tutelage.data.encode import EncodedRow

IGNORED = -100
GROUPED_BATCHES = 32
"""Batches sorted by length together: enough for little padding, few enough for other batches in every epoch."""


class RowDataset(Dataset):
    """Encoded rows for a DataLoader; an item is (index, row). Index ~n is row n standing in, see `SharedBatches`."""

    def __init__(self, rows: Sequence[EncodedRow]) -> None:
        """Keep `rows` as they are."""
        self.rows = rows

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, EncodedRow]:
        """(index, row)."""
        return index, self.rows[row_of(index)]


@dataclass(frozen=True)
class Collator:
    """Pads rows into a batch.

    Returns input_ids, attention_mask, position_ids [B, T]; targets [B, A], the answer tokens aligned to the right with
    -100 in front; row [B], indices in the data set. position_ids are always given: models with absolute positions would
    otherwise count the padding. A row that stands in has no targets but -100.
    """

    pad_id: int
    ahead: Callable[[Sequence[int]], None] | None = None
    """Called with the indices of every batch. A trainer collates a batch before it trains on the previous one."""
    max_tokens: int | None = None
    """If given, rows are sorted by length, longest first, and the batch has "parts" of at most this many tokens,
    padding included, for `parts_of`."""

    def __call__(self, items: Sequence[tuple[int, EncodedRow]]) -> dict[str, Any]:
        """Batch of (index, row) items."""
        if self.ahead:
            self.ahead([row_of(index) for index, _ in items])
        if self.max_tokens is not None:
            items = sorted(items, key=lambda item: -item[1].length)
        lengths = [row.length - 1 for _, row in items]  # end-of-sequence is not read
        width, answer_width = max(lengths), max(len(row.answer) for _, row in items)
        ids = np.full((len(items), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(items), width), dtype=np.int64)
        targets = np.full((len(items), answer_width), IGNORED, dtype=np.int64)
        for line, (index, row) in enumerate(items):
            ids[line, width - lengths[line] :] = row.prompt + row.answer[:-1]
            mask[line, width - lengths[line] :] = 1
            if index >= 0:
                targets[line, answer_width - len(row.answer) :] = row.answer
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy((mask.cumsum(1) - 1).clip(min=0)),
            "targets": torch.from_numpy(targets),
            "row": torch.tensor([row_of(index) for index, _ in items]),
        }
        if self.max_tokens is not None:
            batch["parts"] = _parts(lengths, [len(row.answer) for _, row in items], self.max_tokens)
        return batch


def _parts(lengths: Sequence[int], answers: Sequence[int], max_tokens: int) -> list[tuple[int, int, int, int]]:
    """(first row, row behind the last, width, width of the answers) of each part of a batch. lengths: [rows], longest
    first. A row of more than `max_tokens` is a part of its own."""
    parts, start = [], 0
    while start < len(lengths):
        stop = min(len(lengths), start + max(1, max_tokens // lengths[start]))
        parts.append((start, stop, lengths[start], max(answers[start:stop])))
        start = stop
    return parts


def parts_of(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The parts of a batch that the model reads one by one, each as it would be collated alone. Numbers of rows and
    columns are known on the host, so that a GPU need not be waited for."""
    if "parts" not in batch:
        return [batch]
    parts = []
    for start, stop, width, answer_width in batch["parts"]:
        part = {name: batch[name][start:stop, -width:] for name in ("input_ids", "attention_mask", "position_ids")}
        part["targets"] = batch["targets"][start:stop, -answer_width:]
        part["row"] = batch["row"][start:stop]
        parts.append(part)
    return parts


def row_of(index: int) -> int:
    """The row that an item's index means, whether it is there for itself or stands in."""
    return index if index >= 0 else ~index


def answered(batch: dict[str, Tensor]) -> Tensor:
    """[B] bool: which rows of a batch have an answer to learn; the others stand in."""
    return (batch["targets"] != IGNORED).any(1)


class LengthGroupedSampler(Sampler[int]):
    """A seeded permutation of the rows, a new one each epoch, whose batches hold rows of similar length.

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
        """Called by accelerate at the start of an epoch, also when a stopped run continues in it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Indices of the rows."""
        random, size = np.random.default_rng([self.seed, self.epoch]), self.batch_size
        order = random.permutation(len(self.lengths))
        whole = len(order) // size * size
        groups = np.split(order[:whole], range(size * GROUPED_BATCHES, whole, size * GROUPED_BATCHES))
        ordered = np.concatenate([group[np.argsort(-self.lengths[group], kind="stable")] for group in groups])
        batches = random.permutation(ordered.reshape(-1, size))
        yield from np.concatenate([batches.reshape(-1), order[whole:]]).tolist()


class SharedBatches(BatchSampler):
    """One process's part of every batch of an epoch, such that all parts together are the batch that a single process
    would have.

    Every process needs as many batches as the others, because they compute each step together. A row stands in, as
    index ~row, where a last batch has fewer rows than there are processes: the model reads it, and nothing counts it.
    """

    def __init__(self, sampler: Sampler[int], batch_rows: int, rank: int, processes: int) -> None:
        """sampler: gives the same order in every process. batch_rows: of all processes together."""
        super().__init__(sampler, batch_rows, drop_last=False)
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the rows of this process, contiguous in the batch; the first ones have one more."""
        for batch in super().__iter__():
            start, stop = (-(-len(batch) * rank // self.processes) for rank in (self.rank, self.rank + 1))
            yield batch[start:stop] or [~batch[0]]


def vocabulary_of(tokenizer: Any) -> int:
    """Number of token ids: the largest one of an entry, plus 1. It can exceed the number of entries."""
    return max(tokenizer.get_vocab().values()) + 1


def pad_id_of(tokenizer: Any) -> int:
    """The id to pad with; any will do, since padding is masked everywhere."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
