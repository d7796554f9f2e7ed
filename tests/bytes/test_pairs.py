"""A teacher and a student with different tokenizers: cached = live, fused = plain, 0 for equal models, one unit."""

import numpy as np
import pytest
import torch

from helpers.fused import assert_fused_equals_plain
from helpers.rows import PAD, TEXTS, VOCABULARY, cached, encoded, teachers
from helpers.tiny import byte_tokenizer, tiny_model
from helpers.tokenizers_made import bpe_tokenizer, unigram_tokenizer
from tutelage.bytes import masses
from tutelage.bytes.loss import ByteDivergence, ByteTargets
from tutelage.bytes.reader import ByteReader, byte_reader
from tutelage.data.collate import IGNORED, Collator, vocabulary_of
from tutelage.data.encode import Encoder
from tutelage.method.divergences import DIVERGENCES
from tutelage.models.evaluation import sample_losses
from tutelage.models.heads import answer_logits
from tutelage.records import Example
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.sources import CachedTeacher, LiveTeacher
from tutelage.training.fused_loss import LossInputs
from tutelage.training.probe import Probe
from tutelage.training.trainer import DistillTrainer, Guidance, training_arguments

NAME = "checkpoint-1"


class Side:
    """A tiny model with a tokenizer, its rows and its reader."""

    def __init__(self, tokenizer, seed, role, **shape):
        examples = [Example(f"r{n}", "train", prompt, answer, [answer]) for n, (prompt, answer) in enumerate(TEXTS)]
        self.rows = [Encoder(tokenizer, " ", 128).row(example) for example in examples]
        self.vocabulary, self.pad = vocabulary_of(tokenizer), tokenizer.pad_token_id
        texts = ((" " + example.answer, row.answer) for example, row in zip(examples, self.rows, strict=True))
        self.reader = byte_reader(tokenizer, texts, role)
        self.model = tiny_model(seed, vocab_size=self.vocabulary + 2, **shape)

    def stored(self, folder, student, dtype=torch.float32):
        """The model as a cached teacher of a student."""
        settings = {"vocabulary": self.vocabulary, "pad_id": self.pad, "batch_size": 4, "shard_rows": 4}
        CacheBuilder(folder, self.rows, dtype=dtype, reader=self.reader, **settings).build(NAME, self.model, {})
        return CachedTeacher(folder, [NAME], student.rows, student=student.reader, own_rows=self.rows)


@pytest.fixture(scope="module")
def teacher():
    return Side(unigram_tokenizer(adds_space=True), 1, "teacher", hidden=32)


@pytest.fixture(scope="module")
def student():
    return Side(bpe_tokenizer(), 2, "student")


def inputs_of(source, student, order=(3, 0, 5, 1), divergence="forward_kl", temperature=1.0, share=1.0):
    batch = Collator(student.pad)([(index, student.rows[index]) for index in order])
    mask = batch["targets"] != IGNORED
    weight = torch.tensor([0.0, 0.3, 0.7, 1.0])
    settings = (student.vocabulary, divergence, temperature, None, share)
    return batch, LossInputs(batch["targets"][mask], mask, weight, source.targets(NAME, batch), *settings)


def loss_and_gradient(source, student):
    batch, inputs = inputs_of(source, student)
    logits = answer_logits(student.model, batch)[inputs.mask][:, : student.vocabulary]
    loss = inputs.plain(logits).total
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.model.parameters()))])


def test_cached_equals_live_in_loss_and_gradient(teacher, student, tmp_path):
    live = LiveTeacher(
        [NAME], lambda _: teacher.model, teacher.rows, teacher.vocabulary, teacher.pad, teacher.reader, student.reader
    )
    (loss, gradient), stored = loss_and_gradient(live, student), teacher.stored(tmp_path / "a", student)
    cached_loss, cached_gradient = loss_and_gradient(stored, student)
    assert cached_loss == pytest.approx(loss, rel=1e-6)
    assert (cached_gradient - gradient).norm() <= 1e-5 * gradient.norm()
    half = teacher.stored(tmp_path / "b", student, torch.bfloat16)
    assert half.targets(NAME, inputs_of(half, student)[0]).log_probs.dtype == torch.float16
    half_loss, half_gradient = loss_and_gradient(half, student)
    assert half_loss == pytest.approx(loss, rel=1e-3)
    assert (half_gradient - gradient).norm() <= 2e-3 * gradient.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("live", [False, True])
def test_a_student_is_trained_in_bfloat16(teacher, tmp_path, dtype, live):
    """The stored numbers are float16, which autocast on a CPU does not take."""
    student = Side(bpe_tokenizer(), 2, "student")
    readers = teacher.reader, student.reader
    source = teacher.stored(tmp_path / "cache", student, dtype)
    if live:
        model = teacher.model.to(dtype)
        source = LiveTeacher([NAME], lambda _: model, teacher.rows, teacher.vocabulary, teacher.pad, *readers)
    given = {"per_device_train_batch_size": 3, "learning_rate": 1e-2, "use_cpu": True, "bf16": True, "logging_steps": 1}
    args = training_arguments(tmp_path / "run", given, seed=0, epochs=4)
    guidance = Guidance(source, NAME, np.ones(len(student.rows)))
    trainer = DistillTrainer(
        student.model, args, student.rows, vocabulary=student.vocabulary, pad_id=student.pad, guidance=guidance
    )
    trainer.train()
    teacher.model.float()
    losses = [entry["kd"] for entry in trainer.state.log_history if "kd" in entry]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("positions", [1000, 4, 1])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fused_equals_plain(teacher, student, tmp_path, monkeypatch, divergence, positions):
    monkeypatch.setattr(masses, "CHUNK_BYTES", 4 * student.vocabulary * positions)
    source = teacher.stored(tmp_path, student)
    for temperature, share in ((1.0, 1.0), (2.0, 0.6)):
        batch, inputs = inputs_of(source, student, divergence=divergence, temperature=temperature, share=share)
        assert_fused_equals_plain(student.model, batch, inputs)


def test_a_head_with_a_cap_takes_the_plain_form(teacher, tmp_path):
    capped = Side(bpe_tokenizer(), 2, "student", arch="gemma2")
    assert_fused_equals_plain(capped.model, *inputs_of(teacher.stored(tmp_path, capped), capped), fuses=False)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_that_equals_its_teacher_is_at_0(teacher, tmp_path, divergence):
    batch, inputs = inputs_of(teacher.stored(tmp_path, teacher), teacher, divergence=divergence, temperature=3.0)
    logits = answer_logits(teacher.model, batch)[inputs.mask][:, : teacher.vocabulary]
    assert inputs.plain(logits).divergence.abs().max() < 1e-5


def test_an_example_s_divergence_is_its_sum_over_bytes_per_token_of_the_student():
    """Two bytes and the end, each ln 2 from a certain teacher, in one token and its end: 3 ln 2 / 2."""
    reader = ByteReader(byte_reader(byte_tokenizer(), [], "student").vocabulary)
    lookups = reader.lookups([[97, 98, 256]])
    certain = torch.full((3, 257), -torch.inf)
    certain[range(3), [97, 98, 256]] = 0.0
    half = torch.full((3, 257), -torch.inf)
    half[range(3), [97, 98, 256]] = half[:, 99] = -np.log(2)
    lowest = [torch.where(values.isinf(), -1e4, values) for values in (certain, half)]
    mask = torch.tensor([[False, True, True]])
    found = ByteDivergence(ByteTargets(lowest[0], lookups), mask)(lowest[1])
    assert found.tolist() == pytest.approx([3 * np.log(2) / 2], rel=1e-6)


def test_losses_of_both_models_count_the_student_s_tokens(teacher, student, tmp_path):
    settings = {"pad_id": teacher.pad, "vocabulary": teacher.vocabulary, "batch_size": 4}
    own = sample_losses(teacher.model, teacher.rows, **settings)
    lengths = [[len(row.answer) for row in side.rows] for side in (teacher, student)]
    expected = own * np.array(lengths[0]) / np.array(lengths[1])
    assert teacher.stored(tmp_path, student).nll(NAME) == pytest.approx(expected, rel=1e-6)
    assert lengths[0] != lengths[1]


def test_with_one_tokenizer_losses_are_those_of_states_to_the_bit_and_distances_near(tmp_path):
    rows, models = encoded(), teachers(count=2)
    states = cached(tmp_path / "states", models, rows)
    reader = byte_reader(byte_tokenizer(), [], "teacher")
    settings = {"vocabulary": VOCABULARY, "pad_id": PAD, "batch_size": 4, "shard_rows": 4}
    builder = CacheBuilder(tmp_path / "bytes", rows, dtype=torch.float32, reader=reader, **settings)
    for name, model in models.items():
        builder.build(name, model, {})
    over_bytes = CachedTeacher(tmp_path / "bytes", list(models), rows, student=reader)
    distances = []
    for source in (states, over_bytes):
        probe = Probe(list(enumerate(rows)), source, "checkpoint-2", VOCABULARY, PAD)
        distances.append([(c.kl_best, c.kl_student) for c in probe.compare(tiny_model(9))])
    for name in models:
        assert np.array_equal(states.nll(name), over_bytes.nll(name))
    # a token of this tokenizer is a byte: both alphabets differ by the padding token alone
    assert distances[1] == [pytest.approx(pair, rel=0.05, abs=1e-6) for pair in distances[0]]


def test_a_row_with_other_bytes_is_refused(teacher, student, tmp_path):
    source = teacher.stored(tmp_path, student)
    batch = Collator(student.pad)([(0, student.rows[1])])
    with pytest.raises(Exception, match="other answers"):
        source.targets(NAME, batch)
