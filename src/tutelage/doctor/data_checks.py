"""Checks of the rows themselves: too few, almost the same in two splits, contradicting, lopsided, in another
language."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tutelage.data.dataset import Rows
from tutelage.data.languages import language_shares, main_language
from tutelage.data.near_duplicates import ALIKE, near_pairs
from tutelage.doctor.checks import Check
from tutelage.doctor.row_checks import SPLITS, data_line, normalised, own_texts, prompt_text
from tutelage.recipe.schema import Recipe
from tutelage.records import Example
from tutelage.tasks.metrics import base_language, normalize_surface
from tutelage.tasks.ner import entities_from_answer

FEW_TRAINING_ROWS = 100
FEW_JUDGING_ROWS = 50
"""Validation or test rows below which a score of 0.8 is uncertain by more than 11 points (95 % interval)."""
SMALL_CLASS = 5
"""Training rows below which a class is hardly learned."""
LOPSIDED = 0.7
"""Share of the commonest answer above which accuracy says little."""
NEAR_SHARE, NEAR_ROWS = 0.01, 1
"""Share of a split's rows, and how many of them, that may almost be training rows before it is worth a look."""
SHOWN = 3
WORDS = {"train": "training", "validation": "validation", "test": "test"}


def check_data(rows: Rows, recipe: Recipe) -> list[Check]:
    """All checks of the rows."""
    texts = dict(_by_split(rows))
    checks = [_sizes(rows, recipe), _near_leaks(rows, texts, recipe), _contradictions(rows, texts, recipe)]
    if recipe.task.type == "classification" or rows.choice:
        checks += [_small_classes(rows, recipe), _label_shares(rows, recipe)]
    checks += [_surfaces(rows, recipe), _languages(texts, rows, recipe)]
    return [check for check in checks if check]


def _by_split(rows: Rows) -> list[tuple[str, list[str]]]:
    """Each row's own text: stripped of what all prompts share."""
    everything = [example for split in SPLITS for example in rows.examples[split]]
    texts = iter(own_texts(everything))
    return [(split, [next(texts) for _ in rows.examples[split]]) for split in SPLITS]


def _sizes(rows: Rows, recipe: Recipe) -> Check:
    counts = {split: len(rows.examples[split]) for split in SPLITS}
    least = {"train": FEW_TRAINING_ROWS, "validation": FEW_JUDGING_ROWS, "test": FEW_JUDGING_ROWS}
    few = [split for split in SPLITS if counts[split] < least[split]]
    width = {split: 100 * 1.96 * math.sqrt(0.16 / max(1, counts[split])) for split in SPLITS[1:]}
    numbers = {"rows": counts, "uncertainty_points": {split: round(points, 1) for split, points in width.items()}}
    if not few:
        text = f"enough rows: on validation a score of 0.8 is uncertain by {width['validation']:.0f} points, on test by"
        return Check("sizes", "data", "passed", f"{text} {width['test']:.0f}", numbers)
    uses = {
        "train": "a student that has seen so few learns them by heart",
        "validation": f"the best models are chosen by them, and a score of 0.8 is uncertain by {width['validation']:.0f} points",
        "test": f"a score of 0.8 on them is uncertain by {width['test']:.0f} points, so methods cannot be told apart",
    }
    text = "; ".join(f"{counts[split]:,} {WORDS[split]} rows: {uses[split]}" for split in few)
    limited = next((f"data.max_{split}_rows=null" for split in few if getattr(recipe.data, f"max_{split}_rows")), None)
    share = _larger_share(rows, counts) if few == ["validation"] else None
    change = limited or share or data_line(recipe, few[0]).replace("MENDED", "LARGER")
    return Check("sizes", "data", "look", f"{text}. {'Hold out' if share else 'Get'} more rows", numbers, change)


def _larger_share(rows: Rows, counts: dict[str, int]) -> str | None:
    """The line that holds out enough rows to choose by, if enough stay to learn from; None where validation rows were
    given."""
    total = counts["train"] + counts["validation"]
    wanted = math.ceil(100 * FEW_JUDGING_ROWS / total) / 100
    held_out = any("held out" in note for note in rows.notes)
    return f"data.validation_fraction={wanted:g}" if held_out and (1 - wanted) * total >= FEW_TRAINING_ROWS else None


def _near_leaks(rows: Rows, texts: dict[str, list[str]], recipe: Recipe) -> Check:
    """Rows of a split that are almost rows of an earlier one."""
    folded = {split: [normalised(text) for text in own] for split, own in texts.items()}
    numbers, shown, worst, bad = {}, [], 0.0, None
    for earlier, later in (("train", "test"), ("train", "validation"), ("validation", "test")):
        pairs = near_pairs(folded[earlier], folded[later])
        numbers[f"{later}_near_{earlier}"] = len(pairs)
        share = len(pairs) / max(1, len(texts[later]))
        if share > NEAR_SHARE and len(pairs) > NEAR_ROWS:
            worst, bad = max(worst, share), bad or later
            late, early, alike = pairs[0]
            found = f"{rows.examples[later][late].id} = {rows.examples[earlier][early].id}"
            shown.append(
                f"{len(pairs):,} of {len(texts[later]):,} {later} rows ({share:.0%}) are almost {WORDS[earlier]} rows, e.g. {found}"
                f" ({alike:.0%} alike): {_cut(texts[later][late])!r} and {_cut(texts[earlier][early])!r}"
            )
    if not shown:
        count = sum(numbers.values())
        text = f"{'no' if not count else f'only {count:,}'} rows of one split are almost rows of another"
        return Check("near leaks", "data", "passed", f"{text} (character shingles, {ALIKE:.0%} alike)", numbers)
    text = "\n".join(
        [*shown, "A model that has them by heart looks better than it is: split by source, or take them out"]
    )
    return Check("near leaks", "data", "look", text, numbers | {"share": round(worst, 4)}, data_line(recipe, bad))


def _contradictions(rows: Rows, texts: dict[str, list[str]], recipe: Recipe) -> Check:
    """Equal prompts with different answers, split by split."""
    numbers, shown, bad = {}, [], None
    for split in SPLITS:
        groups: dict[str, list[Example]] = {}
        own = {example.id: text for example, text in zip(rows.examples[split], texts[split], strict=True)}
        for example in rows.examples[split]:
            groups.setdefault(normalised(prompt_text(example.prompt)), []).append(example)
        twice = [group for group in groups.values() if len(group) > 1]
        torn = [group for group in twice if not set.intersection(*({normalised(a) for a in e.answers} for e in group))]
        numbers[split] = {"repeated": sum(len(group) - 1 for group in twice), "contradicting": sum(map(len, torn))}
        bad = bad or (split if torn else None)
        for group in torn[: SHOWN - len(shown)]:
            one, other = group[0], next(e for e in group if normalised(e.answer) != normalised(group[0].answer))
            said = f"{one.id} says {_cut(one.answer)!r}, {other.id} says {_cut(other.answer)!r}"
            shown.append(f"{_cut(own[one.id])!r}: {said}")
    total = sum(entry["contradicting"] for entry in numbers.values())
    repeated = sum(entry["repeated"] for entry in numbers.values())
    if not total:
        again = f"; {repeated:,} rows are there again with the same answer" if repeated else ""
        return Check("contradictions", "data", "passed", f"no prompt has two different answers{again}", numbers)
    text = (
        f"{total:,} rows have the prompt of another one and a different answer ({'; '.join(shown)}): no model can be right on all"
        " of them. Correct them, or leave them out"
    )
    return Check("contradictions", "data", "look", text, numbers, data_line(recipe, bad))


def _counts(examples: Sequence[Example]) -> Counter[str]:
    return Counter(example.answer for example in examples)


def _small_classes(rows: Rows, recipe: Recipe) -> Check:
    counts = _counts(rows.examples["train"])
    small = {label: counts[label] for label in rows.labels or [] if counts[label] < SMALL_CLASS}
    numbers = {"classes": len(rows.labels or []), "smallest": min(counts.values(), default=0), "small": len(small)}
    if not small:
        text = f"each of {numbers['classes']} classes has at least {SMALL_CLASS} training rows (the smallest {numbers['smallest']})"
        return Check("small classes", "data", "passed", text, numbers)
    listed = ", ".join(f"{label!r} ({count})" for label, count in list(small.items())[:SHOWN])
    none = [label for label, count in small.items() if not count]
    text = (
        f"{len(small)} of {numbers['classes']} classes have fewer than {SMALL_CLASS} training rows: {listed}"
        f"{', ...' if len(small) > SHOWN else ''}. They will hardly be learned: get more rows, or join them with others"
    )
    limit = "data.max_train_rows=null" if recipe.data.max_train_rows else None
    listed_only = "task.labels=[THOSE, THAT, OCCUR]" if none and recipe.task.labels else None
    return Check("small classes", "data", "look", text, numbers, limit or listed_only or data_line(recipe))


def _label_shares(rows: Rows, recipe: Recipe) -> Check:
    """One answer for almost all rows; or other shares on test than in training."""
    train, test = _counts(rows.examples["train"]), _counts(rows.examples["test"])
    label, count = train.most_common(1)[0]
    share = count / train.total()
    labels = sorted(train.keys() | test.keys())
    drift = 0.5 * sum(abs(train[name] / train.total() - test[name] / max(1, test.total())) for name in labels)
    numbers = {"commonest": label, "share": round(share, 4), "drift": round(drift, 4)}
    if len(labels) == 1:
        text = f"all rows have the one answer {label!r}, so there is nothing to learn: is another column the label?"
        return Check("label shares", "data", "fail", text, numbers, "data.columns={label: ANOTHER_COLUMN}")
    if share >= LOPSIDED and recipe.task.metric in (None, "accuracy"):
        text = (
            f"{share:.0%} of the training rows are {label!r}: a model that always says so has that accuracy, so accuracy tells"
            " little, and choices made by it tell little too"
        )
        return Check("label shares", "data", "look", text, numbers, "task.metric=macro_f1")
    if drift > 0.1 and _unlikely(train, test, labels):
        far = max(labels, key=lambda name: abs(train[name] / train.total() - test[name] / test.total()))
        text = (
            f"training and test rows hold the labels in different shares (e.g. {far!r}: {train[far] / train.total():.0%} and"
            f" {test[far] / test.total():.0%}; {drift:.0%} of the mass lies elsewhere, more than chance would do): they were not"
            " drawn alike, so a score on test is not what training aims at"
        )
        return Check("label shares", "data", "look", text, numbers, data_line(recipe, "test"))
    return Check(
        "label shares",
        "data",
        "passed",
        f"the commonest answer is {label!r}, {share:.0%} of the training rows",
        numbers,
    )


def _unlikely(one: Counter[str], other: Counter[str], labels: Sequence[str]) -> bool:
    """Whether two samples of labels can hardly come from one distribution (chi-square, p < 0.0001)."""
    from scipy.stats import chi2_contingency

    return (
        len(labels) > 1
        and bool(other)
        and chi2_contingency([[c[name] for name in labels] for c in (one, other)]).pvalue < 1e-4
    )


def _surfaces(rows: Rows, recipe: Recipe) -> Check | None:
    """Entities, or answers out of a passage, that the prompt does not hold: a model cannot copy them."""
    asked = recipe.task.type
    if asked == "classification" or rows.choice:
        return None
    total, lost, shown, bad = 0, 0, [], None
    for example in (e for split in SPLITS for e in rows.examples[split]):
        prompt = normalize_surface(prompt_text(example.prompt))
        wanted = [s for _, s in entities_from_answer(example.answer) or []] if asked == "ner" else [example.answers]
        for surface in wanted:
            options = [surface] if isinstance(surface, str) else surface
            total += 1
            if not any(normalize_surface(option) in prompt for option in options):
                lost, bad = lost + 1, bad or example.split
                shown.append(f"{_cut(options[0])!r} in {example.id}")
    what = "entities" if asked == "ner" else "answers"
    numbers = {what: total, "not_found": lost}
    if not lost or (asked == "qa" and lost > 0.2 * total):  # free answers need not be spans
        found = (
            f"all {total:,} {what} stand in their prompts"
            if not lost
            else f"{total - lost:,} of {total:,} answers are spans"
        )
        return Check("entities" if asked == "ner" else "spans", "data", "passed", found, numbers)
    text = (
        f"{lost:,} of {total:,} {what} are not in the prompt as they are written ({'; '.join(shown[:SHOWN])}): the model is asked"
        " to write what it cannot read. Correct them, or leave them out"
    )
    return Check("entities" if asked == "ner" else "spans", "data", "look", text, numbers, data_line(recipe, bad))


def _languages(texts: dict[str, list[str]], rows: Rows, recipe: Recipe) -> Check:
    """What the texts seem to be in, against what task or rows say."""
    shares = {split: language_shares(own) for split, own in texts.items()}
    told = Counter(base_language(e.language) for split in SPLITS for e in rows.examples[split])
    main = main_language(texts["train"][:500])
    numbers = {
        "guessed": {split: {k: round(v, 3) for k, v in own.items()} for split, own in shares.items()},
        "main": main,
    }
    numbers["told"] = {code or "unknown": count for code, count in told.items()}
    told_codes = {code for code in told if code}
    if main and not told_codes and main != "en":
        text = f"the texts look like {main!r}, and the recipe does not say so: prompts and comparison of answers are those of English"
        return Check("languages", "data", "look", text, numbers, f"task.language={main}")
    by_row = len(told_codes) > 1 or (recipe.task.language is None and bool(told_codes))
    if main and not by_row and told_codes and main not in told_codes:
        text = f"task.language is {recipe.task.language!r}, and the texts look like {main!r}"
        return Check("languages", "data", "look", text, numbers, f"task.language={main}")
    train, test = shares["train"], shares["test"]
    for code, share in test.items():
        if share >= 0.2 and len(texts["test"]) >= 20 and train.get(code, 0.0) < share / 4:
            seen = train.get(code, 0.0)
            text = f"{share:.0%} of the test rows look like {code!r}, {seen:.0%} of the training rows do: get such rows"
            return Check("languages", "data", "look", text, numbers, data_line(recipe, "train"))
    listed = (
        ", ".join(f"{code} {share:.0%}" for code, share in train.items() if share >= 0.05)
        or "not to be told from these texts"
    )
    mixed = "; a column `language` would say it row by row" if main is None and shares["train"] and not by_row else ""
    return Check("languages", "data", "passed", f"training texts look like: {listed}{mixed}", numbers)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
