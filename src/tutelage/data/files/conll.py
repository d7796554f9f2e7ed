"""CoNLL as raw rows: tokens and tags.

The token is in the first column and its tag in the last; a blank line stands between sentences; tabs or spaces separate
columns. A line in front of a sentence that begins with # is a comment if it is `# key = value` or does not end in a
tag. Where the first column counts tokens (CoNLL-U, GermEval), the token is in the second. It does if its numbers rise
in every sentence: they may leave some out, or go on from one sentence to the next.

Of rows whose answers are not needed, the tags may be missing: a token stands alone, or before columns that tabs
separate. Other lines of several words are text, which is refused rather than read as its first words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tutelage.data.files.problems import PlacedRow, Row, unreadable
from tutelage.errors import Kind, Place

TAG = re.compile("O|[BIESLU]-.+")
"""A tag of the BIO family."""
_NUMBER = re.compile(r"(\d{1,9})(?:-(\d{1,9})|\.\d+)?")
"""A token's number; `1-2` for a word that stands for several, `8.1` for one that is not in the text."""

_CHUNKS = frozenset(["NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"])
"""Types of syntactic chunks, whose tags CoNLL-2003 has in the column before those of entities."""
FEW_OF_NUMBERS = 2, 0.1
"""Number and fraction of the sentences of a text that may consist of rising numbers."""

_SENTENCE = re.compile(r".+[。！？]")
"""What no token is: text of a language that writes no spaces."""


class _Line(NamedTuple):
    number: int
    cells: list[str]
    tabs: bool
    """Whether tabs separate the columns."""


def read_conll(path: Path, encoding: str, *, need_tags: bool = True) -> Iterator[PlacedRow]:
    """One row a sentence, without `tags` if these are not needed and some line has none. Raises DataError.

    Read twice: what the columns are shows in all sentences.
    """
    layout = _Layout()
    with path.open(encoding=encoding) as file:
        for sentence in _sentences(file, path, need_tags):
            layout.look(sentence)
    if text := None if need_tags else layout.text:
        raise unreadable(Kind.NOT_CONLL, path, text.number, file=str(path), text=" ".join(text.cells))
    if odd := layout.uncounted:
        values = {"text": " ".join(odd.cells), "counting": layout.counting, "sentences": layout.sentences}
        raise unreadable(Kind.CONLL_NUMBERS_UNCLEAR, path, odd.number, **values)
    numbered, nested = layout.numbered, layout.nested
    with path.open(encoding=encoding) as file:
        for sentence in _sentences(file, path, need_tags):
            words = list(_words(sentence)) if numbered else sentence
            row: Row = {"tokens": [line.cells[int(numbered)] for line in words]}
            if need_tags or layout.tagged:
                row["tags"] = [_tag(line.cells[-2] if nested else line.cells[-1]) for line in words]
            if nested:
                row["inner_tags"] = [line.cells[-1] for line in words]
            if words:
                yield row, Place(str(path), sentence[0].number)


class _Layout:
    """What all sentences of a file have in common."""

    def __init__(self) -> None:
        self.sentences, self.counting = 0, 0
        """How many there are, but for single tokens that are numbers; and in how many of them the first column counts
        the tokens."""
        self._from_one, self._pairs = False, True
        self._uncounted: _Line | None = None
        self._outer: set[str] = set()
        self._inner: set[str] = set()
        self.tagged = True
        """Whether every line ends in a tag."""
        self._text: _Line | None = None

    def look(self, sentence: list[_Line]) -> None:
        """Take a sentence into account."""
        odd = _uncounted(sentence)
        self._uncounted = self._uncounted or odd
        if odd or len(sentence) > 1:  # a single number may be text, or go on counting
            self.sentences, self.counting = self.sentences + 1, self.counting + (not odd)
        self._from_one = self._from_one or sentence[0].cells[0] in ("0", "1")
        untagged = [line for line in sentence if len(line.cells) < 2 or not TAG.fullmatch(_tag(line.cells[-1]))]
        self.tagged = self.tagged and not untagged
        self._text = self._text or next(filter(_is_text, untagged), None)
        for line in sentence if self._pairs else ():
            if len(line.cells) < 3 or not all(map(TAG.fullmatch, line.cells[-2:])):
                self._pairs = False
                break
            self._outer.add(line.cells[-2][2:])
            self._inner.add(line.cells[-1][2:])

    @property
    def numbered(self) -> bool:
        """Whether the first column counts the tokens."""
        return not self._uncounted and (self.counting > 0 or self._from_one)

    @property
    def uncounted(self) -> _Line | None:
        """The first line without its number where so many sentences count their tokens that all should."""
        number, fraction = FEW_OF_NUMBERS
        few = self.counting <= max(number, fraction * self.sentences) and 2 * self.counting <= self.sentences
        return None if few else self._uncounted

    @property
    def text(self) -> _Line | None:
        """The first line that is text, and no token with or without other columns."""
        return None if self.numbered else self._text

    @property
    def nested(self) -> bool:
        """Whether the last two columns are entity tags of the same types: those of GermEval, outer and inner."""
        outer, inner = self._outer - {""}, self._inner - {""}
        return self._pairs and bool(outer) and inner <= outer and not outer <= _CHUNKS


def _is_text(line: _Line) -> bool:
    """Whether a line without a tag is text."""
    return not line.tabs and (len(line.cells) > 1 or _SENTENCE.match(line.cells[0]) is not None)


def _sentences(file: Iterable[str], path: Path, need_tags: bool) -> Iterator[list[_Line]]:
    lines: list[_Line] = []
    for number, line in enumerate(chain(file, ["\n"]), start=1):
        cells = _cells(line.strip("\r\n"))
        if cells[:1] == ["-DOCSTART-"]:
            continue
        if not line.strip():
            if lines:
                yield lines
            lines = []
        elif not lines and line.startswith("#") and _is_comment(line, cells, need_tags):
            continue
        elif (need_tags and len(cells) < 2) or not cells[0]:
            raise unreadable(Kind.TAG_MISSING, path, number, token=cells[0] or cells[1])
        else:
            lines.append(_Line(number, cells, "\t" in line))


def _is_comment(line: str, cells: list[str], need_tags: bool) -> bool:
    """Whether a line that begins with # is no token. Without tags, `#fun` is one."""
    if re.match(r"# ?\S+ = ", line):
        return True
    return not TAG.fullmatch(cells[-1]) and (need_tags or len(cells) > 1)


def _cells(line: str) -> list[str]:
    """Columns of a line. A token may hold spaces where tabs separate columns, or be one; where spaces do, it may be
    other white space (U+3000)."""
    if "\t" in line:
        first, *others = line.split("\t")
        return [first.strip(" ") or first, *(cell.strip(" ") for cell in others if cell.strip(" "))]
    cells = [cell for cell in line.split(" ") if cell]
    return [" ", *cells] if len(cells) == 1 and line.startswith("  ") and TAG.fullmatch(cells[0]) else cells


def _uncounted(sentence: list[_Line]) -> _Line | None:
    """The first line whose first column does not count the tokens: that is no number, or none above those before."""
    last = -1
    for line in sentence:
        match = _NUMBER.fullmatch(line.cells[0])
        if not match or len(line.cells) < 3:
            return line
        if match[0] == match[1]:
            if int(match[1]) <= last:
                return line
            last = int(match[1])
    return sentence[0] if last < 0 else None


def _words(sentence: list[_Line]) -> Iterator[_Line]:
    """The words of a numbered sentence as the text has them: `1-2` (du) with the first tag of its parts 1 (de) and 2
    (le), which are left out, as is 8.1."""
    last = -1
    for index, line in enumerate(sentence):
        match = _NUMBER.fullmatch(line.cells[0])
        if not match or "." in line.cells[0] or (not match[2] and int(match[1]) <= last):
            continue
        if not match[2]:
            yield line
            continue
        last = int(match[2])
        parts = sentence[index + 1 : index + 2 + last - int(match[1])]
        tags = [_tag(part.cells[-1]) for part in (line, *parts)]
        tag = next((tag for tag in tags if tag != "O" and TAG.fullmatch(tag)), "O")
        yield line._replace(cells=[*line.cells[:-1], tag])


def _tag(cell: str) -> str:
    """The tag in the last column; in the notes of CoNLL-U it is the value of a key, `NER=B-PER|SpaceAfter=No`."""
    values = (note.partition("=")[2] for note in cell.split("|") if "=" in note)
    return cell if TAG.fullmatch(cell) else next((value for value in values if TAG.fullmatch(value)), cell)
