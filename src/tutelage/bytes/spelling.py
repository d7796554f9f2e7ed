"""The bytes that each token of a tokenizer spells. No torch.

Two families cover the tokenizers of today's language models, and a tokenizer's own decoder says which it is:

    byte-level    every character of a token stands for a byte (GPT-2, Llama 3, Qwen, SmolLM, Tekken, tiktoken)
    metaspace     a token is its own text, with U+2581 for a space; `<0x0A>` is a byte (Llama 2, Mistral, Gemma)

Tokenizers without such a decoder are those of the packages sentencepiece, which are metaspace, and mistral-common,
which names the bytes of its tokens itself. Others written in Python are refused: nothing says what their tokens spell.

Special tokens spell nothing. Whether a text's tokens really spell the text is found out by `added_spaces`, on the texts
of a run: tokenizers that change text (Unicode normal forms, lower case, spaces) cannot be compared byte by byte.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from tutelage.errors import Kind, ModelError, Problem

METASPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def spellings(tokenizer: Any, size: int) -> list[bytes]:
    """[size] bytes of every token id; empty for special tokens and for ids without an entry.

    size: number of ids, as `vocabulary_of`. Raises ModelError for a tokenizer of another family.
    """
    if tekken := _tekken(tokenizer):
        return [tekken.id_to_byte_piece(index) for index in range(size)]
    spelled = [b""] * size
    spell = _family(tokenizer)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            spelled[index] = spell(token)
    return spelled


def added_spaces(spelled: Sequence[bytes], rows: Iterable[tuple[str, Sequence[int]]], role: str) -> int:
    """How many spaces the tokenizer puts in front of a text of its own accord: 0 or 1.

    rows: texts with their token ids, end-of-sequence not included. role: `teacher` or `student`, for the message.
    Raises ModelError if a text's tokens do not spell the text, or if only some texts get a space.
    """
    found: dict[int, str] = {}
    for text, ids in rows:
        written, expected = b"".join(spelled[token] for token in ids), text.encode()
        spaces = len(written) - len(expected)
        if spaces not in (0, 1) or written != b" " * spaces + expected:
            reason = _reason(text, written, ids, spelled)
            values = {"role": role, "text": text, "spelled": written.decode(errors="replace"), "reason": reason}
            raise ModelError(Problem(Kind.TEXT_NOT_SPELLED, values=values))
        found.setdefault(spaces, text)
    if len(found) > 1:
        values = {"role": role, "text": found[0], "spelled": found[1], "reason": "spaces_differ"}
        raise ModelError(Problem(Kind.TEXT_NOT_SPELLED, values=values))
    return next(iter(found), 0)


def _tekken(tokenizer: Any) -> Any:
    """The tokenizer of mistral-common that one of transformers stands for (`MistralCommonBackend`), if it is one of
    bytes; else None."""
    inner = getattr(getattr(tokenizer, "tokenizer", None), "instruct_tokenizer", None)
    found = getattr(inner, "tokenizer", None)
    return found if hasattr(found, "id_to_byte_piece") else None


def _family(tokenizer: Any) -> Callable[[str], bytes]:
    """The function that spells a token. Raises ModelError if the tokenizer's decoder is of no known family."""
    if getattr(tokenizer, "sp_model", None) is not None:
        return _metaspace_with_bytes
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    steps = list(_steps(state.get("decoder")))
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        return _byte_level
    replaced = any(step["type"] == "Replace" and step["content"] == " " for step in steps)
    if "Metaspace" in kinds or replaced:
        return _metaspace_with_bytes if "ByteFallback" in kinds else _metaspace
    values = {"name": tokenizer.name_or_path, "decoder": " + ".join(kinds) or "none"}
    raise ModelError(Problem(Kind.TOKENS_WITHOUT_BYTES, values=values))


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, those of sequences within sequences included."""
    if decoder is not None and decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder is not None:
        yield decoder


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 characters stand for themselves, the other bytes for characters from
    U+0100 on, in order (GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    """A token with a character outside the alphabet was added as text, and is decoded as such."""
    alphabet = _bytes_of_characters()
    return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()


def _metaspace(token: str) -> bytes:
    return token.replace(METASPACE, " ").encode()


def _metaspace_with_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else _metaspace(token)


def _reason(text: str, written: bytes, ids: Sequence[int], spelled: Sequence[bytes]) -> str:
    """Why a text's tokens do not spell it, as far as can be seen: `unknown` (characters without a token, or special
    tokens), `normal_form`, `lower_case`, `spaces` or `other`."""
    if any(not spelled[token] for token in ids):
        return "unknown"
    after = written.decode(errors="replace")
    for reason, change in _CHANGES.items():
        if change(after) == change(text):
            return reason
    return "other"


_CHANGES: dict[str, Callable[[str], str]] = {
    "spaces": lambda text: "".join(text.split()),
    "normal_form": lambda text: "".join(unicodedata.normalize("NFKC", text).split()),
    "lower_case": lambda text: "".join(unicodedata.normalize("NFKC", text).casefold().split()),
}
"""Reason -> what makes two texts equal that differ for this reason alone."""
