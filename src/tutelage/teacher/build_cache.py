"""Builds the cache: every teacher checkpoint reads the training examples once; the result goes to `hidden_store`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.bytes.alphabet import byte_log_probs
from tutelage.bytes.reader import ByteReader
from tutelage.bytes.vocabulary import ALPHABET
from tutelage.data.collate import Collator
from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import length_order
from tutelage.errors import Kind, Problem, UserError
from tutelage.models.forward import read_batch
from tutelage.models.heads import FAITHFUL_NATS, Head, answer_states, head_error, head_of
from tutelage.models.load import hidden_size
from tutelage.models.placement import device_of
from tutelage.recipe.schema import Model
from tutelage.teacher.hidden_store import StoreWriter, bytes_on_disk
from tutelage.teacher.sources import save_head
from tutelage.utils import ranks
from tutelage.utils.disk import free_space


class CacheSize(NamedTuple):
    """What the cache takes on disk, predicted from the rows and the teacher's config."""

    rows: int
    checkpoints: int
    states: int
    """Bytes of the hidden states, answer positions x hidden size, for every checkpoint; or of the distributions over
    bytes, 257 numbers for each byte of an answer."""
    heads: int
    """Bytes of the output heads, at most: checkpoints with the same head (adapters) share one."""
    free: int
    """Bytes free on the disk of the run folder."""

    def __str__(self) -> str:
        """`9,000 rows x 4 checkpoints take 12.3 MB, ...`."""
        heads = f", their output heads at most {self.heads / 1e6:,.0f} MB" if self.heads else ""
        return (
            f"{self.rows:,} rows x {self.checkpoints} checkpoints take {self.states / 1e6:,.1f} MB{heads};"
            f" {self.free / 1e9:,.0f} GB are free"
        )


def predicted_size(
    rows: Sequence[EncodedRow], teacher: Model, checkpoints: int, vocabulary: int, dtype: str, folder: Path
) -> CacheSize | None:
    """Size of the cache in `folder`; None if the teacher's config cannot be read yet.

    checkpoints: their number. vocabulary: number of the tokenizer's entries. dtype: cache.dtype. Raises UserError if
    the disk is too small.
    """
    width = hidden_size(teacher)
    if width is None:
        return None
    value_bytes = 2 if dtype == "bfloat16" else 4
    states = bytes_on_disk(rows, width, value_bytes) * checkpoints
    heads = vocabulary * width * value_bytes * checkpoints
    return _fitting(CacheSize(len(rows), checkpoints, states, heads, free_space(folder)), folder)


def predicted_size_of_bytes(lengths: np.ndarray, checkpoints: int, dtype: str, folder: Path) -> CacheSize:
    """Size of a cache of distributions over bytes, as `predicted_size`. lengths: [rows] bytes of the answers."""
    states = int(lengths.sum()) * ALPHABET * (2 if dtype == "bfloat16" else 4) * checkpoints
    return _fitting(CacheSize(len(lengths), checkpoints, states, 0, free_space(folder)), folder)


def _fitting(size: CacheSize, folder: Path) -> CacheSize:
    if size.states + size.heads > size.free:
        values = {"needed": size.states + size.heads, "free": size.free, "folder": str(folder)}
        raise UserError(Problem(Kind.DISK_TOO_SMALL, key="output_dir", values=values))
    return size


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class CacheBuilder:
    """Runs a teacher checkpoint once over the rows and writes its store."""

    def __init__(
        self,
        folder: Path,
        rows: Sequence[EncodedRow],
        *,
        vocabulary: int,
        pad_id: int,
        dtype: torch.dtype,
        batch_size: int = 16,
        shard_rows: int = 1024,
        top_k: int = 64,
        reader: ByteReader | None = None,
    ) -> None:
        """Stores go to `folder/CHECKPOINT`, output heads beside them.

        vocabulary: number of the tokenizer's entries. dtype: of stored states and heads. batch_size: rows of a forward
        pass. shard_rows: rows of a file. top_k: log-probabilities stored for each position if the head is not faithful.
        reader: of the teacher's tokenizer, to store distributions over bytes instead, in float16 or in float32.
        """
        self.folder, self.rows, self.vocabulary = folder, rows, vocabulary
        self.collate, self.dtype, self.batch_size = Collator(pad_id), dtype, batch_size
        self.shard_rows, self.top_k, self.reader = shard_rows, top_k, reader
        self._lengths = None if reader is None else reader.lengths(rows)

    def predicted_size(self, teacher: Model, checkpoints: int) -> CacheSize | None:
        """Size of the stores of this many checkpoints; None if the teacher's config cannot be read yet. Raises
        UserError if the disk is too small."""
        dtype = _name(self.dtype)
        if self._lengths is not None:
            return predicted_size_of_bytes(self._lengths, checkpoints, dtype, self.folder)
        return predicted_size(self.rows, teacher, checkpoints, self.vocabulary, dtype, self.folder)

    def done_before(self, checkpoint: str) -> int:
        """Rows of a checkpoint's store that an interrupted process has written."""
        writer = StoreWriter(self.folder / checkpoint, self.rows, self.shard_rows, self._lengths)
        total, size = len(self.rows), self.shard_rows
        return total - sum(min(size, total - number * size) for number in writer.missing())

    def build(
        self, checkpoint: str, model: nn.Module, about: dict[str, Any], on_rows: Callable[[int], None] | None = None
    ) -> str | None:
        """Write the store of one checkpoint, all shards that are not on disk yet; several processes share these out.

        about: further keys of store.json. on_rows: called with the number of rows done since its last call. Returns a
        note for the user if top-k log-probabilities are stored instead of hidden states.
        """
        model.eval()
        writer = StoreWriter(self.folder / checkpoint, self.rows, self.shard_rows, self._lengths)
        head = None if self.reader is not None else head_of(model, self.vocabulary)
        error, missing = ranks.once(lambda: (head and self._head_error(model, head), writer.missing()))
        faithful = error is not None and error <= FAITHFUL_NATS
        for number in ranks.share(missing):
            writer.write(number, self._read(model, writer.rows_of(number), faithful, on_rows))
        ranks.once(lambda: writer.close({**about, **self._about(head, error, faithful)}))
        if error is None or faithful:
            return None
        return (
            f"{checkpoint}: its output head, applied to its hidden states, is {error:.2g} nats from its own logits,"
            f" so the cache holds the {self.top_k} largest log-probabilities of each position (forward KL only)"
        )

    def _about(self, head: Head | None, error: float | None, faithful: bool) -> dict[str, Any]:
        """What store.json says of a store whose shards are all there. head, error: None for one of bytes."""
        if head is None:
            return {"kind": "bytes", "dtype": _name(self._byte_dtype)}
        kind = {"kind": "states", "head": self._keep_head(head)} if faithful else {"kind": "top_k", "top_k": self.top_k}
        return {**kind, "dtype": _name(self.dtype), "head_error_nats": error}

    def _head_error(self, model: nn.Module, head: Head) -> float:
        batch = self.collate(list(enumerate(self.rows[:4])))
        device = device_of(model)
        hidden, logits = answer_states(model, {name: tensor.to(device) for name, tensor in batch.items()})
        return head_error(head, hidden, logits)

    def _read(
        self, model: nn.Module, rows: Sequence[EncodedRow], faithful: bool, on_rows: Callable[[int], None] | None
    ) -> dict[str, Tensor]:
        """Tensors of one shard, computed in batches of similar length, in the order of the rows."""
        order, pieces, nll = length_order(rows), [{} for _ in rows], torch.zeros(len(rows))
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            read = read_batch(model, self.collate([(index, rows[index]) for index in indices]), self.vocabulary)
            nll[indices] = read.row_losses
            lengths = [len(rows[index].answer) for index in indices]
            if self.reader is not None:
                lookups = self.reader.lookups([rows[index].answer for index in indices])
                stored = {"bytes": byte_log_probs(read.logits, lookups).to(self._byte_dtype)}
                lengths = lookups.rows.tolist()
            else:
                stored = {"states": read.hidden.to(self.dtype)} if faithful else self._largest(read.logits)
            for name, tensor in stored.items():
                for index, piece in zip(indices, tensor.cpu().split(lengths), strict=True):
                    pieces[index][name] = piece
            if on_rows:
                on_rows(len(indices) * ranks.size())
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]} | {"nll": nll}

    @property
    def _byte_dtype(self) -> torch.dtype:
        """Log-probabilities need no exponent of 8 bits: float16 holds three more bits of them than bfloat16."""
        return torch.float32 if self.dtype is torch.float32 else torch.float16

    def _largest(self, logits: Tensor) -> dict[str, Tensor]:
        """Ids and log-probabilities [N, k] of the k largest logits [N, V] at each position."""
        log_probs, ids = logits.float().log_softmax(-1).topk(min(self.top_k, logits.shape[-1]))
        return {"ids": ids.to(torch.int32), "log_probs": log_probs}

    def _keep_head(self, head: Head) -> str:
        """Write the head unless a checkpoint with the same one has (LoRA teachers). Returns the name of its file."""
        head = head.to(self.dtype)
        weight = head.weight.cpu().contiguous()
        digest = hashlib.sha256(weight.view(torch.uint8).numpy()).hexdigest()[:16]
        name = f"head-{digest}.safetensors"
        if not (self.folder / name).exists():
            save_head(head.to("cpu"), self.folder / name)
        return name
