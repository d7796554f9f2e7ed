"""Training arguments: which are refused (`reserved.py` lists them), and names, types and limits of the others.

Names and types are read from the source of transformers, so that a typo is reported without importing it.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic import Field, ValidationError, create_model

from tutelage.errors import ConfigError
from tutelage.recipe.reserved import DONE_ANYWAY, IN_PYTHON, RESERVED
from tutelage.recipe.schema import Section
from tutelage.recipe.values import wrong

LIMITS: dict[str, dict[str, float]] = {
    "learning_rate": {"gt": 0, "le": 10},
    "per_device_train_batch_size": {"ge": 1, "le": 1_000_000},
    "gradient_accumulation_steps": {"ge": 1, "le": 1_000_000},
    "num_train_epochs": {"gt": 0, "le": 10_000},
    "warmup_steps": {"ge": 0},
    "weight_decay": {"ge": 0, "le": 10},
    "adam_beta1": {"ge": 0, "lt": 1},
    "adam_beta2": {"ge": 0, "lt": 1},
    "adam_epsilon": {"ge": 0, "le": 1},
    "max_grad_norm": {"ge": 0},
    "neftune_noise_alpha": {"ge": 0},
    "logging_steps": {"gt": 0},
    "torch_empty_cache_steps": {"gt": 0},
    "dataloader_num_workers": {"ge": 0, "le": 1024},
    "dataloader_prefetch_factor": {"gt": 0},
    "ddp_timeout": {"gt": 0},
}
"""Bounds of training arguments, as of pydantic's `Field`. transformers itself checks hardly any of them."""
_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list[str]": list[str], "None": NoneType}
"""Types of arguments that are checked, as transformers writes them."""
_NEEDS_VALIDATION = "reduce_lr_on_plateau"
"""A schedule that lowers the rate by the result of a validation in training, which there is none of."""


# --- what transformers declares ---


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """Classes of a module of transformers by name, read from its source: importing it takes seconds."""
    return {node.name: node for node in _module(file) if isinstance(node, ast.ClassDef)}


def _module(file: str) -> list[ast.stmt]:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ConfigError("transformers is not installed in this Python; run: pip install tutelage")
    return ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8")).body


def _annotations() -> dict[str, str]:
    """Annotation of every field of transformers.TrainingArguments."""
    body = _classes("training_args.py")["TrainingArguments"].body
    return {line.target.id: ast.unparse(line.annotation) for line in body if isinstance(line, ast.AnnAssign)}


def _values_of(file: str, enum: str) -> tuple[str, ...]:
    """Values of an enumeration of transformers."""
    return tuple(ast.literal_eval(line.value) for line in _classes(file)[enum].body if isinstance(line, ast.Assign))


@cache
def _trackers() -> tuple[str, ...]:
    """Names that `report_to` takes."""
    for line in _module("integrations/integration_utils.py"):
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "INTEGRATION_TO_CALLBACK":
            return tuple(ast.literal_eval(key) for key in line.value.keys)
    raise AssertionError("transformers keeps its trackers elsewhere")


def trainer_argument_names() -> frozenset[str]:
    """Names of all fields of the installed transformers.TrainingArguments; transformers is not imported."""
    return frozenset(_annotations())


@cache
def _schema() -> type[Section]:
    """A section with every training argument whose type is known, and its limits."""
    choices = {
        "lr_scheduler_type": _values_of("trainer_utils.py", "SchedulerType"),
        "optim": _values_of("training_args.py", "OptimizerNames"),
        "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    }
    fields: dict[str, Any] = {}
    for name, annotation in _annotations().items():
        parts = annotation.replace("dict[str, Any]", "dict").split(" | ")
        kind: Any = reduce(or_, (_TYPES[part] for part in parts)) if _TYPES.keys() >= set(parts) else Any
        kind = Literal[choices[name]] if name in choices else kind
        fields[name] = (kind, Field(None, **LIMITS.get(name, {})))
    return create_model("Arguments", __base__=Section, **fields)


# --- messages ---


def refusal(mapping: str, name: str) -> str | None:
    """Why a training argument is not accepted in this mapping (`teach.trainer`, ...), and what to use instead."""
    if name == "num_train_epochs" and mapping != "teach.trainer":
        return (
            "students are trained for num_stages x epochs_per_stage: set these in `distill`, for the teacher"
            " teach.trainer.num_train_epochs"
        )
    return next((hint for pattern, hint in RESERVED.items() if fnmatch(name, pattern)), None)


def python_problem(name: str, value: Any) -> str | None:
    """What is wrong with a training argument of `SCDConfig` that is not at its default; None if nothing is."""
    hint = next((hint for pattern, hint in IN_PYTHON.items() if fnmatch(name, pattern)), None)
    if hint and not any(type(value) is type(done) and value == done for done in DONE_ANYWAY):
        return f"not accepted here; {hint}"
    return value_problem(name, value)


def argument_problem(mapping: str, name: str, value: Any) -> str | None:
    """What is wrong with a training argument in this mapping; None if nothing is."""
    if hint := refusal(mapping, name):
        return f"not accepted here; {hint}"
    if name not in trainer_argument_names():
        near = get_close_matches(name, trainer_argument_names() - RESERVED.keys(), 1)
        hint = f"did you mean `{near[0]}`?" if near else "see the documentation of that class"
        return f"not an argument of transformers.TrainingArguments; {hint}"
    return value_problem(name, value)


def value_problem(name: str, value: Any) -> str | None:
    """What is wrong with the value of a training argument of transformers; None if nothing is."""
    if name == "report_to":
        return _tracker_problem(value)
    if name == "accelerator_config" and isinstance(value, Mapping) and value.get("gradient_accumulation_kwargs"):
        return "gradient_accumulation_kwargs would change the number of steps; set gradient_accumulation_steps"
    if value == _NEEDS_VALIDATION:
        return f"{value} needs a validation in training, and there is none; write cosine, linear or constant"
    try:
        _schema().model_validate({name: value}, strict=True)
    except ValidationError:
        return wrong(_schema().model_fields[name], value)
    return None if _finite(value) else f"{value} holds a number that is infinite or not a number"


def _finite(value: Any) -> bool:
    """Whether all numbers in a value are finite, also those in its lists and mappings."""
    if isinstance(value, Mapping | list):
        return all(map(_finite, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _tracker_problem(value: Any) -> str | None:
    names = value if isinstance(value, list) else [value]
    unknown = [name for name in names if name not in ("none", "all", None, *_trackers())]
    if not unknown:
        return None
    near = get_close_matches(str(unknown[0]), _trackers(), 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no tracker is called {str(unknown[0])[:40]!r}; {hint}Available: none, {', '.join(_trackers())}"
