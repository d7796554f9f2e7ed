"""Records on disk in place of a list: a data set of any size takes a few bytes of memory a record.

    Spool      records in an unnamed temporary file, read in order or by index
    Picked     some records of another sequence, in an order of their own
    Mapped     the records of another sequence, each as a function makes it
    Joined     the records of several sequences, one after another

All are sequences, equal to every sequence of equal records.
"""

from __future__ import annotations

import pickle
import tempfile
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

Record = TypeVar("Record")
Source = TypeVar("Source")

BLOCK = 64
"""Records that are read at once when all are read in order; one of each block has its place in the file in memory."""


class Stored(Sequence[Record]):
    """A sequence whose records are made when they are asked for."""

    __hash__ = None  # type: ignore[assignment]  # equal by content, as lists are

    @abstractmethod
    def at(self, index: int) -> Record:
        """The record at an index from 0 to the last."""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """One record, or a list of the records of a slice."""
        if isinstance(index, slice):
            return [self.at(place) for place in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])

    def __iter__(self) -> Iterator[Record]:
        """The records in order."""
        return map(self.at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether the other sequence holds equal records in the same order."""
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))


class Spool(Stored[Record]):
    """Records in a temporary file without a name: it is gone when the spool is, or its process.

    The file is written and read by this object alone.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        pack: Callable[[Record], Any] = lambda record: record,
        unpack: Callable[[Any], Record] = lambda packed: packed,
    ) -> None:
        """folder: where the file is made; default: where the system has temporary files. pack, unpack: a record to
        what the file holds of it, and back."""
        self._folder, self._pack, self._unpack = folder, pack, unpack
        self._file = tempfile.TemporaryFile(prefix="tutelage-", dir=folder)  # noqa: SIM115  # closed when it is freed
        self._sizes, self._blocks, self._end = array("I"), array("Q"), 0
        self._writing = False

    def append(self, record: Record) -> None:
        """Add a record at the end."""
        data = pickle.dumps(self._pack(record), pickle.HIGHEST_PROTOCOL)
        if len(self._sizes) % BLOCK == 0:
            self._blocks.append(self._end)
        if not self._writing:  # to seek is to write what is in the buffer
            self._writing = True
            self._file.seek(self._end)
        self._file.write(data)
        self._sizes.append(len(data))
        self._end += len(data)

    def extend(self, records: Iterable[Record]) -> None:
        """Add records at the end."""
        for record in records:
            self.append(record)

    def truncate(self, size: int) -> None:
        """Keep the first `size` records."""
        if size < len(self):
            self._end, self._writing = self._place(size), False
            del self._sizes[size:], self._blocks[-(-size // BLOCK) :]

    def __len__(self) -> int:
        """Number of records."""
        return len(self._sizes)

    def at(self, index: int) -> Record:
        """The record at an index from 0 to the last."""
        return self._unpack(pickle.loads(self._read(self._place(index), self._sizes[index])))

    def __iter__(self) -> Iterator[Record]:
        """The records in order. Others may read the spool meanwhile."""
        for number, start in enumerate(self._blocks):
            sizes = self._sizes[number * BLOCK : (number + 1) * BLOCK]
            data, place = memoryview(self._read(start, sum(sizes))), 0
            for size in sizes:
                yield self._unpack(pickle.loads(data[place : place + size]))
                place += size

    def _read(self, start: int, size: int) -> bytes:
        self._writing = False
        self._file.seek(start)
        return self._file.read(size)

    def _place(self, index: int) -> int:
        """Where a record begins in the file."""
        number = index // BLOCK
        return self._blocks[number] + sum(self._sizes[number * BLOCK : index])


class Picked(Stored[Record]):
    """Some records of a sequence, in the order of their indices."""

    def __init__(self, records: Sequence[Record], indices: np.ndarray) -> None:
        """indices: [picked] of records, in the order wanted."""
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        """Number of records."""
        return len(self.indices)

    def at(self, index: int) -> Record:
        """The record at an index from 0 to the last."""
        return self.records[int(self.indices[index])]


class Joined(Stored[Record]):
    """The records of several sequences, one after another."""

    def __init__(self, *parts: Sequence[Record]) -> None:
        """parts: in order; none of them may grow any more."""
        self.parts, self._ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        """Number of records."""
        return self._ends[-1] if self._ends else 0

    def at(self, index: int) -> Record:
        """The record at an index from 0 to the last."""
        number = bisect_right(self._ends, index)
        return self.parts[number][index - (self._ends[number - 1] if number else 0)]

    def __iter__(self) -> Iterator[Record]:
        """The records in order."""
        return chain.from_iterable(self.parts)


class Mapped(Stored[Record], Generic[Source, Record]):
    """The records of a sequence, each as a function makes it."""

    def __init__(self, records: Sequence[Source], function: Callable[[int, Source], Record]) -> None:
        """function: from the index of a record, and the record."""
        self.records, self.function = records, function

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    def at(self, index: int) -> Record:
        """The record at an index from 0 to the last."""
        return self.function(index, self.records[index])

    def __iter__(self) -> Iterator[Record]:
        """The records in order."""
        return (self.function(index, record) for index, record in enumerate(self.records))
