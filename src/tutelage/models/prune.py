"""`tutelage shrink`: write a depth-pruned student of a model."""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import ModelError
from tutelage.models.load import load_model, load_tokenizer, save_student, shrink
from tutelage.recipe.schema import Model
from tutelage.utils.console import Screen


def shrink_model(name: str, out: Path, layers: int) -> None:
    """Load `name`, keep `layers` of its layers, write model and tokenizer to `out`. Raises ModelError if `out`
    exists."""
    if out.exists():
        raise ModelError(f"{out} exists already; name another folder, or delete it first")
    section = Model(model_name_or_path=name, dtype="auto")
    tokenizer, model = load_tokenizer(section), load_model(section)
    before = model.num_parameters()
    total = model.config.get_text_config().num_hidden_layers
    model = shrink(model, layers)
    save_student(model, tokenizer, out)
    Screen().say(
        f"{out}: {layers} of {total} layers, {model.num_parameters() / 1e6:,.1f} of {before / 1e6:,.1f} million parameters."
        " It has forgotten much: fine-tuning and distillation heal it"
    )
