"""Where words begin and end, as far as a script shows it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable


def cuts_words(text: str, start: int, end: int) -> bool:
    """Whether a span begins or ends inside a word, or with white space.

    Inside means: between two letters of a script that has spaces between words. A Korean word may go on after the end,
    with a particle.
    """
    if text[end - 1].isspace():
        return True
    return begins_inside(text, start) or _joins(text, end, lambda letter: _spaced(letter) and not _hangul(letter))


def begins_inside(text: str, start: int) -> bool:
    """Whether a span that begins here begins inside a word, or with white space."""
    return text[start].isspace() or _joins(text, start, _spaced)


def stands_whole(surface: str, text: str) -> bool:
    """Whether a text holds a surface anywhere without cutting words."""
    start = text.find(surface)
    while start >= 0:
        if not cuts_words(text, start, start + len(surface)):
            return True
        start = text.find(surface, start + 1)
    return False


def is_whole(text: str, start: int, end: int) -> bool:
    """Whether a span begins and ends with letters, and none stands beside it."""
    borders = start == 0 or not _letter(text[start - 1]), end == len(text) or not _letter(text[end])
    return all(borders) and _letter(text[start]) and _letter(text[end - 1])


def _joins(text: str, position: int, kind: Callable[[str], bool]) -> bool:
    return 0 < position < len(text) and kind(text[position - 1]) and kind(text[position])


def _letter(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter)[0] == "M"


def _spaced(letter: str) -> bool:
    return _letter(letter) and not is_unspaced(letter)


def _hangul(letter: str) -> bool:
    return "\uac00" <= letter <= "\ud7a3" or "\u1100" <= letter <= "\u11ff"


def is_unspaced(letter: str) -> bool:
    """Whether a letter is of a script without spaces between words: Han, kana, Thai, Lao, Tibetan, Burmese, Khmer."""
    return (
        "\u0e00" <= letter <= "\u109f"
        or "\u1780" <= letter <= "\u17ff"
        or "\u2e80" <= letter <= "\u9fff"
        or "\uf900" <= letter <= "\ufaff"
        or "\uff66" <= letter <= "\uff9d"
        or letter >= "\U00020000"
    )
