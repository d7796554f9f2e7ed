"""Cost formulas by hand and by torch's own counter; a whole run timed by parts; processes watched from outside."""

import io
import json
import sys
import time
from multiprocessing import Pipe
from threading import Thread

import pytest
import torch
import typer
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import caching, cost, endtoend, scale
from benchmarks.published import SHAPES, Llm
from benchmarks.shapes import Shape, build_model
from benchmarks.step import Worker, guarded
from tutelage.teacher import build_cache as caching_module

SMALL = Llm(hidden=2, layers=1, intermediate=3, heads=1, kv_heads=1, head_dim=2, vocabulary=5, tied=True)
"""q, k, v, o of 4 entries and three MLP matrices of 6: a body of 34."""
WORK = cost.Work()


# --- cost: sizes ---


def test_parameters_are_the_published_ones():
    assert [shape.parameters for shape in SHAPES.values()] == [
        8_030_261_248, 3_212_749_824, 70_553_706_496, 7_615_616_512, 32_763_876_352, 1_543_714_304, 494_032_768
    ]  # fmt: skip


def test_bytes_of_an_answer_position():
    found = cost.position_bytes(SHAPES["Qwen2.5-7B"], 151_936, top_k=64)
    assert found == {"states": 7_168, "full logits": 303_872, "top-k": 512, "live": 0}


def test_the_smaller_embedding_gives_the_vocabulary():
    assert cost.shared_vocabulary(SHAPES["Qwen2.5-7B"], SHAPES["Qwen2.5-0.5B"]) == 151_936


def test_disk_for_all_checkpoints():
    found = cost.disk_bytes(SHAPES["Llama-3.1-8B"], 128_256, WORK)
    positions = 64_000_000  # 100,000 rows x 64 tokens x 10 checkpoints
    assert found["states"] == positions * 8_192 + 10 * 128_256 * 4_096 * 2
    assert found["full logits"] == positions * 256_512 == 16_416_768_000_000
    assert found["top-k"] == positions * 512 and found["live"] == 0


# --- cost: FLOPs ---


def test_flops_by_hand():
    assert SMALL.body == 34
    assert cost.body_flops(SMALL, 10) == 10 * (2 * 34 + 4 * 10 * 2) == 1_480
    assert cost.forward_flops(SMALL, 10, 3, 5) == 1_480 + 3 * 2 * 5 * 2 == 1_540
    assert cost.training_flops(SMALL, 10, 3, 5) == 3 * 1_540
    assert cost.training_flops(SMALL, 10, 3, 5, recompute=True) == 3 * 1_540 + 1_480


def test_lora_has_no_gradients_of_frozen_weights():
    adapters = 16 * (4 * 4 + 3 * 5)  # rank x (in + out) of each matrix
    assert SMALL.adapters(16) == adapters
    assert cost.training_flops(SMALL, 10, 3, 5, lora=True) == 2 * (680 + 60) + 3 * 800 + 10 * 6 * adapters


@pytest.mark.parametrize("positions", [4, 32])
def test_flops_agree_with_torch(positions):
    shape = Shape(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=96, vocabulary=128)
    model = build_model(shape, 0)
    model.set_attn_implementation("eager")  # the counter knows matrix products
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.zeros((1, 32), dtype=torch.long), logits_to_keep=positions).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    sizes = cost._llm(shape), 32, positions, 128
    # torch also counts the product that makes rotary angles
    assert forward.get_total_flops() == pytest.approx(cost.forward_flops(*sizes), rel=0.005)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(cost.training_flops(*sizes), rel=0.005)


def test_a_cache_is_paid_once_and_a_live_teacher_each_time():
    pair = SHAPES["Llama-3.1-8B"], SHAPES["Llama-3.2-3B"]
    one, many = (cost.run_flops(*pair, "states", WORK, runs) for runs in (1, 15))
    assert one["cache"] == many["cache"] == 10 * 100_000 * cost.forward_flops(pair[0], 512, 64, 128_256)
    assert many["student"] == 15 * one["student"] and one["losses"] == 0
    live = cost.run_flops(*pair, "live", WORK, 15)
    assert live["cache"] == 0 and live["teacher"] == 15 * 2 * one["cache"] and live["losses"] == 15 * one["cache"]


def test_hours():
    assert cost.hours(3600 * 100e12, cost.Card("any", 80, 250e12)) == pytest.approx(1.0)  # 40 % of 250 is 100


# --- cost: memory ---


def test_training_state():
    student = SHAPES["Llama-3.2-3B"]
    assert cost.state_bytes(student, lora=False) == 12 * 3_212_749_824
    assert cost.state_bytes(student, lora=True) == 2 * 3_212_749_824 + 12 * student.adapters(16)


def test_activations_by_hand():
    inside = 2 * 10 * (4 * 2 + (2 + 2) * 2 + 4 * 3)  # 10 tokens in bf16
    assert cost.layer_bytes(SMALL, 10) == inside
    assert cost.activation_bytes(SMALL, 10) == 2 * 10 * 2 + 2 * inside


def test_a_live_teacher_weighs_its_weights():
    pair = SHAPES["Llama-3.1-8B"], SHAPES["Llama-3.2-3B"]
    live, top_k = (cost.step_bytes(*pair, source, WORK, lora=True) for source in ("live", "top-k"))
    assert live - top_k > 2 * pair[0].parameters
    states = cost.step_bytes(*pair, "states", WORK, lora=True)
    assert states - top_k == 2 * 128_256 * 4_096 + 8 * 64 * (8_192 - 512)  # the head; the batch's positions


def test_what_fits_where():
    gib = 2**30
    assert [cost.fits(gib * size) for size in (20, 22, 72, 73, 145)] == [
        "24 GB",
        "80 GB",
        "80 GB",
        "no, 2 x 80",
        "no, 3 x 80",
    ]


# --- cost: output ---


def test_cost_writes_what_it_shows(tmp_path, capsys):
    main(json_file=tmp_path / "cost.json")
    shown = capsys.readouterr().out
    assert all(f"{teacher} to {student}" in shown for teacher, student in cost.PAIRS) and "7,168" in shown
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["assumptions"]["peak_share"] == 0.4
    assert found["pairs"][0]["sources"]["states"]["disk_bytes"] == 534_794_731_520
    assert found["pairs"][1]["cache"]["fits"] == "no, 2 x 80"


def main(**given):
    """`benchmarks.cost` with its defaults."""
    defaults = {"json_file": None, "check_formulas": False, "step_file": None, "rows": 100_000, "tokens": 512}
    cost.main(**{**defaults, "answer_tokens": 64, "checkpoints": 10, **given})


def test_formulas_are_compared_with_measured_ratios(tmp_path, capsys):
    record = {
        "case": "short",
        "dtype": "fp32",
        "student": "full",
        "seconds": {"limit": 1.0, "cached": 1.1, "live": 2.2},
    }
    (tmp_path / "step.json").write_text(json.dumps([record, {"case": "short", "dtype": "bf16", "skipped": "no bf16"}]))
    main(check_formulas=True, step_file=tmp_path / "step.json", json_file=tmp_path / "check.json")
    found = {line["ratio"]: line for line in json.loads((tmp_path / "check.json").read_text())}
    assert set(found) == {"cached/limit", "live/cached"}
    head = 8 * 2 * 49_152 * 576
    step = 3 * (cost.body_flops(cost._llm(endtoend.Shape(576, 10, 9, 3, 1536, 49_152)), 128) + head)
    assert found["cached/limit"]["predicted"] == pytest.approx(1 + head / step)
    assert found["live/cached"]["measured"] == pytest.approx(2.0)
    assert "measured / predicted" in capsys.readouterr().out


@pytest.mark.parametrize("given", [{"check_formulas": True}, {"answer_tokens": 600}])
def test_what_cannot_be_computed_is_refused(given):
    with pytest.raises(typer.BadParameter):
        main(**given)


# --- endtoend ---

TINY = Shape(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocabulary=64)
SIZE = endtoend.Size(
    rows=16, probe_rows=4, trl_steps=1, tokens=12, answer_tokens=4, checkpoints=2, stages=2, epochs=1, teacher=TINY,
    student=TINY.with_layers(1),
)  # fmt: skip


class InThread(Worker):
    """A worker whose task runs in a thread of the test."""

    def __init__(self, name, task, *args):
        self.name = name
        self.pipe, theirs = Pipe()
        self.thread = Thread(target=guarded, args=(theirs, task, *args), daemon=True)
        self.thread.start()

    def end(self):
        self.thread.join(timeout=60)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endtoend, "find_spec", lambda name: None)
        return endtoend.measure(tmp_path_factory.mktemp("endtoend"), SIZE, 1, Console(quiet=True), InThread)


def test_a_run_from_the_cache_and_one_with_a_live_teacher(whole_run):
    runs = whole_run["runs"]
    assert set(runs["cached"]["parts"]) == {"cache", "choice", "weights", "steps", "rest"}
    assert set(runs["live"]["parts"]) == {"choice", "weights", "steps", "rest"}
    for run in runs.values():
        assert len(run["followed"]) == 2 and run["peak_mb"] > run["baseline_mb"] > 1
        assert run["seconds"] == pytest.approx(sum(run["parts"].values()))
        assert run["steps_timed"] == whole_run["steps_total"] == 4
    assert whole_run["ratios"]["cached/live"] == pytest.approx(runs["cached"]["seconds"] / runs["live"]["seconds"])
    assert whole_run["teacher_mb"] > 0


def test_the_table_of_a_run(whole_run):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(endtoend.table(whole_run))
    text = console.export_text()
    assert "cached/live" in text and "with 25.0% of the rows it reads as probe" in text


def test_trl_is_scaled_up_from_the_steps_that_were_timed(tmp_path):
    pytest.importorskip("trl")
    found = endtoend.run_trl(tmp_path, SIZE, 1, InThread)
    assert found["steps_timed"] == len(found["samples"]) == 1
    assert found["seconds"] == pytest.approx(4 * found["seconds_a_step"])


def test_parts_within_parts_count_for_themselves():
    clock = endtoend.Clock()
    with clock.part("outer"):
        with clock.part("inner"):
            time.sleep(0.05)
        time.sleep(0.01)
    assert clock.seconds["inner"] >= 0.05 and 0.01 <= clock.seconds["outer"] < 0.05


def test_ratios_and_shares_by_hand():
    parts = {"cache": 3.0, "choice": 1.0, "weights": 1.0, "steps": 8.0, "rest": 2.0}
    runs = {
        "cached": {"seconds": 15.0, "peak_mb": 50.0, "parts": parts},
        "live": {"seconds": 30.0, "peak_mb": 100.0, "parts": parts | {"steps": 23.0}},
        "trl_gkd": {"seconds": 60.0, "peak_mb": 200.0},
    }
    found = endtoend.record(endtoend.FULL, runs)
    assert found["ratios"] == {
        "cached/live": 0.5, "cached/trl_gkd": 0.25, "peak cached/live": 0.5, "peak cached/trl_gkd": 0.25
    }  # fmt: skip
    assert found["choice_share"] == {"cached": 0.1, "live": 0.04}
    assert found["steps_total"] == 4 * 2 * 50


# --- scale ---


def test_memory_is_seen_from_outside():
    seen = scale.watch([sys.executable, "-S", "-c", "import time; block = b'x' * 100_000_000; time.sleep(0.2)"])
    assert 100 < seen["anon_mb"] <= seen["peak_mb"] < 150
    assert seen["seconds"] > 0.2


def test_a_stage_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"exit code 3:\s+no rows"):
        scale.watch([sys.executable, "-S", "-c", "print('no rows'); raise SystemExit(3)"])


def test_stages_run_in_order_through_the_command(monkeypatch):
    seen = []

    def watch(command):
        seen.append(command)
        rows = (scale.Path(command[-1]).parent / "data" / "train.jsonl").read_text().splitlines()
        return {"seconds": float(len(rows)), "peak_mb": 1.0, "anon_mb": 1.0}

    monkeypatch.setattr(scale, "watch", watch)
    found = scale.run_rows(64, 50, ("prepare", "cache"), Console(quiet=True))
    assert [command[1:4] for command in seen] == [["-m", "tutelage", "prepare"], ["-m", "tutelage", "cache"]]
    assert [line["seconds_a_row"] for line in found] == [1.0, 1.0]


def test_the_project_is_one_that_prepare_takes(tmp_path):
    from tutelage.stages import prepare

    run = endtoend.open_run(scale.make_project(tmp_path, 60))
    prepare.run_stage(run)
    lengths = run.prepared["lengths"]
    assert [lengths[split]["rows"] for split in ("train", "validation", "test")] == [60, 100, 100]
    assert lengths["train"]["longest_answer"] == 3 and 40 <= lengths["train"]["longest"] <= 80


def test_growth_by_hand():
    start = {"cache": {"seconds": 2.0, "peak_mb": 400.0, "anon_mb": 200.0}}
    few = {"stage": "cache", "rows": 10, "seconds": 3.0, "peak_mb": 500.0, "anon_mb": 200.0}
    many = {"stage": "cache", "rows": 1000, "seconds": 202.0, "peak_mb": 550.0, "anon_mb": 210.0}
    growth = {"peak": 1.1, "peak less startup": 1.5, "anon": 1.05, "anon less startup": None}
    assert scale.summary([few, many], start)["cache"] == growth | {"seconds a row less startup": 2.0}


# --- caching ---


def test_caching_is_measured_against_forward_passes_over_the_same_batches(tmp_path, monkeypatch):
    shape, seen = (
        Shape(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocabulary=64),
        {"forward": [], "read": []},
    )
    plain, read = caching.answer_logits, caching_module.read_batch
    monkeypatch.setattr(
        caching, "answer_logits", lambda model, batch: seen["forward"].append(batch) or plain(model, batch)
    )
    monkeypatch.setattr(
        caching_module, "read_batch", lambda model, batch, v: seen["read"].append(batch) or read(model, batch, v)
    )
    found = caching.measure(tmp_path, shape, rows=20, rounds=1)
    assert len(seen["forward"]) == len(seen["read"]) == 2 * 2  # two batches, a warm-up round and a measured one
    for one, other in zip(seen["forward"], seen["read"], strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    assert found["ratios"]["cache/forward"] == found["seconds"]["cache"] / found["seconds"]["forward"]
    assert [len(values) for values in found["samples"].values()] == [1, 1, 1]
