"""The recipe: read from YAML, overridden on the command line, checked as a whole, flattened, and written back.

Owns the reading and every message about a recipe; what a recipe may hold is declared in `recipe_schema.py`. Nothing heavy is
imported, so a typo is reported at once: the names of TrainingArguments are read from transformers' source, not by importing it.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tutelage.errors import ConfigError, problems
from tutelage.recipe_schema import Recipe, Section

Keys = tuple[Any, ...]
"""Path of a value: ("distill", "trainer", "learning_rate"); an integer is a place in a list."""

RESERVED = {
    "output_dir": "every stage writes into the run folder: set the recipe's own `output_dir`",
    "seed": "set the recipe's `seed`, or `distill.seeds` for the students",
    "data_seed": "set the recipe's `seed`, or `distill.seeds` for the students",
    "max_steps": "set `distill.num_stages` and `distill.epochs_per_stage`; for the teacher `teach.trainer.num_train_epochs`",
    "auto_find_batch_size": "every method gets the same steps: set `per_device_train_batch_size`",
    "dataloader_drop_last": "every training row is used; leave it out",
    "remove_unused_columns": "the rows are already as the model needs them; leave it out",
    "label_smoothing_factor": "the loss is tutelage's own and has no label smoothing; leave it out",
    "resume_from_checkpoint": "the same command continues a stopped run by itself; leave it out",
    "per_device_eval_batch_size": "set `evaluate.batch_size`",
    "load_best_model_at_end": "set `distill.keep`, and `teach.best_by` for the teacher",
    "metric_for_best_model": "set `task.metric`, `teach.best_by` and `distill.keep_by`",
    "greater_is_better": "set `task.metric`, `teach.best_by` and `distill.keep_by`",
    "push_to_hub": "upload the finished student folder with `hf upload`",
    "hub_*": "upload the finished student folder with `hf upload`",
    "disable_tqdm": "progress is shown by tutelage; leave it out",
    "log_level": "messages are tutelage's own; leave it out",
    "save_*": "set `teach.num_checkpoints` for the teacher, `distill.save_steps` for restart points of the student",
    "eval_*": "validation takes place after each stage and for each teacher checkpoint; leave it out",
    "do_*": "each stage is a command of its own; leave it out",
    "evaluation_strategy": "validation takes place after each stage and for each teacher checkpoint; leave it out",
    "warmup_ratio": "write warmup_steps: 0.1 (a value below 1 is a share of the steps)",
    "group_by_length": "write train_sampling_strategy: group_by_length",
    "no_cuda": "write use_cpu: true",
}
"""Names (or patterns) of training arguments that the library decides itself or that have a new name: what to use instead."""

REQUIRED = {
    "task": {"type": "classification"},
    "task.type": "classification",
    "data": {"train": "data/train.jsonl"},
    "teacher": {"model_name_or_path": "HuggingFaceTB/SmolLM2-360M-Instruct"},
    "teacher.model_name_or_path": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "student": {"model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    "student.model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""An example of each key that has no default."""

_TRAINED = ("teach", "anchor", "distill")
"""Sections with a `trainer` of their own."""
_ABSENT = object()
_OVERRIDE = re.compile(r"(?P<key>[^\W\d][\w-]*(?:\.[\w-]+)*)=(?P<value>.*\S.*)", re.DOTALL)
_DEEPEST = 20
"""Levels of nesting in a recipe; a YAML alias that holds itself has no end."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that has passed every check."""

    recipe: Recipe
    origins: dict[str, str]
    """By dotted key of every leaf: `default`, `override`, or file and line (`banking77.yaml:14`)."""
    path: Path


class Problem(NamedTuple):
    """Values that are each right and do not go together."""

    key: str
    """Dotted key where it is best mended."""
    text: str
    also: tuple[str, ...] = ()
    """Dotted keys it depends on besides; if one of them is wrong itself, this problem is not worth reporting yet."""


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that differs from YAML 1.1 where that surprises: 1e-4 is a number; 12:30, 010 and 2024-01-01 are text."""


class _Dumper(yaml.SafeDumper):
    """Quotes all text that `_Loader` or a YAML 1.1 reader would take for something else."""


_CORE = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9_]*)$"),
    "float": re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.nan$"),
}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].removeprefix(_CORE) not in ("int", "float", "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_CORE + _kind, _pattern, list("-+.0123456789"))
    _Dumper.add_implicit_resolver(_CORE + _kind, _pattern, list("-+.0123456789"))
for _kind in ("binary", "omap", "pairs", "set", "timestamp"):  # a recipe holds what JSON can hold
    _Loader.add_constructor(_CORE + _kind, _Loader.construct_undefined)


@dataclass
class _Source:
    """A recipe's values before they are judged, and where each comes from."""

    path: Path
    values: dict[str, Any]
    lines: dict[Keys, int] = field(default_factory=dict)
    overridden: list[Keys] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def place(self, keys: Keys, file: Path | str | None = None) -> str:
        """`override`, or file and line of the value or of what it should stand in."""
        if any(given == keys[: len(given)] or keys == given[: len(keys)] for given in self.overridden):
            return "override"
        line = next((self.lines[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in self.lines), None)
        return f"{file or self.path}" if line is None else f"{file or self.path}:{line}"

    def report(self, keys: Keys, text: str) -> None:
        """Add a problem."""
        self.problems.append(f"{self.place(keys)}: {_dotted(keys)}: {text}")


def _read(path: Path) -> _Source:
    """The file's values and lines. ConfigError where there is nothing that could be judged key by key."""
    source = _Source(path, {})
    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        _note_lines(node, (), source)
        values = loader.construct_document(node) if node else None
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such recipe file.{_files_nearby(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a recipe file (YAML)") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(path, error)) from None
    if not values:
        example = "".join(f"\n  {_example((key,))}" for key in REQUIRED if "." not in key)
        raise ConfigError(f"{path}:1: the recipe is empty. The least it needs:{example}")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: a recipe is a mapping of sections (`task:`, `data:`, ...); found {_shown(values)}")
    source.values = _plain(values)
    return source


def _plain(value: Any) -> Any:
    """A copy with keys as text, in which a YAML alias is a value of its own: an override changes one of them."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _note_lines(node: yaml.Node | None, keys: Keys, source: _Source) -> None:
    """Record the line of every key, and keys that are written twice."""
    if len(keys) > _DEEPEST:
        raise ConfigError(f"{source.path}:{node.start_mark.line + 1}: nested deeper than {_DEEPEST} levels; write it flatter")
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            _note_lines(item, (*keys, place), source)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        child, line = (*keys, str(key.value)), key.start_mark.line + 1
        if child in source.lines:
            text = f"written twice, first in line {source.lines[child]}; keep one of them"
            source.problems.append(f"{source.path}:{line}: {_dotted(child)}: {text}")
        source.lines.setdefault(child, line)
        _note_lines(value, child, source)


def _yaml_problem(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).split("\n")[0]
    start, context = getattr(error, "context_mark", None), getattr(error, "context", None)
    since = f" ({context} that begins in line {start.line + 1})" if start and context and start.line != mark.line else ""
    hint = "indent with spaces, close quotes and brackets, and put text that holds ': ' or begins with { or [ in quotes"
    return f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {what}{since}; {hint}"


def _files_nearby(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, 1) or get_close_matches(path.stem, names, 1, 0.4)
    return f" Did you mean {path.parent / near[0]}?" if near else " Check the path; it is looked up from the current folder."


# --- overrides ----------------------------------------------------------------------------------------------------------


def _override(source: _Source, text: str) -> None:
    """Set one value. A mapping replaces the one that is there; a dotted key sets a single entry."""
    form = "write section.key=value without spaces around `=`, e.g. distill.num_stages=4 or 'teacher.lora={r: 8}'"
    match = _OVERRIDE.fullmatch(text)
    if not match:
        clear = f"{text}null" if text.endswith("=") else None
        hint = f"no value; write {clear}, or {text}\"''\" for empty text" if clear else f"not an override; {form}"
        source.problems.append(f"override {text!r}: {hint}")
        return
    keys = tuple(match["key"].split("."))
    try:
        value = _plain(yaml.load(match["value"], _Loader))
    except yaml.YAMLError:
        quoted = f"{match['key']}={json.dumps(match['value'].strip(), ensure_ascii=False)}"
        source.problems.append(f"override {text!r}: the value is not valid YAML; {form}; text goes in quotes: '{quoted}'")
        return
    inner = source.values
    for depth, key in enumerate(keys[:-1], 1):
        if inner.get(key) is None:
            inner[key] = {}
        inner = inner[key]
        if not isinstance(inner, dict):
            parent = _dotted(keys[:depth])
            source.problems.append(f"override {text!r}: {parent} is {_shown(inner)}, not a mapping; write {parent}=... whole")
            return
    inner[keys[-1]] = value
    source.overridden.append(keys)


# --- loading ------------------------------------------------------------------------------------------------------------


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe, set `section.key=value` overrides (values are YAML), and check everything.

    `name` is the file's stem and `output_dir` runs/NAME unless given. An empty section counts as `{}`. ConfigError with all
    problems at once, each as `file:line: key: what, and what to do`.
    """
    source = _read(Path(path))
    for text in overrides:
        _override(source, text)
    given = copy.deepcopy(source.values)
    source.values.setdefault("name", source.path.stem)
    source.values.setdefault("output_dir", f"runs/{source.values['name']}")
    _fill_empty_sections(source.values)
    recipe = _validate(source)
    if source.problems or recipe is None:
        count = len(source.problems)
        raise ConfigError(problems(f"{path} has {count} problem{'s' * (count != 1)}:", source.problems))
    origins = {}
    for keys, _, _ in _leaves(recipe):
        known = _get(given, keys) is not _ABSENT
        origins[_dotted(keys)] = source.place(keys, source.path.name) if known else "default"
    return LoadedRecipe(recipe, origins, source.path)


def _fill_empty_sections(values: dict[str, Any]) -> None:
    """`teach:` with nothing under it means the defaults; a field that may be null (lora) stays null."""
    for keys, info in _schema(Recipe):
        may_be_empty = _section_of(info) or get_origin(info.annotation) is dict
        if may_be_empty and NoneType not in get_args(info.annotation) and _get(values, keys) is None:
            _get(values, keys[:-1])[keys[-1]] = {}


def _validate(source: _Source) -> Recipe | None:
    """The recipe, or None; problems are added to the source. What is wrong is mended to check the rest in the same go."""
    try:
        recipe, errors = Recipe.model_validate(source.values, strict=True), []
    except ValidationError as error:
        recipe, errors = None, error.errors(include_url=False)
    faults: dict[Keys, str] = {}
    meant: set[Keys] = set()
    for error in errors:
        keys, info, section = _locate(error["loc"])
        if info is None:
            faults[keys], near = _unknown(keys, section)
            meant |= {near} - {None}
        elif error["type"] == "missing":
            faults.setdefault(keys, f"missing; write for example `{_example(keys)}`")
        else:
            faults.setdefault(keys, _wrong(info, _get(source.values, keys)))
    for keys in meant:  # a required key that was misspelt is not missing as well
        if _get(source.values, keys) is _ABSENT:
            faults.pop(keys, None)
    for keys, text in faults.items():
        source.report(keys, text)
    whole = recipe or _mended(source.values, faults.keys() | meant)
    bad = {_dotted(keys) for keys in faults.keys() | meant}
    for problem in _cross_problems(whole) if whole else ():
        if not any(f"{key}.".startswith(f"{fault}.") for key in (problem.key, *problem.also) for fault in bad):
            source.report(tuple(problem.key.split(".")), problem.text)
    return recipe


def _mended(values: dict[str, Any], faults: set[Keys]) -> Recipe | None:
    """The recipe with wrong values left out, required ones replaced by an example."""
    mended = copy.deepcopy(values)
    for keys in faults:
        inside = _get(mended, keys[:-1])
        if isinstance(inside, dict):
            inside.pop(keys[-1], None)
            if _dotted(keys) in REQUIRED:
                inside[keys[-1]] = copy.deepcopy(REQUIRED[_dotted(keys)])
    try:
        return Recipe.model_validate({"name": "-", "output_dir": "-"} | mended, strict=True)
    except ValidationError:
        return None


# --- what a message says ------------------------------------------------------------------------------------------------


def _unknown(keys: Keys, section: type[Section]) -> tuple[str, Keys | None]:
    """What to say about a key that its section lacks, and the key of the section that was probably meant."""
    name, inside = str(keys[-1]), keys[:-1]
    trainer = _dotted((*inside, "trainer") if "trainer" in section.model_fields else ("trainer",))
    near = get_close_matches(name, section.model_fields, 1)
    elsewhere = [_dotted(other) for other, _ in _schema(Recipe) if other[-1] == name]
    meant = (*inside, near[0]) if near else None
    hints = [f"did you mean `{near[0]}`?"] if near else []
    if elsewhere:
        hints.append(f"`{name}` is a key of another section: write {' or '.join(elsewhere)}")
    elif refusal := _refusal(trainer, name):
        return f"unknown key; {refusal}", None
    elif name in trainer_argument_names():
        return f"unknown key; it is an argument of transformers.TrainingArguments: write {trainer}.{name}", None
    if not hints:
        alike = get_close_matches(name, [other[-1] for other, _ in _schema(Recipe)], 1, 0.75)
        hints = [f"did you mean {_dotted(other)}?" for other, _ in _schema(Recipe) if other[-1] in alike]
    return f"unknown key; {'; '.join(hints) or 'valid here: ' + ', '.join(section.model_fields)}", meant


def _wrong(info: FieldInfo, value: Any) -> str:
    wanted = _wanted(info.annotation, info.metadata)
    hint = ""
    if near := get_close_matches(value, _choices(info.annotation), 1) if isinstance(value, str) else []:
        hint = f"; did you mean {near[0]}?"
    elif "text" in wanted:
        hint = "; put text in quotes that YAML reads as something else (yes, no, null, 12, {x})"
    elif isinstance(value, str) and any(pattern.match(value) for pattern in _NUMBERS.values()):
        hint = "; write it without quotes"
    return f"found {_shown(value)}, want {wanted}{hint}"


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


def _example(keys: Keys) -> str:
    """A line that sets a required key."""
    value = REQUIRED.get(_dotted(keys), "...")
    shown = "{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}" if isinstance(value, dict) else value
    return f"{keys[-1]}: {shown}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# --- walks over values and schema ---------------------------------------------------------------------------------------


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)


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
    """The field that an error of pydantic lies in, or None for a key that the section lacks; and the section."""
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


# --- checks across fields -----------------------------------------------------------------------------------------------


def check(recipe: Recipe) -> list[str]:
    """What cannot work although each value is right by itself, as `key: what, and what to do`; empty if all is well."""
    return [f"{problem.key}: {problem.text}" for problem in _cross_problems(recipe)]


def _cross_problems(recipe: Recipe) -> Iterator[Problem]:
    yield from _task_problems(recipe)
    yield from _method_problems(recipe)
    yield from _given_model_problems(recipe)
    for section in ("", *_TRAINED):
        place = f"{section}.trainer".lstrip(".")
        for name, value in (getattr(recipe, section) if section else recipe).trainer.items():
            if text := _trainer_problem(place, name, value):
                yield Problem(f"{place}.{name}", text)


def _task_problems(recipe: Recipe) -> Iterator[Problem]:
    task, data = recipe.task, recipe.data
    if not (data.dataset or data.train):
        hint = "no training rows; set data.dataset (a folder or hub id) or data.train (a file or files)"
        yield Problem("data.dataset", hint, ("data.train",))
    if data.system is not None and not data.chat_template:
        hint = "a system message needs a chat prompt; set data.chat_template: true, or write the text into data.template"
        yield Problem("data.system", hint, ("data.chat_template",))
    if task.decoding == "labels" and task.type == "ner":
        hint = "`labels` picks one answer of a closed set, and ner has none; write generate"
        yield Problem("task.decoding", hint, ("task.type",))
    if task.metric is not None:
        from tutelage.tasks import known_metrics  # brings numpy along, so only when a metric is named

        known = tuple(dict.fromkeys(known_metrics(task.type)))
        if task.metric not in known:
            hint = f"no score of {task.type} is called {task.metric!r}; {_one_of(task.metric, known)}"
            yield Problem("task.metric", hint, ("task.type",))


def _method_problems(recipe: Recipe) -> Iterator[Problem]:
    from tutelage.methods import METHODS

    for key, values in {"distill.methods": recipe.distill.methods, "distill.seeds": recipe.distill.seeds}.items():
        if not values:
            yield Problem(key, f"empty; leave it out for {type(recipe.distill).model_fields[key[8:]].default}")
        for value in dict.fromkeys(v for v in values if values.count(v) > 1):
            yield Problem(key, f"{value} is there {values.count(value)} times; write it once")
    for name in dict.fromkeys(recipe.distill.methods):
        if name not in METHODS:
            yield Problem("distill.methods", f"no method is called {name!r}; {_one_of(name, METHODS)}")
    for key, seeds in {"seed": [recipe.seed], "distill.seeds": recipe.distill.seeds}.items():
        for seed in seeds:
            if not 0 <= seed < 2**32:
                yield Problem(key, f"{seed} cannot seed a random generator; write a number from 0 to 4294967295")


def _given_model_problems(recipe: Recipe) -> Iterator[Problem]:
    if recipe.teach.checkpoints is not None and not recipe.teach.checkpoints:
        yield Problem("teach.checkpoints", "names no checkpoint; name a folder, or leave it out to train the teacher")
    given = {
        "teach": ("teach.checkpoints", recipe.teach.checkpoints),
        "anchor": ("anchor.model_name_or_path", recipe.anchor.model_name_or_path),
    }
    for section, (key, value) in given.items():
        if value and getattr(recipe, section).trainer:
            hint = f"has no effect: nothing is trained, because {key} names a model of yours; remove one of the two"
            yield Problem(f"{section}.trainer", hint, (key,))


def _one_of(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"There are: {', '.join(known)}"


# --- TrainingArguments --------------------------------------------------------------------------------------------------


@cache
def _trainer_arguments() -> dict[str, str]:
    """Annotation of every field of transformers.TrainingArguments, out of its source: importing it takes seconds."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ConfigError("transformers is not installed in this Python; run: pip install tutelage")
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return {line.target.id: ast.unparse(line.annotation) for line in body if isinstance(line, ast.AnnAssign)}


def trainer_argument_names() -> frozenset[str]:
    """Names of all fields of transformers.TrainingArguments, as installed; transformers is not imported."""
    return frozenset(_trainer_arguments())


def _refusal(place: str, name: str) -> str | None:
    """Why the library does not take this training argument here (`teach.trainer`, ...), and what to use instead."""
    if name == "num_train_epochs" and place != "teach.trainer":
        return "distillation's length is num_stages x epochs_per_stage: set these in `distill`, for the teacher teach.trainer"
    return next((hint for pattern, hint in RESERVED.items() if fnmatch(name, pattern)), None)


def _trainer_problem(place: str, name: str, value: Any) -> str | None:
    if refusal := _refusal(place, name):
        return f"not taken here; {refusal}"
    if name not in trainer_argument_names():
        near = get_close_matches(name, trainer_argument_names() - RESERVED.keys(), 1)
        hint = f"did you mean `{near[0]}`?" if near else "see the documentation of that class for its arguments"
        return f"not an argument of transformers.TrainingArguments; {hint}"
    kinds = {"int": int, "float": float, "bool": bool}
    kind = kinds.get(_trainer_arguments()[name])
    right = isinstance(value, int | float) if kind is float else isinstance(value, kind or object)
    if kind and (not right or isinstance(value, bool) != (kind is bool)):
        return f"found {_shown(value)}, want {_wanted(kind)}"
    return None


# --- what others read of a recipe ---------------------------------------------------------------------------------------


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, defaults included, in the order of the schema; `load_recipe` reads an equal one back."""
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every leaf by its dotted key ("distill.num_stages", "trainer.learning_rate"); values as JSON has them."""
    return {_dotted(keys): value for keys, value, _ in _leaves(recipe) if value != {}}


def show_rows(loaded: LoadedRecipe) -> list[tuple[str, Any, str, str]]:
    """Key, value, origin and help of every leaf; `trainer` with the defaults that the recipe leaves alone."""
    full = loaded.recipe.model_copy(update={"trainer": loaded.recipe.trainer_arguments()})
    rows = ((_dotted(keys), value, text) for keys, value, text in _leaves(full))
    return [(key, value, loaded.origins.get(key, "default"), text) for key, value, text in rows]
