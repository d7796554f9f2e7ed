"""Experiment trackers: `report_to` is passed to transformers, and trackers get the same values as log.jsonl."""

from transformers import TrainerCallback
from transformers.integrations import integration_utils

from helpers.project import Command, make_project
from tutelage.utils.files import read_jsonl


def test_a_tracker_sees_every_record_of_the_log(tmp_path, monkeypatch, capsys):
    seen = []

    class Recorder(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append({"step": state.global_step, **logs})

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "codecarbon", Recorder)
    recipe = make_project(tmp_path)
    command = Command(monkeypatch, capsys)
    for stage in ("prepare", "teach", "anchor", "cache"):
        assert command(stage, recipe) == 0
    assert command("distill", recipe, "distill.trainer.report_to=codecarbon", "distill.trainer.logging_steps=1") == 0
    log = list(read_jsonl(tmp_path / "run/distill/scd-aw/seed-0/log.jsonl"))
    assert [{key: value for key, value in line.items() if key not in ("stage", "checkpoint")} for line in log] == seen
    assert {"loss", "ce", "kd", "grad_norm", "learning_rate"} <= seen[0].keys()
