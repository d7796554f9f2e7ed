"""The vocabulary of a tokenizer as llama.cpp reads it from a GGUF file.

llama.cpp splits text into words by rules of its own that are compiled in; the file only names one of them. The name is
found here by comparing the tokenizer's own rule with those that are the same. A tokenizer with another rule is refused:
llama.cpp would read the prompts in other tokens than the student was trained on, and answer worse without a sign.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tutelage.errors import Kind, ModelError, Problem

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES: dict[str, list[tuple[Any, ...]]] = {
    "gpt-2": [("ByteLevel", True)],
    "smollm": [("Digits", True), ("ByteLevel", True)],
    "qwen2": [("Split", _CONTRACTIONS + _WORDS % "", "Isolated"), ("ByteLevel", False)],
    "llama-bpe": [("Split", _CONTRACTIONS + _WORDS % "{1,3}", "Isolated"), ("ByteLevel", False)],
}
"""llama.cpp's name of a rule -> the steps of the tokenizer that do the same (`src/llama-vocab.cpp`, the regular
expressions of each LLAMA_VOCAB_PRE_TYPE)."""
WHOLE_WORDS_FIRST = ("llama-bpe",)
"""Rules with which llama.cpp takes a word that is an entry whole, before any merge."""


class Vocabulary(NamedTuple):
    """What a GGUF file says about tokens."""

    rule: str
    """Key of RULES."""
    tokens: list[str]
    """[V] by id."""
    types: list[int]
    """[V] of gguf.TokenType."""
    merges: list[str]
    """In the order of their rank, `left right`."""


def vocabulary_for(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a byte-level BPE tokenizer.

    size: rows of the model's embedding; ids without an entry are filled. Raises ModelError for tokenizers of
    another kind, and for rules that llama.cpp does not have.
    """
    from gguf import TokenType

    described = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
    rule = _rule(described)
    entries = {index: entry for entry, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for index in range(size):
        if index not in entries:
            kind, text = TokenType.UNUSED, f"[PAD{index}]"
        elif index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
            text = added[index].content
        else:
            kind, text = TokenType.NORMAL, entries[index]
        tokens.append(text)
        types.append(int(kind))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    return Vocabulary(rule, tokens, types, merges)


def _rule(described: dict[str, Any]) -> str:
    """The name of the tokenizer's rule. described: tokenizer.json."""
    model, steps = described["model"], _steps(described.get("pre_tokenizer"))
    if model.get("type") != "BPE" or model.get("byte_fallback") or described.get("normalizer") not in (None, _NFC):
        raise _refused(f"a tokenizer of type {model.get('type') or 'unknown'} that is no byte-level BPE")
    for name, rule in RULES.items():
        if steps == rule and bool(model.get("ignore_merges")) == (name in WHOLE_WORDS_FIRST):
            return name
    raise _refused(f"a rule for words that llama.cpp does not have: {json.dumps(described.get('pre_tokenizer'))}")


_NFC = {"type": "NFC"}
"""Qwen's normalizer. llama.cpp has none: text that is not in this form is read in other tokens, which the comparison of
prompts shows."""


def _steps(described: dict[str, Any] | None) -> list[tuple[Any, ...]] | None:
    """The steps of a pre-tokenizer with all that changes its result; None for one with steps of another kind."""
    parts = described["pretokenizers"] if described and described["type"] == "Sequence" else [described or {}]
    found: list[tuple[Any, ...]] = []
    for part in parts:
        if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
            found.append(("ByteLevel", part.get("use_regex", True)))
        elif part.get("type") == "Digits":
            found.append(("Digits", part["individual_digits"]))
        elif part.get("type") == "Split" and "Regex" in part["pattern"] and not part.get("invert"):
            found.append(("Split", part["pattern"]["Regex"], part["behavior"]))
        else:
            return None
    return found


def _refused(found: str) -> ModelError:
    return ModelError(Problem(Kind.EXPORT_NOT_POSSIBLE, values={"format": "gguf", "found": found}))
