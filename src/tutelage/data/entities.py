"""Entities in every form that rows have them in, as the (type, surface) pairs that a model learns to write.

    offsets        {type, start, end}, [start, end, type], with or without the surface
    typed strings  {type, text}, [type, text], "TYPE: text"
    tags           BIO, IOB1, BIOES or BILOU, one for each token

Every surface must occur in its text, or the row is refused.
"""

from __future__ import annotations

from typing import Any

from tutelage.data.columns import list_in, listed_objects, opened, words
from tutelage.errors import DataError, Kind, Problem
from tutelage.tasks.metrics import base_language
from tutelage.tasks.ner import NO_ENTITIES

MARKS = ("B", "I", "E", "S", "L", "U")
"""What a tag may begin with; L and U are BILOU's names of E and S."""
TYPE_KEYS = ("type", "label", "entity_group")
"""Keys of an entity that hold its type."""
SURFACE_KEYS = ("text", "surface", "word")
"""Keys of an entity that hold its surface. `word` is the spelling of a tokenizer, so offsets win over it."""
UNSPACED = ("ja", "th", "zh")
"""Languages written without spaces between words."""

Pairs = list[tuple[str, str]]


def entities_in(value: Any, text: str) -> Pairs | None:
    """The entities of a text; None where the column is empty. Raises DataError.

    Sorted by offsets where all have some; otherwise in the given order.
    """
    entities = listed_objects(opened(value))
    if entities is None:
        return None
    if isinstance(entities, str) and entities.lstrip()[:1] not in ("[", "{"):  # lines as a model writes them
        lines = [line.strip() for line in entities.splitlines() if line.strip()]
        entities = [] if [line.casefold() for line in lines] == [NO_ENTITIES] else lines
    located = [_entity(entity, text) for entity in list_in(entities, "entities")]
    if all(offsets for offsets, _ in located):
        located.sort(key=lambda entry: (entry[0], entry[1][0]))
    return [pair for _, pair in located]


def entities_of_tags(tokens: Any, tags: Any, language: str | None) -> tuple[str, Pairs | None]:
    """The text that tokens make, and the entities that their tags mark; None without tags. Raises DataError."""
    tokens = words(tokens)
    text = joined(tokens, language)
    if tags is None:
        return text, None
    tags = words(tags)
    if len(tokens) != len(tags):
        raise DataError(Problem(Kind.TAGS_UNEVEN, values={"tokens": len(tokens), "tags": len(tags)}))
    return text, [(kind, joined(inside, language)) for kind, inside in _spans(tokens, tags)]


def joined(tokens: list[str], language: str | None) -> str:
    """Tokens as text, with spaces; in ja, th and zh without, except between Latin words or numbers (`iPhone 15`)."""
    if base_language(language) not in UNSPACED:
        return " ".join(tokens)
    text, before = "", ""
    for token in tokens:
        latin = all(letter.isascii() and letter.isalnum() for letter in (before[-1:], token[:1]))
        # Texts cut into single characters hold Latin words letter by letter: those are joined again.
        text += f" {token}" if before and latin and len(before) + len(token) > 2 else token
        before = token
    return text


def _entity(entity: Any, text: str) -> tuple[tuple[int, int] | None, tuple[str, str]]:
    """((start, end) if known, (type, surface)) of an entity in any of its forms, found in the text."""
    kind, start, end, surface = _parts_of(entity)
    offsets = None if start is None and end is None else _offsets(entity, start, end, text)
    if offsets:
        surface = _cut(offsets, surface, text)
    kind, surface = ("" if part is None else str(part).strip() for part in (kind, surface))
    if not kind or not surface:
        raise DataError(Problem(Kind.ENTITY_INCOMPLETE, values={"entity": entity}))
    if surface not in text:
        values = {"type": kind, "surface": surface, "text": text[:80]}
        raise DataError(Problem(Kind.ENTITY_NOT_IN_TEXT, values=values))
    return offsets, (kind, surface)


def _parts_of(entity: Any) -> tuple[Any, Any, Any, Any]:
    """(type, start, end, surface) as an entity names them; None for what it does not."""
    if isinstance(entity, str):
        kind, _, surface = entity.partition(": ")
        return kind, None, None, surface
    if isinstance(entity, dict):
        keys = SURFACE_KEYS if entity.get("start") is None else SURFACE_KEYS[:2]
        kind, surface = (
            next((entity[key] for key in names if entity.get(key) is not None), None) for names in (TYPE_KEYS, keys)
        )
        return kind, entity.get("start"), entity.get("end"), surface
    if isinstance(entity, list | tuple) and len(entity) == 3:
        start, end, kind = entity
        return kind, start, end, None
    if isinstance(entity, list | tuple) and len(entity) == 2:
        kind, surface = entity
        return kind, None, None, surface
    return None, None, None, None


def _offsets(entity: Any, start: Any, end: Any, text: str) -> tuple[int, int]:
    start, end = (int(index) if isinstance(index, float) and index.is_integer() else index for index in (start, end))
    if not (type(start) is int and type(end) is int and 0 <= start < end <= len(text)):
        raise DataError(Problem(Kind.ENTITY_OFFSETS_OUTSIDE, values={"entity": entity, "length": len(text)}))
    return start, end


def _cut(offsets: tuple[int, int], surface: Any, text: str) -> str:
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
