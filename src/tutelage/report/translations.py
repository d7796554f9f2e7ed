"""The languages of the report page: which there are, and the catalogs that hold their words.

A message is a whole English sentence as it stands in a template. A catalog, templates/report/LANGUAGE.json, gives its
translation; English has none, its messages are the page. Where English needs a plural the message is the plural form:
Korean and Japanese have one form for both. Placeholders are %(name)s, and a percent sign is written %%.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Environment

CATALOGS = Path(__file__).parent / "templates" / "report"
LANGUAGES = {"en": "English", "ko": "한국어", "ja": "日本語"}
"""Code, as HTML and `--lang` write it, and the language's own name."""

BETWEEN_SENTENCES = re.compile(r"(<(pre|script|style)\b.*?</\2>)|(?<=[。：])(</\w+>)?[ \t]*\n\s*", re.DOTALL)
"""Elements whose line breaks mean something, or the break after a full stop that ends a line of a template."""

Say = Callable[[str], str]
"""From an English message to the one of the page's language."""


def check_language(lang: str) -> None:
    """Raise UserError, saying what to type, for a language the page is not written in."""
    if lang not in LANGUAGES:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise UserError(f"The report page is not written in {lang!r}.\n  type one of: {known}; for example --lang ko")


@cache
def read_catalog(lang: str) -> dict[str, str]:
    """English message to translation; empty for English. Raises UserError for a language the page is not written in."""
    check_language(lang)
    return {} if lang == "en" else json.loads((CATALOGS / f"{lang}.json").read_text(encoding="utf-8"))


def say_in(lang: str) -> Say:
    """How messages are said in a language; one that its catalog lacks stays English. A number keeps its percent sign
    beside it."""
    known = read_catalog(lang)
    return lambda message: known.get(message, message).replace(" %%", "\N{NO-BREAK SPACE}%%")


def install(environment: Environment, lang: str) -> None:
    """Give templates `_`, `gettext`, `ngettext` and `{% trans %}` in a language, and its code as `lang`.

    Messages are trusted mark-up; what is put into their places is escaped unless it is mark-up already.
    """
    say = say_in(lang)

    def plural(one: str, many: str, count: int) -> str:
        return one if lang == "en" and count == 1 else say(many)

    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.install_gettext_callables(say, plural, newstyle=True)
    environment.globals["lang"] = lang


def close_up(page: str, lang: str) -> str:
    """A page as its language sets it: a template gives each sentence a line, browsers make that a space, and Japanese
    has none."""
    return BETWEEN_SENTENCES.sub(lambda found: found[1] or found[3] or "", page) if lang == "ja" else page
