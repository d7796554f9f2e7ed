"""Closed-form gradients of the divergences with respect to the student's logits; no graph, no tensor kept for a
backward pass.

With s = softmax(z), t the teacher's distribution, m = a t + (1 - a) s, per position and vocabulary entry v:

    KL(t || s)                  s_v - t_v
    KL(s || t)                  s_v (log s_v/t_v - KL(s || t))
    JSD_b, m with a = b         (1 - b) s_v (log s_v/m_v - KL(s || m))
    KL(t || m)                  s_v (r_v - sum_u s_u r_u),  r_v = -(1 - a) t_v/m_v
    c KL(t||s) + (1-c) KL(s||t) the first two, c a constant

(The JSD's terms that come from m itself cancel: b t + (1 - b) s = m.) `divergences.py` is the plain form, tests hold
them equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.method.divergences import JSD_BETA, SKEW_ALPHA, head_share, log_mixture


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
    middle = log_mixture(t_log, s_log, JSD_BETA)
    t, gap = t_log.exp(), s_log - middle
    to_middle = _dot(s, gap)
    value = JSD_BETA * _dot(t, t_log.sub_(middle)) + (1 - JSD_BETA) * to_middle
    return value, gap.sub_(to_middle[:, None]).mul_(s).mul_(1 - JSD_BETA)


def skew_kl(s_log: Tensor, s: Tensor, t_log: Tensor) -> tuple[Tensor, Tensor]:
    """KL(t || a t + (1 - a) s) and its gradient."""
    gap = t_log - log_mixture(t_log, s_log, SKEW_ALPHA)
    value = _dot(t_log.exp_(), gap)
    ratio = gap.exp_().mul_(SKEW_ALPHA - 1)
    return value, ratio.sub_(_dot(s, ratio)[:, None]).mul_(s)


def akl(s_log: Tensor, s: Tensor, t_log: Tensor) -> tuple[Tensor, Tensor]:
    """c KL(t || s) + (1 - c) KL(s || t), c a constant, and its gradient."""
    t = t_log.exp()
    share = head_share(s, t)
    gap = torch.sub(s_log, t_log, out=t_log)
    forward, reverse = -_dot(t, gap), _dot(s, gap)
    value = share[:, 0] * forward + (1 - share[:, 0]) * reverse
    grad = gap.sub_(reverse[:, None]).mul_(s).mul_(1 - share)
    return value, grad.add_(torch.sub(s, t, out=t).mul_(share))


GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "akl": akl,
}
"""By name of the divergence: from the student's log-probabilities and probabilities and the teacher's
log-probabilities, all [positions, vocabulary] in float32, to the values [positions] and the gradients [positions,
vocabulary]. The teacher's are written over. A divergence without an entry is differentiated chunk by chunk."""
