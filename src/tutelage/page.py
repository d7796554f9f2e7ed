"""The report's page: how numbers and names are written, and the templates they go into. Everything from data is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.records import Interval

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
ROLES = {"teacher": "teacher", "student": "untrained", "anchor": "anchor"}
"""Model name: its colour and mark in the charts; every other model is `distilled`."""
NAMES = {"teacher": "Teacher", "student": "Untrained student", "anchor": "Plain fine-tuning"}
METRICS = {"nll": "loss (nats)", "f1": "F1", "entity_f1": "entity F1", "macro_f1": "macro-F1", "token_f1": "token F1"}
NO_VALUE = "–"


def render(template: str = "report.html.jinja", more: Sequence[Callable[..., Any]] = (), **sections: Any) -> str:
    """The whole page as HTML. more: further filters of the template, by the names of the functions."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own = (number, signed, span, signed_span, percent, duration, model_name, metric_name, role, lower_is_better, words, ticked)
    environment.filters.update({function.__name__: function for function in (*own, *more)})
    return environment.get_template(template).render(**sections)


def number(value: float | None, digits: int = 3) -> str:
    """0.794; a true minus sign; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """+0.014, −0.014, 0.000."""
    text = number(value, digits)
    return text if text[0] in f"−{NO_VALUE}" or float(text) == 0 else f"+{text}"


def span(score: Interval | None) -> str:
    """0.794 [0.768, 0.818]; without an interval the value alone."""
    return _with_ends(score, number)


def signed_span(score: Interval | None) -> str:
    """+0.014 [−0.006, +0.034]."""
    return _with_ends(score, signed)


def _with_ends(score: Interval | None, write: Any) -> str:
    if score is None:
        return NO_VALUE
    ends = f" [{write(score.low)}, {write(score.high)}]" if math.isfinite(score.low) and math.isfinite(score.high) else ""
    return write(score.value) + ends


def percent(share: float | None) -> str:
    """A share as whole percent: 0.684 is 68 %; what is neither nothing nor all is not rounded to it."""
    if share is None or not math.isfinite(share):
        return NO_VALUE
    whole = round(100 * share)
    if whole == 0 and share > 0:
        return "< 1 %"
    if whole == 100 and share < 1:
        return "> 99 %"
    return f"{whole} %".replace("-", "−")


def duration(seconds: float) -> str:
    """8.4 s, 3 min 20 s, 1 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def model_name(name: str) -> str:
    """What a reader calls a model of scores.json: "SCD+AW, seed 0" for scd-aw/seed-0."""
    if name in NAMES:
        return NAMES[name]
    method, _, seed = name.partition("/")
    known = method.upper().replace("-AW", "+AW")
    return f"{known}, {seed.replace('-', ' ')}" if seed else known


def metric_name(name: str | None) -> str:
    """What a reader calls a metric: "entity F1" for entity_f1."""
    return METRICS.get(name or "score", (name or "score").replace("_", " "))


def lower_is_better(name: str) -> bool:
    """Losses and error rates."""
    return name == "nll" or name.endswith("_rate")


def role(name: str) -> str:
    """The model's colour and mark."""
    return ROLES.get(name, "distilled")


def words(value: Any, most: int = 90) -> str:
    """An answer as one line of text, cut with an ellipsis; lists as their items, [type, surface] as "type: surface"."""
    if value is None:
        return "(unreadable)"
    if isinstance(value, list | tuple):
        text = "; ".join(": ".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in value) or "(none)"
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def ticked(text: str) -> Markup:
    """A sentence whose `ticked` words are set as code; everything in it is escaped."""
    from markupsafe import Markup, escape

    pieces = str(text).split("`")
    if len(pieces) % 2 == 0:  # an odd tick is a tick
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces)
    )
