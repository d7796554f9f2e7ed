"""The languages of the report page and their message catalogs.

A message is a whole English sentence as it stands in a template. The catalog templates/report/LANGUAGE.json maps it to
its translation; English needs none. Where English has a plural, the message is the plural form: Korean and Japanese
have one form for both. Placeholders are %(name)s, and a percent sign is written %%.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UserError
from tutelage.utils.format import Translate

if TYPE_CHECKING:
    from jinja2 import Environment

CATALOGS = Path(__file__).parent / "templates" / "report"
LANGUAGES = {"en": "English", "ko": "한국어", "ja": "日本語"}
"""Code, as HTML and `--lang` write it, and the language's own name."""

BETWEEN_SENTENCES = re.compile(r"(<(pre|script|style)\b.*?</\2>)|(?<=[。：])(</\w+>)?[ \t]*\n\s*", re.DOTALL)
"""Elements in which line breaks matter, or the line break after a full stop that ends a line of a template."""


def check_language(lang: str) -> None:
    """Raise UserError, with the languages to choose from, for a language without a catalog."""
    if lang not in LANGUAGES:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise UserError(f"The report page is not written in {lang!r}.\n  type one of: {known}; for example --lang ko")


@cache
def read_catalog(lang: str) -> dict[str, str]:
    """English message to translation; empty for English. Raises UserError as `check_language`."""
    check_language(lang)
    return {} if lang == "en" else json.loads((CATALOGS / f"{lang}.json").read_text(encoding="utf-8"))


def translator(lang: str) -> Translate:
    """The translation of messages into a language; a message that its catalog lacks stays English.

    Numbers and their percent sign are joined by a no-break space.
    """
    catalog = read_catalog(lang)
    return lambda message: catalog.get(message, message).replace(" %%", "\N{NO-BREAK SPACE}%%")


def install(environment: Environment, lang: str) -> None:
    """Give templates `_`, `gettext`, `ngettext` and `{% trans %}` in a language, and its code as `lang`.

    Messages are trusted markup; the values of their placeholders are escaped unless they are markup already.
    """
    translate = translator(lang)

    def plural(singular: str, message: str, count: int) -> str:
        return singular if lang == "en" and count == 1 else translate(message)

    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.install_gettext_callables(translate, plural, newstyle=True)
    environment.globals["lang"] = lang


def join_sentences(page: str, lang: str) -> str:
    """The page without the space that a line break between two sentences of a template would make in Japanese."""
    return BETWEEN_SENTENCES.sub(lambda match: match[1] or match[3] or "", page) if lang == "ja" else page
