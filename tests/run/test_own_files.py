"""What tutelage did not write is never deleted or overwritten; a run goes only into a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from helpers.project import Command, make_project, run_to_the_end
from helpers.whole_run import whole_run
from tutelage.cli.clean import clean
from tutelage.demo import setup
from tutelage.errors import ConfigError, DataError, Kind
from tutelage.recipe.load import load_recipe
from tutelage.report.model_card import write_card
from tutelage.run.manifest import MANIFEST, Work, locked
from tutelage.run.own_files import foreign_files
from tutelage.utils.files import write_json, write_text


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with most kinds of files."""
    folder = tmp_path_factory.mktemp("finished")
    distill = {"methods": ["td-aw-cf"], "num_stages": 1, "keep_stages": True}
    folds = {"folds": 2, "teacher": False}
    lora = {"lora": {"r": 2}}
    recipe = make_project(folder, teacher=lora, student=lora, cross_fit=folds, anchor={"keep": "loss"}, distill=distill)
    run_to_the_end(recipe)
    return folder


def results(run: Path) -> list[Path]:
    return [path.parent for path in run.rglob(MANIFEST)]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# --- which files are the tool's own ---


def test_every_file_of_a_finished_run_is_the_tools_own(finished):
    found = results(finished / "run")
    assert len(found) == 13 and [name for folder in found for name in foreign_files(folder)] == []


@pytest.mark.parametrize(
    "name",
    [
        *(
            "notes.txt",
            "checkpoints.json.bak",
            "best/model.safetensors",
            "checkpoint-2-copy/config.json",
            "src/main.py",
        ),
        *("checkpoint-2/my-scores.json", "checkpoint-2/old/model.safetensors", "validation/plots/a.png", "README.md"),
    ],
)
def test_other_files_are_not(tmp_path, name):
    write_json(tmp_path / "teach" / MANIFEST, {})
    write_json(tmp_path / "teach" / "checkpoint-2" / "config.json", {})
    write_text(tmp_path / "teach" / ".log.jsonl.part", "")
    assert list(foreign_files(tmp_path / "teach")) == []
    write_text(tmp_path / "teach" / name, "mine")
    assert list(foreign_files(tmp_path / "teach")) == [name]


def test_a_model_card_is_the_tools_own_until_it_is_changed(tmp_path):
    path = write_card(whole_run(tmp_path))
    assert "README.md" not in foreign_files(path.parent)
    path.write_text(path.read_text().replace("\n## ", "\nMy own words.\n\n## ", 1))
    assert "README.md" in foreign_files(path.parent)


# --- rebuilding ---


@pytest.mark.parametrize("name", ["teach/notes.txt", "anchor/src/main.py", "distill/td-aw-cf/seed-0/README.md"])
def test_force_refuses_a_folder_with_other_files_and_deletes_nothing(finished, tmp_path, command, name):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    write_text(run / name, "mine")
    before = contents(run)
    for words in (["run"], [name.split("/")[0]]):
        assert command(*words, finished / "recipe.yaml", f"output_dir={run}", "--force") == 2
        assert Path(name).name in command.err and "[foreign_files]" in command.err
        assert contents(run) == before


def test_stale_results_with_other_files_stay(tmp_path):
    write_json(tmp_path / "scores" / MANIFEST, {"inputs": {"seed": 0}})
    write_text(tmp_path / "scores" / "plot.png", "mine")
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"plot\.png"):
        Work(tmp_path / "scores", {"seed": 1}, rebuild_stale=True).prepare()
    assert contents(tmp_path) == before


def test_links_to_elsewhere_are_not_followed(tmp_path):
    write_json(tmp_path / "mine" / MANIFEST, {"inputs": {}})
    before = contents(tmp_path / "mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "seed-0").symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match="is a link to"):
        Work(tmp_path / "run" / "seed-0", {}, force=True).prepare()
    inner = Work(tmp_path / "run" / "seed-1", {}, force=True)
    write_json(inner.folder / MANIFEST, {"inputs": {}})
    (inner.folder / "checkpoint-1").symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match="checkpoint-1"):
        inner.prepare()
    assert contents(tmp_path / "mine") == before


def test_a_folder_without_a_record_is_not_written_to(tmp_path):
    write_text(tmp_path / "report" / "index.html", "my own site")
    for force in (False, True):
        with pytest.raises(DataError, match=r"has no manifest\.json"):
            Work(tmp_path / "report", {}, force=force).prepare()
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_other_files_among_what_only_a_restart_needs_stay(tmp_path):
    def restart_only(folder):
        return folder.glob("trainer-*")

    work = Work(tmp_path / "student", {}, restart_only=restart_only)
    assert work.prepare()
    for name in ("trainer-1/choice.json", "trainer-2/choice.json", "trainer-2/notes.txt"):
        write_text(work.folder / name, "{}")
    work.finish(1.0)
    assert {path.name for path in work.folder.rglob("*.*")} == {MANIFEST, "choice.json", "notes.txt"}
    assert not (work.folder / "trainer-1").exists()


def test_clean_keeps_what_holds_other_files(tmp_path):
    run = whole_run(tmp_path)
    write_text(run / "cache" / "notes.txt", "mine")
    (cache,) = (item for item in clean(run, delete=True) if item.what == "cache")
    assert "notes.txt" in cache.kept_because and (run / "cache" / "notes.txt").is_file()


# --- where a run may go ---


def test_a_run_goes_into_a_new_an_empty_or_its_own_folder(tmp_path):
    run = tmp_path / "new" / "run"
    for _ in range(2):
        with locked(run):
            pass
    write_json(run / "prepare" / MANIFEST, {})
    write_text(run / "notes.txt", "mine")
    with locked(run):
        assert (run / "notes.txt").is_file()


@pytest.mark.parametrize("place", ["here", "parent", "home", "root", "project", "data", "model", "file"])
def test_folders_that_hold_something_else_are_refused_before_anything_is_written(tmp_path, monkeypatch, command, place):
    recipe = make_project(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    (tmp_path / "home" / "me").mkdir(parents=True)
    folders = {"here": ".", "parent": "..", "home": "../home", "root": "/", "project": "..", "data": "../data"}
    folder = folders | {"model": "../models/teacher", "file": "../recipe.yaml"}
    before = sorted(tmp_path.rglob("*"))
    assert command("run", recipe, f"output_dir={folder[place]}", "--force") == 2
    assert "[foreign_files]" in command.err and len(command.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_comparison_goes_into_a_folder_of_its_own(tmp_path, command):
    recipe = make_project(tmp_path)
    write_text(tmp_path / "site" / "index.html", "mine")
    assert command("compare", recipe, "--output", tmp_path / "site") == 2 and "[foreign_files]" in command.err
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]


@pytest.mark.parametrize("name", ["..", ".", "a/../..", "/x", "a//b", " ", ""])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    recipe = make_project(tmp_path, name=name)
    with pytest.raises(ConfigError, match="no name for a folder"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *(("teacher.model_name_or_path", "teach/checkpoint-2"), ("teach.checkpoints", "teach")),
        *(("anchor.model_name_or_path", "anchor"), ("data.train", "prepare/rows.jsonl")),
    ],
)
def test_what_a_run_reads_does_not_lie_where_it_deletes(tmp_path, key, name):
    recipe = make_project(tmp_path)
    write_text(tmp_path / "run" / name / "x", "mine")
    path = str(tmp_path / "run" / name)
    value = f"[{path}]" if key == "data.train" else path
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [f"{key}={value}", *(["teach.trainer={}"] if key.startswith("teach.") else [])])
    (problem,) = caught.value.problems
    assert problem.key == "output_dir" and problem.kind == Kind.VALUES_CONFLICT and path in str(caught.value)


def test_the_demo_takes_no_folder_that_holds_something_else(tmp_path):
    write_text(tmp_path / "models" / "teacher" / "model.safetensors", "mine")
    with pytest.raises(DataError, match=r"models/teacher/model\.safetensors"):
        setup.prepare(tmp_path, ["ner"])
    assert not (tmp_path / "data").exists()


def test_the_recipe_that_a_user_wrote_is_not_replaced(tmp_path, command):
    recipe = make_project(tmp_path)
    text = yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"output_dir": str(tmp_path)}) + "# my comment\n"
    recipe.write_text(text)
    assert command("prepare", recipe) == 2 and recipe.read_text() == text
