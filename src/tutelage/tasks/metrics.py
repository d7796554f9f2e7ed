"""Metrics as plain functions of strings and counts. Knows no models and no rows.

Spans are compared after the normalisation of SQuAD, by character in languages without spaces between words or with
particles attached to them (zh, ja, ko); entities are compared by their exact surfaces.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

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


def look_alikes(counts: Mapping[str, int]) -> list[list[str]]:
    """Groups of labels that look the same: they differ in case, width, white space, invisible characters, or in how
    Unicode composes a letter. In each, the most frequent label comes first.

    counts: label to how often it occurs.
    """
    groups: dict[str, list[str]] = {}
    for label in sorted(
        counts, key=lambda label: (-counts[label], unicodedata.normalize("NFC", label) != label, label)
    ):
        visible = "".join(letter for letter in fold(label) if unicodedata.category(letter) != "Cf")
        groups.setdefault(" ".join(visible.split()), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def answer_tokens(text: str, language: str | None) -> list[str]:
    """The tokens that span answers are compared by: characters in zh, ja and ko, otherwise words between white space.

    NFKC, case-folded, without punctuation; without English articles if the language is `en`. A text of nothing but
    those ("The", "?") is kept whole, so that it does not equal every other such text.
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
        # Two empty texts are equal.
        best = max(best, 2 * (tokens & gold).total() / total if total else 1.0)
    return best


def normalize_surface(surface: str) -> str:
    """The text of an entity as it is compared: NFKC, white space runs as one space, case kept."""
    return " ".join(unicodedata.normalize("NFKC", surface).split())


def entity_counts(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> dict[str, tuple[int, int, int]]:
    """Per entity type of one row: (matched, predicted, gold), pairs (type, surface) counted as multisets."""
    guesses = Counter((kind, normalize_surface(surface)) for kind, surface in predicted)
    truths = Counter((kind, normalize_surface(surface)) for kind, surface in gold)
    counts: dict[str, list[int]] = {}
    for column, pairs in enumerate((guesses & truths, guesses, truths)):
        for (kind, _), number in pairs.items():
            counts.setdefault(kind, [0, 0, 0])[column] += number
    return {kind: (matched, guessed, true) for kind, (matched, guessed, true) in counts.items()}


def ratio(part: np.ndarray, whole: np.ndarray, empty: float | np.ndarray = 0.0) -> np.ndarray:
    """`part / whole` elementwise; `empty` where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), empty)


def macro_f1(matched: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Mean F1 over the labels that occur in gold: counts [..., L] in, [...] in [0, 1] out.

    Equals `sklearn.metrics.f1_score(average="macro", labels=<those in gold>, zero_division=0)`. A label that is only
    predicted has no F1 of its own, so that all models are averaged over the same labels; predicting it lowers the
    recall of the gold label.
    """
    present = gold > 0
    return ratio((ratio(2 * matched, predicted + gold) * present).sum(-1), present.sum(-1))


def _characters(text: str) -> list[str]:
    return [letter for letter in text if not letter.isspace()]


def _is_punctuation(letter: str) -> bool:
    # The list of SQuAD also holds ASCII symbols such as $, + and ~, which are not punctuation to Unicode.
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")
