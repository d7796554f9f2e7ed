"""The HTML pages: the template environment, and how metrics, values and roles of models are written.

A model has the name that the terminal prints, anchor or td/seed-0, so that both can be read side by side. Everything
from data is escaped; characters that are invisible or that turn the text around them are written out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.analysis.run_results import is_plain
from tutelage.recipe.schema import row_metric
from tutelage.records import TEXT_BASELINE
from tutelage.report.translations import install, join_sentences, translator
from tutelage.utils.console import visible
from tutelage.utils.format import (
    Translate,
    duration,
    file_size,
    metric_words,
    number,
    p_value,
    percent,
    short_count,
    short_time,
    signed,
    signed_span,
    span,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
ROLES = {"teacher": "teacher", "student": "untrained", "anchor": "anchor", TEXT_BASELINE: "baseline"}
"""Model name to its colour and mark in the charts; every other model is `distilled`."""
NAMES = {
    "teacher": "Teacher",
    "student": "Untrained student",
    "anchor": "Plain fine-tuning",
    TEXT_BASELINE: "TF-IDF and logistic regression",
}
TERMS = {
    "train": "train",
    "validation": "validation",
    "test": "test",
    "classification": "classification",
    "ner": "named entities",
    "qa": "question answering",
}
"""Splits and tasks to their names on the page."""
RANGE_KEYS = ("answer_length", "prompt_length", "teacher_certainty", "teacher_loss")
"""Keys whose slices are ranges of a number, `3-5`."""
_HYPHEN_OF_RANGE, _TINY = re.compile(r"(?<=\d)-(?=\d)"), re.compile(r"\d+(\.\d+)?e-\d+")
INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
"""Characters that are invisible or turn the text around them. No template has one: they come from data."""


def render(
    template: str = "report.html.jinja", more: Sequence[Callable[..., Any]] = (), lang: str = "en", **sections: Any
) -> str:
    """A whole page as HTML.

    more: further filters of the template, by the names of the functions. lang: a code of translations.LANGUAGES, which
    the templates find as `lang`; raises UserError for any other.
    """
    page = join_sentences(page_environment(more, lang).get_template(template).render(**sections), lang)
    return INVISIBLE.sub(lambda match: visible(match[0]), page)


def page_environment(more: Sequence[Callable[..., Any]] = (), lang: str = "en") -> Environment:
    """The templates with their filters, escaping, and the messages of a language."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    install(environment, lang)
    translate = translator(lang)
    plain = (number, signed, p_value, role, row_metric, lower_is_better, ticked, capital, *more)
    translated = (percent, duration, model_role, metric_name, term, words)
    environment.filters.update({function.__name__: function for function in plain})
    environment.filters.update({function.__name__: partial(function, translate=translate) for function in translated})
    environment.tests["is_plain"] = is_plain
    for function in (short_count, short_time, file_size):
        environment.filters[function.__name__] = partial(_without_breaks, function, " ")
    for function in (span, signed_span):
        environment.filters[function.__name__] = partial(_without_breaks, function, ", ")
    return environment


def _without_breaks(write: Callable[[Any], str], gap: str, value: Any) -> str:
    """A number and its unit, or the ends of an interval, with a no-break space in place of the one in `gap`."""
    return write(value).replace(gap, gap.replace(" ", "\N{NO-BREAK SPACE}"))


def method_label(method: str) -> str:
    """A method as papers write it: "SCD+AW" for scd-aw."""
    return method.upper().replace("-AW", "+AW")


def model_role(name: str, translate: Translate = str) -> str:
    """What a model of a run is, beside its name: "Plain fine-tuning" for anchor; empty for a distilled student."""
    if is_plain(name):
        return translate("Plain fine-tuning in stages")
    return translate(NAMES[name]) if name in NAMES else ""


def metric_name(name: str | None, translate: Translate = str) -> str:
    """The name of a metric on the page: "entity F1" for entity_f1."""
    return translate(metric_words(name))


def term(word: str, translate: Translate = str) -> str:
    """A split or a task in the page's language; any other word unchanged."""
    return translate(TERMS[word]) if word in TERMS else word


def capital(text: str) -> str:
    """The text with its first letter upper-case and the others unchanged: "Entity F1"."""
    return text[:1].upper() + text[1:]


def slice_value(key: str, value: str | None) -> str | None:
    """The value of a slice for readers: a range of numbers as 0.5–0.817, and 0 for 1.83e-28."""
    return _HYPHEN_OF_RANGE.sub("–", _TINY.sub("0", value)) if value and key in RANGE_KEYS else value


def lower_is_better(name: str) -> bool:
    """Whether a metric is a loss or an error rate."""
    return name == "nll" or name.endswith("_rate")


def role(name: str) -> str:
    """The model's colour and mark."""
    return ROLES.get(name, "distilled")


def words(value: Any, most: int = 90, translate: Translate = str) -> str:
    """An answer on one line, cut to `most` characters; lists as their items, [type, surface] as "type: surface"."""
    if value is None:
        return translate("(unreadable)")
    if isinstance(value, list | tuple):
        items = (": ".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in value)
        text = "; ".join(items) or translate("(none)")
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def ticked(text: str) -> Markup:
    """A sentence with its words between backticks as code; everything in it is escaped."""
    from markupsafe import Markup, escape

    pieces = str(text).split("`")
    if len(pieces) % 2 == 0:  # an unpaired backtick is a character like any other
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else escape(piece) for index, piece in enumerate(pieces)
    )
