"""The sections of a recipe. Each field is documented where it is declared; `tutelage show` and the docs read it here.

Only what the library itself decides is a field. Everything about optimisation (learning rate, batch size, precision
...) goes unchanged to `transformers.TrainingArguments` through `trainer`, under the names that class uses.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

TRAINER_DEFAULTS: dict[str, Any] = {
    # The paper's setting (arXiv 2601.10114, section on experiments): AdamW with betas (0.9, 0.95), clipping at 1.0,
    # cosine schedule with 10 % warm-up, batch 8. Anything here gives way to the recipe.
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
}
"""What `trainer` holds before the recipe speaks. `warmup_steps` below 1 is a share of the steps (transformers >= 5)."""


METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "ner": ("entity_f1", "precision", "recall"),
    "span_qa": ("exact_match", "token_f1"),
    "choice_qa": ("accuracy", "macro_f1"),
}
"""Scores by kind of task that checkpoints and students can be chosen by; the first of each is the default. Whether a
`qa` task has spans or choices is seen in its rows."""


def known_metrics(task_type: str) -> tuple[str, ...]:
    """What `task.metric` can be before any row is read: for `qa`, the metrics of spans and those of choices."""
    return METRICS["span_qa"] + METRICS["choice_qa"] if task_type == "qa" else METRICS[task_type]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Task(Section):
    """What is asked of the model, and how an answer is judged."""

    type: Literal["classification", "ner", "qa"]
    """`classification` (one label), `ner` (typed entities), `qa` (a span of text or one of several choices)."""
    language: str | None = None
    """ISO 639-1 code of rows that carry no `language` of their own; picks the default prompt and how text is
    compared."""
    labels: list[str] | None = None
    """The label set (classification, choices) or entity types (ner). Default: what the training rows hold."""
    metric: str | None = None
    """Score that choices are made by. Default: accuracy; entity_f1 for ner; exact_match for span questions."""
    decoding: Literal["generate", "labels"] = "generate"
    """`generate`: greedy text. `labels`: the allowed answer with the best mean log-likelihood (closed label sets
    only)."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Longest answer that is generated. Default: half as long again as the longest training answer, plus 4 tokens."""


class Data(Section):
    """Where the rows come from and how they become prompts."""

    dataset: str | None = None
    """A folder with train, validation and test files, or a hub data set id."""
    dataset_config: str | None = None
    """Configuration name of a hub data set."""
    revision: str | None = None
    """Commit or tag of a hub data set."""
    train_split: str = "train"
    """Name of the training split inside `dataset`."""
    validation_split: str = "validation"
    """Name of the validation split inside `dataset`."""
    test_split: str = "test"
    """Name of the test split inside `dataset`."""
    train: list[str] | None = None
    """Training file or files (jsonl, json, csv, tsv, parquet, conll); wins over the split of `dataset`."""
    validation: list[str] | None = None
    """Validation file or files. Without any, a seeded share of the training rows is held out."""
    test: list[str] | None = None
    """Test file or files; scored once, at the end."""
    columns: dict[str, str] = {}
    """Our column name: the name in the file, e.g. `{text: review, label: stars}`."""
    template: str | None = None
    """Prompt with `{column}` places, e.g. `"Review: {text}\\nSentiment:"`. Default: the task's own, by language."""
    chat_template: bool = False
    """Render prompts with the tokenizer's chat template instead of as plain text."""
    system: str | None = None
    """System message in front of chat prompts."""
    answer_prefix: str | None = None
    """Text between prompt and answer, part of what is learned. Default: a space; nothing with `chat_template`."""
    max_length: int = Field(1024, gt=1)
    """Longest row in tokens, prompt and answer with end-of-sequence."""
    too_long: Literal["error", "drop", "truncate_prompt"] = "error"
    """What happens to a longer row. Answers are never cut; `truncate_prompt` cuts the prompt's start."""
    overlap: Literal["error", "drop"] = "error"
    """What happens to a row whose prompt is in a later split too. `drop` leaves it out of the earlier one, never out of
    test."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training rows held out when there is no validation split."""
    max_train_rows: int | None = Field(None, gt=0)
    """Use a seeded sample of this many training rows."""
    max_validation_rows: int | None = Field(None, gt=0)
    """Use a seeded sample of this many validation rows."""
    max_test_rows: int | None = Field(None, gt=0)
    """Use a seeded sample of this many test rows."""

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning (PEFT's names)."""

    r: int = Field(16, gt=0)
    """Rank."""
    lora_alpha: int = Field(32, gt=0)
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get adapters; the output head is never one of them."""


class Model(Section):
    """One of the two models."""

    model_name_or_path: str
    """Hub id or folder in Hugging Face layout."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type the weights are held and trained in; `bf16: true` in `trainer` computes in bfloat16 over float32 weights."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ...; default: transformers' choice."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you say so."""
    lora: Lora | None = None
    """Train low-rank adapters; `{}` takes the defaults. Without it, all weights are trained."""


class Teach(Section):
    """Fine-tunes the teacher and keeps checkpoints along the way, or takes yours."""

    checkpoints: str | list[str] | None = None
    """A folder that holds `checkpoint-*`, or a list of checkpoint folders in training order; then nothing is
    trained."""
    num_checkpoints: int = Field(4, gt=0)
    """How many checkpoints are kept, at equal spacing; the last one is the end of training."""
    seed: int | None = None
    """Seed of the teacher's training. Default: the recipe's `seed`."""
    spacing: Literal["steps", "loss"] = "steps"
    """Where kept checkpoints lie: `steps`: equally far apart in steps. `loss`: each about as much lower in validation
    loss as the one before; needs the disk for four times as many while the teacher trains."""
    best_by: Literal["score", "loss"] = "score"
    """T*, the best teacher: by validation score (ties: by loss) or by validation loss."""
    trainer: dict[str, Any] = {}
    """TrainingArguments for the teacher alone, e.g. `{num_train_epochs: 4, learning_rate: 2e-5}`."""


class Anchor(Section):
    """The student after plain fine-tuning, then frozen: the baseline, and the reference of adaptive weighting."""

    model_name_or_path: str | None = None
    """Your own fine-tuned student; then nothing is trained. Default: fine-tune for as many steps as distillation
    gets."""
    trainer: dict[str, Any] = {}
    """TrainingArguments for the anchor alone; default: the student's, with epochs = num_stages x epochs_per_stage."""
    keep: Literal["last", "score", "loss"] = "last"
    """The end of the training, or the best on validation, by score or by loss, of `distill.num_stages` points of it."""


class CrossFit(Section):
    """Losses on training rows that the models were not trained on, for methods `ccd-aw` and `*-aw-cf`."""

    folds: int = Field(2, ge=2)
    """Parts that the training rows are cut into; each is read by models trained on the others."""
    teacher: bool = True
    """Train the teacher for each fold too. False: its checkpoints' losses on the rows that they were trained on."""


class Cache(Section):
    """One forward pass of every teacher checkpoint over the training rows, kept on disk."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the stored hidden states."""
    batch_size: int = Field(16, gt=0)
    """Rows in one forward pass."""
    shard_rows: int = Field(1024, gt=0)
    """Rows in one file; a killed run continues at the last whole file."""
    top_k: int = Field(64, gt=0)
    """Log-probabilities kept a position where hidden states cannot reproduce the model's logits (rare
    architectures)."""


class Schedule(Section):
    """Options of the choice of checkpoint (schedule `nearest`, methods `scd*`)."""

    advance: bool = False
    """Only checkpoints after the last one followed; the last stage follows T*. Ends a stall."""
    student_kl: Literal["reverse", "forward"] = "reverse"
    """Distance to the student: `reverse` is the published KL(S || T_k), `forward` is KL(T_k || S)."""


class Distill(Section):
    """Trains the student on the teacher's checkpoints, stage by stage."""

    methods: list[str] = ["scd-aw"]
    """Rows of the METHODS table; each gets the same rows, steps, stages, resets and seeds."""
    seeds: list[int] = [0]
    """One student per method and seed."""
    num_stages: int = Field(4, gt=0)
    """N: stages of training, each with a checkpoint to follow."""
    epochs_per_stage: float = Field(2.0, gt=0)
    """T: passes over the training rows in one stage."""
    stage_reset: bool = True
    """Optimizer and learning-rate schedule start anew in each stage, as published. false: one schedule and one
    optimizer over all stages."""
    kd_ratio: float = Field(0.5, ge=0, le=1)
    """Constant weighting: loss = (1 - kd_ratio) CE + kd_ratio KD. Adaptive weighting does not use it."""
    temperature: float = Field(1.0, gt=0)
    """Divides teacher's and student's logits in the divergence (times temperature squared, once)."""
    start: Literal["student", "anchor"] = "student"
    """What the first stage starts from. `anchor`: the fine-tuned student, so that it has twice the training of other
    methods."""
    schedule: Schedule = Schedule()
    """Options of the choice of checkpoint."""
    probe_rows: int | None = Field(None, gt=0)
    """Seeded sample of training rows on which checkpoints are compared with the student. Default: 2 % of what a stage
    trains on, at least 16 and at most 256, so that choosing costs at most 2 % of a stage."""
    keep: Literal["best", "last"] = "best"
    """Which stage's student is kept: the best on validation, or the last."""
    select_by: Literal["score", "loss"] = "score"
    """What `keep: best` compares on validation: the score (ties: the loss), or the loss."""
    keep_stages: bool = False
    """Keep the student as it was at the start of each stage, so that anyone can recompute a choice."""
    save_steps: int | None = Field(None, gt=0)
    """Steps between restart points inside a stage. Default: only whole stages are kept."""
    trainer: dict[str, Any] = {}
    """TrainingArguments for the student (distillation and anchor), e.g. `{learning_rate: 1e-4}`."""

    @field_validator("methods", "seeds", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @property
    def students(self) -> list[str]:
        """Every student of the run, METHOD/seed-K."""
        return [f"{method}/seed-{seed}" for method in self.methods for seed in self.seeds]


class Evaluate(Section):
    """Scores every model on the test rows, once."""

    batch_size: int = Field(16, gt=0)
    """Rows in one batch of decoding."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples behind each 95 % interval."""


class Tune(Section):
    """Learning rates tried by `tutelage compare --tune`, judged on validation; the best is that of all students."""

    method: str = "td"
    """Method that is trained with each; the best is then shared by all methods (the paper's protocol)."""
    grid: list[float] = [2e-5, 5e-5, 1e-4, 2e-4, 5e-4]
    """Learning rates to try."""
    seeds: int = Field(1, gt=0)
    """Students tried with each rate; their means are compared. One on a few hundred validation rows may win by luck."""
    per_method: bool = False
    """Try the grid with every method, and give each its own best: a shared one may favour the method it was found
    with."""


class Compare(Section):
    """What a cell of `tutelage compare --executor ray` takes of a node."""

    num_cpus: float = Field(1.0, gt=0)
    """Processors; a cell computes with as many threads."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs; parts of one are allowed."""


class Report(Section):
    """The page that shows what a run came to."""

    lang: Literal["en", "ko", "ja"] = "en"
    """Language of the page's own words; rows and answers stay as they are."""


class Recipe(Section):
    """A whole run: one section per stage, plus what the stages share."""

    name: str
    """Name of the run. Default: the recipe file's name."""
    output_dir: str
    """The run folder. Default: runs/NAME."""
    seed: int = 0
    """Seed of held-out rows, samples and the teacher's training; students have seeds of their own."""
    task: Task
    data: Data
    teacher: Model
    student: Model
    trainer: dict[str, Any] = {}
    """TrainingArguments for every training; a stage's own `trainer` wins over it."""
    fused_loss: bool = True
    """Compute output head and loss in one, chunk by chunk: no logits are kept for the backward pass. The same up to
    rounding."""
    teach: Teach = Teach()
    anchor: Anchor = Anchor()
    cache: Cache = Cache()
    cross_fit: CrossFit = CrossFit()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    tune: Tune = Tune()
    compare: Compare = Compare()
    report: Report = Report()

    @property
    def teacher_seed(self) -> int:
        """Seed of the teacher's training."""
        return self.seed if self.teach.seed is None else self.teach.seed

    def trainer_arguments(self, *sections: Literal["teach", "anchor", "distill"]) -> dict[str, Any]:
        """TrainingArguments of one training: defaults, then `trainer`, then each named section's, later ones
        winning."""
        merged = TRAINER_DEFAULTS | self.trainer
        for section in sections:
            merged |= getattr(self, section).trainer
        return merged
