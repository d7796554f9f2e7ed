"""What each stage's result is made from: the one place that says what depends on what.

A stage's inputs are the recipe's values it uses, fingerprints of the user's files, and the fingerprints of the stages
before it; `manifest.py` compares them with what a finished folder recorded. A stage that builds on a stale one is
refused, with the reason.
"""

from __future__ import annotations

from typing import Any

from tutelage.data.splits import data_fingerprint
from tutelage.method.methods import find_method
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.manifest import fingerprint, folder_fingerprint
from tutelage.run.run_folder import RunFolder

Inputs = dict[str, Any]
FORMAT = 2
"""Format of what `prepare` writes; a run folder of another format is stale."""
STUDENT_TRAINING = (
    *("seed", "student", "anchor", "trainer"),
    *("distill.trainer", "distill.num_stages", "distill.epochs_per_stage"),
)
"""Settings that the plain fine-tuning of the student depends on."""
OFF: dict[str, Any] = {
    **dict.fromkeys(("data.encoding", "data.offsets", "data.choice_answer", "data.join_tokens")),
    "anchor.keep": "last",
    "distill.start": "student",
    "distill.stage_reset": True,
    "teach.spacing": "steps",
}
"""Options at these values are left out of the inputs: an option that is new in the library makes no finished result
stale."""


def prepare(run: RunFolder) -> Inputs:
    """Rows, prompts, and the tokenizers and configs of both models."""
    names = ("seed", "task", "data", "teacher.model_name_or_path", "student.model_name_or_path")
    models = {
        f"{role} model": folder_fingerprint(model.model_name_or_path, model.revision)
        for role, model in (("teacher", run.recipe.teacher), ("student", run.recipe.student))
    }
    return (
        _without_defaults(run.settings(*names))
        | {"format": FORMAT, "data files": data_fingerprint(run.recipe.data)}
        | models
    )


def teach(run: RunFolder) -> Inputs:
    """The prepared rows, how the teacher is trained, or the user's own checkpoints."""
    inputs = upstream(run, "prepare") | run.settings(
        "seed", "teacher", "teach", "trainer", "task.metric", "task.decoding"
    )
    if run.recipe.teach.checkpoints:
        folders = list_checkpoints(run.recipe.teach.checkpoints, run.recipe.teacher)
        inputs |= {f"checkpoint {folder}": folder_fingerprint(str(folder)) for folder in folders}
    return _without_defaults(inputs)


def anchor(run: RunFolder) -> Inputs:
    """The prepared rows and how the student is trained, for as long as distillation; or the user's own anchor."""
    names = STUDENT_TRAINING
    own = run.recipe.anchor.model_name_or_path
    names += ("task.metric", "task.decoding") if run.recipe.anchor.keep == "score" else ()
    return (
        upstream(run, "prepare")
        | _without_defaults(run.settings(*names))
        | ({"anchor model": folder_fingerprint(own)} if own else {})
    )


def cache(run: RunFolder) -> Inputs:
    """The prepared rows and the teacher's checkpoints."""
    return upstream(run, "prepare", "teach") | run.settings(
        "cache.dtype", "cache.shard_rows", "cache.top_k", "teacher.dtype"
    )


def teacher_answers(run: RunFolder) -> Inputs:
    """The prepared rows, T*, and how answers are decoded."""
    return upstream(run, "prepare", "teach") | run.settings("task.decoding", "task.max_new_tokens", "teacher.dtype")


def cross_fit(run: RunFolder) -> Inputs:
    """The prepared rows, and how student and teacher are trained; the cache where the teacher is not trained again."""
    more = ["teacher", "teach"] if run.recipe.cross_fit.teacher else []
    return upstream(run, "prepare", "teach", *([] if more else ["cache"])) | _without_defaults(
        run.settings(*STUDENT_TRAINING, "cross_fit", *more)
    )


def student(run: RunFolder, method: str) -> Inputs:
    """One distilled student: what its method needs of the teacher and the anchor, and the distill section but its
    lists."""
    # Upstream stages are shared by all methods of the run, so the settings in a method's name do not apply to them.
    parts, varied = find_method(method), run.varied(method)
    stages = ["prepare", *(["teach", "cache"] if parts.schedule != "none" else [])]
    stages += ["anchor"] if parts.needs_anchor or varied.recipe.distill.start == "anchor" else []
    stages += ["cross_fit"] if parts.needs_cross_fit else []
    stages += ["teacher_answers"] if parts.answers == "teacher" else []
    inputs = upstream(run, *stages) | varied.settings("student", "trainer", "distill", "task.metric", "task.decoding")
    return {
        key: value
        for key, value in _without_defaults(inputs).items()
        if not key.startswith(("distill.methods", "distill.seeds"))
    }


def _without_defaults(inputs: Inputs) -> Inputs:
    return {key: value for key, value in inputs.items() if key not in OFF or value != OFF[key]}


def inputs_of(run: RunFolder, name: str) -> Inputs:
    """Inputs of a folder of the run: a stage's, or distill/METHOD/seed-K."""
    if name.startswith("distill/"):
        return student(run, name.split("/")[1])
    made_from = {
        "prepare": prepare, "teach": teach, "anchor": anchor, "cache": cache, "cross_fit": cross_fit,
        "teacher_answers": teacher_answers,
    }  # fmt: skip
    return made_from[name](run)


def upstream(run: RunFolder, *folders: str) -> dict[str, str]:
    """Fingerprints of the stages that a result is made from. Raises StaleArtifactError if one is missing or stale."""
    return {f"stage {name}": fingerprint(run.folder / name, inputs_of(run, name)) for name in folders}
