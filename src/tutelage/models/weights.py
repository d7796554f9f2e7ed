"""Whether the weights of a model are all there: their names, shapes and values. Nothing is made up for what is missing.

transformers fills missing weights with random numbers and PEFT ignores adapters that match nothing, both with a warning
at most; here both are errors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import Kind, ModelError, Problem

SHOWN = 3
"""Names shown of each kind of wrong weights."""
WRAPPERS = {
    "_orig_mod.": "torch.compile adds this: save the model itself, model._orig_mod.save_pretrained(...)",
    "module.": "DataParallel and DDP add this: save the model itself, model.module.save_pretrained(...)",
    "base_model.model.": "PEFT adds this: save the merged model, model.merge_and_unload().save_pretrained(...)",
}
"""Prefixes of weights that were saved from a wrapper of the model, and what to do about them."""
_PREFIX = re.compile(f"(?:{'|'.join(map(re.escape, WRAPPERS))})+")
_HARMLESS = re.compile(
    r"inv_freq$|masked_bias$|position_ids$"  # buffers that earlier versions saved and later ones compute
    r"|^(?:model\.)?(?:vision|visual|audio|multi_modal|mm_|image|mtp|v_head)"  # parts beside the language model
)
"""Weights in a file that a causal language model does without."""


class Found:
    """What of a model was in its files."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        """info: as transformers returns it with `output_loading_info`."""
        self.missing = sorted(info["missing_keys"])
        self.unexpected = sorted(key for key in info["unexpected_keys"] if not _HARMLESS.search(key))
        self.misshapen = sorted((key, tuple(file), tuple(model)) for key, file, model in info["mismatched_keys"])
        self.errors = list(info["error_msgs"])

    @property
    def complete(self) -> bool:
        """Whether every weight of the model was there, and nothing else."""
        return not (self.missing or self.unexpected or self.misshapen or self.errors)

    def wrapper(self, model: nn.Module) -> str | None:
        """The prefix that a wrapper put before the names of all weights in the files; None if that is not sure."""
        prefixes = {match[0] if (match := _PREFIX.match(key)) else "" for key in self.unexpected}
        nothing_loaded = {name for name, _ in model.named_parameters()} <= set(self.missing)
        return prefixes.pop() or None if len(prefixes) == 1 and nothing_loaded and not self.misshapen else None

    def refuse(self, name: str) -> None:
        """Raises ModelError unless the model is complete. name: what was loaded."""
        if not self.complete:
            fields = ("missing", "unexpected", "misshapen", "errors")
            lists = {field: getattr(self, field)[:SHOWN] for field in fields}
            counts = {field: len(getattr(self, field)) for field in fields}
            values = {"name": name, **lists, "counts": counts, "cause": self._cause()}
            raise ModelError(Problem(Kind.WEIGHTS_INCOMPLETE, values=values))

    def _cause(self) -> str:
        prefixes = [
            prefix
            for key in self.unexpected
            if (match := _PREFIX.match(key))
            for prefix in WRAPPERS
            if prefix in match[0]
        ]
        if prefixes:
            return f"Names begin with `{prefixes[0]}`; {WRAPPERS[prefixes[0]]}"
        if any(".lora_" in key for key in self.unexpected):
            return "There are adapters among them: merge them (model.merge_and_unload()), or save them alone"
        if self.missing and not (self.unexpected or self.misshapen) and all("head" in key for key in self.missing):
            return "If the output head is the input embedding, write tie_word_embeddings=true in config.json"
        return "config.json describes another model, or files of the weights are missing"


def check_finite(weights: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Raises ModelError for weights that are NaN or infinite. name: what they belong to."""
    wrong = [key for key, weight in weights if _has_values(weight) and not _finite(weight)]
    if wrong:
        raise ModelError(
            Problem(Kind.WEIGHTS_NOT_FINITE, values={"name": name, "first": wrong[:SHOWN], "count": len(wrong)})
        )


def _has_values(weight: Tensor) -> bool:
    wide = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # 8-bit types have no minimum in torch
    return weight.dtype in wide and weight.numel() > 0 and not weight.is_meta


def _finite(weight: Tensor) -> bool:
    """By the extremes, which are NaN if any value is: unlike `isfinite().all()` this needs no memory."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all())


def check_files(folder: Path) -> None:
    """Read every safetensors file of a folder, one weight at a time. Raises ModelError for one that is damaged, or for
    weights that are NaN or infinite."""
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as file:
            check_finite(((key, file.get_tensor(key)) for key in file.keys()), str(path))  # noqa: SIM118


def check_stored_types(folder: Path, model: nn.Module) -> None:
    """Raises ModelError for weights that are stored as whole numbers: torch would take these numbers for the weights,
    and what they stand for (a scale, a table) is known to quantized models alone. Values are not read.

    model: as loaded from the folder, or with adapters from it. Models also store buffers that are whole numbers.
    """
    floats = [f".{name.replace('.default.', '.')}" for name, w in model.named_parameters() if w.is_floating_point()]
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        whole = [key for key, dtype in types.items() if not dtype.startswith(("F", "BF")) and _is_weight(key, floats)]
        if whole:
            values = {"name": str(path), "first": whole[:SHOWN], "count": len(whole), "dtype": types[whole[0]]}
            raise ModelError(Problem(Kind.WEIGHTS_NOT_FLOATS, values=values))


def _is_weight(key: str, floats: Iterable[str]) -> bool:
    """Whether a name in a file is that of a weight. floats: names of the model's weights, with a dot in front; files
    may leave out their first parts, or have more."""
    named = f".{key}"
    return named.endswith(".weight") or ".lora_" in named or any(n.endswith(named) or named.endswith(n) for n in floats)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises ModelError for one that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file ({error}): copy or make it again") from error


def fingerprint_of(model: nn.Module) -> str:
    """Short hash of a model's class and weights, by their names."""
    total = hashlib.sha256(type(model).__name__.encode())
    for name, weight in model.state_dict().items():
        total.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        total.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]
