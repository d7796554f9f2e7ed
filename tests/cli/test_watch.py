"""The live view of a run, from its files: stage, progress, time left, losses, and files that are half written."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from helpers.fake_run import write
from helpers.whole_run import whole_run
from tutelage.cli.watch import draw, take_snapshot, watch
from tutelage.errors import DataError
from tutelage.run.live_reader import read_log
from tutelage.run.manifest import locked

BEGAN = time.time() - 3600


def frame(run: Path, width: int = 300, **options: object) -> str:
    screen = Console(file=io.StringIO(), width=width, highlight=False, **options)
    screen.print(draw(take_snapshot(run)))
    return screen.file.getvalue()


def logged(path: Path, *records: dict, tail: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def step(number: int, stage: int | None = None, **more: float) -> dict:
    record = {"step": number, "loss": 1.0, "ce": 1.0 / number, "epoch": number / 100}
    return ({"stage": stage} if stage else {}) | record | more


def at(path: Path, seconds: float) -> None:
    """Set when a file was written, counted from a moment an hour ago."""
    moment = BEGAN + seconds
    os.utime(path, (moment, moment))


def change_recipe(run: Path, **sections: dict) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | sections))


def in_stage_three(run: Path) -> Path:
    """The run again, with scd-aw killed in its third stage: 0.5 of 2 epochs done."""
    student = run / "distill/scd-aw/seed-0"
    (student / "manifest.json").rename(student / "started.json")
    stages = json.loads((student / "stages.json").read_text())
    write(student / "stages.json", [{**stage, "seconds": 60.0 + stage["stage"]} for stage in stages[:2]])
    choice = {key: stages[2][key] for key in ("chosen", "candidates", "reason", "stall")}
    write(student / "trainer-3/choice.json", choice)
    at(student / "started.json", -200)
    records = [step(n, stage, kd=0.5 / n, epoch=n / 100) for stage in (1, 2) for n in range(10, 201, 10)]
    logged(student / "log.jsonl", *records, *(step(n, 3, kd=0.5 / n) for n in range(10, 51, 10)))
    return student


def test_a_finished_run_is_shown_with_its_student(tmp_path):
    text = frame(whole_run(tmp_path))
    for part in (f"{tmp_path}: finished", "✓ teach", "✓ distill 2/2", "✓ evaluate 5/5", "checkpoint-360"):
        assert part in text
    assert "last change" not in text and "left" not in text


def test_a_stage_in_progress_is_shown_with_its_checkpoint_losses_and_time_left(tmp_path):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    at(student / "trainer-3/choice.json", 0)
    at(student / "log.jsonl", 15)
    shot = take_snapshot(run)
    assert shot.state == ("running", "distill/scd-aw/seed-0")
    # the first two stages took 61 and 62 s, the first quarter of the third 15 s: 138 s for 2.25 of 4 stages
    assert (shot.fraction, shot.seconds_left) == (2.25 / 4, pytest.approx(138 / 2.25 * 1.75))
    assert shot.stages[-1]["chosen"] == "checkpoint-240"
    text = frame(run)
    for part in ("▶ distill 1/2", "stage 3 of 4, step 50", "56 %, about 1 min 47 s left"):
        assert part in text
    rows = [line.split() for line in text.splitlines() if "checkpoint-" in line]
    assert rows[1] == ["2", "checkpoint-120", "0.005", "0.003", "0.760", "0.740"]
    assert rows[2] == ["3", "checkpoint-240", "0.020", "0.010", "–", "–"]


def test_without_a_finished_stage_the_speed_is_that_of_the_log(tmp_path):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    (student / "stages.json").unlink()
    (student / "trainer-3").rename(student / "trainer-1")
    logged(student / "log.jsonl", *(step(n, 1) for n in range(10, 51, 10)))
    at(student / "trainer-1/choice.json", 10)
    at(student / "log.jsonl", 40)
    # a quarter of a stage took 30 s: 120 s a stage, 3.75 of them to go
    assert take_snapshot(run).seconds_left == pytest.approx(450, abs=1)


def test_fine_tuning_is_timed_by_its_epochs(tmp_path):
    run = whole_run(tmp_path)
    (run / "teach/manifest.json").rename(run / "teach/started.json")
    change_recipe(run, teach={"trainer": {"num_train_epochs": 4}})
    logged(run / "teach/log.jsonl", step(10, epoch=0.5), step(20, epoch=1.0, loss=0.5))
    at(run / "teach/started.json", 0)
    at(run / "teach/log.jsonl", 100)
    shot = take_snapshot(run)
    assert (shot.fraction, shot.seconds_left) == (0.25, pytest.approx(300, abs=1))
    assert "training loss 1.000 → 0.500 nats per answer token" in frame(run)
    change_recipe(run, trainer={"max_steps": 40}, teach={})
    assert take_snapshot(run).fraction == 0.5


def test_a_pause_is_not_counted_as_time_of_training(tmp_path):
    run = whole_run(tmp_path)
    (run / "teach/manifest.json").rename(run / "teach/started.json")
    change_recipe(run, teach={"trainer": {"num_train_epochs": 4}})
    logged(run / "teach/log.jsonl", step(10, epoch=1.0), step(20, epoch=2.0), step(25, epoch=2.5))
    for checkpoint, seconds in ((10, 100), (20, 5060)):
        (run / f"teach/checkpoint-{checkpoint}").mkdir()
        (run / f"teach/checkpoint-{checkpoint}/whole").write_text("1")
        at(run / f"teach/checkpoint-{checkpoint}/whole", seconds)
    at(run / "teach/started.json", 5000)  # it continued from step 10, and made 15 more steps in 90 s
    at(run / "teach/log.jsonl", 5090)
    shot = take_snapshot(run)
    assert (shot.fraction, shot.seconds_left) == (2.5 / 4, pytest.approx(15 * 6, abs=1))
    (run / "cache/manifest.json").rename(run / "cache/started.json")
    (run / "teach/started.json").rename(run / "teach/manifest.json")
    at(run / "cache/started.json", 5000)
    for number, path in enumerate(sorted(run.glob("cache/*/shard-*")), 1):
        path.unlink() if number > 3 else at(path, {1: 10, 2: 20, 3: 5040}[number])
    assert take_snapshot(run).seconds_left == pytest.approx(40, abs=1)


def test_the_anchor_is_timed_by_the_epochs_of_all_stages(tmp_path):
    run = whole_run(tmp_path)
    (run / "anchor/manifest.json").rename(run / "anchor/started.json")
    logged(run / "anchor/log.jsonl", step(20, epoch=2.0))
    assert take_snapshot(run).fraction == 2 / (4 * 2)


def test_the_cache_is_counted_in_shards(tmp_path):
    run = whole_run(tmp_path)
    (run / "cache/manifest.json").rename(run / "cache/started.json")
    at(run / "cache/started.json", 0)
    for number, path in enumerate(sorted(run.glob("cache/*/shard-*")), 1):
        path.unlink() if number > 2 else at(path, 30.0 * number)
    # 300 rows are one shard for each of four checkpoints; two of them took 60 s
    text = frame(run)
    assert "cache: 2 of 4 shards" in text and "50 %, about 1 min 00 s left" in text


def test_files_that_are_half_written_are_no_error(tmp_path):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    for name in ("stages.json", "trainer-3/choice.json"):
        (student / name).write_text('[{"stage": 1, "cho')
    logged(student / "log.jsonl", step(10, 1), tail='{"stage": 1, "step": 20, "lo')
    (run / "recipe.yaml").write_text("distill: {methods: [scd")
    (run / "evaluate/scores.json").write_text("")
    (run / "teach/manifest.json").write_text('{"seconds": 4')
    assert "running: distill/scd-aw/seed-0" in frame(run)
    assert [record["step"] for record in take_snapshot(run).log] == [10]


def test_a_run_that_only_begins_is_shown(tmp_path):
    write(tmp_path / "prepare/started.json", {"inputs": {}})
    text = frame(tmp_path)
    assert "▶ prepare" in text and "running: prepare" in text


def test_a_log_goes_on_where_a_killed_training_went_on(tmp_path):
    log = tmp_path / "log.jsonl"
    end = {"step": 10, "train_runtime": 3.0}
    logged(log, step(10, 1), step(20, 1), step(30, 1), step(20, 1, ce=7.0), step(10, 2), end)
    assert [(r["stage"], r["step"]) for r in read_log(log)] == [(1, 10), (1, 20), (2, 10)]
    assert read_log(log)[1]["ce"] == 7.0
    assert read_log(tmp_path / "none") == []


def test_text_from_data_is_inert(tmp_path):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    chosen = {"chosen": "[red]\x1b]0;owned\x07\u202e[/red]", "reason": "", "candidates": []}
    write(student / "trainer-3/choice.json", chosen)
    text = frame(run, force_terminal=True, color_system=None)
    assert "\x07" not in text and "\u202e" not in text and "[red]␛]0;owned␇⟨U+202E⟩[/red]" in text


def test_a_run_without_news_is_stopped_unless_a_process_holds_it(tmp_path):
    run = whole_run(tmp_path)
    in_stage_three(run)
    for path in run.rglob("*"):
        at(path, 0)
    assert "stopped in distill/scd-aw/seed-0; last change 1 h" in frame(run)
    with locked(run):
        assert "running: distill/scd-aw/seed-0" in frame(run)


def test_one_frame_is_printed_without_a_terminal(tmp_path, capsys):
    run = whole_run(tmp_path)
    in_stage_three(run)
    watch(run)
    watch(run, once=True)
    assert capsys.readouterr().out.count("running:") == 2  # a line may end there


def test_watching_ends_with_the_run(tmp_path, monkeypatch):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        (student / "started.json").rename(student / "manifest.json")

    monkeypatch.setattr("tutelage.cli.watch.time.sleep", sleep)
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, height=50)
    watch(run, interval=0.5, console=screen)
    assert slept == [0.5] and "finished" in screen.file.getvalue()


def test_a_cleaned_run_is_still_finished(tmp_path):
    run = whole_run(tmp_path)
    (run / "cache/manifest.json").unlink()
    assert take_snapshot(run).state.kind == "finished"


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a run folder"):
        watch(tmp_path / "nowhere")
    run = whole_run(tmp_path / "run")
    (run / "compare").mkdir()
    with pytest.raises(DataError, match=r"compare is not a run folder: the run is .*/run"):
        watch(run / "compare")


def test_none_of_the_commands_loads_torch():
    code = (
        "import sys; from tutelage.cli import clean, explain, list_runs, watch; from tutelage.report import model_card;"
        " print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\n", "")
