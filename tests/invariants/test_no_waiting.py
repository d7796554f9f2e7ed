"""From the forward pass on, a training step asks a GPU for nothing that the host would have to wait for, but for what
the model itself asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.fused import loss_inputs
from helpers.tiny import tiny_model
from tutelage.models.heads import answer_logits, takes_logits_to_keep
from tutelage.training.fused_loss import HeadLoss

WAITING = {"aten.nonzero.default", "aten._local_scalar_dense.default", "aten.masked_select.default"}


class Waits(TorchDispatchMode):
    """Notes operators whose result has a size, or is a number, that only the device knows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        by_mask = str(operator).startswith("aten.index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        counted = str(operator) == "aten.repeat_interleave.Tensor" and kwargs.get("output_size") is None
        if str(operator) in WAITING or by_mask or counted:
            self.found.append(str(operator))
        return operator(*args, **kwargs)


def test_the_operators_that_wait_are_seen():
    mask, counts = torch.tensor([True, False]), torch.tensor([1, 2])
    with Waits() as waits:
        _ = torch.ones(2)[mask], mask.nonzero(), torch.repeat_interleave(counts, counts), counts.sum().item()
    assert len(set(waits.found)) >= 3


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("top_k", [False, True])
def test_loss_and_gradient_of_a_batch_wait_for_nothing(fused, top_k):
    model = tiny_model().train()
    batch, inputs = loss_inputs(top_k=top_k, denominator=torch.tensor(3))
    loss = HeadLoss(model, keep=takes_logits_to_keep(model), fused=fused)
    loss(model, batch, inputs).total.backward()  # the first step compares both forms
    _, inputs = loss_inputs(top_k=top_k, denominator=torch.tensor(3))
    with Waits() as of_the_model:  # transformers looks whether the batch is padded
        answer_logits(model, batch)
    with Waits() as waits:
        total = loss(model, batch, inputs).total
    assert waits.found == of_the_model.found
    with Waits() as waits:
        total.backward()
    on_cpus_alone = ["aten._local_scalar_dense.default"] * fused  # `_HeadLoss.backward`
    assert waits.found == on_cpus_alone
