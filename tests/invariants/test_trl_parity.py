"""The losses agree with TRL's on the same inputs. Skipped without TRL, which is a development dependency."""

import os
from types import SimpleNamespace

import pytest
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl")

from trl.experimental.gkd import GKDTrainer
from trl.experimental.sdpo.loss_utils import add_tail_bucket, compute_divergence
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from helpers.tiny import tiny_model
from tutelage.data.collate import IGNORED, Collator
from tutelage.data.encode import EncodedRow
from tutelage.method.divergences import DIVERGENCES, forward_kl_top_k
from tutelage.method.mixed_loss import mixed_loss
from tutelage.models.heads import Head, answer_logits, answer_states, head_of
from tutelage.teacher.sources import HiddenTargets

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
"""TRL's beta for each divergence that both have. The skewed KL (DistiLLM) has no counterpart in TRL 1.16."""

each_divergence = pytest.mark.parametrize("name", BETA)


def logits(seed, positions=12, vocabulary=200, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocabulary, generator=generator) * spread


@each_divergence
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergences_are_those_of_gkd(name, temperature):
    student, teacher = logits(0).requires_grad_(), logits(1)
    ours = DIVERGENCES[name](student, teacher, temperature).mean()
    theirs = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], labels=torch.zeros(1, 12), beta=BETA[name], temperature=temperature
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


@each_divergence
def test_the_loss_from_hidden_states_is_that_of_trl_chunked_divergence(name):
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    hidden, weight = draw(12, 16).requires_grad_(), draw(200, 16).requires_grad_()
    teacher_hidden, teacher_weight = draw(12, 32), draw(200, 32) * 0.5
    theirs = ChunkedDivergenceFunction.apply(hidden, weight, None, teacher_hidden, teacher_weight, None, BETA[name])[
        0
    ].mean()
    targets = HiddenTargets(teacher_hidden, Head(teacher_weight))
    mask, gold = torch.ones(1, 12, dtype=torch.bool), torch.zeros(12, dtype=torch.int64)
    ours = mixed_loss(hidden @ weight.T, gold, mask, torch.ones(1), targets, divergence=name).total
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for ours_by, theirs_by in zip(
        *(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(ours_by, theirs_by, rtol=1e-4, atol=1e-6)


def test_the_top_k_loss_is_that_of_trl_with_a_tail_bucket():
    student, teacher = logits(3).log_softmax(-1), logits(4).log_softmax(-1)
    kept, ids = teacher.topk(8)
    ours = forward_kl_top_k(student, ids, kept)
    theirs = compute_divergence(add_tail_bucket(student.gather(-1, ids)), add_tail_bucket(kept), alpha=0.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@each_divergence
def test_a_batch_has_the_loss_of_a_gkd_step(name):
    """From padded batch to loss. GKD averages over tokens, `mixed_loss` over examples, so all answers are equally long;
    GKD has no gold term, so every weight is 1."""
    student, teacher = tiny_model(0, hidden=16), tiny_model(1, hidden=32)
    rows = [
        EncodedRow(str(n), "train", list(range(10, 10 + length)), [70 + n, 71, 256])
        for n, length in enumerate((9, 4, 6))
    ]
    batch = Collator(pad_id=257)(list(enumerate(rows)))
    mask = batch["targets"] != IGNORED
    targets = HiddenTargets(answer_states(teacher, batch)[0], head_of(teacher, 258))
    positions = answer_logits(student, batch)[mask]
    ours = mixed_loss(positions, batch["targets"][mask], mask, torch.ones(3), targets, divergence=name).total

    whole = [row.prompt + row.answer for row in rows]
    left = [max(map(len, whole)) - len(ids) for ids in whole]
    inputs = {
        "input_ids": torch.tensor([[257] * pad + ids for pad, ids in zip(left, whole, strict=True)]),
        "attention_mask": torch.tensor([[0] * pad + [1] * len(ids) for pad, ids in zip(left, whole, strict=True)]),
        "labels": torch.tensor(
            [[-100] * (len(ids) + pad - 3) + ids[-3:] for pad, ids in zip(left, whole, strict=True)]
        ),
    }
    trainer = SimpleNamespace(
        teacher_model=teacher, beta=BETA[name], generalized_jsd_loss=GKDTrainer.generalized_jsd_loss
    )
    theirs = GKDTrainer.compute_loss(trainer, student, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
