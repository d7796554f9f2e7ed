"""The fused head and loss agree with the plain form in value and in every gradient."""

from dataclasses import replace

import pytest
import torch

from helpers.fused import VOCABULARY, assert_fused_equals_plain, loss_inputs, losses_and_gradients, rows
from helpers.tiny import tiny_model
from tutelage.data.collate import IGNORED, Collator
from tutelage.method.divergences import DIVERGENCES
from tutelage.models import heads
from tutelage.models.heads import takes_logits_to_keep
from tutelage.teacher.sources import LiveTeacher
from tutelage.training import fused_loss as head_loss
from tutelage.training.fused_loss import HeadLoss


@pytest.mark.parametrize("chunk", [1 << 24, 4 * VOCABULARY * 4, 1], ids=["one chunk", "four positions", "one position"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["none", *DIVERGENCES])
def test_fused_equals_plain_for_every_divergence_chunk_and_temperature(monkeypatch, divergence, temperature, chunk):
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", chunk)
    assert_fused_equals_plain(tiny_model(seed=1), *loss_inputs(divergence, temperature))


@pytest.mark.parametrize("weight", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)], ids=["gold alone", "teacher alone"])
def test_fused_equals_plain_at_both_ends_of_the_weight(weight):
    assert_fused_equals_plain(tiny_model(seed=1), *loss_inputs(weight=weight))


@pytest.mark.parametrize(
    ("arch", "fuses"),
    [("llama", True), ("qwen2", True), ("gpt2", True), ("gemma2", False), ("granite", False), ("cohere", False)],
)
def test_heads_with_a_cap_or_scale_take_the_plain_form(arch, fuses):
    scale = {"logits_scaling": 4.0} if arch == "granite" else {}
    assert_fused_equals_plain(tiny_model(seed=1, arch=arch, **scale), *loss_inputs(), fuses=fuses)


def test_tied_and_untied_and_padded_vocabularies():
    for tied in (True, False):
        assert_fused_equals_plain(
            tiny_model(seed=1, tie_word_embeddings=tied, vocab_size=VOCABULARY + 6), *loss_inputs()
        )


def stand_in(names):
    """The batch of `rows()` in which the rows of these numbers stand in, and the inputs of its loss."""
    items = [(~index if index in names else index, row) for index, row in enumerate(rows())]
    batch, whole = Collator(257)(items), loss_inputs()[1]
    mask = batch["targets"] != IGNORED
    teacher = tiny_model(seed=9, hidden=32)
    targets = LiveTeacher(["t"], lambda _: teacher, rows(), VOCABULARY, 257).targets("t", batch)
    return batch, replace(whole, gold=batch["targets"][mask], mask=mask, targets=targets, denominator=3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_row_that_stands_in_has_no_part_in_the_loss(fused):
    model = tiny_model(seed=1, tie_word_embeddings=True)
    _, loss, found = losses_and_gradients(model, *stand_in({1, 2}), fused=fused)
    inputs = loss_inputs(weight=(0.0, 0.3, 1.0), denominator=3)[1]
    alone = Collator(257)([(0, rows()[0])])
    mask = alone["targets"] != IGNORED
    of_one = replace(inputs, gold=alone["targets"][mask], mask=mask, weight=inputs.weight[:1], targets=None)
    _, expected, gradients = losses_and_gradients(model, alone, of_one, fused=False)
    torch.testing.assert_close(loss.total, expected.total)
    assert loss.cross_entropy[1:].tolist() == loss.divergence[1:].tolist() == [0.0, 0.0]
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_of_rows_that_stand_in_gives_every_weight_a_gradient_of_zero(fused):
    model = tiny_model(seed=1, tie_word_embeddings=True)
    _, loss, found = losses_and_gradients(model, *stand_in({0, 1, 2}), fused=fused)
    assert loss.total == 0 and found.keys() == dict(model.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())


def test_the_denominator_of_an_optimizer_step_counts():
    batch, inputs = loss_inputs(denominator=torch.tensor(12))
    assert_fused_equals_plain(tiny_model(seed=1), batch, inputs)


def test_a_frozen_head_gets_no_gradient_and_the_body_gets_the_same():
    model = tiny_model(seed=1, tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    assert_fused_equals_plain(model, *loss_inputs())


def test_targets_without_a_closed_form_are_differentiated_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * VOCABULARY * 4)
    assert_fused_equals_plain(tiny_model(seed=1), *loss_inputs(top_k=True))
    monkeypatch.setattr(head_loss, "GRADIENTS", {})
    assert_fused_equals_plain(tiny_model(seed=1), *loss_inputs("jsd", 2.0))


def test_a_model_that_changes_its_logits_after_the_head_is_detected():
    model = tiny_model(seed=1)
    plain = type(model).forward

    class Doubling(type(model)):
        def forward(self, *args, **kwargs):
            output = plain(self, *args, **kwargs)
            output.logits = output.logits * 2
            return output

    model.__class__ = Doubling
    batch, inputs = loss_inputs()
    job, losses, _ = losses_and_gradients(model, batch, inputs, fused=True)
    assert not job.fused
    assert losses.cross_entropy.mean() > 0


def test_bfloat16_autocast_agrees_to_its_precision():
    model, (batch, inputs) = tiny_model(seed=1), loss_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        _, plain, expected = losses_and_gradients(model, batch, inputs, fused=False)
        _, fused, found = losses_and_gradients(model, batch, inputs, fused=True)
    torch.testing.assert_close(fused.total, plain.total, rtol=1e-3, atol=1e-3)
    name = "model.embed_tokens.weight"
    cosine = torch.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0)
    assert cosine > 0.999


def test_float16_keeps_the_gradients_that_a_scaler_would_keep():
    """The fused gradients are computed before `GradScaler` multiplies the loss: small ones must not be rounded to 0."""
    scale = 2.0**16
    model, (batch, inputs) = (
        tiny_model(seed=1),
        loss_inputs(denominator=1e6),
    )  # scale x (s_v - t_v) is below float16's range
    _, exact, expected = losses_and_gradients(model, batch, inputs, fused=False)
    with torch.autocast("cpu", torch.float16):
        model.zero_grad()
        job = HeadLoss(model, keep=takes_logits_to_keep(model))
        losses = job(model, batch, inputs)
        (losses.total * scale).backward()
    assert job.fused
    torch.testing.assert_close(losses.total, exact.total, rtol=1e-2, atol=0.0)
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        found = dict(model.named_parameters())[name].grad / scale
        torch.testing.assert_close(found.norm(), expected[name].norm(), rtol=1e-2, atol=0.0)
        assert torch.cosine_similarity(found.flatten(), expected[name].flatten(), dim=0) > 0.999


def test_the_head_is_restored_afterwards():
    model, (batch, inputs) = tiny_model(seed=1), loss_inputs()
    before = model(batch["input_ids"]).logits
    losses_and_gradients(model, batch, inputs, fused=True)
    assert torch.equal(model(batch["input_ids"]).logits, before)


def counted(model, batch, inputs):
    """Number of [V, H] gradients that the embedding creates itself in a backward pass."""
    with torch.profiler.profile() as profile:
        losses_and_gradients(model, batch, inputs, fused=True)
    return sum(event.count for event in profile.key_averages() if event.key == "aten::embedding_dense_backward")


def test_a_weight_that_head_and_embedding_share_gets_one_gradient():
    model, (batch, inputs) = tiny_model(seed=1, tie_word_embeddings=True), loss_inputs()
    batch["input_ids"][0, -1] = 257  # padding inside a row: its embedding gets no gradient
    assert model.get_input_embeddings().padding_idx == 257
    assert counted(model, batch, inputs) == 0
    assert_fused_equals_plain(model, batch, inputs)


def test_a_hooked_embedding_is_not_replaced():
    model, (batch, inputs) = tiny_model(seed=1, tie_word_embeddings=True), loss_inputs()
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert counted(model, batch, inputs) == 1
    assert_fused_equals_plain(model, batch, inputs)


def test_gradients_of_several_batches_add_up():
    model, (batch, inputs) = tiny_model(seed=1, tie_word_embeddings=True), loss_inputs(denominator=6)
    gradients = {}
    for fused in (False, True):
        model.zero_grad()
        job = HeadLoss(model, keep=True, fused=fused)
        for scale in (1.0, 3.0):  # a gradient scaler multiplies the loss
            (job(model, batch, inputs).total * scale).backward()
        gradients[fused] = [parameter.grad.clone() for parameter in model.parameters()]
    for found, expected in zip(gradients[True], gradients[False], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 64, 1 << 22])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_product_in_blocks_is_the_whole_product(monkeypatch, kind, block):
    monkeypatch.setattr(heads, "BLOCK_BYTES", block)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 16), (50, 16), (50,)))
    weight, bias = weight.to(kind), bias.to(kind)
    expected = torch.nn.functional.linear(hidden, weight.float(), bias.float())
    torch.testing.assert_close(heads.Head(weight, bias)(hidden), expected, rtol=1e-6, atol=1e-6)


def test_the_shared_gradient_is_the_same_every_time_with_several_threads():
    ids = torch.randint(0, 50, (64, 100), generator=torch.Generator().manual_seed(0))  # every id many times
    weight = torch.randn(50, 64, requires_grad=True)
    grad = torch.randn(64, 100, 64, generator=torch.Generator().manual_seed(1))
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        for _ in range(20):
            head_loss._TiedEmbedding.apply(ids, weight, None, [torch.zeros(50, 64)]).backward(grad)
            found.append(weight.grad)
            weight.grad = None
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
    expected = torch.zeros(50, 64, dtype=torch.float64).index_add_(0, ids.flatten(), grad.flatten(0, 1).double())
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-4)
