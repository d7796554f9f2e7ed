"""Whether a value read from a JSON file has the type that a TypedDict promises."""

import types
import typing
from typing import Any, Literal, NotRequired, Required, TypedDict, Union, get_args, get_origin, get_type_hints


def mismatches(value: Any, expected: Any, path: str = "value") -> list[str]:
    """Where a JSON value is not of a type, as paths with the reason; missing and unknown keys included."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return []
    if origin in (Required, NotRequired):
        return mismatches(value, arguments[0], path)
    if origin in (Union, types.UnionType):
        options = [mismatches(value, option, path) for option in arguments]
        return [] if [] in options else min(options, key=len)
    if typing.is_typeddict(expected):
        return _record_mismatches(value, expected, path)
    if origin is Literal:
        return [] if value in arguments else [f"{path}: {value!r} is not one of {arguments}"]
    if origin is list and isinstance(value, list):
        return [
            wrong for index, item in enumerate(value) for wrong in mismatches(item, arguments[0], f"{path}[{index}]")
        ]
    if origin is dict and isinstance(value, dict):
        return [wrong for key, item in value.items() for wrong in mismatches(item, arguments[1], f"{path}.{key}")]
    known = {float: (int, float), int: int, str: str, bool: bool, types.NoneType: types.NoneType}.get(expected)
    if known and isinstance(value, known) and (expected is bool or not isinstance(value, bool)):
        return []
    return [f"{path}: {value!r} is not {expected}"]


def _record_mismatches(value: Any, expected: type[TypedDict], path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is not a record"]
    hints = get_type_hints(expected, include_extras=True)
    optional = {key for key, hint in hints.items() if get_origin(hint) is NotRequired} | expected.__optional_keys__
    wrong = [f"{path}.{key} is unknown" for key in value.keys() - hints.keys()]
    wrong += [f"{path}.{key} is missing" for key in hints.keys() - value.keys() - optional]
    return wrong + [
        line for key in value.keys() & hints.keys() for line in mismatches(value[key], hints[key], f"{path}.{key}")
    ]
