"""Checksums of unfinished work: what an interrupted process continues from is as it was written."""

import json
from pathlib import Path

import pytest

from tutelage.errors import DamagedArtifactError, UserError
from tutelage.run.manifest import Work, locked
from tutelage.utils.files import read_json, replacing, write_json
from tutelage.utils.progress import PROGRESS


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of unfinished work."""
    work = Work(tmp_path / "run/distill/scd/seed-0", {"seed": 0})
    assert work.prepare()
    return work.folder


def records(folder: Path) -> list[str]:
    return [json.loads(line)["path"] for line in (folder / PROGRESS).read_text().splitlines()]


def test_what_is_written_in_unfinished_work_is_checked_when_it_is_read(folder):
    path = folder / "trainer-1/choice.json"
    write_json(path, {"chosen": "checkpoint-1"})
    path.write_text(path.read_text().replace("1", "2"))
    with pytest.raises(DamagedArtifactError, match=r"choice\.json is damaged"):
        read_json(path)


def test_every_file_of_a_folder_is_recorded(folder):
    with replacing(folder / "stage-1-end") as draft:
        draft.mkdir()
        for name in ("config.json", "README.md"):
            (draft / name).write_text("{}")
    assert records(folder) == ["stage-1-end/config.json"]


def test_a_process_that_is_killed_inside_a_draft_can_write_it_again(folder, monkeypatch):
    """`save_student` completes config.json after transformers has written it."""

    def save() -> None:
        with replacing(folder / "stage-1-end") as draft:
            draft.mkdir()
            (draft / "config.json").write_text("{}")  # by transformers, unrecorded
            write_json(draft / "config.json", read_json(draft / "config.json") | {"rope_theta": 1.0})

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tutelage.utils.files.discard", lambda *_: None)
        patched.setattr("tutelage.utils.files.sync_tree", lambda path: _stop_at(path, "stage-1-end"))
        save()
    save()
    assert records(folder) == ["stage-1-end/config.json"]
    assert read_json(folder / "stage-1-end" / "config.json") == {"rope_theta": 1.0}


def _stop_at(path: Path, name: str) -> None:
    if name in path.name:
        raise KeyboardInterrupt


def test_a_process_that_is_killed_before_it_replaces_a_file_leaves_the_one_before(folder, monkeypatch):
    path = folder / "stages.json"
    write_json(path, [1])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        write_json(path, [1, 2])
    assert len(records(folder)) == 2 and read_json(path) == [1]
    write_json(path, [1, 2])
    assert read_json(path) == [1, 2]


def test_what_was_never_written_or_was_deleted_is_no_damage(folder):
    write_json(folder / "stages.json", [])
    (folder / "stages.json").unlink()
    with pytest.raises(DamagedArtifactError, match="No such file"):  # as for any file that is not there
        read_json(folder / "stages.json")
    write_json(folder / "stages.json", [1])
    assert read_json(folder / "stages.json") == [1]


def test_a_line_that_a_killed_process_wrote_in_part_is_passed_over(folder):
    write_json(folder / "a.json", 1)
    with (folder / PROGRESS).open("ab") as file:
        file.write(b'{"path": "b.js')
    write_json(folder / "b.json", 2)
    assert read_json(folder / "a.json") == 1
    (folder / "b.json").write_text("3")
    with pytest.raises(DamagedArtifactError):
        read_json(folder / "b.json")


def test_finished_work_has_its_manifest_alone(folder):
    work = Work(folder, {"seed": 0})
    work.prepare()
    write_json(folder / "stages.json", [])
    work.finish(0.0)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "stages.json"]
    assert list(read_json(folder / "manifest.json")["files"]) == ["stages.json"]


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "run/.lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"\.lock is damaged"), locked(tmp_path / "run"):
        pass


def test_a_file_of_the_users_with_that_name_is_left_alone(tmp_path):
    own = tmp_path / PROGRESS
    own.write_text('{"path": "answers.json", "bytes": 1, "sha256": "of another program"}\n')
    write_json(tmp_path / "answers.json", [1])
    assert read_json(tmp_path / "answers.json") == [1]
    assert own.read_text().count("\n") == 1
