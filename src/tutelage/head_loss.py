"""Output head and loss in one: a chunk of answer positions becomes logits, loss and gradients, and its logits are forgotten.

The plain form is `objective.mixed_loss` on the model's logits; values and gradients agree with it. Here the gradients of the
head's input and weight are worked out together with the loss, so the backward pass holds no [positions, vocabulary] tensor,
nothing is recomputed, and padded answer columns never meet the vocabulary.

The loss takes the place of the logits inside the model's own forward pass: wrappers (DDP, FSDP, autocast) see an ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.divergences import log_probs
from tutelage.gradients import GRADIENTS
from tutelage.heads import answer_logits, head_of, in_place_of_head
from tutelage.objective import Losses, Targets, divergence_of, mixed_loss, sample_means

CHUNK_BYTES = 1 << 24
"""Size of a chunk's float32 logits: a few fit into a processor's last-level cache."""
AGREEMENT = 1e-3
"""Largest relative difference to the plain loss at which the fused one is used: a head with a cap or scale is far beyond."""


@dataclass
class Question:
    """What the loss of a batch is worked out from, apart from the student."""

    gold: Tensor
    """[positions] token ids."""
    mask: Tensor
    """[samples, answer columns] bool."""
    weight: Tensor
    """[samples] share that follows the teacher."""
    targets: Targets | None
    vocabulary: int
    divergence: str = "forward_kl"
    temperature: float = 1.0
    denominator: float | Tensor | None = None
    answer: Losses | None = field(default=None, init=False)

    def plain(self, logits: Tensor) -> Losses:
        """The loss from all logits at the answer positions, [positions, V]: the reference."""
        return mixed_loss(
            logits,
            self.gold,
            self.mask,
            self.weight,
            self.targets,
            divergence=self.divergence,
            temperature=self.temperature,
            denominator=self.denominator,
        )


class _HeadLoss(torch.autograd.Function):
    """(hidden [N, H], weight [V, H], bias [V] or None) to the batch's loss; gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ask: Question) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        # Under autocast the product runs in the lower precision, as the head's own would; softmax and sums stay in float32.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            total, ce, kd, grads = _forward(hidden, weight, bias, ask, dtype, ctx.needs_input_grad)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(ce, kd)
        return total, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # One is the usual case, and multiplying by it costs a pass over the weight; asking a GPU would cost a synchronisation.
        as_it_is = grad.device.type == "cpu" and grad.item() == 1.0
        return *(g if g is None or as_it_is else g * grad for g in ctx.saved_tensors), None


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ask: Question, dtype: torch.dtype, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    head = weight[: ask.vocabulary].to(dtype)
    offset = None if bias is None else bias[: ask.vocabulary].to(dtype)
    counts = ask.mask.sum(1)
    sample = torch.repeat_interleave(torch.arange(len(counts), device=hidden.device), counts)
    share = 1.0 / counts[sample] / (len(counts) if ask.denominator is None else ask.denominator)
    states_grad = torch.zeros_like(hidden) if wanted[0] else None
    # Sums over chunks are kept in float32, whatever the type of the weights.
    weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    bias_grad = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None
    ce, kd = hidden.new_zeros((2, len(hidden)), dtype=torch.float32)
    kd_weight = ask.weight.float()[sample]
    size = max(1, CHUNK_BYTES // (4 * ask.vocabulary))
    for start in range(0, len(hidden), size):
        part = slice(start, min(start + size, len(hidden)))
        rows = hidden[part].to(dtype)
        logits = nn.functional.linear(rows, head, offset).float()
        ce[part], kd[part], grad = _chunk(logits, ask, part, kd_weight[part], share[part])
        grad = grad.to(dtype)
        if states_grad is not None:
            states_grad[part] = grad @ head
        if weight_grad is not None:
            _add_product(weight_grad[: ask.vocabulary], grad, rows)
        if bias_grad is not None:
            bias_grad[: ask.vocabulary] += grad.sum(0)
    total = (share * (kd_weight * kd + (1 - kd_weight) * ce)).sum()
    grads = [states_grad, *(None if g is None else g.to(weight.dtype) for g in (weight_grad, bias_grad))]
    return total, sample_means(ce, ask.mask), sample_means(kd, ask.mask), grads


def _add_product(weight_grad: Tensor, grad: Tensor, rows: Tensor) -> None:
    """weight_grad += grad^T rows, without a second tensor of its size where types allow."""
    if weight_grad.dtype == grad.dtype:
        weight_grad.addmm_(grad.T, rows)
    else:
        weight_grad += grad.T @ rows


def _chunk(logits: Tensor, ask: Question, part: slice, w: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, divergence [positions], and the gradient [positions, V] of share x (w x divergence + (1 - w) x CE)."""
    gold = ask.gold[part, None]
    s_log = log_probs(logits, 1.0)
    ce = -s_log.gather(1, gold)[:, 0]
    kd, kd_grad = torch.zeros_like(ce), None
    if ask.targets is not None:
        kd, kd_grad = _divergence(logits, s_log, ask, part)
    grad = s_log.exp_()
    grad.scatter_add_(1, gold, grad.new_full(gold.shape, -1.0))
    of_gold, of_teacher = (share * (1 - w))[:, None], (share * w)[:, None]
    if kd_grad is None:
        return ce, kd, grad.mul_(of_gold)
    return ce, kd, kd_grad.mul_(of_teacher).addcmul_(grad, of_gold)


def _divergence(logits: Tensor, s_log: Tensor, ask: Question, part: slice) -> tuple[Tensor, Tensor]:
    """Divergence times temperature squared, and its gradient with respect to the logits."""
    heat, start, stop = ask.temperature, part.start, part.stop
    if ask.divergence in GRADIENTS and ask.targets.top_k(start, stop) is None:
        t_log = log_probs(ask.targets.logits(start, stop), heat)
        value, grad = GRADIENTS[ask.divergence](s_log if heat == 1.0 else log_probs(logits, heat), t_log)
        return value * heat**2, grad if heat == 1.0 else grad.mul_(heat)
    with torch.enable_grad():  # no closed form: plain differentiation, of this chunk alone
        leaf = logits.detach().requires_grad_()
        value = divergence_of(leaf, ask.targets, start, stop, ask.divergence, heat)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


class HeadLoss:
    """Computes the losses of batches, inside the model's output head where that is the same, from its logits where not."""

    def __init__(self, model: nn.Module, *, keep: bool, fused: bool = True) -> None:
        """model: unwrapped. keep: whether it takes `logits_to_keep`. fused: False uses the plain form throughout."""
        self.layer, self.keep = model.get_output_embeddings(), keep
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

        def forward(hidden: Tensor) -> Tensor:
            states = hidden[:, -ask.mask.shape[1] :][ask.mask]
            ask.answer = Losses(*_HeadLoss.apply(states, self.layer.weight, self.layer.bias, ask))
            return ask.answer.total.view(1, 1, 1)

        with in_place_of_head(self.layer, forward):
            total = answer_logits(model, batch, keep=self.keep)
        return ask.answer._replace(total=total.sum())

    @torch.no_grad()
    def _agrees(self, model: nn.Module, batch: dict[str, Tensor], ask: Question) -> bool:
        """Whether both forms give the same losses on this batch: what a model does behind its head cannot be seen in its class."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            fused = self._inside(model, batch, ask).cross_entropy
            plain = self._plain(model, batch, ask).cross_entropy
        except (RuntimeError, TypeError, IndexError, AttributeError):  # the model does something else with what its head returns
            return False
        finally:
            for module in training:
                module.training = True
        return bool(torch.allclose(fused, plain, rtol=AGREEMENT, atol=AGREEMENT))


def _is_plain_linear(layer: nn.Module | None) -> bool:
    """A linear layer that nobody has wrapped, hooked or adapted."""
    hooked = bool(getattr(layer, "_forward_hooks", None) or getattr(layer, "_forward_pre_hooks", None))
    return type(layer) is nn.Linear and "forward" not in layer.__dict__ and not hooked


def _is_last(model: nn.Module) -> bool:
    """Whether logits are the head's output as it is: no scale, no cap."""
    head = head_of(model, 1)
    return head.scale == 1.0 and head.softcap is None
