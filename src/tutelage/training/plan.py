"""What a distillation is made from: the plan says what is to be done, the setup holds the student's data and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.data.collate import pad_id_of
from tutelage.data.encode import EncodedRow
from tutelage.method.methods import Method, find_method
from tutelage.method.weighting import AdaptiveWeighting
from tutelage.models.load import load_trainable
from tutelage.models.placement import device
from tutelage.models.save import save_student
from tutelage.recipe.schema import Model
from tutelage.run.artifacts import StageRecord
from tutelage.teacher.sources import TeacherSource
from tutelage.training.stage_records import Validation


@dataclass(frozen=True)
class DistillationPlan:
    """How a student is distilled. The fields mean what the recipe and its `distill` section say."""

    method: str = "scd-aw"
    num_stages: int = 4
    epochs_per_stage: float = 2.0
    stage_reset: bool = False
    kd_ratio: float = 0.5
    temperature: float = 1.0
    advance: bool = True
    student_kl: str = "reverse"
    probe_rows: int | None = None
    keep: str = "best"
    select_by: str = "score"
    keep_stages: bool = False
    save_steps: int | None = None
    fused_loss: bool = True
    seed: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)

    @property
    def components(self) -> Method:
        """Schedule, divergence and weighting of the method."""
        return find_method(self.method)


@dataclass
class StudentSetup:
    """What the training of a student needs besides its plan: start, rows, teacher, weights, validation, progress."""

    model: Model
    """The student to start from."""
    tokenizer: Any
    vocabulary: int
    """Entries of the tokenizer that logits are computed for."""
    rows: Sequence[EncodedRow]
    """Training rows: those with gold, then those that the teacher answered."""
    teacher: TeacherSource | None
    """None for methods without a teacher."""
    best: str | None
    """Name of T*."""
    weighting: AdaptiveWeighting | None
    """None for methods with constant weights."""
    validate: Callable[[nn.Module], Validation]
    gold: int | None = None
    """Number of rows with gold; the others follow the teacher with weight 1. None: all rows have gold."""
    budget_rows: int | None = None
    """Number of rows that `epochs_per_stage` counts, if that is not the number of `rows`: methods that see fewer rows
    get as many steps."""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Precision in which the student is compared with checkpoints and validated."""
    on_step: Callable[[int, int, int], None] = lambda stage, done, total: None
    """Called with the stage, its optimizer steps done, and all of them."""
    on_stage: Callable[[StageRecord], None] = lambda record: None
    """Called after every stage."""

    @property
    def pad_id(self) -> int:
        """Token id that batches are padded with."""
        return pad_id_of(self.tokenizer)

    def load(self, folder: Path | None, seed: int) -> nn.Module:
        """The student to train: untrained, or as `save` wrote it into a folder. seed: of fresh adapters."""
        return load_trainable(self.model, folder, seed, self.vocabulary).to(device())

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the student, so that `load` gives it back."""
        save_student(model, self.tokenizer, folder)
