"""Mixtures of teachers: their probabilities by hand, their gradients, their shares, and trainings that follow them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from helpers.project import Command, make_project
from helpers.rows import PAD, VOCABULARY, cached, encoded, teachers
from tutelage.data.collate import IGNORED, Collator
from tutelage.data.token_store import answer_lengths
from tutelage.method.mixed_loss import mixed_loss
from tutelage.models.evaluation import read_losses
from tutelage.teacher.sources import LiveTeacher, TopKTargets
from tutelage.training.mixtures import Ensemble, Gated, Gliding, Mixture, mixture_shares, row_means
from tutelage.utils.files import read_jsonl


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


class Fixed:
    def __init__(self, probabilities):
        self.table = torch.tensor(probabilities).log()

    def logits(self, start, stop):
        return self.table[start:stop] + 3.0  # logits need not be normalised

    def top_k(self, start, stop):
        return None


ONE, OTHER = Fixed([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]), Fixed([[0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])


def test_a_mixture_is_one_of_probabilities():
    found = Mixture([ONE, OTHER], [0.25, 0.75]).logits(0, 2).exp()
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.1375, 0.6625], [0.35, 0.175, 0.475]]))
    by_row = Mixture([ONE, OTHER], [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
    torch.testing.assert_close(by_row.logits(0, 1).exp(), ONE.table[:1].exp())
    torch.testing.assert_close(by_row.logits(1, 2).exp(), OTHER.table[1:].exp())


def test_following_a_mixture_is_following_its_parts_by_their_shares():
    """grad KL(sum_j a_j p_j || S) = sum_j a_j grad KL(p_j || S)."""
    mask, gold, weight = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 2]), torch.ones(2)

    def gradient(targets):
        student = torch.tensor([[0.1, 0.7, -0.3], [1.0, 0.0, 0.5]], requires_grad=True)
        mixed_loss(student, gold, mask, weight, targets).total.backward()
        return student.grad

    parts = 0.3 * gradient(ONE) + 0.7 * gradient(OTHER)
    torch.testing.assert_close(gradient(Mixture([ONE, OTHER], [0.3, 0.7])), parts)


def test_a_mixture_of_top_k_entries_is_refused():
    top = TopKTargets(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="full distributions"):
        Mixture([ONE, top], [0.5, 0.5]).top_k(0, 1)


def test_shares_minimise_the_loss_of_the_mixture():
    """Two models, each right on half of the rows: the best mixture is half of each, and unequal halves move it."""
    right, wrong = -math.log(0.8), -math.log(0.2)
    tokens = {"a": np.array([right, wrong]), "b": np.array([wrong, right])}
    assert mixture_shares(tokens, np.array([1, 1])) == pytest.approx({"a": 0.5, "b": 0.5})
    # Three rows for a, one for b: d/dx of 3 log(0.2 + 0.6 x) + log(0.8 - 0.6 x) is 0 where 0.8 - 0.6 x = (0.2 + 0.6 x)
    # / 3
    three = {"a": np.array([right] * 3 + [wrong]), "b": np.array([wrong] * 3 + [right])}
    assert mixture_shares(three, np.ones(4, int))["a"] == pytest.approx((0.8 - 0.2 / 3) / 0.8, abs=1e-4)
    # A row counts once, however many tokens it has.
    long = {"a": np.array([right] * 5 + [wrong]), "b": np.array([wrong] * 5 + [right])}
    assert mixture_shares(long, np.array([5, 1]))["a"] == pytest.approx(0.5, abs=1e-6)
    better = {"a": np.array([0.1, 0.2]), "b": np.array([2.0, 3.0])}
    assert mixture_shares(better, np.array([1, 1]))["a"] == pytest.approx(1.0, abs=1e-6)


def test_an_ensemble_from_the_cache_is_the_mixture_of_live_models(tmp_path):
    rows, models = encoded(), teachers()
    shares = {"checkpoint-1": 0.2, "checkpoint-3": 0.8}
    ensemble = Ensemble(cached(tmp_path, models, rows), shares, answer_lengths(rows))
    batch = Collator(PAD)(list(enumerate(rows)))
    count = int((batch["targets"] != IGNORED).sum())
    live = LiveTeacher(list(models), models.__getitem__, rows, VOCABULARY, PAD)
    by_hand = sum(share * live.targets(name, batch).logits(0, count).softmax(-1) for name, share in shares.items())
    found = ensemble.targets("ensemble", batch).logits(0, count).exp()
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-7)
    gold = batch["targets"][batch["targets"] != IGNORED]
    losses = -by_hand.gather(1, gold[:, None])[:, 0].log()
    assert ensemble.nll("ensemble") == pytest.approx(row_means(losses.double().numpy(), answer_lengths(rows)), rel=1e-4)
    assert ensemble.nll("checkpoint-2").tolist() == ensemble.source.nll("checkpoint-2").tolist()
    ensemble.ahead("ensemble")([0, 1])


def test_a_gate_takes_each_row_from_who_is_better(tmp_path):
    rows, models = encoded(), teachers()
    source = cached(tmp_path / "t", models, rows)
    anchor = cached(tmp_path / "a", {"anchor": models["checkpoint-1"]}, rows)
    weight = np.array([1.0, 0.0, 1.0, 0.0, 0.5, 0.25])
    batch = Collator(PAD)([(place, rows[place]) for place in (3, 0, 5)])
    counts = (batch["targets"] != IGNORED).sum(1).tolist()
    found = Gated(source, anchor, weight).targets("checkpoint-3", batch).logits(0, sum(counts)).exp().split(counts)
    teacher = source.targets("checkpoint-3", batch).logits(0, sum(counts)).softmax(-1).split(counts)
    student = anchor.targets("anchor", batch).logits(0, sum(counts)).softmax(-1).split(counts)
    for ours, theirs, mine, w in zip(found, teacher, student, (0.0, 1.0, 0.25), strict=True):
        torch.testing.assert_close(ours, w * theirs + (1 - w) * mine, rtol=1e-4, atol=1e-7)


def test_a_gliding_target_moves_from_one_checkpoint_to_the_next(tmp_path):
    rows, models = encoded(), teachers()
    source = cached(tmp_path, models, rows)
    gliding = Gliding(source, "checkpoint-2")
    batch = Collator(PAD)(list(enumerate(rows)))
    count = int((batch["targets"] != IGNORED).sum())

    class State:
        global_step, max_steps = 0, 5

    def seen(step):
        State.global_step = step
        gliding.on_step_begin(None, State, None)
        return gliding.targets("checkpoint-1", batch).logits(0, count).exp()

    first, second = (source.targets(f"checkpoint-{k}", batch).logits(0, count).softmax(-1) for k in (1, 2))
    torch.testing.assert_close(seen(0), first, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(seen(1), 0.75 * first + 0.25 * second, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(seen(4), second, rtol=1e-4, atol=1e-7)


def test_losses_of_tokens_lie_row_by_row_in_store_and_reading(tmp_path):
    rows, models = encoded(), teachers()
    source, lengths = cached(tmp_path, models, rows), answer_lengths(rows)
    read = read_losses(models["checkpoint-2"], rows, vocabulary=VOCABULARY, pad_id=PAD, batch_size=4)
    assert len(read.tokens) == lengths.sum()
    assert source.token_nll("checkpoint-2") == pytest.approx(read.tokens, rel=1e-5)
    assert row_means(read.tokens, lengths) == pytest.approx(read.rows, rel=1e-6)


def test_methods_that_mix_teachers_go_the_whole_road(tmp_path, command):
    methods = "ens,cd-mix,cd+schedule.glide=true"
    assert command("compare", make_project(tmp_path), "--methods", methods, "--seeds", 1, "--format", "csv") == 0, (
        command.err
    )
    assert all(name in command.out for name in methods.split(",")) and "failed" not in command.err
    run = tmp_path / "run"
    tokens = {p.stem: load_file(str(p))["tokens"] for p in (run / "teach/validation").glob("*.safetensors")}
    assert len(tokens) == 2
    stages = json.loads((run / "distill/ens/seed-0/stages.json").read_text())
    assert {stage["chosen"] for stage in stages} == {"ensemble"}
    weights = list(read_jsonl(run / "distill/cd-mix/seed-0/weights.jsonl"))
    crossed = {line["id"]: line for line in read_jsonl(run / "cross_fit/sample_loss.jsonl")}
    for line in weights:
        mine, theirs = crossed[line["id"]]["anchor"], crossed[line["id"]]["teacher"][line["checkpoint"]]
        assert line["weight"] == pytest.approx(mine / (mine + theirs))
