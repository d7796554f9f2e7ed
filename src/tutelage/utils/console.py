"""All that is printed: results, messages, progress and tables. On a terminal with bars and rules, elsewhere in plain
lines that programs can read.

Nothing else prints (tests/test_output.py checks it), so that text from data and paths always goes through `visible`.
"""

from __future__ import annotations

import csv
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tutelage.errors.secrets import redacted

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.progress import Progress
    from rich.text import Text

_JOINERS = "\u200c\u200d"  # part of Persian words and of emoji, and harmless

_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
"""Characters that LaTeX would interpret, escaped."""
LINE_EVERY = 60.0
"""Seconds between two lines about work that goes on, where there is no terminal."""
UNBROKEN = len("[0.123,")
"""Words up to this length are never split in a table, however narrow the terminal."""


class Screen:
    """Prints messages and progress to standard error; standard output is for results."""

    def __init__(self) -> None:
        """Whether standard error is a terminal is decided here, once."""
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Print a line; nothing in it is markup. A message that cannot be written is lost, and the work goes on."""
        with suppress(OSError):
            self.console.print(shown(redacted(text), style))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.say(f"! {text}", "yellow")

    def begin(self, title: str) -> None:
        """Print that a piece of work begins, where no bar shows it."""
        if not self.console.is_terminal:
            self.say(f"{title}: begins")

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Gives a function to call with the number of units that are newly done.

        Shows a bar with time left on a terminal, a line a minute and one at the end elsewhere. total: number of units.
        done: those that an interrupted process has done, which say nothing about the speed of this one.
        """
        count = done
        with self._shown(title, "") as report:
            report(done, total)

            def advance(new: int) -> None:
                nonlocal count
                count += new
                report(count, total)

            yield advance
            report(total, total)

    @contextmanager
    def steps(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Like `progress`, for work that reports (steps done, steps in all).

        The first report comes before the first step: a resumed training has steps done by then.
        """
        with self._shown(title, " steps") as report:
            yield report

    @contextmanager
    def _shown(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function to call with (units done, units in all)."""
        pace = Pace()
        if not self.console.is_terminal:
            said = pace.began

            def report(done: int, total: int) -> None:
                nonlocal said
                pace.report(done, total)
                if time.monotonic() - said >= LINE_EVERY and done < total:
                    said = time.monotonic()
                    self.say(f"{title}: {done:,} of {total:,}{unit}{pace.text}")

            yield report
            resumed = f", resumed at{unit.rstrip('s')} {pace.first:,}," if pace.first else ""
            new = f"{pace.done - (pace.first or 0):,}{unit}"
            self.say(f"{title}: {new}{resumed} in {time.monotonic() - pace.began:.1f} s")
            return
        with self._bars() as bars:
            bar = bars.add_task(visible(title), total=None, left="")

            def draw(done: int, total: int) -> None:
                pace.report(done, total)
                bars.update(bar, completed=done, total=total, left=pace.text.removeprefix(", "))

            yield draw

    def _bars(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
        )


class Pace:
    """How fast work goes that may have been begun by an interrupted process: only what is new counts."""

    def __init__(self) -> None:
        """It begins now."""
        self.began = self.since = time.monotonic()
        self.first: int | None = None
        """Units that were done before; None until the first report."""
        self.done = self.total = 0

    def report(self, done: int, total: int) -> None:
        """Units done by now, those before included, and units in all. The first report comes before the first unit."""
        if self.first is None:
            self.first, self.since = done, time.monotonic()
        self.done, self.total = done, total

    @property
    def text(self) -> str:
        """`, 3.1 s each, about 14 min left`; empty until something new is done, and when all is."""
        new = self.done - (self.first or 0)
        if new <= 0 or self.done >= self.total:
            return ""
        each = (time.monotonic() - self.since) / new
        speed = f"{each:.1f} s each" if each >= 1 else f"{1 / each if each else 0:,.0f} a second"
        return f", {speed}, about {rough_duration(each * (self.total - self.done))} left"


def rough_duration(seconds: float) -> str:
    """8 s, 3 min, 1 h 12 min: for estimates, whose seconds mean nothing beyond a minute and a half."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def no_progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """In place of `Screen.progress`, for work that shows none."""
    yield lambda count: None


def out(*parts: str | tuple[str, str], flush: bool = False) -> None:
    """Print a line on standard output. parts: texts, or (text, style of rich)."""
    if all(isinstance(part, str) for part in parts):
        print(visible("".join(map(str, parts)), lines=True), flush=flush)
        return
    from rich.console import Console
    from rich.text import Text

    styled = [shown(part) if isinstance(part, str) else shown(*part) for part in parts]
    Console(highlight=False, soft_wrap=True).print(Text.assemble(*styled))


def out_frame(frame: Group, console: Console) -> None:
    """Print what rich draws; whoever makes it passes its texts through `visible`."""
    console.print(frame)


def as_json(value: Any, indent: int | None = 2) -> str:
    """A value as JSON, in which characters that a terminal obeys are escaped as JSON has it."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(json.dumps(letter)[1:-1] if letter != "\n" and _is_hidden(letter) else letter for letter in text)


def err(text: str) -> None:
    """Print a line on standard error, without tokens and passwords."""
    with suppress(OSError):  # there is nobody left to tell
        print(visible(redacted(text), lines=True), file=sys.stderr, flush=True)


def shown(text: Any, style: str = "") -> Text:
    """Text for rich: neither markup nor emoji codes, no control characters."""
    from rich.text import Text

    return Text(visible(text, lines=True), style)


def visible(text: Any, *, lines: bool = False) -> str:
    """Text from data that is safe on a terminal: control characters as symbols (␛), characters that hide or reverse
    text as code points.

    lines: keep line breaks and tabs.
    """
    return "".join(letter if lines and letter in "\n\t" else _visible_character(letter) for letter in str(text))


def _visible_character(letter: str) -> str:
    code = ord(letter)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"⟨U+{code:04X}⟩" if _is_hidden(letter) else letter


def _is_hidden(letter: str) -> bool:
    """Whether a terminal obeys a character instead of showing it."""
    category = unicodedata.category(letter)
    return category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and letter not in _JOINERS)


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], form: str = "table") -> None:
    """Print a table to standard output; its cells may be text from data.

    form: `table` (ruled on a terminal, tab-separated elsewhere), `markdown`, `latex` or `csv`. title: shown on a
    terminal only.
    """
    head, rows = [visible(name) for name in head], [[visible(cell) for cell in row] for row in rows]
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
    """A table on a terminal: with rules if it fits, else without, else a line for each cell."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    words = [[word for row in (head, *rows) for word in row[column].split()] for column in range(len(head))]
    min_widths = [min(max(map(len, column), default=0), UNBROKEN) for column in words]
    if sum(min_widths) + len(head) > console.width:
        for row in rows:
            lines = [f"{name}: {cell}" for name, cell in zip(head, row, strict=True) if cell]
            console.print(shown("\n".join(lines) + "\n"))
        return
    ruled = sum(min_widths) + 3 * len(head) + 1 <= console.width
    table = Table(title=shown(title)) if ruled else Table(title=shown(title), box=None, pad_edge=False)
    for column, (name, width) in enumerate(zip(head, min_widths, strict=True)):
        table.add_column(shown(name), justify="left" if column == 0 else "right", min_width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row))
    console.print(table)
