"""A request that gets an error instead of an answer."""

from __future__ import annotations

from tutelage.errors import DataError


class Refused(Exception):
    """What the client is told. `code` is stable, the message may change."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        """status: of HTTP. param: field of the request that is wrong. retry_after: seconds."""
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after

    @classmethod
    def for_rows(cls, error: DataError) -> Refused:
        """Rows or prompts that cannot be rendered, with the kind of the first problem as the code."""
        return cls(400, str(error.kind), str(error))
