"""The report's page: how numbers and names are written, and the templates they go into. Everything from data is
escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.report.translations import Say, close_up, install, say_in
from tutelage.utils.console import visible
from tutelage.utils.format import (
    duration,
    file_size,
    number,
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
ROLES = {"teacher": "teacher", "student": "untrained", "anchor": "anchor"}
"""Model name: its colour and mark in the charts; every other model is `distilled`."""
NAMES = {"teacher": "Teacher", "student": "Untrained student", "anchor": "Plain fine-tuning"}
METRICS = {
    "nll": "loss (nats)", "f1": "F1", "entity_f1": "entity F1", "macro_f1": "macro-F1", "token_f1": "token F1",
    "accuracy": "accuracy", "exact_match": "exact match", "precision": "precision", "recall": "recall", "score": "score",
    "invalid_rate": "invalid rate", "unparsable_rate": "unparsable rate", "empty_rate": "empty rate",
}  # fmt: skip
"""Name in scores.json: what a reader calls it; any other is read with its underscores as spaces."""
TERMS = {
    "train": "train", "validation": "validation", "test": "test",
    "classification": "classification", "ner": "named entities", "qa": "question answering",
}  # fmt: skip
"""Words of the artefacts that stand on the page, splits and tasks: what a reader calls them."""
AMOUNTS = ("answer_length", "prompt_length", "teacher_certainty", "teacher_loss")
"""Keys whose slices are ranges of a number, `3-5`."""
_BETWEEN, _TINY = re.compile(r"(?<=\d)-(?=\d)"), re.compile(r"\d+(\.\d+)?e-\d+")
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
"""Characters without a look of their own, or that turn the text around them. No template has one: they come from
data."""


def render(
    template: str = "report.html.jinja", more: Sequence[Callable[..., Any]] = (), lang: str = "en", **sections: Any
) -> str:
    """The whole page as HTML. more: further filters of the template, by the names of the functions.

    lang: a code of wording.LANGUAGES; the templates find it as `lang`. Raises UserError for another one.
    """
    page = close_up(page_environment(more, lang).get_template(template).render(**sections), lang)
    return UNSEEN.sub(lambda found: visible(found[0]), page)


def page_environment(more: Sequence[Callable[..., Any]] = (), lang: str = "en") -> Environment:
    """Where the templates live: their filters, escaping, and the words of a language."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    install(environment, lang)
    plain = (number, signed, span, signed_span, role, lower_is_better, ticked, capital, *more)
    environment.filters.update({function.__name__: function for function in plain})
    unbroken = (short_count, short_time, file_size)
    environment.filters.update({function.__name__: partial(_unbroken, function) for function in unbroken})
    say = say_in(lang)
    worded = (model_name, metric_name, term, words)
    environment.filters.update({function.__name__: partial(function, say=say) for function in worded})
    environment.filters.update(
        {function.__name__: partial(function, translate=say) for function in (percent, duration)}
    )
    return environment


def _unbroken(write: Callable[[float], str], value: float) -> str:
    """A number and its unit with a no-break space between them."""
    return write(value).replace(" ", "\N{NO-BREAK SPACE}")


def model_name(name: str, say: Say = str) -> str:
    """What a reader calls a model of scores.json: "SCD+AW, seed 0" for scd-aw/seed-0."""
    if name in NAMES:
        return say(NAMES[name])
    method, _, folder = name.partition("/")
    known = method.upper().replace("-AW", "+AW")
    if folder.startswith("seed-"):
        return say("%(method)s, seed %(seed)s") % {
            "method": known,
            "seed": folder.removeprefix("seed-").replace("-", " "),
        }
    return f"{known}, {folder.replace('-', ' ')}" if folder else known


def metric_name(name: str | None, say: Say = str) -> str:
    """What a reader calls a metric: "entity F1" for entity_f1."""
    return say(METRICS.get(name or "score", (name or "score").replace("_", " ")))


def term(word: str, say: Say = str) -> str:
    """A split or a task in the page's language; what is none of them stays as it is."""
    return say(TERMS[word]) if word in TERMS else word


def capital(text: str) -> str:
    """With its first letter large, the others as they are: "Entity F1"."""
    return text[:1].upper() + text[1:]


def slice_value(key: str, value: str | None) -> str | None:
    """The value of a slice as it is read: of a range of numbers 0.5–0.817, and 0 for 1.83e-28."""
    return _BETWEEN.sub("–", _TINY.sub("0", value)) if value and key in AMOUNTS else value


def lower_is_better(name: str) -> bool:
    """Losses and error rates."""
    return name == "nll" or name.endswith("_rate")


def role(name: str) -> str:
    """The model's colour and mark."""
    return ROLES.get(name, "distilled")


def words(value: Any, most: int = 90, say: Say = str) -> str:
    """An answer as one line of text, cut with an ellipsis; lists as their items, [type, surface] as "type: surface"."""
    if value is None:
        return say("(unreadable)")
    if isinstance(value, list | tuple):
        items = (": ".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in value)
        text = "; ".join(items) or say("(none)")
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
