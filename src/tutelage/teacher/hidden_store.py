"""What one teacher checkpoint says about every training example, on disk: written in shards, read row by row.

A store is a folder:

    shard-00000.safetensors   states [positions, H] (or ids and log_probs [positions, k]) and nll [rows]; or bytes
                              [bytes, 257], log-probabilities of the next byte of the answer and of its end
    index.safetensors         keys [rows] and tokens [rows], written when all shards are complete; with bytes also
                              bytes [rows], the length of each answer in bytes, its end counted
    store.json                dtype, kind, head file, fingerprints of checkpoint and tokenizer; written last

Rows are recognised by `EncodedRow.key` (id and token ids): a store is refused for rows that it was not made from.
Positions lie in shards by row, so opening reads only the index. The rows of a batch are read from the file through the
page cache and nothing stays mapped, so memory does not grow with the number of rows, the index aside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import answer_lengths, keys_of
from tutelage.errors import StaleArtifactError
from tutelage.utils.files import read_json, replacing, write_json
from tutelage.utils.integrity import check, damaged, present, reading

FORMAT = 1


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, complete or not at all."""
    with replacing(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(draft))


class StoreWriter:
    """Writes a store, whose shards may come from several processes; a killed writer leaves whole ones behind."""

    def __init__(
        self, folder: Path, rows: Sequence[EncodedRow], shard_rows: int, bytes_of_rows: np.ndarray | None = None
    ) -> None:
        """Rows are written in the order given, `shard_rows` to a file. bytes_of_rows: [rows] for a store of bytes."""
        self.folder, self.rows, self.shard_rows, self.bytes_of_rows = folder, rows, shard_rows, bytes_of_rows
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not on disk yet."""
        numbers = range(-(-len(self.rows) // self.shard_rows))
        return [number for number in numbers if not self._path(number).exists()]

    def rows_of(self, number: int) -> Sequence[EncodedRow]:
        """The rows of a shard."""
        return self.rows[number * self.shard_rows : (number + 1) * self.shard_rows]

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard: tensors by name, among them nll [rows of the shard]."""
        save_tensors(tensors, self._path(number))

    def close(self, about: dict[str, Any]) -> None:
        """Write the index, then `store.json` with `about`: only now can the store be opened."""
        keys, tokens = torch.from_numpy(keys_of(self.rows)), torch.from_numpy(answer_lengths(self.rows))
        more = {} if self.bytes_of_rows is None else {"bytes": torch.from_numpy(self.bytes_of_rows)}
        save_tensors({"keys": keys, "tokens": tokens, **more}, self.folder / "index.safetensors")
        write_json(self.folder / "store.json", {"format": FORMAT, "shard_rows": self.shard_rows, **about})

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"


class Shard:
    """An open safetensors file whose tensors are read by rows."""

    _TYPES: ClassVar[dict[str, torch.dtype]] = {
        "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64,
    }  # fmt: skip

    def __init__(self, path: Path) -> None:
        """Read the header: its length in 8 bytes, then JSON with dtype, shape and offsets of every tensor."""
        self._file = path.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(8), "little")
        self._base, self._header = 8 + length, json.loads(self._file.read(length))

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """`count` rows of a tensor from row `start` on; all of them if `count` is None."""
        entry = self._header[name]
        offset, length = self._bytes_of(name, start, count)
        buffer = bytearray(length)
        if os.preadv(self._file.fileno(), [buffer], offset) < length:
            raise damaged(self._file.name, "fewer bytes", "all bytes of its tensors")
        return torch.frombuffer(buffer, dtype=self._TYPES[entry["dtype"]]).view(-1, *entry["shape"][1:])

    def will_read(self, name: str, start: int, count: int) -> None:
        """Ask the system to load these rows into its page cache while something else is computed."""
        if hasattr(os, "posix_fadvise"):  # not on every system; reading works without it
            os.posix_fadvise(self._file.fileno(), *self._bytes_of(name, start, count), os.POSIX_FADV_WILLNEED)

    def _bytes_of(self, name: str, start: int, count: int | None) -> tuple[int, int]:
        """Offset in the file and length of these rows, in bytes."""
        entry = self._header[name]
        shape, dtype = entry["shape"], self._TYPES[entry["dtype"]]
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        count = shape[0] - start if count is None else count
        return self._base + entry["data_offsets"][0] + start * row_bytes, count * row_bytes


class HiddenStore:
    """An open store: what it holds about the answer positions of any rows, in milliseconds."""

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`.

        Raises StaleArtifactError if it was never finished or has another format, DamagedArtifactError, here or where
        rows are read, if a file is not as it was written.
        """
        self.folder = folder
        if not present(folder / "store.json"):
            raise StaleArtifactError(
                f"{folder} holds no finished store: run the cache stage again; it continues where it stopped"
            )
        self.about: dict[str, Any] = read_json(folder / "store.json")
        if self.about["format"] != FORMAT:
            raise StaleArtifactError(
                f"{folder} has store format {self.about['format']}, this version reads {FORMAT}: rebuild it with"
                " `tutelage cache RECIPE --force`"
            )
        index = folder / "index.safetensors"
        with reading(index, SafetensorError), safe_open(str(index), framework="pt") as file:
            self.keys, self.tokens = file.get_tensor("keys").numpy(), file.get_tensor("tokens").numpy()
            self.lengths = file.get_tensor("bytes").numpy() if self.about["kind"] == "bytes" else self.tokens
        self._starts = self._starts_in_shards()
        self._shards: dict[int, Shard] = {}
        self._checked: set[int] = set()

    def check(self, rows: Sequence[EncodedRow]) -> None:
        """Raises StaleArtifactError if the store was made from other rows, or the same in another order."""
        keys = keys_of(rows)
        if len(keys) == len(self.keys) and np.array_equal(keys, self.keys):
            return
        known = set(self.keys.tolist())
        missing = [rows[index].id for index, key in enumerate(keys.tolist()) if key not in known]
        reason = "it has other rows or another order"
        if missing:
            reason = f"{len(missing):,} rows are not in it, the first {missing[:3]}"
        raise StaleArtifactError(
            f"{self.folder} was made from other rows or with another tokenizer ({len(self.keys):,} rows stored,"
            f" {len(keys):,} asked for; {reason}). Rebuild it: tutelage cache RECIPE --force"
        )

    def positions(self, name: str, rows: Sequence[int]) -> Tensor:
        """The stored tensor `name` at all answer positions of these rows (indices), concatenated in that order."""
        if not len(rows):
            return self.positions(name, [0])[:0]
        pieces = []
        for row in rows:
            shard = self._checked_shard(row // self.about["shard_rows"])
            pieces.append(shard.read(name, int(self._starts[row]), int(self.lengths[row])))
        with torch.autocast("cpu", enabled=False):  # which refuses to concatenate float16
            return torch.cat(pieces)

    def will_read(self, rows: Sequence[int]) -> None:
        """Load these rows' answer positions into the page cache, in the background, before `positions` reads them."""
        names = ("ids", "log_probs") if self.about["kind"] == "top_k" else (self.about["kind"],)
        for row in rows:
            for name in names:
                shard = self._shard(row // self.about["shard_rows"])
                shard.will_read(name, int(self._starts[row]), int(self.lengths[row]))

    def __getstate__(self) -> dict[str, Any]:
        """For data-loading processes: each of them opens the files itself."""
        return {**self.__dict__, "_shards": {}}

    def nll(self, tokens: np.ndarray | None = None) -> np.ndarray:
        """[rows] negative log-likelihood of the gold answers, in nats per token.

        tokens: [rows] tokens to count each answer as: those of another tokenizer, so that two models' losses are in one
        unit. Default: the teacher's own, which gives the same numbers.
        """
        shards = range(-(-len(self.keys) // self.about["shard_rows"]))
        own = np.concatenate([self._checked_shard(number).read("nll").double().numpy() for number in shards])
        return own if tokens is None else own * (self.tokens / tokens)

    def _checked_shard(self, number: int) -> Shard:
        """A shard to read numbers from. Those that data-loading processes only ask for ahead are not hashed there."""
        if number not in self._checked:
            check(self._path(number))
            self._checked.add(number)
        return self._shard(number)

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            try:
                self._shards[number] = Shard(self._path(number))
            except (OSError, ValueError) as error:
                raise damaged(self._path(number), error) from error
        return self._shards[number]

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"

    def _starts_in_shards(self) -> np.ndarray:
        """[rows] index of each row's first answer position, or byte, in its shard."""
        shard_rows = self.about["shard_rows"]
        starts = np.cumsum(self.lengths) - self.lengths
        return starts - np.repeat(starts[::shard_rows], shard_rows)[: len(starts)]


def bytes_on_disk(rows: Sequence[EncodedRow], width: int, dtype_bytes: int) -> int:
    """Size of one checkpoint's states: answer positions x width x bytes."""
    return int(answer_lengths(rows).sum()) * width * dtype_bytes
