"""Named sets of recipe values (`preset`). A value that the recipe gives itself overrides that of its preset."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from tutelage.recipe.yaml_text import Keys

PRESETS: dict[str, dict[str, Any]] = {
    # The protocol of arXiv 2601.10114 (section on experiments), as readers of the full text describe it: N stages of
    # two epochs, optimizer and learning-rate schedule reset in each; KL(T* || T_k) + KL(S || T_k) decides which
    # checkpoint; weights from the losses of the anchor as it ends its fine-tuning; T* and the student that is kept are
    # best on validation. Its optimizer settings and batch size are TRAINER_DEFAULTS.
    "paper": {
        "teach": {"spacing": "steps", "best_by": "score"},
        "anchor": {"keep": "last"},
        "distill": {
            "methods": ["scd-aw"],
            "select": None,
            "num_stages": 4,
            "epochs_per_stage": 2.0,
            "stage_reset": True,
            "temperature": 1.0,
            "start": "student",
            "schedule": {"advance": False, "student_kl": "reverse"},
            "keep": "best",
            "select_by": "score",
        },
    }
}
"""By name. `paper` was the default of earlier versions."""


def apply_preset(values: dict[str, Any], name: Any) -> list[Keys]:
    """Give the values of a preset to the keys that have none; returns these keys. An unknown preset gives none."""
    return list(_fill(values, PRESETS.get(name, {}) if isinstance(name, str) else {}))


def _fill(values: dict[str, Any], preset: dict[str, Any], prefix: Keys = ()) -> Iterator[Keys]:
    for key, value in preset.items():
        keys = (*prefix, key)
        if not isinstance(value, dict):
            if key not in values:
                values[key] = copy.deepcopy(value)
                yield keys
        elif isinstance(inner := values.setdefault(key, {}), dict):  # otherwise the schema refuses the section
            yield from _fill(inner, value, keys)
