"""The JSON files that stages leave for each other, as types; docs/artifacts.md describes every key.

A TypedDict says what a stage wrote and the next one may read. Files that come from outside, or are read while they are
written, go through `live_reader.py` instead.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class SplitLengths(TypedDict):
    """Size of one split."""

    rows: int
    longest: int
    """Longest row in tokens, prompt and answer with end-of-sequence."""
    longest_answer: int
    """Longest answer in tokens, end-of-sequence included."""


class PreparedData(TypedDict):
    """prepare/data.json: what is known of all rows before any model is loaded."""

    labels: list[str] | None
    """Label set, entity types or choices; None for free text."""
    choice: bool
    """Whether questions have a closed set of choices."""
    vocabulary: int
    """Entries of the tokenizer that teacher and student share."""
    max_new_tokens: int
    lengths: dict[str, SplitLengths]
    """By split."""
    bf16: bool
    """Whether this machine computes in bfloat16 unless the recipe says otherwise."""
    dropped: list[str]
    """Ids of rows that were left out because they are too long."""
    notes: list[str]


class CheckpointScore(TypedDict):
    """One checkpoint on the validation rows."""

    name: str
    """`checkpoint-STEP`."""
    folder: NotRequired[str]
    score: float
    """The task's metric, in [0, 1]."""
    nll: float
    """Mean loss in nats per answer token."""


class TeacherCheckpoints(TypedDict):
    """teach/checkpoints.json."""

    best: str
    """Name of T*."""
    by: str
    """`score` or `loss`: what T* was selected by."""
    checkpoints: list[CheckpointScore]
    """Oldest first."""


class Manifest(TypedDict):
    """manifest.json of a finished folder: written last, so that present means finished."""

    inputs: dict[str, Any]
    """What the result was made from: recipe values by dotted name, fingerprints of files and of earlier stages."""
    seconds: float
    """Including the work of interrupted processes that did not have to be repeated."""
    finished: str
    """Local time, ISO 8601 with the offset from UTC."""
    versions: dict[str, str]
    memory: NotRequired[int]
    """Peak memory in bytes: of the accelerator, or of the process where there is none."""
    seed: NotRequired[int]
    kept_stage: NotRequired[int]
    threads: NotRequired[int]
    answering: NotRequired[float]
    """Seconds that answering and scoring the test rows took, without loading the model."""
