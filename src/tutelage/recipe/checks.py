"""Messages about wrong values in a recipe, and checks across fields.

Also covers the training arguments: which are refused, and the names and types of the others. Those are read from the
source of transformers, so that a typo is reported without importing it.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from tutelage.errors import ConfigError
from tutelage.method.methods import find_method, method_names, split_variant
from tutelage.recipe.renamed import REMOVED_METHODS, method_removal_text, new_name
from tutelage.recipe.schema import Recipe, Section, known_metrics
from tutelage.recipe.yaml_source import NUMBERS, shown
from tutelage.records import SPLITS

RESERVED = {
    "output_dir": "every stage writes into the run folder: set the recipe's own `output_dir`",
    "seed": "set the recipe's `seed`, or `distill.seeds` for the students",
    "data_seed": "set the recipe's `seed`, or `distill.seeds` for the students",
    "max_steps": "set `distill.num_stages` and `distill.epochs_per_stage`, or `teach.trainer.num_train_epochs`",
    "auto_find_batch_size": "every method gets the same steps: set `per_device_train_batch_size`",
    "dataloader_drop_last": "every training row is used; leave it out",
    "remove_unused_columns": "the rows hold only what the model needs; leave it out",
    "label_smoothing_factor": "the loss has no label smoothing; leave it out",
    "resume_from_checkpoint": "the same command resumes an interrupted run; leave it out",
    "per_device_eval_batch_size": "set `evaluate.batch_size`",
    "load_best_model_at_end": "set `distill.keep`, and `teach.best_by` for the teacher",
    "metric_for_best_model": "set `task.metric`, `teach.best_by` and `distill.select_by`",
    "greater_is_better": "set `task.metric`, `teach.best_by` and `distill.select_by`",
    "push_to_hub": "upload the finished student with `tutelage push RUN OWNER/NAME`",
    "hub_*": "upload the finished student with `tutelage push RUN OWNER/NAME`",
    "disable_tqdm": "tutelage shows the progress; leave it out",
    "log_level": "tutelage decides what is printed; leave it out",
    "save_*": "set `teach.num_checkpoints` for the teacher, `distill.save_steps` for resume checkpoints of the student",
    "eval_*": "validation runs after each stage and for each teacher checkpoint; leave it out",
    "do_*": "each stage is a separate command; leave it out",
    "evaluation_strategy": "validation runs after each stage and for each teacher checkpoint; leave it out",
    "warmup_ratio": "write warmup_steps: 0.1 (a value below 1 is a fraction of the steps)",
    "group_by_length": "write train_sampling_strategy: group_by_length",
    "no_cuda": "write use_cpu: true",
}
"""Training arguments (names or patterns) that the library sets itself or that have another name now, and what to use
instead."""

STAGE_FOLDERS = (
    *("prepare", "teach", "anchor", "cache", "cross_fit", "teacher_answers", "distill", "evaluate", "diagnose"),
    "report",
)
"""Folders in a run folder that stages write, and rebuild where they are stale."""
_MODELS = ("teacher", "student", "anchor")
_TRAINED = ("teach", "anchor", "distill")
"""Sections that have a `trainer`."""


class Conflict(NamedTuple):
    """Values that are valid by themselves but cannot be combined."""

    key: str
    """Dotted key that is best changed."""
    text: str
    also: tuple[str, ...] = ()
    """Other dotted keys involved. While one of them has an invalid value, this conflict is not reported."""


# --- messages about single values ---


def wrong(info: FieldInfo, value: Any) -> str:
    """The message about a value that its field does not accept."""
    wanted = _wanted(info.annotation, info.metadata)
    hint = ""
    if near := get_close_matches(value, _choices(info.annotation), 1) if isinstance(value, str) else []:
        hint = f"; did you mean {near[0]}?"
    elif "text" in wanted:
        hint = "; put text in quotes that YAML does not read as text (yes, no, null, 12, {x})"
    elif isinstance(value, str) and any(pattern.match(value) for pattern in NUMBERS.values()):
        hint = "; write it without quotes"
    return f"found {shown(value)}, want {wanted}{hint}"


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


def _wanted(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words: "a whole number above 0 or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a mapping of {', '.join(annotation.model_fields)}"
    if origin is list:
        return f"a list (of {_wanted(inner[0])})"
    if origin is dict:
        return "a mapping of text to text" if inner[1] is str else "a mapping"
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(inner)
    if inner:
        return " or ".join(_wanted(part, metadata if part is not NoneType else ()) for part in inner)
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    bounds = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    limits = [f"{word} {getattr(m, name)}" for m in metadata for name, word in bounds.items() if hasattr(m, name)]
    return f"{words[annotation]} {' and '.join(limits)}".strip()


# --- checks across fields ---


def check(recipe: Recipe) -> list[str]:
    """Conflicts between values that are valid by themselves, as `key: conflict, and what to do`."""
    return [f"{problem.key}: {problem.text}" for problem in cross_problems(recipe)]


def cross_problems(recipe: Recipe) -> Iterator[Conflict]:
    """The conflicts that `check` reports, with the keys that each depends on."""
    yield from _folder_problems(recipe)
    yield from _task_problems(recipe)
    yield from _method_problems(recipe)
    yield from _given_model_problems(recipe)
    for section in ("", *_TRAINED):
        mapping = f"{section}.trainer".lstrip(".")
        for name, value in (getattr(recipe, section) if section else recipe).trainer.items():
            if text := _trainer_problem(mapping, name, value):
                yield Conflict(f"{mapping}.{name}", text)


def _folder_problems(recipe: Recipe) -> Iterator[Conflict]:
    if not all(part.strip(". ") for part in recipe.name.split("/")):
        yield Conflict("name", f"{shown(recipe.name)} is no name for a folder; write letters, digits, - and _")
    own = [Path(recipe.output_dir).resolve() / name for name in STAGE_FOLDERS]
    given = {
        "data.dataset": recipe.data.dataset,
        **{f"data.{split}": getattr(recipe.data, split) for split in SPLITS},
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
    if data.system is not None and not data.chat_template:
        hint = (
            "a system message needs a chat prompt; set data.chat_template: true, or write the text into data.template"
        )
        yield Conflict("data.system", hint, ("data.chat_template",))
    if task.decoding == "labels" and task.type == "ner":
        hint = "`labels` chooses one answer of a closed set, and ner has none; write generate"
        yield Conflict("task.decoding", hint, ("task.type",))
    if task.metric is not None:
        known = tuple(dict.fromkeys(known_metrics(task.type)))
        if task.metric not in known:
            hint = f"{task.type} has no metric {task.metric!r}; {_one_of(task.metric, known)}"
            yield Conflict("task.metric", hint, ("task.type",))


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
    if not recipe.tune.grid or min(recipe.tune.grid) <= 0:
        yield Conflict(
            "tune.grid", f"found {shown(recipe.tune.grid)}, want learning rates above 0, e.g. [2.0e-5, 1.0e-4]"
        )
    yield from _weighting_problems(recipe)
    teacher_seeds = [recipe.teach.seed] if recipe.teach.seed is not None else []
    seeds_by_key = {"seed": [recipe.seed], "teach.seed": teacher_seeds, "distill.seeds": recipe.distill.seeds}
    for key, seeds in seeds_by_key.items():
        for seed in seeds:
            if not 0 <= seed < 2**32:
                yield Conflict(key, f"{seed} is not a valid seed; write a number from 0 to 4294967295")


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
        "anchor.trainer": (anchor.trainer, "anchor.model_name_or_path", anchor.model_name_or_path),
        "anchor.keep": (anchor.keep != "last", "anchor.model_name_or_path", anchor.model_name_or_path),
    }
    for trainer_key, (is_set, key, value) in without_effect.items():
        if value and is_set:
            hint = f"has no effect: nothing is trained, because {key} gives your own model; remove one of the two"
            yield Conflict(trainer_key, hint, (key,))


def _one_of(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"Available: {', '.join(known)}"


# --- TrainingArguments ---


@cache
def _trainer_arguments() -> dict[str, str]:
    """Annotation of every field of transformers.TrainingArguments, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ConfigError("transformers is not installed in this Python; run: pip install tutelage")
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return {line.target.id: ast.unparse(line.annotation) for line in body if isinstance(line, ast.AnnAssign)}


def trainer_argument_names() -> frozenset[str]:
    """Names of all fields of the installed transformers.TrainingArguments; transformers is not imported."""
    return frozenset(_trainer_arguments())


def refusal(mapping: str, name: str) -> str | None:
    """Why a training argument is not accepted in this mapping (`teach.trainer`, ...), and what to use instead."""
    if name == "num_train_epochs" and mapping != "teach.trainer":
        return (
            "students are trained for num_stages x epochs_per_stage: set these in `distill`, for the teacher"
            " teach.trainer.num_train_epochs"
        )
    return next((hint for pattern, hint in RESERVED.items() if fnmatch(name, pattern)), None)


def _trainer_problem(mapping: str, name: str, value: Any) -> str | None:
    if hint := refusal(mapping, name):
        return f"not accepted here; {hint}"
    if name not in trainer_argument_names():
        near = get_close_matches(name, trainer_argument_names() - RESERVED.keys(), 1)
        hint = f"did you mean `{near[0]}`?" if near else "see the documentation of that class"
        return f"not an argument of transformers.TrainingArguments; {hint}"
    kinds = {"int": int, "float": float, "bool": bool}
    kind = kinds.get(_trainer_arguments()[name])
    right = isinstance(value, int | float) if kind is float else isinstance(value, kind or object)
    if kind and (not right or isinstance(value, bool) != (kind is bool)):
        return f"found {shown(value)}, want {_wanted(kind)}"
    return None
