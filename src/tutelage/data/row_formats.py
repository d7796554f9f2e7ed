"""A raw row, in any of the known row formats, becomes an `Example`: prompt, answer, accepted answers, allowed labels.

    prompt + completion          text as it is (or message lists with `data.chat_template`)
    messages / conversations     the last assistant turn is the answer; turns are role/content, or from/value (ShareGPT)
    instruction (input) output   Alpaca, with `system` and `history`
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
    read_columns,
    template_fields,
    text_of,
)
from tutelage.data.contents.choices import choice_of, choices_in
from tutelage.data.contents.entities import entities_in, entities_of_tags
from tutelage.data.contents.sameness import content_of
from tutelage.data.files.printed import opened
from tutelage.data.files.problems import BAD_CELL, Row, check_size, half_character
from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.recipe.schema import Data, Task
from tutelage.records import Example
from tutelage.tasks import template_for
from tutelage.tasks.ner import NO_ENTITIES, answer_from_entities
from tutelage.tasks.qa import choice_letters, render_choices
from tutelage.tasks.verbalizers import Verbalizers

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
    before: Turns = field(default_factory=list)
    """Turns in front of it: `system` and `history` of the row."""
    answer: str | None = None
    answers: list[str] = field(default_factory=list)
    """Accepted besides `answer`, which is the one to learn."""
    labels: list[str] | None = None
    choices: list[str] = field(default_factory=list)
    """Texts of the choices, in the order of the row."""


def example_from_row(
    row: Row,
    *,
    place: Place,
    split: str,
    task: Task,
    data: Data,
    labels: list[str] | None,
    need_answer: bool = True,
    read_answer: bool = True,
) -> Example:
    """The example that a raw row stands for.

    place: for messages. labels: the resolved label set, for the `{labels}` field of templates. need_answer: False for
    rows to predict. read_answer: False for rows whose answer, if they have one, is of no use, so that it cannot be
    wrong either. The id is the user's, or a hash of prompt and answer. Raises DataError, with place and split, for a
    row that cannot be used.
    """
    try:
        check_size(row.values())
        mapped = read_columns(row, task, data, need_answer=need_answer)
        if not read_answer and len(columns := ROW_FORMATS.get(mapped.row_format or "", ())) > 1:
            mapped.row[columns[-1]] = None
        language = _text_or_none(mapped.row.get("language")) or task.language
        content = _content(mapped, language, task, data)
        answer = (content.answer or "").strip()
        if need_answer and not answer:
            raise DataError(_no_answer(mapped))
        prompt, compared = _prompt(content, mapped, task, data, labels, language)
        allowed = _allowed(mapped.row.get("labels"), task) or content.labels
        accepted = list(dict.fromkeys(text for text in [answer, *content.answers] if text))
        row_id, subdomain = (_text_or_none(mapped.row.get(name)) for name in ("id", "subdomain"))
        _check_texts([prompt, answer, accepted, allowed, row_id, language, subdomain])
    except DataError as error:
        raise DataError(*(replace(problem, split=split, place=place) for problem in error.problems)) from None
    return Example(
        id=row_id or content_id(prompt, answer),
        split=split,
        prompt=prompt,
        answer=answer,
        answers=accepted,
        labels=allowed,
        language=language,
        subdomain=subdomain,
        content=compared,
    )


def content_id(prompt: Any, answer: str) -> str:
    """Id of a row without one: 16 hexadecimal digits of a hash over prompt and answer."""
    text = json.dumps([prompt, answer], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_texts(texts: list[Any]) -> None:
    """Raises DataError for what no tokenizer takes: half a character (cells may hold JSON with escapes), huge texts."""
    check_size(texts)  # a template may join several columns, or show one several times
    if half := half_character(texts):
        values = {"column": None, "character": f"\\u{ord(half):04x}"}
        raise DataError(Problem(Kind.HALF_CHARACTER, values=values))


def _content(mapped: MappedRow, language: str | None, task: Task, data: Data) -> RowContent:
    """What the builder of the row format makes of a row. Raises DataError for cells of the wrong type, too."""
    if mapped.row_format is None:
        return RowContent()
    try:
        content = _BUILDERS[mapped.row_format](mapped.row | {"language": language}, data)
        if task.type == "qa" and mapped.row_format not in NATIVE["qa"]:  # those of every task may have answers, too
            content.answers = accepted_answers(mapped.row.get("answers"))
        return content
    except DataError:
        raise
    except BAD_CELL as error:
        values = {"row_format": " + ".join(ROW_FORMATS[mapped.row_format]), "reason": repr(error)}
        raise DataError(Problem(Kind.CELL_INVALID, values=values)) from None


def _no_answer(mapped: MappedRow) -> Problem:
    column = ROW_FORMATS[mapped.row_format or "prompt"][-1]
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


# --- prompts ---


def _prompt(
    content: RowContent, mapped: MappedRow, task: Task, data: Data, labels: list[str] | None, language: str | None
) -> tuple[str | Turns, str | None]:
    """(what the model reads, `Example.content`)."""
    prompt, compared = content.prompt, None
    if data.template or prompt is None:
        template = data.template or template_for(task.type, language, mapped.row_format == "choice")
        values = mapped.template_values | content.fields | {"labels": _listed(labels, task)}
        prompt = _render(template, values, mapped.gold)
        shown = {name: values[name] for name in template_fields(template)}
        context = _text_or_none(mapped.row.get("context"))
        if not data.template and mapped.row_format == "choice" and context:
            prompt = f"{context}\n{prompt}"  # the passage that the question is about
            shown["context"] = context
        compared = content_of(shown, content.choices)
    elif not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError(Problem(Kind.PROMPT_EMPTY, values={"column": ROW_FORMATS[mapped.row_format][0]}))
    if data.chat_template:
        turns = [*content.before, *(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}])]
        return with_system(turns, data), compared
    if isinstance(prompt, list):
        raise DataError(Problem(Kind.CHAT_TEMPLATE_NEEDED, key="data.chat_template", change="data.chat_template=true"))
    return "\n".join([*(turn["content"] for turn in content.before), prompt]), compared


def with_system(turns: Turns, data: Data) -> Turns:
    """The turns, with the system message of the recipe in front unless they begin with one."""
    system = [{"role": "system", "content": data.system}] if data.system and turns[0]["role"] != "system" else []
    return [*system, *turns]


def _listed(labels: list[str] | None, task: Task) -> str:
    """The label set as the models read it."""
    return ", ".join(map(Verbalizers(task.verbalizers).written, labels or []))


def _render(template: str, values: Row, gold: frozenset[str]) -> str:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        if shown := [name for name in names if name in gold]:
            raise DataError(_template_problem(Kind.TEMPLATE_SHOWS_ANSWER, name=shown[0]))
        missing = [name for name in names if values.get(name) is None]
        if not_text := [name for name in names if isinstance(values.get(name), bytes)]:
            reason = f"the column {not_text[0]!r} holds bytes instead of text"
            raise DataError(_template_problem(Kind.TEMPLATE_INVALID, reason=reason))
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


def _from_prompt(row: Row, data: Data) -> RowContent:
    prompt = row["prompt"]
    prompt = _turns(prompt) if isinstance(prompt, list) else text_of(prompt) or ""
    answer = row.get("completion")
    if isinstance(answer, list):
        answer = _turns(answer)[-1]["content"] if answer else None
    return RowContent(prompt=prompt, before=_before(row, prompt, data), answer=text_of(answer))


def _from_messages(row: Row, data: Data) -> RowContent:
    return _from_turns(row, "messages", data)


def _from_conversations(row: Row, data: Data) -> RowContent:
    return _from_turns(row, "conversations", data)


def _from_turns(row: Row, column: str, data: Data) -> RowContent:
    turns = _turns(listed_objects(list_in(row[column], column)))
    answer = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else None
    if not turns:
        raise DataError(Problem(Kind.MESSAGES_WITHOUT_PROMPT))
    return RowContent(prompt=turns, before=_before(row, turns, data), answer=answer)


def _before(row: Row, prompt: str | Turns, data: Data) -> Turns:
    """The turns of the row's `system` and `history`: messages, or pairs of what was asked and answered.

    A system message that the prompt itself begins with is not repeated; a template says what it shows.
    """
    if data.template:
        return []
    system, history = text_of(row.get("system")), listed_objects(opened(row.get("history")))
    if isinstance(prompt, list) and prompt[:1] and prompt[0]["role"] == "system":
        system = None
    turns = [{"role": "system", "content": system}] if system and system.strip() else []
    if history in (None, ""):
        return turns
    if not isinstance(history, list):
        raise DataError(Problem(Kind.CELL_NOT_A_LIST, values={"column": "history", "found": history}))
    for entry in history:
        if isinstance(entry, dict):
            turns += _turns([entry])
        else:
            asked, answered = (text_of(text) or "" for text in entry)
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return turns


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


def _from_alpaca(row: Row, data: Data) -> RowContent:
    prompt = "\n".join(text for text in (text_of(row["instruction"]), text_of(row.get("input"))) if text)
    return RowContent(prompt=prompt, before=_before(row, prompt, data), answer=text_of(row.get("output")))


# --- formats of one task ---


def _from_label(row: Row, data: Data) -> RowContent:
    label = opened(row.get("label"))
    if isinstance(label, list) and len(label) < 2:
        label = label[0] if label else None
    if isinstance(label, list | dict):
        raise DataError(Problem(Kind.LABEL_NOT_SINGLE, values={"label": label}))
    return RowContent(_fields(row, "text"), answer=text_of(label))


def _from_span(row: Row, data: Data) -> RowContent:
    accepted = accepted_answers(row.get("answers"))
    return RowContent(_fields(row, "question", "context"), answer=accepted[0] if accepted else None, answers=accepted)


def _from_choice(row: Row, data: Data) -> RowContent:
    texts, names = choices_in(row)
    letters, answer = choice_letters(len(texts)), row.get("answer")
    fields = _fields(row, "question") | {"choices": render_choices(texts)}
    if answer in (None, ""):
        return RowContent(fields, labels=letters, choices=texts)
    position = choice_of(answer, texts, names, data.choice_answer)
    return RowContent(fields, answer=letters[position], labels=letters, choices=texts)


def _from_entities(row: Row, data: Data) -> RowContent:
    text = text_of(row["text"]) or ""
    pairs = entities_in(row.get("entities"), text, data.offsets)
    return RowContent({"text": text}, answer=None if pairs is None else answer_from_entities(pairs))


def _from_tokens(row: Row, data: Data) -> RowContent:
    text, pairs = entities_of_tags(row["tokens"], row.get("tags"), row["language"], data.join_tokens)
    return RowContent({"text": text}, answer=None if pairs is None else answer_from_entities(pairs))


# --- cells ---


def _fields(row: Row, *names: str) -> Row:
    return {name: text_of(row[name]) for name in names if name in row}


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
