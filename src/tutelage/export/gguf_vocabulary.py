"""What a GGUF file can hold: architectures, and the vocabulary of a tokenizer as llama.cpp reads it. No torch.

llama.cpp splits text into words by rules of its own that are compiled in; the file only names one of them. The name is
found here by comparing the tokenizer's own rule with those that are the same. A tokenizer with another rule is refused:
llama.cpp would read the prompts in other tokens than the student was trained on, and answer worse without a sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tutelage.errors import Kind, ModelError, Problem
from tutelage.run.live_reader import read_or_none

BLOCK = 32
"""Numbers that share a scale in q8_0 and q4_0; a matrix whose rows are no multiple of it is written in float16."""
ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""model_type of transformers -> name in gguf.MODEL_ARCH. SmolLM and SmolLM2 are of type llama."""

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


def check_architecture(config: Mapping[str, Any]) -> None:
    """Raises ModelError for a model that is not written. config: config.json, of a model that answers text."""
    kind = config["model_type"]
    positions = config.get("rope_parameters") or config.get("rope_scaling") or {}  # of transformers 5, of 4
    rope, activation = positions.get("rope_type", "default"), config.get("hidden_act")
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise _refused(f"a model of type {kind}; it is written for {known} (SmolLM2 is a llama)")
    if rope not in ("default", "llama3"):
        raise _refused(f"rotary embeddings of type {rope}")
    if config.get("use_sliding_window"):
        raise _refused("attention in a sliding window")
    if activation != "silu":
        raise _refused(f"the activation {activation}, which llama.cpp does not use for {kind}")


def proposed_precision(folder: Path) -> Literal["q8_0", "f16"] | None:
    """The precision to propose for a GGUF file of the student in a folder, as far as its config and its rule for words
    tell: None if a file cannot hold it, or if the folder does not tell. Writing the file also compares tokens."""
    config, described = read_or_none(folder / "config.json"), read_or_none(folder / "tokenizer.json")
    try:
        check_architecture(config)
        _rule(described)
        return "f16" if config["hidden_size"] % BLOCK else "q8_0"
    except (ModelError, TypeError, KeyError, AttributeError):  # the last three: a file is missing, or of another form
        return None


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
