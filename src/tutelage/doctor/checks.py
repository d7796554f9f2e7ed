"""A `Check` of the doctor: its status, kind, numbers and the line of the recipe to change; and how checks are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from tutelage.doctor.texts import wording
from tutelage.errors import Kind, Problem
from tutelage.utils.console import as_json, out

if TYPE_CHECKING:
    from tutelage.recipe.schema import Recipe

Status = Literal["passed", "skipped", "look", "fail"]
MARKS = {"passed": "+", "skipped": "-", "look": "?", "fail": "x"}
STYLES = {"passed": "green", "skipped": "dim", "look": "yellow", "fail": "red"}
AREAS = ("recipe", "data", "models", "trajectory", "payoff", "budget")
"""In the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    """What was checked: a stable identifier, e.g. `leaks` (docs/checks.md lists them)."""
    area: str
    """One of `AREAS`."""
    status: Status
    """`passed`; `look`: worth a look; `fail`: the run would stop, or its result would be worthless; `skipped`: there is
    nothing to judge by yet."""
    kind: Kind = Kind.OK
    """What was found; `ok` for what passed."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What the status rests on; can be written as JSON."""
    change: str | None = None
    """The line of the recipe to change, `section.key=value`; None if all is well, or no line would help."""
    line: str | None = None
    """Where that key stands in the recipe, `FILE:LINE`; None for a key that is not there."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Examples and names that only the text shows."""
    problems: tuple[Problem, ...] = ()
    """The problems of a failed step that this check reports, all of one kind."""

    @property
    def text(self) -> str:
        """What was found and why it matters, for people."""
        values = {"change": self.change, **self.numbers, **self.details}
        return wording.text_of(self.name, self.kind, values, self.problems)


def failed(name: str, area: str, problem: Problem, change: str | None = None, **numbers: Any) -> Check:
    """The check that fails because of a problem. change: wins over that of the problem."""
    return Check(name, area, "fail", problem.kind, numbers, change or problem.change, problems=(problem,))


def exit_code(checks: Sequence[Check]) -> int:
    """0: all passed or were skipped. 1: something is worth a look. 2: the run would fail."""
    statuses = {check.status for check in checks}
    return 2 if "fail" in statuses else 1 if "look" in statuses else 0


def located(checks: Sequence[Check], origins: Mapping[str, str]) -> list[Check]:
    """The checks with the lines of the keys to change. origins: as `LoadedRecipe.origins`."""
    lines = {key: origin for key, origin in origins.items() if origin not in ("default", "override")}

    def line_of(change: str | None) -> str | None:
        key = (change or "").partition("=")[0]
        return next((line for name, line in lines.items() if key and f"{name}.".startswith(f"{key}.")), None)

    return [replace(check, line=check.line or line_of(check.change)) for check in checks]


def argument_line(recipe: Recipe, section: str, name: str) -> str:
    """The key that holds a training argument of a section, or would hold it."""
    sections = ("anchor", "distill") if section == "anchor" else (section,)
    holder = next((part for part in sections if name in getattr(recipe, part).trainer), None)
    return f"{holder}.trainer.{name}" if holder else f"trainer.{name}"


# --- output ---


def to_json(checks: Sequence[Check]) -> str:
    """All checks as a JSON list."""
    keys = ("name", "area", "kind", "status", "text", "numbers", "change", "line")
    return as_json([{key: getattr(check, key) for key in keys} for check in checks])


def summary(checks: Sequence[Check]) -> str:
    """The last line: how many checks have each status."""
    counts = {status: sum(check.status == status for check in checks) for status in wording.STATUS_WORDS}
    return ", ".join(f"{count} {wording.STATUS_WORDS[status]}" for status, count in counts.items() if count)


def show(checks: Sequence[Check]) -> None:
    """Print the checks by area on standard output, in colour by status. Text from data cannot style it."""
    for area in AREAS:
        in_area = [check for check in checks if check.area == area]
        if in_area:
            out((area, "bold"))
        for check in in_area:
            kind = f" [{check.kind}]" if check.kind != Kind.OK else ""
            first, *rest = f"{check.name}{kind}: {check.text}".splitlines()
            word = f"  {MARKS[check.status]} {wording.STATUS_WORDS[check.status]:<14}"
            out((word, STYLES[check.status]), first)
            for line in rest:
                out(f"{'':18}{line}")
            if check.change and check.status != "passed":
                where = f"  ({check.line})" if check.line else ""
                out((f"{'':18}change: {check.change}{where}", "cyan"))
    out((summary(checks), "bold"))
