"""healing.json: its name, and the table that it is shown as."""

from __future__ import annotations

from typing import Any

from tutelage.utils.console import print_table

RECORD = "healing.json"
UNPRUNED = "unpruned"
"""Name of the unpruned model, in the record and in the cache."""


def show(record: dict[str, Any]) -> None:
    """Print layers, size and perplexity of the three models. record: content of healing.json."""
    layers, sizes, rows = record["layers"], record["parameters"], []
    for name, value in record["perplexity"].items():
        whole = name == UNPRUNED
        count = layers["of"] if whole else len(layers["kept"])
        size = sizes[UNPRUNED if whole else "pruned"] / 1e6
        rows.append([name, f"{count}", f"{size:,.1f}", f"{value:,.2f}"])
    print_table("held-out text", ["model", "layers", "million parameters", "perplexity"], rows)
