"""Lists and objects as text in a cell: JSON, or as Python, numpy and pandas print them.

    ["Ada", "Bo"]      ['Ada', 'Bo']      ['Ada' 'Bo']      array(['Ada', 'Bo'], dtype=object)
    {'text': array(['Ada'], dtype=object), 'answer_start': array([16])}

numpy prints no commas, so texts side by side are two entries here and never one, as Python would join them.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

DEEPEST = 100
"""Levels of lists and objects that a value may have."""
LONGEST = 1_000_000
"""Characters of a cell that is read as a printed value."""
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>[bBuUrR]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
      | (?P<call>[A-Za-z_][\w.]*\()
      | (?P<name>[A-Za-z_]\w*)
      | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
      | (?P<mark>[][{}():,=])
    )""",
    re.VERBOSE | re.DOTALL,
)
_NAMES = {"None": None, "null": None, "nan": None, "NaN": None, "True": True, "False": False}
_NAMES |= {"true": True, "false": False}
_CALLS = re.compile(
    r"(?:np\.|numpy\.)?(?:array|list|tuple|set|frozenset|dict|OrderedDict|str_|u?int\d*|float\d+|bool_?)\("
)
"""What may stand in front of a printed value; its first argument is the value."""
_PRINTED = re.compile(r"""[\[{(]\s*(?:['"\[{]|array\()|array\(""")
"""How a printed list or object of texts begins."""

_CLOSING = {"[": "]", "{": "}", "(": ")"}


def opened(value: Any) -> Any:
    """The list or object in a text cell; any other value unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] not in ("[", "{") and not _CALLS.match(text):
        return value
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _Printed(text).value() if len(text) <= LONGEST else None
    return found if isinstance(found, list | dict) and not too_deep(found) else value


def looks_printed(value: Any) -> bool:
    """Whether a text cell begins as a printed list or object of texts does."""
    return isinstance(value, str) and bool(_PRINTED.match(value.strip()))


def too_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            entry
            for inner in level
            if isinstance(inner, list | dict)
            for entry in (inner.values() if isinstance(inner, dict) else inner)
            if isinstance(entry, list | dict)
        ]
        if not level:
            return False
    return True


class _Unprintable(Exception):
    """The text is no printed value."""


class _Printed:
    """A parser of printed values, one token ahead."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.depth = text, 0, 0
        self.kind, self.token = "", ""

    def value(self) -> Any:
        """The value; None if the text is not one, or not whole (`...` stands for entries that were left out)."""
        try:
            self._next()
            found = self._value()
            return found if not self.kind else None
        except (_Unprintable, ValueError, SyntaxError):
            return None

    def _next(self) -> None:
        match = _TOKEN.match(self.text, self.position)
        if match:
            self.position, self.kind = match.end(), match.lastgroup or ""
            self.token = match[self.kind]
        elif self.text[self.position :].strip():
            raise _Unprintable
        else:
            self.kind, self.token = "", ""

    def _take(self, token: str) -> bool:
        if self.kind == "mark" and self.token == token:
            self._next()
            return True
        return False

    def _value(self) -> Any:
        kind, token = self.kind, self.token
        self._next()
        if kind == "text":
            text = ast.literal_eval(token)
            return text.decode() if isinstance(text, bytes) else text
        if kind == "number":
            return float(token) if re.search("[.eE]", token) else int(token)
        if kind == "name" and token in _NAMES:
            return _NAMES[token]
        if kind == "call" and _CALLS.fullmatch(token):
            return self._call()
        if kind == "mark" and token in _CLOSING:
            return self._nested(token)
        raise _Unprintable

    def _call(self) -> Any:
        """The first argument of a call; the others, and those with names, say how it is stored."""
        if self._take(")"):
            return []
        value = self._value()
        while not self._take(")"):
            if not self.kind or (self.token not in (",", "=") and self.kind not in ("name", "text", "number", "call")):
                raise _Unprintable
            if self.kind == "call":
                self._value()
            else:
                self._next()
        return value

    def _nested(self, opening: str) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Unprintable
        entries, keys, closing = [], [], _CLOSING[opening]
        while not self._take(closing):
            entry = self._value()
            if opening == "{" and self._take(":"):
                keys.append(entry)
                entry = self._value()
            entries.append(entry)
            self._take(",")
        self.depth -= 1
        if opening == "{" and (keys or not entries):
            if len(keys) != len(entries):
                raise _Unprintable
            return {str(key): entry for key, entry in zip(keys, entries, strict=True)}
        return entries
