"""Messages about single values of a recipe: what was found, what is wanted, and texts that no recipe may hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from tutelage.errors import Kind
from tutelage.errors.secrets import has_secret
from tutelage.recipe.schema import Section
from tutelage.recipe.yaml_text import NUMBERS, Keys

_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that no path and no UTF-8 file can hold: NUL, and halves of characters."""


MOST_CHOICES = 14
"""Allowed values that a message lists."""


def shown(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    return cut(json.dumps(value, ensure_ascii=False, default=str))


def cut(text: str, length: int = 60) -> str:
    """Text of at most this many characters."""
    return text if len(text) <= length else text[: length - 3] + "..."


def wrong(info: FieldInfo, value: Any) -> str:
    """The message about a value that its field does not accept."""
    wanted = _wanted(info.annotation, info.metadata)
    hint = ""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, float) and not math.isfinite(item) for item in items):
        hint = "; infinity and NaN are no values to train with"
    elif near := get_close_matches(value, _choices(info.annotation), 1) if isinstance(value, str) else []:
        hint = f"; did you mean {near[0]}?"
    elif "text" in wanted:
        hint = "; put text in quotes that YAML does not read as text (yes, no, null, 12, {x})"
    elif isinstance(value, str) and any(pattern.match(value) for pattern in NUMBERS.values()):
        hint = "; write it without quotes"
    return f"found {shown(value)}, want {wanted}{hint}"


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


def _wanted(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words: "a whole number above 0 or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a mapping of {', '.join(annotation.model_fields)}"
    if origin is list:
        return f"a list (of {_wanted(inner[0])})"
    if dict in (annotation, origin):
        return "a mapping of text to text" if inner[1:] == (str,) else "a mapping"
    if origin is Literal:
        more = ["..."] if len(inner) > MOST_CHOICES else []
        return ("one of " if len(inner) > 1 else "") + ", ".join([*inner[:MOST_CHOICES], *more])
    if inner:
        return " or ".join(_wanted(part, metadata if part is not NoneType else ()) for part in inner)
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    bounds = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    limits = [f"{word} {getattr(m, name)}" for m in metadata for name, word in bounds.items() if hasattr(m, name)]
    return f"{words[annotation]} {' and '.join(limits)}".strip()


def as_plain(value: Any) -> Any:
    """A value from Python as a recipe would hold it: an entry of an enumeration, or a number of numpy."""
    value = getattr(value, "value", value)
    return value.item() if hasattr(value, "item") else value


def unusable_texts(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Kind, str]]:
    """Key, kind and message of every text in a value that a run must not write into its files, or cannot."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from unusable_texts(name, (*keys, name))
            yield from unusable_texts(inner, (*keys, name))
    elif isinstance(value, list):
        for item in value:
            yield from unusable_texts(item, keys)
    elif isinstance(value, str) and (found := _UNWRITABLE.search(value)):
        code = f"U+{ord(found.group()):04X}"
        yield keys, Kind.VALUE_INVALID, f"holds the character {code}, which no file or path can hold; take it out"
    elif isinstance(value, str) and has_secret(value):
        yield keys, Kind.SECRET_IN_RECIPE, ""
