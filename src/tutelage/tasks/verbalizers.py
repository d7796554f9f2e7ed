"""Short forms of labels (`task.verbalizers`): what the models read in `{labels}`, learn and write instead of the label.

All files and outputs have the label itself: it becomes its short form where an answer becomes tokens, and comes back
where tokens become an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import count
from string import ascii_uppercase

from tutelage.errors import Kind, Problem
from tutelage.tasks.metrics import fold

KEY = "task.verbalizers"
LONG = 8
"""Tokens from which on a label is worth a short form."""


@dataclass(frozen=True)
class Verbalizers:
    """The short forms of some labels; the other labels are written as they are."""

    forms: Mapping[str, str] = field(default_factory=dict)
    """Label -> short form."""

    def written(self, answer: str) -> str:
        """What a model writes for an answer."""
        return self.forms.get(answer, answer)

    def read(self, text: str) -> str:
        """What a model has written, with the label in place of a short form that is its first line.

        The form is compared as labels are: exactly, or as the only one that differs in case or width alone.
        """
        first, end, rest = text.partition("\n")
        exact, folded = self._labels
        label = exact.get(first.strip()) or folded.get(fold(first.strip()))
        return text if label is None else label + end + rest

    @cached_property
    def _labels(self) -> tuple[dict[str, str], dict[str, str]]:
        """Short form -> label; folded short form -> label, without spellings that two forms share."""
        spellings = Counter(map(fold, self.forms.values()))
        folded = {fold(form): label for label, form in self.forms.items() if spellings[fold(form)] == 1}
        return {form: label for label, form in self.forms.items()}, folded


def label_problems(forms: Mapping[str, str], labels: Sequence[str] | None, more: Iterable[str] = ()) -> list[Problem]:
    """Problems of short forms with the labels of the rows: unknown labels, and forms that read as another label.

    labels: the label set; None where answers are free text. more: labels that only some rows allow.
    """
    if not forms:
        return []
    if not labels:
        return [Problem(Kind.VERBALIZERS_UNSUITABLE, key=KEY, change=f"{KEY}={{}}")]
    known, problems = list(dict.fromkeys([*labels, *more])), []
    for label in forms:
        if label not in known:
            near = get_close_matches(label, known, 1)
            values = {"label": label, "near": near[0] if near else None, "labels": known}
            problems.append(Problem(Kind.VERBALIZER_LABEL_UNKNOWN, key=KEY, values=values))
    spelled: dict[str, list[str]] = {}
    for label in known:
        spelled.setdefault(fold(label.strip()), []).append(label)
    for label, form in forms.items():
        for other in spelled.get(fold(form), ()):
            if other != label:
                values = {"label": label, "form": form, "other": other}
                problems.append(Problem(Kind.VERBALIZER_IS_LABEL, key=KEY, values=values))
    return problems


@dataclass(frozen=True)
class LongLabels:
    """Labels that take many tokens, and short forms that could stand for them."""

    tokens: dict[str, int]
    """Label -> tokens of its answer, for labels of `LONG` tokens and more, the longest first."""
    forms: dict[str, str]
    """Label -> proposed short form, in the order of the label set."""


def long_labels(tokens: Mapping[str, int], taken: Iterable[str] = ()) -> LongLabels:
    """The labels that are worth a short form. tokens: label -> tokens of an answer, its end excluded. taken: forms of
    other labels.

    Proposed are A, B, C, ..., for many labels 1, 2, 3, ...; none of them is a label or taken.
    """
    found = {
        label: tokens[label] for label in sorted(tokens, key=lambda label: -tokens[label]) if tokens[label] >= LONG
    }
    known = {fold(text.strip()) for text in (*tokens, *taken)}
    letters = [letter for letter in ascii_uppercase if fold(letter) not in known]
    numbers = (str(number) for number in count(1) if str(number) not in known)
    forms = iter(letters) if len(found) <= len(letters) else numbers
    return LongLabels(found, {label: next(forms) for label in tokens if label in found})
