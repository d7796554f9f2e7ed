"""Errors that a user can mend: each message says what was found, why it cannot work, and what to type instead.

The command line prints these without a traceback and exits with 2; anything else is our own fault and exits with 1.
"""


class UserError(ValueError):
    """Base of every error whose cause lies in the recipe, the data, the models or the run folder."""


class ConfigError(UserError):
    """The recipe cannot be used: all problems found in it, one a line."""


class DataError(UserError):
    """A file or row cannot be used: names the file, the line or row id, and the way out."""


class RowsError(DataError):
    """Rows that cannot be used, and why, so that others can count them."""

    def __init__(self, message: str, kinds: dict[str, list[str]], labels: list[str] | None) -> None:
        """kinds: all places of each kind of problem, in words. labels: the label set, as far as it is known."""
        super().__init__(message)
        self.kinds, self.labels = kinds, labels


class ModelError(UserError):
    """A model, tokenizer or checkpoint folder cannot be used with the others."""


class StaleArtifactError(UserError):
    """A finished result in the run folder was made from other inputs than the recipe now asks for."""


class RunLockedError(UserError):
    """Another process is working in the same run folder."""


def problems(title: str, found: list[str]) -> str:
    """One message out of several problems, a line each, so that a user mends all of them at once."""
    return "\n".join([title, *(f"  - {line}" for line in found)])
