"""The JSON files that stages leave for each other, as types; docs/artifacts.md describes every key.

A TypedDict says what a stage wrote and the next one may read. Files that come from outside, or are read while they are
written, go through `live_reader.py` instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from tutelage.records import Example, IntervalRecord
from tutelage.utils.checksums import FileRecord
from tutelage.utils.files import read_records
from tutelage.utils.integrity import present


class SplitLengths(TypedDict):
    """Size of one split."""

    rows: int
    longest: int
    """Longest row in tokens, prompt and answer with end-of-sequence."""
    longest_answer: int
    """Longest answer in tokens, end-of-sequence included."""


class UnlabelledRecord(TypedDict):
    """Rows without gold, counted; see `data.unlabelled.UnlabelledRows`."""

    rows: int
    """In prepare/unlabelled.jsonl."""
    read: int
    repeated: int
    labelled: int
    overlapping: int
    near: int
    shared: int
    too_long: int


class SilverRecord(TypedDict):
    """silver/silver.json: the teacher's answers to the unlabelled rows, counted."""

    teacher: str
    """Name of T*."""
    rows: int
    """Unlabelled rows that were answered."""
    kept: int
    """Rows that students are trained on; silver/train.arrow holds them after the rows with gold."""
    invalid: int
    """Left out: the answer could not be parsed."""
    unfinished: NotRequired[int]
    """Left out: the answer did not end within the tokens that it may have; absent in files of earlier versions."""
    unsure: int
    """Left out: less confident than `silver.min_confidence`."""
    too_long: int
    """Left out: prompt and answer have more tokens than `data.max_length`, or than a model has positions for."""
    gold: int
    """Rows with gold."""
    confidence: float | None
    """Mean confidence of the kept answers, in [0, 1]."""


class TeacherTokens(TypedDict):
    """What differs for a teacher that has another tokenizer than the student."""

    vocabulary: int
    """Entries of its tokenizer."""
    max_new_tokens: int
    longest: int
    """Its longest row in tokens."""


class PreparedData(TypedDict):
    """prepare/data.json: what is known of all rows before any model is loaded."""

    labels: list[str] | None
    """Label set, entity types or choices; None for free text."""
    choice: bool
    """Whether questions have a closed set of choices."""
    vocabulary: int
    """Entries of the student's tokenizer, which is the teacher's as well unless `teacher` is there."""
    max_new_tokens: int
    teacher: NotRequired[TeacherTokens]
    """Absent where teacher and student have one tokenizer."""
    lengths: dict[str, SplitLengths]
    """By split."""
    unlabelled: NotRequired[UnlabelledRecord]
    """Rows without gold; absent where the recipe names none."""
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
    """Relative to the run folder; as the recipe names it if it is the user's own. See `checkpoint_folder`."""
    score: float
    """The task's metric, in [0, 1]."""
    low: NotRequired[float]
    """Ends of the 95 % interval of `score`."""
    high: NotRequired[float]
    unreadable: NotRequired[float]
    """Fraction of the rows whose answer could not be parsed."""
    nll: float
    """Mean loss in nats per answer token."""


class BaselineRecord(TypedDict):
    """What answers have on the validation rows that no prompt was read for; see `tasks.base.Baseline`."""

    score: float
    source: Literal["majority", "chance"]
    rows: int
    """Number of validation rows."""


class TeacherCheckpoints(TypedDict):
    """teach/checkpoints.json."""

    best: str
    """Name of T*."""
    by: str
    """`score` or `loss`: what T* was selected by."""
    checkpoints: list[CheckpointScore]
    """Oldest first."""
    baseline: NotRequired[BaselineRecord]


class CandidateRecord(TypedDict):
    """A checkpoint as it was compared at the start of a stage; see `schedule.Candidate`."""

    checkpoint: str
    kl_best: float
    """KL(T* || T_k) in nats per answer token of the probe set."""
    kl_student: float
    """KL(S || T_k), or the reverse if the recipe asks for it."""
    total: float


class ChoiceRecord(TypedDict):
    """The checkpoint of a stage, and why it was chosen."""

    chosen: str | None
    """Name of the checkpoint; None for a method without a teacher."""
    candidates: list[CandidateRecord]
    """Empty for schedules that do not compare the student with the checkpoints."""
    reason: str
    stall: str | None


class ValidationRecord(TypedDict):
    """The student after a stage, on the validation rows."""

    score: float | None
    nll: float | None


class StageRecord(ChoiceRecord):
    """One stage in distill/METHOD/seed-K/stages.json."""

    stage: int
    """Counted from 1."""
    seconds: float
    """Choosing, training, validating and saving; of an interrupted stage only what was not lost."""
    validation: ValidationRecord
    taid: NotRequired[dict[str, float | None]]
    """State of `taid.Interpolation` at the end of the stage."""


class AgainstBaseline(IntervalRecord):
    """A model's mean row score minus that of TF-IDF with logistic regression, with its test."""

    p_value: float
    """Two-sided; see `analysis.significance.paired_difference`."""
    test: Literal["mcnemar_exact", "randomisation"]


class ScoresFile(TypedDict, total=False):
    """evaluate/scores.json."""

    task: str
    metric: str
    """The metric that choices were made by."""
    split: str
    rows: int
    models: dict[str, dict[str, IntervalRecord | float]]
    """Every metric, and `nll`, by model."""
    baseline: dict[str, IntervalRecord]
    """Every metric of TF-IDF with logistic regression (`tasks.tfidf`); absent where that does not suit the task."""
    against_baseline: dict[str, AgainstBaseline]
    """By model; present where `baseline` is."""


class Manifest(TypedDict):
    """manifest.json of a finished folder: written last, so that present means finished."""

    inputs: dict[str, Any]
    """What the result was made from: recipe values by dotted name, fingerprints of files and of earlier stages."""
    seconds: float
    """Including the work of interrupted processes that did not have to be repeated."""
    finished: str
    """Local time, ISO 8601 with the offset from UTC."""
    versions: dict[str, str]
    files: NotRequired[dict[str, FileRecord]]
    """Size and hash of the files that later steps read, by path in the folder; absent in folders of older versions."""
    memory: NotRequired[int]
    """Peak memory in bytes: of the accelerator, or of the process where there is none."""
    seed: NotRequired[int]
    kept_stage: NotRequired[int]
    threads: NotRequired[int]
    answering: NotRequired[float]
    """Seconds that answering and scoring the test rows took, without loading the model."""
    training_rows: NotRequired[int]
    """Of `baseline` only, as are `features`: the numbers of rows and features that it was trained on."""
    features: NotRequired[int]


def prepared_rows(run: Path, split: str) -> Iterator[Example]:
    """The rows of a split as `prepare` left them; none without prepare/rows.jsonl."""
    path = run / "prepare" / "rows.jsonl"
    return (row for row in read_records(path, Example) if row.split == split) if present(path) else iter(())


def checkpoint_folder(run: Path, record: Mapping[str, Any], own: bool) -> Path:
    """Folder of a teacher checkpoint of a run.

    record: its entry in teach/checkpoints.json. own: whether it is the user's, see `teach.checkpoints`. A checkpoint
    that the run trained lies in the run, wherever the run was when the entry was written.
    """
    return Path(record["folder"]) if own else run / "teach" / record["name"]
