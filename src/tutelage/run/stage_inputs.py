"""What each stage's result is made from: the one place that says what depends on what.

A stage's inputs are the recipe's values it uses, fingerprints of the user's files, and the fingerprints of the stages
before it;
`artifacts.py` compares them with what a finished folder recorded. A stage that builds on a stale one is refused, with
the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.method.methods import find_method
from tutelage.run.manifest import folder_fingerprint

if TYPE_CHECKING:
    from tutelage.run.workspace import Workspace

Inputs = dict[str, Any]
FORMAT = 2
"""Of what `prepare` writes; a run folder of another format is stale."""
OFF: dict[str, Any] = {
    "anchor.keep": "last",
    "distill.start": "student",
    "distill.restart": True,
    "distill.schedule.trust": None,
    "distill.schedule.glide": False,
    "distill.weighting.gamma": 1.0,
    "distill.weighting.bias": 0.0,
    "distill.weighting.calibrate": False,
    "distill.weighting.smooth": 0.0,
    "distill.weighting.per_token": False,
    "teach.spacing": "steps",
}
"""Refinements that are off say nothing about a result: an option that is new in the library makes no finished result
stale."""


def prepare(space: Workspace) -> Inputs:
    """Rows, prompts, and the tokenizers and configs of both models."""
    from tutelage.data.splits import data_fingerprint

    names = ("seed", "task", "data", "teacher.model_name_or_path", "student.model_name_or_path")
    models = {
        f"{role} model": folder_fingerprint(model.model_name_or_path, model.revision)
        for role, model in (("teacher", space.recipe.teacher), ("student", space.recipe.student))
    }
    return space.settings(*names) | {"format": FORMAT, "data files": data_fingerprint(space.recipe.data)} | models


def teach(space: Workspace) -> Inputs:
    """The prepared rows, how the teacher is trained, or the user's own checkpoints."""
    inputs = space.upstream("prepare") | space.settings(
        "seed", "teacher", "teach", "trainer", "task.metric", "task.decoding"
    )
    if space.recipe.teach.checkpoints:
        from tutelage.run.checkpoints import list_checkpoints

        folders = list_checkpoints(space.recipe.teach.checkpoints, space.recipe.teacher)
        inputs |= {f"checkpoint {folder}": folder_fingerprint(str(folder)) for folder in folders}
    return _on(inputs)


def anchor(space: Workspace) -> Inputs:
    """The prepared rows and how the student is trained, for as long as distillation; or the user's own anchor."""
    names = (
        "seed",
        "student",
        "anchor",
        "trainer",
        "distill.trainer",
        "distill.num_stages",
        "distill.epochs_per_stage",
    )
    own = space.recipe.anchor.model_name_or_path
    names += ("task.metric", "task.decoding") if space.recipe.anchor.keep == "score" else ()
    return (
        space.upstream("prepare")
        | _on(space.settings(*names))
        | ({"anchor model": folder_fingerprint(own)} if own else {})
    )


def cache(space: Workspace) -> Inputs:
    """The prepared rows and the teacher's checkpoints."""
    return space.upstream("prepare", "teach") | space.settings(
        "cache.dtype", "cache.shard_rows", "cache.top_k", "teacher.dtype"
    )


def anchor_cache(space: Workspace) -> Inputs:
    """The prepared rows and the anchor."""
    return space.upstream("prepare", "anchor") | space.settings(
        "cache.dtype", "cache.shard_rows", "cache.top_k", "student.dtype"
    )


def teacher_answers(space: Workspace) -> Inputs:
    """The prepared rows, T*, and how answers are decoded."""
    return space.upstream("prepare", "teach") | space.settings("task.decoding", "task.max_new_tokens", "teacher.dtype")


def cross_fit(space: Workspace) -> Inputs:
    """The prepared rows, and how student and teacher are trained; the cache where the teacher is not trained again."""
    names = (
        "seed",
        "student",
        "anchor",
        "trainer",
        "distill.trainer",
        "distill.num_stages",
        "distill.epochs_per_stage",
    )
    more = ["teacher", "teach"] if space.recipe.cross_fit.teacher else []
    return space.upstream("prepare", "teach", *([] if more else ["cache"])) | _on(
        space.settings(*names, "cross_fit", *more)
    )


def student(space: Workspace, method: str) -> Inputs:
    """One distilled student: what its method needs of the teacher and the anchor, and the distill section but its
    lists."""
    parts, its = find_method(method), space.varied(method)  # what it is made from is there for all methods of the run
    stages = ["prepare", *(["teach", "cache"] if parts.schedule != "none" else [])]
    stages += ["anchor"] if parts.needs_anchor or its.recipe.distill.start == "anchor" else []
    stages += ["anchor_cache"] if parts.weighting == "gated" else []
    stages += ["cross_fit"] if parts.needs_cross_fit else []
    stages += ["teacher_answers"] if parts.answers == "teacher" else []
    inputs = space.upstream(*stages) | its.settings("student", "trainer", "distill", "task.metric", "task.decoding")
    return {
        key: value for key, value in _on(inputs).items() if not key.startswith(("distill.methods", "distill.seeds"))
    }


def _on(inputs: Inputs) -> Inputs:
    return {key: value for key, value in inputs.items() if key not in OFF or value != OFF[key]}


def inputs_of(space: Workspace, name: str) -> Inputs:
    """Inputs of a folder of the run: a stage's, or distill/METHOD/seed-K."""
    if name.startswith("distill/"):
        return student(space, name.split("/")[1])
    made_from = {
        "prepare": prepare, "teach": teach, "anchor": anchor, "cache": cache, "cross_fit": cross_fit,
        "teacher_answers": teacher_answers, "anchor_cache": anchor_cache,
    }  # fmt: skip
    return made_from[name](space)
