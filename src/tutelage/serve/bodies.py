"""What a request may hold. Unknown fields are refused, and so are known ones that ask for what greedy answers of one
model cannot be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ROLES = {"developer": "system"}
"""Other names of a role."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text(content: Any) -> Any:
    """A message's text, of the parts that it may come in. Raises ValueError for parts that are no text."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        types = sorted(
            {str(part.get("type")) if isinstance(part, dict) else "no object" for part in content} - {"text"}
        )
        found = f"a part of type {', '.join(types)}" if types else "a part without its text"
        raise ValueError(
            f'{found}, and this model reads text alone: send a string, or parts {{"type": "text", "text"}}'
        )
    return "".join(map(str, texts))


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        """Fields that ask for nothing are dropped, whatever they are called: clients send all that they know."""
        if not isinstance(fields, dict):
            return fields
        known = cls.model_fields.keys()
        return {
            name: value
            for name, value in fields.items()
            if value is not None and (name in known or value not in ("", [], {}))
        }


class RowsBody(Body):
    """`/v1/answer`."""

    rows: list[dict[str, Any]] = Field(min_length=1)
    """As in the input of `tutelage predict`."""


class StreamOptions(Body):
    """How to stream."""

    include_usage: bool = False


class Generation(Body):
    """What `/v1/completions` and `/v1/chat/completions` share."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[str], BeforeValidator(_as_list), Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Literal[0] | None = None
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    """Greedy answers do not depend on it, on `seed` and on `user`."""
    seed: int | None = None
    user: str | None = None

    @property
    def most_tokens(self) -> int | None:
        """Where the client wants an answer to be cut."""
        return self.max_tokens


class CompletionBody(Generation):
    """`/v1/completions`."""

    prompt: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None


class Message(Body):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text)]
    name: str | None = None

    @property
    def turn(self) -> dict[str, str]:
        """Role and text."""
        return {"role": ROLES.get(self.role, self.role), "content": self.content}


class TextFormat(Body):
    """The only form of an answer."""

    type: Literal["text"]


class ChatBody(Generation):
    """`/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: TextFormat | None = None

    @property
    def most_tokens(self) -> int | None:
        """Where the client wants an answer to be cut."""
        return self.max_completion_tokens or self.max_tokens
