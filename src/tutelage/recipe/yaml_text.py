"""YAML as recipes use it: which text is a number, what is refused, and how values are written.

A recipe holds what JSON can hold. Text that would take long to read, or become something else than it looks, is a
`yaml.YAMLError` with its line: aliases that multiply, values that contain themselves, tags of other types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

Keys = tuple[Any, ...]
"""Path of a value: ("distill", "trainer", "learning_rate"); an integer is an index into a list."""

MOST_CHARACTERS = 1_000_000
"""Of a recipe or an override. PyYAML reads about 100,000 in a second."""
_MOST_VALUES = 100_000
"""Values in a recipe, those that aliases repeat included: a few lines of aliases can mean billions."""
DEEPEST = 20
"""Most levels of nesting; a YAML alias may contain itself."""
_LONGEST_INTEGER = 18
"""Digits. A longer one is read as a floating-point number: Python converts at most 4,300 digits, torch at most 19."""


class Loader(yaml.SafeLoader):
    """Safe YAML without some surprises of YAML 1.1: 1e-4 is a number; 12:30, 010 and 2024-01-01 are text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. A tag that its text does not fit (`!!int x`) is an error of YAML like all others."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            what = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error

    def construct_integer(self, node: yaml.ScalarNode) -> int | float:
        """A whole number; one that is too long for 64 bits as a floating-point number."""
        text = node.value.replace("_", "")
        return int(text) if len(text.lstrip("+-")) <= _LONGEST_INTEGER else float(text)


class Dumper(yaml.SafeDumper):
    """Quotes all text that `Loader` or a YAML 1.1 reader would not read as text."""


_CORE = "tag:yaml.org,2002:"
NUMBERS = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9_]*)$"),
    "float": re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.nan$"
    ),
}
Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].removeprefix(_CORE) not in ("int", "float", "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in NUMBERS.items():
    Loader.add_implicit_resolver(_CORE + _kind, _pattern, list("-+.0123456789"))
    Dumper.add_implicit_resolver(_CORE + _kind, _pattern, list("-+.0123456789"))
for _kind in ("binary", "omap", "pairs", "set", "timestamp"):  # a recipe holds only what JSON can hold
    Loader.add_constructor(_CORE + _kind, Loader.construct_undefined)
Loader.add_constructor(_CORE + "int", Loader.construct_integer)


def parse(text: str) -> tuple[Any, list[tuple[Keys, int]]]:
    """The value of a YAML document, and key and line of every value in it, in order; a key may occur twice.

    Raises yaml.YAMLError for text that is not such a document.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.MarkedYAMLError(problem=f"longer than {MOST_CHARACTERS:,} characters; rows belong in data files")
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        lines = list(_lines(node, ()))
        return loader.construct_document(node) if node else None, lines
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST} levels") from None


def _lines(root: yaml.Node | None, keys: Keys) -> Iterator[tuple[Keys, int]]:
    """Key and line of every value below a node, aliases followed. Raises YAMLError if they are too many or too deep."""
    waiting: list[tuple[yaml.Node | None, Keys]] = [(root, keys)]
    count = 0
    while waiting:
        node, keys = waiting.pop()
        count += 1
        if len(keys) > DEEPEST or count > _MOST_VALUES:
            deep = f"nested deeper than {DEEPEST} levels"
            many = f"more than {_MOST_VALUES:,} values, those that aliases repeat included"
            raise yaml.MarkedYAMLError(problem=deep if len(keys) > DEEPEST else many, problem_mark=node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, (*keys, index)) for index, item in reversed(list(enumerate(node.value)))]
        elif isinstance(node, yaml.MappingNode):
            yield from (((*keys, str(key.value)), key.start_mark.line + 1) for key, _ in node.value)
            waiting += [(value, (*keys, str(key.value))) for key, value in reversed(node.value)]


def plain(value: Any) -> Any:
    """A copy with keys as text, in which a YAML alias is a value of its own: an override changes one of them."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def on_one_line(value: Any) -> str:
    """A value as YAML on one line, as the command line takes it."""
    text = yaml.dump(
        value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=1_000_000
    )
    return text.strip()
