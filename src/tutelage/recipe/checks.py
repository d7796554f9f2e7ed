"""Checks across the fields of a recipe: values that are valid by themselves and cannot be combined."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from tutelage.method.methods import find_method, method_names, split_variant
from tutelage.recipe.arguments import LIMITS, argument_problem
from tutelage.recipe.renamed import REMOVED_METHODS, method_removal_text, new_name
from tutelage.recipe.schema import Recipe, known_metrics
from tutelage.recipe.values import shown
from tutelage.records import SPLITS

STAGE_FOLDERS = (
    *("prepare", "teach", "silver", "anchor", "cache", "cross_fit", "teacher_answers", "distill", "evaluate"),
    *("baseline", "diagnose", "report"),
)
"""Folders in a run folder that stages write, and rebuild where they are stale."""
_MODELS = ("teacher", "student", "anchor")
_TRAINED = ("teach", "anchor", "distill")
"""Sections that have a `trainer`."""
LONGEST_NAME = 200
"""Bytes of the settings in a method's name. File systems take 255 for the name of a folder."""
MOST_STAGES = 1000
"""Stage k of a student with seed s is trained with the seed 1000 s + k: with more stages seeds would overlap."""
LARGEST_SEED = 2**32 - 1 - MOST_STAGES
"""Of teacher and anchor: numpy takes seeds below 2^32, and `compare --teacher-seeds` counts on from the first."""
LARGEST_STUDENT_SEED = LARGEST_SEED // MOST_STAGES


class Conflict(NamedTuple):
    """Values that are valid by themselves but cannot be combined."""

    key: str
    """Dotted key that is best changed."""
    text: str
    also: tuple[str, ...] = ()
    """Other dotted keys involved. While one of them has an invalid value, this conflict is not reported."""


def check(recipe: Recipe) -> list[str]:
    """Conflicts between values that are valid by themselves, as `key: conflict, and what to do`."""
    return [f"{problem.key}: {problem.text}" for problem in cross_problems(recipe)]


def cross_problems(recipe: Recipe) -> Iterator[Conflict]:
    """The conflicts that `check` reports, with the keys that each depends on."""
    yield from _folder_problems(recipe)
    yield from _task_problems(recipe)
    yield from _method_problems(recipe)
    yield from _given_model_problems(recipe)
    yield from _placement_problems(recipe)
    for section in ("", *_TRAINED):
        mapping = f"{section}.trainer".lstrip(".")
        for name, value in (getattr(recipe, section) if section else recipe).trainer.items():
            if text := argument_problem(mapping, name, value):
                yield Conflict(f"{mapping}.{name}", text)


def _folder_problems(recipe: Recipe) -> Iterator[Conflict]:
    if not all(part.strip(". ") for part in recipe.name.split("/")):
        yield Conflict("name", f"{shown(recipe.name)} is no name for a folder; write letters, digits, - and _")
    own = [Path(recipe.output_dir).resolve() / name for name in STAGE_FOLDERS]
    given = {
        "data.dataset": recipe.data.dataset,
        **{f"data.{split}": getattr(recipe.data, split) for split in (*SPLITS, "unlabelled")},
        "teach.checkpoints": recipe.teach.checkpoints,
        **{f"{role}.model_name_or_path": getattr(recipe, role).model_name_or_path for role in _MODELS},
    }
    for key, value in given.items():
        for path in [value] if isinstance(value, str) else value or ():
            if os.path.lexists(path) and any(Path(path).resolve().is_relative_to(folder) for folder in own):
                hint = (
                    f"{path} ({key}) lies in a folder of the run, which --force deletes; move it, or change output_dir"
                )
                yield Conflict("output_dir", hint, (key,))


def _task_problems(recipe: Recipe) -> Iterator[Conflict]:
    task, data = recipe.task, recipe.data
    if not (data.dataset or data.train):
        hint = "no training rows; set data.dataset (a folder or Hub id) or data.train (one or more files)"
        yield Conflict("data.dataset", hint, ("data.train",))
    if data.unlabelled_split and not data.dataset:
        hint = "names a split of data.dataset, which is not set; write data.unlabelled: FILE"
        yield Conflict("data.unlabelled_split", hint, ("data.dataset",))
    if data.unlabelled and data.unlabelled_split:
        yield Conflict("data.unlabelled_split", "data.unlabelled names files; leave out one of the two")
    if recipe.silver.min_confidence and not data.has_unlabelled:
        hint = "has no effect without unlabelled rows; set data.unlabelled, or leave it out"
        yield Conflict("silver.min_confidence", hint, ("data.unlabelled",))
    if data.system is not None and not data.chat_template:
        hint = (
            "a system message needs a chat prompt; set data.chat_template: true, or write the text into data.template"
        )
        yield Conflict("data.system", hint, ("data.chat_template",))
    if task.decoding == "labels" and task.type == "ner":
        hint = "`labels` chooses one answer of a closed set, and ner has none; write generate"
        yield Conflict("task.decoding", hint, ("task.type",))
    if task.verbalizers and task.type == "ner":
        hint = "short forms are for labels that are the whole answer, and ner has types and texts; leave it out"
        yield Conflict("task.verbalizers", hint, ("task.type",))
    for hint in _form_mistakes(task.verbalizers):
        yield Conflict("task.verbalizers", hint)
    if task.metric is not None:
        known = tuple(dict.fromkeys(known_metrics(task.type)))
        if task.metric not in known:
            hint = f"{task.type} has no metric {task.metric!r}; {_one_of(task.metric, known)}"
            yield Conflict("task.metric", hint, ("task.type",))


def _form_mistakes(forms: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with short forms whatever the labels are."""
    for label, form in forms.items():
        if not form or form != form.strip() or len(form.splitlines()) > 1:
            yield f"the short form {form!r} of {label!r} must be one line of text without spaces around it"
    for form, count in Counter(forms.values()).items():
        if count > 1:
            sharing = ", ".join(repr(label) for label, own in forms.items() if own == form)
            yield f"{sharing} have the same short form {form!r}; give each label one of its own"


def _method_problems(recipe: Recipe) -> Iterator[Conflict]:
    for key, values in {"distill.methods": recipe.distill.methods, "distill.seeds": recipe.distill.seeds}.items():
        if not values:
            yield Conflict(key, f"empty; leave it out for {type(recipe.distill).model_fields[key[8:]].default}")
        for value in dict.fromkeys(v for v in values if values.count(v) > 1):
            yield Conflict(key, f"{value} is listed {values.count(value)} times; write it once")
    for name in dict.fromkeys(recipe.distill.methods):
        base, _ = split_variant(name)
        if base not in method_names():
            yield Conflict("distill.methods", _unknown_method(base))
            continue
        for mistake in find_method(base).mistakes():
            yield Conflict("distill.methods", f"{base} cannot work: {mistake}")
    if (base := split_variant(recipe.tune.method)[0]) not in method_names():
        yield Conflict("tune.method", _unknown_method(base))
    elif find_method(recipe.tune.method).needs_anchor or find_method(recipe.tune.method).needs_cross_fit:
        yield Conflict(
            "tune.method",
            f"{recipe.tune.method} computes weights from the anchor, which is trained with the learning rate that is"
            " to be found; write td, or another method with constant weights",
        )
    most = LIMITS["learning_rate"]["le"]
    if not recipe.tune.grid or not 0 < min(recipe.tune.grid) <= max(recipe.tune.grid) <= most:
        text = f"found {shown(recipe.tune.grid)}, want learning rates above 0 and of at most {most}"
        yield Conflict("tune.grid", f"{text}, e.g. [2.0e-5, 1.0e-4]")
    yield from _weighting_problems(recipe)
    teacher_seeds = [recipe.teach.seed] if recipe.teach.seed is not None else []
    seeds_by_key = {"seed": [recipe.seed], "teach.seed": teacher_seeds, "distill.seeds": recipe.distill.seeds}
    for key, seeds in seeds_by_key.items():
        for seed in seeds:
            largest = LARGEST_STUDENT_SEED if key == "distill.seeds" else LARGEST_SEED
            if not 0 <= seed <= largest:
                yield Conflict(key, f"{seed} is not a valid seed; write a number from 0 to {largest}")


def _unknown_method(name: str) -> str:
    if name in REMOVED_METHODS:
        return method_removal_text(name)
    return f"no method is called {name!r}; {_one_of(name, method_names())}"


def _weighting_problems(recipe: Recipe) -> Iterator[Conflict]:
    known = [find_method(name) for name in recipe.distill.methods if split_variant(name)[0] in method_names()]
    if recipe.teach.checkpoints and recipe.cross_fit.teacher and any(method.needs_cross_fit for method in known):
        hint = (
            "your own teacher cannot be trained on folds, because its training settings are not known; write"
            " cross_fit.teacher: false (then only the student's losses are out-of-fold)"
        )
        yield Conflict("cross_fit.teacher", hint, ("teach.checkpoints", "distill.methods"))


def name_problems(settings: Sequence[str]) -> Iterator[str]:
    """Problems of settings that are to be in the name of a method, which is also that of a folder."""
    keys = [setting.partition("=")[0] for setting in settings]
    for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
        yield f"{key} is set {keys.count(key)} times; set it once"
    for text in settings:
        if "/" in text or not text.isprintable():
            yield f"{text!r}: the name of a variant is the name of a folder: no `/`, no line breaks"
    if (size := len("+".join(settings).encode(errors="replace"))) > LONGEST_NAME:
        yield f"{size} bytes of settings are too long for the name of a folder; set them in `distill`"


def method_problems(recipe: Recipe, method: str, settings: Sequence[str]) -> Iterator[str]:
    """Problems of settings in the name of a known method. recipe: with these settings. settings: `key=value`."""
    components = find_method(method)
    for setting in settings:
        key = setting.partition("=")[0]
        if not components.reads(new_name(f"distill.{key}").removeprefix("distill.")):
            yield f"{key} has no effect on {method}: it would be the same student under another name; leave it out"


def budget(recipe: Recipe) -> dict[str, float]:
    """What decides how many steps a student is trained for, and on how many rows each."""
    distill, given = recipe.distill, {"gradient_accumulation_steps": 1} | recipe.trainer_arguments("distill")
    rows = {name: given[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    return {"epochs in total": round(distill.num_stages * distill.epochs_per_stage, 9), **rows}


def _given_model_problems(recipe: Recipe) -> Iterator[Conflict]:
    if recipe.teach.checkpoints is not None and not recipe.teach.checkpoints:
        yield Conflict("teach.checkpoints", "lists no checkpoint; name a folder, or leave it out to train the teacher")
    checkpoints, anchor = recipe.teach.checkpoints, recipe.anchor
    without_effect = {
        "teach.trainer": (recipe.teach.trainer, "teach.checkpoints", checkpoints),
        "anchor.keep": (anchor.keep == "score", "anchor.model_name_or_path", anchor.model_name_or_path),
        "anchor.trainer": (anchor.trainer, "anchor.model_name_or_path", anchor.model_name_or_path),
    }
    for without, (is_set, key, value) in without_effect.items():
        if value and is_set:
            unset = "loss" if without == "anchor.keep" else "{}"
            hint = (
                f"has no effect: nothing is trained, because {key} gives your own model; delete {without} from the"
                f" recipe, or add `{without}={unset}` to the command"
            )
            yield Conflict(without, hint, (key,))


def _placement_problems(recipe: Recipe) -> Iterator[Conflict]:
    """Only a teacher is too large to be held as it is; and 4 or 8 bits are too few for the steps of an optimizer."""
    for name in ("quantization", "device_map"):
        if value := getattr(recipe.student, name):
            hint = f"{value} is for teachers: a student is trained whole, and handed over as it is; leave it out"
            yield Conflict(f"student.{name}", hint)
    teacher = recipe.teacher
    if teacher.quantization and not (teacher.lora or recipe.teach.checkpoints):
        hint = (
            f"weights in {teacher.quantization[0]} bits cannot be trained, only adapters on them: write"
            " teacher.lora={} (QLoRA), or give finished checkpoints in teach.checkpoints"
        )
        yield Conflict("teacher.quantization", hint, ("teacher.lora", "teach.checkpoints"))


def _one_of(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"Available: {', '.join(known)}"
