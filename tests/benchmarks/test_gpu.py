"""benchmarks.gpu runs unchanged on a CPU, at tiny sizes."""

import json

import pytest

from benchmarks import gpu
from benchmarks.shapes import Batch, Shape


@pytest.mark.parametrize("section", ["correct", "cache", "decode"])
def test_a_section_runs_on_this_machine(tmp_path, section, monkeypatch):
    monkeypatch.setattr(gpu, "STEPS", 1)
    gpu.main(tmp_path / "gpu.json", minutes=12, tiny=True, section=[section])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["versions"]["torch"] and record["lines"]
    assert all(line["section"] == section and "failed" not in line for line in record["lines"])
    if section == "correct":
        assert {line["form"] for line in record["lines"]} == {"fused", "live"}
        assert all(line["difference"] < (1e-5 if line["dtype"] == "fp32" else 0.05) for line in record["lines"])


def test_a_step_has_its_seconds_and_rates(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "STEPS", 1)
    monkeypatch.setattr(gpu, "variants", lambda: ["cached"])
    gpu.main(tmp_path / "gpu.json", minutes=12, tiny=True, section=["step"])
    (line,) = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert line["variant"] == "cached" and len(line["samples"]) == 1
    assert line["tokens_per_second"] == pytest.approx(2 * 16 / line["seconds"])


def test_what_has_no_time_left_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "variants", lambda: ["cached"])
    gpu.main(tmp_path / "gpu.json", minutes=-9, tiny=True, section=["step"])
    (line,) = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert line["left_out"] == "no time left"


def test_the_flops_of_a_step_by_hand():
    """One layer, hidden 2, one head, feed-forward 3, vocabulary 5; 1 row of 4 tokens, 1 answer position.

    q, k, v, o: 4 x 4, three matrices of 6: 34 entries; 6 x 34 x 4 tokens, attention 6 x 1 x 2 x 4 x 4, head 6 x 2 x 5.
    """
    shape = Shape(hidden=2, layers=1, heads=1, kv_heads=1, intermediate=3, vocabulary=5)
    assert gpu.step_flops(shape, Batch(rows=1, tokens=4, answer_tokens=1)) == 6 * 34 * 4 + 192 + 60
