"""How a teacher and a student read the same rows: with one tokenizer, or each with its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tutelage.bytes.reader import ByteReader, byte_reader
from tutelage.data.collate import vocabulary_of
from tutelage.data.encode import EncodedRow, Encoder, Misfits, Room, make_encoder
from tutelage.errors import DataError, ModelError
from tutelage.models.load import (
    check_ending,
    check_vocabularies,
    load_tokenizer,
    longest_context,
    same_vocabularies,
)
from tutelage.recipe.schema import Model, Recipe
from tutelage.records import Example


@dataclass(frozen=True)
class Pair:
    """The encoders of a teacher and a student."""

    student: Encoder
    teacher: Encoder | None
    """None if both have one tokenizer."""
    vocabulary: int
    """Entries of the student's tokenizer."""
    over_bytes: bool
    """Whether their distributions are compared byte by byte."""
    unused: Encoder | None = None
    """With one vocabulary both models read what the student's tokenizer makes of a row; this is the teacher's own."""

    @property
    def of_teacher(self) -> int:
        """Entries of the teacher's tokenizer."""
        return vocabulary_of(self.teacher.tokenizer) if self.teacher else self.vocabulary

    @property
    def encoders(self) -> list[Encoder]:
        """The student's, and the teacher's if it is another one."""
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def rooms(self, teacher: Model, student: Model) -> list[Room]:
        """The room for a row of each of `encoders`; as `rooms_of`."""
        return rooms_of(self.encoders, teacher, student)

    @classmethod
    def of(cls, recipe: Recipe) -> Pair:
        """The pair of a recipe. Raises ModelError for different tokenizers with `cache.form: states`."""
        tokenizers = load_tokenizer(recipe.teacher), load_tokenizer(recipe.student)
        return cls.of_tokenizers(*tokenizers, partial(make_encoder, recipe.data, task=recipe.task), recipe.cache.form)

    @classmethod
    def of_tokenizers(cls, teacher: Any, student: Any, encoder: Callable[[Any], Encoder], form: str) -> Pair:
        """The pair of two tokenizers. encoder: makes that of a tokenizer. form: as `cache.form`. Raises as `of`."""
        if form == "states" or same_vocabularies(teacher, student):
            entries = check_vocabularies(teacher, student)
            return cls(encoder(student), None, entries, form == "bytes", encoder(teacher))
        return cls(encoder(student), encoder(teacher), vocabulary_of(student), True)

    def rows(self, examples: Sequence[Example]) -> tuple[list[Example], list[EncodedRow], list[EncodedRow]]:
        """The examples that fit, with their rows in the student's and in the teacher's tokens, which are one list if
        both have one tokenizer. Raises DataError as `Encoder.check`."""
        misfits = Misfits()
        student = list(self.student.fitting(examples, misfits, self.teacher))
        left_out = set(self.student.check(misfits))
        kept = [example for example in examples if example.id not in left_out]
        return kept, student, student if self.teacher is None else [self.teacher.row(example) for example in kept]

    def unlike_teacher(self, examples: Sequence[Example]) -> int:
        """How many examples the teacher's own tokenizer would give other tokens than the teacher reads: a token at the
        beginning, a space, another chat template."""
        own = self.unused
        return 0 if own is None else sum(not _alike(self.student, own, example) for example in examples)

    def readers(
        self, examples: Sequence[Example], student: Sequence[EncodedRow], teacher: Sequence[EncodedRow]
    ) -> tuple[ByteReader, ByteReader]:
        """The readers of the student's and the teacher's tokenizer, checked on the answers of these rows.

        student, teacher: the examples in the tokens of each. Raises ModelError as `byte_reader`.
        """
        sides = (("student", self.student, student), ("teacher", self.teacher or self.student, teacher))
        found = []
        for role, encoder, rows in sides:
            texts = (encoder.answer_text(example.answer) for example in examples)
            ids = (row.answer for row in rows)
            found.append(byte_reader(encoder.tokenizer, zip(texts, ids, strict=True), role))
        return found[0], found[1]


def _alike(one: Encoder, other: Encoder, example: Example) -> bool:
    """Whether both give the prompt of an example the same tokens."""
    try:
        return one.prompt(example) == other.prompt(example)
    except DataError:  # one of them has no chat template, or one that refuses the example
        return False


def rooms_of(encoders: Sequence[Encoder], teacher: Model, student: Model) -> list[Room]:
    """The room for a row of each encoder: `data.max_length`, or the positions of a model that has fewer.

    encoders: as `Pair.encoders`; a single one is for both models.
    """
    roles = {"student": student, "teacher": teacher}
    contexts = {role: most for role, model in roles.items() if (most := longest_context(model)) is not None}
    rooms = []
    read_by = [list(roles)] if len(encoders) == 1 else [[role] for role in roles]
    for encoder, readers in zip(encoders, read_by, strict=True):
        short = {
            role: contexts[role] for role in readers if contexts.get(role, encoder.max_length) < encoder.max_length
        }
        role = min(short, key=short.__getitem__, default=None)
        tokens, why = (short[role], f"positions of the {role}") if role else (encoder.max_length, None)
        rooms.append(Room(encoder, tokens, why))
    return rooms


def tokenizer_for(model: Model, given: Any, argument: str) -> Any:
    """The tokenizer that a user gave for a model, or the model's own if that is None.

    argument: what it was given as. Raises ModelError as `load_tokenizer`, and for ids that are those of other tokens in
    the model's own.
    """
    if given is None:
        return load_tokenizer(model)
    try:
        own = load_tokenizer(model).get_vocab()
    except ModelError:  # a model need not come with one
        own = {}
    for token, number in sorted(given.get_vocab().items()):
        if own.get(token, number) != number:
            raise ModelError(
                f"{argument} gives {token!r} the id {number}, which is {own[token]} in the tokenizer of"
                f" {model.model_name_or_path!r}: it belongs to another model. Leave it out, or give the model's own"
            )
    check_ending(given, argument)
    return given
