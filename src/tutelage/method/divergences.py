"""Distances between student and teacher distributions per answer position, and the cross-entropy on gold.

Every function takes logits [positions, vocabulary] of any floating type and returns [positions] in float32, in nats,
summed over the vocabulary. Equal inputs give 0. The log-softmax runs in float32: in bfloat16 a KL of 0.0015 reads as
0.0043, and can come out negative. Averaging over positions and examples is done in `mixed_loss.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

JSD_BETA = 0.5
"""Weight of the teacher in `jsd`'s mixture: the symmetric form."""
SKEW_ALPHA = 0.1
"""Weight of the teacher in `skew_kl`'s mixture: DistiLLM's setting."""
AKL_HEAD = 0.5
"""Probability mass of the head of the teacher's distribution in `akl`."""


def _kl(p_log: Tensor, q_log: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities. An entry with p = 0 contributes 0."""
    return F.kl_div(q_log, p_log, reduction="none", log_target=True).sum(-1)


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Log-softmax of logits / temperature, in float32."""
    logits = logits.float()
    return F.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(T || S) = sum_v p_T log(p_T / p_S): penalises a student that misses what the teacher considers possible."""
    return _kl(log_probs(teacher, temperature), log_probs(student, temperature))


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(S || T): penalises a student for what the teacher considers unlikely (MiniLLM, arXiv 2306.08543)."""
    return _kl(log_probs(student, temperature), log_probs(teacher, temperature))


def log_mixture(p_log: Tensor, q_log: Tensor, p_weight: float) -> Tensor:
    """log(p_weight p + (1 - p_weight) q), in log space so that no probability is clamped."""
    log = torch.log(torch.tensor([p_weight, 1 - p_weight], dtype=p_log.dtype, device=p_log.device))
    return torch.logaddexp(p_log + log[0], q_log + log[1])


def jsd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Generalised Jensen-Shannon divergence at beta 0.5 (GKD, arXiv 2306.13649, eq. 1); symmetric, at most ln 2."""
    s, t = log_probs(student, temperature), log_probs(teacher, temperature)
    mixture = log_mixture(t, s, JSD_BETA)
    return JSD_BETA * _kl(t, mixture) + (1 - JSD_BETA) * _kl(s, mixture)


def skew_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(T || a T + (1 - a) S) with a = 0.1 (DistiLLM, arXiv 2402.03898): gradients stay bounded where the student is
    far from the teacher."""
    s, t = log_probs(student, temperature), log_probs(teacher, temperature)
    return _kl(t, log_mixture(t, s, SKEW_ALPHA))


def forward_kl_weight(s: Tensor, t: Tensor) -> Tensor:
    """[positions, 1] weight of forward KL in `akl`, from probabilities: the fraction of sum |t - s| on the head.

    The head is the smallest set of the teacher's most likely entries that holds half of the probability (arXiv
    2404.02657, section 4, mu = 0.5). 0.5 where both distributions are equal.
    """
    ascending, order = t.sort(-1)
    gap = (t - s).abs()
    tail = gap.gather(-1, order).masked_fill_(ascending.cumsum(-1) > 1 - AKL_HEAD, 0.0).sum(-1, keepdim=True)
    total = gap.sum(-1, keepdim=True)
    return torch.where(total > 0, 1 - tail / total, 0.5)


def akl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Adaptive KL (arXiv 2404.02657, eq. 12): c KL(T || S) + (1 - c) KL(S || T), c = `forward_kl_weight`, no gradient.

    Forward KL fits the head of the distribution first, reverse KL the tail; c is large where the head has the error.
    """
    s, t = log_probs(student, temperature), log_probs(teacher, temperature)
    with torch.no_grad():
        c = forward_kl_weight(s.exp(), t.exp())[..., 0]
    return c * _kl(t, s) + (1 - c) * _kl(s, t)


def forward_kl_top_k(student: Tensor, ids: Tensor, teacher_log: Tensor, temperature: float = 1.0) -> Tensor:
    """Forward KL when only the teacher's k largest log-probabilities are known; all other entries form one bucket.

    ids, teacher_log: [positions, k] token ids and their log-probabilities. A lower bound of `forward_kl`; 0 for a
    student that equals the teacher. The bucket makes a student pay for mass outside the top k, which renormalising over
    k entries would not. Raises ValueError for a temperature other than 1, at which the tail's mass is not known.
    """
    if temperature != 1.0:
        raise ValueError(f"top-k teacher targets need temperature 1; found {temperature}")
    student_log = log_probs(student, 1.0)
    top = student_log.gather(-1, ids)
    inside = (teacher_log.exp() * (teacher_log - top)).sum(-1)
    tail_teacher = (1 - teacher_log.exp().sum(-1)).clamp_min(0)
    tail_student_log = torch.log1p(-top.exp().sum(-1).clamp(max=1 - 1e-7))
    tail = torch.special.xlogy(tail_teacher, tail_teacher) - tail_teacher * tail_student_log
    return inside + tail


def cross_entropy(student: Tensor, gold: Tensor) -> Tensor:
    """-log p_S(gold): [positions], from student logits [positions, vocabulary] and token ids [positions]."""
    return F.cross_entropy(student.float(), gold, reduction="none")


Divergence = Callable[..., Tensor]
"""(student logits, teacher logits, temperature), logits [positions, vocabulary], -> [positions] in nats."""

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "akl": akl,
}


def divergence_function(divergence: str | Divergence) -> Divergence:
    """The function of a name, or the function itself."""
    return divergence if callable(divergence) else DIVERGENCES[divergence]
