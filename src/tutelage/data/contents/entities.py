"""Entities in every form that rows have them in, as the (type, surface) pairs that a model learns to write.

    offsets        {type, start, end}, [start, end, type], with or without the surface; see `data.offsets`
    typed strings  {type, text}, [type, text], "TYPE: text"
    tags           BIO, IOB1, BIOES or BILOU, one for each token

Every surface must occur in its text, or the row is refused.
"""

from __future__ import annotations

from typing import Any

from tutelage.data.columns import list_in, listed_objects, words
from tutelage.data.contents.words import is_unspaced
from tutelage.data.files.printed import opened
from tutelage.errors import DataError, Kind, Problem
from tutelage.tasks.metrics import base_language
from tutelage.tasks.ner import NO_ENTITIES

MARKS = ("B", "I", "E", "S", "L", "U")
"""What a tag may begin with; L and U are BILOU's names of E and S."""
TYPE_KEYS = ("type", "label", "labels", "entity_group")
"""Keys of an entity that hold its type; Label Studio has a list of one."""
START_KEYS, END_KEYS = ("start", "start_offset"), ("end", "end_offset")
"""Keys of an entity that hold its offsets; doccano has the latter."""
SURFACE_KEYS = ("text", "surface", "word")
"""Keys of an entity that hold its surface. `word` is the spelling of a tokenizer, so offsets win over it."""
UNSPACED = ("ja", "th", "zh")
"""Languages written without spaces between words."""

Pairs = list[tuple[str, str]]
Offsets = tuple[int, int]
"""Start and end of an entity in characters of its text, end excluded."""
Parts = tuple[Any, Any, Any, Any]
"""(type, start, end, surface) as an entity names them; None for what it does not."""


def entities_in(value: Any, text: str, offsets: str | None = None) -> Pairs | None:
    """The entities of a text; None where the column is empty. Raises DataError.

    Sorted by offsets where all have some; otherwise in the given order. offsets: `data.offsets`.
    """
    parts = parts_of_entities(value)
    if parts is None:
        return None
    located = [_entity(entity, text, offsets or "characters") for entity in parts]
    if all(found for found, _ in located):
        located.sort(key=lambda entry: (entry[0], entry[1][0]))
    return [pair for _, pair in located]


def parts_of_entities(value: Any) -> list[Parts] | None:
    """The parts of each entity in a cell; None where it is empty. Raises DataError."""
    entities = listed_objects(opened(value))
    if entities is None:
        return None
    if isinstance(entities, str) and entities.lstrip()[:1] not in ("[", "{"):  # lines as a model writes them
        lines = [line.strip() for line in entities.splitlines() if line.strip()]
        entities = [] if [line.casefold() for line in lines] == [NO_ENTITIES] else lines
    return [_parts_of(entity) for entity in list_in(entities, "entities")]


def entities_of_tags(
    tokens: Any, tags: Any, language: str | None, join_tokens: str | None = None
) -> tuple[str, Pairs | None]:
    """The text that tokens make, and the entities that their tags mark; None without tags. Raises DataError.

    join_tokens: `data.join_tokens`.
    """
    tokens = words(tokens)
    text = joined(tokens, language, join_tokens)
    if tags is None:
        return text, None
    tags = words(tags)
    if len(tokens) != len(tags):
        raise DataError(Problem(Kind.TAGS_UNEVEN, values={"tokens": len(tokens), "tags": len(tags)}))
    return text, [(kind, joined(inside, language, join_tokens)) for kind, inside in _spans(tokens, tags)]


def joined(tokens: list[str], language: str | None, join_tokens: str | None = None) -> str:
    """Tokens as text: characters as they stand; words with spaces, in languages without them only between Latin words
    or numbers (`iPhone 15`)."""
    if join_tokens == "characters":
        return "".join(tokens)
    if not _unspaced(tokens, language):
        return " ".join(tokens)
    text, before = "", ""
    for token in tokens:
        latin = all(letter.isascii() and letter.isalnum() for letter in (before[-1:], token[:1]))
        # Texts cut into single characters hold Latin words letter by letter: those are joined again.
        text += f" {token}" if before and latin and len(before) + len(token) > 2 else token
        before = token
    return text


def _unspaced(tokens: list[str], language: str | None) -> bool:
    """Whether the language has no spaces between words; where it is not known, whether most letters are of such a
    script."""
    if language is not None:
        return base_language(language) in UNSPACED
    letters = [letter for token in tokens for letter in token if letter.isalnum()]
    return 2 * sum(map(is_unspaced, letters)) > len(letters)


def _entity(parts: Parts, text: str, counted: str) -> tuple[Offsets | None, tuple[str, str]]:
    """(offsets if known, (type, surface)) of an entity, found in the text."""
    kind, start, end, surface = parts
    entity = {
        name: part for name, part in zip(("type", "start", "end", "text"), parts, strict=True) if part is not None
    }
    offsets = None if start is None and end is None else offsets_in(text, start, end, counted)
    if offsets:
        surface = _cut(offsets, surface, text)
    elif start is not None or end is not None:
        raise DataError(Problem(Kind.ENTITY_OFFSETS_OUTSIDE, values={"entity": entity, "length": len(text)}))
    kind, surface = ("" if part is None else str(part).strip() for part in (kind, surface))
    if not kind or not surface:
        raise DataError(Problem(Kind.ENTITY_INCOMPLETE, values={"entity": entity}))
    if surface not in text:
        values = {"type": kind, "surface": surface, "text": text[:80]}
        raise DataError(Problem(Kind.ENTITY_NOT_IN_TEXT, values=values))
    return offsets, (kind, surface)


def _parts_of(entity: Any) -> Parts:
    if isinstance(entity, str):
        kind, _, surface = entity.partition(": ")
        return kind, None, None, surface
    if isinstance(entity, dict):
        start, end = _first(entity, START_KEYS), _first(entity, END_KEYS)
        kind, surface = _first(entity, TYPE_KEYS), _first(entity, SURFACE_KEYS if start is None else SURFACE_KEYS[:2])
        return kind[0] if isinstance(kind, list) and len(kind) == 1 else kind, start, end, surface
    if isinstance(entity, list | tuple) and len(entity) == 3:
        start, end, kind = entity
        return kind, start, end, None
    if isinstance(entity, list | tuple) and len(entity) == 2:
        kind, surface = entity
        return kind, None, None, surface
    return None, None, None, None


def _first(entity: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((entity[key] for key in keys if entity.get(key) is not None), None)


def offsets_in(text: str, start: Any, end: Any, counted: str) -> Offsets | None:
    """Offsets in characters, end excluded; None for what is no place in the text.

    counted: a value of `data.offsets`, `characters`, `utf16` or `bytes`, with `-inclusive` if the end is included.
    """
    start, end = (int(index) if isinstance(index, float) and index.is_integer() else index for index in (start, end))
    if type(start) is not int or type(end) is not int:
        return None
    unit, _, inclusive = counted.partition("-")
    start, end = start, end + bool(inclusive)
    if unit != "characters" and not text.isascii():
        start, end = (_characters(text, index, unit) for index in (start, end))
    return (start, end) if 0 <= start < end <= len(text) else None


def _characters(text: str, index: int, unit: str) -> int:
    """The character at an index in UTF-16 units or bytes of UTF-8; -1 where none begins."""
    encoding, size = ("utf-16-le", 2) if unit == "utf16" else ("utf-8", 1)
    encoded = text.encode(encoding, "surrogatepass")
    if not 0 <= index * size <= len(encoded):
        return -1
    try:
        return len(encoded[: index * size].decode(encoding))
    except UnicodeDecodeError:
        return -1


def _cut(offsets: Offsets, surface: Any, text: str) -> str:
    start, end = offsets
    if surface is not None and text[start:end] != surface:
        values = {"start": start, "end": end, "surface": surface, "found": text[start:end]}
        raise DataError(Problem(Kind.ENTITY_OFFSETS_WRONG, values=values))
    return text[start:end]


def _spans(tokens: list[str], tags: list[str]) -> list[tuple[str, list[str]]]:
    """Entities of BIO, IOB1 or BIOES tags: a new one begins at B-, S-, a change of type, or an I- after O."""
    spans: list[tuple[str, list[str]]] = []
    inside = None
    for token, tag in zip(tokens, tags, strict=True):
        mark, _, kind = tag.partition("-")
        if tag == "O":
            inside = None
            continue
        if mark not in MARKS or not kind:
            raise DataError(Problem(Kind.TAG_UNKNOWN, values={"tag": tag}))
        if mark in ("B", "S", "U") or kind != inside:
            spans.append((kind, []))
        spans[-1][1].append(token)
        inside = None if mark in ("E", "L", "S", "U") else kind
    return spans
