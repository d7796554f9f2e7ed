"""Divergences against numbers derived by hand, and the mixed loss against its definition."""

import math

import pytest
import torch
from torch.nn import functional as F

from tutelage.method import mixed_loss as objective
from tutelage.method.divergences import DIVERGENCES, akl, cross_entropy, forward_kl, forward_kl_top_k, jsd, reverse_kl
from tutelage.method.mixed_loss import mixed_loss
from tutelage.teacher.sources import HiddenTargets, TopKTargets

HALF, QUARTER = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()


def test_forward_kl_of_two_coins():
    # 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4) = 1/2 ln 2 + 1/2 ln 2/3 = 0.14384
    assert forward_kl(QUARTER, HALF).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)


def test_reverse_kl_of_two_coins():
    # 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = -1/4 ln 2 + 3/4 ln 3/2 = 0.13081
    assert reverse_kl(QUARTER, HALF).item() == pytest.approx(-0.25 * math.log(2) + 0.75 * math.log(1.5), abs=1e-6)


def test_reverse_kl_is_forward_kl_with_the_sides_swapped():
    s, t = torch.randn(5, 11), torch.randn(5, 11)
    assert torch.allclose(reverse_kl(s, t), forward_kl(t, s))


def test_jsd_is_symmetric_and_at_most_ln_2():
    s, t = torch.randn(5, 11) * 50, torch.randn(5, 11) * 50
    assert torch.allclose(jsd(s, t), jsd(t, s), atol=1e-6)
    assert jsd(s, t).max() <= math.log(2) + 1e-6


def test_adaptive_kl_weighs_by_where_the_student_is_off():
    # Head {0.6}: gaps 0.3 on it, 0.3 on the tail, so half of each.
    # KL(T||S) = 0.6 ln 2 + 0.1 ln 1/4 = 0.27726, KL(S||T) = 0.3 ln 1/2 + 0.4 ln 4 = 0.34657
    teacher, student = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.3, 0.3, 0.4]]).log()
    assert akl(student, teacher).item() == pytest.approx(0.31192, abs=1e-5)
    # Head {0.4, 0.3}: all gaps on it, so forward KL alone.
    teacher, student = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), torch.tensor([[0.3, 0.4, 0.2, 0.1]]).log()
    assert akl(student, teacher).item() == pytest.approx(forward_kl(student, teacher).item(), abs=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_distributions_have_no_divergence_whatever_the_shift(name):
    logits = torch.randn(4, 9)
    assert DIVERGENCES[name](logits + 3.0, logits).abs().max() < 1e-6  # softmax ignores a shift
    assert DIVERGENCES[name](torch.randn(4, 9), logits).min() > 0


def test_low_precision_logits_are_compared_in_float32():
    logits = torch.randn(64, 5000)
    near = logits + 0.01 * torch.randn_like(logits)
    kl = forward_kl(near.bfloat16(), logits.bfloat16())
    assert kl.dtype == torch.float32 and kl.min() >= -1e-6


def test_top_k_with_all_entries_is_the_whole_and_with_few_a_lower_bound_that_sees_the_tail():
    student, teacher = torch.randn(6, 20, dtype=torch.float64).float(), torch.randn(6, 20)
    whole = forward_kl(student, teacher)
    log_probs, ids = teacher.log_softmax(-1).topk(19)
    assert torch.allclose(forward_kl_top_k(student, ids, log_probs), whole, atol=1e-4)
    log_probs, ids = teacher.log_softmax(-1).topk(3)
    few = forward_kl_top_k(student, ids, log_probs)
    assert torch.all(few <= whole + 1e-6)
    assert forward_kl_top_k(teacher, ids, log_probs).abs().max() < 1e-5
    wrong_tail = teacher.clone()  # right ratios within the top 3, but much of their mass moved out
    wrong_tail.scatter_(1, ids, teacher.gather(1, ids) - 4)
    assert forward_kl_top_k(wrong_tail, ids, log_probs).min() > 0.1


# --- the mixed loss ---


class Identity:
    """A head whose hidden states are the logits."""

    def __call__(self, hidden):
        return hidden


def batch(seed=0, vocabulary=13):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    positions = int(mask.sum())
    student = torch.randn(positions, vocabulary, generator=generator, requires_grad=True)
    teacher = torch.randn(positions, vocabulary, generator=generator)
    gold = torch.randint(vocabulary, (positions,), generator=generator)
    return student, teacher, gold, mask


def by_definition(student, teacher, gold, mask, weight):
    """The formula of the mixed loss, example by example."""
    total, place = 0.0, 0
    for row, w in zip(mask, weight, strict=True):
        n = int(row.sum())
        s, t, g = student[place : place + n], teacher[place : place + n], gold[place : place + n]
        kl = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean()
        total = total + w * kl + (1 - w) * F.cross_entropy(s, g)
        place += n
    return total / len(mask)


@pytest.mark.parametrize("chunk", [objective.CHUNK_ELEMENTS, 2 * 13])
def test_mixed_loss_and_its_gradient_follow_the_definition_in_one_piece_and_in_chunks(monkeypatch, chunk):
    monkeypatch.setattr(objective, "CHUNK_ELEMENTS", chunk)
    student, teacher, gold, mask = batch()
    weight = torch.tensor([0.2, 0.9, 0.5])
    losses = mixed_loss(student, gold, mask, weight, HiddenTargets(teacher, Identity()))
    expected = by_definition(student, teacher, gold, mask, weight)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = torch.autograd.grad(losses.total, student)[0], torch.autograd.grad(expected, student)[0]
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_weight_0_is_plain_fine_tuning():
    student, teacher, gold, mask = batch()
    zero = torch.zeros(3)
    with_teacher = mixed_loss(student, gold, mask, zero, HiddenTargets(teacher, Identity())).total
    alone = mixed_loss(student, gold, mask, zero, None).total
    assert torch.equal(with_teacher, alone)
    by_sample = [F.cross_entropy(s, g) for s, g in zip(student.split([1, 3, 2]), gold.split([1, 3, 2]), strict=True)]
    assert alone.item() == pytest.approx(torch.stack(by_sample).mean().item(), rel=1e-6)


def test_weight_1_is_plain_distillation_and_gold_has_no_say():
    student, teacher, gold, mask = batch()
    one, targets = torch.ones(3), HiddenTargets(teacher, Identity())
    first = mixed_loss(student, gold, mask, one, targets).total
    assert torch.equal(first, mixed_loss(student, (gold + 1) % 13, mask, one, targets).total)
    by_sample = [
        forward_kl(s, t).mean() for s, t in zip(student.split([1, 3, 2]), teacher.split([1, 3, 2]), strict=True)
    ]
    assert first.item() == pytest.approx(torch.stack(by_sample).mean().item(), rel=1e-6)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it():
    student, _, gold, mask = batch()
    total = mixed_loss(student, gold, mask, torch.ones(3), HiddenTargets(student.detach(), Identity())).total
    assert abs(total.item()) < 1e-7
    assert torch.autograd.grad(total, student)[0].abs().max() < 1e-7


def test_temperature_squared_is_applied_once():
    student, teacher, gold, mask = batch()
    targets = HiddenTargets(teacher, Identity())
    loss = mixed_loss(student, gold, mask, torch.ones(3), targets, temperature=2.0).total
    by_sample = [
        forward_kl(s, t, 2.0).mean() for s, t in zip(student.split([1, 3, 2]), teacher.split([1, 3, 2]), strict=True)
    ]
    assert loss.item() == pytest.approx(4 * torch.stack(by_sample).mean().item(), rel=1e-6)


def test_top_k_targets_serve_forward_kl_only():
    student, teacher, gold, mask = batch()
    log_probs, ids = teacher.log_softmax(-1).topk(5)
    weight, targets = torch.ones(3), TopKTargets(ids, log_probs)
    assert mixed_loss(student, gold, mask, weight, targets).total > 0
    with pytest.raises(ValueError, match="top-k"):
        mixed_loss(student, gold, mask, weight, targets, divergence="reverse_kl")


def test_cross_entropy_is_per_position():
    logits = torch.tensor([[0.0, math.log(3)]])
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(math.log(4))
