"""A tokenizer's answers as bytes: what one model of a pair needs to be compared with the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tutelage.bytes.lookups import Lookups, lookups_of
from tutelage.bytes.spelling import added_spaces, spellings
from tutelage.bytes.vocabulary import ByteVocabulary
from tutelage.data.collate import IGNORED, vocabulary_of
from tutelage.data.encode import EncodedRow


@dataclass(frozen=True)
class ByteReader:
    """The bytes of a tokenizer's answers."""

    vocabulary: ByteVocabulary
    skip: int = 0
    """Spaces that the tokenizer adds in front of an answer, which are no part of its text."""

    def text(self, answer: Sequence[int]) -> bytes:
        """What an answer spells. answer: token ids, the last of which is end-of-sequence."""
        return b"".join(self.vocabulary.spelled[token] for token in answer[:-1])[self.skip :]

    def lengths(self, rows: Iterable[EncodedRow]) -> np.ndarray:
        """[rows] bytes of each answer, its end counted as one."""
        return np.array([len(self.text(row.answer)) + 1 for row in rows], dtype=np.int64)

    def lookups(self, answers: Sequence[Sequence[int]]) -> Lookups:
        """The look-ups of a batch of answers."""
        return lookups_of(answers, self.vocabulary, self.skip)

    def of_batch(self, batch: dict[str, Tensor]) -> Lookups:
        """The look-ups of a collated batch."""
        rows = batch["targets"].tolist()
        return self.lookups([[token for token in row if token != IGNORED] for row in rows])


def byte_reader(tokenizer: Any, answers: Iterable[tuple[str, Sequence[int]]], role: str) -> ByteReader:
    """The reader of a tokenizer, checked on answers.

    answers: texts with their token ids, the last of which is end-of-sequence. role: `teacher` or `student`. Raises
    ModelError for a tokenizer whose tokens are not bytes or do not spell these texts.
    """
    spelled = spellings(tokenizer, vocabulary_of(tokenizer))
    skip = added_spaces(spelled, ((text, ids[:-1]) for text, ids in answers), role)
    return ByteReader(ByteVocabulary(spelled, tokenizer.eos_token_id), skip)
