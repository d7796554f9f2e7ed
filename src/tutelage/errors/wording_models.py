"""The texts of problems of models and of the machine, for `wording.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tutelage.errors.kinds import Kind

Values = Mapping[str, Any]
Text = str | Callable[[Values], str]
"""A pattern of `str.format`, or a function, of the problem's fields and values."""


def _unknown_targets(v: Values) -> str:
    unknown = f"{', '.join(v['unknown'])} of lora.target_modules match no layer of {v['name']!r}"
    names = ", ".join(v["layers"][:20])
    return f"{unknown if v['unknown'] else v['reason']}. Write all-linear, or names of layers such as {names}"


def _different_vocabularies(v: Values) -> str:
    teacher, student = ("absent" if number is None else number for number in v["ids"])
    return (
        "the tokenizers of teacher and student differ, so their distributions cannot be compared: entry"
        f" {v['token']!r} is {teacher} for the teacher and {student} for the student (sizes {v['sizes'][0]:,} and"
        f" {v['sizes'][1]:,}). Take a student of the teacher's family, or make one: tutelage shrink TEACHER OUT"
        " --layers N"
    )


MODELS: dict[Kind, Text] = {
    Kind.VOCABULARIES_DIFFER: _different_vocabularies,
    Kind.LORA_TARGETS_UNKNOWN: _unknown_targets,
    Kind.END_OF_SEQUENCE_DIFFERS: (
        "teacher and student end a sequence with different tokens: {teacher!r} and {student!r}. Set `eos_token` in the"
        " student's tokenizer_config.json to {teacher!r}"
    ),
    Kind.DISK_TOO_SMALL: lambda v: (
        f"the cache needs up to {v['needed'] / 1e9:,.1f} GB and {v['folder']} has {v['free'] / 1e9:,.1f} GB free. Use a"
        " larger disk (output_dir=...), fewer checkpoints (teach.num_checkpoints=...) or cache.dtype=bfloat16"
    ),
}

MACHINE: dict[Kind, Text] = {
    Kind.FILE_INACCESSIBLE: lambda v: (
        f"{v['path']}: {v['reason']}; "
        + (
            "allow this shell more open files, `ulimit -n 4096`"
            if v["few"]
            else "check that it exists, and that you may read and write it"
        )
    ),
    Kind.OUT_OF_MEMORY: (
        "not enough memory ({reason}). Lower trainer.per_device_train_batch_size (with"
        " gradient_accumulation_steps as much higher), evaluate.batch_size, cache.batch_size or data.max_length, or"
        " train adapters: teacher.lora={{}}. The same command continues where it stopped"
    ),
}
