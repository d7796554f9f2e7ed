"""Entities in every form that rows bring them in, as the (type, surface) pairs that a model learns to write.

    offsets        {type, start, end}, [start, end, type], with or without the surface
    typed strings  {type, text}, [type, text], "TYPE: text"
    tags           BIO, IOB1, BIOES or BILOU, one for each token

Every surface stands in its text, or the row is refused.
"""

from __future__ import annotations

from typing import Any

from tutelage.data.columns import list_in, listed_objects, opened, words
from tutelage.errors import DataError
from tutelage.tasks.metrics import base_language
from tutelage.tasks.ner import NO_ENTITIES

MARKS = ("B", "I", "E", "S", "L", "U")
"""What a tag may begin with; L and U are BILOU's names of E and S."""
TYPE_KEYS = ("type", "label", "entity_group")
"""Where an entity names its type."""
SURFACE_KEYS = ("text", "surface", "word")
"""Where an entity holds its surface. `word` is a tokenizer's spelling of it, so that offsets win over it."""
UNSPACED = ("ja", "th", "zh")
"""Languages that are written without spaces between words."""

Pairs = list[tuple[str, str]]


def entities_in(value: Any, text: str) -> Pairs | None:
    """The entities of a text, in reading order; None where the column is empty.

    Where all have offsets they are sorted by them; otherwise they are in reading order as they stand. Raises DataError.
    """
    entities = listed_objects(opened(value))
    if entities is None:
        return None
    if isinstance(entities, str) and entities.lstrip()[:1] not in ("[", "{"):  # lines as the model writes them
        lines = [line.strip() for line in entities.splitlines() if line.strip()]
        entities = [] if [line.casefold() for line in lines] == [NO_ENTITIES] else lines
    found = [_entity(entity, text) for entity in list_in(entities, "entities")]
    if all(place for place, _ in found):
        found.sort(key=lambda entry: (entry[0], entry[1][0]))
    return [pair for _, pair in found]


def entities_of_tags(tokens: Any, tags: Any, language: str | None) -> tuple[str, Pairs | None]:
    """The text that tokens make, and the entities that their tags mark; None without tags. Raises DataError."""
    tokens = words(tokens)
    text = joined(tokens, language)
    if tags is None:
        return text, None
    tags = words(tags)
    if len(tokens) != len(tags):
        raise DataError(f"{len(tokens)} tokens and {len(tags)} tags; each token needs one")
    return text, [(kind, joined(inside, language)) for kind, inside in _spans(tokens, tags)]


def joined(tokens: list[str], language: str | None) -> str:
    """Tokens as text: with spaces; in ja, th and zh without, except between two Latin words or numbers (`iPhone
    15`)."""
    if base_language(language) not in UNSPACED:
        return " ".join(tokens)
    text, before = "", ""
    for token in tokens:
        latin = all(letter.isascii() and letter.isalnum() for letter in (before[-1:], token[:1]))
        # Texts cut into single characters hold Latin words letter by letter: those are put together again.
        text += f" {token}" if before and latin and len(before) + len(token) > 2 else token
        before = token
    return text


def _entity(entity: Any, text: str) -> tuple[tuple[int, int] | None, tuple[str, str]]:
    """((start, end) if known, (type, surface)) of an entity in any of its forms, found in the text."""
    start = end = surface = kind = None
    if isinstance(entity, str):
        kind, _, surface = entity.partition(": ")
    elif isinstance(entity, dict):
        kind = next((entity[key] for key in TYPE_KEYS if entity.get(key) is not None), None)
        start, end = entity.get("start"), entity.get("end")
        keys = SURFACE_KEYS if start is None else SURFACE_KEYS[:2]
        surface = next((entity[key] for key in keys if entity.get(key) is not None), None)
    elif isinstance(entity, list | tuple) and len(entity) == 3:
        start, end, kind = entity
    elif isinstance(entity, list | tuple) and len(entity) == 2:
        kind, surface = entity
    place = None if start is None and end is None else _offsets(entity, start, end, text)
    if place:
        surface = _cut(place, surface, text)
    kind, surface = ("" if part is None else str(part).strip() for part in (kind, surface))
    if not kind or not surface:
        raise DataError(
            f"the entity {entity!r} has no type or no text; write {{type, text}}, {{type, start, end}} or [start, end, type]"
        )
    if surface not in text:
        raise DataError(
            f"the entity {surface!r} ({kind}) is not in the text {text[:80]!r}: correct it, or leave it out"
        )
    return place, (kind, surface)


def _offsets(entity: Any, start: Any, end: Any, text: str) -> tuple[int, int]:
    start, end = (int(place) if isinstance(place, float) and place.is_integer() else place for place in (start, end))
    if not (type(start) is int and type(end) is int and 0 <= start < end <= len(text)):
        raise DataError(
            f"the entity {entity!r} has offsets outside its text of {len(text)} characters; give start and end"
        )
    return start, end


def _cut(place: tuple[int, int], surface: Any, text: str) -> str:
    start, end = place
    if surface is not None and text[start:end] != surface:
        raise DataError(
            f"the offsets {start}:{end} of entity {surface!r} hold {text[start:end]!r}; offsets count characters from 0, end"
            " excluded"
        )
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
            raise DataError(
                f"the tag {tag!r} is none of BIO, IOB1 or BIOES: write O, or {', '.join(MARKS[:2])} ... with a type (B-PER)."
                " Numbers need their names, which a hub data set brings along"
            )
        if mark in ("B", "S", "U") or kind != inside:
            spans.append((kind, []))
        spans[-1][1].append(token)
        inside = None if mark in ("E", "L", "S", "U") else kind
    return spans
