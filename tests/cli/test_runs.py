"""Which runs there are, what state each is in, and that cleaning takes nothing that cannot be made again."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.fake_run import CHECKPOINTS, write
from helpers.whole_run import HOSTILE, finish, model, whole_run
from tutelage.cli import runs
from tutelage.cli.runs import NEEDED, RESTART_ONLY, clean, describe, find_runs, show_runs
from tutelage.errors import DataError, RunLockedError
from tutelage.run.live_reader import amount, md, weight, worker
from tutelage.run.manifest import digest, locked
from tutelage.utils.console import visible


def test_a_run_is_described_in_a_line(tmp_path):
    whole_run(tmp_path / "runs/demo")
    (run,) = find_runs(tmp_path)
    assert (run.task, run.teacher, run.student) == ("classification", "teacher-1b", "small-student")
    # td has the better validation score in its last stage (0.79 against 0.70 + 0.03 x 4 = 0.82): scd-aw is the main one
    assert (run.method, run.students, run.state, run.date) == ("scd-aw/seed-0", 2, "finished", "2026-01-01T00:00")
    models = json.loads((run.folder / "evaluate/scores.json").read_text())["models"]
    teacher, anchor, ours = (models[name]["accuracy"]["value"] for name in ("teacher", "anchor", "scd-aw/seed-0"))
    assert (run.score.value, run.share) == (ours, pytest.approx((ours - anchor) / (teacher - anchor)))
    assert run.size > 4000


def test_runs_are_found_at_any_depth_and_not_inside_each_other(tmp_path):
    for name in ("b", "a/deep"):
        write(tmp_path / name / "prepare/started.json", {"inputs": {}})
    write(tmp_path / "b/compare/prepare/started.json", {})
    write(tmp_path / ".hidden/prepare/started.json", {})
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    assert [run.folder.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["a/deep", "b", "linked"]
    with pytest.raises(DataError, match="is no folder"):
        find_runs(tmp_path / "nowhere")


def settle(run: Path) -> None:
    """As if nothing had been written for an hour."""
    for path in run.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)


def test_the_state_tells_work_from_a_stop(tmp_path):
    run = whole_run(tmp_path)
    (run / "distill/td/seed-0/manifest.json").rename(run / "distill/td/seed-0/started.json")
    assert describe(run).state == "at work: distill/td/seed-0"
    settle(run)
    assert describe(run).state == "stopped in distill/td/seed-0"
    with locked(run):
        assert describe(run).state == "at work: distill/td/seed-0"
    (run / "distill/td/seed-0/started.json").unlink()
    (run / "report/manifest.json").unlink()
    assert describe(run).state == "done up to evaluate"


def test_a_report_alone_does_not_make_a_run_finished(tmp_path):
    finish(tmp_path, "prepare", finished="2026-01-01T00:00:00")
    write(tmp_path / "prepare/data.json", {})
    (tmp_path / "prepare/rows.jsonl").touch()
    finish(tmp_path, "report", finished="2026-01-01T00:00:09")
    (tmp_path / "report/index.html").touch()
    settle(tmp_path)
    assert describe(tmp_path).state == "done up to prepare"


def test_a_folder_without_runs_says_so_and_what_to_do(tmp_path, capsys):
    show_runs(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"no runs in {tmp_path}") and "`tutelage run RECIPE`" in said
    show_runs(tmp_path, "csv")
    assert capsys.readouterr().out.startswith("run,task")  # what programs read has its head and no sentence


def test_a_result_of_an_earlier_stage_made_anew_is_stale(tmp_path):
    run = whole_run(tmp_path)
    inputs = json.loads((run / "prepare/manifest.json").read_text())["inputs"]
    finish(run, "teach", inputs={"stage prepare": digest(inputs)})
    assert describe(run).state == "finished"
    finish(run, "teach", inputs={"stage prepare": "another"})
    assert describe(run).state == "stale: teach was made before prepare was made anew"


def test_changed_data_files_are_stale(tmp_path):
    run = whole_run(tmp_path / "run")
    data = tmp_path / "train.jsonl"
    data.write_text("{}")
    finish(run, "prepare", inputs={"data files": {str(data): "0123456789abcdef"}}, finished="2099-01-01T00:00:00")
    assert describe(run).state == "finished"  # it is older than the result, so it is not read
    finish(run, "prepare", inputs={"data files": {str(data): "0123456789abcdef"}}, finished="2020-01-01T00:00:00")
    assert "train.jsonl has changed" in describe(run).state


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("evaluate/scores.json", "{", "evaluate/scores.json cannot be read"),
        ("teach/manifest.json", "{", "teach/manifest.json cannot be read"),
        ("recipe.yaml", "a: [", "recipe.yaml is not YAML"),
        ("anchor/model.safetensors", None, "anchor has no *.safetensors"),
        ("distill/td/seed-0/config.json", None, "distill/td/seed-0 has no config.json"),
    ],
)
def test_what_cannot_be_read_is_broken(tmp_path, file, content, says):
    run = whole_run(tmp_path)
    (run / file).unlink() if content is None else (run / file).write_text(content)
    state = describe(run).state
    assert state.startswith("broken: ") and says in state


def test_names_from_data_are_inert_in_the_table(tmp_path, capsys):
    run = whole_run(tmp_path / "=1+1")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["teacher"]["model_name_or_path"] = HOSTILE
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    show_runs(tmp_path)
    out = capsys.readouterr().out
    assert not set("\x1b\u202e\r") & set(out) and "[bold]x␛[31m⟨U+202E⟩gnp.exe␍␊" in out
    show_runs(tmp_path, "csv")
    assert "\n'=1+1," in capsys.readouterr().out
    show_runs(tmp_path, "json")
    assert json.loads(capsys.readouterr().out)[0]["score"].keys() == {"value", "low", "high"}


# --- clean ---


def files(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def littered(folder: Path) -> Path:
    """A run with everything that cleaning may take, and some that it may not."""
    run = whole_run(folder)
    for path in (
        "cross_fit/sample_loss.jsonl",
        "cross_fit/fold-0/losses.safetensors",
        "distill/td/seed-1/trainer-2/checkpoint-8/optimizer.pt",
        "distill/td/seed-1/stage-2-start/model.safetensors",
        "teach/checkpoint-120/optimizer.pt",
        "teach/checkpoint-120/whole",
        "notes/mine.txt",
    ):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(b"x" * 100)
    return run


def test_a_dry_run_names_everything_and_takes_nothing(tmp_path, capsys):
    run = littered(tmp_path)
    before = files(run)
    items = {item.what: item for item in clean(run)}
    assert files(run) == before
    assert set(items) == {
        *("cache", "cross_fit folds", "distill/td/seed-1 restart points", "teacher optimizer states"),
    }  # fmt: skip
    assert items["cache"].size == 4 * (1000 + len("{}")) + (run / "cache/manifest.json").stat().st_size
    assert items["teacher optimizer states"].size == 200
    assert f"nothing was deleted: `tutelage clean {shlex.quote(str(run))} --yes` does it" in capsys.readouterr().out


def test_a_run_with_nothing_to_delete_says_so(tmp_path, capsys):
    write(tmp_path / "prepare/manifest.json", {})
    clean(tmp_path, do=True)
    assert capsys.readouterr().out.strip() == f"{tmp_path}: nothing in it can be deleted and made again"


def test_cleaning_takes_the_caches_and_restart_points_and_nothing_else(tmp_path):
    run = littered(tmp_path)
    before = files(run)
    clean(run, do=True)
    gone = before - files(run)
    assert {name.split("/")[0] for name in gone} == {"cache", "cross_fit", "distill", "teach"}
    assert {name for name in gone if not name.startswith("cache/")} == {
        "cross_fit/fold-0/losses.safetensors", "distill/td/seed-1/trainer-2/checkpoint-8/optimizer.pt",
        "teach/checkpoint-120/optimizer.pt", "teach/checkpoint-120/whole",
    }  # fmt: skip
    assert clean(run, do=True) == []
    assert describe(run).state == "finished"


@pytest.mark.parametrize("what", ["checkpoint", "list"])
def test_what_cannot_be_made_again_stays(tmp_path, what):
    run = littered(tmp_path)
    path = {"checkpoint": f"teach/{CHECKPOINTS[1]}/model.safetensors", "list": "teach/checkpoints.json"}[what]
    (run / path).unlink()
    kept = {item.what for item in clean(run, do=True) if item.kept}
    assert kept == {"cache"} and (run / "cache").is_dir()


def test_checkpoints_of_the_users_own_are_never_touched(tmp_path):
    run = littered(tmp_path)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe |= {"teach": {"checkpoints": str(run / "teach")}, "anchor": {"model_name_or_path": str(run / "cache/mine")}}
    model(run / "cache/mine", 3)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    items = {item.what: item for item in clean(run, do=True)}
    assert "teacher optimizer states" not in items and (run / "teach/checkpoint-120/optimizer.pt").is_file()
    assert "the recipe takes" in items["cache"].kept and (run / "cache/mine/model.safetensors").is_file()


def test_an_unfinished_teacher_keeps_what_it_restarts_from(tmp_path):
    run = littered(tmp_path)
    (run / "teach/manifest.json").rename(run / "teach/started.json")
    assert "teacher optimizer states" not in {item.what for item in clean(run, do=True)}
    assert (run / "teach/checkpoint-120/optimizer.pt").is_file()


def test_links_are_not_followed(tmp_path):
    run = whole_run(tmp_path / "run")
    (run / "cache").rename(tmp_path / "elsewhere")
    (run / "cache").symlink_to(tmp_path / "elsewhere")
    (item,) = clean(run, do=True)
    assert (
        "is a link" in item.kept and (tmp_path / "elsewhere/manifest.json").is_file() and (run / "cache").is_symlink()
    )


def test_remains_of_a_cleaning_that_was_killed_go_with_the_next(tmp_path):
    run = whole_run(tmp_path)
    (run / "cache").rename(run / ".clean-cache-17")
    assert [item.what for item in clean(run, do=True)] == ["remains of a cleaning"]
    assert not list(run.glob(".clean*"))


def test_a_run_at_work_is_not_cleaned(tmp_path):
    run = whole_run(tmp_path)
    code = "import sys, time, pathlib; from tutelage.run.manifest import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    held = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout.readline() == "held\n"
        assert worker(run).pid == held.pid
        with pytest.raises(RunLockedError, match="another process is working"):
            clean(run, do=True)
        assert (run / "cache/manifest.json").is_file()
    finally:
        held.kill()
        held.wait()
    assert worker(run) is None


def test_a_folder_that_is_no_run_is_refused_with_the_runs_in_it(tmp_path):
    run = whole_run(tmp_path / "demo")
    with pytest.raises(DataError, match="is no run folder: name one, such as") as caught:
        clean(tmp_path, do=True)
    assert str(run) in str(caught.value)
    assert not (tmp_path / ".lock").exists()


def test_names_agree_with_the_stages():
    from tutelage.cli.main import STAGES

    assert set(NEEDED) <= set(STAGES)
    source = Path(runs.__file__).parents[1]
    theirs = re.search(r"^RESTART_ONLY = \((.*?)\)$", (source / "stages/teach.py").read_text(), re.MULTILINE)[1]
    assert theirs.replace('"', "").split(", ") == [*RESTART_ONLY[:-1], "WHOLE"]
    assert f'WHOLE = "{RESTART_ONLY[-1]}"' in (source / "training/callbacks.py").read_text()


# --- text from data ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("발열 発熱 é 👩‍⚕️", "발열 発熱 é 👩‍⚕️"),  # joiners in emoji are no trick
        ("a\x1b]0;t\x07b", "a␛]0;t␇b"),
        ("\x7f\x9b31m", "␡⟨U+009B⟩31m"),
        ("a\u202eb\u2066c\u200fd", "a⟨U+202E⟩b⟨U+2066⟩c⟨U+200F⟩d"),
        ("a\ud800b\u2028c\ufeff", "a⟨U+D800⟩b⟨U+2028⟩c⟨U+FEFF⟩"),
        ("one\ntwo\tthree", "one␊two␉three"),
    ],
)
def test_control_characters_are_shown_as_symbols(text, shown):
    assert visible(text) == shown
    visible(text).encode()


def test_lines_are_kept_where_they_are_meant():
    assert visible("a\n\tb\r", lines=True) == "a\n\tb␍"


def test_markdown_of_data_is_text():
    assert md("<b>|`x`* [a](http://e.com) a_b _c_\n# d") == r"\<b\>\|\`x\`\* \[a\](http\://e.com) a_b \_c\_ \# d"


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (99_960, "100 kB"), (999_600, "1.0 MB"), (3e9, "3.0 GB")],
)
def test_sizes_in_words(size, words):
    assert weight(size) == words


def test_parameters_in_words():
    assert [amount(n) for n in (0, 12, 156_000, 1_540_000_000)] == [
        "an unknown number of",
        "12",
        "156 thousand",
        "1.54 billion",
    ]
