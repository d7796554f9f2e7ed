"""The Modelfile with which Ollama serves a GGUF file, with the prompt that the student was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tutelage.data.encode import Encoder
from tutelage.export.prompts import begins, probe
from tutelage.recipe.schema import Data

_USER = "tutelage-user-text"
"""Stands for the user's text while a chat template is rendered."""


def modelfile(data: Data, encoder: Encoder, *, longest: int, ends: Sequence[int]) -> str:
    """Its text, for a file model.gguf in the same folder.

    data: of the student's run. longest: tokens of an answer. ends: ids that end an answer; llama.cpp knows the first
    two by itself.
    """
    lines = [
        "# Greedy decoding without penalties, as the scores were measured. docs/deploy.md says how to ask.",
        "FROM ./model.gguf",
        f'TEMPLATE """{_template(data, encoder)}"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        f"PARAMETER num_predict {longest}",
        f"PARAMETER num_ctx {encoder.max_length + longest}",
        *(f"PARAMETER stop {json.dumps(encoder.tokenizer.decode([end]), ensure_ascii=False)}" for end in ends[2:]),
    ]
    return "\n".join(lines) + "\n"


def _template(data: Data, encoder: Encoder) -> str:
    """The text around what the user asks, in the language of Go's templates. One message of the user, after the
    recipe's `system` if it has one."""
    if not data.chat_template:
        return "{{ .Prompt }}"
    example = probe(_USER, chat=True, system=data.system)
    text, begin = encoder.rendered(example), encoder.tokenizer.bos_token
    if begin and begins(encoder.tokenizer, encoder.prompt(example)):
        text = text.removeprefix(begin)  # llama.cpp adds it
    before, _, after = (part.replace("{{", '{{ "{{" }}') for part in text.partition(_USER))
    return f"{before}{{{{ .Prompt }}}}{after}"
