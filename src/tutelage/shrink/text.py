"""Text without labels as blocks of tokens: what layers are chosen on, and what a pruned model is healed on.

Documents are joined, each ending with end-of-sequence, and cut into blocks of equal length, as is common in
pretraining. Attention is not stopped at the end of a document, and the tokens that fill no block are left out.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tutelage.data.columns import OTHER_NAMES
from tutelage.data.dataset import load_rows
from tutelage.data.encode import EncodedRow, Encoder, make_encoder
from tutelage.data.files.text import read_text
from tutelage.data.readers import PlacedRow, check_files, read_rows
from tutelage.data.row_formats import example_from_row
from tutelage.data.unlabelled import load_unlabelled
from tutelage.errors import ConfigError, DataError, Kind
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Data, Task
from tutelage.records import Example

RECIPES = (".yaml", ".yml")
PLAIN = (".txt", ".md", "")
"""Endings of plain text. Elsewhere `.txt` is CoNLL."""
CHUNK = 1 << 16
"""Characters of plain text that are tokenized at a time, whole lines."""
NO_LIMIT = 1 << 60
HELD_OUT = 0.05
"""Fraction of the blocks that is never trained on."""


class BlockSplit(NamedTuple):
    """Which blocks are trained on and which are held out, in the order of the text."""

    train: list[int]
    held_out: list[int]


def read_documents(files: Sequence[Path], tokenizer: Any) -> Iterator[list[int]]:
    """The documents of the files as token ids, each with end-of-sequence.

    A plain text file is one document. A row of any other file is one: the conversation or prompt with its completion,
    else the text alone, without label or entities. A recipe gives the prompts of its training and unlabelled rows, as
    the student will see them. Raises DataError for files or rows that cannot be read, ConfigError for a wrong recipe.
    """
    check_files([str(file) for file in files])
    for file in files:
        ending = file.suffix.lower()
        if ending in RECIPES:
            yield from _of_recipe(file, tokenizer)
        elif ending in PLAIN:
            yield _of_plain_text(file, tokenizer)
        else:
            encoder = Encoder(tokenizer, max_length=NO_LIMIT)
            rows = read_rows([str(file)], need_answers=False)
            yield from filter(None, (_of_row(row, encoder) for row in rows))


def pack(documents: Iterable[list[int]], length: int) -> np.ndarray:
    """[blocks, length] token ids, int32. Raises ConfigError for text that does not fill two blocks."""
    tokens = array("i")
    for document in documents:
        tokens.extend(document)
    count = len(tokens) // length
    if count < 2:
        raise ConfigError(
            f"the text has {len(tokens):,} tokens, and two blocks of {length:,} are the least, one of them held out:"
            " give more text (--text FILE, more than once) or, with --heal, a smaller --block-length"
        )
    return np.frombuffer(tokens, dtype=np.int32)[: count * length].reshape(count, length)


def split_blocks(count: int, wanted: int, seed: int) -> BlockSplit:
    """A seeded sample of `count` blocks: up to `wanted` to train on, and 5 % of all that are used, at least 1, held
    out."""
    used = min(count, -(-wanted * 100 // 95) + 1)
    held_out = max(1, round(HELD_OUT * used))
    order = np.random.default_rng(seed).permutation(count)[:used].tolist()
    return BlockSplit(sorted(order[held_out:][:wanted]), sorted(order[:held_out]))


def as_rows(blocks: np.ndarray, indices: Sequence[int], split: str) -> Iterator[EncodedRow]:
    """Blocks as rows whose prompt is the first token: all others are predicted, as an answer is."""
    for index in indices:
        first, *others = blocks[index].tolist()
        yield EncodedRow(f"block-{index}", split, [first], others)


# --- documents ---


def _of_recipe(file: Path, tokenizer: Any) -> Iterator[list[int]]:
    recipe = load_recipe(file, []).recipe
    rows, encoder = load_rows(recipe), make_encoder(recipe.data, tokenizer, recipe.task)
    examples = rows.examples["train"]
    if recipe.data.has_unlabelled:
        decided = recipe.model_copy(update={"data": recipe.data.model_copy(update=rows.decided)})
        labels = recipe.task.labels if recipe.task.type == "qa" else rows.labels
        examples = [*examples, *load_unlabelled(decided, labels, rows.examples).examples]
    for example in examples:
        yield [*encoder.prompt(example), tokenizer.eos_token_id]


def _of_plain_text(file: Path, tokenizer: Any) -> list[int]:
    text = read_text(file, None, lambda encoding: file.read_text(encoding=encoding))
    ids: list[int] = []
    for chunk in _chunks(text):
        ids += tokenizer(chunk, add_special_tokens=not ids, verbose=False)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
    return [*ids, tokenizer.eos_token_id]


def _chunks(text: str) -> Iterator[str]:
    """Text in pieces that end with a line, so that a large file is not tokenized as a whole."""
    lines, size = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= CHUNK:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


def _of_row(placed: PlacedRow, encoder: Encoder) -> list[int] | None:
    """The document of a row; None where its text is blank."""
    row, place = placed
    columns = {"messages", "conversations"} & row.keys()
    chat = bool(columns) or isinstance(row.get("prompt"), list)
    readings = (
        (Task(type="qa"), Data(chat_template=chat)),
        (Task(type="classification"), Data(template="{text}")),
        (Task(type="ner"), Data(template="{text}")),
    )
    for task, data in readings:
        try:
            example = example_from_row(
                row, place=place, split="train", task=task, data=data, labels=None, need_answer=False
            )
        except DataError as error:
            if error.kind not in (Kind.COLUMNS_UNRECOGNISED, Kind.TEMPLATE_VALUE_MISSING):
                raise
            continue
        return _ids(example, encoder, with_answer=task.type == "qa")
    if any(name in row for name in ("text", *OTHER_NAMES["text"])):
        return None
    raise DataError(
        f"{place}: none of the columns {', '.join(map(str, row))} is known to hold text: call that column `text`, or"
        " give a recipe that maps it (--text RECIPE.yaml, with data.columns)"
    )


def _ids(example: Example, encoder: Encoder, with_answer: bool) -> list[int]:
    if isinstance(example.prompt, list) and not getattr(encoder.tokenizer, "chat_template", None):
        prompt = "\n".join(turn["content"] for turn in example.prompt)
        example = Example(example.id, example.split, prompt, example.answer, example.answers)
    ids = encoder.prompt(example)
    if with_answer and example.answer:
        return [*ids, *encoder.answer(example.answer)]
    return [*ids, encoder.tokenizer.eos_token_id]
