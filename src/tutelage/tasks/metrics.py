"""Scores as plain functions of strings and counts. Knows nothing of models or rows.

Text is compared the way the field does it: SQuAD's normalisation for spans, counted by character where a language puts
no spaces between words or glues particles to them (zh, ja, ko), and exact surfaces for entities.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

CHARACTER_LANGUAGES = frozenset({"zh", "ja", "ko"})
"""Languages whose answers are compared by character, white space left out."""
ENGLISH_ARTICLES = frozenset({"a", "an", "the"})


def base_language(language: str | None) -> str | None:
    """`ja` for `ja`, `ja-JP` and `JA_jp`; None for None."""
    return re.split("[-_]", language)[0].lower() if language else None


def fold(text: str) -> str:
    """NFKC and case-folded: full-width and half-width, upper and lower case become the same."""
    return unicodedata.normalize("NFKC", text).casefold()


def answer_tokens(text: str, language: str | None) -> list[str]:
    """What a span answer is compared by: characters in zh, ja and ko, words separated by white space otherwise.

    NFKC, case-folded, without punctuation; without English articles when the language is `en`. A text that consists of
    nothing else ("The", "?") is kept as it is, so that it does not equal every other such text.
    """
    code, folded = base_language(language), fold(text)
    split = _characters if code in CHARACTER_LANGUAGES else str.split
    tokens = split("".join(letter for letter in folded if not _is_punctuation(letter)))
    if code == "en":
        tokens = [token for token in tokens if token not in ENGLISH_ARTICLES]
    return tokens or split(folded)


def exact_match(prediction: str, answers: Sequence[str], language: str | None = None) -> float:
    """1.0 if the prediction equals one of the accepted answers after normalisation (see `answer_tokens`), else 0.0."""
    tokens = answer_tokens(prediction, language)
    return float(any(tokens == answer_tokens(answer, language) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str], language: str | None = None) -> float:
    """F1 in [0, 1] of prediction and answer as multisets of tokens (see `answer_tokens`); the best over the answers."""
    tokens = Counter(answer_tokens(prediction, language))
    best = 0.0
    for answer in answers:
        gold = Counter(answer_tokens(answer, language))
        total = tokens.total() + gold.total()
        # Nothing on both sides is the same answer.
        best = max(best, 2 * (tokens & gold).total() / total if total else 1.0)
    return best


def normalize_surface(surface: str) -> str:
    """An entity's text as it is compared: NFKC, runs of white space as one space, case kept."""
    return " ".join(unicodedata.normalize("NFKC", surface).split())


def entity_counts(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> dict[str, tuple[int, int, int]]:
    """Per entity type of one row: (matched, predicted, gold), pairs (type, surface) counted as multisets."""
    guesses = Counter((kind, normalize_surface(surface)) for kind, surface in predicted)
    truths = Counter((kind, normalize_surface(surface)) for kind, surface in gold)
    counts: dict[str, list[int]] = {}
    for place, pairs in enumerate((guesses & truths, guesses, truths)):
        for (kind, _), number in pairs.items():
            counts.setdefault(kind, [0, 0, 0])[place] += number
    return {kind: (matched, guessed, true) for kind, (matched, guessed, true) in counts.items()}


def ratio(part: np.ndarray, whole: np.ndarray, empty: float | np.ndarray = 0.0) -> np.ndarray:
    """`part / whole` elementwise; `empty` where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), empty)


def macro_f1(matched: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Mean F1 over the labels that occur in gold: counts [..., L] in, [...] in [0, 1] out.

    Equals sklearn's `f1_score(average="macro", labels=<those in gold>, zero_division=0)`. A label that is only
    predicted has no F1 of its own, so every model is averaged over the same labels; its false use costs the gold
    label's recall.
    """
    present = gold > 0
    return ratio((ratio(2 * matched, predicted + gold) * present).sum(-1), present.sum(-1))


def _characters(text: str) -> list[str]:
    return [letter for letter in text if not letter.isspace()]


def _is_punctuation(letter: str) -> bool:
    # SQuAD's list also holds ASCII symbols such as $, + and ~, which Unicode does not call punctuation.
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")
