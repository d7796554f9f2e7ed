"""Checks of the two models without training: tokenizers, sizes, chat template, training arguments, checkpoints,
precision, head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tutelage.data.dataset import load_rows
from tutelage.doctor.checks import Check, argument_line, in_bytes
from tutelage.doctor.fit_checks import Fitted
from tutelage.errors import ModelError, UserError
from tutelage.method.methods import find_method
from tutelage.models.load import check_vocabularies, config_of, device, load_tokenizer
from tutelage.models.precision import bf16_pays
from tutelage.recipe.schema import Model, Recipe
from tutelage.run.checkpoints import list_checkpoints
from tutelage.run.live_reader import parameters
from tutelage.utils.memory import machine_memory

ROLES = ("teacher", "student")
SMALL_BYTES = 2_000_000_000
"""Weights on disk up to which a model is loaded without being asked for a probe."""
HEAD_ROWS = 4
RATES = (1e-7, 2e-2)
"""Learning rates outside of these are not meant."""


def check_tokenizers(recipe: Recipe) -> tuple[Any | None, int, list[Check]]:
    """The student's tokenizer, the shared vocabulary's size, and what is wrong with either."""
    found, checks = {}, []
    for role in ROLES:
        try:
            found[role] = load_tokenizer(getattr(recipe, role))
        except ModelError as error:
            checks.append(
                Check("tokenizers", "models", "fail", f"{role}: {error}", {}, f"{role}.model_name_or_path=...")
            )
    if checks:
        return found.get("student"), 0, checks
    sizes = {role: len(found[role].get_vocab()) for role in ROLES}
    try:
        vocabulary = check_vocabularies(found["teacher"], found["student"])
    except ModelError as error:
        name = "end of sequence" if "end a sequence" in str(error) else "vocabularies"
        return found["student"], 0, [Check(name, "models", "fail", str(error), sizes, "student.model_name_or_path=...")]
    text = (
        f"both tokenizers have the same {vocabulary:,} entries and end a sequence with {found['student'].eos_token!r}"
    )
    checks = [
        Check("vocabularies", "models", "passed", text, sizes),
        _padding(recipe, vocabulary),
        _chat(recipe, found),
    ]
    return found["student"], vocabulary, [check for check in checks if check]


def _padding(recipe: Recipe, vocabulary: int) -> Check | None:
    """Rows of the embeddings beside entries of the tokenizer."""
    configs = {role: config_of(getattr(recipe, role)) for role in ROLES}
    sizes = {role: getattr(config, "vocab_size", None) for role, config in configs.items()}
    numbers = {"vocabulary": vocabulary, **sizes}
    short = [role for role, size in sizes.items() if size is not None and size < vocabulary]
    if short:
        text = f"the tokenizer has {vocabulary:,} entries, the {short[0]} embeddings for {sizes[short[0]]:,}: it cannot read them all"
        return Check("padded sizes", "models", "fail", text, numbers, f"{short[0]}.model_name_or_path=...")
    if None in sizes.values():
        return None
    text = f"embeddings for {sizes['teacher']:,} (teacher) and {sizes['student']:,} (student); what is beyond the tokenizer is cut off"
    return Check("padded sizes", "models", "passed", text, numbers)


def _chat(recipe: Recipe, tokenizers: dict[str, Any]) -> Check | None:
    if not recipe.data.chat_template:
        return None
    templates = {role: getattr(tokenizers[role], "chat_template", None) for role in ROLES}
    if not templates["student"]:
        text = "the student's tokenizer has no chat template, so chat prompts cannot be rendered"
        if _plain(recipe):
            return Check("chat template", "models", "fail", f"{text}; plain ones can", {}, "data.chat_template=false")
        role = "student" if templates["teacher"] else "teacher"
        text = f"{text}. Take a model tuned to chat, or put a chat_template.jinja into its folder"
        return Check("chat template", "models", "fail", text, {}, f"{role}.model_name_or_path=ONE_WITH_A_CHAT_TEMPLATE")
    if templates["teacher"] != templates["student"]:
        text = (
            f"the teacher's chat template {'is another one' if templates['teacher'] else 'is missing'}: both are asked in the"
            " student's, which the teacher was not tuned to. Copy the teacher's chat_template.jinja into the student's folder"
        )
        return Check("chat template", "models", "look", text, {}, "student.model_name_or_path=...")
    return Check("chat template", "models", "passed", "both models have the same chat template")


def _plain(recipe: Recipe) -> bool:
    """Whether the rows can be read without a chat template: conversations cannot."""
    try:
        load_rows(
            recipe.model_copy(update={"data": recipe.data.model_copy(update={"chat_template": False, "system": None})})
        )
    except UserError:
        return False
    return True


# --- settings ---


def check_settings(recipe: Recipe) -> list[Check]:
    """Training arguments, precision, checkpoints of the user's, and whether the student is another model than the
    teacher."""
    checks = [
        _trainers(recipe),
        _rates(recipe),
        _precision(recipe),
        _memory(recipe),
        _checkpoints(recipe),
        _same(recipe),
    ]
    return [check for check in checks if check]


def _trainers(recipe: Recipe) -> Check:
    from tutelage.training.trainer import training_arguments

    with TemporaryDirectory() as folder:
        for sections in (("teach",), ("distill", "anchor"), ("distill",)):
            try:
                training_arguments(Path(folder), recipe.trainer_arguments(*sections), seed=0)
            except (ValueError, TypeError, ImportError) as error:
                text = f"transformers refuses these arguments: {error}"
                return Check(
                    "training arguments", "models", "fail", text, {}, f"{_named(recipe, sections[-1], str(error))}"
                )
    return Check("training arguments", "models", "passed", "transformers takes them")


def _rates(recipe: Recipe) -> Check | None:
    """A learning rate that is a slip of the pen: far from any that trains a transformer by AdamW."""
    rates = {"teach": recipe.trainer_arguments("teach"), "distill": recipe.trainer_arguments("distill")}
    rates |= {"anchor": recipe.trainer_arguments("distill", "anchor")}
    numbers = {name: arguments["learning_rate"] for name, arguments in rates.items() if "learning_rate" in arguments}
    low, high = RATES
    for name, rate in numbers.items():
        if isinstance(rate, int | float) and not low <= rate <= high:
            what = f"so {'large' if rate > high else 'small'} that the {'model breaks' if rate > high else 'model stays as it is'}"
            text = f"the learning rate of {name}, {rate:g}, is {what}; usual are 1e-5 to 1e-3"
            return Check(
                "learning rate", "models", "look", text, numbers, f"{argument_line(recipe, name, 'learning_rate')}=1e-4"
            )
    return Check(
        "learning rate", "models", "passed", ", ".join(f"{name} {rate:g}" for name, rate in numbers.items()), numbers
    )


def _named(recipe: Recipe, section: str, message: str) -> str:
    """The line of the argument that a message of transformers is about, as far as it names one."""
    given = {**{name: f"trainer.{name}" for name in recipe.trainer}}
    given |= {name: f"{section}.trainer.{name}" for name in getattr(recipe, section).trainer}
    about = next(
        (line for name, line in given.items() if name in message or str(recipe.trainer.get(name)) in message), None
    )
    return f"{about or f'{section}.trainer'}=..."


def _precision(recipe: Recipe) -> Check:
    """The types that weights are held and products computed in, against what this machine does well."""
    kind = device().type
    pays, why = bf16_pays(kind)
    numbers = {"device": kind, "bf16_pays": pays}
    for role in ROLES:
        model: Model = getattr(recipe, role)
        if model.dtype in ("float16", "bfloat16") and not model.lora:
            text = (
                f"the {role} is trained in {model.dtype} weights: most updates of full fine-tuning are smaller than their rounding"
                " and are lost. Hold them in float32; trainer.bf16 computes in bfloat16 all the same"
            )
            return Check("precision", "models", "look", text, numbers, f"{role}.dtype=float32")
    if recipe.trainer.get("fp16") and kind == "cpu":
        text = "float16 on a CPU: training in it overflows or is refused"
        return Check("precision", "models", "fail", text, numbers, "trainer.fp16=false")
    if recipe.trainer.get("bf16") and not pays:
        return Check("precision", "models", "look", f"bfloat16 is slow here: {why}", numbers, "trainer.bf16=false")
    if "bf16" in recipe.trainer or "fp16" in recipe.trainer:
        return Check("precision", "models", "passed", f"as the recipe says; {why}", numbers)
    return Check(
        "precision", "models", "passed", f"{'bfloat16' if pays else 'float32'} will be used, since {why}", numbers
    )


def _memory(recipe: Recipe) -> Check | None:
    """Whether weights, gradients and the optimizer's two moments fit here at all. None for models that are not on this
    disk."""
    total = machine_memory()
    numbers: dict[str, Any] = {"machine": total}
    for role in ROLES:
        model: Model = getattr(recipe, role)
        given = role == "teacher" and recipe.teach.checkpoints is not None
        optimizer = recipe.trainer_arguments("teach" if role == "teacher" else "distill").get("optim", "adamw_torch")
        whole = model.lora is None and not given and str(optimizer).startswith("adamw_torch")
        width = 2 if model.dtype in ("float16", "bfloat16") else 4
        numbers[role] = parameters(Path(model.model_name_or_path)) * width * (4 if whole else 1)
        if numbers[role] > total:
            text = (
                f"the {role} takes {in_bytes(numbers[role])}{' while all its weights are trained' if whole else ''}, and there"
                f" are {in_bytes(total)} here{': adapters need little more than the weights' if whole else ''}"
            )
            return Check(
                "memory of weights",
                "models",
                "fail",
                text,
                numbers,
                f"{role}.{'lora={}' if whole else 'dtype=bfloat16'}",
            )
    if not numbers["teacher"] or not numbers["student"]:
        return None
    listed = " and ".join(f"{in_bytes(numbers[role])} for the {role}" for role in ROLES)
    return Check("memory of weights", "models", "passed", f"{listed}, of {in_bytes(total)} here", numbers)


def _checkpoints(recipe: Recipe) -> Check | None:
    """The user's own checkpoints: there, of this teacher, and enough of them for the schedule."""
    given = recipe.teach.checkpoints
    needs = any(find_method(name).schedule in ("nearest", "in_order") for name in recipe.distill.methods)
    count = recipe.teach.num_checkpoints
    if given:
        try:
            count = len(list_checkpoints(given, recipe.teacher))
        except ModelError as error:
            return Check("checkpoints", "models", "fail", str(error), {}, "teach.checkpoints=FOLDER")
    if count == 1 and needs:
        text = (
            "one checkpoint: a schedule over checkpoints has nothing to choose from, and is plain distillation from it"
        )
        return Check(
            "checkpoints",
            "models",
            "look",
            text,
            {"checkpoints": 1},
            f"teach.{'checkpoints' if given else 'num_checkpoints'}=4",
        )
    return Check("checkpoints", "models", "passed", f"{count} of your own", {"checkpoints": count}) if given else None


def _same(recipe: Recipe) -> Check | None:
    """A student that is the teacher itself, or larger, saves nothing."""
    if recipe.teacher.model_name_or_path == recipe.student.model_name_or_path:
        text = "teacher and student are the same model: nothing is made smaller. `tutelage shrink TEACHER OUT --layers N` does"
        return Check("sizes of models", "models", "look", text, {}, "student.model_name_or_path=OUT")
    return None


# --- models that are loaded ---


def check_loaded(recipe: Recipe, fitted: Fitted | None, *, even_large: bool) -> list[Check]:
    """Load both models, one at a time: sizes, head, and one forward and backward pass in the types of the recipe."""
    unseen = [role for role in ROLES if not even_large and not _small(getattr(recipe, role))]
    if unseen:
        which = " and the ".join(unseen)
        text = (
            f"the weights of the {which} are large or not here, so head and precision were not tried: --probe 200 does"
        )
        return [Check("head", "models", "skipped", text)]
    checks, sizes = [], {}
    for role in ROLES:
        try:
            sizes[role] = _try(recipe, role, fitted, checks.append)
        except Exception as error:  # whatever a model raises, the run would end with it
            first = next(iter(str(error).splitlines()), type(error).__name__)
            change = _attention(recipe, role, first) or f"{role}.model_name_or_path=..."
            return [*checks, Check("loading", "models", "fail", f"the {role} cannot be used here: {first}", {}, change)]
    if sizes["student"] >= sizes["teacher"] and not _same(recipe):
        text = f"the student has {sizes['student']:,} weights and the teacher {sizes['teacher']:,}: nothing is made smaller"
        checks.append(
            Check("sizes of models", "models", "look", text, sizes, "student.model_name_or_path=A_SMALLER_ONE")
        )
    else:
        text = f"the student has {sizes['student'] / sizes['teacher']:.0%} of the teacher's weights"
        checks.append(Check("sizes of models", "models", "passed", text, sizes))
    return checks


def _attention(recipe: Recipe, role: str, message: str) -> str | None:
    chosen = getattr(recipe, role).attn_implementation
    return (
        f"{role}.attn_implementation=sdpa"
        if chosen and ("attn" in message.lower() or "attention" in message.lower())
        else None
    )


def _small(model: Model) -> bool:
    folder = Path(model.model_name_or_path)
    return folder.is_dir() and sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= SMALL_BYTES


def _try(recipe: Recipe, role: str, fitted: Fitted | None, say: Callable[[Check], None]) -> int:
    """Number of the model's weights; checks of its head and of a gradient go to `say`."""
    import torch

    from tutelage.data.collate import Collator, pad_id_of
    from tutelage.models.heads import FAITHFUL_NATS, answer_logits, answer_states, head_error, head_of
    from tutelage.models.load import load_model
    from tutelage.training.trainer import IGNORED

    model = load_model(getattr(recipe, role))
    size = model.num_parameters()
    if fitted is None:
        return size
    rows = [(place, fitted.stores["train"][place]) for place in range(min(HEAD_ROWS, len(fitted.stores["train"])))]
    batch = {
        name: tensor.to(model.device) for name, tensor in Collator(pad_id_of(fitted.encoder.tokenizer))(rows).items()
    }
    error = head_error(head_of(model, fitted.vocabulary), *answer_states(model, batch))
    looks = any(find_method(name).looks for name in recipe.distill.methods)
    numbers = {"head_error_nats": error, "allowed": FAITHFUL_NATS}
    if error <= FAITHFUL_NATS:
        say(Check(f"head of the {role}", "models", "passed", "reproduces the model's own logits", numbers))
    else:
        text = (
            f"head(hidden) is {error:.2g} nats from the model's own logits, so the cache would hold the top {recipe.cache.top_k}"
            f" log-probabilities{', and a schedule that looks cannot compare checkpoints' if looks else ''}"
        )
        say(
            Check(
                f"head of the {role}", "models", "fail" if looks else "look", text, numbers, "distill.methods=[cd-aw]"
            )
        )
    logits = answer_logits(model, batch)[..., : fitted.vocabulary]
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED
    )
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    if not (torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients)):
        text = f"loss or gradient of the {role} is not finite on the first rows in {getattr(recipe, role).dtype}"
        say(
            Check(
                f"gradient of the {role}",
                "models",
                "fail",
                text,
                {"loss": float(loss.detach())},
                f"{role}.dtype=float32",
            )
        )
    return size
