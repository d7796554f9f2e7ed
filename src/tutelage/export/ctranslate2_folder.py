"""A student as a CTranslate2 model, for its fast int8 on CPUs. Its own converter does the work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tutelage.errors import Kind, ModelError, Problem
from tutelage.errors.wording import first_line

PRECISIONS = ("float32", "int8")


def write_ctranslate2(source: Path, tokenizer: Any, folder: Path, precision: str | None) -> str:
    """Write model and tokenizer into a folder; returns the precision.

    source: the student's folder. precision: one of PRECISIONS; None for float32. Raises ModelError for an architecture
    that the converter does not know.
    """
    from ctranslate2.converters import TransformersConverter

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        TransformersConverter(str(source)).convert(str(folder), quantization=precision or "float32", force=True)
    except (ValueError, NotImplementedError, KeyError, AttributeError) as error:  # whatever is unknown to it
        values = {"format": "ctranslate2", "found": f"what its converter does not know ({first_line(error)})"}
        raise ModelError(Problem(Kind.EXPORT_NOT_POSSIBLE, values=values)) from error
    tokenizer.save_pretrained(str(folder))
    return precision or "float32"
