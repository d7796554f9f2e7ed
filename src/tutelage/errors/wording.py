"""The texts of all problems, for showing only: nothing reads them back.

A text says what was found and what to write instead. It is made from a problem's fields and `values`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tutelage.errors import wording_machine, wording_models, wording_stops
from tutelage.errors.kinds import Kind
from tutelage.errors.problem import Problem
from tutelage.errors.secrets import redacted
from tutelage.errors.wording_rows import ANSWERS, COLUMNS, FILES, SHOWN, SPLIT_WORDS, Text, Values

LONGEST_TEXT, LONGEST_LIST = 2000, 200
"""Characters of a text, and entries of a list, that a message shows."""
_FIELDS = [field.name for field in fields(Problem)]
_WITHOUT_IDENTIFIER = (
    *(Kind.USER, Kind.CONFIG, Kind.DATA, Kind.MODEL, Kind.STALE_ARTIFACT, Kind.RUN_LOCKED, Kind.DISK_FULL),
)
"""Kinds that say no more than the class of the error."""


def message(lines: Sequence[str], subject: str | None = None, problems: int | None = None) -> str:
    """The text of an error: a single line, or a title and a line for each problem or group of problems.

    problems: how many there are; default, one for each line.
    """
    if len(lines) == 1 and subject is None:
        return lines[0]
    count = len(lines) if problems is None else problems
    title = f"{subject or 'this'} has {count:,} problem{'s' * (count != 1)}:"
    return "\n".join([title, *(f"  - {line}" for line in lines)])


def line(problem: Problem) -> str:
    """`PLACE: what was found, and what to do  [kind]`."""
    return _with_kind(problem_text(problem), problem.kind)


def group_line(group: Sequence[Problem]) -> str:
    """`HEADING: first problems (and N more)  [kind]`."""
    return _with_kind(group_text(group), group[0].kind)


def group_text(group: Sequence[Problem]) -> str:
    """Problems of one kind: a heading with the first of them, or the text of the only one."""
    heading = _HEADINGS.get(group[0].kind, "rows that cannot be read" if len(group) > 1 else None)
    if heading is None:
        return problem_text(group[0])
    more = f" (and {len(group) - SHOWN:,} more)" if len(group) > SHOWN else ""
    items = "; ".join(problem_text(problem) for problem in group[:SHOWN])
    return f"{_filled(heading, group[0])}: {items}{more}"


def problem_text(problem: Problem) -> str:
    """`PLACE: what was found, and what to do`."""
    text = _filled(TEXTS[problem.kind], problem)
    return redacted(f"{problem.place}: {text}" if problem.place else text)


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's text, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _filled(text: Text, problem: Problem) -> str:
    values = {name: getattr(problem, name) for name in _FIELDS} | _shortened(problem.values)
    return text.format(**values) if isinstance(text, str) else text(values)


def _shortened(value: Any) -> Any:
    """A value with its longest texts and lists cut: a cell may hold megabytes."""
    if type(value) is dict:
        return {key: _shortened(entry) for key, entry in value.items()}
    if type(value) is list:
        return [_shortened(entry) for entry in value[:LONGEST_LIST]]
    return f"{value[:LONGEST_TEXT]} ..." if isinstance(value, str) and len(value) > LONGEST_TEXT else value


def _with_kind(text: str, kind: Kind) -> str:
    if kind in _WITHOUT_IDENTIFIER:
        return text
    first, *rest = text.splitlines()
    return "\n".join([f"{first}  [{kind}]", *rest])


_HEADINGS: dict[Kind, Text] = {
    Kind.ANSWER_EMPTY: "empty answers",
    Kind.COLUMNS_UNRECOGNISED: "unrecognised columns",
    Kind.COLUMNS_AMBIGUOUS: "ambiguous columns",
    Kind.COLUMN_NOT_MAPPED: "mapped columns that no training row has",
    Kind.TEMPLATE_VALUE_MISSING: "values that the prompt's template needs",
    Kind.ENTITY_NOT_IN_TEXT: "entities that are not in their text",
    Kind.ENTITIES_UNREADABLE: "answers that are not entities (`TYPE: text` lines, or `none`)",
    Kind.LABEL_OUTSIDE_SET: "labels outside the set; add them to task.labels, or leave the rows out",
    Kind.VERBALIZER_LABEL_UNKNOWN: "short forms of labels that the rows do not have",
    Kind.VERBALIZER_IS_LABEL: "short forms that are other labels",
    Kind.ID_REPEATED: "repeated ids; give every row its own id, or none",
    Kind.ROW_IN_TWO_SPLITS: lambda v: (
        f"{SPLIT_WORDS[v['split']]} rows that are also {v['other_split']} rows; remove them, or write data.overlap=drop"
    ),
    Kind.PROMPT_WITHOUT_TOKENS: "prompts without tokens",
}
"""What several problems of one kind have in common; `TEXTS` then says what is wrong with each row."""


# --- recipe ---


def _unsuitable_metric(v: Values) -> str:
    known = ", ".join(v["metrics"])
    if v["known_to_task"]:
        rows = "choices (a closed set of answers)" if v["choice"] else "free answers"
        return f"task.metric: {v['metric']!r} does not fit questions with {rows}. Write one of: {known}."
    hint = f" Did you mean {v['near']!r}?" if v["near"] else ""
    return f"task.metric: a {v['task']} run cannot select by {v['metric']!r}. Write one of: {known}.{hint}"


_RECIPE: dict[Kind, Text] = {
    Kind.RECIPE_UNREADABLE: "{text}",
    Kind.RECIPE_EMPTY: "{text}",
    Kind.YAML_INVALID: "{text}",
    Kind.KEY_REPEATED: "{key}: written twice, first in line {first_line}; keep one of them",
    Kind.KEY_UNKNOWN: "{key}: {text}",
    Kind.KEY_RENAMED: "{key}: is the old name of {new}, which is given too; remove {key}",
    Kind.KEY_REMOVED: "{key}: {text}",
    Kind.KEY_MISSING: "{key}: missing; write for example `{example}`",
    Kind.VALUE_INVALID: "{key}: {text}",
    Kind.VALUES_CONFLICT: "{key}: {text}",
    Kind.OVERRIDE_INVALID: "override {override!r}: {text}",
    Kind.METHOD_SETTING_INVALID: "{text}",
    Kind.SECRET_IN_RECIPE: (
        "{key}: holds a token or password, and a run copies its recipe into files that are passed on; take it out. The"
        " Hub reads a token from the environment (HF_TOKEN) or from `hf auth login`, trackers read their own variables"
    ),
    Kind.METRIC_UNSUITABLE: _unsuitable_metric,
    Kind.DECODING_UNSUITABLE: (
        "task.decoding: labels needs closed answers, and these rows have free text; write generate"
    ),
}


TEXTS: dict[Kind, Text] = {
    **dict.fromkeys(_WITHOUT_IDENTIFIER, "{text}"),
    **_RECIPE,
    **FILES,
    **COLUMNS,
    **ANSWERS,
    **wording_machine.TEXTS,
    **wording_stops.TEXTS,
    **wording_models.TEXTS,
    Kind.ARTIFACT_DAMAGED: "{path} is damaged: expected {expected}, found {found}. {again}",
    Kind.DISK_TOO_SMALL: lambda v: (
        f"the cache needs up to {v['needed'] / 1e9:,.1f} GB and {v['folder']} has {v['free'] / 1e9:,.1f} GB free. Use a"
        " larger disk (output_dir=...), fewer checkpoints (teach.num_checkpoints=...) or cache.dtype=bfloat16"
    ),
}
"""What to say about one problem of each kind."""
