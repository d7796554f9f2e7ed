"""Invariants of the core: padding, accumulation, cached = live, choices, weights, killed = never killed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.rows import PAD, VOCABULARY, cached, encoded, teachers
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.data.collate import IGNORED, Collator
from tutelage.data.encode import EncodedRow
from tutelage.errors import DamagedArtifactError, StaleArtifactError
from tutelage.method.mixed_loss import mixed_loss
from tutelage.method.weighting import AdaptiveWeighting, adaptive_weight
from tutelage.models.evaluation import loss_records, sample_losses
from tutelage.models.heads import answer_logits, answer_states, head_error, head_of
from tutelage.models.load import load_model
from tutelage.models.save import save_student
from tutelage.recipe.schema import TRAINER_DEFAULTS, Model
from tutelage.run.manifest import Work
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.sources import CachedTeacher, LiveTeacher
from tutelage.training import callbacks, distillation
from tutelage.training.distillation import Distillation, restart_only
from tutelage.training.plan import DistillationPlan, StudentSetup
from tutelage.training.stage_records import Validation, ValidationRow
from tutelage.training.trainer import DistillTrainer, Guidance, training_arguments
from tutelage.utils.files import read_jsonl

ARCHITECTURES = ("llama", "qwen2", "gpt2", "gemma2", "granite", "cohere")


def plain_answer_logits(model, row: EncodedRow) -> torch.Tensor:
    """[answer tokens, V] of one unpadded row: all logits, shifted by hand."""
    ids = torch.tensor([row.prompt + row.answer])
    with torch.no_grad():
        logits = model(ids).logits[0]
    return logits[len(row.prompt) - 1 : -1]


def test_a_batch_by_hand():
    rows = [EncodedRow("a", "train", [1, 2, 3], [7, 8, 9]), EncodedRow("b", "train", [4], [5, 6])]
    batch = Collator(0)(list(enumerate(rows)))
    assert batch["input_ids"].tolist() == [
        [1, 2, 3, 7, 8],
        [0, 0, 0, 4, 5],
    ]  # the last answer token is predicted, never read
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert batch["targets"].tolist() == [[7, 8, 9], [IGNORED, 5, 6]]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_left_padded_answer_logits_equal_unpadded_full_logits(arch):
    model, rows = tiny_model(0, arch), encoded()
    batch = Collator(PAD)(list(enumerate(rows)))
    with torch.no_grad():
        ours = answer_logits(model, batch)[batch["targets"] != IGNORED]
    theirs = torch.cat([plain_answer_logits(model, row) for row in rows])
    assert torch.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_head_of_hidden_states_is_the_model(arch):
    model = tiny_model(0, arch)
    batch = Collator(PAD)(list(enumerate(encoded())))
    hidden, logits = answer_states(model, batch)
    assert torch.allclose(head_of(model, VOCABULARY)(hidden), logits, atol=1e-5)
    assert head_error(head_of(model, VOCABULARY), hidden, logits) < 1e-6


def test_sample_losses_are_token_means_in_the_order_of_the_rows():
    model, rows = tiny_model(0), encoded()
    losses = sample_losses(model, rows, vocabulary=VOCABULARY, pad_id=PAD, batch_size=4)
    expected = [F.cross_entropy(plain_answer_logits(model, row), torch.tensor(row.answer)).item() for row in rows]
    assert losses == pytest.approx(expected, rel=1e-5)
    records = list(loss_records(rows, losses))
    assert [(record.id, record.tokens) for record in records] == [(row.id, len(row.answer)) for row in rows]


def gradient_of_one_step(folder: Path, batch_size: int, accumulation: int, guidance=None) -> torch.Tensor:
    """Weights after one SGD step at learning rate 1 minus those before: the negative gradient."""
    model = tiny_model(0)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    given = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "max_steps": 1,
    }
    args = training_arguments(folder, given, seed=0)
    DistillTrainer(model, args, encoded(8), vocabulary=VOCABULARY, pad_id=PAD, guidance=guidance).train()
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


def test_bfloat16_trains_without_a_gpu(tmp_path):
    """The default of a recipe without `use_cpu`, on a CPU that is fast in bfloat16."""
    losses = []
    for bf16 in (True, False):
        args = training_arguments(tmp_path / str(bf16), {"bf16": bf16, "max_steps": 1, "logging_steps": 1}, seed=0)
        trainer = DistillTrainer(tiny_model(0), args, encoded(8), vocabulary=VOCABULARY, pad_id=PAD)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_accumulation_does_not_change_the_gradient(tmp_path):
    source = cached(tmp_path / "cache", teachers(), encoded(8))
    weight = np.linspace(0, 1, 8)
    guidance = Guidance(source, "checkpoint-2", weight)
    whole = gradient_of_one_step(tmp_path / "a", 8, 1, guidance)
    for batch_size, accumulation in ((2, 4), (1, 8)):
        pieces = gradient_of_one_step(tmp_path / f"{batch_size}", batch_size, accumulation, guidance)
        assert torch.allclose(whole, pieces, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cached_equals_live_in_loss_and_gradient(tmp_path, arch):
    rows, models = encoded(), teachers(arch)
    live = LiveTeacher(list(models), models.__getitem__, rows, VOCABULARY, PAD)
    stored = cached(tmp_path, models, rows)
    batch = Collator(PAD)([(place, rows[place]) for place in (3, 0, 5, 1)])
    mask, student = batch["targets"] != IGNORED, tiny_model(9)
    for name in models:
        results = []
        for source in (live, stored):
            logits = answer_logits(student, batch)[mask]
            loss = mixed_loss(
                logits, batch["targets"][mask], mask, torch.full((4,), 0.7), source.targets(name, batch)
            ).total
            results.append((loss.item(), torch.autograd.grad(loss, list(student.parameters()))))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
        for one, other in zip(results[0][1], results[1][1], strict=True):
            assert (one - other).norm() <= 1e-5 * one.norm()
        assert live.nll(name) == pytest.approx(stored.nll(name), rel=1e-5)


def test_padded_vocabularies_are_cut_on_both_sides(tmp_path):
    """Embeddings with 40 rows of padding (teacher) and 6 (student), as in Qwen2.5."""
    rows = encoded()
    teacher = tiny_model(1, hidden=32, vocab_size=VOCABULARY + 40)
    stored = cached(tmp_path, {"checkpoint-1": teacher}, rows)
    batch = Collator(PAD)(list(enumerate(rows)))
    mask = batch["targets"] != IGNORED
    student = tiny_model(2, vocab_size=VOCABULARY + 6)
    logits = answer_logits(student, batch)[mask][:, :VOCABULARY]
    targets = stored.targets("checkpoint-1", batch)
    assert targets.logits(0, 3).shape == (3, VOCABULARY)
    assert torch.isfinite(mixed_loss(logits, batch["targets"][mask], mask, torch.ones(6), targets).total)


def test_a_killed_cache_continues_at_its_last_whole_shard(tmp_path):
    rows, models = encoded(10), teachers(count=1)
    whole = cached(tmp_path / "whole", models, rows)
    cached(tmp_path / "killed", models, rows)
    for name in ("store.json", "index.safetensors", "shard-00002.safetensors"):
        (tmp_path / "killed" / "checkpoint-1" / name).unlink()
    (tmp_path / "killed" / "checkpoint-1" / "shard-00002.safetensors.part").write_bytes(b"half")
    first = tmp_path / "killed" / "checkpoint-1" / "shard-00000.safetensors"
    written = first.stat().st_mtime_ns
    builder = CacheBuilder(
        tmp_path / "killed", rows, vocabulary=VOCABULARY, pad_id=PAD, dtype=torch.float32, shard_rows=4
    )
    assert builder.done_before("checkpoint-1") == 8
    again = cached(tmp_path / "killed", models, rows)
    assert first.stat().st_mtime_ns == written
    assert again.nll("checkpoint-1") == pytest.approx(whole.nll("checkpoint-1"))


def test_a_store_is_refused_for_other_rows(tmp_path):
    rows = encoded()
    cached(tmp_path, teachers(count=1), rows)
    changed = [*rows[:3], replace(rows[3], answer=rows[3].answer[1:]), *rows[4:]]
    with pytest.raises(StaleArtifactError, match="train-3"):
        CachedTeacher(tmp_path, ["checkpoint-1"], changed)
    with pytest.raises(StaleArtifactError, match="another order"):
        CachedTeacher(tmp_path, ["checkpoint-1"], rows[::-1])
    with pytest.raises(StaleArtifactError, match="no finished store"):
        CachedTeacher(tmp_path, ["checkpoint-9"], rows)


# --- a whole distillation ---


class Killed(Exception):
    """Simulates a kill between two optimizer steps."""


def make_job(folder: Path, source, rows, *, kill_at: tuple[int, int] | None = None, **plan) -> Distillation:
    student = Path(folder).parent / "student"
    if not student.exists():
        save_student(tiny_model(7), byte_tokenizer(), student)
    section = Model(model_name_or_path=str(student))
    own = {"learning_rate": 5e-3, "per_device_train_batch_size": 2, "use_cpu": True, "logging_steps": 1}
    settings = TRAINER_DEFAULTS | own | {"train_sampling_strategy": "group_by_length"}
    defaults = {
        "num_stages": 3,
        "epochs_per_stage": 1.0,
        "keep": "last",
        "keep_stages": True,
        "trainer": settings,
        "probe_rows": 8,
    }

    def on_step(stage, done, total):
        if kill_at == (stage, done):
            raise Killed

    def validate(model):
        losses = sample_losses(model, rows, vocabulary=VOCABULARY, pad_id=PAD, batch_size=4)
        lines = [ValidationRow(row.id, float(loss), None) for row, loss in zip(rows, losses, strict=True)]
        return Validation(None, float(losses.mean()), lines)

    anchor = np.linspace(0.1, 3.0, len(rows))
    setup = StudentSetup(
        model=section,
        tokenizer=byte_tokenizer(),
        vocabulary=VOCABULARY,
        rows=rows,
        teacher=source,
        best="checkpoint-3",
        weighting=AdaptiveWeighting(anchor, source.nll) if source else None,
        validate=validate,
        on_step=on_step,
    )
    return Distillation(DistillationPlan(**{**defaults, **plan}), folder, setup)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(Model(model_name_or_path=str(folder))).state_dict()


def test_the_weights_on_file_are_those_that_the_trainer_used(tmp_path, monkeypatch):
    """Also where computing them again would give others."""
    rows, models = encoded(12), teachers()
    job = make_job(tmp_path / "run", cached(tmp_path / "cache", models, rows), rows, save_steps=2, kill_at=(2, 3))
    rng, used = np.random.default_rng(0), {}
    weighting = replace(job.setup.weighting, rule=lambda anchor, teacher: rng.random(len(anchor)))
    job.setup.weighting = weighting
    real = distillation.DistillTrainer

    def remembering(*args, guidance, callbacks, **more):
        used[next(c.fixed["stage"] for c in callbacks if hasattr(c, "fixed"))] = guidance.weight
        return real(*args, guidance=guidance, callbacks=callbacks, **more)

    monkeypatch.setattr(distillation, "DistillTrainer", remembering)
    with pytest.raises(Killed):
        job.run()
    again = make_job(tmp_path / "run", job.setup.teacher, rows, save_steps=2)
    again.setup.weighting = weighting
    again.run()
    for stage, weight in used.items():
        lines = [line for line in read_jsonl(tmp_path / "run/weights.jsonl") if line["stage"] == stage]
        assert [line["weight"] for line in lines] == weight.tolist()
    assert set(used) == {1, 2, 3}


def test_choices_equal_a_brute_force_computation_from_the_models(tmp_path):
    rows, models = encoded(12), teachers()
    job = make_job(tmp_path / "run", cached(tmp_path / "cache", models, rows), rows)
    _, records = job.run()
    probe = set(json.loads((tmp_path / "run" / "probe.json").read_text()))
    assert len(probe) == 8
    for record in records:
        student = load_model(Model(model_name_or_path=str(tmp_path / "run" / f"stage-{record['stage']}-start")))
        totals = {}
        for name, teacher in models.items():
            kl_best, kl_student, positions = 0.0, 0.0, 0
            for row in (row for row in rows if row.id in probe):
                best, t, s = (
                    plain_answer_logits(m, row).double().log_softmax(-1)
                    for m in (models["checkpoint-3"], teacher, student)
                )
                kl_best += (best.exp() * (best - t)).sum().item()
                kl_student += (s.exp() * (s - t)).sum().item()
                positions += len(row.answer)
            seen = next(c for c in record["candidates"] if c["checkpoint"] == name)
            assert seen["kl_best"] == pytest.approx(kl_best / positions, abs=1e-5)
            assert seen["kl_student"] == pytest.approx(kl_student / positions, rel=1e-4)
            totals[name] = (kl_best + kl_student) / positions
        assert record["chosen"] == min(totals, key=totals.get)


def test_weights_on_file_follow_the_formula(tmp_path):
    rows, models = encoded(), teachers()
    source = cached(tmp_path / "cache", models, rows)
    job = make_job(tmp_path / "run", source, rows)
    _, records = job.run()
    lines = list(read_jsonl(tmp_path / "run" / "weights.jsonl"))
    assert len(lines) == len(rows) * len(records)
    for line in lines:
        assert line["weight"] == pytest.approx(line["anchor_nll"] / (line["anchor_nll"] + line["teacher_nll"]))
    of_stage_1 = [line["weight"] for line in lines if line["stage"] == 1]
    assert of_stage_1 == pytest.approx(adaptive_weight(job.setup.weighting.anchor, source.nll(records[0]["chosen"])))


@pytest.mark.parametrize("kill_at", [(1, 2), (2, 1), (2, 9), (3, 6)])
def test_killed_and_resumed_equals_never_killed_bit_for_bit(tmp_path, kill_at):
    rows, models = encoded(10), teachers()
    source = cached(tmp_path / "cache", models, rows)
    whole, records = make_job(tmp_path / "whole", source, rows, save_steps=2, epochs_per_stage=2.0).run()
    with pytest.raises(Killed):
        make_job(tmp_path / "killed", source, rows, save_steps=2, epochs_per_stage=2.0, kill_at=kill_at).run()
    resumed, again = make_job(tmp_path / "killed", source, rows, save_steps=2, epochs_per_stage=2.0).run()
    assert [r["chosen"] for r in again] == [r["chosen"] for r in records]
    expected, found = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    lines = [(tmp_path / name / "validation_rows.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1]
    logs = [
        [line for line in read_jsonl(tmp_path / name / "log.jsonl") if "loss" in line] for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "name",
    [
        "stages.json",
        "validation_rows.jsonl",
        "weights.jsonl",
        "stage-2-start/model.safetensors",
        "trainer-2/choice.json",
        *(f"trainer-2/checkpoint-2/{name}" for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "whole")),
        *(f"trainer-2/checkpoint-2/{name}" for name in ("rng_state.pth", "trainer_state.json")),
    ],
)
def test_what_an_interrupted_run_continues_from_is_checked(killed_job, name):
    run, source, rows = killed_job
    path = run / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedArtifactError) as raised:
        make_job(run, source, rows, save_steps=2, epochs_per_stage=2.0).run()
    assert raised.value.problems[0].values["path"] == str(path)


@pytest.fixture
def killed_job(tmp_path):
    """Folder of a distillation that was killed in its second stage, its teacher and rows."""
    rows, models = encoded(8), teachers()
    source, run = cached(tmp_path / "cache", models, rows), tmp_path / "run"
    Work(run, {}).prepare()
    with pytest.raises(Killed):
        make_job(run, source, rows, save_steps=2, epochs_per_stage=2.0, kill_at=(2, 3)).run()
    return run, source, rows


@pytest.mark.parametrize("kill_at", [(1, 1), (2, 1), (2, 9)])
def test_seconds_include_interrupted_work_that_was_not_lost(tmp_path, monkeypatch, kill_at):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    for module in (callbacks, distillation):
        monkeypatch.setattr(module, "time", clock)

    def train(folder, **more):
        job = make_job(tmp_path / folder, None, rows, method="sft", save_steps=2, epochs_per_stage=2.0, **more)
        kill = job.setup.on_step

        def step(stage, done, total):
            clock.now += 1.0  # also called at the start, before the first step
            kill(stage, done, total)

        job.setup.on_step = step
        before = job.seconds_before()
        return before, job.run()[1]

    rows = encoded(10)
    nothing, records = train("whole")
    assert nothing == 0.0 and [record["seconds"] for record in records] == [11.0, 11.0, 11.0]
    with pytest.raises(Killed):
        train("killed", kill_at=kill_at)
    left, again = train("killed")
    stage, step = kill_at
    saved = step // 2 * 2
    assert left == 11.0 * (stage - 1) + (saved + 1 if saved else 0)
    assert [record["seconds"] for record in again] == [11.0 + (saved > 0 and number == stage) for number in (1, 2, 3)]


def test_a_resumed_run_drops_log_records_after_its_resume_checkpoint(tmp_path):
    path, state = tmp_path / "log.jsonl", SimpleNamespace(is_world_process_zero=True, global_step=2)
    lines = [{"stage": 1, "step": 3}, {"stage": 2, "step": 2}, {"stage": 2, "step": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": 2, "st')
    callbacks.JsonLog(path, stage=2).on_train_begin(None, state, None)
    assert list(read_jsonl(path)) == lines[:2]


def test_validation_losses_are_recorded_by_stage_and_a_repeated_stage_replaces_its_own(tmp_path):
    rows = encoded(10)
    _, records = make_job(tmp_path / "run", None, rows, method="sft").run()
    path = tmp_path / "run" / "validation_rows.jsonl"
    lines = list(read_jsonl(path))
    assert [(line["stage"], line["id"]) for line in lines] == [(stage, row.id) for stage in (1, 2, 3) for row in rows]
    for record in records:
        mine = [line["nll"] for line in lines if line["stage"] == record["stage"]]
        assert record["validation"] == {"score": None, "nll": pytest.approx(np.mean(mine))}
    # killed between a stage's lines and its record in stages.json
    (tmp_path / "run" / "stages.json").write_text(json.dumps(records[:1]))
    make_job(tmp_path / "run", None, rows, method="sft").run()
    assert list(read_jsonl(path)) == lines


def test_resuming_inside_a_stage_starts_at_the_saved_step(tmp_path):
    rows = encoded(10)
    source = cached(tmp_path / "cache", teachers(), rows)
    with pytest.raises(Killed):
        make_job(tmp_path / "run", source, rows, save_steps=2, kill_at=(1, 3)).run()
    half = tmp_path / "run" / "trainer-1" / "checkpoint-4"
    half.mkdir()  # incomplete when killed: not marked as complete
    seen = []
    job = make_job(tmp_path / "run", source, rows, save_steps=2)
    job.setup.on_step = lambda stage, done, total: seen.append((stage, done))
    job.run()
    assert seen[0] == (1, 2)


def test_sft_needs_no_teacher_and_methods_differ(tmp_path):
    rows = encoded()
    source = cached(tmp_path / "cache", teachers(), rows)
    folders = {}
    for method in ("sft", "td", "scd-aw"):
        job = make_job(tmp_path / method, None if method == "sft" else source, rows, method=method)
        folders[method] = weights_of(job.run()[0])
    heads = {method: state["lm_head.weight"] for method, state in folders.items()}
    assert not torch.equal(heads["sft"], heads["td"]) and not torch.equal(heads["td"], heads["scd-aw"])


def test_stages_without_reset_are_one_training_run(tmp_path):
    """With one batch per epoch, four stages of one step equal one stage of four steps."""
    rows = encoded()
    trainer = {"per_device_train_batch_size": len(rows), "learning_rate": 0.01, "use_cpu": True, "warmup_steps": 0.5}
    given = {"method": "sft", "keep": "last", "trainer": trainer}
    found = {}
    for name, plan in {
        "one stage": {"num_stages": 1, "epochs_per_stage": 4.0, "stage_reset": False},
        "four stages": {"num_stages": 4, "epochs_per_stage": 1.0, "stage_reset": False},
        "one stage with reset": {"num_stages": 1, "epochs_per_stage": 4.0, "stage_reset": True},
        "two stages with reset": {"num_stages": 2, "epochs_per_stage": 2.0, "stage_reset": True},
    }.items():
        job = make_job(tmp_path / name, None, rows, **given, **plan)
        found[name] = torch.cat([value.flatten() for value in weights_of(job.run()[0]).values()])
        assert set((tmp_path / name).glob("optimizer-*")) <= set(restart_only(False, tmp_path / name))
    torch.testing.assert_close(found["four stages"], found["one stage"], rtol=1e-5, atol=1e-6)
    assert torch.equal(found["one stage with reset"], found["one stage"])
    assert (found["two stages with reset"] - found["one stage"]).abs().max() > 1e-3


def test_stages_without_reset_continue_after_a_kill(tmp_path):
    rows = encoded()
    plan = {"method": "sft", "num_stages": 3, "epochs_per_stage": 1.0, "stage_reset": False, "keep": "last"}
    whole = weights_of(make_job(tmp_path / "whole", None, rows, **plan).run()[0])

    with pytest.raises(Killed):
        make_job(tmp_path / "cut", None, rows, kill_at=(2, 2), **plan).run()
    again = weights_of(make_job(tmp_path / "cut", None, rows, **plan).run()[0])
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)


def test_the_best_stage_is_kept_and_all_others_are_only_for_a_restart(tmp_path):
    rows = encoded()
    source = cached(tmp_path / "cache", teachers(), rows)
    job = make_job(tmp_path / "run", source, rows, keep="best", keep_stages=False)
    kept, records = job.run()
    losses = [record["validation"]["nll"] for record in records]
    assert kept == job.end(int(np.argmin(losses)) + 1)
    folders = {path for path in (tmp_path / "run").iterdir() if path.name.startswith(("stage-", "trainer-"))}
    assert folders and folders <= set(restart_only(False, tmp_path / "run"))


def test_training_moves_every_weight_and_lowers_the_loss(tmp_path):
    rows = encoded()
    source = cached(tmp_path / "cache", teachers(), rows)
    before = copy.deepcopy(tiny_model(7)).state_dict()
    kept, _ = make_job(tmp_path / "run", source, rows, epochs_per_stage=8.0, method="td").run()
    after = weights_of(kept)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    log = [line for line in read_jsonl(tmp_path / "run" / "log.jsonl") if "kd" in line]
    assert log[-1]["kd"] < log[0]["kd"]
