"""What a user sees while a run works: progress bars with time left on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import csv
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_JOINERS = "\u200c\u200d"  # part of Persian words and of emoji, and harmless

_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
"""What LaTeX does not take as it is."""
UNBROKEN = len("[0.123,")
"""Letters of a word that stays whole in a table, however narrow the terminal."""


class Screen:
    """Where messages and progress go. Everything is printed to standard error; standard output is for results."""

    def __init__(self) -> None:
        """Look at the terminal once."""
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line for the user. Text from data cannot style it."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that deserves attention."""
        self.console.print(f"! {text}", markup=False, style="yellow")

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Gives a function to call with the number of units done so far more; a bar with time left, or one line at the
        end."""
        began = time.monotonic()
        if not self.console.is_terminal:
            yield lambda count: None
            self.say(f"{title}: {total:,} in {time.monotonic() - began:.1f} s")
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            bar = bars.add_task(title, total=total)
            yield lambda count: bars.advance(bar, count)

    @contextmanager
    def steps(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Like `progress`, for work that reports (steps done, steps in all), first before its first step: some may be
        there."""
        began = time.monotonic()
        if not self.console.is_terminal:
            seen: list[int] = []  # the first and the last report
            yield lambda done, total: seen.__setitem__(slice(1, None), [done])
            first, last = (seen[0], seen[-1]) if seen else (0, 0)
            there = f" after {first:,} that were there" if first else ""
            self.say(f"{title}: {last - first:,} steps{there} in {time.monotonic() - began:.1f} s")
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            bar = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)


def visible(text: Any, *, lines: bool = False) -> str:
    """Text from data as a terminal may show it: control characters as symbols (␛), what turns or hides text as its code
    point.

    lines: keep line breaks and tabs.
    """
    return "".join(letter if lines and letter in "\n\t" else _symbol(letter) for letter in str(text))


def _symbol(letter: str) -> str:
    code, kind = ord(letter), unicodedata.category(letter)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    hidden = kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and letter not in _JOINERS)
    return f"⟨U+{code:04X}⟩" if hidden else letter


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], form: str = "table") -> None:
    """A table on standard output, with text from data made `visible`.

    form: `table` is ruled on a terminal and tab-separated elsewhere; markdown, latex, csv.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([head, *rows])
    elif form == "table" and not sys.stdout.isatty():
        for row in (head, *rows):
            print("\t".join(row))
    elif form == "markdown":
        for row in (head, ["---"] * len(head), *rows):
            print("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |")
    elif form == "latex":
        print(
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            *map(_latex_row, (head, *rows)),
            r"\end{tabular}",
            sep="\n",
        )
    else:
        _ruled(title, head, rows)


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(letter, letter) for letter in cell) for cell in row) + r" \\"


def _ruled(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; where it is too narrow for that without rules, and at last a line for each cell."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    words = [[word for row in (head, *rows) for word in row[place].split()] for place in range(len(head))]
    least = [min(max(map(len, column), default=0), UNBROKEN) for column in words]
    if sum(least) + len(head) > console.width:
        for row in rows:
            console.print(
                "\n".join(f"{name}: {cell}" for name, cell in zip(head, row, strict=True) if cell) + "\n", markup=False
            )
        return
    ruled = sum(least) + 3 * len(head) + 1 <= console.width
    table = Table(title=title) if ruled else Table(title=title, box=None, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place == 0 else "right", min_width=least[place], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
