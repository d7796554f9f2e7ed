"""Errors that a user can mend, and what they report: problems as data, worded in one place. Imports nothing of ours.

`kinds` has the identifiers, `problem` the record, `wording` all texts. The command line prints these errors without a
traceback and exits with their code, 2 or 3; any other exception is a bug and exits with 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tutelage.errors import wording
from tutelage.errors.kinds import Kind
from tutelage.errors.problem import Place, Problem, by_kind

__all__ = [
    "ConfigError",
    "DamagedArtifactError",
    "DataError",
    "DiskFullError",
    "Kind",
    "ModelError",
    "Place",
    "Problem",
    "RowsError",
    "RunLockedError",
    "RunStoppedError",
    "StaleArtifactError",
    "UserError",
    "by_kind",
    "problems",
]


class UserError(ValueError):
    """Base of every error whose cause lies in the recipe, the data, the models or the run folder."""

    default_kind: ClassVar[Kind] = Kind.USER
    exit_code: ClassVar[int] = 2

    def __init__(self, *problems: Problem | str, subject: str | None = None) -> None:
        """problems: at least one; a text becomes a problem of the class's own kind. subject: what has them, for the
        title of a list."""
        super().__init__(*problems)
        self.subject = subject
        self.problems = [
            problem if isinstance(problem, Problem) else Problem(self.default_kind, values={"text": problem})
            for problem in problems
        ]

    @property
    def kind(self) -> Kind:
        """Kind of the first problem."""
        return self.problems[0].kind

    def groups(self) -> list[list[Problem]]:
        """The problems as they are listed: those of one line together."""
        return [[problem] for problem in self.problems]

    def lines(self) -> list[str]:
        """A text for each of the groups."""
        return [wording.line(problem) for problem in self.problems]

    def __str__(self) -> str:
        """One line for a single problem; with a subject, or for several problems, a title and a line for each."""
        return wording.message(self.lines(), self.subject, len(self.problems))


class ConfigError(UserError):
    """The recipe cannot be used. Holds all problems of its values, each with key, file and line."""

    default_kind = Kind.CONFIG


class DataError(UserError):
    """A file or row cannot be used: names the file, the line or row id, and what to do."""

    default_kind = Kind.DATA


class RowsError(DataError):
    """Rows that cannot be used: every problem of every row."""

    def __init__(self, *problems: Problem | str, labels: Sequence[str] | None = None) -> None:
        """labels: the label set, as far as it is known."""
        super().__init__(*problems, subject="the data")
        self.labels = list(labels or [])

    def groups(self) -> list[list[Problem]]:
        """Problems of one kind and the same pair of splits together."""
        return by_kind(self.problems)

    def lines(self) -> list[str]:
        """A heading for each group, with its first rows."""
        return [wording.group_line(group) for group in self.groups()]


class ModelError(UserError):
    """A model, tokenizer or checkpoint folder cannot be used with the others."""

    default_kind = Kind.MODEL


class DiskFullError(UserError):
    """A file could not be written because its disk is full."""

    default_kind = Kind.DISK_FULL


class StaleArtifactError(UserError):
    """A finished result in the run folder was made from other inputs than the recipe now asks for."""

    default_kind = Kind.STALE_ARTIFACT


class DamagedArtifactError(DataError):
    """A file of a run folder is not as it was written, or is missing."""

    default_kind = Kind.ARTIFACT_DAMAGED


class RunLockedError(UserError):
    """Another process is working in the same run folder."""

    default_kind = Kind.RUN_LOCKED


class RunStoppedError(UserError):
    """Finished stages say that going on is not worth it; `--anyway` goes on. The finished stages stand."""

    exit_code = 3


def problems(title: str, lines: list[str]) -> str:
    """A title and a line for each problem, so that a user mends all of them at once."""
    return "\n".join([title, *(f"  - {line}" for line in lines)])
