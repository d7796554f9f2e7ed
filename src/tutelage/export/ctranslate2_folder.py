"""A student as a CTranslate2 model, for its fast int8 on CPUs. Its own converter does the work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tutelage.errors import Kind, ModelError, Problem
from tutelage.errors.wording import first_line
from tutelage.utils.files import read_json, write_json

PRECISIONS = ("float32", "int8")
LLAMA3_WINDOW = 8192
"""`original_max_position_embeddings` of Llama 3.1 and later. CTranslate2 4.8 computes with this number, whatever the
config says (its answers differed for 64)."""


def write_ctranslate2(source: Path, tokenizer: Any, folder: Path, precision: str | None) -> str:
    """Write model and tokenizer into a folder; returns the precision.

    source: the student's folder. precision: one of PRECISIONS; None for float32. Raises ModelError for an architecture
    that the converter does not know.
    """
    from ctranslate2.converters import TransformersConverter

    _check_positions(source)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        TransformersConverter(str(source)).convert(str(folder), quantization=precision or "float32", force=True)
    except (ValueError, NotImplementedError, KeyError, AttributeError) as error:  # whatever is unknown to it
        values = {"format": "ctranslate2", "found": f"what its converter does not know ({first_line(error)})"}
        raise ModelError(Problem(Kind.EXPORT_NOT_POSSIBLE, values=values)) from error
    _name_special_tokens(folder / "config.json", tokenizer.eos_token)
    tokenizer.save_pretrained(str(folder))
    return precision or "float32"


def _check_positions(source: Path) -> None:
    """Raises ModelError for rotary embeddings that the converter takes and CTranslate2 computes otherwise."""
    config: Any = AutoConfig.from_pretrained(str(source)).get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kind, window = rope.get("rope_type", "default"), rope.get("original_max_position_embeddings")
    if kind not in ("default", "llama3") or (kind == "llama3" and window != LLAMA3_WINDOW):
        found = f"rotary embeddings of type {kind}" + (f" for {window:,} positions" if kind == "llama3" else "")
        raise ModelError(Problem(Kind.EXPORT_NOT_POSSIBLE, values={"format": "ctranslate2", "found": found}))


def _name_special_tokens(path: Path, end: str) -> None:
    """Give the tokens that the tokenizer does not have a name: CTranslate2 refuses a config with nulls. Prompts bring
    their own beginning, so that the name is never used."""
    config = read_json(path)
    write_json(path, {key: end if value is None and key.endswith("_token") else value for key, value in config.items()})
