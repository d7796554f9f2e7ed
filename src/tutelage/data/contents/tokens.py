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
    token_rows = [_tokens(mapped.row) for _, mapped, _ in rows if mapped.row_format == "tokens"]
    blanks = sum(not token.strip() for tokens in token_rows for token in tokens)
    filled = [token for tokens in token_rows for token in tokens if token.strip()]
    single = max(map(len, token_rows), default=0) >= LEAST and all(_letters(token) < 2 for token in filled)
    # Pieces of a text, blanks included: two words side by side would have no space between them.
    pieces = blanks > sum(_letters(a) > 0 < _letters(b) for tokens in token_rows for a, b in pairwise(tokens))
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
