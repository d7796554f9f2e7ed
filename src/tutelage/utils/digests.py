"""Texts compared by 64 bits of a hash of each: which occur again, and which are among others. 8 bytes a text.

Two different texts among a million have equal digests with probability 3e-8. Where that would be reported or would
change an id, the texts themselves are compared afterwards.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

CHUNK = 1 << 16
"""Digests that are looked up at once."""


def digest(text: str) -> int:
    """64 bits of a hash, as a number without a sign."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def digests(texts: Iterable[str]) -> np.ndarray:
    """[texts] uint64."""
    return as_array(array("Q", map(digest, texts)))


def as_array(numbers: array[int]) -> np.ndarray:
    """The digests of a growing array, not copied."""
    return np.frombuffer(numbers, dtype=np.uint64) if numbers else np.empty(0, dtype=np.uint64)


def repeated(numbers: np.ndarray) -> np.ndarray:
    """The digests that occur more than once, ascending, each once."""
    ordered = np.sort(numbers)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


class DigestSet:
    """Texts that others are looked up among; each text takes 8 bytes."""

    def __init__(self, *parts: np.ndarray) -> None:
        """parts: digests, in any order."""
        self._ordered = np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint64)

    def __contains__(self, number: int) -> bool:
        """Whether a digest is among these."""
        place = int(np.searchsorted(self._ordered, np.uint64(number)))
        return place < len(self._ordered) and int(self._ordered[place]) == number

    def holds(self, numbers: np.ndarray) -> np.ndarray:
        """[numbers] whether each is among these."""
        found = np.zeros(len(numbers), dtype=bool)
        for start in range(0, len(numbers) if len(self._ordered) else 0, CHUNK):
            part = numbers[start : start + CHUNK]
            places = np.searchsorted(self._ordered, part)
            found[start : start + CHUNK] = self._ordered[np.minimum(places, len(self._ordered) - 1)] == part
        return found
