"""Output head and loss in one: a chunk of answer positions becomes logits, loss and gradients, and its logits are
forgotten.

The plain form is `objective.mixed_loss` on the model's logits; values and gradients agree with it. Here the gradients
of the head's input and weight are worked out together with the loss, so the backward pass holds no [positions,
vocabulary] tensor, nothing is recomputed, and padded answer columns never meet the vocabulary.

The loss takes the place of the logits inside the model's own forward pass: wrappers (DDP, FSDP, autocast) see an
ordinary one.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.method.divergences import Divergence, divergence_function, log_probs
from tutelage.method.mixed_loss import (
    Interpolated,
    Losses,
    Targets,
    divergence_of,
    mixed_loss,
    sample_means,
    weight_of_positions,
)
from tutelage.models.heads import answer_logits, head_of, in_place_of, vocabulary_product
from tutelage.training.gradients import GRADIENTS

CHUNK_BYTES = 1 << 24
"""Size of a chunk's float32 logits on a CPU: two of them, the student's and the teacher's, fit into a last-level
cache."""
GPU_CHUNK_BYTES = 1 << 27
"""The same elsewhere: at 128,000 entries 256 positions, enough that a product waits for arithmetic and not for the
weight."""
SLICE_BYTES = 1 << 20
"""Size of what of a chunk a CPU turns into gradients at a time."""
AGREEMENT = 1e-3
"""Largest relative difference to the plain loss at which the fused one is used: a head with a cap or scale is far
beyond."""


@dataclass
class Question:
    """What the loss of a batch is worked out from, apart from the student."""

    gold: Tensor
    """[positions] token ids."""
    mask: Tensor
    """[samples, answer columns] bool."""
    weight: Tensor
    """[samples], or [samples, answer columns]: share that follows the teacher."""
    targets: Targets | None
    vocabulary: int
    divergence: str | Divergence = "forward_kl"
    temperature: float = 1.0
    denominator: float | Tensor | None = None
    teacher_share: float = 1.0
    """Below 1 the target lies between student and teacher, `objective.Interpolated`."""
    answer: Losses | None = field(default=None, init=False)

    def plain(self, logits: Tensor) -> Losses:
        """The loss from all logits at the answer positions, [positions, V]: the reference."""
        between = self.targets is not None and self.teacher_share < 1
        return mixed_loss(
            logits,
            self.gold,
            self.mask,
            self.weight,
            Interpolated(self.targets, logits, self.teacher_share) if between else self.targets,
            divergence=self.divergence,
            temperature=self.temperature,
            denominator=self.denominator,
        )


class _HeadLoss(torch.autograd.Function):
    """(hidden [N, H], weight [V, H], bias [V] or None) to the batch's loss; gradients are ready when the forward pass
    ends.

    tied: None, or a list that takes the gradient of the weight in place of the weight, see `_TiedEmbedding`.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ask: Question, tied: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        # Under autocast the product runs in the lower precision, as the head's own would; softmax and sums stay in
        # float32.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or tied is not None, ctx.needs_input_grad[2]
        with torch.autocast(device, enabled=False):
            total, ce, kd, grads = _forward(hidden, weight, bias, ask, dtype, wanted)
        ctx.tied = tied
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(ce, kd)
        return total, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # One is the usual case, and multiplying by it costs a pass over the weight; asking a GPU would cost a
        # synchronisation.
        as_it_is = grad.device.type == "cpu" and grad.item() == 1.0
        of_hidden, of_weight, of_bias = (g if g is None or as_it_is else g * grad for g in ctx.saved_tensors)
        if ctx.tied is not None:
            ctx.tied.append(of_weight)
            of_weight = None
        return of_hidden, of_weight, of_bias, None, None


class _TiedEmbedding(torch.autograd.Function):
    """The token embedding of a model whose output head has the same weight: adds its gradient to the head's.

    By itself each would make a [V, H] tensor of its own, and autograd would add the two: with a large vocabulary that
    is the peak of a small model's training. The head's backward pass comes first, since everything lies between the
    two.
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
    """total[ids] += rows, ids repeated or not, in an order that is the same every time: `index_add_` has one on a CPU
    and none on a GPU, `index_put_` the other way round."""
    if total.device.type == "cpu":
        return total.index_add_(0, ids, rows)
    return total.index_put_((ids,), rows, accumulate=True)


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ask: Question, dtype: torch.dtype, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    head = weight[: ask.vocabulary].to(dtype)
    offset = None if bias is None else bias[: ask.vocabulary].to(dtype)
    counts = ask.mask.sum(1)
    sample = torch.repeat_interleave(torch.arange(len(counts), device=hidden.device), counts)
    share = 1.0 / counts[sample] / (len(counts) if ask.denominator is None else ask.denominator)
    # float16 has no small numbers, and a scaler multiplies the loss only later: gradients are worked out in units of
    # the largest share, and brought to size in float32.
    unit = share.max() if dtype is torch.float16 and len(share) else 1.0
    states_grad = (
        torch.zeros_like(hidden, dtype=torch.float32 if dtype is torch.float16 else None) if wanted[0] else None
    )
    # Sums over chunks are kept in float32, whatever the type of the weights.
    weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    bias_grad = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None
    ce, kd = hidden.new_zeros((2, len(hidden)), dtype=torch.float32)
    kd_weight = weight_of_positions(ask.weight, ask.mask, sample)
    size = max(1, (CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES) // (4 * ask.vocabulary))
    for start in range(0, len(hidden), size):
        stop = min(start + size, len(hidden))
        rows, part = hidden[start:stop].to(dtype), slice(start, stop)
        logits = vocabulary_product(rows, head, offset).float()
        ce[part], kd[part] = _into_gradients(logits, ask, start, kd_weight[part], share[part] / unit)
        grad = logits.to(dtype)
        if states_grad is not None:
            states_grad[part] = grad @ head
        if weight_grad is not None:
            _add_product(weight_grad[: ask.vocabulary], grad, rows)
        if bias_grad is not None:
            bias_grad[: ask.vocabulary] += grad.sum(0)
    total = (share * (kd_weight * kd + (1 - kd_weight) * ce)).sum()
    if dtype is torch.float16:
        for g in (states_grad, weight_grad, bias_grad):
            if g is not None:
                g *= unit
    grads = [states_grad, *(None if g is None else g.to(weight.dtype) for g in (weight_grad, bias_grad))]
    return total, sample_means(ce, ask.mask), sample_means(kd, ask.mask), grads


def _add_product(weight_grad: Tensor, grad: Tensor, rows: Tensor) -> None:
    """weight_grad += grad^T rows, without a second tensor of its size where types allow."""
    if weight_grad.dtype == grad.dtype:
        weight_grad.addmm_(grad.T, rows)
    else:
        weight_grad += grad.T @ rows


def _into_gradients(logits: Tensor, ask: Question, first: int, w: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence [positions] of a chunk; its logits [positions, V] become the gradient of
    share x (w x divergence + (1 - w) x CE). first: number of the chunk's first position in the batch.

    On a CPU a few positions at a time, so that what lies between logits and gradient stays in the cache.
    """
    ce, kd = logits.new_zeros((2, len(logits)))
    targets, last = ask.targets, first + len(logits)
    between = ask.teacher_share < 1  # needs full distributions
    known = targets is not None and (between or targets.top_k(first, last) is None)
    teacher = targets.logits(first, last) if known else None
    if teacher is not None and between:
        teacher = torch.lerp(logits, teacher.float(), ask.teacher_share)
    few = max(1, SLICE_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), few):
        stop = min(start + few, len(logits))
        part, at = slice(start, stop), slice(first + start, first + stop)
        s_log, gold = log_probs(logits[part], 1.0), ask.gold[at, None]
        s = s_log.exp()
        ce[part] = -s_log.gather(1, gold)[:, 0]
        if targets is not None:
            kd[part], kd_grad = _divergence(s_log, s, None if teacher is None else teacher[part], ask, at)
        grad = s.scatter_add_(1, gold, s.new_full(gold.shape, -1.0))
        torch.mul(grad, (share * (1 - w))[part, None], out=logits[part])
        if targets is not None:
            logits[part].addcmul_(kd_grad, (share * w)[part, None])
    return ce, kd


def _divergence(s_log: Tensor, s: Tensor, teacher: Tensor | None, ask: Question, at: slice) -> tuple[Tensor, Tensor]:
    """Divergence times temperature squared, and its gradient with respect to the logits.

    s_log, s: the student's log-probabilities and probabilities. The former serve as its logits too, since every
    divergence is one of their softmax. teacher: its logits, None where only its top k are known. at: the positions in
    the batch.
    """
    heat = ask.temperature
    if teacher is not None and ask.divergence in GRADIENTS:
        t_log, closed_form = log_probs(teacher, heat), GRADIENTS[ask.divergence]
        if heat == 1.0:
            return closed_form(s_log, s, t_log)
        s_log = log_probs(s_log, heat)
        value, grad = closed_form(s_log, s_log.exp(), t_log)
        return value * heat**2, grad.mul_(heat)
    with torch.enable_grad():  # no closed form: plain differentiation, of these positions alone
        leaf = s_log.detach().requires_grad_()
        if teacher is None:
            value = divergence_of(leaf, ask.targets, at.start, at.stop, ask.divergence, heat)
        else:
            value = divergence_function(ask.divergence)(leaf, teacher, heat) * heat**2
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


class HeadLoss:
    """Computes the losses of batches, inside the model's output head where that is the same, from its logits where
    not."""

    def __init__(self, model: nn.Module, *, keep: bool, fused: bool = True) -> None:
        """model: unwrapped. keep: whether it takes `logits_to_keep`. fused: False uses the plain form throughout."""
        self.layer, self.embedding, self.keep = model.get_output_embeddings(), model.get_input_embeddings(), keep
        self.model, self.fused = model, fused and _is_plain_linear(self.layer) and _is_last(model)
        self._checked = False

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], ask: Question) -> Losses:
        """Losses of a batch. model: as wrapped for training, so that wrappers see the forward pass."""
        if self.fused and not self._checked:
            self._checked, self.fused = True, self._agrees(model, batch, ask)
        if self.fused:
            return self._inside(model, batch, ask)
        return self._plain(model, batch, ask)

    def _plain(self, model: nn.Module, batch: dict[str, Tensor], ask: Question) -> Losses:
        logits = answer_logits(model, batch, keep=self.keep)[ask.mask][:, : ask.vocabulary]
        with torch.autocast(logits.device.type, enabled=False):
            return ask.plain(logits)

    def _inside(self, model: nn.Module, batch: dict[str, Tensor], ask: Question) -> Losses:
        """The head returns the loss [1, 1, 1] where the model expects logits, and leaves the parts in `ask.answer`."""
        weight, tied = self.layer.weight, [] if self._shares_its_weight() else None

        def head(hidden: Tensor) -> Tensor:
            states = hidden[:, -ask.mask.shape[1] :][ask.mask]
            ask.answer = Losses(
                *_HeadLoss.apply(states, weight if tied is None else weight.detach(), self.layer.bias, ask, tied)
            )
            return ask.answer.total.view(1, 1, 1)

        def embed(ids: Tensor) -> Tensor:
            return _TiedEmbedding.apply(ids, weight, self.embedding.padding_idx, tied)

        with in_place_of(self.layer, head), nullcontext() if tied is None else in_place_of(self.embedding, embed):
            total = answer_logits(model, batch, keep=self.keep)
        return ask.answer._replace(total=total.sum())

    def _shares_its_weight(self) -> bool:
        """Whether a backward pass would make two gradients of the same [V, H] weight, the head's and the
        embedding's."""
        table = self.embedding
        plain = (
            type(table) is nn.Embedding
            and _is_bare(table)
            and not (table.max_norm or table.scale_grad_by_freq or table.sparse)
        )
        return plain and table.weight is self.layer.weight and table.weight.requires_grad and torch.is_grad_enabled()

    @torch.no_grad()
    def _agrees(self, model: nn.Module, batch: dict[str, Tensor], ask: Question) -> bool:
        """Whether both forms give the same losses on this batch: what a model does behind its head cannot be seen in
        its class."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            fused = self._inside(model, batch, ask).cross_entropy
            plain = self._plain(model, batch, ask).cross_entropy
        except (
            RuntimeError,
            TypeError,
            IndexError,
            AttributeError,
        ):  # the model does something else with what its head returns
            return False
        finally:
            for module in training:
                module.training = True
        return bool(torch.allclose(fused, plain, rtol=AGREEMENT, atol=AGREEMENT))


def _is_plain_linear(layer: nn.Module | None) -> bool:
    """A linear layer that nobody has wrapped, hooked or adapted."""
    return type(layer) is nn.Linear and _is_bare(layer)


def _is_bare(layer: nn.Module) -> bool:
    """Nobody has hooked this layer or put another forward pass in the place of its own."""
    return "forward" not in layer.__dict__ and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_last(model: nn.Module) -> bool:
    """Whether logits are the head's output as it is: no scale, no cap."""
    head = head_of(model, 1)
    return head.scale == 1.0 and head.softcap is None
