"""What a distillation is made from: the plan says what is to be done, the setup holds the student's data and models.
`SCDConfig` is the plan as `SCDTrainer` takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import TrainingArguments

from tutelage.data.collate import pad_id_of
from tutelage.data.encode import EncodedRow
from tutelage.method.methods import Method, find_method
from tutelage.method.weighting import AdaptiveWeighting
from tutelage.models.load import load_trainable
from tutelage.models.placement import device
from tutelage.models.save import save_student
from tutelage.recipe.load import check_settings
from tutelage.recipe.renamed import flat
from tutelage.recipe.reserved import IN_PYTHON
from tutelage.recipe.schema import TRAINER_DEFAULTS, Model
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


_KEYS = {
    **{f"distill.{name}": name for name in ("num_stages", "epochs_per_stage", "stage_reset", "kd_ratio")},
    **{f"distill.{name}": name for name in ("temperature", "probe_rows", "keep", "keep_stages")},
    "distill.save_steps": "save_every_steps",
    "distill.schedule.advance": "advance",
    "distill.schedule.student_kl": "student_kl",
    **{f"data.{name}": name for name in ("max_length", "too_long", "answer_prefix", "chat_template")},
    "task.max_new_tokens": "max_new_tokens",
    "cache.form": "cache_form",
    "cache.dtype": "cache_dtype",
    "cache.batch_size": "cache_batch_size",
    "fused_loss": "fused_loss",
    "max_tokens_per_batch": "max_tokens_per_batch",
}
"""Dotted key of a recipe -> the setting of `SCDConfig` that means the same."""


@dataclass
class SCDConfig(TrainingArguments):
    """All TrainingArguments, and the settings of the method, which mean the same as in a recipe.

    Training lasts `num_stages` x `epochs_per_stage`. TrainingArguments that would have no effect (`num_train_epochs`,
    `eval_strategy`, `save_strategy`, ...) are refused, with what to set instead; those of the Hub, `log_level` and
    `disable_tqdm` are not used. The defaults are the paper's: batch size 8, AdamW betas (0.9, 0.95), gradient clipping
    at 1.0, a cosine schedule with 10 % warm-up; but stage resets are off, and `advance` is on.
    """

    method: str = field(default="scd-aw", metadata={"help": "A name in METHODS."})
    num_stages: int = field(default=4, metadata={"help": "N: stages of training, each with a checkpoint to follow."})
    epochs_per_stage: float = field(default=2.0, metadata={"help": "T: passes over the rows in one stage."})
    stage_reset: bool = field(
        default=False,
        metadata={"help": "Optimizer and learning-rate schedule start anew in each stage, as published."},
    )
    kd_ratio: float = field(
        default=0.5, metadata={"help": "Constant weighting: loss = (1 - kd_ratio) CE + kd_ratio KD."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides both models' logits in the divergence."})
    advance: bool = field(default=True, metadata={"help": "Only checkpoints after the last one followed compete."})
    student_kl: str = field(
        default="reverse", metadata={"help": "`reverse`: KL(S || T_k), as published; `forward`: KL(T_k || S)."}
    )
    probe_rows: int | None = field(default=None, metadata={"help": "Training rows on which checkpoints are compared."})
    fused_loss: bool = field(default=True, metadata={"help": "Compute output head and loss together, chunk by chunk."})
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "A batch is passed in parts of at most this many tokens, of like length."}
    )
    keep: str = field(
        default="best", metadata={"help": "`best` stage by loss on eval_dataset (without it the last), or `last`."}
    )
    keep_stages: bool = field(default=False, metadata={"help": "Keep the student at the start of each stage."})
    save_every_steps: int | None = field(
        default=None, metadata={"help": "Steps between resume checkpoints inside a stage."}
    )
    max_length: int = field(default=1024, metadata={"help": "Longest row in tokens; longer ones follow `too_long`."})
    too_long: Literal["error", "drop", "truncate_prompt"] = field(
        default="error", metadata={"help": "`error`, `drop` or `truncate_prompt`."}
    )
    answer_prefix: str = field(default=" ", metadata={"help": "Text between prompt and answer."})
    chat_template: bool = field(default=False, metadata={"help": "Render prompts with the tokenizer's chat template."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of an answer to unlabelled rows: 1.5 x the longest in training + 4."}
    )
    cache_form: str = field(
        default="auto", metadata={"help": "`states`, `bytes` (any two tokenizers), or `auto`: states where they agree."}
    )
    cache_dtype: str = field(default="bfloat16", metadata={"help": "Type of the stored hidden states."})
    cache_batch_size: int = field(default=16, metadata={"help": "Rows in one forward pass without gradients."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of log.jsonl."})
    seed: int = field(default=0, metadata={"help": "Seed of anchor, student and probe set."})
    adam_beta2: float = field(default=TRAINER_DEFAULTS["adam_beta2"], metadata={"help": "AdamW's second beta."})
    lr_scheduler_type: str = field(
        default=TRAINER_DEFAULTS["lr_scheduler_type"], metadata={"help": "Schedule in a stage."}
    )
    warmup_steps: float = field(
        default=TRAINER_DEFAULTS["warmup_steps"], metadata={"help": "A value below 1 is a fraction of the steps."}
    )

    def __post_init__(self) -> None:
        """Check the values as those of a recipe. Raises ConfigError with everything that is wrong."""
        values = {key: getattr(self, name) for key, name in _KEYS.items()}
        values |= {"distill.seeds": [self.seed], "distill.methods": [self.method]}
        arguments = (argument for argument in dataclasses.fields(TrainingArguments) if argument.init)
        changed = {a.name: value for a in arguments if (value := getattr(self, a.name)) != a.default}
        check_settings(values, changed, _KEYS | {"distill.seeds": "seed", "distill.methods": "method"})
        super().__post_init__()
        # Some defaults follow the state of the process, such as transformers' log level, and later are others.
        self._plain = TrainingArguments(output_dir=self.output_dir)

    def given(self) -> dict[str, Any]:
        """TrainingArguments that differ from that class's defaults, as a recipe's `trainer` would hold them. Those that
        are not used are left out: records must not hold a token of the Hub."""
        names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
        unused = ("output_dir", "seed", "hub_*", "do_*", "disable_tqdm", "log_level", *IN_PYTHON)
        names = [name for name in names if not any(fnmatch(name, pattern) for pattern in unused)]
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(self._plain, name)}
        if self.max_tokens_per_batch is not None:
            changed["max_tokens_per_batch"] = self.max_tokens_per_batch
        return changed | {"logging_steps": self.logging_steps}  # also where it is the default of that class

    def plan(self) -> DistillationPlan:
        """The distillation that these settings describe; stages are judged by loss."""
        names = DistillationPlan.__dataclass_fields__
        settings = {name: getattr(self, name) for name in names if hasattr(self, name)}
        settings |= {"save_steps": self.save_every_steps, "select_by": "loss", "trainer": self.given()}
        return DistillationPlan(**settings)

    def inputs(self) -> dict[str, Any]:
        """What a student depends on, by dotted name, as `run/manifest.py` records it."""
        return dict(flat("plan", dataclasses.asdict(self.plan())))
