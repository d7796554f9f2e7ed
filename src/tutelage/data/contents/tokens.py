"""Whether tokens are words, with spaces between them, or characters, among which blanks are tokens of their own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tutelage.data.columns import MappedRow, words
from tutelage.data.files.problems import BAD_CELL
from tutelage.errors import Place

LEAST = 4
"""Tokens of the longest row by which characters are recognised."""


def decide_join_tokens(rows: Iterable[tuple[str, MappedRow, Place]]) -> tuple[str, str] | None:
    """("characters", reason) where tokens make the text without spaces between them; None where they are words."""
    longest, blanks, side_by_side, single = 0, 0, 0, True
    for _, mapped, _ in rows:
        tokens = _tokens(mapped.row) if mapped.row_format == "tokens" else []
        longest = max(longest, len(tokens))
        blanks += sum(not token.strip() for token in tokens)
        side_by_side += sum(_letters(a) > 0 < _letters(b) for a, b in pairwise(tokens))
        single = single and all(_letters(token) < 2 for token in tokens)
    single = single and longest >= LEAST
    pieces = blanks > side_by_side  # a text in pieces: words side by side would have no space between them
    if not single and not pieces:
        return None
    kind = "characters" if single else "pieces of the text"
    spaces = "and blanks are tokens" if blanks else "without blanks between them"
    return "characters", f"tokens are {kind}, {spaces}: they are joined without spaces"


def _tokens(row: dict[str, Any]) -> list[str]:
    try:
        return words(row["tokens"])
    except BAD_CELL:
        return []  # reported when the row is rendered


def _letters(token: str) -> int:
    return sum(letter.isalnum() for letter in token)
