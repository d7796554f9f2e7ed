"""TAID's target moves as published, the fused loss uses it, and a resumed run continues with it."""

import pytest
import torch

from helpers.fused import assert_fused_equals_plain, loss_inputs
from helpers.rows import VOCABULARY
from helpers.tiny import tiny_model
from tutelage.method.divergences import forward_kl
from tutelage.method.taid import InterpolatedTargets, Interpolation
from tutelage.models.heads import answer_logits
from tutelage.training.callbacks import Interpolate


def test_t_grows_at_least_linearly_and_faster_while_the_divergence_falls():
    between = Interpolation()
    between.update(2.0, step=1, steps=10_000)  # nothing to compare with yet
    assert between.share == 0.4
    between.update(1.0, step=2, steps=10_000)
    # relative change 0.5, momentum 0.01 x 0.5; 0.4 + 0.0005 sigmoid(0.005) 0.6 = 0.40015 is above 0.4 + 0.6 x 2 /
    # 10,000
    assert between.momentum == pytest.approx(0.005)
    assert between.share == pytest.approx(0.4 + 5e-4 * 0.50125 * 0.6, abs=1e-8)
    between.update(1.0, step=5_000, steps=10_000)
    assert between.share == pytest.approx(0.7)  # halfway on the line
    between.update(1.0, step=10_000, steps=10_000)
    assert between.share == 1.0


def test_a_divergence_that_jumps_from_almost_zero_is_harmless():
    between = Interpolation()
    between.update(1e-9, step=1, steps=100)
    between.update(1.0, step=2, steps=100)
    assert between.momentum < -1e6 and between.share == pytest.approx(0.4 + 0.6 * 0.02)


def test_the_target_lies_between_in_logits():
    _, inputs = loss_inputs()
    student, count = torch.randn(int(inputs.mask.sum()), VOCABULARY, requires_grad=True), int(inputs.mask.sum())
    target = InterpolatedTargets(inputs.targets, student, 0.25).logits(0, count)
    assert not target.requires_grad
    torch.testing.assert_close(target, 0.75 * student.detach() + 0.25 * inputs.targets.logits(0, count))
    assert torch.equal(InterpolatedTargets(inputs.targets, student, 0.0).logits(0, count), student.detach())


@pytest.mark.parametrize("share", [0.4, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_fused_loss_has_the_same_target(share, temperature):
    batch, inputs = loss_inputs(temperature=temperature)
    inputs.teacher_share = share
    assert_fused_equals_plain(tiny_model(seed=1), batch, inputs)


def test_a_student_that_is_its_own_target_has_no_divergence():
    batch, inputs = loss_inputs(weight=(1.0, 1.0, 1.0))
    inputs.teacher_share = 0.0
    losses = inputs.plain(answer_logits(tiny_model(seed=1), batch)[inputs.mask])
    assert losses.total.item() == pytest.approx(0.0, abs=1e-6)
    inputs.teacher_share = 1.0
    logits = answer_logits(tiny_model(seed=1), batch)[inputs.mask]
    assert inputs.plain(logits).divergence.sum() > 0.1
    assert forward_kl(logits, logits).abs().max() < 1e-6


def test_a_resumed_run_continues_with_the_saved_interpolation(tmp_path):
    class Args:
        output_dir = str(tmp_path)

    class State:
        global_step = 3
        is_world_process_zero = True

    (tmp_path / "checkpoint-3").mkdir()
    before = Interpolation(share=0.6, momentum=0.1, previous=2.0)
    Interpolate(before, steps=10).on_save(Args, State, None)
    after = Interpolate(Interpolation(), steps=10)
    after.on_train_begin(Args, State, None)
    assert after.interpolation == before
