"""The output head of a causal LM as a function of its input, and forward passes that keep answer positions only.

Shapes: B rows, T tokens, A answer columns (most answer tokens of a row), N answer positions of all rows, H hidden size,
V entries of the tokenizer, V' entries of the model's own matrix (V or more).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.data.collate import IGNORED
from tutelage.method.divergences import forward_kl
from tutelage.models.placement import device_of, held, without_gradients

FAITHFUL_NATS = 1e-3
"""Largest mean KL, in nats, between a model's own distribution and that of `head(hidden)`: bfloat16 rounding stays far
below it, a missing soft cap does not."""
BLOCK_BYTES = 1 << 22
"""Size of the block of a head's weight that a CPU multiplies at a time, in float32: it fits into the CPU's cache."""


@dataclass(frozen=True)
class Head:
    """Maps the hidden state that enters the output head to logits over the tokenizer's real vocabulary.

    logits = softcap(scale x (W h + b)): Gemma has a cap, Granite, Cohere and Falcon-H1 a scale. `head_error` checks
    that this reproduces a model's own logits before anything relies on it.
    """

    weight: Tensor
    """[V, H]; rows beyond the tokenizer's entries are cut off."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H], in the weight's dtype; on a CPU in float32 if either is float32."""
        wide = hidden.device.type == "cpu" and hidden.dtype == torch.float32
        logits = vocabulary_product(hidden if wide else hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def to(self, *args: torch.dtype | torch.device | str) -> Head:
        """The same head in another dtype or on another device."""
        bias = None if self.bias is None else self.bias.to(*args)
        return Head(self.weight.to(*args), bias, self.scale, self.softcap)


def vocabulary_product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden [N, H] times weight^T [H, V], plus bias: logits [N, V] in the dtype of `hidden`.

    Float32 on a CPU is computed block by block over the vocabulary. That is faster than one product
    (benchmarks/RESULTS.md), and widens a bfloat16 weight, which changes no value, without a float32 copy of all of it.
    """
    in_blocks = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    if not in_blocks or (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
    logits = hidden.new_empty(len(hidden), len(weight))
    size = max(1, BLOCK_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), size):
        block = slice(start, start + size)
        torch.mm(hidden, weight[block].float().T, out=logits[:, block])
    return logits if bias is None else logits.add_(bias)


def empty_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Zeros for the wanted gradients of hidden states, weight and bias. Sums over chunks are kept in float32."""
    of_hidden = None
    if wanted[0]:
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32 if dtype is torch.float16 else None)
    of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None
    return of_hidden, of_weight, of_bias


def add_product(of_weight: Tensor, grad: Tensor, states: Tensor) -> None:
    """of_weight += grad^T states, without a second tensor of its size where the types allow it."""
    if of_weight.dtype == grad.dtype:
        of_weight.addmm_(grad.T, states)
    else:
        of_weight += grad.T @ states


def head_of(model: nn.Module, vocabulary: int) -> Head:
    """The output head of `model`, cut to `vocabulary` entries, where the model takes its inputs.

    It shares its weights with the model, unless they are held elsewhere or there are adapters on the head: these are
    merged into a copy.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    if hasattr(layer, "get_base_layer"):
        layer = copy.deepcopy(layer)
        layer.merge()
        layer = layer.get_base_layer()
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale /= config.logits_scaling
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1 multiply
        if isinstance(getattr(config, name, None), float):
            scale *= getattr(config, name)
    bias = held(layer, "bias")
    return Head(
        held(layer, "weight").detach()[:vocabulary].to(device_of(model)),
        None if bias is None else bias.detach()[:vocabulary].to(device_of(model)),
        scale,
        getattr(config, "final_logit_softcapping", None),
    )


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model can compute the logits of the last positions alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def answer_logits(model: nn.Module, batch: dict[str, Tensor], *, keep: bool | None = None) -> Tensor:
    """[B, A, V'] logits at the last A positions of a left-padded batch; A is the width of its targets.

    The model is called as it is, wrapped or not, so DDP and FSDP see an ordinary forward pass. keep:
    `takes_logits_to_keep` of the unwrapped model, if the caller knows it.
    """
    columns = batch["targets"].shape[1]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    if takes_logits_to_keep(model) if keep is None else keep:
        return model(**inputs, logits_to_keep=columns, use_cache=False).logits
    return model(**inputs, use_cache=False).logits[:, -columns:]


@contextmanager
def _recorded_head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Gives a list to which every forward pass adds the hidden states that enter the output head."""
    inputs: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    try:
        yield inputs
    finally:
        hook.remove()


@contextmanager
def in_place_of(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside this context, the model computes `forward` instead of the layer."""
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@torch.no_grad()
def answer_hidden(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[N, H] hidden states that enter the head at the batch's answer positions; the head itself does not run."""
    layer, mask, inputs = model.get_output_embeddings(), batch["targets"] != IGNORED, []
    if "forward" in layer.__dict__:  # a wrapper has replaced it: do not replace it again
        return answer_states(model, batch)[0]

    def forward(hidden: Tensor) -> Tensor:
        inputs.append(hidden)
        return hidden[..., :1]

    with in_place_of(layer, forward):
        answer_logits(model, batch)
    return inputs[-1][:, -mask.shape[1] :].to(mask.device)[mask]


def answer_states(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] that enter the head and the model's own logits [N, V'], at the batch's answer positions.

    Positions are in row-major order of the targets.
    """
    with without_gradients(model), _recorded_head_inputs(model) as inputs:
        logits = answer_logits(model, batch)
    mask = batch["targets"] != IGNORED
    return inputs[-1][:, -mask.shape[1] :].to(mask.device)[mask], logits[mask]


def head_error(head: Head, hidden: Tensor, logits: Tensor) -> float:
    """Mean KL, in nats, between the model's own distribution and that of `head(hidden)`; about 0 for a faithful head.

    hidden, logits: as `answer_states` returns them.
    """
    vocabulary = head.weight.shape[0]
    return float(forward_kl(head(hidden), logits[:, :vocabulary]).mean())
