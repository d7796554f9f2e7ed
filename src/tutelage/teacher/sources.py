"""Where the teacher's view of a batch comes from: a live model or the store on disk, behind one small interface.

`TeacherSource.targets(checkpoint, batch)` gives what `objective.mixed_loss` needs. Both sources agree; tests hold them
equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tutelage.data.collate import Collator
from tutelage.data.encode import EncodedRow
from tutelage.method.mixed_loss import Targets
from tutelage.models.forward import read_batch
from tutelage.models.heads import Head, answer_hidden, head_of
from tutelage.teacher.hidden_store import HiddenStore, save_whole


class TeacherSource(Protocol):
    """Teacher checkpoints, oldest first, and what each says about a batch."""

    @property
    def checkpoints(self) -> Sequence[str]:
        """Names, oldest first."""

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """Targets at the batch's answer positions, row-major."""

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] loss of the checkpoint on every training row, nats a token."""

    def ahead(self, checkpoint: str) -> Callable[[Sequence[int]], None] | None:
        """Function to be told the rows of the batch after the present one, if that saves time; goes to data-loading
        processes."""


@dataclass(frozen=True)
class HiddenTargets:
    """Hidden states [N, H] with the head that turns them into logits."""

    hidden: Tensor
    head: Head

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, V]."""
        return self.head(self.hidden[start:stop])

    def top_k(self, start: int, stop: int) -> None:
        """Full distributions are known, so there is no top-k form."""


@dataclass(frozen=True)
class TopKTargets:
    """The k largest log-probabilities a position, for models whose logits are no function of one hidden state."""

    ids: Tensor
    log_probs: Tensor

    def logits(self, start: int, stop: int) -> Tensor:
        """Not known from k entries."""
        raise ValueError("this teacher's cache holds top-k entries only; full logits are not in it")

    def top_k(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(ids, log-probabilities), each [stop - start, k]."""
        return self.ids[start:stop], self.log_probs[start:stop]


@dataclass
class LiveTeacher:
    """Checkpoints as models in memory, loaded one at a time by `load(checkpoint)`."""

    checkpoints: Sequence[str]
    load: Callable[[str], nn.Module]
    rows: Sequence[EncodedRow]
    vocabulary: int
    pad_id: int
    _name: str | None = None
    _model: nn.Module | None = None

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """One forward pass of the checkpoint."""
        model = self._loaded(checkpoint)
        device = next(model.parameters()).device
        hidden = answer_hidden(model, {name: tensor.to(device) for name, tensor in batch.items()})
        return HiddenTargets(hidden, head_of(model, self.vocabulary))

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] by a forward pass over all of them."""
        collate, rows = Collator(self.pad_id), self.rows
        found = np.zeros(len(rows))
        for start in range(0, len(rows), 16):
            items = [(place, rows[place]) for place in range(start, min(start + 16, len(rows)))]
            _, _, nll = read_batch(self._loaded(checkpoint), collate(items), self.vocabulary)
            found[start : start + len(items)] = nll.double().numpy()
        return found

    def ahead(self, checkpoint: str) -> None:
        """There is nothing to fetch."""

    def _loaded(self, checkpoint: str) -> nn.Module:
        if self._name != checkpoint:
            self._model = None  # the old one goes before the new one comes: one checkpoint in memory
            self._model, self._name = self.load(checkpoint).eval(), checkpoint
        return self._model


class CachedTeacher:
    """Checkpoints from their stores: no teacher in memory, no teacher forward pass."""

    def __init__(
        self,
        folder: Path,
        checkpoints: Sequence[str],
        rows: Sequence[EncodedRow],
        *,
        bf16: bool = False,
    ) -> None:
        """Open `folder/CHECKPOINT` for each name and check that it was made of these rows, in this order.

        bf16: whether a CPU multiplies what is stored in bfloat16 as it is.
        """
        self.folder, self.checkpoints, self.bf16 = folder, list(checkpoints), bf16
        self._stores = {name: HiddenStore(folder / name) for name in checkpoints}
        for store in self._stores.values():
            store.check(rows)
        self._head: tuple[tuple[str, torch.device], Head] | None = None

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """Stored states of the batch's rows, moved to the batch's device."""
        store, places = self._stores[checkpoint], batch["row"].tolist()
        device = batch["targets"].device
        if store.about["kind"] == "top_k":
            ids = store.positions("ids", places).to(device, torch.int64, non_blocking=True)
            return TopKTargets(ids, store.positions("log_probs", places).to(device, non_blocking=True))
        hidden = store.positions("states", places).to(device, non_blocking=True)
        # Few CPUs multiply bfloat16 fast; on others the stored values are multiplied in float32, which changes none of
        # them.
        widen = device.type == "cpu" and not self.bf16
        return HiddenTargets(hidden.float() if widen else hidden, self.head(checkpoint, device))

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] as measured when the store was written."""
        return self._stores[checkpoint].nll()

    def ahead(self, checkpoint: str) -> Callable[[Sequence[int]], None]:
        """Fetches stored rows into the page cache."""
        return self._stores[checkpoint].will_read

    def head(self, checkpoint: str, device: torch.device) -> Head:
        """The checkpoint's head. The last one used stays loaded; checkpoints with the same head share it."""
        key = self._stores[checkpoint].about["head"], device
        if self._head is None or self._head[0] != key:
            self._head = None  # the old one goes before the new one comes: one head in memory
            self._head = key, load_head(self.folder / key[0]).to(device)
        return self._head[1]


def save_head(head: Head, path: Path) -> None:
    """Write a head; its scale and cap go along as tensors."""
    numbers = torch.tensor([head.scale, head.softcap or 0.0], dtype=torch.float64)
    bias = {} if head.bias is None else {"bias": head.bias}
    save_whole({"weight": head.weight, "numbers": numbers, **bias}, path)


def load_head(path: Path) -> Head:
    """Read what `save_head` wrote."""
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        scale, softcap = file.get_tensor("numbers").tolist()
        bias = file.get_tensor("bias") if "bias" in names else None
        return Head(file.get_tensor("weight"), bias, scale, softcap or None)
