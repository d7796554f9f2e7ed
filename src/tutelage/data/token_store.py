"""Rows as token ids on disk: tokenized once by `prepare`, read by every later stage, never in memory as a whole.

    SPLIT.arrow               id, prompt and answer token ids, 64 rows to a record batch (Arrow IPC)
    SPLIT.index.safetensors   keys, prompt and answer lengths [rows]: what is needed of all rows at once; written last

Record batches are read through the page cache and dropped: only the index, 24 bytes a row, stays in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tutelage.data.encode import EncodedRow, Subset
from tutelage.utils.files import replacing
from tutelage.utils.integrity import reading

BATCH_ROWS = 64
"""Rows read at a time: random access to a row reads a few kilobytes more than the row."""
_SCHEMA = pa.schema({"id": pa.string(), "prompt": pa.list_(pa.int32()), "answer": pa.list_(pa.int32())})


def write_tokens(path: Path, rows: Iterable[EncodedRow]) -> None:
    """Stream rows of one split into `path` (.arrow) and its index."""
    index = {name: array("q") for name in ("keys", "prompts", "answers")}
    with (
        replacing(path) as draft,
        pa.OSFile(str(draft), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        for batch in _batches(rows):
            columns = [[row.id for row in batch], [row.prompt for row in batch], [row.answer for row in batch]]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
            index["keys"].extend(row.key for row in batch)
            index["prompts"].extend(len(row.prompt) for row in batch)
            index["answers"].extend(len(row.answer) for row in batch)
    with replacing(_index_of(path)) as draft:
        save_file({name: torch.from_numpy(np.asarray(values)) for name, values in index.items()}, str(draft))


class TokenStore(Sequence[EncodedRow]):
    """The rows of one split, read from disk on demand."""

    def __init__(self, path: Path, split: str, units: np.ndarray | None = None) -> None:
        """Open what `write_tokens` wrote. Raises DamagedArtifactError if it is not as it was written.

        units: see `unit_lengths`.
        """
        self.split, self.units = split, units
        with reading(_index_of(path), SafetensorError, KeyError):
            arrays = load_file(str(_index_of(path)))
            self.keys, self.prompt_lengths, self.answer_lengths = (
                arrays[name].numpy() for name in ("keys", "prompts", "answers")
            )
        with reading(path, pa.ArrowInvalid):
            self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        self._held: tuple[int, pa.RecordBatch] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...

    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        """One row, or a list of the rows of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        number, row = divmod(int(index), BATCH_ROWS)
        if self._held is None or self._held[0] != number:
            self._held = number, self._reader.get_batch(number)
        name, prompt, answer = (column[row].as_py() for column in self._held[1].columns)
        return EncodedRow(name, self.split, prompt, answer)


def keys_of(rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] fingerprints, int64."""
    return rows.keys if isinstance(rows, TokenStore) else np.array([row.key for row in rows], dtype=np.int64)


def answer_lengths(rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] answer tokens, end-of-sequence included."""
    return (
        rows.answer_lengths
        if isinstance(rows, TokenStore)
        else np.array([len(row.answer) for row in rows], dtype=np.int64)
    )


def unit_lengths(rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] tokens that each answer counts as in losses per token: its own; in a teacher's rows those of the student,
    if their tokenizers differ, so that losses of both are in one unit and their ratio is that of the same text."""
    if isinstance(rows, Subset):
        return unit_lengths(rows.rows)[np.asarray(rows.indices, dtype=np.int64)]
    units = rows.units if isinstance(rows, TokenStore) else None
    return answer_lengths(rows) if units is None else units


def in_units(losses: np.ndarray, rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] losses per unit from losses per token; the same numbers where a unit is a token."""
    own, units = answer_lengths(rows), unit_lengths(rows)
    return losses if own is units or np.array_equal(own, units) else losses * (own / units)


def row_lengths(rows: Sequence[EncodedRow]) -> np.ndarray:
    """[rows] tokens of prompt and answer."""
    if isinstance(rows, TokenStore):
        return rows.prompt_lengths + rows.answer_lengths
    return np.array([len(row.prompt) + len(row.answer) for row in rows], dtype=np.int64)


def length_order(rows: Sequence[EncodedRow]) -> list[int]:
    """Indices of the rows, longest first: batches with little padding, and too little memory shows at once."""
    return np.argsort(-row_lengths(rows), kind="stable").tolist()


def _batches(rows: Iterable[EncodedRow]) -> Iterator[list[EncodedRow]]:
    batch: list[EncodedRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _index_of(path: Path) -> Path:
    return path.with_suffix(".index.safetensors")
