"""A vocabulary sorted by the bytes that its tokens spell. NumPy only.

The tokens that begin with given bytes, a *prefix*, are one range of that order, and so are those that go on with a
given next byte: they are the range's *children*.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

END = 256
"""Column of "the answer ends" in the alphabet of 256 bytes and this."""
ALPHABET = 257
KEPT = 1 << 16
"""Prefixes whose children are kept at a time: some 30 MB."""


@dataclass(frozen=True)
class Children:
    """Where the tokens that begin with a prefix lie in the sorted vocabulary."""

    exact: int
    """First token that begins with the prefix; those up to `start` are the prefix itself."""
    start: int
    """First token that goes on after the prefix."""
    bytes: np.ndarray
    """[C] int64: the bytes that tokens go on with, ascending."""
    sizes: np.ndarray
    """[C] int64: number of tokens for each. Token ranges follow each other from `start` on."""
    stop: int
    """End of the last range."""


class ByteVocabulary:
    """Tokens in the order of their bytes."""

    def __init__(self, spelled: Sequence[bytes], end: int) -> None:
        """spelled: bytes of every token id, empty for those that spell nothing. end: id of end-of-sequence."""
        self.spelled, self.end = spelled, end
        order = sorted((index for index, text in enumerate(spelled) if text), key=lambda index: spelled[index])
        self.order = np.array(order, dtype=np.int64)
        """[K] token ids that spell something, sorted by what they spell."""
        self._keys = [spelled[index] for index in order]
        self._children: dict[bytes, Children] = {}

    @property
    def size(self) -> int:
        """Number of token ids."""
        return len(self.spelled)

    def children(self, prefix: bytes) -> Children:
        """The tokens that begin with these bytes. Kept for a while: answers share most of their prefixes."""
        if prefix not in self._children:
            if len(self._children) >= KEPT:
                self._children.clear()
            self._children[prefix] = self._find(prefix)
        return self._children[prefix]

    def _find(self, prefix: bytes) -> Children:
        keys, depth = self._keys, len(prefix)
        exact = position = bisect_left(keys, prefix)
        while position < len(keys) and keys[position] == prefix:
            position += 1
        start, following, sizes = position, [], []
        while position < len(keys) and keys[position].startswith(prefix):
            byte = keys[position][depth]
            next_child = prefix + bytes([byte + 1]) if byte < 255 else None
            after = bisect_left(keys, next_child, position) if next_child else self._after(prefix, position)
            following.append(byte)
            sizes.append(after - position)
            position = after
        return Children(exact, start, np.array(following, np.int64), np.array(sizes, np.int64), position)

    def _after(self, prefix: bytes, position: int) -> int:
        """End of the tokens that begin with the prefix."""
        while position < len(self._keys) and self._keys[position].startswith(prefix):
            position += 1
        return position
