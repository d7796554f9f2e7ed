"""The benchmarks measure what they say: same work in every variant, one step at a time, ratios of the right numbers."""

import io
import json
import math
from importlib.metadata import version
from multiprocessing import Pipe
from threading import Thread

import pytest
import torch
from rich.console import Console

from benchmarks import machine, step
from benchmarks.shapes import (
    CASES,
    EOS,
    SMOLLM2_10_LAYERS,
    SMOLLM2_135M,
    Batch,
    Shape,
    build_model,
    build_student,
    random_rows,
)
from benchmarks.variants import CHECKPOINT, TRAINERS, WARMUP_STEPS, Job, variants_here

TINY = Shape(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocabulary=64)
FAST_BF16 = [1.0, 1.0]
"""Seconds of a product in float32 and in bfloat16."""


def tiny_job(folder, dtype="fp32", student="full", steps=1, case="short", **_):
    batch = Batch(rows=2, tokens=12, answer_tokens=4)
    return Job(case, batch, dtype, student, str(folder), steps, teacher_shape=TINY, student_shape=TINY.with_layers(1))


class InThread(step.Worker):
    """A worker whose task runs in a thread of the test."""

    def __init__(self, name, task, *args):
        self.name = name
        self.pipe, theirs = Pipe()
        self.thread = Thread(target=step.guarded, args=(theirs, task, *args), daemon=True)
        self.thread.start()

    def end(self):
        self.thread.join(timeout=20)


@pytest.fixture
def in_threads(monkeypatch):
    monkeypatch.setattr(step, "Worker", InThread)


def product_takes(monkeypatch, seconds):
    monkeypatch.setattr(step, "product_seconds", lambda dtype: seconds[dtype == torch.bfloat16])


# --- what is measured ---


def test_the_shapes_are_those_of_smollm2_135m():
    config = build_model(TINY, 0).config
    assert config.tie_word_embeddings and config.vocab_size == TINY.vocabulary
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in build_model(shape, 0).parameters()) for shape in (SMOLLM2_135M, SMOLLM2_10_LAYERS)
        ]
    attention, mlp, norms = 2 * 576 * 576 + 2 * 576 * 192, 3 * 576 * 1536, 2 * 576
    assert sizes == [49_152 * 576 + layers * (attention + mlp + norms) + 576 for layers in (30, 10)]


def test_rows_fill_their_batch_and_end_with_end_of_sequence():
    batch = CASES["long"]
    rows = random_rows(batch, 3, 64, seed=0)
    assert {(len(row.prompt), len(row.answer)) for row in rows} == {(256, 256)}
    assert all(row.answer[-1] == EOS and EOS not in row.prompt + row.answer[:-1] for row in rows)
    assert rows == random_rows(batch, 3, 64, seed=0) and len({row.key for row in rows}) == 3


def test_models_repeat_and_leave_the_random_state_alone():
    state = torch.get_rng_state()
    models = [build_student(TINY, 5, adapters) for adapters in (False, False, True)]
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (model.state_dict()["model.embed_tokens.weight"] for model in models[:2])
    assert torch.equal(first, second)
    trained = [name for name, p in models[2].named_parameters() if p.requires_grad]
    layers = {name.split(".lora_")[0].split(".")[-1] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


# --- every variant takes its steps, one at a time ---


@pytest.mark.parametrize("student", ["full", "lora"])
@pytest.mark.parametrize("variants", [["limit", "sft_all", "cached", "live"], ["trl_gkd"]], ids=["ours", "trl"])
def test_variants_step_in_turn(tmp_path, in_threads, variants, student):
    if "trl_gkd" in variants:
        pytest.importorskip("trl")
    rounds = []
    found = step.run_job(tiny_job(tmp_path, student=student, steps=2), variants, rounds.append)
    assert rounds == [1, 2, 3, 4]
    assert {name: len(values) for name, values in found["samples"].items()} == dict.fromkeys(variants, 2)
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert all(found["peak_mb"][name] >= found["baseline_mb"][name] > 1 for name in variants)


def test_the_case_cross_follows_a_teacher_over_bytes(tmp_path, in_threads):
    found = step.run_job(tiny_job(tmp_path, case="cross"), variants_here("cross"))
    assert set(found["seconds"]) == {"limit", "sft_all", "cached"} and "cached/limit" in found["ratios"]
    assert json.loads((tmp_path / CHECKPOINT / "store.json").read_text())["kind"] == "bytes"


def test_every_variant_trains_on_the_same_ids_in_the_same_order(tmp_path):
    pytest.importorskip("trl")
    job, pipes = tiny_job(tmp_path, steps=2), Pipe()
    step.write_store(pipes[1], job)
    seen = {}
    for name, build in TRAINERS.items():
        trainer = build(job)
        assert not trainer.args.gradient_checkpointing and not trainer.args.bf16
        # our batches end one token earlier: the end-of-sequence token is predicted and never read
        seen[name] = [
            batch["input_ids"][:, : job.batch.tokens - 1].tolist() for batch in trainer.get_train_dataloader()
        ]
    assert all(ids == seen["limit"] for ids in seen.values())
    assert len(seen["limit"]) == WARMUP_STEPS + 2


def test_under_autocast_cached_and_live_follow_the_same_teacher(tmp_path):
    job = tiny_job(tmp_path, dtype="bf16")
    pipes = Pipe()
    step.write_store(pipes[1], job)
    views = []
    for variant in ("cached", "live"):
        trainer = TRAINERS[variant](job)
        batch = next(iter(trainer.get_train_dataloader()))
        targets = trainer.guidance.source.targets(CHECKPOINT, batch)
        views.append(targets.logits(0, 2 * 4).float())
    torch.testing.assert_close(*views, rtol=0, atol=0.05 * views[0].abs().max().item())


def test_a_failing_variant_says_what_failed(tmp_path, in_threads, monkeypatch):
    def broken(job):
        raise ValueError("no such thing")

    monkeypatch.setitem(TRAINERS, "limit", broken)
    with pytest.raises(RuntimeError, match=r"limit failed:[\s\S]*no such thing"):
        step.run_job(tiny_job(tmp_path), ["limit"])


def test_each_round_asks_every_worker_once_and_in_order():
    asked = []

    class Worker:
        def __init__(self, name):
            self.name = name

        def ask(self, expected):
            asked.append(self.name)
            return len(asked)

    assert step.alternate([Worker("a"), Worker("b")], 2) == {"a": [1, 3], "b": [2, 4]}
    assert asked == ["a", "b", "a", "b"]


# --- what is reported ---

SECONDS = {
    "limit": [9.0] * WARMUP_STEPS + [1.0, 2.0, 3.0],
    "sft_all": [9.0] * WARMUP_STEPS + [4.0, 4.0, 4.0],
    "cached": [9.0] * WARMUP_STEPS + [2.5, 2.5, 100.0],
    "live": [9.0] * WARMUP_STEPS + [5.0, 5.0, 5.0],
    "trl_gkd": [9.0] * WARMUP_STEPS + [10.0, 10.0, 10.0],
}
MEMORY = {name: {"baseline_mb": 500.0, "peak_mb": 1000.0 * place} for place, name in enumerate(SECONDS, 1)}


def test_medians_leave_the_warm_up_out_and_ratios_follow_from_them():
    found = step.record("short", "fp32", "full", [(SECONDS, MEMORY)])
    assert found["seconds"] == {"limit": 2.0, "sft_all": 4.0, "cached": 2.5, "live": 5.0, "trl_gkd": 10.0}
    assert found["samples"]["limit"] == [1.0, 2.0, 3.0]
    assert found["ratios"] == {
        "cached/limit": 1.25,
        "trl_gkd/cached": 4.0,
        "live/cached": 2.0,
        "peak cached/trl_gkd": 0.6,
    }


def test_ratios_are_of_variants_that_took_turns():
    assert step.groups("long", list(SECONDS)) == [["limit", "sft_all", "cached", "live"], ["cached", "trl_gkd"]]
    assert step.groups("short", list(SECONDS)) == [list(SECONDS)]
    assert step.groups("long", ["limit", "cached"]) == [["limit", "cached"]]
    first = {name: SECONDS[name] for name in ("limit", "cached")}
    second = {"cached": [5.0] * 9, "trl_gkd": [15.0] * 9}
    found = step.record(
        "long", "fp32", "full", [(seconds, {name: MEMORY[name] for name in seconds}) for seconds in (first, second)]
    )
    assert found["seconds"] == {"limit": 2.0, "cached": 2.5, "trl_gkd": 15.0}
    assert found["ratios"]["trl_gkd/cached"] == 3.0 and found["ratios"]["cached/limit"] == 1.25


def test_without_trl_its_ratios_are_left_out():
    seconds = {name: values for name, values in SECONDS.items() if name != "trl_gkd"}
    found = step.record("short", "fp32", "full", [(seconds, {name: MEMORY[name] for name in seconds})])
    assert set(found["ratios"]) == {"cached/limit", "live/cached"}


def test_plans():
    assert step.plan(quick=True) == [("short", "fp32", "full"), ("short", "bf16", "full")]
    assert len(step.plan(quick=False)) == 3 * 2 * 2
    assert step.plan(quick=False, case="long", dtype="fp32") == [("long", "fp32", "full"), ("long", "fp32", "lora")]


def test_records_go_to_json_with_machine_and_versions(tmp_path, in_threads, monkeypatch):
    product_takes(monkeypatch, FAST_BF16)
    monkeypatch.setattr(step, "variants_here", lambda case: ["limit", "cached"])
    monkeypatch.setattr(step, "Job", lambda batch, threads, **what: tiny_job(**what))
    step.main(quick=True, json_file=tmp_path / "step.json", steps=1)
    found = json.loads((tmp_path / "step.json").read_text())
    assert [(one["case"], one["dtype"], one["student"]) for one in found] == step.plan(quick=True)
    for one in found:
        assert {"seconds", "peak_mb", "baseline_mb", "ratios", "samples", "machine", "versions"} <= set(one)
        assert one["ratios"]["cached/limit"] == pytest.approx(one["seconds"]["cached"] / one["seconds"]["limit"])
        assert "GiB" in one["machine"] and one["versions"]["torch"] == version("torch")


def test_slow_bfloat16_is_skipped_with_its_numbers(monkeypatch):
    product_takes(monkeypatch, [0.010, 0.677])
    (found,) = step.run([("short", "bf16", "full")], tiny_job, Console(quiet=True))
    assert set(found) == {"case", "dtype", "student", "skipped", "machine", "versions"}
    assert "677.0 ms in bfloat16 and 10.0 ms in float32, 68 times" in found["skipped"]


def test_bfloat16_is_measured_up_to_five_times_the_seconds():
    assert machine.why_no_bf16(1.0, 5.0) is None
    assert machine.why_no_bf16(1.0, 5.1) is not None


def test_the_table_shows_every_variant_and_ratio():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(step.table(step.record("long", "fp32", "lora", [(SECONDS, MEMORY)])))
    text = console.export_text()
    assert all(name in text for name in SECONDS)
    assert "cached/limit 1.25" in text and "peak cached/trl_gkd 0.60" in text


def test_memory_is_counted_in_megabytes():
    before = machine.memory_mb("VmRSS")
    block = torch.ones(25_000_000)  # 100 MB in float32
    after = machine.memory_mb("VmRSS")
    assert math.isclose(after - before, block.nbytes / 1e6, abs_tol=20)
    assert machine.memory_mb("VmHWM") >= after
