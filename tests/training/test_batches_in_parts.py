"""`max_tokens_per_batch`: a batch that is read in parts has the rows, the losses and the gradient of the whole one."""

import numpy as np
import pytest
import torch

from helpers.rows import PAD, VOCABULARY, cached, teachers
from helpers.tiny import tiny_model
from tutelage.data.collate import Collator, parts_of
from tutelage.data.encode import EncodedRow
from tutelage.method.taid import Interpolation
from tutelage.training.callbacks import Interpolate
from tutelage.training.trainer import DistillTrainer, Guidance, training_arguments

LENGTHS = [(3, 2), (40, 1), (9, 5), (17, 3), (4, 4), (25, 2), (6, 1), (12, 6), (33, 3), (5, 2), (8, 8)]
"""Tokens of prompt and answer."""


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    words = [[random.integers(97, 123, length).tolist() for length in pair] for pair in LENGTHS]
    return [EncodedRow(f"r{n}", "train", prompt, [*answer, 256]) for n, (prompt, answer) in enumerate(words)]


@pytest.mark.parametrize("limit", [1, 20, 64, 100, 10_000])
def test_every_row_is_in_one_part_which_is_what_its_rows_alone_would_be(rows, limit):
    items = [(n if n % 4 else ~n, row) for n, row in enumerate(rows)]  # every fourth one stands in
    parts = parts_of(Collator(PAD, max_tokens=limit)(items))
    assert sorted(row for part in parts for row in part["row"].tolist()) == list(range(len(rows)))
    by_row = {index if index >= 0 else ~index: (index, row) for index, row in items}
    for part in parts:
        assert part["input_ids"].numel() <= limit or len(part["input_ids"]) == 1
        expected = Collator(PAD)([by_row[row] for row in part["row"].tolist()])
        assert part.keys() == expected.keys()
        assert all(torch.equal(part[name], expected[name]) for name in part)
    widths = [part["input_ids"].shape[1] for part in parts]
    assert widths == sorted(widths, reverse=True)
    if limit == 10_000:
        assert len(parts) == 1


def trained(folder, rows, source, *, limit, fused=True, taid=False, **given):
    """Weights after six steps, and what was logged at each."""
    interpolate = Interpolate(Interpolation(), steps=6) if taid else None
    weight = np.linspace(0, 1, len(rows))
    guidance = Guidance(source, "checkpoint-2", weight, interpolate=interpolate) if source else None
    given = {"per_device_train_batch_size": 6, "learning_rate": 1e-2, "use_cpu": True, "logging_steps": 1} | given
    args = training_arguments(folder, given | {"max_tokens_per_batch": limit}, seed=0, epochs=3)
    model = tiny_model(5, tie_word_embeddings=True)
    trainer = DistillTrainer(model, args, rows, vocabulary=VOCABULARY, pad_id=PAD, guidance=guidance, fused=fused)
    trainer.train()
    logged = [
        [entry[key] for key in ("loss", "grad_norm", "ce", "kd") if key in entry]
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    state = [interpolate.interpolation.share] if interpolate else []
    return {name: value.detach() for name, value in model.named_parameters()}, logged, state


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("gold alone", {}),
        ("plain loss", {"fused": False}),
        ("interpolated target", {"taid": True}),
        ("accumulation", {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}),
        ("rows of like length", {"train_sampling_strategy": "group_by_length"}),
    ],
)
def test_losses_gradients_and_weights_are_those_of_whole_batches(tmp_path, rows, case, settings):
    source = None if case == "gold alone" else cached(tmp_path / "cache", teachers(), rows)
    whole, expected, share = trained(tmp_path / "whole", rows, source, limit=None, **settings)
    found, logged, same_share = trained(tmp_path / "parts", rows, source, limit=50, **settings)
    assert len(expected) == 6
    np.testing.assert_allclose(logged, expected, rtol=2e-5, atol=1e-6)
    assert same_share == pytest.approx(share, rel=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_the_model_reads_parts(tmp_path, rows, monkeypatch):
    seen, plain = [], DistillTrainer.compute_loss

    def noted(self, model, inputs, *args, **more):
        seen.append(inputs["input_ids"].shape)
        return plain(self, model, inputs, *args, **more)

    monkeypatch.setattr(DistillTrainer, "compute_loss", noted)
    trained(tmp_path, rows, None, limit=50)
    assert sum(count for count, _ in seen) == 3 * len(rows)
    assert all(count * width <= 50 for count, width in seen)
    assert any(count > 1 for count, _ in seen)
