"""Checks of the two models without training: tokenizers, settings, checkpoints, memory, and one pass through each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.bytes.pair import Pair
from tutelage.data.dataset import load_rows
from tutelage.doctor.checks import Check, argument_line, failed
from tutelage.doctor.fit_checks import FittingRows
from tutelage.errors import ConfigError, Kind, ModelError, Problem, UserError
from tutelage.errors.wording import first_line
from tutelage.method.methods import find_method
from tutelage.models.load import (
    check_architecture,
    check_lora_targets,
    check_weights,
    config_of,
    load_tokenizer,
    same_vocabularies,
)
from tutelage.models.placement import bytes_of_weights, check_quantizer, device, device_of
from tutelage.models.precision import bf16_pays
from tutelage.recipe.schema import Model, Recipe
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.live_reader import parameters
from tutelage.utils.memory import machine_memory

ROLES = ("teacher", "student")
SMALL_BYTES = 2_000_000_000
"""Size of weights on disk up to which a model is loaded without `--timing-run`."""
HEAD_ROWS = 4
LEARNING_RATES = (1e-7, 2e-2)
"""Learning rates outside this range are probably mistakes."""


# --- tokenizers ---


def check_tokenizers(recipe: Recipe) -> tuple[Pair | None, list[Check]]:
    """How both models read the rows, None if they cannot be compared, and the checks of both tokenizers."""
    tokenizers, checks = {}, []
    for role in ROLES:
        try:
            tokenizers[role] = load_tokenizer(getattr(recipe, role))
        except ModelError as error:
            change, details = f"{role}.model_name_or_path=...", {"role": role, "reason": first_line(error)}
            kind = Kind.TOKENIZER_UNREADABLE
            checks.append(Check("tokenizers", "models", "fail", kind, change=change, details=details))
    if checks:
        return None, checks
    sizes = {role: len(tokenizers[role].get_vocab()) for role in ROLES}
    try:
        pair = Pair.of(recipe)
    except ModelError as error:
        name = "end_of_sequence" if error.kind == Kind.END_OF_SEQUENCE_DIFFERS else "vocabularies"
        return None, [failed(name, "models", error.problems[0], "cache.form=auto", **sizes)]
    details = {"vocabulary": pair.vocabulary, "end": tokenizers["student"].eos_token, "own": pair.teacher is not None}
    checks = [
        Check("vocabularies", "models", "passed", numbers=sizes, details=details),
        _padded_sizes(recipe, {"teacher": pair.of_teacher, "student": pair.vocabulary}),
        _chat_template(recipe, tokenizers),
    ]
    return pair, [check for check in checks if check]


def _padded_sizes(recipe: Recipe, entries: Mapping[str, int]) -> Check | None:
    """Rows of the embeddings against entries of the tokenizer of each model."""
    sizes = {role: getattr(config_of(getattr(recipe, role)), "vocab_size", None) for role in ROLES}
    numbers = {"vocabulary": entries["student"], **sizes}
    short = [role for role, size in sizes.items() if size is not None and size < entries[role]]
    if short:
        values = {"role": short[0], "rows": sizes[short[0]], "vocabulary": entries[short[0]]}
        problem, change = Problem(Kind.EMBEDDINGS_TOO_SMALL, values=values), f"{short[0]}.model_name_or_path=..."
        return failed("padded_sizes", "models", problem, change, **numbers)
    return None if None in sizes.values() else Check("padded_sizes", "models", "passed", numbers=numbers)


def _chat_template(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Check | None:
    if not recipe.data.chat_template:
        return None
    templates = {role: getattr(tokenizers[role], "chat_template", None) for role in ROLES}
    if not templates["student"]:
        plain = _plain_prompts_work(recipe)
        role = "student" if templates["teacher"] else "teacher"
        model_line = f"{role}.model_name_or_path=ONE_WITH_A_CHAT_TEMPLATE"
        change = "data.chat_template=false" if plain else model_line
        kind = Kind.CHAT_TEMPLATE_MISSING
        return Check("chat_template", "models", "fail", kind, change=change, details={"plain": plain})
    own = recipe.cache.form != "states" and not same_vocabularies(tokenizers["teacher"], tokenizers["student"])
    if own and not templates["teacher"]:
        change, details = "teacher.model_name_or_path=ONE_WITH_A_CHAT_TEMPLATE", {"plain": False}
        return Check("chat_template", "models", "fail", Kind.CHAT_TEMPLATE_MISSING, change=change, details=details)
    if not own and templates["teacher"] != templates["student"]:
        change, details = "student.model_name_or_path=...", {"teacher_has_one": bool(templates["teacher"])}
        return Check("chat_template", "models", "look", Kind.CHAT_TEMPLATES_DIFFER, change=change, details=details)
    return Check("chat_template", "models", "passed", details={"own": own})


def _plain_prompts_work(recipe: Recipe) -> bool:
    """Whether the rows can be read without a chat template; conversations cannot."""
    data = recipe.data.model_copy(update={"chat_template": False, "system": None})
    try:
        load_rows(recipe.model_copy(update={"data": data}))
    except UserError:
        return False
    return True


# --- settings ---


def check_settings(recipe: Recipe) -> list[Check]:
    """Training arguments, precision, memory of the weights, the user's own checkpoints, and two different models."""
    refused = _architecture(recipe) or _lora_targets(recipe) or _incomplete(recipe)
    checks = [
        *(_training_arguments(recipe), _learning_rates(recipe), _precision(recipe)),
        *(refused or _weight_memory(recipe), _checkpoints(recipe)),
        _same_model(recipe),
    ]
    return [check for check in checks if check]


def _training_arguments(recipe: Recipe) -> Check:
    for sections in (("teach",), ("distill", "anchor"), ("distill",)):
        given = recipe.trainer_arguments(*sections)
        if reason := _refusal(given):
            names = [name for section in reversed(sections) for name in getattr(recipe, section).trainer]
            culprit = next((name for name in (*names, *recipe.trainer) if not _refusal(_without(given, name))), None)
            line = argument_line(recipe, sections[-1], culprit) if culprit else f"{sections[-1]}.trainer"
            kind, details = Kind.TRAINING_ARGUMENTS_REFUSED, {"reason": reason}
            return Check("training_arguments", "models", "fail", kind, change=f"{line}=...", details=details)
    return Check("training_arguments", "models", "passed")


def _without(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != name}


def _refusal(arguments: Mapping[str, Any]) -> str | None:
    """Why transformers refuses these training arguments; None if it takes them."""
    from tutelage.training.trainer import check_arguments

    try:
        check_arguments(dict(arguments))
    except ConfigError as error:
        return str(error)
    return None


def _learning_rates(recipe: Recipe) -> Check:
    """Learning rates far from any that trains a transformer with AdamW."""
    sections = {"teach": ("teach",), "distill": ("distill",), "anchor": ("distill", "anchor")}
    arguments = {name: recipe.trainer_arguments(*names) for name, names in sections.items()}
    numbers = {name: given["learning_rate"] for name, given in arguments.items() if "learning_rate" in given}
    low, high = LEARNING_RATES
    for section, rate in numbers.items():
        if isinstance(rate, int | float) and not low <= rate <= high:
            change = f"{argument_line(recipe, section, 'learning_rate')}=1e-4"
            details = {"section": section, "rate": rate, "large": rate > high}
            kind = Kind.LEARNING_RATE_UNUSUAL
            return Check("learning_rate", "models", "look", kind, numbers, change, details=details)
    return Check("learning_rate", "models", "passed", numbers=numbers, details={"rates": numbers})


def _precision(recipe: Recipe) -> Check:
    """The types that weights are held in and products computed in, against what this machine does well."""
    device_type = device().type
    pays, why = bf16_pays(device_type)
    numbers = {"device": device_type, "bf16_pays": pays}
    for role in ROLES:
        model: Model = getattr(recipe, role)
        if model.dtype in ("float16", "bfloat16") and not model.lora:
            change, details = f"{role}.dtype=float32", {"role": role, "dtype": model.dtype}
            return Check("precision", "models", "look", Kind.WEIGHTS_IN_16_BIT, numbers, change, details=details)
    if recipe.trainer.get("fp16") and device_type == "cpu":
        return Check("precision", "models", "fail", Kind.FLOAT16_ON_CPU, numbers, "trainer.fp16=false")
    details = {"why": why, "given": bool({"bf16", "fp16"} & recipe.trainer.keys())}
    if recipe.trainer.get("bf16") and not pays:
        change = "trainer.bf16=false"
        return Check("precision", "models", "look", Kind.BFLOAT16_SLOW, numbers, change, details=details)
    return Check("precision", "models", "passed", numbers=numbers, details=details)


def _weight_memory(recipe: Recipe) -> Check | None:
    """Whether weights, gradients and the two moments of the optimizer fit here. None for models not on this disk."""
    total = machine_memory()
    numbers: dict[str, Any] = {"machine": total}
    for role in ROLES:
        model: Model = getattr(recipe, role)
        given = role == "teacher" and recipe.teach.checkpoints is not None
        optimizer = recipe.trainer_arguments("teach" if role == "teacher" else "distill").get("optim", "adamw_torch")
        # Other optimizers hold less than AdamW.
        full = model.lora is None and not given and str(optimizer).startswith("adamw_torch")
        numbers[role] = bytes_of_weights(model, parameters(Path(model.model_name_or_path))) * (4 if full else 1)
        if numbers[role] > total:
            change = f"{role}.lora={{}}" if full else f"{role}.dtype=bfloat16"
            details = {"role": role, "bytes": numbers[role], "full": full}
            return Check("weight_memory", "models", "fail", Kind.MEMORY_TOO_SMALL, numbers, change, details=details)
    if not numbers["teacher"] or not numbers["student"]:
        return None
    return Check("weight_memory", "models", "passed", numbers=numbers)


def _checkpoints(recipe: Recipe) -> Check | None:
    """The user's own checkpoints: found, of this teacher, and enough of them for the schedule."""
    given = recipe.teach.checkpoints
    needs_several = any(find_method(name).schedule in ("nearest", "in_order") for name in recipe.distill.methods)
    count = recipe.teach.num_checkpoints
    if given:
        try:
            count = len(list_checkpoints(given, recipe.teacher))
        except ModelError as error:
            kind, details = Kind.CHECKPOINTS_UNUSABLE, {"reason": first_line(error)}
            change = "teach.checkpoints=FOLDER"
            return Check("checkpoints", "models", "fail", kind, change=change, details=details)
    numbers = {"checkpoints": count}
    if count == 1 and needs_several:
        change = f"teach.{'checkpoints' if given else 'num_checkpoints'}=4"
        return Check("checkpoints", "models", "look", Kind.ONE_CHECKPOINT, numbers, change)
    return Check("checkpoints", "models", "passed", numbers=numbers) if given else None


def _incomplete(recipe: Recipe) -> Check | None:
    """The first model on this disk whose weights are not all there, by its files."""
    models = [(f"{role}.model_name_or_path", getattr(recipe, role), None) for role in ROLES]
    if anchor := recipe.anchor.model_name_or_path:
        models.append(("anchor.model_name_or_path", recipe.student, Path(anchor)))
    with suppress(ModelError):  # see `_checkpoints`
        given = list_checkpoints(recipe.teach.checkpoints, recipe.teacher) if recipe.teach.checkpoints else []
        models += [("teach.checkpoints", recipe.teacher, folder) for folder in given]
    for key, model, path in models:
        try:
            if (path or Path(model.model_name_or_path)).is_dir():
                check_weights(model, path)
        except UserError as error:
            return failed("complete_weights", "models", error.problems[0], f"{key}=...")
    return None


def _architecture(recipe: Recipe) -> Check | None:
    """The first model that `prepare` refuses for what it is."""
    for role in ROLES:
        try:
            check_architecture(getattr(recipe, role))
        except ModelError as error:
            problem = error.problems[0]
            other = "FOLDER_OF_THE_TEXT_PART" if problem.values.get("text") else "A_DECODER_OF_TEXT"
            other = "THE_MERGED_MODEL" if problem.kind == Kind.ADAPTERS_WITHOUT_BASE else other
            return failed("architecture", "models", problem, f"{role}.model_name_or_path={other}")
    return None


def _lora_targets(recipe: Recipe) -> Check | None:
    """Names of layers that are to get adapters, and the package for quantized weights, which `prepare` refuses if there
    are none."""
    for role in ROLES:
        try:
            check_quantizer(getattr(recipe, role))
        except ModelError as error:
            return failed("quantization", "models", error.problems[0], f"{role}.quantization=null")
        try:
            check_lora_targets(getattr(recipe, role))
        except ModelError as error:
            change = f"{role}.lora.target_modules=all-linear"
            return failed("lora_targets", "models", error.problems[0], change)
    return None


def _same_model(recipe: Recipe) -> Check | None:
    """A student that is the teacher itself saves nothing."""
    if recipe.teacher.model_name_or_path != recipe.student.model_name_or_path:
        return None
    return Check("model_sizes", "models", "look", Kind.STUDENT_IS_TEACHER, change="student.model_name_or_path=OUT")


# --- models that are loaded ---


def check_loaded(recipe: Recipe, fitting: FittingRows | None, *, even_large: bool) -> list[Check]:
    """Load both models, one at a time: sizes, head, and one forward and backward pass in the types of the recipe."""
    large = [role for role in ROLES if not even_large and not _is_small(getattr(recipe, role))]
    if large:
        return [Check("head", "models", "skipped", Kind.MODELS_NOT_LOADED, details={"roles": large})]
    checks, sizes = [], {}
    for role in ROLES:
        try:
            sizes[role], passes = _try(recipe, role, fitting)
        except Exception as error:  # whatever a model raises here would end the run
            change = f"{role}.model_name_or_path=..."
            if getattr(recipe, role).attn_implementation and _loads_with_default_attention(getattr(recipe, role)):
                change = f"{role}.attn_implementation=sdpa"
            details = {"role": role, "reason": first_line(error)}
            kind, problems = Kind.MODEL_UNUSABLE, ()
            if isinstance(error, ModelError) and error.kind != Kind.MODEL:
                kind, problems = error.kind, tuple(error.problems)
            check = Check("loading", "models", "fail", kind, change=change, details=details, problems=problems)
            return [*checks, check]
        checks += passes
    if sizes["student"] >= sizes["teacher"] and not _same_model(recipe):
        change = "student.model_name_or_path=A_SMALLER_ONE"
        checks.append(Check("model_sizes", "models", "look", Kind.STUDENT_NOT_SMALLER, sizes, change))
    else:
        checks.append(Check("model_sizes", "models", "passed", numbers=sizes))
    return checks


def _loads_with_default_attention(model: Model) -> bool:
    from tutelage.models.load import load_model

    try:
        load_model(model.model_copy(update={"attn_implementation": None}))
    except Exception:
        return False
    return True


def _is_small(model: Model) -> bool:
    folder = Path(model.model_name_or_path)
    return folder.is_dir() and sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= SMALL_BYTES


def _try(recipe: Recipe, role: str, fitting: FittingRows | None) -> tuple[int, list[Check]]:
    """Number of the model's weights, and the checks of its head and of a gradient on the first rows."""
    from tutelage.data.collate import Collator, pad_id_of
    from tutelage.models.heads import answer_states, head_error, head_of
    from tutelage.models.load import load_model

    model = load_model(getattr(recipe, role))
    size = model.num_parameters()
    if fitting is None:
        return size, []
    fitting = fitting.of(role)
    rows = [(index, fitting.stores["train"][index]) for index in range(min(HEAD_ROWS, len(fitting.stores["train"])))]
    collated = Collator(pad_id_of(fitting.encoder.tokenizer))(rows)
    batch = {name: tensor.to(device_of(model)) for name, tensor in collated.items()}
    error = head_error(head_of(model, fitting.vocabulary), *answer_states(model, batch))
    return size, [_head(recipe, role, error), *_gradient(recipe, role, model, batch, fitting.vocabulary)]


def _head(recipe: Recipe, role: str, error: float) -> Check:
    """Whether head(hidden state) gives the logits of the model itself."""
    from tutelage.models.heads import FAITHFUL_NATS

    numbers = {"head_error_nats": error, "allowed": FAITHFUL_NATS}
    name = f"head_of_{role}"
    if error <= FAITHFUL_NATS:
        return Check(name, "models", "passed", numbers=numbers)
    compares = any(find_method(method).compares_student for method in recipe.distill.methods)
    status, change = "fail" if compares else "look", "distill.methods=[cd-aw]"
    details = {"top_k": recipe.cache.top_k, "needs_all": compares}
    return Check(name, "models", status, Kind.HEAD_INEXACT, numbers, change, details=details)


def _gradient(recipe: Recipe, role: str, model: Any, batch: Mapping[str, Any], vocabulary: int) -> list[Check]:
    """A check if loss or gradient on a batch is not finite."""
    import torch

    from tutelage.data.collate import IGNORED
    from tutelage.models.heads import answer_logits

    logits = answer_logits(model, batch)[..., :vocabulary].float().flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch["targets"].flatten(), ignore_index=IGNORED)
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    if torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients):
        return []
    numbers, change = {"loss": float(loss.detach())}, f"{role}.dtype=float32"
    details = {"role": role, "dtype": getattr(recipe, role).dtype}
    name = f"gradient_of_{role}"
    return [Check(name, "models", "fail", Kind.GRADIENT_NOT_FINITE, numbers, change, details=details)]
