"""A recipe's values before validation: read from YAML with line numbers, overridden, under their present keys.

Reports text that is not a mapping of values. `yaml_text.py` defines which YAML is read.
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
from tutelage.recipe.values import cut, shown
from tutelage.recipe.yaml_text import DEEPEST, MOST_CHARACTERS, Keys, parse, plain
from tutelage.utils.integrity import check

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


# --- how keys and values are shown ---


def dotted(keys: Keys) -> str:
    """The dotted key: "distill.trainer.learning_rate"."""
    return ".".join(str(key) for key in keys)


def example(keys: Keys) -> str:
    """A line that sets a required key."""
    value = REQUIRED.get(dotted(keys), "...")
    text = (
        "{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}" if isinstance(value, dict) else value
    )
    return f"{keys[-1]}: {text}"


# --- files ---


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
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)
        values, lines = parse(text)
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
        raise _yaml_error(path, error, text) from None
    if not values:
        least = "".join(f"\n  {example((key,))}" for key in REQUIRED if "." not in key)
        raise _unreadable(path, f"the recipe is empty. It needs at least:{least}", 1, Kind.RECIPE_EMPTY)
    if not isinstance(values, dict):
        found = f"a recipe is a mapping of sections (`task:`, `data:`, ...); found {shown(values)}"
        raise _unreadable(path, found, 1, Kind.YAML_INVALID)
    source.values = plain(values)
    _note_lines(lines, source)
    if source.recorded:  # wherever the run was when it wrote this
        source.values["output_dir"] = str(path.parent)
    use_present_names(source)
    return source


def _unreadable(path: Path, text: str, line: int | None = None, kind: Kind = Kind.RECIPE_UNREADABLE) -> ConfigError:
    return ConfigError(Problem(kind, place=Place(str(path), line), values={"text": text}))


def _note_lines(lines: list[tuple[Keys, int]], source: RecipeSource) -> None:
    """Record the line of every key, and report keys that are written twice."""
    for keys, line in lines:
        if keys in source.lines:
            place, values = Place(str(source.path), line), {"first_line": source.lines[keys]}
            source.problems.append(Problem(Kind.KEY_REPEATED, place=place, key=dotted(keys), values=values))
        source.lines.setdefault(keys, line)


def _yaml_error(path: Path, error: yaml.YAMLError, text: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).split("\n")[0]
    start, context = getattr(error, "context_mark", None), getattr(error, "context", None)
    since = (
        f" ({context} that starts in line {start.line + 1})" if start and context and start.line != mark.line else ""
    )
    hint = "indent with spaces, close quotes and brackets, and quote text that contains ': ' or starts with { or ["
    start_of_text = text[: getattr(error, "position", 0)]  # of a character that YAML does not allow
    line = mark.line + 1 if mark else start_of_text.count("\n") + 1
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
    if len(keys) > DEEPEST:
        _refuse(source, text, f"more than {DEEPEST} levels; {form}")
        return
    try:
        value, lines = parse(match["value"])
    except yaml.YAMLError as error:
        quoted = f"{match['key']}={json.dumps(match['value'].strip(), ensure_ascii=False)}"
        reason = getattr(error, "problem", None) or "a character that is not allowed"
        _refuse(source, text, f"the value is not valid YAML ({reason}); {form}; text goes in quotes: '{cut(quoted)}'")
        return
    written = [given for given, _ in lines]
    for given in dict.fromkeys(given for given in written if written.count(given) > 1):
        _refuse(source, text, f"{dotted(given)} is written {written.count(given)} times; write it once")
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
    source.problems.append(Problem(Kind.OVERRIDE_INVALID, values={"override": cut(override), "text": text}))


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
