"""A training run with all accelerations gives the same losses as the plain one; prefetched data are what is read."""

import os
import pickle

import numpy as np
import pytest
import torch

from helpers.rows import PAD, VOCABULARY, cached, encoded, teachers
from helpers.tiny import tiny_model
from tutelage.errors import ConfigError
from tutelage.models.evaluation import sample_losses
from tutelage.teacher.sources import LiveTeacher
from tutelage.training.trainer import DistillTrainer, Guidance, check_arguments, training_arguments

CHECKPOINT = "checkpoint-2"


def trained(folder, source, rows, *, fused=True, divergence="forward_kl", **given):
    """The student after three epochs of three batches."""
    student = tiny_model(5, tie_word_embeddings=True)
    defaults = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True}
    args = training_arguments(folder, {**defaults, **given}, seed=0, epochs=3)
    guidance = Guidance(source, CHECKPOINT, np.linspace(0, 1, len(rows)), divergence)
    DistillTrainer(student, args, rows, vocabulary=VOCABULARY, pad_id=PAD, guidance=guidance, fused=fused).train()
    return student


def losses(model, rows):
    return sample_losses(model, rows, vocabulary=VOCABULARY, pad_id=PAD, batch_size=4)


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_a_training_run_ends_at_the_same_losses_with_all_accelerations_off_and_on(tmp_path, divergence):
    rows, models = encoded(12), teachers()
    live = LiveTeacher(list(models), models.get, rows, VOCABULARY, PAD)
    plain = losses(trained(tmp_path / "plain", live, rows, fused=False, divergence=divergence), rows)
    assert np.abs(plain - losses(tiny_model(5, tie_word_embeddings=True), rows)).max() > 0.1  # it has learned something
    store = cached(tmp_path / "cache", models, rows)
    fast = losses(trained(tmp_path / "fast", store, rows, divergence=divergence), rows)
    np.testing.assert_allclose(fast, plain, rtol=1e-5)
    checkpointed = trained(tmp_path / "less memory", store, rows, divergence=divergence, activation_checkpointing=True)
    np.testing.assert_allclose(losses(checkpointed, rows), plain, rtol=1e-5)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch is older than 2.7")
def test_a_compiled_student_ends_at_the_same_losses(tmp_path):
    """With the backend that only traces: what a compiler then makes of it is torch's."""
    rows, models = encoded(12), teachers()
    live = LiveTeacher(list(models), models.get, rows, VOCABULARY, PAD)
    plain = losses(trained(tmp_path / "plain", live, rows, fused=False), rows)
    compiled = trained(tmp_path / "compiled", live, rows, torch_compile=True, torch_compile_backend="aot_eager")
    np.testing.assert_allclose(losses(compiled, rows), plain, rtol=1e-5)


def test_a_torch_that_transformers_cannot_compile_with_is_refused_before_training(monkeypatch):
    check_arguments({"torch_compile": False})
    monkeypatch.delattr(torch.compiler, "is_exporting", raising=False)
    with pytest.raises(ConfigError, match=r"needs torch 2\.7 or newer"):
        check_arguments({"torch_compile": True})


def test_the_next_batch_is_fetched_before_the_present_one_is_computed(tmp_path, monkeypatch):
    rows, models, events = encoded(12), teachers(), []
    store = cached(tmp_path / "cache", models, rows)
    monkeypatch.setattr(store, "ahead", lambda _: lambda places: events.append(("ahead", set(places))))
    targets = store.targets
    monkeypatch.setattr(
        store, "targets", lambda name, batch: events.append(("now", set(batch["row"].tolist()))) or targets(name, batch)
    )
    trained(tmp_path / "run", store, rows)
    first, second, now = events[:3]
    assert (first[0], second[0]) == ("ahead", "ahead")
    assert now == ("now", first[1])
    assert [rows for kind, rows in events if kind == "ahead"] == [rows for kind, rows in events if kind == "now"]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told")
def test_what_is_fetched_is_what_is_read(tmp_path, monkeypatch):
    store, asked, read = cached(tmp_path, teachers(count=1), encoded(12)), [], []
    preadv = os.preadv
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, length, how: asked.append((offset, length)))
    monkeypatch.setattr(
        os,
        "preadv",
        lambda file, buffers, offset: read.append((offset, len(buffers[0]))) or preadv(file, buffers, offset),
    )
    hidden = pickle.loads(pickle.dumps(store._stores["checkpoint-1"]))  # as it is sent to a data-loading process
    hidden.will_read([7, 0, 11])
    expected = hidden.positions("states", [7, 0, 11])
    assert asked == read and len(asked) == 3
    assert torch.equal(expected, store._stores["checkpoint-1"].positions("states", [7, 0, 11]))
