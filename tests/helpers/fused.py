"""Compares the fused head and loss with the plain form on one batch, in value and in every gradient."""

import torch

from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.data.collate import IGNORED, Collator
from tutelage.data.encode import EncodedRow
from tutelage.models.heads import takes_logits_to_keep
from tutelage.teacher.sources import LiveTeacher, TopKTargets
from tutelage.training.fused_loss import HeadLoss, LossInputs

VOCABULARY = len(byte_tokenizer())


def rows():
    texts = [("abcdef", "xy"), ("a", "longer answer"), ("some prompt", "z")]
    return [EncodedRow(str(i), "train", list(p.encode()), [*a.encode(), 256]) for i, (p, a) in enumerate(texts)]


def loss_inputs(divergence="forward_kl", temperature=1.0, weight=(0.0, 0.3, 1.0), top_k=False, denominator=None):
    batch = Collator(257)(list(enumerate(rows())))
    mask, targets = batch["targets"] != IGNORED, None
    if divergence != "none":
        teacher = tiny_model(seed=9, hidden=32)
        targets = LiveTeacher(["t"], lambda _: teacher, rows(), VOCABULARY, 257).targets("t", batch)
    if top_k:
        log_probs, ids = targets.logits(0, int(mask.sum())).detach().log_softmax(-1).topk(5)
        targets = TopKTargets(ids, log_probs)
    divergence = "forward_kl" if divergence == "none" else divergence
    return batch, LossInputs(
        batch["targets"][mask], mask, torch.tensor(weight), targets, VOCABULARY, divergence, temperature, denominator
    )


def losses_and_gradients(model, batch, inputs, fused):
    model.zero_grad()
    job = HeadLoss(model, keep=takes_logits_to_keep(model), fused=fused)
    losses = job(model, batch, inputs)
    losses.total.backward()
    return job, losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_fused_equals_plain(model, batch, inputs, *, fuses=True):
    _, plain, expected = losses_and_gradients(model, batch, inputs, fused=False)
    job, fused, found = losses_and_gradients(model, batch, inputs, fused=True)
    assert job.fused is fuses
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp_min(1e-6)
        assert ((found[name] - gradient).abs().max() / scale) < 1e-5, name
