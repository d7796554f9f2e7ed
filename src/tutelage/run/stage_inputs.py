"""What each stage's result is made from: the one place that says what depends on what.

A stage's inputs are the recipe's values it uses, fingerprints of the user's files, and the fingerprints of the stages
before it; `manifest.py` compares them with what a finished folder recorded. A stage that builds on a stale one is
refused, with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.data.splits import data_fingerprint
from tutelage.method.methods import find_method
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.manifest import fingerprint, finished_inputs, folder_fingerprint
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
    **dict.fromkeys(("data.unlabelled", "data.unlabelled_split", "data.max_unlabelled_rows")),
    "data.unlabelled_overlap": "drop",
    "anchor.keep": "last",
    "distill.start": "student",
    "distill.stage_reset": True,
    "teach.spacing": "steps",
    "processes": 1,
    "cache.form": "auto",
    **dict.fromkeys(("teacher.quantization", "student.quantization")),
}
"""Options at these values are left out of the inputs: an option that is new in the library makes no finished result
stale."""


def prepare(run: RunFolder) -> Inputs:
    """Rows, prompts, and the tokenizers and configs of both models.

    Files and models that are not on this machine count as unchanged, so that a finished run goes on where it was moved.
    """
    names = ("seed", "task", "data", "teacher.model_name_or_path", "student.model_name_or_path")
    before = _before(run, "prepare")
    models = {
        f"{role} model": _model(model.model_name_or_path, before.get(f"{role} model"), model.revision)
        for role, model in (("teacher", run.recipe.teacher), ("student", run.recipe.student))
    }
    files = before.get("data files") or {}
    if "hub" in files or not files or any(Path(name).exists() for name in files):
        files = data_fingerprint(run.recipe.data)
    return _without_defaults(run.settings(*names)) | {"format": FORMAT, "data files": files} | models


def _before(run: RunFolder, stage: str) -> Inputs:
    """What a finished stage was made from; empty if it is to be rebuilt."""
    return {} if run.force else finished_inputs(run.folder / stage)


def _model(name: str, before: str | None, revision: str | None = None) -> str:
    """Fingerprint of a model. before: as recorded; of a folder it is a hash, of a Hub id it holds an @."""
    is_gone = before is not None and "@" not in before and not Path(name).is_dir()
    return before if is_gone else folder_fingerprint(name, revision)


def teach(run: RunFolder) -> Inputs:
    """The prepared rows, how the teacher is trained, or the user's own checkpoints."""
    inputs = upstream(run, "prepare") | run.settings(
        "seed", "teacher", "teach", "trainer", "task.metric", "task.decoding"
    )
    if run.recipe.teach.checkpoints:
        given = {key: value for key, value in _before(run, "teach").items() if key.startswith("checkpoint ")}
        if not given or any(Path(key.removeprefix("checkpoint ")).exists() for key in given):
            folders = list_checkpoints(run.recipe.teach.checkpoints, run.recipe.teacher)
            given = {f"checkpoint {folder}": folder_fingerprint(str(folder)) for folder in folders}
        inputs |= given
    return _without_defaults(inputs | _batch(run))


def _batch(run: RunFolder) -> Inputs:
    """How many processes a batch is for: with `trainer`, this says how many rows make a step."""
    return {"processes": run.processes}


def silver(run: RunFolder) -> Inputs:
    """The prepared rows, T*, how answers are decoded, and which are kept."""
    return _answers(run) | run.settings("silver")


def _silver(run: RunFolder) -> Inputs:
    """The rows with the teacher's answers, where there are any."""
    return upstream(run, "silver") if run.recipe.data.has_unlabelled else {}


def anchor(run: RunFolder) -> Inputs:
    """The prepared rows and how the student is trained, for as long as distillation; or the user's own anchor."""
    names = STUDENT_TRAINING
    own = run.recipe.anchor.model_name_or_path
    names += ("task.metric", "task.decoding") if run.recipe.anchor.keep == "score" else ()
    return (
        upstream(run, "prepare")
        | _without_defaults(run.settings(*names))
        | ({"anchor model": _model(own, _before(run, "anchor").get("anchor model"))} if own else {})
        | _without_defaults(_batch(run))
    )


def cache(run: RunFolder) -> Inputs:
    """The prepared rows and the teacher's checkpoints."""
    own = run.settings("cache.form", "cache.dtype", "cache.shard_rows", "cache.top_k", "teacher.dtype")
    return upstream(run, "prepare", "teach") | _silver(run) | _without_defaults(own)


def teacher_answers(run: RunFolder) -> Inputs:
    """The prepared rows, T*, and how answers are decoded; the rows without gold, which are added."""
    return _answers(run) | _silver(run)


def _answers(run: RunFolder) -> Inputs:
    own = run.settings("task.decoding", "task.max_new_tokens", "teacher.dtype")
    return upstream(run, "prepare", "teach") | own


def cross_fit(run: RunFolder) -> Inputs:
    """The prepared rows, and how student and teacher are trained; the cache where the teacher is not trained again."""
    more = ["teacher", "teach"] if run.recipe.cross_fit.teacher else []
    own = _without_defaults(run.settings(*STUDENT_TRAINING, "cross_fit", *more) | _batch(run))
    return upstream(run, "prepare", "teach", *([] if more else ["cache"])) | own


def student(run: RunFolder, method: str) -> Inputs:
    """One distilled student: what its method needs of the teacher and the anchor, and the distill section but its
    lists."""
    # Upstream stages are shared by all methods of the run, so the settings in a method's name do not apply to them.
    parts, varied = find_method(method), run.varied(method)
    stages = ["prepare", *(["teach", "cache"] if parts.schedule != "none" else [])]
    stages += ["anchor"] if parts.needs_anchor or varied.recipe.distill.start == "anchor" else []
    stages += ["cross_fit"] if parts.needs_cross_fit else []
    stages += ["teacher_answers"] if parts.answers == "teacher" else []
    inputs = upstream(run, *stages) | _batch(run)
    inputs |= varied.settings("student", "trainer", "distill", "task.metric", "task.decoding")
    return {
        key: value
        for key, value in _without_defaults(inputs).items()
        if not key.startswith(("distill.methods", "distill.seeds")) and key != "distill.select"
    }


def _without_defaults(inputs: Inputs) -> Inputs:
    return {key: value for key, value in inputs.items() if key not in OFF or value != OFF[key]}


def inputs_of(run: RunFolder, name: str) -> Inputs:
    """Inputs of a folder of the run: a stage's, or distill/METHOD/seed-K."""
    if name.startswith("distill/"):
        return student(run, name.split("/")[1])
    made_from = {
        "prepare": prepare, "teach": teach, "anchor": anchor, "cache": cache, "cross_fit": cross_fit,
        "teacher_answers": teacher_answers, "silver": silver,
    }  # fmt: skip
    return made_from[name](run)


def upstream(run: RunFolder, *folders: str) -> dict[str, str]:
    """Fingerprints of the stages that a result is made from. Raises StaleArtifactError if one is missing or stale."""
    return {f"stage {name}": fingerprint(run.folder / name, inputs_of(run, name)) for name in folders}
