"""A recipe's values before validation: read from YAML with line numbers, overridden, under their present keys.

Defines which YAML is read and written, and reports text that is not a mapping of values.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import ConfigError, Kind, Place, Problem
from tutelage.recipe.renamed import EMPTIED, REMOVED, RENAMED, removal_text, rename_note
from tutelage.utils.integrity import check

Keys = tuple[Any, ...]
"""Path of a value: ("distill", "trainer", "learning_rate"); an integer is an index into a list."""

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

_OVERRIDE = re.compile(r"(?P<key>[^\W\d][\w-]*(?:\.[\w-]+)*)=(?P<value>.*\S.*)", re.DOTALL)
_DEEPEST = 20
"""Most levels of nesting in a recipe; a YAML alias may contain itself."""


# --- how keys and values are shown ---


def dotted(keys: Keys) -> str:
    """The dotted key: "distill.trainer.learning_rate"."""
    return ".".join(str(key) for key in keys)


def shown(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def example(keys: Keys) -> str:
    """A line that sets a required key."""
    value = REQUIRED.get(dotted(keys), "...")
    text = (
        "{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}" if isinstance(value, dict) else value
    )
    return f"{keys[-1]}: {text}"


# --- YAML ---


class _Loader(yaml.SafeLoader):
    """Safe YAML without some surprises of YAML 1.1: 1e-4 is a number; 12:30, 010 and 2024-01-01 are text."""


class Dumper(yaml.SafeDumper):
    """Quotes all text that `_Loader` or a YAML 1.1 reader would not read as text."""


_CORE = "tag:yaml.org,2002:"
NUMBERS = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9_]*)$"),
    "float": re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.nan$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].removeprefix(_CORE) not in ("int", "float", "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in NUMBERS.items():
    _Loader.add_implicit_resolver(_CORE + _kind, _pattern, list("-+.0123456789"))
    Dumper.add_implicit_resolver(_CORE + _kind, _pattern, list("-+.0123456789"))
for _kind in ("binary", "omap", "pairs", "set", "timestamp"):  # a recipe holds only what JSON can hold
    _Loader.add_constructor(_CORE + _kind, _Loader.construct_undefined)


@dataclass
class RecipeSource:
    """A recipe's values before validation, and where each comes from."""

    path: Path
    values: dict[str, Any]
    lines: dict[Keys, int] = field(default_factory=dict)
    overridden: list[Keys] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Warnings about values that are accepted."""
    recorded: bool = False
    """Whether the file is the recipe.yaml that a run wrote into its folder."""

    def place(self, keys: Keys, file: Path | str | None = None) -> Place:
        """`override`, or file and line of the value or of the section it belongs to."""
        if any(given == keys[: len(given)] or keys == given[: len(keys)] for given in self.overridden):
            return Place("override")
        line = next((self.lines[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in self.lines), None)
        return Place(str(file or self.path), line)

    def report(self, kind: Kind, keys: Keys, **values: Any) -> None:
        """Add a problem of a value."""
        self.problems.append(Problem(kind, place=self.place(keys), key=dotted(keys), values=values))


def read(path: Path) -> RecipeSource:
    """The values and lines of a recipe file, or of the recipe.yaml in a run folder, whose output_dir is that folder.

    Raises ConfigError for a file that cannot be read, and for text that is not a mapping.
    """
    folder = path if (path / "recipe.yaml").is_file() else None
    path = folder / "recipe.yaml" if folder else path
    source = RecipeSource(path, {})
    source.recorded = path.name == "recipe.yaml" and (path.parent / "prepare").is_dir()
    if source.recorded:
        check(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        _note_lines(node, (), source)
        values = loader.construct_document(node) if node else None
    except FileNotFoundError:
        raise _unreadable(path, f"there is no such recipe file.{_files_nearby(path)}") from None
    except IsADirectoryError:
        hint = "a folder without recipe.yaml; give a recipe file (YAML) or a run folder"
        raise _unreadable(path, hint) from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror}); give a recipe file (YAML)") from None
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None
    if not values:
        least = "".join(f"\n  {example((key,))}" for key in REQUIRED if "." not in key)
        raise _unreadable(path, f"the recipe is empty. It needs at least:{least}", 1, Kind.RECIPE_EMPTY)
    if not isinstance(values, dict):
        found = f"a recipe is a mapping of sections (`task:`, `data:`, ...); found {shown(values)}"
        raise _unreadable(path, found, 1, Kind.YAML_INVALID)
    source.values = _plain(values)
    if source.recorded:  # wherever the run was when it wrote this
        source.values["output_dir"] = str(path.parent)
    use_present_names(source)
    return source


def _unreadable(path: Path, text: str, line: int | None = None, kind: Kind = Kind.RECIPE_UNREADABLE) -> ConfigError:
    return ConfigError(Problem(kind, place=Place(str(path), line), values={"text": text}))


def _plain(value: Any) -> Any:
    """A copy with keys as text, in which a YAML alias is a value of its own: an override changes one of them."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _note_lines(node: yaml.Node | None, keys: Keys, source: RecipeSource) -> None:
    """Record the line of every key, and report keys that are written twice."""
    if len(keys) > _DEEPEST:
        text, line = f"nested deeper than {_DEEPEST} levels", node.start_mark.line + 1
        raise _unreadable(source.path, text, line, Kind.YAML_INVALID)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*keys, index), source)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        child, line = (*keys, str(key.value)), key.start_mark.line + 1
        if child in source.lines:
            place, values = Place(str(source.path), line), {"first_line": source.lines[child]}
            source.problems.append(Problem(Kind.KEY_REPEATED, place=place, key=dotted(child), values=values))
        source.lines.setdefault(child, line)
        _note_lines(value, child, source)


def _yaml_error(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).split("\n")[0]
    start, context = getattr(error, "context_mark", None), getattr(error, "context", None)
    since = (
        f" ({context} that starts in line {start.line + 1})" if start and context and start.line != mark.line else ""
    )
    hint = "indent with spaces, close quotes and brackets, and quote text that contains ': ' or starts with { or ["
    line = mark.line + 1 if mark else 1
    return _unreadable(path, f"not valid YAML: {what}{since}; {hint}", line, Kind.YAML_INVALID)


def _files_nearby(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, 1) or get_close_matches(path.stem, names, 1, 0.4)
    return (
        f" Did you mean {path.parent / near[0]}?" if near else " Check the path; it is relative to the current folder."
    )


# --- overrides ---


def override(source: RecipeSource, text: str) -> None:
    """Set one value. A mapping replaces the present one; a dotted key sets a single entry."""
    form = "write section.key=value without spaces around `=`, e.g. distill.num_stages=4 or 'teacher.lora={r: 8}'"
    match = _OVERRIDE.fullmatch(text)
    if not match:
        clear = f"{text}null" if text.endswith("=") else None
        hint = f"no value; write {clear}, or {text}\"''\" for empty text" if clear else f"not an override; {form}"
        _refuse(source, text, hint)
        return
    keys = tuple(match["key"].split("."))
    try:
        value = _plain(yaml.load(match["value"], _Loader))
    except yaml.YAMLError:
        quoted = f"{match['key']}={json.dumps(match['value'].strip(), ensure_ascii=False)}"
        _refuse(source, text, f"the value is not valid YAML; {form}; text goes in quotes: '{quoted}'")
        return
    section = source.values
    for depth, key in enumerate(keys[:-1], 1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            parent = dotted(keys[:depth])
            _refuse(source, text, f"{parent} is {shown(section)}, not a mapping; set {parent}=... as a whole")
            return
    section[keys[-1]] = value
    source.overridden.append(keys)
    use_present_names(source, overridden=keys)


def _refuse(source: RecipeSource, override: str, text: str) -> None:
    source.problems.append(Problem(Kind.OVERRIDE_INVALID, values={"override": override, "text": text}))


# --- keys of earlier versions ---


def use_present_names(source: RecipeSource, overridden: Keys | None = None) -> None:
    """Move values under an old key to the present one, and take out removed keys.

    Adds a note for each. Adds a problem for both names of a key in the file or in one override, and for a removed key
    with an effect. overridden: the key of an override that was just set; its value replaces that of the file.
    """
    for old, new in RENAMED.items():
        section, old_keys = _section_with(source, old)
        if section is not None:
            _rename(source, section, old_keys, tuple(new.split(".")), overridden)
    for key in REMOVED:
        section, keys = _section_with(source, key)
        if section is not None:
            _remove(source, section, keys, overridden)
    for key in EMPTIED:
        section, keys = _section_with(source, key)
        if section is not None and not section[keys[-1]]:
            del section[keys[-1]]


def _rename(source: RecipeSource, section: dict[str, Any], old: Keys, new: Keys, overridden: Keys | None) -> None:
    value, place = section.pop(old[-1]), source.place(old)
    if new[-1] in section and overridden != old:
        source.problems.append(Problem(Kind.KEY_RENAMED, place=place, key=dotted(old), values={"new": dotted(new)}))
        return
    section[new[-1]] = value
    if old in source.lines:
        source.lines[new] = source.lines[old]
    if overridden == old:
        source.overridden.append(new)
    _note(source, place, rename_note(dotted(old)), overridden)


def _remove(source: RecipeSource, section: dict[str, Any], keys: Keys, overridden: Keys | None) -> None:
    key, value, place = dotted(keys), section.pop(keys[-1]), source.place(keys)
    if value == REMOVED[key].off:
        _note(source, place, f"{key} {removal_text(key)}", overridden)
    else:
        source.problems.append(Problem(Kind.KEY_REMOVED, place=place, key=key, values={"text": removal_text(key)}))


def _section_with(source: RecipeSource, key: str) -> tuple[dict[str, Any] | None, Keys]:
    """The section of the values that holds a dotted key, or None, and the key's path."""
    keys: Keys = tuple(key.split("."))
    section: Any = source.values
    for name in keys[:-1]:
        section = section.get(name) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) and keys[-1] in section else None), keys


def _note(source: RecipeSource, place: Place, text: str, overridden: Keys | None) -> None:
    """Add a note, unless it is about the recipe.yaml that a run recorded: nobody edits that."""
    if overridden is not None or not source.recorded:
        source.notes.append(f"{place}: {text}")
