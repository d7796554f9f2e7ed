"""Which token ranges the bytes of answers need: the plan of a batch, from token ids alone. NumPy only.

An answer's tokens spell its bytes. The distribution over the byte at p comes from every position j whose token begins
at or before p, as far as tokens spell on:

    inside a token     the tokens that begin with what the answer's token has spelled so far
    at a token's end   the next position's tokens; and those of the position before that are longer than the answer's
                       token and agree with the answer up to p ("New" ends, but "Newton" was possible, too)

Each such pair of a position and a byte is a *look-up*: a prefix, and the masses of its children. A position's first
look-up has the empty prefix, at which the answer may also end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.bytes.vocabulary import ByteVocabulary, Children

WIDE = 2048
"""Tokens in the children of a prefix from which on all positions with this prefix are summed together."""


@dataclass(frozen=True)
class Lookups:
    """The look-ups of a batch, in the order of their positions. N positions, R look-ups, B bytes; each answer has one
    byte more than its text, its end."""

    vocabulary: ByteVocabulary
    rows: np.ndarray
    """[examples] bytes of each answer, the end included."""
    position: np.ndarray
    """[R] index of the position, ascending."""
    byte: np.ndarray
    """[R] index of the byte that follows the prefix."""
    children: list[Children]
    """[R] what the prefix may go on with."""
    empty: np.ndarray
    """[R] bool: the prefix is empty, so that the answer may end here."""
    goes_on: np.ndarray
    """[R] bool: the prefix is longer than the answer's own token at this position."""
    exact: np.ndarray
    """[N, 2] range of the tokens that spell what the answer's own token spells; empty at an answer's end."""
    example: np.ndarray
    """[N] index of the answer that a position belongs to."""

    @property
    def positions(self) -> int:
        """N."""
        return len(self.exact)


def lookups_of(answers: Sequence[Sequence[int]], vocabulary: ByteVocabulary, skip: int = 0) -> Lookups:
    """The look-ups of a batch of answers, given as token ids that end with end-of-sequence.

    skip: bytes at the start of each answer that are not its text: a space that the tokenizer adds. The text's
    distributions are those after it.
    """
    position: list[int] = []
    byte: list[int] = []
    depth: list[int] = []
    goes_on: list[bool] = []
    children: list[Children] = []
    exact: list[tuple[int, int]] = []
    rows: list[int] = []
    first_byte = 0
    for answer in answers:
        spelled = [vocabulary.spelled[token] for token in answer[:-1]]
        text = b"".join(spelled)
        start = 0
        for own in (*spelled, b""):
            for length in range(len(text) - start + 1):
                found = vocabulary.children(text[start : start + length])
                if length == len(own) and own:
                    exact.append((found.exact, found.start))
                if not len(found.bytes):
                    break
                if start + length >= skip:
                    position.append(len(exact) - (length >= len(own) > 0))
                    byte.append(first_byte + start + length - skip)
                    depth.append(length)
                    goes_on.append(length >= len(own) > 0)
                    children.append(found)
            start += len(own)
        exact.append((0, 0))
        rows.append(len(text) - skip + 1)
        first_byte += rows[-1]
    return Lookups(
        vocabulary,
        np.array(rows, np.int64),
        np.array(position, np.int64),
        np.array(byte, np.int64),
        children,
        np.array(depth, np.int64) == 0,
        np.array(goes_on, bool),
        np.array(exact, np.int64).reshape(-1, 2),
        np.repeat(np.arange(len(rows)), [len(answer) for answer in answers]),
    )
