"""Training arguments that are the library's own to set, and those that change no result."""

from __future__ import annotations

import re

CHANGES_NOTHING = re.compile(
    r"(^|\.)trainer\.(report_to|run_name|logging_\w+|log_\w+|disable_tqdm|project|trackio_\w+"
    r"|include_num_input_tokens_seen|skip_memory_metrics)$|\.device_map$"
)
"""Dotted names of settings that only decide what is logged or shown, or where a model is held: changing them makes no
result stale."""

_BY_LAUNCHER = (
    "how models are divided is for the launcher to say; leave it out, and start with `accelerate launch --use_fsdp"
    " --fsdp_version 2`"
)
_NOT_DIVIDED_SO = (
    "models are divided by FSDP2 alone; leave it out, and start with `accelerate launch --use_fsdp --fsdp_version 2`"
)
RESERVED = {
    "output_dir": "every stage writes into the run folder: set the recipe's own `output_dir`",
    "seed": "set the recipe's `seed`, or `distill.seeds` for the students",
    "data_seed": "set the recipe's `seed`, or `distill.seeds` for the students",
    "max_steps": "set `distill.num_stages` and `distill.epochs_per_stage`, or `teach.trainer.num_train_epochs`",
    "auto_find_batch_size": "every method gets the same steps: set `per_device_train_batch_size`",
    "dataloader_drop_last": "every training row is used; leave it out",
    "remove_unused_columns": "the rows hold only what the model needs; leave it out",
    "label_smoothing_factor": "the loss has no label smoothing; leave it out",
    "resume_from_checkpoint": "the same command resumes an interrupted run; leave it out",
    "per_device_eval_batch_size": "set `evaluate.batch_size`",
    "load_best_model_at_end": "set `distill.keep`, and `teach.best_by` for the teacher",
    "metric_for_best_model": "set `task.metric`, `teach.best_by` and `distill.select_by`",
    "greater_is_better": "set `task.metric`, `teach.best_by` and `distill.select_by`",
    "push_to_hub": "upload the finished student with `tutelage push RUN OWNER/NAME`",
    "hub_*": "upload the finished student with `tutelage push RUN OWNER/NAME`",
    "disable_tqdm": "tutelage shows the progress; leave it out",
    "log_level": "tutelage decides what is printed; leave it out",
    "save_*": "set `teach.num_checkpoints` for the teacher, `distill.save_steps` for resume checkpoints of the student",
    "eval_*": "validation runs after each stage and for each teacher checkpoint; leave it out",
    "do_*": "each stage is a separate command; leave it out",
    "evaluation_strategy": "validation runs after each stage and for each teacher checkpoint; leave it out",
    "warmup_ratio": "write warmup_steps: 0.1 (a value below 1 is a fraction of the steps)",
    "group_by_length": "write train_sampling_strategy: group_by_length",
    "no_cuda": "write use_cpu: true",
    "fsdp": _BY_LAUNCHER,
    "fsdp_config": _BY_LAUNCHER,
    "deepspeed": _NOT_DIVIDED_SO,
    "parallelism_config": _NOT_DIVIDED_SO,
}
"""Training arguments (names or patterns) that the library sets itself or that have another name now, and what to use
instead."""

_STEPS = "training lasts num_stages x epochs_per_stage: set these"
_JUDGED = "stages are compared by their loss on eval_dataset, and keep says which student is kept; leave it out"
_ONE_PROCESS = "SCDTrainer trains in one process; `tutelage run` divides models (docs/scale.md); leave it out"
IN_PYTHON = {
    **{name: RESERVED[name] for name in ("dataloader_drop_last", "remove_unused_columns", "label_smoothing_factor")},
    **dict.fromkeys(("num_train_epochs", "max_steps"), _STEPS),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _JUDGED),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), _ONE_PROCESS),
    "data_seed": "set seed",
    "auto_find_batch_size": "anchor and student get the same steps: set per_device_train_batch_size",
    "resume_from_checkpoint": "train() continues what was interrupted in output_dir; leave it out",
    "per_device_eval_batch_size": "set cache_batch_size",
    "push_to_hub": "nothing is uploaded in training: upload the folder that save_model() writes",
    "save_*": "set save_every_steps for resume checkpoints inside a stage, keep_stages to keep the student of each",
    "eval_*": "eval_dataset is read after each stage; leave it out",
    "*_full_eval": "eval_dataset is read in the type of the weights; leave it out",
}
"""Arguments of transformers (names or patterns) that `SCDConfig` does not take, since they would have no effect or
another one than meant, and what to use instead."""
DONE_ANYWAY = (None, False, "no", "", [], {})
"""Values of such arguments that ask for what is done in any case."""
