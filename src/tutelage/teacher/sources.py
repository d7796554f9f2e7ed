"""What a teacher checkpoint says about a batch, from a live model or from the store on disk, behind one interface.

`TeacherSource.targets(checkpoint, batch)` returns what `method.mixed_loss` needs. Tests check that both sources agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tutelage.bytes.alphabet import byte_log_probs
from tutelage.bytes.loss import ByteTargets
from tutelage.bytes.reader import ByteReader
from tutelage.data.collate import Collator, answered
from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import answer_lengths
from tutelage.errors import StaleArtifactError
from tutelage.method.mixed_loss import Targets
from tutelage.models.forward import read_batch
from tutelage.models.heads import Head, answer_hidden, head_of
from tutelage.models.placement import device_of
from tutelage.teacher.hidden_store import HiddenStore, save_tensors
from tutelage.utils.integrity import reading


class TeacherSource(Protocol):
    """Teacher checkpoints and what each says about a batch."""

    @property
    def checkpoints(self) -> Sequence[str]:
        """Names, oldest first."""

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """Targets at the batch's answer positions, in row-major order."""

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] loss of the checkpoint on every training example, in nats per token."""

    def ahead(self, checkpoint: str) -> Callable[[Sequence[int]], None] | None:
        """A function to call with the row indices of the next batch, so that they are read in the background; None if
        that saves no time. It is used in data-loading processes."""


@dataclass(frozen=True)
class HiddenTargets:
    """Hidden states with the head that turns them into logits."""

    hidden: Tensor
    """[N, H]."""
    head: Head

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, V] logits of these positions."""
        return self.head(self.hidden[start:stop])

    def top_k(self, start: int, stop: int) -> None:
        """None: full distributions are known."""


@dataclass(frozen=True)
class TopKTargets:
    """The k largest log-probabilities of each position, for models whose logits do not follow from one hidden state."""

    ids: Tensor
    """[N, k] token ids."""
    log_probs: Tensor
    """[N, k] in nats."""

    def logits(self, start: int, stop: int) -> Tensor:
        """Raises ValueError: k entries do not give the full logits."""
        raise ValueError("this teacher's cache holds the top-k entries only, not the full logits")

    def top_k(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(ids, log-probabilities) of these positions, each [stop - start, k]."""
        return self.ids[start:stop], self.log_probs[start:stop]


@dataclass
class LiveTeacher:
    """Checkpoints as models in memory, loaded one at a time by `load(checkpoint)`."""

    checkpoints: Sequence[str]
    load: Callable[[str], nn.Module]
    rows: Sequence[EncodedRow]
    vocabulary: int
    pad_id: int
    own: ByteReader | None = None
    """Of the teacher's tokenizer: the targets are then distributions over bytes."""
    student: ByteReader | None = None
    """Of the student's, with whose tokens batches are made; `rows` are in the teacher's."""
    _name: str | None = None
    _model: nn.Module | None = None

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """One forward pass of the checkpoint."""
        model = self._loaded(checkpoint)
        device = device_of(model)
        if self.own is not None and self.student is not None:
            items = [(index, self.rows[index]) for index in batch["row"].tolist()]
            logits = read_batch(model, Collator(self.pad_id)(items), self.vocabulary).logits
            log_probs = byte_log_probs(logits, self.own.lookups([row.answer for _, row in items]))
            return ByteTargets(log_probs, self.student.of_batch(batch))
        hidden = answer_hidden(model, {name: tensor.to(device) for name, tensor in batch.items()})
        return HiddenTargets(hidden, head_of(model, self.vocabulary))

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] in nats per token, by forward passes over all rows."""
        collate, rows = Collator(self.pad_id), self.rows
        losses = np.zeros(len(rows))
        for start in range(0, len(rows), 16):
            items = [(index, rows[index]) for index in range(start, min(start + 16, len(rows)))]
            read = read_batch(self._loaded(checkpoint), collate(items), self.vocabulary)
            losses[start : start + len(items)] = read.row_losses.double().numpy()
        return losses

    def ahead(self, checkpoint: str) -> None:
        """None: there is nothing to read ahead."""

    def _loaded(self, checkpoint: str) -> nn.Module:
        if self._name != checkpoint:
            self._model = None  # freed before the next one is loaded: one checkpoint in memory
            self._model, self._name = self.load(checkpoint).eval(), checkpoint
        return self._model


class CachedTeacher:
    """Checkpoints from their stores: no teacher model in memory and no forward pass of it."""

    def __init__(
        self,
        folder: Path,
        checkpoints: Sequence[str],
        rows: Sequence[EncodedRow],
        *,
        bf16: bool = False,
        student: ByteReader | None = None,
        own_rows: Sequence[EncodedRow] | None = None,
    ) -> None:
        """Open `folder/CHECKPOINT` for each name and check that it was made from these rows, in this order.

        bf16: whether a CPU multiplies stored bfloat16 values as they are. student: of the student's tokenizer, for
        stores of bytes. own_rows: the rows in the teacher's tokens, if they are not those of the student.
        """
        self.folder, self.checkpoints, self.bf16 = folder, list(checkpoints), bf16
        self._student, self._units = student, None if own_rows is None else answer_lengths(rows)
        self._stores = {name: HiddenStore(folder / name) for name in checkpoints}
        for store in self._stores.values():
            store.check(rows if own_rows is None else own_rows)
        self._head: tuple[tuple[str, torch.device], Head] | None = None

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """What is stored about the batch's rows, on the batch's device."""
        store, rows = self._stores[checkpoint], batch["row"][answered(batch)].tolist()
        device = batch["targets"].device
        if store.about["kind"] == "top_k":
            ids = _sent(store.positions("ids", rows), device).long()
            return TopKTargets(ids, _sent(store.positions("log_probs", rows), device))
        if store.about["kind"] == "bytes":
            return self._over_bytes(store, batch)
        hidden = _sent(store.positions("states", rows), device)
        # Few CPUs multiply bfloat16 fast. The others widen the stored values to float32, which changes none of them.
        widen = device.type == "cpu" and not self.bf16
        return HiddenTargets(hidden.float() if widen else hidden, self.head(checkpoint, device))

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] in nats per token, as measured when the store was written; per token of the student."""
        return self._stores[checkpoint].nll(self._units)

    def ahead(self, checkpoint: str) -> Callable[[Sequence[int]], None]:
        """A function that loads stored rows into the page cache."""
        return self._stores[checkpoint].will_read

    def _over_bytes(self, store: HiddenStore, batch: dict[str, Tensor]) -> ByteTargets:
        """Raises StaleArtifactError if an answer has not as many bytes as it had when it was stored."""
        if self._student is None:
            raise ValueError(f"{store.folder} holds distributions over bytes: give the student's ByteReader")
        rows, device = batch["row"].tolist(), batch["targets"].device
        lookups = self._student.of_batch(batch)
        if not np.array_equal(lookups.rows, store.lengths[rows]):
            raise StaleArtifactError(
                f"{store.folder} was made from other answers than the student's tokens spell. Rebuild it: tutelage"
                " cache RECIPE --force"
            )
        return ByteTargets(_sent(store.positions("bytes", rows), device), lookups)

    def head(self, checkpoint: str, device: torch.device) -> Head:
        """The checkpoint's head. The last one used stays loaded; checkpoints with the same head share it."""
        key = self._stores[checkpoint].about["head"], device
        if self._head is None or self._head[0] != key:
            self._head = None  # freed before the next one is loaded: one head in memory
            self._head = key, load_head(self.folder / key[0]).to(device)
        return self._head[1]


def _sent(stored: Tensor, device: torch.device) -> Tensor:
    """Stored values on a device. A GPU reads them from memory that stays in place (pinned) while this process goes
    on."""
    return (stored.pin_memory() if device.type == "cuda" else stored).to(device, non_blocking=True)


def save_head(head: Head, path: Path) -> None:
    """Write a head; scale and soft cap become a tensor."""
    numbers = torch.tensor([head.scale, head.softcap or 0.0], dtype=torch.float64)
    bias = {} if head.bias is None else {"bias": head.bias}
    save_tensors({"weight": head.weight, "numbers": numbers, **bias}, path)


def load_head(path: Path) -> Head:
    """Read a head that `save_head` wrote. Raises DamagedArtifactError if it is not as it was written."""
    with reading(path, SafetensorError), safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        scale, softcap = file.get_tensor("numbers").tolist()
        bias = file.get_tensor("bias") if "bias" in names else None
        return Head(file.get_tensor("weight"), bias, scale, softcap or None)
