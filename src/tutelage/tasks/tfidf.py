"""A baseline that costs nothing: TF-IDF features of the prompt and logistic regression, for answers of a closed set.

Where it answers as well as a fine-tuned model, the task may not need one. Features are the runs of 2 to 5 characters
within what white space separates, and whole words: the former make do without a tokenizer where a language writes no
spaces. Trained on at most `MOST_ROWS` rows, `MOST_CHARACTERS` characters and `MOST_FEATURES` features, which keeps it
to about half a minute.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tutelage.records import Example
from tutelage.tasks.base import BaseTask
from tutelage.tasks.qa import choice_letters

MOST_ROWS, MOST_CHARACTERS = 10_000, 5_000_000
"""Training rows and their texts; of more, a seeded sample of the rows."""
MOST_FEATURES = 200_000
"""The most frequent ones."""
RUNS = range(2, 6)
"""Lengths of the runs of characters."""
INVERSE_PENALTY = 30.0
"""`C` of the logistic regression; 10 to 100 give about the same (benchmarks/RESULTS.md)."""
SEVERAL = 100
"""Training rows from which a feature has to occur in two of them."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TfidfAnswers:
    """The answers of the baseline to some rows."""

    answers: list[str | None]
    """In the order of the rows; None where no label that the row allows is one of a training row."""
    training_rows: int
    features: int


def suits(task: BaseTask, training: Sequence[Example]) -> bool:
    """Whether the same answer means the same on every row.

    It does not where answers are free text, or letters of choices (`A`, `B`, ...), which each question has of its own.
    """
    letters = set(choice_letters(26))
    return task.closed and not (task.name == "qa" and all(task.gold(example) in letters for example in training))


def tfidf_answers(
    training: Sequence[Example], examples: Sequence[Example], task: BaseTask, texts: Sequence[str]
) -> TfidfAnswers:
    """Train on the gold labels of the training rows, at least one, and answer the examples.

    task: one that `suits` the rows. texts: what to read of the training rows, then of the examples: the prompts without
    what they share, `data.near_duplicates.distinct_texts`. An answer is the most probable label that the row allows.
    The same input gives the same answers.
    """
    characters = sum(len(_folded(text)) for text in islice(texts, len(training)))
    most = min(MOST_ROWS, MOST_CHARACTERS * len(training) // max(1, characters))
    chosen: Sequence[int] = range(len(training))
    if len(training) > most:
        chosen = random.Random(0).sample(chosen, max(1, most))
    known, gold = [_folded(texts[index]) for index in chosen], [task.gold(training[index]) for index in chosen]
    labels = sorted(set(gold))
    if len(labels) == 1 or not any(known):
        commonest = max(labels, key=gold.count)
        scores, features = np.tile([float(label == commonest) for label in labels], (len(examples), 1)), 0
    else:
        scores, features = _scores(known, gold, [_folded(text) for text in texts[len(training) :]])
    return TfidfAnswers(_best_allowed(scores, labels, examples), len(known), features)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _terms(text: str) -> list[str]:
    """Runs of characters within words, whose ends are marked by a space, and words, marked by two."""
    terms = [f"  {word}" for word in _WORD.findall(text)]
    for word in text.split():
        padded = f" {word} "
        terms += [padded[start : start + size] for size in RUNS for start in range(max(1, len(padded) - size + 1))]
    return terms


def _scores(known: Sequence[str], gold: Sequence[str], asked: Sequence[str]) -> tuple[np.ndarray, int]:
    """([asked texts, labels in sorted order] probabilities, number of features)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    least = 2 if len(known) >= SEVERAL else 1
    vectorizer = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, max_features=MOST_FEATURES, min_df=least)
    try:
        features: Any = vectorizer.fit_transform(known)
    except ValueError:  # no feature occurs in two rows
        features = vectorizer.set_params(min_df=1).fit_transform(known)
    # One label against all others: as good as all at once, and several times as fast where there are many labels.
    each = LogisticRegression(C=INVERSE_PENALTY, solver="liblinear", max_iter=1000)
    model = OneVsRestClassifier(each).fit(features, gold)
    return model.predict_proba(vectorizer.transform(asked)), features.shape[1]


def _best_allowed(scores: np.ndarray, labels: Sequence[str], examples: Sequence[Example]) -> list[str | None]:
    """The label with the highest score on each row, among those that the row allows."""
    answers: list[str | None] = []
    for row, example in zip(scores, examples, strict=True):
        own = set(labels if example.labels is None else example.labels)
        allowed = [index for index, label in enumerate(labels) if label in own]
        answers.append(labels[max(allowed, key=lambda index: row[index])] if allowed else None)
    return answers
