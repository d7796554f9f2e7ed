"""Builds the cache: every teacher checkpoint reads the rows once, and what it said goes to disk (`hidden_store.py`)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data.collate import Collator
from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import length_order
from tutelage.errors import Kind, Problem, UserError
from tutelage.models.forward import read_batch
from tutelage.models.heads import FAITHFUL_NATS, Head, answer_states, head_error, head_of
from tutelage.models.load import hidden_size, load_adapter
from tutelage.recipe.schema import Model
from tutelage.teacher.hidden_store import StoreWriter, bytes_on_disk
from tutelage.teacher.sources import save_head


class CacheSize(NamedTuple):
    """What the cache takes on disk, in bytes."""

    rows: int
    checkpoints: int
    states: int
    """Answer tokens x hidden size, of all checkpoints."""
    heads: int
    """Vocabulary x hidden size of all checkpoints: an upper bound, since a head that does not change (adapters) is
    stored once."""
    free: int
    """Free on the disk that the run folder is on."""

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.rows:,} rows x {self.checkpoints} checkpoints take {self.states / 1e6:,.1f} MB, their heads at most"
            f" {self.heads / 1e6:,.0f} MB; {self.free / 1e9:,.0f} GB are free"
        )


def predicted_size(
    rows: Sequence[EncodedRow], teacher: Model, checkpoints: int, vocabulary: int, dtype: str, where: Path
) -> CacheSize | None:
    """The size of the cache; None as long as the teacher's files are not here. Raises UserError if the disk is too
    small."""
    width = hidden_size(teacher)
    if width is None:
        return None
    each = 2 if dtype == "bfloat16" else 4
    folder = next(parent for parent in (where, *where.absolute().parents) if parent.exists())
    size = CacheSize(
        rows=len(rows),
        checkpoints=checkpoints,
        states=bytes_on_disk(rows, width, each) * checkpoints,
        heads=vocabulary * width * each * checkpoints,
        free=shutil.disk_usage(folder).free,
    )
    if size.states + size.heads > size.free:
        values = {"needed": size.states + size.heads, "free": size.free, "folder": str(folder)}
        raise UserError(Problem(Kind.DISK_TOO_SMALL, key="output_dir", values=values))
    return size


def each_checkpoint(
    load: Callable[..., nn.Module], teacher: Model, folders: Sequence[Path]
) -> Iterator[tuple[Path, nn.Module]]:
    """Every checkpoint with its model, one in memory at a time; adapters share one base. load: as
    `models.load_model`."""
    base = None
    for folder in folders:
        if not (folder / "adapter_config.json").is_file():
            yield folder, load(teacher, folder)
            continue
        base = load(teacher) if base is None else base
        adapted = load_adapter(base, folder)
        yield folder, adapted
        base = adapted.unload()


class CacheBuilder:
    """Reads a teacher checkpoint once over the rows and writes its store."""

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
    ) -> None:
        """Stores go to `folder/CHECKPOINT`, heads beside them."""
        self.folder, self.rows, self.vocabulary = folder, rows, vocabulary
        self.collate, self.dtype, self.batch_size = Collator(pad_id), dtype, batch_size
        self.shard_rows, self.top_k = shard_rows, top_k

    def build(
        self, checkpoint: str, model: nn.Module, about: dict[str, Any], on_rows: Callable[[int], None] | None = None
    ) -> str | None:
        """Write the store of one checkpoint, continuing after its last whole shard. Returns a note where top-k had to
        do."""
        model.eval()
        writer = StoreWriter(self.folder / checkpoint, self.rows, self.shard_rows)
        head = head_of(model, self.vocabulary)
        error = self._head_error(model, head)
        faithful = error <= FAITHFUL_NATS
        for number, rows in writer.missing():
            writer.write(number, self._read(model, rows, faithful, on_rows))
        kind = {"kind": "states", "head": self._keep_head(head)} if faithful else {"kind": "top_k", "top_k": self.top_k}
        writer.close({**about, **kind, "dtype": str(self.dtype).removeprefix("torch."), "head_error_nats": error})
        if faithful:
            return None
        return (
            f"{checkpoint}: head(hidden) is {error:.2g} nats from the model's own logits, so the cache holds the top"
            f" {self.top_k} log-probabilities and the tail's mass instead (forward KL only)"
        )

    def _head_error(self, model: nn.Module, head: Head) -> float:
        batch = self.collate(list(enumerate(self.rows[:4])))
        device = next(model.parameters()).device
        hidden, logits = answer_states(model, {name: tensor.to(device) for name, tensor in batch.items()})
        return head_error(head, hidden, logits)

    def _read(
        self, model: nn.Module, rows: Sequence[EncodedRow], faithful: bool, on_rows: Callable[[int], None] | None
    ) -> dict[str, Tensor]:
        """Tensors of one shard, read in batches of like length and put back in the order of the rows."""
        order, pieces, nll = length_order(rows), [{} for _ in rows], torch.zeros(len(rows))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            hidden, logits, means = read_batch(model, self.collate([(p, rows[p]) for p in places]), self.vocabulary)
            nll[places] = means
            lengths = [len(rows[place].answer) for place in places]
            kept = {"states": hidden.to(self.dtype)} if faithful else self._largest(logits)
            for name, tensor in kept.items():
                for place, piece in zip(places, tensor.cpu().split(lengths), strict=True):
                    pieces[place][name] = piece
            if on_rows:
                on_rows(len(places))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]} | {"nll": nll}

    def _largest(self, logits: Tensor) -> dict[str, Tensor]:
        log_probs, ids = logits.float().log_softmax(-1).topk(min(self.top_k, logits.shape[-1]))
        return {"ids": ids.to(torch.int32), "log_probs": log_probs}

    def _keep_head(self, head: Head) -> str:
        """Name of the file that holds this head; checkpoints with the same head (LoRA teachers) share one file."""
        kept = head.to(self.dtype)
        weight = kept.weight.cpu().contiguous()
        digest = hashlib.sha256(weight.view(torch.uint8).numpy()).hexdigest()[:16]
        name = f"head-{digest}.safetensors"
        if not (self.folder / name).exists():
            save_head(kept.to("cpu"), self.folder / name)
        return name
