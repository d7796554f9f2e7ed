"""Output head and loss computed together: a chunk of answer positions becomes logits, loss and gradients, and its
logits are discarded.

The reference is `method.mixed_loss` on the model's logits; values and gradients agree with it. Here the gradients of
the head's input and weight are computed together with the loss, so the backward pass holds no [positions, vocabulary]
tensor, nothing is recomputed, and padded answer columns never meet the vocabulary.

The loss replaces the logits inside the model's own forward pass, so wrappers (DDP, FSDP, autocast) see an ordinary
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.bytes.fused import byte_head_loss
from tutelage.bytes.loss import ByteDivergence, ByteTargets, byte_mixed_loss
from tutelage.method.divergences import Divergence, divergence_function, log_probs
from tutelage.method.gradients import GRADIENTS
from tutelage.method.mixed_loss import (
    MixedLoss,
    Targets,
    divergence_of,
    example_means,
    example_of_position,
    mixed_loss,
)
from tutelage.method.taid import InterpolatedTargets
from tutelage.models.forward import evaluating
from tutelage.models.heads import (
    add_product,
    answer_logits,
    empty_gradients,
    head_of,
    in_place_of,
    vocabulary_product,
)

CHUNK_BYTES = 1 << 24
"""Size of a chunk's float32 logits on a CPU: two of them, the student's and the teacher's, fit into a last-level
cache."""
GPU_CHUNK_BYTES = 1 << 27
"""The same on other devices: 256 positions at 128,000 entries, enough for the matrix product to be bound by arithmetic
and not by reading the weight."""
SLICE_BYTES = 1 << 20
"""Size of the part of a chunk that a CPU turns into gradients at a time."""
AGREEMENT = 1e-3
"""Largest relative difference to the plain loss at which the fused loss is used. A head with a soft cap or a scale
differs by far more."""


@dataclass
class LossInputs:
    """What the loss of a batch is computed from, apart from the student."""

    gold: Tensor
    """[positions] token ids."""
    mask: Tensor
    """[examples, answer columns] bool."""
    weight: Tensor
    """[examples] fraction of the loss that follows the teacher."""
    targets: Targets | None
    vocabulary: int
    divergence: str | Divergence = "forward_kl"
    temperature: float = 1.0
    denominator: float | Tensor | None = None
    teacher_share: float = 1.0
    """TAID's t; below 1 the target lies between student and teacher, see `InterpolatedTargets`."""
    positions: Tensor = field(init=False)
    """[positions] index of each answer position in the flattened mask. Found once, before the forward pass: a GPU has
    to be waited for to count them, and would be idle if that came between its forward and backward pass."""
    result: MixedLoss | None = field(default=None, init=False)
    """The fused loss, set inside the model's forward pass."""

    def __post_init__(self) -> None:
        """Find the positions."""
        self.positions = self.mask.flatten().nonzero()[:, 0]

    def at_answers(self, values: Tensor) -> Tensor:
        """[positions, D] of values [examples, columns, D], whose last columns are those of the mask."""
        return values[:, -self.mask.shape[1] :].flatten(0, 1)[self.positions]

    @property
    def over_bytes(self) -> ByteDivergence | None:
        """The divergence, where the teacher's distributions are over bytes."""
        if not isinstance(self.targets, ByteTargets):
            return None
        return ByteDivergence(self.targets, self.mask, self.divergence, self.temperature, self.teacher_share)

    def plain(self, logits: Tensor) -> MixedLoss:
        """The loss from all logits at the answer positions, [positions, vocabulary]: the reference."""
        if self.over_bytes is not None:
            return byte_mixed_loss(logits, self.gold, self.weight, self.over_bytes, self.denominator)
        targets = self.targets
        if targets is not None and self.teacher_share < 1:
            targets = InterpolatedTargets(targets, logits, self.teacher_share)
        return mixed_loss(
            logits,
            self.gold,
            self.mask,
            self.weight,
            targets,
            divergence=self.divergence,
            temperature=self.temperature,
            denominator=self.denominator,
        )


class _HeadLoss(torch.autograd.Function):
    """(hidden [N, H], weight [V, H], bias [V] or None) -> the batch's loss; its forward pass computes the gradients.

    tied: None, or a list that receives the gradient of the weight instead of autograd, see `_TiedEmbedding`.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, inputs: LossInputs, tied: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        # Under autocast the product runs in the lower precision, as the head's own would; softmax and sums stay in
        # float32.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or tied is not None, ctx.needs_input_grad[2]
        with torch.autocast(device, enabled=False):
            if inputs.over_bytes is None:
                total, ce, kd, grads = _forward(hidden, weight, bias, inputs, dtype, wanted)
            else:
                total, ce, kd, grads = byte_head_loss(hidden, weight, bias, inputs, inputs.over_bytes, dtype, wanted)
        ctx.tied = tied
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(ce, kd)
        return total, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # A gradient of 1 is the usual case, and multiplying by it costs a pass over the weight. Reading it on a GPU
        # would cost a synchronisation.
        is_one = grad.device.type == "cpu" and grad.item() == 1.0
        of_hidden, of_weight, of_bias = (g if g is None or is_one else g * grad for g in ctx.saved_tensors)
        if ctx.tied is not None:
            ctx.tied.append(of_weight)
            of_weight = None
        return of_hidden, of_weight, of_bias, None, None


class _TiedEmbedding(torch.autograd.Function):
    """The token embedding of a model whose output head has the same weight: adds its gradient to the head's.

    Otherwise head and embedding would each create a [V, H] gradient, and autograd would add the two; with a large
    vocabulary that is the memory peak of a small model. The head's backward pass always comes first, because the whole
    model lies between the two.
    """

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_id: int | None, tied: list[Tensor]) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding_id, ctx.tied = padding_id, tied
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,), total = ctx.saved_tensors, ctx.tied.pop()
        if ctx.padding_id is not None:
            grad = grad.masked_fill((ids == ctx.padding_id)[..., None], 0.0)
        return None, _add_rows(total, ids.flatten(), grad.flatten(0, -2).to(total.dtype)), None, None


def _add_rows(total: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """total[ids] += rows, with repeated ids, in a deterministic order: `index_add_` has one on a CPU but not on a GPU,
    `index_put_` on a GPU but not on a CPU."""
    if total.device.type == "cpu":
        return total.index_add_(0, ids, rows)
    return total.index_put_((ids,), rows, accumulate=True)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: LossInputs,
    dtype: torch.dtype,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """Loss, cross-entropy and divergence by example, and the wanted gradients of hidden states, weight and bias."""
    vocabulary = inputs.vocabulary
    head = weight[:vocabulary].to(dtype)
    offset = None if bias is None else bias[:vocabulary].to(dtype)
    example = example_of_position(inputs.mask, len(hidden))
    kd_weight = inputs.weight.float()[example]
    counts = inputs.mask.sum(1)
    scale = 1.0 / counts[example] / (len(counts) if inputs.denominator is None else inputs.denominator)
    # float16 has no small numbers, and the gradient scaler multiplies the loss only later: gradients are computed in
    # units of the largest scale, and multiplied by it in float32 at the end.
    unit = scale.max() if dtype is torch.float16 and len(scale) else 1.0
    grads = empty_gradients(hidden, weight, bias, dtype, wanted)
    of_hidden, of_weight, of_bias = grads
    ce, kd = hidden.new_zeros((2, len(hidden)), dtype=torch.float32)
    size = max(1, (CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES) // (4 * vocabulary))
    for start in range(0, len(hidden), size):
        chunk = slice(start, min(start + size, len(hidden)))
        states = hidden[chunk].to(dtype)
        logits = vocabulary_product(states, head, offset).float()
        ce[chunk], kd[chunk] = _into_gradients(logits, inputs, start, kd_weight[chunk], scale[chunk] / unit)
        grad = logits.to(dtype)
        if of_hidden is not None:
            of_hidden[chunk] = grad @ head
        if of_weight is not None:
            add_product(of_weight[:vocabulary], grad, states)
        if of_bias is not None:
            of_bias[:vocabulary] += grad.sum(0)
    total = (scale * (kd_weight * kd + (1 - kd_weight) * ce)).sum()
    if dtype is torch.float16:
        for grad in grads:
            if grad is not None:
                grad *= unit
    grads = [of_hidden, *(None if grad is None else grad.to(weight.dtype) for grad in (of_weight, of_bias))]
    return total, example_means(ce, inputs.mask), example_means(kd, inputs.mask), grads


def _into_gradients(logits: Tensor, inputs: LossInputs, first: int, w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence [positions] of a chunk; overwrites its logits [positions, vocabulary] by the
    gradient of scale x (w x divergence + (1 - w) x CE). first: index of the chunk's first position in the batch.

    A CPU handles a few positions at a time, so that everything between logits and gradient stays in its cache.
    """
    ce, kd = logits.new_zeros((2, len(logits)))
    teacher = _teacher_logits(logits, inputs, first)
    size = max(1, SLICE_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), size):
        part = slice(start, min(start + size, len(logits)))
        in_batch = slice(first + part.start, first + part.stop)
        s_log, gold = log_probs(logits[part], 1.0), inputs.gold[in_batch, None]
        s = s_log.exp()
        ce[part] = -s_log.gather(1, gold)[:, 0]
        if inputs.targets is not None:
            kd[part], kd_grad = _divergence(s_log, s, None if teacher is None else teacher[part], inputs, in_batch)
        grad = s.scatter_add_(1, gold, s.new_full(gold.shape, -1.0))
        torch.mul(grad, (scale * (1 - w))[part, None], out=logits[part])
        if inputs.targets is not None:
            logits[part].addcmul_(kd_grad, (scale * w)[part, None])
    return ce, kd


def _teacher_logits(logits: Tensor, inputs: LossInputs, first: int) -> Tensor | None:
    """[positions, vocabulary] target logits of a chunk; None without a teacher, or where only its top k are known."""
    targets, last = inputs.targets, first + len(logits)
    interpolated = inputs.teacher_share < 1  # needs full distributions
    if targets is None or (not interpolated and targets.top_k(first, last) is not None):
        return None
    teacher = targets.logits(first, last)
    return torch.lerp(logits, teacher.float(), inputs.teacher_share) if interpolated else teacher


def _divergence(
    s_log: Tensor, s: Tensor, teacher: Tensor | None, inputs: LossInputs, in_batch: slice
) -> tuple[Tensor, Tensor]:
    """Divergence times temperature squared, and its gradient with respect to the logits.

    s_log, s: the student's log-probabilities and probabilities. The former also serve as its logits, since every
    divergence is a function of their softmax. teacher: its logits, None where only its top k are known. in_batch: the
    positions in the batch.
    """
    temperature = inputs.temperature
    if teacher is not None and inputs.divergence in GRADIENTS:
        t_log, closed_form = log_probs(teacher, temperature), GRADIENTS[inputs.divergence]
        if temperature == 1.0:
            return closed_form(s_log, s, t_log)
        s_log = log_probs(s_log, temperature)
        value, grad = closed_form(s_log, s_log.exp(), t_log)
        return value * temperature**2, grad.mul_(temperature)
    with torch.enable_grad():  # no closed form: automatic differentiation of these positions alone
        leaf = s_log.detach().requires_grad_()
        if teacher is None:
            value = divergence_of(leaf, inputs.targets, in_batch.start, in_batch.stop, inputs.divergence, temperature)
        else:
            value = divergence_function(inputs.divergence)(leaf, teacher, temperature) * temperature**2
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


class HeadLoss:
    """Computes the loss of batches: fused into the model's output head where that gives the same loss, otherwise from
    its logits."""

    def __init__(
        self, model: nn.Module, *, keep: bool, fused: bool = True, in_all: Callable[[bool], bool] = bool
    ) -> None:
        """model: unwrapped. keep: whether it takes `logits_to_keep`. fused: False always uses the logits. in_all:
        whether something holds in all processes that train the model."""
        self._in_all = in_all
        self.layer, self.embedding, self.keep = model.get_output_embeddings(), model.get_input_embeddings(), keep
        self.model, self.fused = model, fused and _is_plain_linear(self.layer) and _is_last(model)
        self._checked = False

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], inputs: LossInputs) -> MixedLoss:
        """Loss of a batch. model: as wrapped for training, so that wrappers see the forward pass."""
        if self.fused and not self._checked:
            self._checked, self.fused = True, self._in_all(self._agrees(model, batch, inputs))
        if self.fused:
            return self._inside(model, batch, inputs)
        return self._plain(model, batch, inputs)

    def _plain(self, model: nn.Module, batch: dict[str, Tensor], inputs: LossInputs) -> MixedLoss:
        logits = inputs.at_answers(answer_logits(model, batch, keep=self.keep))[:, : inputs.vocabulary]
        with torch.autocast(logits.device.type, enabled=False):
            return inputs.plain(logits)

    def _inside(self, model: nn.Module, batch: dict[str, Tensor], inputs: LossInputs) -> MixedLoss:
        """The head returns the loss [1, 1, 1] where the model expects logits, and sets `inputs.result`."""
        weight, tied = self.layer.weight, [] if self._shares_its_weight() else None

        def head(hidden: Tensor) -> Tensor:
            states = inputs.at_answers(hidden)
            inputs.result = MixedLoss(
                *_HeadLoss.apply(states, weight if tied is None else weight.detach(), self.layer.bias, inputs, tied)
            )
            return inputs.result.total.view(1, 1, 1)

        def embed(ids: Tensor) -> Tensor:
            return _TiedEmbedding.apply(ids, weight, self.embedding.padding_idx, tied)

        with in_place_of(self.layer, head), nullcontext() if tied is None else in_place_of(self.embedding, embed):
            total = answer_logits(model, batch, keep=self.keep)
        return inputs.result._replace(total=total.sum())

    def _shares_its_weight(self) -> bool:
        """Whether a backward pass would create two gradients of the same [V, H] weight, the head's and the
        embedding's."""
        table = self.embedding
        if type(table) is not nn.Embedding or not _is_bare(table):
            return False
        special = table.max_norm or table.scale_grad_by_freq or table.sparse
        trained = table.weight.requires_grad and torch.is_grad_enabled()
        return table.weight is self.layer.weight and trained and not special

    @torch.no_grad()
    def _agrees(self, model: nn.Module, batch: dict[str, Tensor], inputs: LossInputs) -> bool:
        """Whether both forms give the same loss on this batch; a model may change its logits after the head."""
        try:
            with evaluating(self.model):
                fused = self._inside(model, batch, inputs).cross_entropy
                plain = self._plain(model, batch, inputs).cross_entropy
        except torch.OutOfMemoryError:  # the plain form needs more
            raise
        except (RuntimeError, TypeError, IndexError, AttributeError):  # the model needs the logits its head returns
            return False
        finally:
            # torch 2.6 would go on with the casts of the weights made here, which have no gradient, for the first batch
            torch.clear_autocast_cache()
        return bool(torch.allclose(fused, plain, rtol=AGREEMENT, atol=AGREEMENT))


def _is_plain_linear(layer: nn.Module | None) -> bool:
    """A linear layer that is not wrapped, hooked or adapted."""
    return type(layer) is nn.Linear and _is_bare(layer)


def _is_bare(layer: nn.Module) -> bool:
    """Whether a layer has no hooks and no replaced forward pass."""
    return "forward" not in layer.__dict__ and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_last(model: nn.Module) -> bool:
    """Whether the logits are the head's output unchanged: no scale, no soft cap."""
    head = head_of(model, 1)
    return head.scale == 1.0 and head.softcap is None
