"""Checks of the rows: can they be read, are there enough, do splits repeat or labels contradict each other, languages.

Every kind of problem that `load_rows` reports fails a check of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tutelage.data.contents.languages import language_fractions, main_language
from tutelage.data.contents.sameness import normalised, prompt_key, prompt_text
from tutelage.data.contents.words import stands_whole
from tutelage.data.dataset import Rows, load_rows
from tutelage.data.encode import fitting_test
from tutelage.data.near_duplicates import distinct_text, near_pairs, shared_parts
from tutelage.doctor.checks import Check
from tutelage.errors import DataError, Kind, ModelError, Problem, RowsError
from tutelage.recipe.schema import Recipe
from tutelage.recipe.yaml_text import on_one_line
from tutelage.records import SPLITS, Example
from tutelage.tasks.metrics import base_language, look_alikes, normalize_surface
from tutelage.tasks.ner import entities_from_answer
from tutelage.utils.digests import DigestSet, digest, digests, repeated
from tutelage.utils.spool import Joined, Mapped

FEW_TRAINING_ROWS = 100
FEW_SCORED_ROWS = 50
"""Validation or test rows below which a score of 0.8 is uncertain by more than 11 points (95 % interval)."""
SMALL_CLASS = 5
"""Training rows below which a class is hardly learned."""
UNBALANCED = 0.7
"""Fraction of the most common answer above which accuracy says little."""
NEAR_FRACTION, NEAR_ROWS = 0.01, 1
"""Fraction and number of the rows of a split that may be near-duplicates of training rows without a warning."""
LABEL_SHIFT, LABEL_SHIFT_P = 0.1, 1e-4
"""Total variation distance and chi-square p-value that make training and test labels differ."""
FREE_ANSWERS = 0.2
"""Fraction of answers outside their prompts above which answers are taken for free text, not spans."""
CUT_WORDS = 0.01
"""Fraction of the entities that may begin or end inside words without a warning: compounds, plurals."""
SHOWN = 3

MANY_LABELS = 20
"""Labels above which the line to write does not list them."""
_CHECKS: dict[str, tuple[Kind, ...]] = {
    "files": (
        *(Kind.DATASET_IS_FILE, Kind.DATASET_MISSING, Kind.DATASET_UNREADABLE, Kind.SPLIT_FILES_MISSING),
        *(Kind.SPLIT_FILE_MISSING, Kind.FILE_MISSING, Kind.FILE_IS_FOLDER, Kind.FILE_PARTS_MISSING, Kind.FILE_EMPTY),
        *(Kind.FILE_TYPE_UNKNOWN, Kind.ENCODING_NOT_UTF8, Kind.HALF_CHARACTER, Kind.CELL_TOO_LARGE),
        *(Kind.JSON_INVALID, Kind.JSON_NOT_A_LIST, Kind.SPLIT_EMPTIED),
        *(Kind.JSON_NOT_AN_OBJECT, Kind.JSON_SEVERAL_TABLES, Kind.TABLE_INVALID, Kind.TABLE_ROW_UNEVEN),
        *(Kind.PARQUET_INVALID, Kind.LABEL_FILE_INVALID, Kind.TAG_MISSING, Kind.ROWS_MISSING),
        Kind.CONLL_NUMBERS_UNCLEAR,
    ),
    "columns": (*(Kind.COLUMN_REPEATED, Kind.COLUMN_NOT_MAPPED, Kind.COLUMNS_AMBIGUOUS, Kind.COLUMNS_UNRECOGNISED),),
    "ids": (Kind.ID_REPEATED,),
    "template": (
        *(Kind.TEMPLATE_INVALID, Kind.TEMPLATE_SHOWS_NOTHING, Kind.TEMPLATE_SHOWS_ANSWER),
        *(Kind.TEMPLATE_VALUE_MISSING, Kind.CHAT_TEMPLATE_NEEDED),
    ),
    "answers": (Kind.ANSWER_EMPTY, Kind.CHAT_ANSWER_MISSING),
    "labels": (Kind.LABEL_OUTSIDE_SET, Kind.LABEL_NOT_SINGLE, Kind.LABELS_NOT_LISTED),
    "verbalizers": (Kind.VERBALIZERS_UNSUITABLE, Kind.VERBALIZER_LABEL_UNKNOWN, Kind.VERBALIZER_IS_LABEL),
    "entities": (
        *(Kind.ENTITY_INCOMPLETE, Kind.ENTITY_NOT_WRITABLE, Kind.ENTITY_NOT_IN_TEXT, Kind.ENTITY_OFFSETS_OUTSIDE),
        *(Kind.ENTITY_OFFSETS_WRONG, Kind.OFFSETS_UNCLEAR, Kind.ENTITIES_UNREADABLE),
        *(Kind.TAG_UNKNOWN, Kind.TAGS_UNEVEN),
    ),
    "leaks": (Kind.ROW_IN_TWO_SPLITS,),
}
"""Checks by name, with the kinds of problems that fail each; all others fail the check `rows`."""
_CHANGES: dict[str, str] = {
    "columns": "data.columns={OURS: THEIRS}",
    "ids": "data.columns={id: ANOTHER_COLUMN}",
    "template": 'data.template="{A_COLUMN} ..."',
    "verbalizers": "task.verbalizers={LABEL: SHORT}",
}
"""The line to change where a problem names none; for all other checks, the line that names the file."""

Texts = dict[str, Sequence[str]]
"""By split, the text of each row without the words that all prompts share, made when it is read."""


# --- what cannot be read ---


def read(recipe: Recipe) -> tuple[Rows | None, list[Check]]:
    """Every split as `prepare` will read it, and the checks of what it will refuse.

    Where rows are in two splits, the others are returned. None where the rows cannot be read at all.
    """
    try:
        rows = load_rows(recipe, _fitting(recipe))
    except DataError as error:
        checks = [_refused(group, recipe, error) for group in error.groups()]
        leaking = any(check.name == "leaks" for check in checks)
        return _without_leaks(recipe) if leaking else None, checks
    counts = {split: len(rows.examples[split]) for split in SPLITS}
    return rows, [Check("rows", "data", "passed", numbers={"rows": counts}, details={"notes": rows.notes})]


def _fitting(recipe: Recipe) -> Callable[[Example], bool] | None:
    """As `prepare` samples rows; None where a tokenizer cannot be loaded, which another check reports."""
    from tutelage.bytes.pair import Pair

    with suppress(ModelError):
        return fitting_test(recipe.data, lambda: Pair.of(recipe).encoders)
    return None


def data_line(recipe: Recipe, split: str = "train", prefix: str = "MENDED") -> str:
    """The line that names the rows of a split, for problems that are mended in the file. prefix: of the new name."""
    if getattr(recipe.data, split) or not recipe.data.dataset:
        return f"data.{split}={prefix}_FILE"
    return f"data.dataset={prefix}_FOLDER"


def _without_leaks(recipe: Recipe) -> Rows | None:
    try:
        return load_rows(recipe.model_copy(update={"data": recipe.data.model_copy(update={"overlap": "drop"})}))
    except DataError:
        return None


def _refused(group: Sequence[Problem], recipe: Recipe, error: DataError) -> Check:
    """The check that a group of problems of one kind fails."""
    first = group[0]
    name = next((name for name, kinds in _CHECKS.items() if first.kind in kinds), "rows")
    change = first.change or _CHANGES.get(name) or data_line(recipe, first.split or "train")
    if first.kind == Kind.LABEL_OUTSIDE_SET and isinstance(error, RowsError):
        change = _all_labels(error.labels, [problem.values["label"] for problem in group])
    return Check(name, "data", "fail", first.kind, {"places": len(group)}, change, problems=tuple(group))


def _all_labels(known: Sequence[str], unknown: Sequence[str]) -> str:
    """The line that adds labels to the label set; with a placeholder where it would be long."""
    labels = [*known, *dict.fromkeys(unknown)]
    if len(labels) > MANY_LABELS:
        return "task.labels=[ALL, OF, THEM]"
    return f"task.labels={on_one_line(labels)}"


# --- rows that can be read ---


def check_data(rows: Rows, recipe: Recipe) -> list[Check]:
    """All checks of the rows."""
    texts = _texts_by_split(rows)
    checks = [_sizes(rows, recipe), _near_leaks(rows, texts, recipe), _contradictions(rows, texts, recipe)]
    if recipe.task.type == "classification" or rows.choice:
        checks += [_small_classes(rows, recipe), _label_distribution(rows, recipe)]
    checks += [
        _look_alikes(rows, recipe),
        _surfaces(rows, recipe),
        _cut_words(rows, recipe),
        _languages(texts, rows, recipe),
    ]
    return [check for check in checks if check]


# --- row counts ---


def _sizes(rows: Rows, recipe: Recipe) -> Check:
    counts = {split: len(rows.examples[split]) for split in SPLITS}
    least = {"train": FEW_TRAINING_ROWS, "validation": FEW_SCORED_ROWS, "test": FEW_SCORED_ROWS}
    few = [split for split in SPLITS if counts[split] < least[split]]
    points = {split: round(100 * 1.96 * math.sqrt(0.16 / max(1, counts[split])), 1) for split in SPLITS[1:]}
    numbers = {"rows": counts, "uncertainty_points": points}
    if not few:
        return Check("sizes", "data", "passed", numbers=numbers)
    limited = next((f"data.max_{split}_rows=null" for split in few if getattr(recipe.data, f"max_{split}_rows")), None)
    larger = _larger_fraction(rows, counts) if few == ["validation"] else None
    change = limited or larger or data_line(recipe, few[0], "LARGER")
    details = {"few": few, "hold_out_more": larger is not None}
    return Check("sizes", "data", "look", Kind.FEW_ROWS, numbers, change, details=details)


def _larger_fraction(rows: Rows, counts: dict[str, int]) -> str | None:
    """The line that holds out enough rows to select by; None if too few would stay, or validation rows were given."""
    total = counts["train"] + counts["validation"]
    wanted = math.ceil(100 * FEW_SCORED_ROWS / total) / 100
    enough_stay = (1 - wanted) * total >= FEW_TRAINING_ROWS
    return f"data.validation_fraction={wanted:g}" if rows.held_out and enough_stay else None


# --- duplicates and contradictions ---


def _near_leaks(rows: Rows, texts: Texts, recipe: Recipe) -> Check:
    """Rows of a split that nearly repeat rows of an earlier one."""
    folded = {split: Mapped(in_split, lambda _, text: normalised(text)) for split, in_split in texts.items()}
    counts: dict[str, int] = {}
    leaks: list[dict[str, Any]] = []
    for earlier, later in (("train", "test"), ("train", "validation"), ("validation", "test")):
        pairs = near_pairs(folded[earlier], folded[later])
        counts[f"{later}_near_{earlier}"] = len(pairs)
        fraction = len(pairs) / max(1, len(texts[later]))
        if fraction > NEAR_FRACTION and len(pairs) > NEAR_ROWS:
            late, early, jaccard = pairs[0]
            ids = rows.examples[later][late].id, rows.examples[earlier][early].id
            example = {"ids": ids, "jaccard": jaccard, "texts": (texts[later][late], texts[earlier][early])}
            leak = {"earlier": earlier, "later": later, "fraction": fraction, "rows": len(texts[later])}
            leaks.append(leak | {"pairs": len(pairs)} | example)
    if not leaks:
        return Check("near_leaks", "data", "passed", numbers=counts)
    numbers = counts | {"share": round(max(leak["fraction"] for leak in leaks), 4)}
    change = data_line(recipe, leaks[0]["later"])
    return Check("near_leaks", "data", "look", Kind.NEAR_DUPLICATES, numbers, change, details={"leaks": leaks})


def _contradictions(rows: Rows, texts: Texts, recipe: Recipe) -> Check:
    """Equal prompts with different answers, split by split."""
    numbers, examples = {}, []
    for split in SPLITS:
        groups = [group for group in _equal_prompts(rows.examples[split]) if group.rows > 1]
        contradicting = [group for group in groups if not group.common]
        numbers[split] = {
            "repeated": sum(group.rows - 1 for group in groups),
            "contradicting": sum(group.rows for group in contradicting),
        }
        for group in contradicting[: SHOWN - len(examples)]:
            examples.append({"text": texts[split][group.place], "answers": [group.first, group.second]})
    split = next((split for split in SPLITS if numbers[split]["contradicting"]), None)
    if split is None:
        return Check("contradictions", "data", "passed", numbers=numbers)
    change, details = data_line(recipe, split), {"examples": examples}
    return Check("contradictions", "data", "look", Kind.ANSWERS_CONTRADICT, numbers, change, details=details)


@dataclass
class _Group:
    """Rows with equal prompts."""

    place: int
    """Index of the first one."""
    first: tuple[str, str]
    """Its id and answer."""
    common: set[str]
    """Normalised answers that all rows accept."""
    second: tuple[str, str] | None = None
    """Id and answer of the first row with another answer."""
    rows: int = 0


def _equal_prompts(examples: Sequence[Example]) -> Iterable[_Group]:
    """The rows whose prompts occur more than once, by prompt; some that occur once may be among them."""
    several = DigestSet(repeated(digests(map(prompt_key, examples))))
    groups: dict[str, _Group] = {}
    for place, example in enumerate(examples):
        key = prompt_key(example)
        if digest(key) not in several:
            continue
        answers = {normalised(answer) for answer in example.answers}
        group = groups.setdefault(key, _Group(place, (example.id, example.answer), answers))
        group.rows += 1
        group.common = group.common & answers
        if group.second is None and normalised(example.answer) != normalised(group.first[1]):
            group.second = example.id, example.answer
    return groups.values()


# --- labels ---


def _small_classes(rows: Rows, recipe: Recipe) -> Check:
    counts = Counter(example.answer for example in rows.examples["train"])
    small = {label: counts[label] for label in rows.labels or [] if counts[label] < SMALL_CLASS}
    smallest = min(counts.values(), default=0)
    numbers = {"classes": len(rows.labels or []), "smallest": smallest, "small": len(small)}
    if not small:
        return Check("small_classes", "data", "passed", numbers=numbers)
    limit = "data.max_train_rows=null" if recipe.data.max_train_rows else None
    unused = not all(small.values()) and recipe.task.labels
    change = limit or ("task.labels=[THOSE, THAT, OCCUR]" if unused else data_line(recipe))
    details = {"labels": list(small.items())[:SHOWN]}
    return Check("small_classes", "data", "look", Kind.CLASSES_TOO_SMALL, numbers, change, details=details)


def _label_distribution(rows: Rows, recipe: Recipe) -> Check:
    """One answer for almost all rows, or other fractions of labels on test than in training."""
    train, test = (Counter(example.answer for example in rows.examples[split]) for split in ("train", "test"))
    label, count = train.most_common(1)[0]
    labels = sorted(train.keys() | test.keys())
    distance = {name: abs(train[name] / train.total() - test[name] / max(1, test.total())) for name in labels}
    fraction, drift = count / train.total(), 0.5 * sum(distance.values())
    numbers = {"commonest": label, "share": round(fraction, 4), "drift": round(drift, 4)}
    name, area = "label_distribution", "data"
    if len(labels) == 1:
        return Check(name, area, "fail", Kind.SINGLE_LABEL, numbers, "data.columns={label: ANOTHER_COLUMN}")
    if fraction >= UNBALANCED and recipe.task.metric in (None, "accuracy"):
        return Check(name, area, "look", Kind.LABELS_UNBALANCED, numbers, "task.metric=macro_f1")
    if drift > LABEL_SHIFT and _differ(train, test, labels):
        far = max(labels, key=distance.get)
        details = {"label": far, "train": train[far] / train.total(), "test": test[far] / test.total()}
        change = data_line(recipe, "test")
        return Check(name, area, "look", Kind.LABELS_SHIFTED, numbers, change, details=details)
    return Check(name, area, "passed", numbers=numbers)


def _differ(first: Counter[str], second: Counter[str], labels: Sequence[str]) -> bool:
    """Whether two samples of labels come from different distributions (chi-square test)."""
    from scipy.stats import chi2_contingency

    if len(labels) < 2 or not second:
        return False
    table = [[counts[name] for name in labels] for counts in (first, second)]
    return chi2_contingency(table).pvalue < LABEL_SHIFT_P


def _look_alikes(rows: Rows, recipe: Recipe) -> Check | None:
    """Labels or entity types that look the same and are learned as different ones."""
    if recipe.task.type == "qa":
        return None
    examples = chain.from_iterable(rows.examples[split] for split in SPLITS)
    counts = Counter(dict.fromkeys(rows.labels or [], 0))
    if recipe.task.type == "ner":
        counts.update(kind for e in examples for kind, _ in entities_from_answer(e.answer) or [])
    else:
        counts.update(example.answer for example in examples)
    groups = look_alikes(counts)
    mapping = {label: group[0] for group in groups for label in group[1:]}
    numbers = {"groups": [{label: counts[label] for label in group} for group in groups], "mapping": mapping}
    if not groups:
        return Check("label_spellings", "data", "passed", numbers=numbers)
    return Check("label_spellings", "data", "look", Kind.LABELS_ALIKE, numbers, data_line(recipe))


# --- answers from the prompt ---


def _surfaces(rows: Rows, recipe: Recipe) -> Check | None:
    """Entities, or answers out of a passage, that the prompt does not hold: a model cannot copy them."""
    task = recipe.task.type
    if task == "classification" or rows.choice:
        return None
    total, missing, shown = 0, 0, []
    for example in (e for split in SPLITS for e in rows.examples[split]):
        prompt = normalize_surface(prompt_text(example.prompt))
        for spellings in _expected(example, task):
            total += 1
            if not any(normalize_surface(spelling) in prompt for spelling in spellings):
                missing += 1
                shown += [(example.split, example.id, spellings[0])] if missing <= SHOWN else []
    name, unit = ("entities", "entities") if task == "ner" else ("spans", "answers")
    numbers = {unit: total, "not_found": missing}
    if not missing or (task == "qa" and missing > FREE_ANSWERS * total):
        return Check(name, "data", "passed", numbers=numbers, details={"total": total})
    kind = Kind.ENTITY_NOT_IN_PROMPT if task == "ner" else Kind.ANSWER_NOT_IN_PROMPT
    details = {"total": total, "examples": [(row, surface) for _, row, surface in shown]}
    return Check(name, "data", "look", kind, numbers, data_line(recipe, shown[0][0]), details=details)


def _cut_words(rows: Rows, recipe: Recipe) -> Check | None:
    """Entities that stand in their prompts only inside words: offsets count otherwise, or an annotation slipped."""
    if recipe.task.type != "ner":
        return None
    total, cut, shown = 0, 0, []
    for example in (e for split in SPLITS for e in rows.examples[split]):
        prompt = normalize_surface(prompt_text(example.prompt))
        for _, surface in entities_from_answer(example.answer) or []:
            total += 1
            surface = normalize_surface(surface)
            if surface in prompt and not stands_whole(surface, prompt):
                cut += 1
                shown += [(example.split, example.id, surface)] if cut <= SHOWN else []
    numbers = {"entities": total, "cut": cut}
    if cut <= CUT_WORDS * total:
        return Check("entity_boundaries", "data", "passed", numbers=numbers)
    details = {"examples": [(row, surface) for _, row, surface in shown]}
    change = data_line(recipe, shown[0][0])
    return Check("entity_boundaries", "data", "look", Kind.ENTITIES_CUT_WORDS, numbers, change, details=details)


def _expected(example: Example, task: str) -> Iterator[Sequence[str]]:
    """What the prompt must hold, each with all its accepted spellings."""
    if task == "ner":
        yield from ([surface] for _, surface in entities_from_answer(example.answer) or [])
    else:
        yield example.answers


# --- languages ---


def _languages(texts: Texts, rows: Rows, recipe: Recipe) -> Check:
    """The language that the texts show, against that of the recipe or the rows."""
    fractions = {split: language_fractions(in_split) for split, in_split in texts.items()}
    given = Counter(base_language(e.language) for split in SPLITS for e in rows.examples[split])
    main, codes = main_language(texts["train"][:500]), {code for code in given if code}
    guessed = {
        split: {code: round(fraction, 3) for code, fraction in by_code.items()} for split, by_code in fractions.items()
    }
    numbers = {
        "guessed": guessed,
        "main": main,
        "told": {code or "unknown": count for code, count in given.items()},
    }
    if main and not codes and main != "en":
        return Check("languages", "data", "look", Kind.LANGUAGE_NOT_SET, numbers, f"task.language={main}")
    by_row = len(codes) > 1 or (recipe.task.language is None and bool(codes))
    if main and not by_row and codes and main not in codes:
        details = {"given": recipe.task.language}
        change = f"task.language={main}"
        return Check("languages", "data", "look", Kind.LANGUAGE_DIFFERS, numbers, change, details=details)
    for code, fraction in fractions["test"].items():
        trained = fractions["train"].get(code, 0.0)
        if fraction >= 0.2 and len(texts["test"]) >= 20 and trained < fraction / 4:
            details = {"language": code, "test": fraction, "train": trained}
            change = data_line(recipe, "train")
            return Check("languages", "data", "look", Kind.LANGUAGE_NOT_TRAINED, numbers, change, details=details)
    details = {"train": fractions["train"], "mixed": main is None and bool(fractions["train"]) and not by_row}
    return Check("languages", "data", "passed", numbers=numbers, details=details)


def _texts_by_split(rows: Rows) -> Texts:
    cuts = shared_parts(Joined(*(rows.examples[split] for split in SPLITS)))
    return {split: Mapped(rows.examples[split], lambda _, row: distinct_text(row, cuts)) for split in SPLITS}
