"""Tokens and passwords in text: recognised by their form, and hidden in every message."""

from __future__ import annotations

import re

_SECRET = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"  # https://USER:PASSWORD@HOST
    r"|\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\b(?:ghp|gho|ghs|glpat|xoxb)[_-][A-Za-z0-9_-]{16,}|\bgithub_pat_\w{16,}"  # GitHub, GitLab, Slack
    r"|\bsk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic
    r"|\bAKIA[0-9A-Z]{16}\b"  # AWS
    r"|\bwandb_v1_\w{20,}|\blocal-[0-9a-f]{40}\b"  # W&B; its old keys of 40 hex digits look like commits
)
HIDDEN = "***"


def has_secret(text: str) -> bool:
    """Whether a text holds a token of a known form, or a URL with a user name or password."""
    return _SECRET.search(text) is not None


def redacted(text: str) -> str:
    """The text with every such token, user name and password replaced by `***`."""
    return _SECRET.sub(HIDDEN, text)
