"""Closed-form gradients of the divergences with respect to the student's logits: no autograd graph, nothing kept for a
backward pass.

With s = softmax(z), t the teacher's distribution, m = a t + (1 - a) s, per position and vocabulary entry v:

    KL(t || s)                  s_v - t_v
    KL(s || t)                  s_v (log s_v/t_v - KL(s || t))
    JSD_b, m with a = b         (1 - b) s_v (log s_v/m_v - KL(s || m))
    KL(t || m)                  s_v (r_v - sum_u s_u r_u),  r_v = -(1 - a) t_v/m_v
    c KL(t||s) + (1-c) KL(s||t) the first two, c a constant

(The JSD's terms that come from m itself cancel: b t + (1 - b) s = m.) `method/divergences.py` is the reference;
tests/invariants holds both equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.method.divergences import JSD_BETA, SKEW_ALPHA, forward_kl_weight, log_mixture


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """[positions] sums over the vocabulary of a product."""
    return torch.linalg.vecdot(left, right)


def forward_kl(s_log: Tensor, s: Tensor, t_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL(t || s) and its gradient."""
    t = t_log.exp()
    value = _dot(t, t_log.sub_(s_log))
    return value, torch.sub(s, t, out=t)


def reverse_kl(s_log: Tensor, s: Tensor, t_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL(s || t) and its gradient."""
    gap = torch.sub(s_log, t_log, out=t_log)
    value = _dot(s, gap)
    return value, gap.sub_(value[:, None]).mul_(s)


def jsd(s_log: Tensor, s: Tensor, t_log: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised Jensen-Shannon divergence and its gradient."""
    mixture = log_mixture(t_log, s_log, JSD_BETA)
    t, gap = t_log.exp(), s_log - mixture
    to_mixture = _dot(s, gap)
    value = JSD_BETA * _dot(t, t_log.sub_(mixture)) + (1 - JSD_BETA) * to_mixture
    return value, gap.sub_(to_mixture[:, None]).mul_(s).mul_(1 - JSD_BETA)


def skew_kl(s_log: Tensor, s: Tensor, t_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL(t || a t + (1 - a) s) and its gradient."""
    gap = t_log - log_mixture(t_log, s_log, SKEW_ALPHA)
    value = _dot(t_log.exp_(), gap)
    ratio = gap.exp_().mul_(SKEW_ALPHA - 1)
    return value, ratio.sub_(_dot(s, ratio)[:, None]).mul_(s)


def akl(s_log: Tensor, s: Tensor, t_log: Tensor) -> tuple[Tensor, Tensor]:
    """c KL(t || s) + (1 - c) KL(s || t), c a constant, and its gradient."""
    t = t_log.exp()
    c = forward_kl_weight(s, t)
    gap = torch.sub(s_log, t_log, out=t_log)
    forward, reverse = -_dot(t, gap), _dot(s, gap)
    value = c[:, 0] * forward + (1 - c[:, 0]) * reverse
    grad = gap.sub_(reverse[:, None]).mul_(s).mul_(1 - c)
    return value, grad.add_(torch.sub(s, t, out=t).mul_(c))


GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "akl": akl,
}
"""Divergence name -> function of the student's log-probabilities and probabilities and the teacher's log-probabilities,
all [positions, vocabulary] in float32, to values [positions] and gradients [positions, vocabulary]. The teacher's are
overwritten. A divergence without an entry is differentiated automatically, chunk by chunk."""
