"""Models and tokenizers: loading whole models only, what their configs say, and whether two vocabularies are the
same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.data.collate import vocabulary_of
from tutelage.errors import Kind, ModelError, Problem
from tutelage.errors.wording import first_line
from tutelage.models.adapters import has_adapters, load_adapter, merged, with_lora
from tutelage.models.generation import check_ends, drop_ends
from tutelage.models.padding import KNOWN_TO_READ, check_padding
from tutelage.models.placement import device, is_held_apart, loading_options, read_as_trained
from tutelage.models.weights import WRAPPERS, Found, check_files, check_finite, check_stored_types
from tutelage.recipe.schema import Model
from tutelage.utils import ranks
from tutelage.utils.console import Screen
from tutelage.utils.integrity import MODEL_FILES, check_folder

_unpadded: set[str] = set()
"""Names of models that passed `check_padding` in this process."""

# --- loading ---


def load_tokenizer(model: Model) -> Any:
    """Tokenizer of a model, from transformers' own files if there are any. A model with tekken.json alone is read by
    mistral-common, where that is installed; such a tokenizer cannot be saved in transformers' format, so it comes last.

    Raises ModelError if there is none, if it cannot be used, or if it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    name = model.model_name_or_path
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    _check_local(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, mistral_format=False, **options)
        if tokenizer.eos_token_id is None:  # tekken.json alone: mistral-common knows what its special tokens are
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
        tokenizer.decode(tokenizer(["a"])["input_ids"][0])  # some of its settings are looked at here alone
    except Exception as error:  # transformers and tokenizers raise whatever a wrong file leads to
        raise ModelError(f"cannot load a tokenizer from {name!r}: {first_line(error)}") from error
    check_ending(tokenizer, f"the tokenizer of {name!r}")
    return tokenizer


def check_ending(tokenizer: Any, name: str) -> None:
    """Raises ModelError for a tokenizer without an end-of-sequence token. name: in messages."""
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name} has no end-of-sequence token, so answers would never end")


def load_model(
    model: Model, path: Path | str | None = None, vocabulary: int | None = None, *, where: torch.device | None = None
) -> nn.Module:
    """A causal language model in eval mode, on the accelerator if there is one, or held as `teacher.quantization` and
    `teacher.device_map` say.

    path: a folder of fine-tuned weights to load instead of `model.model_name_or_path`: full weights, or PEFT adapters,
    which are merged into their base unless that is quantized or spread out. vocabulary: of a student, whose adapters
    were trained on a base that was cut to it, see `cut_vocabulary`. where: instead of on the accelerator. Only
    safetensors are read. Raises ModelError if the folder holds no model, or not all of it: weights that are missing,
    unknown to the model, of another shape, NaN or infinite.
    """
    folder = Path(path) if path is not None else None
    if folder is not None and has_adapters(folder):
        base = load_model(model)
        base = base if vocabulary is None else cut_vocabulary(base, vocabulary)
        return merged(load_adapter(base, folder)).eval()
    name = str(path or model.model_name_or_path)
    loaded = _load_full(model, name, **loading_options(model, _dtype(model)))
    check_finite(loaded.named_parameters(), name if model.dtype == "auto" else f"{name} in {model.dtype}")
    loaded = read_as_trained(loaded).eval() if is_held_apart(model) else loaded.to(where or device()).eval()
    if model.model_name_or_path not in _unpadded:
        check_padding(loaded, name)
        _unpadded.add(model.model_name_or_path)
    return loaded


def load_trainable(model: Model, folder: Path | None, seed: int, vocabulary: int | None = None) -> nn.Module:
    """The model to train: untrained, with new adapters if the recipe asks for them, or as saved in `folder`.

    A model that is trained is on one device, whatever `device_map` says. seed: of new adapters' initial weights.
    vocabulary: for students, see `cut_vocabulary`. Raises ModelError for float16 weights, whose gradients and updates
    underflow, unless only adapters are trained.
    """
    full = folder is not None and not has_adapters(folder)
    model = model.model_copy(update={"device_map": None})
    where = torch.device("cpu") if ranks.divides_models() else None  # each process takes its part from there
    trained = load_model(model, folder if full else None, where=where)
    if vocabulary is not None:
        cut_vocabulary(trained, vocabulary)
    if folder is not None and not full:
        return load_adapter(trained, folder, trainable=True)
    if model.lora and not full:
        torch.manual_seed(seed)
        return with_lora(trained, model.lora)
    if trained.dtype == torch.float16:
        raise ModelError(Problem(Kind.FLOAT16_TRAINED, values={"name": model.model_name_or_path}))
    return trained


def cut_vocabulary(model: nn.Module, vocabulary: int) -> nn.Module:
    """The model, in place, without rows of embedding and output head beyond the tokenizer's `vocabulary` ids.

    Nothing trains the logits of such padding down, and programs that do not know of it would answer with them; without
    it the softmax is over the tokenizer's ids everywhere. Raises ModelError if the other logits would change, or if
    there are fewer rows.
    """
    config, rows = model.config.get_text_config(), len(model.get_output_embeddings().weight)
    check_embeddings(model.config, vocabulary)
    if rows == vocabulary:
        return model
    if config.pad_token_id is not None and config.pad_token_id >= vocabulary:
        config.pad_token_id = None  # an embedding without this row cannot be made
    drop_ends(model, vocabulary)
    ids = torch.arange(min(vocabulary, 16), device=model.device)[None]
    with torch.no_grad(), torch.random.fork_rng():
        before = model(ids).logits[..., :vocabulary]
        model.resize_token_embeddings(vocabulary)
        after = model(ids).logits
    # not equal: a matrix product of another width can round 16-bit sums in another order
    if after.shape != before.shape or (after - before).abs().max() > 0.01 * before.abs().max():
        raise ModelError(
            f"the {rows:,} rows of {type(model).__name__}'s embeddings cannot be cut to the {vocabulary:,} ids of its"
            " tokenizer without changing its answers: cut them yourself (resize_token_embeddings), or take another"
            " student"
        )
    return model


def check_weights(model: Model, path: Path | None = None) -> None:
    """Compare names and shapes of all weights in the files of a model with what its config describes, and read those
    on this disk for NaN and infinite values. Nothing is kept in memory.

    path: as for `load_model`. Raises ModelError as `load_model`.
    """
    adapters = path is not None and has_adapters(path)
    loaded = _load_full(model, str(path if path and not adapters else model.model_name_or_path), device_map="meta")
    if adapters:
        load_adapter(loaded, path)
    check_files(path or Path(model.model_name_or_path))


def check_architecture(model: Model) -> None:
    """Raises ModelError for what cannot be a teacher or student: adapters without their model, an encoder with a
    decoder, images or sound beside text, or layers that read padding. A model whose config cannot be read is not
    judged: loading it says why."""
    name = model.model_name_or_path
    if has_adapters(Path(name)) and not (Path(name) / "config.json").is_file():
        raise ModelError(Problem(Kind.ADAPTERS_WITHOUT_BASE, values={"name": name}))
    whole = _whole_config(model)
    if whole is None:
        return
    values = {"name": model.model_name_or_path, "type": whole.get_text_config().model_type, "nats": None}
    if getattr(whole, "is_encoder_decoder", False):
        raise ModelError(Problem(Kind.ENCODER_DECODER, values=values))
    if _is_multimodal(whole):
        raise ModelError(Problem(Kind.MULTIMODAL, values={"name": model.model_name_or_path, **_parts(whole)}))
    if values["type"] in KNOWN_TO_READ:
        raise ModelError(Problem(Kind.PADDING_READ, values=values))


_SENSES = ("vision_config", "audio_config", "audio_encoder_config", "audio_encoder")
"""Parts of a config that stand for images and sound."""


def _is_multimodal(config: Any) -> bool:
    """Whether transformers reads images or sound with such a model, and has no class that reads its text part alone
    from the same files (as it has for Qwen3.5 and Llama 4)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_MULTIMODAL_LM_MAPPING and not any(getattr(config, name, None) for name in _SENSES):
        return False
    loaded = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    text = kind.sub_configs.get("text_config")
    return loaded is None or text is None or getattr(loaded, "config_class", None) is not text


def _parts(config: Any) -> dict[str, Any]:
    """What a multimodal model consists of; `text` is the type of its text part, None if that is no model of its own."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config()
    own = text is not config and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    parts = [name for name in _SENSES if getattr(config, name, None)]
    return {"type": config.model_type, "parts": parts, "text": text.model_type if own else None}


def check_models(
    teacher: Model,
    student: Model,
    vocabulary: int,
    checkpoints: Sequence[Path],
    anchor: Path | None = None,
    of_teacher: int | None = None,
) -> None:
    """Everything of both models that `check_weights` and `check_embeddings` find, before anything is trained.

    checkpoints: of the teacher, if it is not trained here. anchor: a folder, if it is not trained here. of_teacher:
    entries of the teacher's tokenizer, if it is another one.
    """
    for role, model, entries in (("teacher", teacher, of_teacher or vocabulary), ("student", student, vocabulary)):
        check_architecture(model)
        check_embeddings(config_of(model), entries, role)
        check_weights(model)
    if anchor:
        check_weights(student, anchor)
    for folder in checkpoints:
        check_weights(teacher, folder)


def skeleton(model: Model) -> nn.Module:
    """A model without its weights, on torch's meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = model.trust_remote_code
    config = AutoConfig.from_pretrained(model.model_name_or_path, revision=model.revision, trust_remote_code=trust)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


def check_lora_targets(model: Model) -> None:
    """Refuse adapters for layers that a model does not have, or for a tied output head, before anything is trained.
    Loads no weights.

    Raises ModelError. A model whose config cannot be read is not judged: loading it says why.
    """
    if model.lora is None or config_of(model) is None:
        return
    check_architecture(model)
    targets, empty = model.lora.target_modules, skeleton(model)
    with torch.device("meta"):
        layers = [name for name, layer in empty.named_modules() if getattr(layer, "weight", None) is not None]
        listed = [] if isinstance(targets, str) else targets
        unknown = [target for target in listed if not any(f".{name}".endswith(f".{target}") for name in layers)]
        reason = ""
        try:
            with_lora(empty, model.lora)
        except (ModelError, RuntimeError) as error:
            if isinstance(error, ModelError) and error.kind != Kind.MODEL:
                raise
            reason = first_line(error)
    if unknown or reason:
        inner = sorted({name.rpartition(".")[2] for name in layers if "layers." in name and "norm" not in name})
        values = {"name": model.model_name_or_path, "unknown": unknown, "reason": reason, "layers": inner or layers}
        raise ModelError(Problem(Kind.LORA_TARGETS_UNKNOWN, values=values))


def _dtype(model: Model) -> torch.dtype | None:
    """Type of the weights, by the recipe or the model's config; None where neither says."""
    return getattr(torch, model.dtype) if model.dtype != "auto" else getattr(config_of(model), "dtype", None)


def _load_full(model: Model, name: str, **options: Any) -> nn.Module:
    """A model with all of its weights. options: for `from_pretrained`."""
    _check_local(name)
    loaded, found = _from_files(model, name, **options)
    if prefix := found.wrapper(loaded):
        pattern = f"^{re.escape(prefix)}"
        loaded, found = _from_files(model, name, key_mapping={pattern: ""}, **options)
        # transformers would put the prefix back when the model is saved
        kept = [rule for rule in loaded._weight_conversions if rule.source_patterns != [pattern]]
        loaded._weight_conversions = kept
        if found.complete:
            _say_stripped(name, prefix)
    found.refuse(name)
    if getattr(loaded.config, "quantization_config", None) is None:
        check_stored_types(Path(name), loaded)
    check_ends(loaded, name)
    if loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight:
        loaded.config.get_text_config().tie_word_embeddings = False  # a file can hold both, whatever the config says
    return loaded


def _from_files(model: Model, name: str, **options: Any) -> tuple[Any, Found]:
    """What transformers makes of a model's files, and what it found in them."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of wrong weights; they are refused in our words
    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            name,
            revision=model.revision if name == model.model_name_or_path else None,
            dtype=model.dtype if model.dtype == "auto" else getattr(torch, model.dtype),
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported with the other wrong weights
            **options,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises whatever a wrong file leads to
        if any(Path(name).glob("*.bin")) and not any(Path(name).glob("*.safetensors")):
            values = {"name": name, "file": "model.safetensors"}
            raise ModelError(Problem(Kind.WEIGHTS_NOT_SAFETENSORS, values=values)) from error
        raise ModelError(f"cannot load a causal language model from {name!r}: {first_line(error)}") from error
    finally:
        logging.set_verbosity(level)
    return loaded, Found(info)


@lru_cache
def _say_stripped(name: str, prefix: str) -> None:
    """Once for each model: its weights were found under other names."""
    reason = next(WRAPPERS[wrapper].partition(":")[0] for wrapper in WRAPPERS if wrapper in prefix)
    Screen().warn(f"{name}: the names of all weights begin with `{prefix}`, which was left out ({reason})")


def _check_local(name: str) -> None:
    """Raises ModelError for a name that looks like a folder and is none, before the hub is asked for it, and
    DamagedArtifactError for a model of a run that is not as it was saved."""
    check_folder(Path(name), *MODEL_FILES)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).is_dir():
        raise ModelError(f"there is no folder {name!r}: give a folder in Hugging Face layout or a hub id (owner/name)")


# --- configs and vocabularies ---


def config_of(model: Model) -> Any:
    """The text part of a model's transformers config; None if it cannot be read."""
    whole = _whole_config(model)
    return None if whole is None else whole.get_text_config()


def _whole_config(model: Model) -> Any:
    """A model's transformers config; None if it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception:  # whatever is wrong with it, loading the model says so
        return None


def hidden_size(model: Model) -> int | None:
    """Width of the output head's input, from the model's config; None if it is not known."""
    return getattr(config_of(model), "hidden_size", None)


def longest_context(model: Model) -> int | None:
    """Most tokens that the model has positions for, from its config; None if there is no limit or it is not known."""
    return getattr(config_of(model), "max_position_embeddings", None)


def same_vocabularies(teacher: Any, student: Any) -> bool:
    """Whether both tokenizers have the same entries and end a sequence with the same one, so that distributions over
    tokens can be compared."""
    return teacher.get_vocab() == student.get_vocab() and teacher.eos_token_id == student.eos_token_id


def check_vocabularies(teacher: Any, student: Any) -> int:
    """Size of the vocabulary that both tokenizers share, compared entry by entry: equal sizes prove nothing.

    Models may pad their embeddings beyond it (Qwen2.5: 152,064 and 151,936 rows for the same tokenizer); the padding is
    cut off on both sides. Raises ModelError with the first difference.
    """
    teacher_ids, student_ids = teacher.get_vocab(), student.get_vocab()
    if teacher_ids != student_ids:
        token = min(teacher_ids.items() ^ student_ids.items(), key=lambda entry: (entry[1], entry[0]))[0]
        ids, sizes = (teacher_ids.get(token), student_ids.get(token)), (len(teacher_ids), len(student_ids))
        raise ModelError(Problem(Kind.VOCABULARIES_DIFFER, values={"token": token, "ids": ids, "sizes": sizes}))
    if teacher.eos_token_id != student.eos_token_id:
        values = {"teacher": teacher.eos_token, "student": student.eos_token}
        raise ModelError(Problem(Kind.END_OF_SEQUENCE_DIFFERS, values=values))
    return vocabulary_of(student)


def check_embeddings(config: Any, vocabulary: int, role: str = "student") -> None:
    """Raises ModelError for a model with fewer embeddings than its tokenizer has ids. config: as from `config_of`."""
    rows = getattr(config and config.get_text_config(), "vocab_size", None)
    if rows is not None and rows < vocabulary:
        values = {"role": role, "rows": rows, "vocabulary": vocabulary}
        raise ModelError(Problem(Kind.EMBEDDINGS_TOO_SMALL, values=values))
