"""The sections of a recipe. Each field is documented where it is declared; `tutelage show` prints these texts.

Only what the library itself decides is a field. Everything about optimisation (learning rate, batch size, precision,
...) is passed unchanged to `transformers.TrainingArguments` through `trainer`, under the names of that class.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

TRAINER_DEFAULTS: dict[str, Any] = {
    # The paper's setting (arXiv 2601.10114, section on experiments): AdamW with betas (0.9, 0.95), clipping at 1.0,
    # cosine schedule with 10 % warm-up, batch size 8. The recipe's values replace these.
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
}
"""Defaults of `trainer`. `warmup_steps` below 1 is a fraction of the steps (transformers >= 5)."""


METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "ner": ("entity_f1", "precision", "recall"),
    "span_qa": ("exact_match", "token_f1"),
    "choice_qa": ("accuracy", "macro_f1"),
}
"""Metrics by kind of task that checkpoints and students can be selected by; the first is the default. Whether a `qa`
task has spans or choices depends on its rows."""
ROW_METRICS = {"entity_f1": "row_f1", "precision": "row_f1", "recall": "row_f1", "macro_f1": "accuracy"}
"""Metrics that are not the mean of the rows' own scores, and the name of that mean."""


def row_metric(metric: str | None) -> str | None:
    """What the mean of the rows' own scores is called in a task with this metric: `row_f1` for entity_f1."""
    return ROW_METRICS.get(metric, metric) if metric else metric


Offsets = Literal["characters", "utf16", "bytes", "characters-inclusive", "utf16-inclusive", "bytes-inclusive"]
"""What offsets of entities may count: characters, UTF-16 units or UTF-8 bytes, the end excluded or included."""
ChoiceAnswer = Literal["label", "letter", "text", "index", "index-from-1"]
"""What an answer may name its choice by."""


def known_metrics(task_type: str) -> tuple[str, ...]:
    """Possible values of `task.metric` before any row is read: for `qa`, the metrics of spans and those of choices."""
    return METRICS["span_qa"] + METRICS["choice_qa"] if task_type == "qa" else METRICS[task_type]


MOST_TOKENS = 2**20
"""Longest rows and answers, in tokens; no model has positions for more."""


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot be changed. Bounds refuse values that
    would fail later or never finish."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Task(Section):
    """What is asked of the model, and how an answer is judged."""

    type: Literal["classification", "ner", "qa"]
    """`classification` (one label), `ner` (typed entities), `qa` (a span of text or one of several choices)."""
    language: str | None = None
    """ISO 639-1 code of rows without a `language`; decides the default prompt and how text is compared."""
    labels: list[str] | None = None
    """The label set (classification, choices) or entity types (ner). Default: those of the training rows."""
    verbalizers: dict[str, str] = {}
    """Short forms of long labels, `{label: short form}`: the models read, learn and write the form, and every output
    has the label. For classification, and questions with a closed set of answers."""
    metric: str | None = None
    """Metric that models are selected by. Default: accuracy; entity_f1 for ner; exact_match for span questions."""
    decoding: Literal["generate", "labels"] = "generate"
    """`generate`: greedy text. `labels`: the allowed answer with the best mean log-likelihood (closed label sets
    only)."""
    max_new_tokens: int | None = Field(None, gt=0, le=MOST_TOKENS)
    """Longest generated answer. Default: 1.5 times the longest training answer, plus 4 tokens."""

    @field_validator("verbalizers", mode="before")
    @classmethod
    def _numbers_to_text(cls, value: Any) -> Any:
        """`{1 star: 1}` is a number in YAML; `yes` and `no` are not taken for text."""
        if not isinstance(value, dict):
            return value
        return {_as_text(label): _as_text(form) for label, form in value.items()}


class Data(Section):
    """Where the rows come from and how prompts are made from them."""

    dataset: str | None = None
    """A folder with train, validation and test files, or the id of a Hub dataset."""
    dataset_config: str | None = None
    """Configuration name of a Hub dataset."""
    revision: str | None = None
    """Commit or tag of a Hub dataset."""
    train_split: str = "train"
    """Name of the training split inside `dataset`."""
    validation_split: str = "validation"
    """Name of the validation split inside `dataset`."""
    test_split: str = "test"
    """Name of the test split inside `dataset`."""
    train: list[str] | None = None
    """Training file or files (jsonl, json, csv, tsv, parquet, conll); used instead of the split of `dataset`."""
    validation: list[str] | None = None
    """Validation file or files. Without any, a seeded fraction of the training rows is held out."""
    test: list[str] | None = None
    """Test file or files; scored once, at the end."""
    unlabelled: list[str] | None = None
    """File or files of rows without gold answers, in any format that rows have; answers in them are not read. The
    teacher answers them, and the student learns them by the divergence alone."""
    unlabelled_split: str | None = None
    """Name of a split inside `dataset` with such rows."""
    encoding: str | None = None
    """Encoding of files that are not UTF-8, e.g. `cp932` (Excel in Japan), `cp949` (Korea), `gb18030`, `cp1252`."""
    columns: dict[str, str] = {}
    """Expected column name: name in the file, e.g. `{text: review, label: stars}`."""
    offsets: Offsets | None = None
    """What the offsets of entities count. Default: characters, unless entities would begin and end inside words."""
    choice_answer: ChoiceAnswer | None = None
    """What the answer of a choice question names its choice by. Default: decided from all rows."""
    join_tokens: Literal["words", "characters"] | None = None
    """Whether tokens are words, with spaces between them, or characters. Default: decided from all rows."""
    template: str | None = None
    """Prompt with `{column}` placeholders, e.g. `"Review: {text}\\nSentiment:"`. Default: by task and language."""
    chat_template: bool = False
    """Render prompts with the tokenizer's chat template instead of as plain text."""
    system: str | None = None
    """System message at the start of chat prompts."""
    answer_prefix: str | None = None
    """Text between prompt and answer, learned with the answer. Default: a space; nothing with `chat_template`."""
    max_length: int = Field(1024, gt=1, le=MOST_TOKENS)
    """Longest example in tokens: prompt, answer and end-of-sequence."""
    too_long: Literal["error", "drop", "truncate_prompt"] = "error"
    """What happens to a longer example. Answers are never cut; `truncate_prompt` cuts the start of the prompt."""
    overlap: Literal["error", "drop"] = "error"
    """What happens to a row whose prompt also occurs in a later split. `drop` removes it from the earlier split, never
    from test."""
    unlabelled_overlap: Literal["drop", "keep"] = "drop"
    """What happens to an unlabelled row whose prompt is also a validation or test row. With `keep`, the
    transductive case, the report and the model card say so."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training rows held out when there is no validation split."""
    max_train_rows: int | None = Field(None, gt=0)
    """Use a seeded sample of this many training rows."""
    max_validation_rows: int | None = Field(None, gt=0)
    """Use a seeded sample of this many validation rows."""
    max_test_rows: int | None = Field(None, gt=0)
    """Use a seeded sample of this many test rows."""
    max_unlabelled_rows: int | None = Field(None, gt=0)
    """Use a seeded sample of this many unlabelled rows."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            "a".encode(value or "utf-8")
        except (LookupError, ValueError) as error:
            raise ValueError(f"{value!r} is no encoding of text that Python knows, such as cp932 or cp1252") from error
        return value

    @field_validator("train", "validation", "test", "unlabelled", mode="before")
    @classmethod
    def _file_to_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are rows without gold answers."""
        return bool(self.unlabelled or self.unlabelled_split)


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning (PEFT's names)."""

    r: int = Field(16, gt=0, le=4096)
    """Rank."""
    lora_alpha: int = Field(32, gt=0, le=1_000_000)
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get adapters; never the output head."""


class Model(Section):
    """The teacher or the student."""

    model_name_or_path: str
    """Hub id or folder in Hugging Face format."""
    revision: str | None = None
    """Commit or tag of a Hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the weights, also in training. `bf16: true` in `trainer` computes in bfloat16 with float32 weights."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ...; default: transformers' choice."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    lora: Lora | None = None
    """Train low-rank adapters; `{}` uses the defaults. null: all weights are trained."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Of the teacher: hold its weights in 4 bits (NF4) or 8 bits, by bitsandbytes. It is trained by adapters on them
    (`lora`, QLoRA), or reads with checkpoints of yours."""
    device_map: Literal["auto"] | None = None
    """Of the teacher: `auto` spreads it over all GPUs of the machine, and over memory where these are too small, to
    read and answer in one process. Training holds it on one GPU."""


class Teach(Section):
    """Fine-tunes the teacher and keeps checkpoints of the run, or takes yours."""

    checkpoints: str | list[str] | None = None
    """A folder with `checkpoint-*`, or a list in training order of checkpoint folders and revisions on the hub
    (`owner/name@revision`); then nothing is trained."""
    num_checkpoints: int = Field(4, gt=0, le=1000)
    """Number of checkpoints that are kept, at equal spacing; the last one is the end of the run."""
    seed: int | None = None
    """Seed of the teacher's fine-tuning run. Default: the recipe's `seed`."""
    spacing: Literal["steps", "loss"] = "steps"
    """Spacing of the kept checkpoints. `steps`: equal in steps. `loss`: about equal in validation loss; needs disk
    space for four times as many while the teacher trains."""
    best_by: Literal["score", "loss"] = "score"
    """How T*, the best checkpoint, is selected: by validation score (ties: by loss) or by validation loss."""
    trainer: dict[str, Any] = {}
    """TrainingArguments for the teacher alone, e.g. `{num_train_epochs: 4, learning_rate: 2e-5}`."""


class Anchor(Section):
    """The anchor: the student after plain fine-tuning, frozen. The baseline, and the reference of adaptive weights."""

    model_name_or_path: str | None = None
    """Your own fine-tuned student; then nothing is trained. Default: fine-tune the student for as many steps as
    distillation gets."""
    trainer: dict[str, Any] = {}
    """TrainingArguments for the anchor alone; default: the student's, with epochs = num_stages x epochs_per_stage."""
    keep: Literal["last", "score", "loss"] = "loss"
    """Which model of its fine-tuning is kept: of `distill.num_stages` checkpoints the best on validation, by loss or by
    score, or the last, as published. An anchor that has memorised its training rows has no losses to weigh by."""


class Silver(Section):
    """The teacher's answers to the unlabelled rows (`data.unlabelled`)."""

    min_confidence: float = Field(0.0, ge=0, le=1)
    """Leave out rows that the teacher answers with a lower probability (of the whole answer). Answers that cannot be
    parsed, or do not end within `task.max_new_tokens`, are always left out."""


class CrossFit(Section):
    """Out-of-fold losses on the training rows, for methods `ccd-aw` and `*-aw-cf`."""

    folds: int = Field(2, ge=2, le=100)
    """Number of folds of the training rows; each is evaluated by models trained on the others."""
    teacher: bool = True
    """Also train the teacher for each fold. false: use its checkpoints' losses on their own training rows."""


class Cache(Section):
    """One forward pass of every teacher checkpoint over the training rows, stored on disk."""

    form: Literal["auto", "states", "bytes"] = "auto"
    """`states`: hidden states, which give distributions over tokens; teacher and student need one vocabulary. `bytes`:
    log-probabilities of the next byte of the answer, 257 numbers a byte, for a student with any tokenizer. `auto`:
    states where both vocabularies are the same, bytes otherwise."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of what is stored; `bytes` are float16 or float32."""
    batch_size: int = Field(16, gt=0, le=1_000_000)
    """Rows in one forward pass."""
    shard_rows: int = Field(1024, gt=0)
    """Rows in one file; an interrupted run continues after the last complete file."""
    top_k: int = Field(64, gt=0)
    """Log-probabilities per position that are stored if hidden states cannot reproduce the model's logits (rare
    architectures)."""


class Schedule(Section):
    """Options of the choice of checkpoint (schedule `nearest`, methods `scd*`)."""

    advance: bool = True
    """Only checkpoints after the last one followed compete; the last stage follows T*. false: all compete in every
    stage, as published, which can stall at the first one."""
    student_kl: Literal["reverse", "forward"] = "reverse"
    """Distance to the student: `reverse` is the published KL(S || T_k), `forward` is KL(T_k || S)."""


class Distill(Section):
    """Trains the student on the teacher's checkpoints, stage by stage."""

    methods: list[str] = ["scd-aw"]
    """Names in METHODS; each method gets the same rows, steps, stages, stage resets and seeds."""
    seeds: list[int] = [0]
    """One student per method and seed."""
    select: Literal["auto"] | None = "auto"
    """`auto`: also train `td` and `sft` (same cache, same steps) and select the student that is best on
    validation: never one that plain fine-tuning beats there. Costs up to two more students. null: only
    `methods`."""
    num_stages: int = Field(4, gt=0, le=1000)
    """N: stages of training, each with a checkpoint to follow."""
    epochs_per_stage: float = Field(2.0, gt=0, le=10_000)
    """T: passes over the training rows, unlabelled ones included, in one stage. Plain fine-tuning, which has only the
    rows with gold, gets as many steps."""
    stage_reset: bool = False
    """Optimizer and learning-rate schedule start anew in each stage, as published. false: one schedule and one
    optimizer over all stages."""
    kd_ratio: float = Field(0.5, ge=0, le=1)
    """Constant weights: loss = (1 - kd_ratio) CE + kd_ratio KD. Not used by adaptive weights."""
    temperature: float = Field(1.0, ge=0.01, le=100)
    """Divides both models' logits in the divergence, which is multiplied by its square."""
    start: Literal["student", "anchor"] = "student"
    """Where the first stage starts. `anchor`: from the fine-tuned student, which then has had twice the training of
    other methods."""
    schedule: Schedule = Schedule()
    """Options of the choice of checkpoint."""
    probe_rows: int | None = Field(None, gt=0)
    """Size of the probe set: a seeded sample of training rows on which checkpoints are compared with the student.
    Default: 2 % of the rows of a stage, at least 16 and at most 256, so that choosing costs at most 2 % of a stage."""
    keep: Literal["best", "last"] = "best"
    """Which student is kept: that of the best stage on validation, or of the last."""
    select_by: Literal["score", "loss"] = "score"
    """How `keep: best` compares stages: by validation score (ties: by loss) or by validation loss."""
    keep_stages: bool = False
    """Keep the student of each stage's start, so that the choices can be recomputed."""
    save_steps: int | None = Field(None, gt=0)
    """Steps between resume checkpoints inside a stage. Default: only finished stages are saved."""
    trainer: dict[str, Any] = {}
    """TrainingArguments for the student (distillation and anchor), e.g. `{learning_rate: 1e-4}`."""

    @field_validator("methods", "seeds", mode="before")
    @classmethod
    def _value_to_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @property
    def with_baselines(self) -> list[str]:
        """`methods`, with those that `select: auto` adds."""
        added = ("td", "sft") if self.select == "auto" else ()
        return list(dict.fromkeys([*self.methods, *added]))

    @property
    def students(self) -> list[str]:
        """Every student of the run, METHOD/seed-K."""
        return [f"{method}/seed-{seed}" for method in self.methods for seed in self.seeds]


class Evaluate(Section):
    """Scores every model on the test set, once."""

    batch_size: int = Field(16, gt=0, le=1_000_000)
    """Rows in one batch of decoding."""
    resamples: int = Field(1000, ge=100, le=100_000)
    """Bootstrap resamples behind each 95 % interval."""


class Tune(Section):
    """Learning rates tried by `tutelage compare --tune` and selected on validation; all students get the best."""

    method: str = "td"
    """Method that the learning rates are tried with (the paper's protocol: one for all methods)."""
    grid: list[float] = [2e-5, 5e-5, 1e-4, 2e-4, 5e-4]
    """Learning rates to try."""
    seeds: int = Field(1, gt=0, le=1000)
    """Students per learning rate; their means are compared. The result of one student may be chance."""
    per_method: bool = False
    """Try the grid with every method, and give each its own best learning rate. A shared one may favour the method that
    it was found with."""


class Compare(Section):
    """Resources of one student of `tutelage compare --executor ray`."""

    num_cpus: float = Field(1.0, gt=0, le=10_000)
    """CPUs; the processes of a student share as many threads."""
    num_gpus: float = Field(0.0, ge=0, le=10_000)
    """GPUs: with several, a student is trained by as many processes. Fractions of one are allowed."""


class Report(Section):
    """The report page of a run."""

    lang: Literal["en", "ko", "ja"] = "en"
    """Language of the page; rows and answers are not translated."""


class Recipe(Section):
    """A recipe: one section per stage, and what the stages share."""

    name: str
    """Name of the run. Default: the recipe file's name."""
    output_dir: str
    """The run folder. Default: runs/NAME."""
    preset: Literal["paper"] | None = None
    """`paper`: the published protocol (arXiv 2601.10114) wherever the recipe gives no value itself: stage resets, the
    anchor at the end of its fine-tuning, `scd-aw` alone."""
    seed: int = 0
    """Seed of held-out rows, samples, teacher and anchor; `distill.seeds` are those of the students."""
    task: Task
    data: Data
    teacher: Model
    student: Model
    trainer: dict[str, Any] = {}
    """TrainingArguments of all training runs; the `trainer` of a section overrides it."""
    fused_loss: bool = True
    """Compute output head and loss together, chunk by chunk, without keeping logits for the backward pass. Changes the
    loss by rounding only."""
    max_tokens_per_batch: int | None = Field(None, ge=1)
    """Split each training batch into micro-batches of at most this many tokens, padding included, that hold rows of
    similar length: less padding, and memory for one of them. Gradients are accumulated, so the optimizer step has the
    same rows and, up to rounding and dropout, the same gradient. A longer row is a micro-batch of its own. null: no
    split."""
    teach: Teach = Teach()
    anchor: Anchor = Anchor()
    silver: Silver = Silver()
    cache: Cache = Cache()
    cross_fit: CrossFit = CrossFit()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    tune: Tune = Tune()
    compare: Compare = Compare()
    report: Report = Report()

    @property
    def teacher_seed(self) -> int:
        """Seed of the teacher's fine-tuning run."""
        return self.seed if self.teach.seed is None else self.teach.seed

    def trainer_arguments(self, *sections: Literal["teach", "anchor", "distill"]) -> dict[str, Any]:
        """TrainingArguments of one training run: the defaults, `trainer`, and the `trainer` of each section; later ones
        override earlier ones."""
        merged = TRAINER_DEFAULTS | self.trainer
        for section in sections:
            merged |= getattr(self, section).trainer
        return merged
