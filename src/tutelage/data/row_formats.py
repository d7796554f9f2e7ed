"""A raw row, in any of the shapes that users have, becomes an `Example`: prompt, answer, accepted answers, allowed
labels.

    prompt + completion          text as it is (or message lists with `data.chat_template`)
    messages / conversations     the last assistant turn is the answer; turns are role/content or ShareGPT's from/value
    instruction (input) output   Alpaca
    text + label                 classification
    text + entities, tokens + tags                    see `entities.py`
    question + context + answers, question + choices + answer

Which one it is follows from task and columns (`columns.py`). Prompts of the task-native shapes come from
`data.template` or the task's own.
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass, field
from typing import Any

from tutelage.data.columns import (
    NATIVE,
    SHAPES,
    Reading,
    Row,
    accepted_answers,
    list_in,
    listed_objects,
    opened,
    read_columns,
)
from tutelage.data.entities import entities_in, entities_of_tags
from tutelage.errors import DataError
from tutelage.recipe.schema import Data, Task
from tutelage.records import Example
from tutelage.tasks import template_for
from tutelage.tasks.ner import NO_ENTITIES, answer_from_entities
from tutelage.tasks.qa import choice_letters, render_choices

Turns = list[dict[str, str]]
ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles."""


@dataclass
class Parts:
    """What a shape yields before the prompt is rendered."""

    fields: Row = field(default_factory=dict)
    """Values for the places of a template."""
    prompt: str | Turns | None = None
    """Set where the row brings its own prompt."""
    answer: str | None = None
    answers: list[str] = field(default_factory=list)
    """Accepted besides `answer`."""
    labels: list[str] | None = None


def example_from_row(
    row: Row, *, where: str, split: str, task: Task, data: Data, labels: list[str] | None, need_answer: bool = True
) -> Example:
    """The example that a row is.

    where: `file:line`, for messages. labels: the resolved label set, for the `{labels}` place of templates.
    need_answer: False for rows to predict. The id is the user's, or a hash of prompt and answer. Raises DataError for a
    row that is none.
    """
    try:
        reading = read_columns(row, task, data, need_answer=need_answer)
        language = _word(reading.row.get("language")) or task.language
        parts = _parts(reading, language)
        answer = (parts.answer or "").strip()
        if need_answer and not answer:
            raise DataError(_no_answer(reading))
        prompt = _prompt(parts, reading, task, data, labels, language)
        allowed = _allowed(reading.row.get("labels"), task) or parts.labels
        accepted = _accepted(answer, parts, reading, task)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return Example(
        id=_word(reading.row.get("id")) or content_id(prompt, answer),
        split=split,
        prompt=prompt,
        answer=answer,
        answers=accepted,
        labels=allowed,
        language=language,
        subdomain=_word(reading.row.get("subdomain")),
    )


def content_id(prompt: Any, answer: str) -> str:
    """Id of a row that has none: 16 hexadecimal digits of a hash over prompt and answer."""
    text = json.dumps([prompt, answer], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parts(reading: Reading, language: str | None) -> Parts:
    """What the shape's builder makes of a row; a cell that holds something else is a DataError too."""
    if reading.shape is None:
        return Parts()
    row = reading.row | {"language": language}
    try:
        return _BUILDERS[reading.shape](row)
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        columns = " + ".join(SHAPES[reading.shape])
        raise DataError(f"the columns of a {columns} row do not hold what they should ({error!r})") from None


def _no_answer(reading: Reading) -> str:
    column = SHAPES[reading.shape][-1]
    if column in ("messages", "conversations"):
        return (
            f"the answer is missing or empty: the last message of {column!r} is what is learned, so it must be the assistant's"
            " (role assistant, or from gpt) and hold text. Add it, or leave the row out"
        )
    hint = f"; a text without entities has [] or {NO_ENTITIES}" if column == "entities" else ""
    return f"the answer is empty (column {column!r}); every training and test row needs a gold answer{hint}"


def _allowed(labels: Any, task: Task) -> list[str] | None:
    """The row's own `labels`: the answers allowed on it. Entities have none."""
    labels = opened(labels)
    if labels in (None, "", []) or task.type == "ner":
        return None
    if not isinstance(labels, list):
        raise DataError(
            f"`labels` holds {labels!r}, and must be a list of the answers allowed on the row. If it is the gold label, write"
            " data.columns={label: labels}; to leave it unread, map it to a name of your own, data.columns={unused: labels}"
        )
    return [str(label) for label in labels]


def _accepted(answer: str, parts: Parts, reading: Reading, task: Task) -> list[str]:
    """Every accepted answer, the one to learn first. Rows of any shape that serves every task may bring `answers` to
    questions."""
    others = parts.answers
    if task.type == "qa" and reading.shape not in NATIVE["qa"]:
        others = accepted_answers(reading.row.get("answers"))
    return list(dict.fromkeys(text for text in [answer, *others] if text))


# --- prompts ---


def _prompt(
    parts: Parts, reading: Reading, task: Task, data: Data, labels: list[str] | None, language: str | None
) -> str | Turns:
    prompt = parts.prompt
    if data.template or prompt is None:
        template = data.template or template_for(task.type, language, reading.shape == "choice")
        prompt = _render(template, reading.places | parts.fields | {"labels": ", ".join(labels or [])}, reading.gold)
        if not data.template and reading.shape == "choice" and (context := _word(reading.row.get("context"))):
            prompt = f"{context}\n{prompt}"  # the passage that the question is about
    elif not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError(f"the prompt is empty (column {SHAPES[reading.shape][0]!r})")
    if data.chat_template:
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        system = [{"role": "system", "content": data.system}] if data.system and turns[0]["role"] != "system" else []
        return [*system, *turns]
    if isinstance(prompt, list):
        raise DataError(
            "the prompt is a list of messages; write data.chat_template=true to render it with the tokenizer"
        )
    return prompt


def _render(template: str, values: Row, gold: frozenset[str]) -> str:
    braces = "A brace that is meant as such is written twice: {{ }}"
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        if shown := [name for name in names if name in gold]:
            raise DataError(
                f"data.template shows the gold answer to the model in its place {{{shown[0]}}}; take it out"
            )
        missing = [name for name in names if values.get(name) is None]
        if not missing and any(str(values[name]).strip() for name in names if name != "labels"):
            return template.format(**values)
    except (ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data.template cannot be filled in: {error}. {braces}") from None
    blank = missing or [name for name in names if name != "labels"]
    if not blank:
        raise DataError(
            f"the prompt's template {template!r} has no place for anything of the row, such as {{text}}. {braces}"
        )
    what = "is empty in this row" if blank[0] in values else f"is no column of this row (it has {sorted(values)})"
    raise DataError(
        f"the prompt's template has the place {{{blank[0]}}}, which {what}; map it with data.columns, or change"
        f" data.template. {braces}"
    )


# --- shapes of every task ---


def _from_prompt(row: Row) -> Parts:
    prompt = row["prompt"]
    prompt = _turns(prompt) if isinstance(prompt, list) else "" if prompt is None else str(prompt)
    answer = row.get("completion")
    if isinstance(answer, list):
        answer = _turns(answer)[-1]["content"] if answer else None
    return Parts(prompt=prompt, answer=_text_of(answer))


def _from_messages(row: Row) -> Parts:
    return _from_turns(row["messages"], "messages")


def _from_conversations(row: Row) -> Parts:
    return _from_turns(row["conversations"], "conversations")


def _from_turns(value: Any, column: str) -> Parts:
    turns = _turns(listed_objects(list_in(value, column)))
    answer = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else None
    if not turns:
        raise DataError("no message in front of the answer")
    return Parts(prompt=turns, answer=answer)


def _turns(turns: Any) -> Turns:
    """Messages as role and content, after making sure that each holds text (images and tool calls are not learned)."""
    if not isinstance(turns, list):
        raise DataError(f"messages are a list of {{role, content}}, found {turns!r}")
    read = []
    for turn in turns:
        role, content = None, None
        if isinstance(turn, dict):
            role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"the message {turn!r} holds no text; role and content (or from and value) are text")
        read.append({"role": ROLES.get(role, role), "content": content})
    return read


def _from_alpaca(row: Row) -> Parts:
    prompt = f"{row['instruction']}\n{row['input']}" if row.get("input") else _text_of(row["instruction"])
    return Parts(prompt=prompt or "", answer=_text_of(row.get("output")))


# --- shapes of one task ---


def _from_label(row: Row) -> Parts:
    label = opened(row.get("label"))
    if isinstance(label, list) and len(label) < 2:
        label = label[0] if label else None
    if isinstance(label, list | dict):
        raise DataError(
            f"the label {label!r} is more than one, and a classification row has one (multi-label is not supported): keep one of"
            " them, or teach the list as text in prompt + completion rows"
        )
    return Parts(_fields(row, "text"), answer=_text_of(label))


def _from_span(row: Row) -> Parts:
    accepted = accepted_answers(row.get("answers"))
    return Parts(_fields(row, "question", "context"), answer=accepted[0] if accepted else None, answers=accepted)


def _from_choice(row: Row) -> Parts:
    choices = listed_objects(list_in(row["choices"], "choices"))
    if isinstance(choices, dict):
        choices = [{"label": label, "text": text} for label, text in choices.items()]
    if not isinstance(choices, list):
        raise DataError(f'choices are a list, ["one", "two"], found {choices!r}')
    names = [str(choice["label"]) for choice in choices if isinstance(choice, dict) and choice.get("label") is not None]
    texts = [choice["text"] if isinstance(choice, dict) else choice for choice in choices]
    empty = next((place for place, text in enumerate(texts, start=1) if text is None or not str(text).strip()), None)
    if empty:
        raise DataError(f"choice {empty} of {len(texts)} is empty; give each its text, or leave it out")
    texts = [str(text) for text in texts]
    letters, answer = choice_letters(len(texts)), row.get("answer")
    fields = _fields(row, "question") | {"choices": render_choices(texts)}
    return Parts(
        fields, answer=None if answer in (None, "") else letters[_place(answer, texts, names, letters)], labels=letters
    )


def _place(answer: Any, texts: list[str], names: list[str], letters: list[str]) -> int:
    """Which choice an answer is: by the row's own labels, then by letter, text or index from 0. A number is never a
    text."""
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    written = str(int(answer)) if number and float(answer).is_integer() else str(answer).strip()
    indices = [str(place) for place in range(len(texts))]
    for way in (names, indices) if number else (names, letters, texts, [letter.lower() for letter in letters], indices):
        if written in way:
            return way.index(written)
    if number:
        raise DataError(f"the answer {answer} is none of the {len(texts)} choices, which count from 0")
    raise DataError(
        f"the answer {answer!r} is none of the choices {texts}: give a letter, an index from 0, or a choice's text"
    )


def _from_entities(row: Row) -> Parts:
    text = _text_of(row["text"]) or ""
    pairs = entities_in(row.get("entities"), text)
    return Parts({"text": text}, answer=None if pairs is None else answer_from_entities(pairs))


def _from_tokens(row: Row) -> Parts:
    text, pairs = entities_of_tags(row["tokens"], row.get("tags"), row["language"])
    return Parts({"text": text}, answer=None if pairs is None else answer_from_entities(pairs))


# --- cells ---


def _fields(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names if name in row}


def _text_of(value: Any) -> str | None:
    return None if value is None else str(value)


def _word(value: Any) -> str | None:
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
