"""From masses of token ranges to log-probabilities of the next byte.

    p(c | B[:p])  ~  sum_j Q_j P_j(tokens that begin with B[s_j:p] c)          over positions j that begin at s_j <= p

B are the answer's bytes, s_j is where the answer's token j begins, P_j the model's distribution there, and Q_j the
probability of the answer's tokens before j. Inside a token the last j is the position that predicts this token; at its
end it is the next position, which may also end the answer. The earlier j are those whose longer tokens agree with the
answer so far. Texts that are spelled by other tokens than the answer's own are left out: their distributions would need
passes of their own over the model. What remains is normalised over 256 bytes and the end.

Exact conversions of this kind: arXiv 2506.14123 and 2512.14954. This form, over the answer's own tokens, is compared
with an enumeration of prefixes in tests/bytes/test_equals_reference.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.bytes.lookups import Lookups
from tutelage.bytes.masses import EMPTY, RangeMasses

LOWEST = -23.0
"""Log-probability (1e-10) of a byte that no token can spell there: low enough to take no mass from the others, and
finite where the other model gives it some."""


def byte_log_probs(logits: Tensor, lookups: Lookups) -> Tensor:
    """[B, 257] float32 log-probabilities of the next byte and of the answer's end, `EMPTY` or so where no token spells
    a byte; see `finite`.

    logits: [N, V] at the answer positions of the batch, of which entries beyond the tokenizer's ids are cut off.
    """
    masses, exact = RangeMasses.apply(logits, lookups)  # type: ignore[no-untyped-call]  # torch's own
    return combined(masses, exact, lookups)


def combined(masses: Tensor, exact: Tensor, lookups: Lookups) -> Tensor:
    """`byte_log_probs`, [B, 257] float32, from what `RangeMasses` returns: masses [R, 257] and exact [N], float64."""
    device = masses.device
    goes_on = torch.from_numpy(lookups.goes_on).to(device)
    position, byte = (torch.from_numpy(array).to(device) for array in (lookups.position, lookups.byte))
    before = exact.cumsum(0) - exact  # log Q_j, but for a constant of the answer
    last = position[~goes_on]
    log_sum = masses[~goes_on]
    others = goes_on.nonzero()[:, 0]
    for rank in _ranks(byte[others]):
        of = others[rank]
        more = masses[of] + (before[position[of]] - before[last[byte[of]]])[:, None]
        log_sum = log_sum.index_put((byte[of],), torch.logaddexp(log_sum[byte[of]], more))
    return log_sum.log_softmax(-1).float()


def finite(log_probs: Tensor, temperature: float) -> Tensor:
    """Log-probabilities as logits for a divergence at this temperature: `LOWEST` where no token spells a byte."""
    return torch.where(log_probs < EMPTY / 2, LOWEST * temperature, log_probs)


def _ranks(byte: Tensor) -> list[Tensor]:
    """Indices in groups in which no byte occurs twice. byte: [M]."""
    order = torch.argsort(byte, stable=True)
    ordered = byte[order]
    counts = torch.unique_consecutive(ordered, return_counts=True)[1]
    rank = torch.arange(len(byte), device=byte.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return [order[rank == number] for number in range(int(counts.max()) if len(counts) else 0)]
