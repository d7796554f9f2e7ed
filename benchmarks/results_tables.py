"""The tables of docs/results.md and README.md, from results.json: `python -m benchmarks.results_tables` rewrites them.

RESULTS.md is the record; results.json holds those of its numbers that the two pages show. A page marks the place of a
table by a comment with the table's name. A cell is text, a number, [score, loss], or [value, low, high] of a 95 %
interval.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "results.md", ROOT / "README.md"]
RECORD = "../benchmarks/RESULTS.md"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def load_tables() -> dict[str, dict[str, Any]]:
    """Every table of results.json by name."""
    tables = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))["tables"]
    return {table["name"]: table for table in tables}


def cell_text(value: Any, column: dict[str, Any]) -> str:
    """A cell as the page shows it; `digits`, `sign` and `unit` of the column say how."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        parts = [cell_text(part, column) for part in value]
        return " / ".join(parts) if len(parts) == 2 else "{} [{}, {}]".format(*parts)
    return f"{value:{'+' if column.get('sign') else ''},.{column.get('digits', 3)}f}{column.get('unit', '')}"


def heading_anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def table_text(table: dict[str, Any]) -> str:
    """The Markdown of a table: its rows, then its date, its section of RESULTS.md, and the command that makes it.

    A table without a command of its own says which runs it is computed `from`.
    """
    columns = table["columns"]
    lines = [[column["name"] for column in columns]]
    lines += [[cell_text(*pair) for pair in zip(row, columns, strict=True)] for row in table["rows"]]
    head, *body = [f"| {' | '.join(cells)} |\n" for cells in lines]
    text = f"\n{head}|{'---|' * len(columns)}\n{''.join(body)}"
    if table.get("plain"):
        return f"{text}\n"
    links = ", ".join(f"[{section}]({RECORD}#{heading_anchor(section)})" for section in table["sections"])
    commit = f", commit {table['commit']}" if "commit" in table else ""
    runs = f", from {table['from']}" if "from" in table else ""
    command = "".join(f"    {line}\n" for line in table["command"])
    return f"{text}\n{table['date']}{commit}{runs}. Record: {links}.\n\n{command}" + ("\n" if command else "")


def with_tables(page: str, tables: dict[str, dict[str, Any]]) -> str:
    """The page with every marked table written anew. Raises KeyError for a name that results.json does not have."""
    return MARKED.sub(lambda match: match[1] + table_text(tables[match[2]]), page)


def main() -> None:
    """Rewrite the tables of both pages."""
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        path.write_text(with_tables(page, load_tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
