"""What the doctor says about one thing: a `Check`, its colour, the line of the recipe to change; and how checks are
shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tutelage.recipe.schema import Recipe

Status = Literal["passed", "skipped", "look", "fail"]
WORDS: dict[str, str] = {"passed": "passed", "skipped": "not looked at", "look": "look here", "fail": "will fail"}
MARKS = {"passed": "+", "skipped": "-", "look": "?", "fail": "x"}
STYLES = {"passed": "green", "skipped": "dim", "look": "yellow", "fail": "red"}
AREAS = ("recipe", "data", "models", "trajectory", "payoff", "budget")
"""In the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    """Short and fixed, e.g. `leaks`: what tests and scripts go by."""
    area: str
    """One of `AREAS`."""
    status: Status
    """`passed`, `look` (a human should), `fail` (the run would stop, or its result would be void); `skipped`: nothing
    to judge by yet, which the text says how to change."""
    text: str
    """What was found and why it matters."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """What the status rests on; JSON-able."""
    change: str | None = None
    """The line of the recipe to change, `section.key=value`; None where all is well, or no line would help."""
    line: str | None = None
    """Where that key stands in the recipe, `FILE:LINE`; None for a key that is not there yet."""


def exit_code(checks: Sequence[Check]) -> int:
    """0: all passed (or not looked at). 1: look at something. 2: the run would fail."""
    found = {check.status for check in checks}
    return 2 if "fail" in found else 1 if "look" in found else 0


def located(checks: Sequence[Check], origins: dict[str, str]) -> list[Check]:
    """The checks with the place of the key to change. origins: by dotted key `FILE:LINE`, as `LoadedRecipe.origins`."""

    def place(change: str | None) -> str | None:
        key = (change or "").split("=")[0]
        found = [where for name, where in origins.items() if name == key or name.startswith(f"{key}.")] if key else []
        return next((where for where in found if re.search(r":\d+$", where)), None)

    return [replace(check, line=check.line or place(check.change)) for check in checks]


def in_bytes(count: float) -> str:
    """1.2 GB, 34.5 MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def argument_line(recipe: Recipe, section: str, name: str) -> str:
    """The key in which a training argument of a section stands, or would."""
    places = ("anchor", "distill") if section == "anchor" else (section,)
    own = next((place for place in places if name in getattr(recipe, place).trainer), None)
    return f"{own}.trainer.{name}" if own else f"trainer.{name}"


def to_json(checks: Sequence[Check]) -> str:
    """All checks as a JSON list."""
    return json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False)


def verdict(checks: Sequence[Check]) -> str:
    """The last line: how many of each."""
    counts = {status: sum(check.status == status for check in checks) for status in WORDS}
    return ", ".join(f"{count} {WORDS[status]}" for status, count in counts.items() if count)


def show(checks: Sequence[Check]) -> None:
    """Print the checks by area on standard output, those that ask for something in colour. Text from data cannot style
    it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for area in AREAS:
        own = [check for check in checks if check.area == area]
        if own:
            console.print(Text(area, style="bold"))
        for check in own:
            first, *rest = f"{check.name}: {check.text}".splitlines()
            word = f"  {MARKS[check.status]} {WORDS[check.status]:<14}"
            console.print(Text.assemble((word, STYLES[check.status]), first))
            for line in rest:
                console.print(Text(f"{'':18}{line}"))
            if check.change and check.status != "passed":
                where = f"  ({check.line})" if check.line else ""
                console.print(Text(f"{'':18}change: {check.change}{where}", style="cyan"))
    console.print(Text(verdict(checks), style="bold"))
