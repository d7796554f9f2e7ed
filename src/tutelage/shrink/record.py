"""healing.json: its name, and the table that it is shown as."""

from __future__ import annotations

from typing import Any

from tutelage.utils.console import print_table

RECORD = "healing.json"
UNPRUNED = "unpruned"
"""Name of the unpruned model, in the record and in the cache."""


def show(record: dict[str, Any]) -> None:
    """Print layers, feed-forward units if some were cut, size and perplexity of the three models.

    record: content of healing.json.
    """
    layers, units, sizes, rows = record["layers"], record["units"], record["parameters"], []
    for name, value in record["perplexity"].items():
        whole = name == UNPRUNED
        count = layers["of"] if whole else len(layers["kept"])
        size = sizes[UNPRUNED if whole else "pruned"] / 1e6
        width = [f"{units['of' if whole else 'kept']:,}"] if units else []
        rows.append([name, f"{count}", *width, f"{size:,.1f}", f"{value:,.2f}"])
    headings = ["model", "layers", *(["feed-forward units"] if units else []), "million parameters", "perplexity"]
    print_table("held-out text", headings, rows)
