"""How the teacher and the student of a recipe read its rows: with one tokenizer, or each with its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.bytes.reader import ByteReader, byte_reader
from tutelage.data.collate import vocabulary_of
from tutelage.data.encode import EncodedRow, Encoder, make_encoder
from tutelage.models.load import check_vocabularies, load_tokenizer, same_vocabularies
from tutelage.recipe.schema import Recipe
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

    @property
    def of_teacher(self) -> int:
        """Entries of the teacher's tokenizer."""
        return vocabulary_of(self.teacher.tokenizer) if self.teacher else self.vocabulary

    @classmethod
    def of(cls, recipe: Recipe) -> Pair:
        """The pair of a recipe. Raises ModelError for different tokenizers with `cache.form: states`."""
        teacher, student = load_tokenizer(recipe.teacher), load_tokenizer(recipe.student)
        encoder, form = make_encoder(recipe.data, student, recipe.task), recipe.cache.form
        if form == "states" or same_vocabularies(teacher, student):
            return cls(encoder, None, check_vocabularies(teacher, student), form == "bytes")
        return cls(encoder, make_encoder(recipe.data, teacher, recipe.task), vocabulary_of(student), True)

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
