"""Makes the smaller model: loads, chooses layers, prunes, saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from tutelage.data.collate import pad_id_of, vocabulary_of
from tutelage.data.encode import EncodedRow
from tutelage.errors import ConfigError, ModelError
from tutelage.models.load import check_embeddings, load_model, load_tokenizer, longest_context
from tutelage.models.placement import device
from tutelage.models.precision import bf16_pays
from tutelage.models.save import save_student
from tutelage.recipe.schema import Model
from tutelage.shrink.influence import INFLUENCE_TOKENS, block_influence, most_influential
from tutelage.shrink.layers import check_layers, kept_layers, layers_of, prune
from tutelage.shrink.plan import BLOCK_LENGTH
from tutelage.shrink.text import as_rows, pack, read_documents
from tutelage.utils.console import Screen
from tutelage.utils.disk import full_disk_as_user_error

LOGIT_BYTES = 1 << 28
"""Most bytes of a forward pass's logits in float32: blocks have logits at every position."""


def shrink_model(name: str, out: Path, layers: int, by: str = "even", text: Sequence[Path] = ()) -> None:
    """Load `name`, keep `layers` of its layers, write model and tokenizer to `out`.

    by: `even`, or `influence` on `text`. Raises ModelError if `out` exists, ConfigError if text is missing,
    DiskFullError if its disk is full.
    """
    refuse_existing(out)
    if by == "influence" and not text:
        raise ConfigError(
            "--by influence chooses layers by what they do to your text, and there is none: add --text FILE (plain"
            " text, rows, or your recipe)"
        )
    section = Model(model_name_or_path=name, dtype="auto")
    tokenizer = load_tokenizer(section)
    kept = _by_influence(section, tokenizer, layers, text) if by == "influence" else None
    model = load_model(section)
    size_before, total = model.num_parameters(), len(layers_of(model))
    model = prune(model, kept or kept_layers(total, layers))
    with full_disk_as_user_error(out.parent):
        save_student(model, tokenizer, out)
    size = model.num_parameters()
    Screen().say(
        f"{out}: {layers} of {total} layers, {size / 1e6:,.1f} of {size_before / 1e6:,.1f} million parameters."
        " A pruned model predicts badly until it is fine-tuned or distilled"
    )


def _by_influence(section: Model, tokenizer: Any, layers: int, text: Sequence[Path]) -> list[int]:
    """Indices of the layers to keep."""
    blocks = pack(read_documents(text, tokenizer), _block_length(section))
    model = load_model(section.model_copy(update={"dtype": reading_dtype()}))
    check_layers(len(layers_of(model)), layers)
    influence = measure_influence(model, tokenizer, influence_rows(blocks))
    kept = most_influential(influence, layers)
    say_influence(influence, kept)
    return kept


def reading_dtype() -> Literal["bfloat16", "float32"]:
    """The dtype in which this machine runs a model fastest."""
    return "bfloat16" if bf16_pays(device().type)[0] else "float32"


def refuse_existing(out: Path) -> None:
    """Raises ModelError if there is anything at `out`."""
    if out.exists():
        raise ModelError(f"{out} exists already: name another folder, or delete it first")


def _block_length(section: Model) -> int:
    """The default, or the model's context if that is shorter."""
    return min(BLOCK_LENGTH, longest_context(section) or BLOCK_LENGTH)


def influence_rows(blocks: np.ndarray) -> list[EncodedRow]:
    """The blocks that layers are chosen on: all, or as many at equal distances as have `INFLUENCE_TOKENS`."""
    count = min(len(blocks), max(1, INFLUENCE_TOKENS // blocks.shape[1]))
    indices = [index * len(blocks) // count for index in range(count)]
    return list(as_rows(blocks, indices, "train"))


def measure_influence(model: nn.Module, tokenizer: Any, rows: Sequence[EncodedRow]) -> list[float]:
    """[layers] block influence on these rows, with a progress bar."""
    check_embeddings(model.config, vocabulary_of(tokenizer), "teacher")
    with Screen().progress("influence", len(rows)) as advance:
        return block_influence(
            model, rows, pad_id=pad_id_of(tokenizer), batch_size=blocks_at_a_time(rows, tokenizer), on_rows=advance
        )


def blocks_at_a_time(rows: Sequence[EncodedRow], tokenizer: Any) -> int:
    """Blocks of a forward pass whose logits fit into `LOGIT_BYTES`, 8 at most."""
    width = len(rows[0].prompt) + len(rows[0].answer)
    return max(1, min(8, LOGIT_BYTES // (4 * width * vocabulary_of(tokenizer))))


def say_influence(influence: Sequence[float], kept: Sequence[int]) -> None:
    """Tell the user what each layer does and which ones go."""
    dropped = [index for index in range(len(influence)) if index not in kept]
    values = ", ".join(f"{index}: {value:.3f}" for index, value in enumerate(influence))
    Screen().say(f"influence of each layer (0: changes nothing): {values}")
    Screen().say(f"dropped: layers {', '.join(map(str, dropped))} (counted from 0)")
