"""Text from data as inert Markdown."""

from __future__ import annotations

import re
from typing import Any

from tutelage.utils.console import visible


def md(text: Any) -> str:
    """Text from data as Markdown shows it: one line without markup, HTML or links."""
    line = " ".join(visible(text, lines=True).split())
    line = re.sub(r"([\\`*{}\[\]<>|#&~@$])", r"\\\1", line)
    return re.sub(r"(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", lambda match: "\\" + match[0], line)


def fenced(text: str, language: str) -> list[str]:
    """Lines of a fenced code block; the fence is longer than any run of backticks in the text."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{ticks}{language}", visible(text, lines=True).rstrip("\n"), ticks]


def md_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, all columns but the first right-aligned; cells are Markdown already."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
