"""What one teacher checkpoint says about every row, on disk: written shard by shard, checked, read at its place.

A store is a folder:

    shard-00000.safetensors   states [positions, H] (or ids and log_probs [positions, k]) and nll [rows]
    index.safetensors         keys [rows] and tokens [rows], written when all shards are whole
    store.json                dtype, kind, head file, checkpoint and tokenizer fingerprints; written last

Rows are recognised by `EncodedRow.key` (id and token ids): a store is refused for rows it was not made of. Positions
lie in shards by row, so opening reads the index alone. What a batch needs is read at its place in the file, through the
page cache, and nothing stays mapped: of all rows only the index is held.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import answer_lengths, keys_of
from tutelage.errors import StaleArtifactError

FORMAT = 1


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file and move it into place at once: a name that exists is a whole file."""
    draft = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(draft))
    draft.replace(path)


class StoreWriter:
    """Writes a store; a killed writer continues after its last whole shard."""

    def __init__(self, folder: Path, rows: Sequence[EncodedRow], shard_rows: int) -> None:
        """Rows go to disk in the order given, `shard_rows` to a file."""
        self.folder, self.rows, self.shard_rows = folder, rows, shard_rows
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self) -> Iterator[tuple[int, Sequence[EncodedRow]]]:
        """(shard number, its rows) of every shard that is not on disk yet."""
        for number, start in enumerate(range(0, len(self.rows), self.shard_rows)):
            if not self._path(number).exists():
                yield number, self.rows[start : start + self.shard_rows]

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """One shard: tensors by name, among them nll [rows of the shard]."""
        save_whole(tensors, self._path(number))

    def close(self, about: dict[str, Any]) -> None:
        """Write the index, then `store.json` with `about`: from here on the store can be opened."""
        keys, tokens = torch.from_numpy(keys_of(self.rows)), torch.from_numpy(answer_lengths(self.rows))
        save_whole({"keys": keys, "tokens": tokens}, self.folder / "index.safetensors")
        text = json.dumps({"format": FORMAT, "shard_rows": self.shard_rows, **about}, indent=2)
        (self.folder / "store.json").write_text(text, encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"


class Shard:
    """An open safetensors file whose tensors are read by rows."""

    _TYPES: ClassVar[dict[str, torch.dtype]] = {
        "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64,
    }  # fmt: skip

    def __init__(self, path: Path) -> None:
        """Read the header: 8 bytes of its length, then JSON with type, shape and place of every tensor."""
        self._file = path.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(8), "little")
        self._base, self._about = 8 + length, json.loads(self._file.read(length))

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Rows start to start + count of a tensor, or all from start on."""
        about = self._about[name]
        offset, length = self._place(name, start, count)
        buffer = bytearray(length)
        if os.preadv(self._file.fileno(), [buffer], offset) < length:
            raise StaleArtifactError(f"{self._file.name} is cut short; delete it, and the cache stage makes it again")
        return torch.frombuffer(buffer, dtype=self._TYPES[about["dtype"]]).view(-1, *about["shape"][1:])

    def will_read(self, name: str, start: int, count: int) -> None:
        """Let the system fetch these rows into its page cache while something else is computed."""
        if hasattr(os, "posix_fadvise"):  # not everywhere; reading works without
            os.posix_fadvise(self._file.fileno(), *self._place(name, start, count), os.POSIX_FADV_WILLNEED)

    def _place(self, name: str, start: int, count: int | None) -> tuple[int, int]:
        """Offset and length of rows in the file, in bytes."""
        about = self._about[name]
        shape, kind = about["shape"], self._TYPES[about["dtype"]]
        width = int(np.prod(shape[1:], dtype=np.int64)) * kind.itemsize
        count = shape[0] - start if count is None else count
        return self._base + about["data_offsets"][0] + start * width, count * width


class HiddenStore:
    """An open store: answer positions of any rows, in milliseconds."""

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`. Raises StaleArtifactError if it was never finished or has another format."""
        self.folder = folder
        if not (folder / "store.json").is_file():
            raise StaleArtifactError(
                f"{folder} holds no finished store; run the cache stage again, it continues where it was"
            )
        self.about: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if self.about["format"] != FORMAT:
            raise StaleArtifactError(
                f"{folder} has store format {self.about['format']}, this version reads {FORMAT}: rebuild it"
            )
        with safe_open(str(folder / "index.safetensors"), framework="pt") as file:
            self.keys, self.tokens = file.get_tensor("keys").numpy(), file.get_tensor("tokens").numpy()
        self._starts = self._starts_in_shards()
        self._shards: dict[int, Shard] = {}

    def check(self, rows: Sequence[EncodedRow]) -> None:
        """Refuse rows other than those the store was made of; says which differ first."""
        keys = keys_of(rows)
        if len(keys) == len(self.keys) and np.array_equal(keys, self.keys):
            return
        known = set(self.keys.tolist())
        strange = [rows[place].id for place, key in enumerate(keys.tolist()) if key not in known]
        what = (
            f"{len(strange):,} rows are not in it, first {strange[:3]}"
            if strange
            else "its rows are others or in another order"
        )
        raise StaleArtifactError(
            f"{self.folder} was made from other rows or another tokenizer ({len(self.keys):,} rows stored, {len(keys):,} asked"
            f" for; {what}). Rebuild it: tutelage cache RECIPE --force"
        )

    def positions(self, name: str, places: Sequence[int]) -> Tensor:
        """The stored tensor `name` at all answer positions of the rows at `places`, concatenated in that order."""
        size, pieces = self.about["shard_rows"], []
        for place in places:
            pieces.append(self._shard(place // size).read(name, int(self._starts[place]), int(self.tokens[place])))
        return torch.cat(pieces)

    def will_read(self, places: Sequence[int]) -> None:
        """Fetch the answer positions of these rows into the page cache, in the background: `positions` is about to ask
        for them."""
        size, names = self.about["shard_rows"], ("states",) if self.about["kind"] == "states" else ("ids", "log_probs")
        for place in places:
            for name in names:
                self._shard(place // size).will_read(name, int(self._starts[place]), int(self.tokens[place]))

    def __getstate__(self) -> dict[str, Any]:
        """For processes that load data: open files stay behind, each process opens its own."""
        return {**self.__dict__, "_shards": {}}

    def nll(self) -> np.ndarray:
        """[rows] mean negative log-likelihood of the gold answers, nats a token."""
        shards = range(-(-len(self.keys) // self.about["shard_rows"]))
        return np.concatenate([self._shard(number).read("nll").double().numpy() for number in shards])

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            self._shards[number] = Shard(self.folder / f"shard-{number:05d}.safetensors")
        return self._shards[number]

    def _starts_in_shards(self) -> np.ndarray:
        size = self.about["shard_rows"]
        starts = np.cumsum(self.tokens) - self.tokens
        return starts - np.repeat(starts[::size], size)[: len(starts)]


def bytes_on_disk(rows: Sequence[EncodedRow], width: int, dtype_bytes: int) -> int:
    """Size of one checkpoint's states: answer positions x width x bytes."""
    return int(answer_lengths(rows).sum()) * width * dtype_bytes
