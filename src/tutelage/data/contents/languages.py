"""The language of a text, as far as its script and most common words show: enough to select a prompt or report a mix.

Scripts decide first: Hangul is Korean, kana Japanese, Han without kana Chinese. Latin text is decided by the most
common words of seven languages. The result is None where the text shows too little.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

SCRIPTS = {
    "ko": re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"),
    "ja": re.compile(r"[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]"),
    "zh": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002fa1f]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
}
NEIGHBOURS = {"ru": {"uk": re.compile("[іїєґ]", re.IGNORECASE)}, "ar": {"fa": re.compile("[پچژگ]")}}
"""Languages of the same script, by letters that only they have."""
COMMON = {
    "en": "the of and to is in i my a for it you that what how can do not with was on this are have from me has no when"
    " an at",
    "de": "der die das und ist ich nicht ein eine einen einem einer kein keine keinen zu den dem des mit wie von vom"
    " auf für es mein meine meinen meinem meiner mich mir im am um bei nach bis zum zur sich sind hat haben habe war"
    " wird sie auch kann dass wo was bitte oder wenn dann noch nur über diese diesen dieses dieser heute morgen uhr"
    " alle gibt",
    "fr": "le la les et est je un une des du pas que pour dans mon ma ce comment il au sur avec qui vous ne mes est-ce",
    "es": "el la los las y es que de un una no por mi con para en se como del al lo cómo qué tengo puedo está su más",
    "it": "il lo la gli e è di che un una non per mi con sono del come della i le ho mio cosa posso si dei da",
    "pt": "o a os as e é que de um uma não por com para em se como do da meu minha no na ao eu você posso",
    "nl": "de het een en is ik niet van mijn dat te op met voor hoe wat zijn er aan om kan heb bij naar u",
}
"""The most common words of languages in Latin script."""
_COMMON = {code: frozenset(words.split()) for code, words in COMMON.items()}
ENOUGH_WORDS = 0.1
"""Least fraction of the words of a text that are among the most common of its language."""
MAIN = 0.8
"""Least fraction of the texts that have the main language."""


def guess_language(text: str) -> str | None:
    """ISO 639-1 code of a text, or None."""
    counts = {name: len(pattern.findall(text)) for name, pattern in SCRIPTS.items()}
    total = sum(counts.values())
    if total < 2:
        return None
    if counts["ko"] > 0.2 * total:
        return "ko"
    if counts["ja"] + counts["zh"] > 0.2 * total:  # Japanese has a kana for every two or three Han
        return "ja" if counts["ja"] * 10 > counts["zh"] else "zh"
    name = max(counts, key=counts.get)
    if counts[name] * 2 < total:
        return None
    if name == "latin":
        return _by_words(text)
    return next((code for code, letters in NEIGHBOURS.get(name, {}).items() if letters.search(text)), name)


def _by_words(text: str) -> str | None:
    words = re.findall(r"[^\W\d_]+(?:[-'][^\W\d_]+)*", text.casefold())
    hits = {code: sum(word in common for word in words) for code, common in _COMMON.items()}
    best, second = sorted(hits, key=hits.get, reverse=True)[:2]
    return best if hits[best] > hits[second] and hits[best] >= max(1, ENOUGH_WORDS * len(words)) else None


def main_language(texts: Sequence[str]) -> str | None:
    """The language of nearly all of the texts; None for a mix, or where the texts show too little."""
    fractions = language_fractions(texts)
    return guess_language("\n".join(texts)) if max(fractions.values(), default=1.0) >= MAIN else None


def language_fractions(texts: Iterable[str]) -> dict[str, float]:
    """Fraction of each language among the texts whose language is recognised, largest first; empty if none is."""
    counts = Counter(code for code in map(guess_language, texts) if code)
    return {code: count / counts.total() for code, count in counts.most_common()}
