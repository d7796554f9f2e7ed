"""The demo's data: intake notes of a small clinic in English, Korean and Japanese, from a seeded generator.

Three tasks: the department (classification); drugs, doses, symptoms and durations (ner); a question about the note
(qa). Rows differ in difficulty: some are decided by one keyword, others by a word that refers to one of two complaints,
by a negation, or by copying a drug name that no training row contains. A fraction of the training labels is wrong, as
in real data; validation and test sets are clean. Every row names its kind in `subdomain`. No text occurs in two splits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.demo import lexicon as words
from tutelage.errors import DataError
from tutelage.utils.files import write_jsonl

VERSION = 2
ROWS = {"train": 1600, "validation": 200, "test": 400}
TASKS = ("classification", "ner", "qa")
LABEL_NOISE = 0.05
"""Fraction of the classification task's training rows whose label is another department's."""
SEED = 20260114
TRIES = 2000
"""Repeated texts in succession after which a kind of note counts as exhausted; the smallest kind has about 300 texts
per language."""

Row = dict[str, Any]


def write_clinic(
    folder: Path, *, seed: int = SEED, rows: dict[str, int] | None = None, label_noise: float = LABEL_NOISE
) -> dict[str, Path]:
    """Write clinic_TASK/{train,validation,test}.jsonl below `folder`; returns the folder of each task.

    rows: number of rows of each split (default ROWS), the same for all tasks; the smallest kind of note has texts for
    about 5,000 in total. label_noise: fraction in [0, 1] of the classification training rows that get another
    department's label; validation and test sets are always clean. The texts of that task depend on it, too. Raises
    DataError if there are no further texts.
    """
    if not 0 <= label_noise <= 1:
        raise DataError(
            f"label_noise is {label_noise}, but it is a fraction of the training rows: give a number from 0 to 1"
        )
    triage = partial(_triage_row, label_noise=label_noise)
    makers = {"classification": triage, "ner": _entity_row, "qa": _question_row}
    folders = {}
    for task, make in makers.items():
        folders[task] = folder / f"clinic_{task}"
        for split, table in _splits(task, make, seed, rows or ROWS).items():
            write_jsonl(folders[task] / f"{split}.jsonl", table)
    return folders


def _splits(task: str, make: Callable[..., Row], seed: int, sizes: dict[str, int]) -> dict[str, list[Row]]:
    """Rows of every split: all texts differ, languages and kinds take turns."""
    rng, texts, tables, repeats = random.Random(f"{seed}/{task}"), set(), {}, 0
    for split, size in sizes.items():
        table: list[Row] = []
        while len(table) < size:
            index = len(table)
            row = make(rng, index % 3, index // 3, split)
            text = re.sub(r"\W", "", row.get("text") or row["context"]).casefold()
            repeats = repeats + 1 if text in texts else 0
            if repeats == TRIES:
                raise DataError(_exhausted(task, split, index, row["subdomain"], sizes))
            if text not in texts:
                texts.add(text)
                table.append({"id": f"{task}-{split}-{index:04d}", **row, "language": words.LANGUAGES[index % 3]})
        rng.shuffle(table)
        tables[split] = table
    return tables


def _exhausted(task: str, split: str, made: int, kind: str, sizes: dict[str, int]) -> str:
    return (
        f"clinic_{task}: after {made} of {sizes[split]} {split} rows, {TRIES} `{kind}` notes in succession repeated"
        f" earlier texts. No text may occur twice, and there are not enough different ones for {sum(sizes.values())}"
        " rows: ask for fewer `rows`"
    )


# --- sentences ---

_PARTICLES = {"를": ("을", "를"), "는": ("은", "는"), "가": ("이", "가"), "와": ("과", "와"), "로": ("으로", "로")}


def particle(word: str, kind: str) -> str:
    """`word` with its Korean particle.

    After a final consonant 을, 은, 이, 과, 으로 (로 after ㄹ), otherwise 를, 는, 가, 와, 로.
    """
    final = (ord(word[-1]) - 0xAC00) % 28 if "가" <= word[-1] <= "힣" else 0
    closed = final != 0 and not (kind == "로" and final == 8)
    return word + _PARTICLES[kind][0 if closed else 1]


def fill(frame: str, values: dict[str, str]) -> str:
    """A frame with values in its placeholders and the Korean particles that fit them."""

    def value_of(match: re.Match[str]) -> str:
        word = values[match[1]]
        return particle(word, match[2]) if match[2] else word

    text = re.sub(r"\{(\w+)(?::(\w+))?\}", value_of, frame)
    return text[0].upper() + text[1:]


def _who(rng: random.Random, tongue: int) -> str:
    return words.PERSON[tongue].format(age=rng.randint(18, 90), person=rng.choice(words.PEOPLE[tongue]))


def _symptom(rng: random.Random, tongue: int, department: str | None = None) -> str:
    return rng.choice(words.SYMPTOMS[department or rng.choice(list(words.SYMPTOMS))])[tongue]


def _drug(rng: random.Random, tongue: int, rare: bool, split: str) -> str:
    """A common drug, or a made-up one; every fourth combination of parts never occurs in training rows."""
    if not rare:
        return rng.choice(words.DRUGS[tongue])
    while True:
        indices = [rng.randrange(len(part)) for part in words.RARE[tongue]]
        if (sum(indices) % 4 == 0) == (split != "train"):
            return "".join(part[index] for part, index in zip(words.RARE[tongue], indices, strict=True))


# --- rows ---


def _triage_row(rng: random.Random, tongue: int, turn: int, split: str, *, label_noise: float) -> Row:
    kind = list(words.TRIAGE)[turn % len(words.TRIAGE)]
    departments = rng.sample(list(words.SYMPTOMS), 2)
    a, b = (_symptom(rng, tongue, department) for department in departments)
    frame = rng.choice(words.TRIAGE[kind][tongue])
    values = {"who": _who(rng, tongue), "when": rng.choice(words.WHEN[tongue]), "a": a, "b": b}
    truth = 0 if kind == "keyword" else 1
    if kind == "former_latter":
        truth = rng.randrange(2)
        values["which"] = words.PAIR[tongue][truth]
    label = departments[truth]
    if split == "train" and rng.random() < label_noise:
        label = rng.choice([department for department in words.SYMPTOMS if department != label])
    return {"text": fill(frame, values), "label": label, "subdomain": kind}


def _note(rng: random.Random, tongue: int, kind: str, rare: bool, split: str) -> tuple[str, dict[str, str]]:
    """A medication note and the words in it."""
    first = _drug(rng, tongue, rare, split)
    second = first
    while second == first:
        second = _drug(rng, tongue, rare, split)
    dose, second_dose = rng.sample(words.DOSES, 2)
    span = rng.choice(words.SPANS[tongue]).format(n=rng.randint(2, 9))
    values = {
        "who": _who(rng, tongue),
        "symptom": _symptom(rng, tongue),
        "drug": first,
        "dose": f"{dose} mg",
        "drug2": second,
        "dose2": f"{second_dose} mg",
        "span": span,
    }
    return fill(rng.choice(words.NOTES[kind][tongue]), values), values


def _entity_row(rng: random.Random, tongue: int, turn: int, split: str) -> Row:
    kinds = [*words.NOTES, "rare", "none"]
    kind = kinds[turn % len(kinds)]
    if kind == "none":
        text = fill(rng.choice(words.ROUTINE[tongue]), {"who": _who(rng, tongue)})
        return {"text": text, "entities": [], "subdomain": kind}
    text, values = _note(rng, tongue, "duration" if kind == "rare" else kind, kind == "rare", split)
    types = {"drug": "drug", "drug2": "drug", "dose": "dose", "dose2": "dose", "symptom": "symptom", "span": "duration"}
    entities = []
    for name, label in types.items():
        match = re.search(rf"(?<!\d){re.escape(values[name])}", text)  # 5 mg must not be found inside 25 mg
        if match:
            entities.append((match.start(), {"type": label, "text": values[name]}))
    ordered = [entity for _, entity in sorted(entities, key=lambda pair: pair[0])]
    return {"text": text, "entities": ordered, "subdomain": kind}


def _question_row(rng: random.Random, tongue: int, turn: int, split: str) -> Row:
    """A note with one question: the drug taken now, the dose of one of two drugs, a duration, or a rare drug's name."""
    kind = ("plain", "changed", "two", "duration", "rare")[turn % 5]
    text, values = _note(rng, tongue, "changed" if kind == "rare" else kind, kind == "rare", split)
    asked = {"plain": "drug", "changed": "drug", "rare": "drug", "two": "dose", "duration": "span"}[kind]
    which = rng.choice(("", "2"))
    answer = {
        "drug": values["drug" if kind == "plain" else "drug2"],
        "dose": values[f"dose{which}"],
        "span": values["span"],
    }[asked]
    question = words.QUESTIONS[asked][tongue].format(drug=values[f"drug{which}"])
    return {"context": text, "question": question, "answers": [answer], "subdomain": kind}
