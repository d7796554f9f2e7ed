"""Loading a recipe: read, override, validate with all problems at once; also flattening it and writing it back.

This module walks the schema and turns pydantic's errors into problems. `schema.py` declares what a recipe may hold,
`yaml_source.py` reads the text, `checks.py` checks values. Nothing heavy is imported, so a typo is reported at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tutelage.errors import ConfigError, Kind, Place, Problem
from tutelage.errors.wording import problem_text
from tutelage.method.methods import find_method, method_names, split_variant
from tutelage.recipe.arguments import python_problem, refusal, trainer_argument_names
from tutelage.recipe.checks import budget, check, cross_problems, method_problems, name_problems
from tutelage.recipe.presets import apply_preset
from tutelage.recipe.renamed import RENAMED, variant_notes
from tutelage.recipe.schema import Recipe, Section
from tutelage.recipe.values import as_plain, unusable_texts, wrong
from tutelage.recipe.yaml_source import REQUIRED, RecipeSource, dotted, example, override, read
from tutelage.recipe.yaml_text import Dumper, Keys

__all__ = ["LoadedRecipe", "check", "dump_recipe", "flatten", "load_recipe", "show_rows", "trainer_argument_names"]

_ABSENT = object()


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that has passed every check."""

    recipe: Recipe
    origins: dict[str, str]
    """Dotted key of every leaf -> `default`, `preset NAME`, `override`, or file and line (`banking77.yaml:14`)."""
    path: Path
    notes: tuple[str, ...] = ()
    """Warnings, one line each: keys that are given by their old names."""


# --- loading ---


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe, set `section.key=value` overrides (values are YAML), and check everything.

    `name` defaults to the file's stem and `output_dir` to runs/NAME. An empty section counts as `{}`. Raises
    ConfigError with all problems at once, each as `file:line: key: problem, and what to do`.
    """
    source = read(Path(path))
    source.problems += _both_names(overrides)
    for text in overrides:
        override(source, text)
    given = copy.deepcopy(source.values)
    source.values.setdefault("name", source.path.stem)
    source.values.setdefault("output_dir", f"runs/{source.values['name']}")
    _fill_empty_sections(source.values)
    # A run folder of a version that did not know a key was made with what `paper` says of it.
    preset = "paper" if source.recorded else source.values.get("preset")
    of_preset = apply_preset(source.values, preset)
    recipe = _validate(source, with_variants=True)
    if source.problems or recipe is None:
        raise ConfigError(*source.problems, subject=str(path))
    distill = recipe.distill.model_copy(update={"methods": recipe.distill.with_baselines})
    recipe = recipe.model_copy(update={"distill": distill})
    if not source.recorded:
        source.notes += [note for method in recipe.distill.methods for note in variant_notes(method)]
    origins = {}
    for keys, _, _ in _leaves(recipe):
        is_given = _get(given, keys) is not _ABSENT
        otherwise = f"preset {preset}" if keys in of_preset else "default"
        origins[dotted(keys)] = str(source.place(keys, source.path.name)) if is_given else otherwise
    return LoadedRecipe(recipe, origins, source.path, tuple(source.notes))


def varied(recipe: Recipe, method: str) -> Recipe:
    """The recipe with the settings of a method and those in its name: `td+kd_ratio=0.7` sets distill.kd_ratio.

    Raises ConfigError for invalid settings, for settings without effect on the method, and for settings that change its
    budget: all methods of a run get the same number of steps, and of rows per step.
    """
    variant, problems = _variant(recipe, method)
    if problems or variant is None:
        raise ConfigError(*problems, subject=f"the method {method!r}")
    return variant


def check_settings(values: dict[str, Any], arguments: dict[str, Any], names: dict[str, str]) -> None:
    """Check settings that are given from Python as those of a recipe.

    values: by dotted key. arguments: TrainingArguments that are not at their defaults. names: the names in Python of
    dotted keys. Raises ConfigError with all problems.
    """
    source = RecipeSource(Path("SCDConfig"), {"name": "-", "output_dir": "-"})
    source.values |= {key: copy.deepcopy(example) for key, example in REQUIRED.items() if "." not in key}
    for key, value in values.items():
        *path, name = key.split(".")
        section = source.values
        for part in path:
            section = section.setdefault(part, {})
        section[name] = as_plain(value)
    _validate(source)
    problems = [replace(problem, place=None, key=names.get(problem.key, problem.key)) for problem in source.problems]
    for name, value in arguments.items():
        if text := python_problem(name, as_plain(value)):
            problems.append(Problem(Kind.VALUE_INVALID, key=name, values={"text": text}))
    problems += [_variant_in_python(method) for method in values["distill.methods"] if split_variant(method)[1]]
    if problems:
        raise ConfigError(*problems, subject="SCDConfig")


def _variant_in_python(method: str) -> Problem:
    """The problem of a method's name with settings in `SCDConfig`, which takes their values from its own arguments."""
    text = (
        f"found {method!r}, and settings in a method's name are for recipes: write method={split_variant(method)[0]!r},"
        " and the settings as arguments of SCDConfig"
    )
    return Problem(Kind.VALUE_INVALID, key="method", values={"text": text})


def _variant(recipe: Recipe, method: str) -> tuple[Recipe | None, list[Problem]]:
    """The recipe with the settings of a method (None if one is invalid), and what is wrong with them."""
    base, named = split_variant(method)
    is_known = base in method_names()
    source, variant = RecipeSource(Path(method), {}), recipe
    if settings := [*(find_method(base).settings if is_known else ()), *named]:
        source.values = recipe.model_dump()
        for text in settings:
            override(source, f"distill.{text}")
        source.problems += _both_names([f"distill.{text}" for text in named])
        variant = _validate(source)
    source.problems += [_setting(text) for text in name_problems(named)]
    if variant is not None:
        source.problems += _budget_problems(recipe, variant)
        if is_known:
            source.problems += [_setting(text) for text in method_problems(variant, base, named)]
    return variant, source.problems


def _variant_problems(recipe: Recipe, source: RecipeSource) -> Iterator[Problem]:
    """Problems of the settings in the names of a recipe's methods, with the line of the methods."""
    place, known = source.place(("distill", "methods")), [problem.values.get("text") for problem in source.problems]
    for method in dict.fromkeys(recipe.distill.methods):
        for problem in _variant(recipe, method)[1]:
            if problem.values.get("text") in known:  # a problem of the recipe itself
                continue
            text = f"method {method}: {problem_text(replace(problem, place=None))}"
            yield Problem(Kind.METHOD_SETTING_INVALID, place=place, key="distill.methods", values={"text": text})


def _budget_problems(recipe: Recipe, variant: Recipe) -> list[Problem]:
    """Problems of a variant whose students would not be comparable with those of the recipe."""
    budgets = zip(budget(variant).items(), budget(recipe).values(), strict=True)
    texts = [
        f"{value:g} {name}, but the other methods have {other:g}: every method gets the same steps"
        for (name, value), other in budgets
        if value != other
    ]
    if any(getattr(variant.distill, name) != getattr(recipe.distill, name) for name in ("methods", "seeds", "select")):
        texts.append("methods, seeds and select belong to the whole run; leave them out")
    return [_setting(text) for text in texts]


def _setting(text: str) -> Problem:
    """A problem of a setting in the name of a method."""
    return Problem(Kind.METHOD_SETTING_INVALID, key="distill.methods", values={"text": text})


def _both_names(overrides: Sequence[str]) -> list[Problem]:
    """Problems: keys that overrides give by their old and their present name."""
    keys = {text.partition("=")[0] for text in overrides}
    return [
        Problem(Kind.KEY_RENAMED, place=Place("override"), key=old, values={"new": new})
        for old, new in RENAMED.items()
        if old in keys and new in keys
    ]


def _fill_empty_sections(values: dict[str, Any]) -> None:
    """An empty section (`teach:`) means its defaults; a field that may be null (lora) stays null."""
    for keys, info in _schema(Recipe):
        may_be_empty = _section_of(info) or get_origin(info.annotation) is dict
        if may_be_empty and NoneType not in get_args(info.annotation) and _get(values, keys) is None:
            _get(values, keys[:-1])[keys[-1]] = {}


def _validate(source: RecipeSource, *, with_variants: bool = False) -> Recipe | None:
    """The recipe, or None if it is invalid; problems are added to the source.

    Invalid values are replaced to check the others in the same pass. with_variants: also check the settings in the
    names of the methods.
    """
    try:
        recipe, errors = Recipe.model_validate(source.values, strict=True), []
    except ValidationError as error:
        recipe, errors = None, error.errors(include_url=False)
    faults, meant = _faults(source, errors)
    faults |= {keys: (kind, {"text": text}) for keys, kind, text in unusable_texts(source.values)}
    for keys, (kind, values) in faults.items():
        source.report(kind, keys, **values)
    checkable = _mended(source.values, faults.keys() | meant) if faults or recipe is None else recipe
    invalid = {dotted(keys) for keys in faults.keys() | meant}
    for conflict in cross_problems(checkable) if checkable else ():
        involved = (conflict.key, *conflict.also)
        if not any(f"{key}.".startswith(f"{fault}.") for key in involved for fault in invalid):
            source.report(Kind.VALUES_CONFLICT, tuple(conflict.key.split(".")), text=conflict.text)
    if with_variants and checkable and "distill.methods" not in {*invalid, *(p.key for p in source.problems)}:
        source.problems += list(_variant_problems(checkable, source))
    return recipe


def _faults(source: RecipeSource, errors: list[Any]) -> tuple[dict[Keys, tuple[Kind, dict[str, str]]], set[Keys]]:
    """Kind and values of the problem at each key that pydantic reports, and the keys that misspelt ones stand for."""
    faults: dict[Keys, tuple[Kind, dict[str, str]]] = {}
    meant: set[Keys] = set()
    for error in errors:
        keys, info, section = _locate(error["loc"])
        if info is None:
            text, near = _unknown(keys, section)
            faults[keys] = Kind.KEY_UNKNOWN, {"text": text}
            meant |= {near} - {None}
        elif error["type"] == "missing":
            faults.setdefault(keys, (Kind.KEY_MISSING, {"example": example(keys)}))
        else:
            faults.setdefault(keys, (Kind.VALUE_INVALID, {"text": wrong(info, _get(source.values, keys))}))
    for keys in meant:  # a required key that is misspelt is not reported as missing as well
        if _get(source.values, keys) is _ABSENT:
            faults.pop(keys, None)
    return faults, meant


def _mended(values: dict[str, Any], faults: set[Keys]) -> Recipe | None:
    """The recipe without its invalid values; required ones are replaced by an example. None if that is invalid too."""
    mended = copy.deepcopy(values)
    for keys in faults:
        section = _get(mended, keys[:-1])
        if isinstance(section, dict):
            section.pop(keys[-1], None)
            if dotted(keys) in REQUIRED:
                section[keys[-1]] = copy.deepcopy(REQUIRED[dotted(keys)])
    try:
        return Recipe.model_validate({"name": "-", "output_dir": "-"} | mended, strict=True)
    except ValidationError:
        return None


def _unknown(keys: Keys, section: type[Section]) -> tuple[str, Keys | None]:
    """The message about an unknown key, and the key of the section that was probably meant."""
    name, path = str(keys[-1]), keys[:-1]
    trainer = dotted((*path, "trainer") if "trainer" in section.model_fields else ("trainer",))
    near = get_close_matches(name, section.model_fields, 1)
    elsewhere = [dotted(other) for other, _ in _schema(Recipe) if other[-1] == name]
    meant = (*path, near[0]) if near else None
    hints = [f"did you mean `{near[0]}`?"] if near else []
    if elsewhere:
        hints.append(f"`{name}` is a key of another section: write {' or '.join(elsewhere)}")
    elif hint := refusal(trainer, name):
        return f"unknown key; {hint}", None
    elif name in trainer_argument_names():
        return f"unknown key; it is an argument of transformers.TrainingArguments: write {trainer}.{name}", None
    if not hints:
        similar = get_close_matches(name, [other[-1] for other, _ in _schema(Recipe)], 1, 0.75)
        hints = [f"did you mean {dotted(other)}?" for other, _ in _schema(Recipe) if other[-1] in similar]
    return f"unknown key; {'; '.join(hints) or 'valid here: ' + ', '.join(section.model_fields)}", meant


# --- walks over values and schema ---


def _get(values: Any, keys: Keys) -> Any:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return _ABSENT
        values = values[key]
    return values


def _section_of(info: FieldInfo) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    kinds = get_args(info.annotation) or (info.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _schema(section: type[Section], prefix: Keys = ()) -> Iterator[tuple[Keys, FieldInfo]]:
    """Every field of a section and of the sections in it, outer ones first."""
    for name, info in section.model_fields.items():
        yield (*prefix, name), info
        if inner := _section_of(info):
            yield from _schema(inner, (*prefix, name))


def _locate(loc: Keys) -> tuple[Keys, FieldInfo | None, type[Section]]:
    """Key, field and section of an error of pydantic; the field is None for an unknown key."""
    section, info = Recipe, None
    for depth, name in enumerate(loc, 1):
        info = section.model_fields.get(name)
        inner = _section_of(info) if info else None
        if inner is None or depth == len(loc):
            return loc[:depth], info, section
        section = inner
    raise AssertionError(f"no field at {loc}")


def _leaves(section: Section, prefix: Keys = ()) -> Iterator[tuple[Keys, Any, str]]:
    """Keys, value and docstring of every leaf. Entries of a mapping are leaves, and so is an empty mapping."""
    for name, info in type(section).model_fields.items():
        value, keys = getattr(section, name), (*prefix, name)
        if isinstance(value, Section):
            yield from _leaves(value, keys)
        elif isinstance(value, dict) and value:
            yield from (((*keys, key), entry, info.description or "") for key, entry in value.items())
        else:
            yield keys, value, info.description or ""


# --- other forms of a recipe ---


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, defaults included, in the order of the schema; `load_recipe` reads an equal one back."""
    return yaml.dump(recipe.model_dump(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Dotted key of every leaf ("distill.num_stages", "trainer.learning_rate") -> value."""
    return {dotted(keys): value for keys, value, _ in _leaves(recipe) if value != {}}


def show_rows(loaded: LoadedRecipe) -> list[tuple[str, Any, str, str]]:
    """Key, value, origin and help of every leaf; `trainer` includes the library's defaults."""
    full = loaded.recipe.model_copy(update={"trainer": loaded.recipe.trainer_arguments()})
    rows = ((dotted(keys), value, text) for keys, value, text in _leaves(full))
    return [(key, value, loaded.origins.get(key, "default"), text) for key, value, text in rows]
