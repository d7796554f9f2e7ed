"""Makes the smaller model: loads, chooses layers, prunes, saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from tutelage.shrink.width import check_width, feed_forwards, most_active, prune_units, unit_activation, unit_count
from tutelage.utils.console import Screen
from tutelage.utils.disk import full_disk_as_user_error

LOGIT_BYTES = 1 << 28
"""Most bytes of a forward pass's logits in float32: blocks have logits at every position."""


@dataclass(frozen=True)
class Kept:
    """What stays of an unpruned model."""

    layers: list[int]
    """Indices, ascending."""
    units: list[list[int]] | None = None
    """Of each kept layer, the indices of its feed-forward units; None for all."""

    def cut(self, model: nn.Module) -> nn.Module:
        """The model without everything else; changes it in place."""
        model = prune(model, self.layers)
        return model if self.units is None else prune_units(model, self.units)


def shrink_model(
    name: str,
    out: Path,
    layers: int | None = None,
    by: str = "even",
    text: Sequence[Path] = (),
    width: int | None = None,
) -> None:
    """Load `name`, keep `layers` of its layers and `width` feed-forward units in each, write it to `out`.

    by: `even`, or `influence` on `text`; units are chosen on `text`, too. None: all layers, all units. Raises
    ModelError if `out` exists or the model cannot be cut so, ConfigError if text is missing, DiskFullError if its disk
    is full.
    """
    refuse_existing(out)
    if (by == "influence" or width is not None) and not text:
        raise ConfigError(
            "--by influence and --width choose by what the model does on your text, and there is none: add --text FILE"
            " (plain text, rows, or your recipe)"
        )
    section = Model(model_name_or_path=name, dtype="auto")
    tokenizer = load_tokenizer(section)
    kept = _by_text(section, tokenizer, layers, by, width, text) if text else None
    model = load_model(section)
    size_before, total = model.num_parameters(), len(layers_of(model))
    if kept is None:
        kept = Kept(kept_layers(total, layers or total))
    model = kept.cut(model)
    with full_disk_as_user_error(out.parent):
        save_student(model, tokenizer, out)
    units = f" of {width:,} feed-forward units" if width is not None else ""
    Screen().say(
        f"{out}: {len(kept.layers)} of {total} layers{units}, {model.num_parameters() / 1e6:,.1f} of"
        f" {size_before / 1e6:,.1f} million parameters. A pruned model predicts badly until it is fine-tuned or"
        " distilled"
    )


def _by_text(
    section: Model, tokenizer: Any, layers: int | None, by: str, width: int | None, text: Sequence[Path]
) -> Kept:
    """What to keep, by what the model does on the text."""
    blocks = pack(read_documents(text, tokenizer), _block_length(section))
    model = load_model(section.model_copy(update={"dtype": reading_dtype()}))
    check_size(model, layers, width)
    rows = influence_rows(blocks)
    influence = measure_influence(model, tokenizer, rows) if by == "influence" else None
    return choose(model, tokenizer, rows, layers, influence, width)


def check_size(model: nn.Module, layers: int | None, width: int | None) -> None:
    """Raises ModelError for numbers of layers and units to keep that this model cannot have."""
    if layers is not None:
        check_layers(len(layers_of(model)), layers)
    if width is not None:
        feed_forwards(model)
        check_width(unit_count(model), width)


def choose(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[EncodedRow],
    layers: int | None,
    influence: Sequence[float] | None,
    width: int | None,
) -> Kept:
    """What to keep of the unpruned model: layers by influence, if given, else evenly spaced; units by activation."""
    total = len(layers_of(model))
    kept = list(range(total))
    if layers is not None:
        kept = most_influential(influence, layers) if influence is not None else kept_layers(total, layers)
        say_layers(kept, total, influence)
    if width is None:
        return Kept(kept)
    with Screen().progress("activations", len(rows)) as advance:
        activation = unit_activation(
            model, rows, pad_id=pad_id_of(tokenizer), batch_size=blocks_at_a_time(rows, tokenizer), on_rows=advance
        )
    return Kept(kept, most_active([activation[index] for index in kept], width))


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


def say_layers(kept: Sequence[int], total: int, influence: Sequence[float] | None) -> None:
    """Tell the user which layers go, and what each does if that was measured."""
    if influence is not None:
        values = ", ".join(f"{index}: {value:.3f}" for index, value in enumerate(influence))
        Screen().say(f"influence of each layer (0: changes nothing): {values}")
    dropped = [index for index in range(total) if index not in kept]
    Screen().say(f"dropped: layers {', '.join(map(str, dropped))} (counted from 0)")
