"""Whether a model reads the padding of a batch. Rows of a batch are padded on the left; layers that carry a state from
token to token and do not skip padding answer otherwise in a batch than alone."""

from __future__ import annotations

import torch
from torch import nn

from tutelage.errors import Kind, ModelError, Problem

KNOWN_TO_READ = ("recurrent_gemma", "rwkv")
"""Architectures (`model_type`) of which this is known; found by benchmarks/architectures.py."""
TOKENS = 8
"""Of the row that is tried, and of its padding."""
FLOAT32_NATS, ROUNDED_NATS = 1e-4, 0.05
"""Median over the tokens of the KL divergence, in nats, above which a model reads padding. Where it does not, it is
about 1e-7 in float32; 16 bits may round otherwise in a batch of another width."""


@torch.no_grad()
def check_padding(model: nn.Module, name: str) -> None:
    """Raises ModelError if a row that is padded on the left has other distributions than the same row alone.

    model: in eval mode. name: for the message.
    """
    embedding = model.get_input_embeddings().weight
    row = torch.linspace(0, len(embedding) - 1, TOKENS, device=embedding.device).long()[None]
    alone, padded = _log_probs(model, row, 0), _log_probs(model, row, TOKENS)
    if not alone.isfinite().all():  # it has no distribution in either case
        return
    divergence = (alone.exp() * (alone - padded)).sum(-1).median().item()
    if not divergence <= (FLOAT32_NATS if model.dtype == torch.float32 else ROUNDED_NATS):
        values = {"name": name, "type": model.config.get_text_config().model_type, "nats": divergence}
        raise ModelError(Problem(Kind.PADDING_READ, values=values))


def _log_probs(model: nn.Module, row: torch.Tensor, padding: int) -> torch.Tensor:
    """[TOKENS, V] of the row with so many tokens of padding on its left."""
    ids = torch.nn.functional.pad(row, (padding, 0))
    mask = torch.nn.functional.pad(torch.ones_like(row), (padding, 0))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits[0, -row.shape[1] :].float().log_softmax(-1)
