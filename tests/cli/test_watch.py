"""The live view of a run, from its files: what is at work, how long it still takes, and files that are half written."""

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
from tutelage.cli.watch import draw, look, watch
from tutelage.errors import DataError
from tutelage.run.live_reader import pieces, read_log, sparkline
from tutelage.run.manifest import locked


def frame(run: Path, width: int = 120, **options: object) -> str:
    screen = Console(file=io.StringIO(), width=width, highlight=False, **options)
    screen.print(draw(look(run)))
    return screen.file.getvalue()


def logged(path: Path, *records: dict, tail: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def step(number: int, stage: int | None = None, **more: float) -> dict:
    return (
        ({"stage": stage} if stage else {})
        | {"step": number, "loss": 1.0, "ce": 1.0 / number, "epoch": number / 100}
        | more
    )


def at(path: Path, seconds: float) -> None:
    """Set when a file was written, counted from a moment an hour ago."""
    moment = BEGAN + seconds
    os.utime(path, (moment, moment))


BEGAN = time.time() - 3600


def in_stage_three(run: Path) -> Path:
    """The run again, with scd-aw killed in its third stage: 0.5 of 2 epochs done."""
    student = run / "distill/scd-aw/seed-0"
    (student / "manifest.json").rename(student / "started.json")
    stages = json.loads((student / "stages.json").read_text())
    write(student / "stages.json", [{**stage, "seconds": 60.0 + stage["stage"]} for stage in stages[:2]])
    write(
        student / "trainer-3/choice.json", {key: stages[2][key] for key in ("chosen", "candidates", "reason", "stall")}
    )
    records = [step(n, stage, kd=0.5 / n, epoch=n / 100) for stage in (1, 2) for n in range(10, 201, 10)]
    logged(student / "log.jsonl", *records, *(step(n, 3, kd=0.5 / n) for n in range(10, 51, 10)))
    return student


def test_a_finished_run_is_shown_with_its_student_and_scores(tmp_path):
    text = frame(whole_run(tmp_path))
    for part in (
        "teacher-1b → small-student",
        "✓ teach 6 min 52 s",
        "✓ distill 2/2",
        "✓ evaluate 5/5",
        "finished",
        "test accuracy: ",
    ):
        assert part in text
    assert "smallest sum in 4" in text  # the reason of the last stage's choice
    assert "! stage 2: checkpoint-120 was chosen again" in " ".join(text.split())
    assert "4 kept" in text and "memory" not in text


def test_a_stage_at_work_is_shown_with_its_choice_and_time_left(tmp_path):
    run = whole_run(tmp_path)
    in_stage_three(run)
    seen = look(run)
    assert seen.working == ["distill/scd-aw/seed-0"] and not seen.finished
    # stages took 61 and 62 s; of four, two are done and a quarter of the third: 61.5 x 1.75
    assert (seen.training.share, seen.training.left) == (0.25, pytest.approx(61.5 * 1.75))
    assert seen.training.stages[-1]["chosen"] == "checkpoint-240"
    text = frame(run)
    for part in (
        "▶ distill 1/2",
        "stage 3 of 4, training, step 50, 25 %",
        "; 1 min 4",
        "KL, to the teacher",
        "0.050 → 0.010 nats",
    ):
        assert part in text
    assert "stage 3: smallest sum in 3" in text and "! stage 3" not in text


def test_time_left_counts_students_that_have_not_begun(tmp_path):
    run = whole_run(tmp_path)
    in_stage_three(run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["distill"]["seeds"] = [0, 1]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # two students more, as long as td (250 s), and the scores of two at 2 s each
    assert look(run).left == pytest.approx(61.5 * 1.75 + 2 * 250 + 2 * 2)


def test_without_a_timed_stage_the_pace_is_that_of_the_log(tmp_path):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    (student / "stages.json").unlink()
    (run / "distill/td/seed-0/manifest.json").unlink()
    (student / "trainer-3").rename(student / "trainer-1")
    logged(student / "log.jsonl", *(step(n, 1) for n in range(10, 51, 10)))
    at(student / "started.json", 0)
    at(student / "trainer-1/choice.json", 10)
    at(student / "log.jsonl", 40)
    # a quarter of a stage took 30 s: 120 s a stage, 3.75 of them to go
    assert look(run).training.left == pytest.approx(450, abs=1)


def test_fine_tuning_is_timed_by_its_epochs(tmp_path):
    run = whole_run(tmp_path)
    (run / "teach/manifest.json").rename(run / "teach/started.json")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"teach": {"trainer": {"num_train_epochs": 4}}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    logged(run / "teach/log.jsonl", step(10, epoch=0.5), step(20, epoch=1.0))
    at(run / "teach/started.json", 0)
    at(run / "teach/log.jsonl", 100)
    training = look(run).training
    assert (training.share, training.left) == (0.25, pytest.approx(300, abs=1))
    recipe["trainer"] = {"max_steps": 40}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert look(run).training.share == 0.5


def test_the_cache_is_counted_in_shards(tmp_path):
    run = whole_run(tmp_path)
    (run / "cache/manifest.json").rename(run / "cache/started.json")
    at(run / "cache/started.json", 0)
    for number, path in enumerate(sorted(run.glob("cache/*/shard-*")), 1):
        path.unlink() if number > 2 else at(path, 30.0 * number)
    # 300 rows are one shard for each of four checkpoints; two of them took 60 s
    assert look(run).note == "2 of 4 shards, 1 min 00 s left"


def test_files_that_are_half_written_are_no_error(tmp_path):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    for name in ("stages.json", "trainer-3/choice.json"):
        (student / name).write_text('[{"stage": 1, "cho')
    logged(student / "log.jsonl", step(10, 1), tail='{"stage": 1, "step": 20, "lo')
    (run / "recipe.yaml").write_text("distill: {methods: [scd")
    (run / "evaluate/scores.json").write_text("")
    (run / "teach/manifest.json").write_text('{"seconds": 4')
    assert "at work: distill/scd-aw/seed-0" in frame(run)
    assert [record["step"] for record in look(run).training.log] == [10]


def test_a_run_that_only_begins_is_shown(tmp_path):
    write(tmp_path / "prepare/started.json", {"inputs": {}})
    text = frame(tmp_path)
    assert "▶ prepare" in text and "at work: prepare" in text


def test_a_log_goes_on_where_a_killed_training_went_on(tmp_path):
    log = tmp_path / "log.jsonl"
    logged(
        log, step(10, 1), step(20, 1), step(30, 1), step(20, 1, ce=7.0), step(10, 2), {"step": 10, "train_runtime": 3.0}
    )
    assert [(r["stage"], r["step"]) for r in read_log(log)] == [(1, 10), (1, 20), (2, 10)]
    assert read_log(log)[1]["ce"] == 7.0
    assert read_log(tmp_path / "none") == []


def test_a_sparkline_is_logarithmic_and_bears_what_is_not_finite():
    assert sparkline([100.0, 10.0, 1.0], 3) == "█▅▁"  # the middle one is half way down: round(3.5) is 4 of 7
    assert sparkline([2.0, 0.0], 2) == "█▁"
    assert sparkline([1.0, float("nan"), float("inf")], 3) == "▁!!"
    assert sparkline([1.0] * 100, 8) == "▁" * 8
    assert sparkline([], 8) == ""


def test_pieces_are_those_that_the_methods_need():
    recipe = {"distill": {"methods": ["sft", "cd-aw-cf", "seqkd", "not-here"], "seeds": [0]}}
    found = pieces(recipe)
    assert found[:6] == ["prepare", "teach", "anchor", "cache", "teacher_answers", "cross_fit"]
    assert found[-1] == "report" and "distill/not-here/seed-0" in found
    assert [name for name in pieces({"distill": {"methods": ["sft"]}}) if "/" not in name] == [
        "prepare",
        "teach",
        "anchor",
        "diagnose",
        "report",
    ]
    assert pieces({}) == []


def test_text_from_data_is_inert(tmp_path):
    run = whole_run(tmp_path)
    student = in_stage_three(run)
    write(
        student / "trainer-3/choice.json",
        {"chosen": "checkpoint-1", "reason": "[red]\x1b]0;owned\x07\u202e[/red]", "candidates": []},
    )
    text = frame(run, force_terminal=True, color_system=None)
    assert "\x07" not in text and "\u202e" not in text and "[red]␛]0;owned␇⟨U+202E⟩[/red]" in text


def test_the_memory_is_that_of_the_process_that_holds_the_run(tmp_path):
    run = whole_run(tmp_path)
    in_stage_three(run)
    assert "no process of this machine holds the run; last change" in frame(run)
    with locked(run):
        pid, family, size = look(run).process
        assert pid == os.getpid() and family >= 1 and size > 1e7
        assert f"process {pid}" in frame(run)


def test_one_frame_is_printed_where_there_is_no_terminal(tmp_path, capsys):
    run = whole_run(tmp_path)
    in_stage_three(run)
    watch(run)
    watch(run, once=True)
    assert capsys.readouterr().out.count("at work: distill/scd-aw/seed-0") == 2


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


def test_a_cleaned_run_is_finished_still(tmp_path):
    run = whole_run(tmp_path)
    (run / "cache/manifest.json").unlink()
    assert look(run).finished


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no run folder"):
        watch(tmp_path / "nowhere")
    run = whole_run(tmp_path / "run")
    (run / "compare").mkdir()
    with pytest.raises(DataError, match=r"compare is no run folder: its run is .*/run"):
        watch(run / "compare")


def test_none_of_the_commands_loads_torch():
    code = (
        "import sys; from tutelage.cli import explain, runs, watch; from tutelage.report import model_card;"
        " print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\n", "")
