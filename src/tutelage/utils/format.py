"""How numbers, durations and sizes are written for people, and how text from data goes into Markdown.

Each function returns plain text. `percent` and `duration` take a translation of their pattern, for the report page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from tutelage.records import Interval
from tutelage.utils.console import visible

NO_VALUE = "–"
METRICS = {
    "nll": "loss (nats)",
    "f1": "F1",
    "entity_f1": "entity F1",
    "row_f1": "mean row F1",
    "macro_f1": "macro-F1",
    "token_f1": "token F1",
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "precision": "precision",
    "recall": "recall",
    "score": "score",
    "invalid_rate": "invalid rate",
    "unparsable_rate": "unparsable rate",
    "empty_rate": "empty rate",
}
"""Name of a metric in files to its name for people; any other is written with its underscores as spaces."""

Translate = Callable[[str], str]
"""From an English pattern to the pattern of another language; `str` keeps English."""


# --- numbers ---


def number(value: float | None, digits: int = 3) -> str:
    """0.794, with a true minus sign; a dash for None, infinity and NaN."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    text = f"{round(value, 10):.{digits}f}"  # sums of equal terms differ in their last digits: round those away first
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def counted(count: int, one: str, more: str | None = None) -> str:
    """A number with what is counted: `1 row`, `1,234 rows`. more: plural of `one`; default, with an s."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def signed(value: float | None, digits: int = 3) -> str:
    """+0.014, −0.014, 0.000."""
    text = number(value, digits)
    return text if text[0] in f"−{NO_VALUE}" or float(text) == 0 else f"+{text}"


def span(score: Interval | None) -> str:
    """0.794 [0.768, 0.818]; the value alone where the interval is not finite."""
    return _with_interval(score, number)


def signed_span(score: Interval | None) -> str:
    """+0.014 [−0.006, +0.034]."""
    return _with_interval(score, signed)


def _with_interval(score: Interval | None, write: Callable[[float], str]) -> str:
    if score is None:
        return NO_VALUE
    bounded = math.isfinite(score.low) and math.isfinite(score.high)
    return write(score.value) + (f" [{write(score.low)}, {write(score.high)}]" if bounded else "")


def percent(fraction: float | None, translate: Translate = str) -> str:
    """0.684 as 68 %; only an exact 0 or 1 becomes 0 % or 100 %, others "< 1 %" and "> 99 %"."""
    if fraction is None or not math.isfinite(fraction):
        return NO_VALUE
    whole = round(100 * fraction)
    text = f"{whole}".replace("-", "−")
    if whole == 0 and fraction > 0:
        text = "< 1"
    elif whole == 100 and fraction < 1:
        text = "> 99"
    return translate("%(number)s %%") % {"number": text}


def p_value(value: float | None) -> str:
    """0.014; "< 0.001" instead of 0.000."""
    return "< 0.001" if value is not None and value < 0.0005 else number(value)


def metric_words(name: str | None) -> str:
    """The name of a metric for people: "entity F1" for entity_f1."""
    return METRICS.get(name or "score", (name or "score").replace("_", " "))


# --- durations ---


def duration(seconds: float, translate: Translate = str) -> str:
    """8.4 s, 3 min 20 s, 1 h 12 min."""
    if seconds < 60:
        return translate("%(seconds)s s") % {"seconds": f"{seconds:.1f}"}
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return translate("%(minutes)d min %(seconds)02d s") % {"minutes": minutes, "seconds": rest}
    return translate("%(hours)d h %(minutes)02d min") % {"hours": minutes // 60, "minutes": minutes % 60}


def short_time(seconds: float) -> str:
    """Two digits: 0.6 ms, 35 ms, 1.2 s."""
    value, unit = (1000 * seconds, "ms") if seconds < 0.9995 else (seconds, "s")
    digits = 0 if value >= 9.95 else 1 if value >= 0.095 else 2
    return f"{value:.{digits}f} {unit}"


# --- sizes ---


def parameter_count(count: int) -> str:
    """156 thousand, 1.5 billion, three digits; "an unknown number of" for 0."""
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count) if count else "an unknown number of"


def short_count(count: float) -> str:
    """A number of parameters with three digits: 156 k, 1.24 M, 7.62 B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def file_size(size: float) -> str:
    """Bytes in decimal units: 512 B, 1.4 kB, 23 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 9.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


# --- Markdown ---


def escape_markdown(text: Any) -> str:
    """Text from data on one line of Markdown, where it is no markup, no HTML and no link."""
    line = " ".join(visible(text, lines=True).split())
    line = re.sub(r"([\\`*{}\[\]<>|#&~@$])", r"\\\1", line)
    return re.sub(r"(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", lambda match: "\\" + match[0], line)


def code_block(text: str, language: str) -> list[str]:
    """Lines of a fenced block of code, with a fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", visible(text, lines=True).rstrip("\n"), fence]
