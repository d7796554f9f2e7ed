"""TAID's target moves as its authors say, the fused loss follows it, and a restart goes on with it."""

import pytest
import torch

from helpers.fused import assert_fused_equals_plain, question
from helpers.rows import VOCABULARY
from helpers.tiny import tiny_model
from tutelage.method.divergences import forward_kl
from tutelage.method.mixed_loss import Interpolated
from tutelage.method.taid import Interpolation
from tutelage.models.heads import answer_logits


def test_t_grows_at_least_linearly_and_faster_while_the_divergence_falls():
    between = Interpolation(steps=10_000)
    between.update(2.0, step=1)  # nothing to compare with yet
    assert between.share == 0.4
    between.update(1.0, step=2)
    # relative change 0.5, momentum 0.01 x 0.5; 0.4 + 0.0005 sigmoid(0.005) 0.6 = 0.40015 is above 0.4 + 0.6 x 2 /
    # 10,000
    assert between.momentum == pytest.approx(0.005)
    assert between.share == pytest.approx(0.4 + 5e-4 * 0.50125 * 0.6, abs=1e-8)
    between.update(1.0, step=5_000)
    assert between.share == pytest.approx(0.7)  # halfway, by the line
    between.update(1.0, step=10_000)
    assert between.share == 1.0


def test_a_divergence_that_jumps_from_next_to_nothing_does_no_harm():
    between = Interpolation(steps=100)
    between.update(1e-9, step=1)
    between.update(1.0, step=2)
    assert between.momentum < -1e6 and between.share == pytest.approx(0.4 + 0.6 * 0.02)


def test_the_target_lies_between_in_logits():
    _, ask = question()
    student, count = torch.randn(int(ask.mask.sum()), VOCABULARY, requires_grad=True), int(ask.mask.sum())
    target = Interpolated(ask.targets, student, 0.25).logits(0, count)
    assert not target.requires_grad
    torch.testing.assert_close(target, 0.75 * student.detach() + 0.25 * ask.targets.logits(0, count))
    assert torch.equal(Interpolated(ask.targets, student, 0.0).logits(0, count), student.detach())


@pytest.mark.parametrize("share", [0.4, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_fused_loss_has_the_same_target(share, temperature):
    batch, ask = question(temperature=temperature)
    ask.teacher_share = share
    assert_fused_equals_plain(tiny_model(seed=1), batch, ask)


def test_a_student_that_is_its_own_target_has_no_divergence():
    batch, ask = question(weight=(1.0, 1.0, 1.0))
    ask.teacher_share = 0.0
    losses = ask.plain(answer_logits(tiny_model(seed=1), batch)[ask.mask])
    assert losses.total.item() == pytest.approx(0.0, abs=1e-6)
    ask.teacher_share = 1.0
    logits = answer_logits(tiny_model(seed=1), batch)[ask.mask]
    assert ask.plain(logits).divergence.sum() > 0.1
    assert forward_kl(logits, logits).abs().max() < 1e-6


def test_state_survives_a_restart(tmp_path):
    class Args:
        output_dir = str(tmp_path)

    class State:
        global_step = 3

    (tmp_path / "checkpoint-3").mkdir()
    before = Interpolation(steps=10, share=0.6, momentum=0.1, previous=2.0)
    before.on_save(Args, State, None)
    after = Interpolation(steps=10)
    after.on_train_begin(Args, State, None)
    assert after.state() == before.state()
