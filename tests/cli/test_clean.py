"""`clean` deletes only what can be rebuilt."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.fake_run import CHECKPOINTS, write
from helpers.whole_run import model, whole_run
from tutelage.analysis.run_summary import summarise_run
from tutelage.cli.clean import clean
from tutelage.errors import DataError, RunLockedError
from tutelage.run.live_reader import worker
from tutelage.run.own_files import RESUME_ONLY
from tutelage.run.run_state import REQUIRED_FILES


def files(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def littered(folder: Path) -> Path:
    """A run with everything that cleaning may take, and some that it may not."""
    run = whole_run(folder)
    for path in (
        "anchor_cache/anchor/shard-00000.safetensors",
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
    names = ("cache", "anchor_cache", "cross_fit folds", "distill/td/seed-1 resume checkpoints")
    assert set(items) == {*names, "teacher optimizer states"}
    assert items["cache"].size == 4 * (1000 + len("{}")) + (run / "cache/manifest.json").stat().st_size
    assert items["teacher optimizer states"].size == 200
    assert (
        f"nothing was deleted yet; to delete: `tutelage clean {shlex.quote(str(run))} --yes`" in capsys.readouterr().out
    )


def test_a_run_with_nothing_to_delete_says_so(tmp_path, capsys):
    write(tmp_path / "prepare/manifest.json", {})
    clean(tmp_path, delete=True)
    assert capsys.readouterr().out.strip() == f"{tmp_path}: nothing to delete"


def test_cleaning_takes_the_caches_and_restart_points_and_nothing_else(tmp_path):
    run = littered(tmp_path)
    before = files(run)
    clean(run, delete=True)
    gone = before - files(run)
    assert {name.split("/")[0] for name in gone} == {"cache", "anchor_cache", "cross_fit", "distill", "teach"}
    assert {name for name in gone if not name.startswith(("cache/", "anchor_cache/"))} == {
        "cross_fit/fold-0/losses.safetensors", "distill/td/seed-1/trainer-2/checkpoint-8/optimizer.pt",
        "teach/checkpoint-120/optimizer.pt", "teach/checkpoint-120/whole",
    }  # fmt: skip
    assert clean(run, delete=True) == []
    assert summarise_run(run).state.kind == "finished"


@pytest.mark.parametrize("what", ["checkpoint", "list"])
def test_what_cannot_be_made_again_stays(tmp_path, what):
    run = littered(tmp_path)
    path = {"checkpoint": f"teach/{CHECKPOINTS[1]}/model.safetensors", "list": "teach/checkpoints.json"}[what]
    (run / path).unlink()
    kept = {item.what for item in clean(run, delete=True) if item.kept_because}
    assert kept == {"cache"} and (run / "cache").is_dir()


def test_checkpoints_of_the_users_own_are_never_touched(tmp_path):
    run = littered(tmp_path)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe |= {"teach": {"checkpoints": str(run / "teach")}, "anchor": {"model_name_or_path": str(run / "cache/mine")}}
    model(run / "cache/mine", 3)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    items = {item.what: item for item in clean(run, delete=True)}
    assert "teacher optimizer states" not in items and (run / "teach/checkpoint-120/optimizer.pt").is_file()
    assert "the recipe uses" in items["cache"].kept_because and (run / "cache/mine/model.safetensors").is_file()


def test_an_unfinished_teacher_keeps_what_it_restarts_from(tmp_path):
    run = littered(tmp_path)
    (run / "teach/manifest.json").rename(run / "teach/started.json")
    assert "teacher optimizer states" not in {item.what for item in clean(run, delete=True)}
    assert (run / "teach/checkpoint-120/optimizer.pt").is_file()


def test_links_are_not_followed(tmp_path):
    run = whole_run(tmp_path / "run")
    (run / "cache").rename(tmp_path / "elsewhere")
    (run / "cache").symlink_to(tmp_path / "elsewhere")
    (item,) = clean(run, delete=True)
    assert (
        "is a link" in item.kept_because
        and (tmp_path / "elsewhere/manifest.json").is_file()
        and (run / "cache").is_symlink()
    )


def test_remains_of_a_cleaning_that_was_killed_go_with_the_next(tmp_path):
    run = whole_run(tmp_path)
    (run / "cache").rename(run / ".cache.deleting-0123abcd")
    assert clean(run, delete=True) == []
    assert not list(run.glob(".cache*"))


def test_a_run_at_work_is_not_cleaned(tmp_path):
    run = whole_run(tmp_path)
    code = "import sys, time, pathlib; from tutelage.run.manifest import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    held = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout.readline() == "held\n"
        assert worker(run).pid == held.pid
        with pytest.raises(RunLockedError, match="another process is working"):
            clean(run, delete=True)
        assert (run / "cache/manifest.json").is_file()
    finally:
        held.kill()
        held.wait()
    assert worker(run) is None


def test_a_folder_that_is_no_run_is_refused_with_the_runs_in_it(tmp_path):
    run = whole_run(tmp_path / "demo")
    with pytest.raises(DataError, match="is not a run folder: name one, such as") as caught:
        clean(tmp_path, delete=True)
    assert str(run) in str(caught.value)
    assert not (tmp_path / ".lock").exists()


def test_names_agree_with_the_stages():
    from tutelage.stages import STAGES
    from tutelage.training.callbacks import WHOLE

    assert set(REQUIRED_FILES) <= set(STAGES)
    assert WHOLE in RESUME_ONLY
