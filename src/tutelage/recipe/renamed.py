"""Recipe keys and methods that have another name now, or that were removed: the one table of them.

Old names work in this version, in recipe files, in overrides and in the settings of a method's name. Files that an
earlier version recorded (manifests of run folders, recipe.yaml, tutelage.json) are translated by the same table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tutelage.method.methods import split_variant

RENAMED = {
    "data.validation_share": "data.validation_fraction",
    "distill.keep_by": "distill.select_by",
    "distill.restart": "distill.stage_reset",
    "distill.schedule.reach": "distill.schedule.student_kl",
    "tune.each": "tune.per_method",
    "tune.on": "tune.method",
}
"""Old key -> new key; the values are the same."""

NO_GAIN = "gave no improvement when measured (LOG.md)"


class Removed(NamedTuple):
    """A key that recipes no longer have."""

    off: Any
    """The value with which it had no effect."""
    was: str
    """What it did."""


REMOVED = {
    "distill.schedule.glide": Removed(False, "a target that moved from one checkpoint to the next within a stage"),
    "distill.schedule.trust": Removed(None, "a trust region for the choice of checkpoint"),
    "distill.weighting.bias": Removed(0.0, "a bias of the adaptive weights"),
    "distill.weighting.calibrate": Removed(False, "calibration of the adaptive weights on validation rows"),
    "distill.weighting.gamma": Removed(1.0, "the sharpness of the adaptive weights"),
    "distill.weighting.per_token": Removed(False, "adaptive weights for every answer token"),
    "distill.weighting.smooth": Removed(0.0, "smoothing of the losses behind adaptive weights over subdomains"),
}
"""By dotted key."""
EMPTIED = ("distill.weighting",)
"""Sections of which every key was removed."""
REMOVED_METHODS = {
    "cd-mix": "checkpoints in fixed order, each mixed with the anchor example by example",
    "ens": "the teacher's checkpoints as an ensemble",
}
"""By name: what the method did."""


def new_name(key: str) -> str:
    """The present name of a dotted recipe key."""
    return RENAMED.get(key, key)


def rename_note(old: str) -> str:
    """What is said about a key that is given by its old name."""
    return f"{old} is now {RENAMED[old]}; the old name works in this version"


def variant_notes(method: str) -> list[str]:
    """Notes about old names in the settings of a method's name."""
    keys = (f"distill.{setting.partition('=')[0]}" for setting in split_variant(method)[1])
    return [f"method {method}: {rename_note(key)}" for key in keys if key in RENAMED]


def removal_text(key: str) -> str:
    """What is said about a removed key."""
    return f"was removed: {REMOVED[key].was}, which {NO_GAIN}; leave it out"


def method_removal_text(method: str) -> str:
    """What is said about a removed method."""
    return f"the method {method} was removed: {REMOVED_METHODS[method]}, which {NO_GAIN}; leave it out"


def translate_flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key, as recorded by an earlier version, under their present names; removed keys without effect
    are left out."""
    present = {}
    for key, value in _flattened(values):
        if key not in _REMOVED_RECORDED or value != _REMOVED_RECORDED[key].off:
            present[_RENAMED_RECORDED.get(key, key)] = value
    return present


_IN_ONE_VALUE = {"plan": "plan.trainer", "plan.trainer": "plan.trainer", "student": "student"}
"""Keys under which versions up to 0.2.0 recorded the arguments of `SCDTrainer` as one value -> the present prefix."""


def _flattened(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, with a key of its own for everything in those of `_IN_ONE_VALUE`."""
    for key, value in values.items():
        yield from flat(_IN_ONE_VALUE[key], value) if key in _IN_ONE_VALUE else [(key, value)]


def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of a value that has this key."""
    if not isinstance(value, dict):
        yield prefix, value
    else:
        for name, inner in value.items():
            yield from flat(f"{prefix}.{name}", inner)


def _of_plan(key: str) -> str:
    """The name under which `SCDTrainer` records a key of the `distill` section."""
    return f"plan.{key.rpartition('.')[2]}"


_RENAMED_RECORDED = RENAMED | {_of_plan(old): _of_plan(new) for old, new in RENAMED.items() if "distill." in old}
_REMOVED_RECORDED = REMOVED | {_of_plan(key): removed for key, removed in REMOVED.items()}


def translate_nested(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's nested values, as recorded by an earlier version, with keys under their present names."""
    copied = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for old, new in RENAMED.items():
        *path, name = old.split(".")
        section: Any = copied
        for part in path:
            inner = section.get(part) if isinstance(section, dict) else None
            if isinstance(inner, dict):
                section[part] = inner = dict(inner)
            section = inner
        if isinstance(section, dict) and name in section:
            section.setdefault(new.rpartition(".")[2], section.pop(name))
    return copied
