"""Bytes to text: UTF-8, UTF-16 and UTF-32 by their marks, or `data.encoding`; else a guess at what the file is in."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from tutelage.errors import DataError, Kind, Place, Problem

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, the longer first: that of UTF-32 begins with that of UTF-16."""
SAMPLE_BYTES = 100_000
SEVEN_BIT = ("iso2022", "hz", "utf-7")
"""Encodings whose bytes are valid UTF-8, too."""

Result = TypeVar("Result")


class _Legacy(NamedTuple):
    """An encoding of two bytes a character, and the byte pairs that texts in it mostly consist of."""

    name: str
    leads: tuple[range, ...]
    """First bytes of its common characters."""
    trails: range = range(0xA1, 0xFF)
    least: float = 0.9
    """Fraction of the characters that must be common."""


_LEGACY = (
    _Legacy("cp949", (range(0xA1, 0xA4), range(0xB0, 0xC9)), least=0.97),
    _Legacy("euc-jp", (range(0xA1, 0xA9), range(0xB0, 0xD0))),
    _Legacy("cp932", (range(0x81, 0x85), range(0x87, 0x99)), range(0x40, 0xFD), least=0.7),
    _Legacy("gb18030", (range(0xA1, 0xA4), range(0xB0, 0xD8))),
    _Legacy("big5", (range(0xA1, 0xC7),), range(0x40, 0xFF)),
)
"""In the order of the guesses: Chinese in GB has the bytes of other encodings, too."""


def read_text(path: Path, encoding: str | None, read: Callable[[str], Result]) -> Result:
    """What `read` makes of the file, given the name of its encoding.

    encoding: `data.encoding`, for files that are not UTF-8. Raises DataError for a file that cannot be decoded.
    """
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    first = marked or ("utf-8-sig" if encoding is None or _extends_ascii(encoding) else encoding)
    # UTF-16 without a mark is valid UTF-8, in which every other letter is a NUL.
    if first == "utf-8-sig" and head[:200].count(b"\0") > len(head[:200]) / 5:
        guess = "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
        raise _undecodable(path, None, "NUL characters", [guess])
    try:
        return read(first)
    except UnicodeError as error:
        if first != "utf-8-sig" or encoding is None:
            guesses = likely_encodings(_around(path, error)) if first == "utf-8-sig" else []
            raise _undecodable(path, None if first == "utf-8-sig" else first, _reason(error), guesses) from None
    try:
        return read(encoding)
    except UnicodeError as error:
        raise _undecodable(path, encoding, _reason(error), likely_encodings(head)) from None


def _reason(error: UnicodeError) -> str:
    return getattr(error, "reason", str(error))


def _extends_ascii(encoding: str) -> bool:
    return "a".encode(encoding) == b"a" and not codecs.lookup(encoding).name.startswith(SEVEN_BIT)


def _undecodable(path: Path, tried: str | None, reason: str, guesses: list[str]) -> DataError:
    values = {"path": str(path), "tried": tried, "reason": reason, "guesses": guesses}
    change = f"data.encoding={guesses[0]}" if guesses else None
    place = Place(str(path))
    return DataError(Problem(Kind.ENCODING_NOT_UTF8, place=place, key="data.encoding", change=change, values=values))


def _around(path: Path, error: UnicodeError) -> bytes:
    """Bytes of the file from the first that UTF-8 cannot have."""
    data = path.read_bytes()
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as again:
        start = data.rfind(b"\n", 0, again.start) + 1
        return data[start : start + SAMPLE_BYTES]
    return data[:SAMPLE_BYTES]


def likely_encodings(sample: bytes) -> list[str]:
    """Encodings that the bytes may be in, the likeliest first; Western European if they are in no other."""
    sample = sample[: sample.rfind(b"\n") + 1] or sample  # no half a character at the end
    fitting = [legacy.name for legacy in _LEGACY if _fits(sample, legacy)]
    return fitting[:3] or [name for name in ("cp1252", "iso-8859-1") if _decodes(sample, name)][:1]


def _fits(sample: bytes, legacy: _Legacy) -> bool:
    text = _decodes(sample, legacy.name)
    if text is None:
        return False
    pairs = [letter.encode(legacy.name) for letter in text if not letter.isascii()]
    common = sum(
        len(pair) == 2 and pair[1] in legacy.trails and any(pair[0] in lead for lead in legacy.leads) for pair in pairs
    )
    return common >= legacy.least * len(pairs)


def _decodes(sample: bytes, encoding: str) -> str | None:
    try:
        return sample.decode(encoding)
    except UnicodeError:
        return None
