"""A raw row, in any of the shapes that users have, becomes an `Example`: prompt, answer, accepted answers, allowed labels.

    prompt + completion          text as it is (or message lists with `data.chat_template`)
    messages / conversations     the last assistant turn is the answer (ShareGPT's from/value is the same with other names)
    instruction (input) output   Alpaca
    text + label                 classification
    text + entities, tokens + tags                    entities: offsets, {type, text}, [type, text] or "TYPE: text"; BIO tags
    question + context + answers, question + choices + answer

Which one it is follows from the columns. Prompts of the task-native shapes come from `data.template` or the task's own.
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass, field
from typing import Any

from tutelage.errors import DataError
from tutelage.recipe_schema import Data, Task
from tutelage.records import Example
from tutelage.tasks import template_for
from tutelage.tasks.ner import answer_from_entities
from tutelage.tasks.qa import choice_letters, render_choices

Row = dict[str, Any]
SHAPES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "alpaca": ("instruction", "output"),
    "choice": ("question", "choices", "answer"),
    "span": ("question", "context", "answers"),
    "entities": ("text", "entities"),
    "tokens": ("tokens", "tags"),
    "label": ("text", "label"),
}
"""Shape by the columns it needs; the first that fits is taken. The last column is the answer, absent in rows to predict."""
MARKS = ("B", "I", "E", "S", "L", "U")
"""What a tag may begin with; L and U are BILOU's names of E and S."""
ALIASES = {"ner_tags": "tags", "response": "completion", "answer_text": "answers"}


@dataclass
class Parts:
    """What a shape yields before the prompt is rendered."""

    fields: Row = field(default_factory=dict)
    """Values for the places of a template."""
    prompt: str | list[dict[str, str]] | None = None
    """Set where the row brings its own prompt."""
    answer: str | None = None
    answers: list[str] | None = None
    labels: list[str] | None = None


def detect_shape(row: Row, *, need_answer: bool = True) -> str | None:
    """Name of the first shape whose columns the row has."""
    for name, columns in SHAPES.items():
        wanted = columns if need_answer or len(columns) == 1 else columns[:-1]
        if all(column in row for column in wanted):
            return name
    return None


def map_columns(row: Row, data: Data) -> Row:
    """The row under our column names: `data.columns` first, then usual other names."""
    mapped = {ALIASES.get(key, key) if ALIASES.get(key) not in row else key: value for key, value in row.items()}
    for ours, theirs in data.columns.items():
        if theirs in row:
            mapped[ours] = row[theirs]
    return mapped


def example_from_row(
    row: Row, *, where: str, split: str, task: Task, data: Data, labels: list[str] | None, need_answer: bool = True
) -> Example:
    """The example that a row is.

    where: `file:line`, for messages. labels: the resolved label set, for the `{labels}` place of templates. need_answer: False
    for rows to predict. The id is the user's, or a hash of prompt and answer. Raises DataError for a row that is none.
    """
    row = map_columns(row, data)
    shape = detect_shape(row, need_answer=need_answer)
    if shape is None and data.template and not need_answer:
        shape = "label"
    if shape is None:
        raise DataError(f"{where}: {_unknown_shape(row, task)}")
    try:
        parts = _BUILDERS[shape](row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(
            f"{where}: the columns of a {' + '.join(SHAPES[shape])} row do not hold what they should ({error!r})"
        ) from None
    if need_answer and not (parts.answer or "").strip():
        raise DataError(
            f"{where}: the answer is empty (column {SHAPES[shape][-1]!r}); every training and test row needs a gold answer"
        )
    language = row.get("language") or task.language
    allowed = row.get("labels") if isinstance(row.get("labels"), list) else parts.labels
    gold_place = f"{{{SHAPES[shape][-1]}}}"
    if data.template and len(SHAPES[shape]) > 1 and gold_place in data.template:
        raise DataError(f"{where}: data.template shows the gold answer to the model in its place {gold_place}; take it out")
    prompt = _prompt(parts, row, where, task, data, labels, language)
    answer = (parts.answer or "").strip()
    accepted = (
        [str(a).strip() for a in (parts.answers or row.get("answers") or []) if str(a).strip()]
        if shape in ("prompt", "span")
        else []
    )
    accepted = list(dict.fromkeys([answer, *accepted])) if answer else accepted
    own_id = row.get("id")
    return Example(
        id=str(own_id) if own_id not in (None, "") else content_id(prompt, answer),
        split=split,
        prompt=prompt,
        answer=answer,
        answers=accepted,
        labels=[str(label) for label in allowed] if allowed else None,
        language=language,
        subdomain=None if row.get("subdomain") is None else str(row["subdomain"]),
    )


def content_id(prompt: Any, answer: str) -> str:
    """Id of a row that has none: 16 hexadecimal digits of a hash over prompt and answer."""
    text = json.dumps([prompt, answer], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unknown_shape(row: Row, task: Task) -> str:
    wanted = {"classification": "label", "ner": "entities", "qa": "span"}[task.type]
    columns = " + ".join(SHAPES[wanted])
    return (
        f"the columns {sorted(row)} are no shape that is known; a {task.type} row has {columns} (or prompt + completion). Other"
        f" names can be mapped: data.columns={{{SHAPES[wanted][0]}: THEIR_NAME, {SHAPES[wanted][-1]}: THEIR_NAME}}"
    )


# --- prompts ------------------------------------------------------------------------------------------------------------------


def _prompt(
    parts: Parts, row: Row, where: str, task: Task, data: Data, labels: list[str] | None, language: str | None
) -> str | list[dict[str, str]]:
    prompt = parts.prompt
    if prompt is None or data.template:
        choice = "choices" in parts.fields
        template = data.template or template_for(task.type, language, choice)
        prompt = _render(template, {**row, **parts.fields, "labels": ", ".join(labels or [])}, where)
    if data.chat_template:
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        system = [{"role": "system", "content": data.system}] if data.system and turns[0]["role"] != "system" else []
        return [*system, *turns]
    if isinstance(prompt, list):
        raise DataError(f"{where}: the prompt is a list of messages; write data.chat_template=true to render it with the tokenizer")
    return prompt


def _render(template: str, values: Row, where: str) -> str:
    braces = "A brace that is meant as such is written twice: {{ }}"
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        missing = [name for name in names if values.get(name) is None]
        if not missing:
            return template.format(**values)
    except ValueError as error:
        raise DataError(f"{where}: data.template cannot be filled in: {error}. {braces}") from None
    what = "is empty in this row" if missing[0] in values else f"is no column of this row (it has {sorted(values)})"
    raise DataError(
        f"{where}: the prompt's template has the place {{{missing[0]}}}, which {what}; map it with data.columns, or change"
        f" data.template. {braces}"
    )


# --- one builder a shape ------------------------------------------------------------------------------------------------------


def _from_prompt(row: Row) -> Parts:
    prompt = row["prompt"]
    if prompt is None or prompt == "" or prompt == []:
        raise DataError("the prompt is empty")
    prompt = _checked(prompt) if isinstance(prompt, list) else str(prompt)
    return Parts(dict(row), prompt, _text_of(row.get("completion")), _strings(row.get("answers")), None)


def _from_messages(row: Row) -> Parts:
    return _from_turns([(turn["role"], turn["content"]) for turn in row["messages"]])


def _from_conversations(row: Row) -> Parts:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return _from_turns([(roles.get(turn["from"], turn["from"]), turn["value"]) for turn in row["conversations"]])


def _from_turns(turns: list[tuple[str, str]]) -> Parts:
    answer = None
    if turns and turns[-1][0] == "assistant":
        answer, turns = turns[-1][1], turns[:-1]
    if not turns:
        raise DataError("no message in front of the answer")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"the answer {answer!r} is no text; only text is learned")
    return Parts(prompt=_checked([{"role": role, "content": content} for role, content in turns]), answer=answer)


def _checked(turns: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Messages, after making sure that each holds text (images and tool calls are not learned)."""
    for turn in turns:
        if not isinstance(turn["role"], str) or not isinstance(turn["content"], str):
            raise DataError(f"the message {turn!r} holds no text; role and content are text")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _from_alpaca(row: Row) -> Parts:
    prompt = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
    return Parts(dict(row), prompt, _text_of(row.get("output")))


def _from_label(row: Row) -> Parts:
    label = row.get("label")
    return Parts({"text": row.get("text")}, answer=None if label is None else str(label))


def _from_span(row: Row) -> Parts:
    answers = row.get("answers")
    answers = answers["text"] if isinstance(answers, dict) else answers
    accepted = _strings(answers)
    fields = {"question": row["question"], "context": row["context"]}
    return Parts(fields, answer=accepted[0] if accepted else None, answers=accepted)


def _from_choice(row: Row) -> Parts:
    choices = _list_of(row["choices"], "choices")
    texts = [str(text) for text in (choices["text"] if isinstance(choices, dict) else choices)]
    letters, answer = choice_letters(len(texts)), row.get("answer")
    if isinstance(choices, dict) and answer in choices["label"]:
        answer = list(choices["label"]).index(answer)
    elif isinstance(answer, str) and answer not in letters and answer in texts:
        answer = texts.index(answer)
    if isinstance(answer, str) and answer.isdigit():
        answer = int(answer)
    if isinstance(answer, int):
        if not 0 <= answer < len(texts):
            raise DataError(f"the answer {answer} is none of the {len(texts)} choices, which count from 0")
        answer = letters[answer]
    if answer is not None and answer not in letters:
        raise DataError(f"the answer {answer!r} is none of the choices {texts}: give a letter, an index from 0, or a choice's text")
    return Parts({"question": row["question"], "choices": render_choices(texts)}, answer=answer, labels=letters)


def _from_entities(row: Row) -> Parts:
    text, entities = str(row["text"]), _list_of(row.get("entities"), "entities")
    fields = {"text": text}
    if entities is None:
        return Parts(fields)
    return Parts(fields, answer=answer_from_entities([_entity(entity, text) for entity in entities]))


def _entity(entity: Any, text: str) -> tuple[str, str]:
    """(type, surface) of an entity in any of its forms, found in the text."""
    if isinstance(entity, str):
        kind, _, surface = entity.partition(": ")
    elif isinstance(entity, dict):
        kind = entity.get("type") or entity.get("label")
        start, end = entity.get("start"), entity.get("end")
        surface = entity.get("text") or entity.get("surface")
        if start is not None:
            if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
                raise DataError(f"the entity {entity!r} has offsets outside its text of {len(text)} characters; give start and end")
            cut = text[start:end]
            if surface is not None and cut != surface:
                raise DataError(
                    f"the offsets {start}:{end} of entity {surface!r} hold {cut!r}; offsets count characters from 0, end excluded"
                )
            surface = cut
    else:
        kind, surface = entity
    if not kind or not surface:
        raise DataError(f"the entity {entity!r} has no type or no text; write {{type, text}} or {{type, start, end}}")
    if surface not in text:
        raise DataError(f"the entity {surface!r} ({kind}) is not in the text {text[:80]!r}: correct it, or leave it out")
    return str(kind), str(surface)


def _from_tokens(row: Row) -> Parts:
    tokens, tags = _words(row["tokens"]), row.get("tags")
    joined = " ".join(tokens)
    if tags is None:
        return Parts({"text": joined})
    tags = _words(tags)
    if len(tokens) != len(tags):
        raise DataError(f"{len(tokens)} tokens and {len(tags)} tags; each token needs one")
    return Parts({"text": joined}, answer=answer_from_entities(_spans(tokens, tags)))


def _spans(tokens: list[str], tags: list[str]) -> list[tuple[str, str]]:
    """Entities of BIO, IOB1 or BIOES tags: a new one begins at B-, S-, a change of type, or an I- after O."""
    spans: list[tuple[str, list[str]]] = []
    inside = None
    for token, tag in zip(tokens, tags, strict=True):
        mark, _, kind = tag.partition("-")
        if tag == "O":
            inside = None
            continue
        if mark not in MARKS or not kind:
            raise DataError(
                f"the tag {tag!r} is none of BIO, IOB1 or BIOES: write O, or {', '.join(MARKS[:2])} ... with a type (B-PER)."
                " Numbers need their names, which a hub data set brings along"
            )
        if mark in ("B", "S", "U") or kind != inside:
            spans.append((kind, []))
        spans[-1][1].append(token)
        inside = None if mark in ("E", "L", "S", "U") else kind
    return [(kind, " ".join(words)) for kind, words in spans]


def _list_of(value: Any, column: str) -> Any:
    """A list as it is, or read from the JSON in a CSV cell."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise DataError(f'the column {column!r} holds {value!r}; in a text cell, write a JSON list: ["a", "b"]') from None


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(entry) for entry in value]


def _strings(value: Any) -> list[str] | None:
    return None if value is None else [value] if isinstance(value, str) else [str(entry) for entry in value]


def _text_of(value: Any) -> str | None:
    """A completion as text; a list of messages gives the last one's content."""
    return value[-1]["content"] if isinstance(value, list) else None if value is None else str(value)


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
