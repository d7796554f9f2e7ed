"""The texts of problems of the machine, and of layers that a model lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tutelage.errors.kinds import Kind

Values = Mapping[str, Any]


def _unknown_targets(v: Values) -> str:
    unknown = f"{', '.join(v['unknown'])} of lora.target_modules match no layer of {v['name']!r}"
    names = ", ".join(v["layers"][:20])
    return f"{unknown if v['unknown'] else v['reason']}. Write all-linear, or names of layers such as {names}"


TEXTS: dict[Kind, Callable[[Values], str] | str] = {
    Kind.LORA_TARGETS_UNKNOWN: _unknown_targets,
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
