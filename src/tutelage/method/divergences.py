"""How far the student's distribution is from the teacher's, per answer position and unreduced; and the cross-entropy on
gold.

Every function takes logits [positions, vocabulary] of any floating type and returns [positions] in float32, in nats,
summed over the vocabulary. Log-softmax runs in float32: in bfloat16 a KL of 0.0015 reads 0.0043, and can come out
negative. Equal inputs give 0. Who divides by what (answer tokens, samples) is decided in `objective.py`, nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

JSD_BETA = 0.5
"""Mixture of `jsd`: the symmetric form."""
SKEW_ALPHA = 0.1
"""Share of the teacher in the mixture of `skew_kl`, DistiLLM's setting."""
AKL_HEAD = 0.5
"""Probability that the head holds in `akl`."""


def _kl(p_log: Tensor, q_log: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities. A probability of exactly 0 under p contributes 0."""
    return F.kl_div(q_log, p_log, reduction="none", log_target=True).sum(-1)


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Log-softmax of logits / temperature, in float32."""
    logits = logits.float()
    return F.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(T || S) = sum_v p_T log(p_T / p_S): the student must cover what the teacher considers possible."""
    return _kl(log_probs(teacher, temperature), log_probs(student, temperature))


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(S || T): the student must not claim what the teacher excludes (MiniLLM, arXiv 2306.08543)."""
    return _kl(log_probs(student, temperature), log_probs(teacher, temperature))


def log_mixture(p_log: Tensor, q_log: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q), in log space so that no probability is clamped."""
    log = torch.log(torch.tensor([share, 1 - share], dtype=p_log.dtype, device=p_log.device))
    return torch.logaddexp(p_log + log[0], q_log + log[1])


def jsd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Generalised Jensen-Shannon divergence at beta 0.5 (GKD, arXiv 2306.13649, eq. 1); symmetric, at most ln 2."""
    s, t = log_probs(student, temperature), log_probs(teacher, temperature)
    middle = log_mixture(t, s, JSD_BETA)
    return JSD_BETA * _kl(t, middle) + (1 - JSD_BETA) * _kl(s, middle)


def skew_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(T || a T + (1 - a) S) with a = 0.1 (DistiLLM, arXiv 2402.03898): bounded gradients where the student is far
    off."""
    s, t = log_probs(student, temperature), log_probs(teacher, temperature)
    return _kl(t, log_mixture(t, s, SKEW_ALPHA))


def head_share(s: Tensor, t: Tensor) -> Tensor:
    """[positions, 1] share of forward KL in `akl`, from probabilities: of all |t - s|, what lies on the teacher's head.

    The head: the fewest of its likeliest entries that hold half of its probability (arXiv 2404.02657, section 4, mu =
    0.5). Where both agree everywhere it is 0.5.
    """
    rising, order = t.sort(-1)
    gap = (t - s).abs()
    tail = gap.gather(-1, order).masked_fill_(rising.cumsum(-1) > 1 - AKL_HEAD, 0.0).sum(-1, keepdim=True)
    whole = gap.sum(-1, keepdim=True)
    return torch.where(whole > 0, 1 - tail / whole, 0.5)


def akl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Adaptive KL (arXiv 2404.02657, eq. 12): c KL(T || S) + (1 - c) KL(S || T), c = `head_share`, taken as a constant.

    Forward KL mends the head of the distribution first, reverse KL the tail; c follows where the student is off.
    """
    s, t = log_probs(student, temperature), log_probs(teacher, temperature)
    with torch.no_grad():
        share = head_share(s.exp(), t.exp())[..., 0]
    return share * _kl(t, s) + (1 - share) * _kl(s, t)


def forward_kl_top_k(student: Tensor, ids: Tensor, teacher_log: Tensor, temperature: float = 1.0) -> Tensor:
    """Forward KL when only the teacher's k largest log-probabilities are known; the rest is one bucket, the tail.

    ids, teacher_log: [positions, k] token ids and their log-probabilities. A lower bound of `forward_kl`, 0 for a
    student that equals the teacher. The tail keeps mass outside the k entries visible; renormalising over k would be
    blind to it. Needs temperature 1, since a tempered tail cannot be known from k entries.
    """
    if temperature != 1.0:
        raise ValueError(f"top-k teacher targets work at temperature 1 only; found {temperature}")
    student_log = log_probs(student, 1.0)
    kept = student_log.gather(-1, ids)
    inside = (teacher_log.exp() * (teacher_log - kept)).sum(-1)
    tail_teacher = (1 - teacher_log.exp().sum(-1)).clamp_min(0)
    tail_student_log = torch.log1p(-kept.exp().sum(-1).clamp(max=1 - 1e-7))
    tail = torch.special.xlogy(tail_teacher, tail_teacher) - tail_teacher * tail_student_log
    return inside + tail


def cross_entropy(student: Tensor, gold: Tensor) -> Tensor:
    """-log p_S(gold): [positions] from student logits [positions, vocabulary] and token ids [positions]."""
    return F.cross_entropy(student.float(), gold, reduction="none")


Divergence = Callable[..., Tensor]
"""(student logits, teacher logits, temperature), logits [positions, vocabulary], to [positions] in nats."""

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
