"""A raw row, in any of the known row formats, becomes an `Example`: prompt, answer, accepted answers, allowed labels.

    prompt + completion          text as it is (or message lists with `data.chat_template`)
    messages / conversations     the last assistant turn is the answer; turns are role/content, or from/value (ShareGPT)
    instruction (input) output   Alpaca
    text + label                 classification
    text + entities, tokens + tags                    see `entities.py`
    question + context + answers, question + choices + answer

Task and columns decide which it is (`columns.py`). Prompts of formats that belong to a task come from `data.template`
or the default template of the task.
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.data.columns import (
    NATIVE,
    ROW_FORMATS,
    MappedRow,
    accepted_answers,
    list_in,
    listed_objects,
    opened,
    read_columns,
)
from tutelage.data.entities import entities_in, entities_of_tags
from tutelage.data.readers import Row
from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.recipe.schema import Data, Task
from tutelage.records import Example
from tutelage.tasks import template_for
from tutelage.tasks.ner import NO_ENTITIES, answer_from_entities
from tutelage.tasks.qa import choice_letters, render_choices

Turns = list[dict[str, str]]
ROLES = {"human": "user", "gpt": "assistant"}
"""Role names of ShareGPT."""


@dataclass
class RowContent:
    """What a row format yields before the prompt is rendered."""

    fields: Row = field(default_factory=dict)
    """Values for the fields of a template."""
    prompt: str | Turns | None = None
    """Set where the row has a prompt of its own."""
    answer: str | None = None
    answers: list[str] = field(default_factory=list)
    """Accepted besides `answer`."""
    labels: list[str] | None = None


def example_from_row(
    row: Row, *, place: Place, split: str, task: Task, data: Data, labels: list[str] | None, need_answer: bool = True
) -> Example:
    """The example that a raw row stands for.

    place: for messages. labels: the resolved label set, for the `{labels}` field of templates. need_answer: False for
    rows to predict. The id is the user's, or a hash of prompt and answer. Raises DataError, with place and split, for a
    row that cannot be used.
    """
    try:
        mapped = read_columns(row, task, data, need_answer=need_answer)
        language = _text_or_none(mapped.row.get("language")) or task.language
        content = _content(mapped, language)
        answer = (content.answer or "").strip()
        if need_answer and not answer:
            raise DataError(_no_answer(mapped))
        prompt = _prompt(content, mapped, task, data, labels, language)
        allowed = _allowed(mapped.row.get("labels"), task) or content.labels
        accepted = _accepted(answer, content, mapped, task)
    except DataError as error:
        raise DataError(*(replace(problem, split=split, place=place) for problem in error.problems)) from None
    return Example(
        id=_text_or_none(mapped.row.get("id")) or content_id(prompt, answer),
        split=split,
        prompt=prompt,
        answer=answer,
        answers=accepted,
        labels=allowed,
        language=language,
        subdomain=_text_or_none(mapped.row.get("subdomain")),
    )


def content_id(prompt: Any, answer: str) -> str:
    """Id of a row without one: 16 hexadecimal digits of a hash over prompt and answer."""
    text = json.dumps([prompt, answer], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content(mapped: MappedRow, language: str | None) -> RowContent:
    """What the builder of the row format makes of a row. Raises DataError for cells of the wrong type, too."""
    if mapped.row_format is None:
        return RowContent()
    try:
        return _BUILDERS[mapped.row_format](mapped.row | {"language": language})
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        values = {"row_format": " + ".join(ROW_FORMATS[mapped.row_format]), "reason": repr(error)}
        raise DataError(Problem(Kind.CELL_INVALID, values=values)) from None


def _no_answer(mapped: MappedRow) -> Problem:
    column = ROW_FORMATS[mapped.row_format][-1]
    if column in ("messages", "conversations"):
        return Problem(Kind.CHAT_ANSWER_MISSING, values={"column": column})
    return Problem(Kind.ANSWER_EMPTY, values={"column": column, "no_entities": NO_ENTITIES})


def _allowed(labels: Any, task: Task) -> list[str] | None:
    """The `labels` of the row itself: the answers allowed on it. Entities have none."""
    labels = opened(labels)
    if labels in (None, "", []) or task.type == "ner":
        return None
    if not isinstance(labels, list):
        values = {"found": labels}
        raise DataError(Problem(Kind.LABELS_NOT_LISTED, change="data.columns={label: labels}", values=values))
    return [str(label) for label in labels]


def _accepted(answer: str, content: RowContent, mapped: MappedRow, task: Task) -> list[str]:
    """Every accepted answer, the one to learn first. A question in a format of every task may have `answers`, too."""
    others = content.answers
    if task.type == "qa" and mapped.row_format not in NATIVE["qa"]:
        others = accepted_answers(mapped.row.get("answers"))
    return list(dict.fromkeys(text for text in [answer, *others] if text))


# --- prompts ---


def _prompt(
    content: RowContent, mapped: MappedRow, task: Task, data: Data, labels: list[str] | None, language: str | None
) -> str | Turns:
    prompt = content.prompt
    if data.template or prompt is None:
        template = data.template or template_for(task.type, language, mapped.row_format == "choice")
        values = mapped.template_values | content.fields | {"labels": ", ".join(labels or [])}
        prompt = _render(template, values, mapped.gold)
        context = _text_or_none(mapped.row.get("context"))
        if not data.template and mapped.row_format == "choice" and context:
            prompt = f"{context}\n{prompt}"  # the passage that the question is about
    elif not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError(Problem(Kind.PROMPT_EMPTY, values={"column": ROW_FORMATS[mapped.row_format][0]}))
    if data.chat_template:
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        system = [{"role": "system", "content": data.system}] if data.system and turns[0]["role"] != "system" else []
        return [*system, *turns]
    if isinstance(prompt, list):
        raise DataError(Problem(Kind.CHAT_TEMPLATE_NEEDED, key="data.chat_template", change="data.chat_template=true"))
    return prompt


def _render(template: str, values: Row, gold: frozenset[str]) -> str:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        if shown := [name for name in names if name in gold]:
            raise DataError(_template_problem(Kind.TEMPLATE_SHOWS_ANSWER, name=shown[0]))
        missing = [name for name in names if values.get(name) is None]
        if not missing and any(str(values[name]).strip() for name in names if name != "labels"):
            return template.format(**values)
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        raise DataError(_template_problem(Kind.TEMPLATE_INVALID, reason=str(error))) from None
    blank = missing or [name for name in names if name != "labels"]
    if not blank:
        raise DataError(_template_problem(Kind.TEMPLATE_SHOWS_NOTHING, template=template))
    columns = None if blank[0] in values else sorted(values)
    raise DataError(_template_problem(Kind.TEMPLATE_VALUE_MISSING, name=blank[0], columns=columns))


def _template_problem(kind: Kind, **values: Any) -> Problem:
    return Problem(kind, key="data.template", values=values)


# --- formats of every task ---


def _from_prompt(row: Row) -> RowContent:
    prompt = row["prompt"]
    prompt = _turns(prompt) if isinstance(prompt, list) else "" if prompt is None else str(prompt)
    answer = row.get("completion")
    if isinstance(answer, list):
        answer = _turns(answer)[-1]["content"] if answer else None
    return RowContent(prompt=prompt, answer=_text_of(answer))


def _from_messages(row: Row) -> RowContent:
    return _from_turns(row["messages"], "messages")


def _from_conversations(row: Row) -> RowContent:
    return _from_turns(row["conversations"], "conversations")


def _from_turns(value: Any, column: str) -> RowContent:
    turns = _turns(listed_objects(list_in(value, column)))
    answer = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else None
    if not turns:
        raise DataError(Problem(Kind.MESSAGES_WITHOUT_PROMPT))
    return RowContent(prompt=turns, answer=answer)


def _turns(turns: Any) -> Turns:
    """Messages as role and content. Raises DataError for one without text (images and tool calls are not learned)."""
    if not isinstance(turns, list):
        raise DataError(Problem(Kind.MESSAGES_NOT_A_LIST, values={"found": turns}))
    messages = []
    for turn in turns:
        role, content = None, None
        if isinstance(turn, dict):
            role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(Problem(Kind.MESSAGE_WITHOUT_TEXT, values={"found": turn}))
        messages.append({"role": ROLES.get(role, role), "content": content})
    return messages


def _from_alpaca(row: Row) -> RowContent:
    prompt = f"{row['instruction']}\n{row['input']}" if row.get("input") else _text_of(row["instruction"])
    return RowContent(prompt=prompt or "", answer=_text_of(row.get("output")))


# --- formats of one task ---


def _from_label(row: Row) -> RowContent:
    label = opened(row.get("label"))
    if isinstance(label, list) and len(label) < 2:
        label = label[0] if label else None
    if isinstance(label, list | dict):
        raise DataError(Problem(Kind.LABEL_NOT_SINGLE, values={"label": label}))
    return RowContent(_fields(row, "text"), answer=_text_of(label))


def _from_span(row: Row) -> RowContent:
    accepted = accepted_answers(row.get("answers"))
    return RowContent(_fields(row, "question", "context"), answer=accepted[0] if accepted else None, answers=accepted)


def _from_choice(row: Row) -> RowContent:
    choices = listed_objects(list_in(row["choices"], "choices"))
    if isinstance(choices, dict):
        choices = [{"label": label, "text": text} for label, text in choices.items()]
    if not isinstance(choices, list):
        raise DataError(Problem(Kind.CHOICES_NOT_A_LIST, values={"found": choices}))
    names = [str(choice["label"]) for choice in choices if isinstance(choice, dict) and choice.get("label") is not None]
    texts = [choice["text"] if isinstance(choice, dict) else choice for choice in choices]
    empty = next((number for number, text in enumerate(texts, start=1) if text is None or not str(text).strip()), None)
    if empty:
        raise DataError(Problem(Kind.CHOICE_EMPTY, values={"number": empty, "count": len(texts)}))
    texts = [str(text) for text in texts]
    letters, answer = choice_letters(len(texts)), row.get("answer")
    fields = _fields(row, "question") | {"choices": render_choices(texts)}
    letter = None if answer in (None, "") else letters[_choice_index(answer, texts, names, letters)]
    return RowContent(fields, answer=letter, labels=letters)


def _choice_index(answer: Any, texts: list[str], names: list[str], letters: list[str]) -> int:
    """Which choice an answer is: by the labels of the row, then by letter, text, or index from 0.

    A number is never taken for a text.
    """
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    written = str(int(answer)) if is_number and float(answer).is_integer() else str(answer).strip()
    indices = [str(index) for index in range(len(texts))]
    lower = [letter.lower() for letter in letters]
    for spellings in (names, indices) if is_number else (names, letters, texts, lower, indices):
        if written in spellings:
            return spellings.index(written)
    values = {"answer": answer, "choices": texts, "is_number": is_number}
    raise DataError(Problem(Kind.CHOICE_UNKNOWN, values=values))


def _from_entities(row: Row) -> RowContent:
    text = _text_of(row["text"]) or ""
    pairs = entities_in(row.get("entities"), text)
    return RowContent({"text": text}, answer=None if pairs is None else answer_from_entities(pairs))


def _from_tokens(row: Row) -> RowContent:
    text, pairs = entities_of_tags(row["tokens"], row.get("tags"), row["language"])
    return RowContent({"text": text}, answer=None if pairs is None else answer_from_entities(pairs))


# --- cells ---


def _fields(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names if name in row}


def _text_of(value: Any) -> str | None:
    return None if value is None else str(value)


def _text_or_none(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


_BUILDERS = {
    "prompt": _from_prompt,
    "messages": _from_messages,
    "conversations": _from_conversations,
    "alpaca": _from_alpaca,
    "choice": _from_choice,
    "span": _from_span,
    "entities": _from_entities,
    "tokens": _from_tokens,
    "label": _from_label,
}
