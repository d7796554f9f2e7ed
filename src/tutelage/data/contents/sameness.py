"""What rows are compared by to find those that are the same, in other splits or among rows without gold.

Prompts alone do not tell: the default template is in the language of the row, which files may name or not, and the same
choices may stand in another order. So rows are compared by their content as well: the values that the template shows.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.records import Example

FRAME = frozenset(["labels", "language"])
"""Fields of a template that say how to answer, and nothing about what is asked."""


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt as one text: of chat messages their contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def prompt_key(example: Example) -> str:
    """What prompts are compared by to find equal ones."""
    return normalised(prompt_text(example.prompt))


def content_key(example: Example) -> str:
    """What contents are compared by; of a row that has a prompt of its own, the prompt."""
    return example.content or prompt_key(example)


def asked_key(example: Example) -> str:
    """What is asked, without system messages: the same question may be put with one, without, or with another.

    Of rows with gold such a message may be the whole task, so these are not compared by this key.
    """
    if isinstance(example.prompt, str):
        return prompt_key(example)
    return normalised(prompt_text([turn for turn in example.prompt if turn["role"] != "system"]))


def content_of(values: Mapping[str, Any], choices: Sequence[str]) -> str:
    """Hash of a row's content: 32 hexadecimal digits.

    values: what the template shows, by field. choices: the texts of the choices, if the row has any; their order does
    not count.
    """
    shown = {name: normalised(str(value)) for name, value in values.items() if name not in FRAME}
    if choices and "choices" in shown:
        shown["choices"] = "\n".join(sorted(map(normalised, choices)))
    text = "\n".join(shown[name] for name in sorted(shown))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class _Compared(dict[int, int | None]):
    """Code points of the letters that texts are compared by; None for those that are left out."""

    def __missing__(self, code: int) -> int | None:
        # Vowel signs (Hindi, Thai) and symbols (+, emoji) distinguish texts, so they stay.
        self[code] = None if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


_COMPARED = _Compared()


def normalised(text: str) -> str:
    """What texts are compared by to find equal ones: NFKC and case-folded, without punctuation, spaces and controls."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return folded.translate(_COMPARED) or folded
