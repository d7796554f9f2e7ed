"""A run on an accelerator computes there and gives the same result as on the CPU. The device is simulated, see
`helpers/elsewhere.py`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from helpers.project import make_project, run_to_the_end
from tutelage.models import precision
from tutelage.utils.files import read_jsonl

TESTS = Path(__file__).parents[1]
needs_device = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices written in Python",
)
METHODS = ["scd-aw", "ccd-aw", "taid", "akl", "cd-aw+temperature=2.0"]


def python(*words):
    """A new Python process in the folder of the tests: the simulated device cannot be removed from a process."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=TESTS, env=environment, timeout=300
    )


def stages(folder, method):
    return json.loads((folder / "run/distill" / method / "seed-0/stages.json").read_text())


@needs_device
@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"decoding": "labels"}, "distill": {"methods": METHODS}},
        {"teacher": {"lora": {"r": 4}}, "student": {"lora": {"r": 4}}},
    ],
    ids=["methods", "adapters"],
)
def test_a_run_on_another_device_ends_as_on_the_cpu(tmp_path, changes):
    run_to_the_end(make_project(tmp_path / "cpu", **changes))
    done = python(
        "helpers/elsewhere.py",
        "run",
        str(make_project(tmp_path / "away", trainer={"use_cpu": False}, **changes)),
        "--anyway",
    )
    assert done.returncode == 0, done.stderr
    computed, refused = map(int, re.search(r"away: (\d+) operations computed, (\d+) refused", done.stdout).groups())
    assert computed > 10_000
    assert refused == 0  # otherwise the plain loss would replace the fused one
    here, there = (
        json.loads((tmp_path / name / "run/evaluate/scores.json").read_text())["models"] for name in ("cpu", "away")
    )
    methods = changes.get("distill", {}).get("methods", ["scd-aw"])
    assert len(here) == 3 + len(methods)
    for model, scores in here.items():
        assert {name: one["value"] for name, one in there[model].items()} == pytest.approx(
            {name: one["value"] for name, one in scores.items()}, rel=1e-5
        )
    for method in methods:
        chosen = [[stage["chosen"] for stage in stages(tmp_path / name, method)] for name in ("cpu", "away")]
        assert chosen[0] == chosen[1]
    answers = [list(read_jsonl(tmp_path / name / "run/evaluate/predictions.jsonl")) for name in ("cpu", "away")]
    assert [line["prediction"] for line in answers[0]] == [line["prediction"] for line in answers[1]]


@needs_device
def test_the_simulated_device_refuses_what_a_gpu_refuses():
    code = (
        "from helpers import elsewhere; import torch; elsewhere.install(); a = torch.ones(2, device='away')\n"
        "for wrong in (lambda: a + torch.ones(2), a.double):\n"
        "    try: print('passed', wrong())\n"
        "    except (RuntimeError, TypeError) as error: print(error)\n"
        "print((a + 1).tolist(), (a + a).device, a.cpu().numpy())"
    )
    done = python("-c", code)
    assert done.stdout.splitlines() == [
        "aten.add.Tensor: some tensors are on away, those of shapes [(2,)] on the CPU",
        "away has no float64",
        "[2.0, 2.0] away:0 [1. 1.]",
    ]


@needs_device
def test_label_scores_need_no_float64():
    code = (
        "from helpers import elsewhere; elsewhere.install()\n"
        "from helpers.tiny import byte_tokenizer, tiny_model\n"
        "from tutelage.models.label_scoring import label_scores\n"
        "ask = lambda model: label_scores(\n"
        "    model, byte_tokenizer(), [[97, 98], [99]], [[[97, 98, 99], [100]]] * 2, batch_size=2\n)\n"
        "here, there = ask(tiny_model(1)), ask(tiny_model(1).to('away'))\n"
        "print(max(abs(a - b) for x, y in zip(here, there) for a, b in zip(x, y)) < 1e-5)"
    )
    done = python("-c", code)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_where_transformers_has_it_on_the_device(monkeypatch, able):
    monkeypatch.setattr(precision, "is_torch_bf16_gpu_available", lambda: able)
    precision.bf16_pays.cache_clear()
    assert precision.bf16_pays("mps")[0] is able
    precision.bf16_pays.cache_clear()
