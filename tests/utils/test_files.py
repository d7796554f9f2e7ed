"""Files and folders appear under their final name whole or not at all, and synced; deleting follows no link."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest

import tutelage
from tutelage.errors import UserError
from tutelage.utils.files import (
    discard,
    discard_remains,
    read_json,
    replacing,
    write_json,
    write_jsonl,
    write_text,
)


class Stopped(BaseException):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("stop", [Stopped, OSError])
def test_an_exception_leaves_the_old_file_and_no_draft(tmp_path, stop):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(stop), replacing(tmp_path / "a.txt") as draft:
        draft.write_text("ne")
        raise stop
    with pytest.raises(stop), replacing(tmp_path / "folder") as draft:
        (draft / "inner").mkdir(parents=True)
        raise stop
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "rows.jsonl", [{"good": 1}, {"bad": object()}])
    assert names(tmp_path) == ["a.txt"]


def test_content_is_synced_before_the_rename_and_the_name_after_it(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append((kind, Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append(("rename", Path(paths[1]).name)), rename(*paths)))
    write_json(tmp_path / "run" / "a.json", 1)
    assert events == [("file", ".a.json.part"), ("rename", "a.json"), ("folder", "run")]
    events.clear()
    with replacing(tmp_path / "model") as draft:
        (draft / "sub").mkdir(parents=True)
        (draft / "sub" / "weights").write_text("w")
    assert events[-2:] == [("rename", "model"), ("folder", tmp_path.name)]
    assert {("file", "weights"), ("folder", "sub"), ("folder", ".model.part")} == set(events[:-2])


def test_a_file_system_may_refuse_to_sync_folders_but_not_files(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(kind):
        def refusing(descriptor):
            if kind(os.fstat(descriptor).st_mode):
                raise OSError(22, "Invalid argument")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refusing)

    refuse(stat.S_ISDIR)
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    refuse(stat.S_ISREG)
    with pytest.raises(OSError, match="Invalid argument"):
        write_text(tmp_path / "a.txt", "lost?")
    assert (tmp_path / "a.txt").read_text() == "whole" and names(tmp_path) == ["a.txt"]


def test_a_folder_joins_the_files_that_are_there(tmp_path):
    write_json(tmp_path / "student" / "stages.json", [1])
    write_json(tmp_path / "student" / "templates" / "old.json", 1)
    write_json(tmp_path / "student" / "config.json", "old")
    with replacing(tmp_path / "student") as draft:
        write_json(draft / "config.json", "new")
        write_json(draft / "templates" / "new.json", 2)
    assert names(tmp_path / "student") == [
        *("config.json", "stages.json", "templates", "templates/new.json", "templates/old.json")
    ]
    assert read_json(tmp_path / "student" / "config.json") == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_new_file_replaces_nothing_that_has_come_meanwhile(tmp_path):
    with pytest.raises(UserError, match="already exists"), replacing(tmp_path / "answers.jsonl", new=True) as draft:
        draft.write_text("mine")
        (tmp_path / "answers.jsonl").write_text("another's")
    assert names(tmp_path) == ["answers.jsonl"] and (tmp_path / "answers.jsonl").read_text() == "another's"


def test_a_file_takes_no_place_of_a_folder_and_a_folder_none_of_a_file(tmp_path):
    write_text(tmp_path / "a.json" / "mine", "m")
    write_text(tmp_path / "model", "m")
    with pytest.raises(UserError, match="already exists"):
        write_json(tmp_path / "a.json", 1)
    with pytest.raises(UserError, match="already exists"), replacing(tmp_path / "model") as draft:
        draft.mkdir()
    assert names(tmp_path) == ["a.json", "a.json/mine", "model"]


def test_a_draft_of_a_killed_process_is_not_continued(tmp_path):
    (tmp_path / ".model.part").mkdir()
    (tmp_path / ".model.part" / "half").write_text("h")
    with replacing(tmp_path / "model") as draft:
        write_text(draft / "weights", "w")
    assert names(tmp_path) == ["model", "model/weights"]


def test_deleting_takes_a_link_and_not_what_it_points_to(tmp_path):
    write_text(tmp_path / "mine" / "thesis.txt", "years")
    (tmp_path / "doomed").mkdir()
    (tmp_path / "doomed" / "inner").symlink_to(tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("doomed", "link", "missing"):
        discard(tmp_path / name)
    assert names(tmp_path) == ["mine", "mine/thesis.txt"]


def test_a_folder_is_renamed_before_it_is_deleted(tmp_path, monkeypatch):
    write_text(tmp_path / "run" / "teach" / "manifest.json", "{}")

    def stop(*_, **__):
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("shutil.rmtree", stop)
        discard(tmp_path / "run" / "teach", aside=tmp_path / "run")
    (left,) = (tmp_path / "run").iterdir()
    assert left.name.startswith(".teach.deleting-") and (left / "manifest.json").is_file()
    write_text(tmp_path / "run" / ".mine.part-1" / "notes.deleting-me", "mine")
    (tmp_path / "run" / ".b.json.part").write_text("{")
    discard_remains(tmp_path / "run")
    assert names(tmp_path / "run") == [".mine.part-1", ".mine.part-1/notes.deleting-me"]


# --- every writer of the package ---

DIRECT = {"write_text", "write_bytes", "save_pretrained", "save_file", "copytree", "rmtree", "unlink", "rename"}
"""Methods and functions that write or delete without `replacing` or `discard`."""
EXCEPTIONS = {
    ("utils/files.py", "rmtree"), ("utils/files.py", "unlink"), ("utils/files.py", "rename"),
    ("predict/answer_file.py", "open"),  # the draft of `replacing`
    ("utils/ranks.py", "open"),  # os.devnull
    ("utils/ranks.py", "unlink"),  # the empty file that shows machines one folder
    ("export/ctranslate2_folder.py", "save_pretrained"),  # into the draft of an export
    ("compare/ray_executor.py", "write_text"), ("compare/ray_executor.py", "unlink"),  # a file that nodes look for
    ("compare/launched_cell.py", "write_bytes"), ("compare/launched_cell.py", "write_text"),  # in a temporary folder
}  # fmt: skip


def inside_replacing(tree: ast.AST) -> set[ast.AST]:
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("replacing" in ast.unparse(item.context_expr) for item in node.items)
    ]
    return {inner for block in blocks for inner in ast.walk(block)}


def test_everything_is_written_and_deleted_by_these_functions():
    package, direct = Path(tutelage.__file__).parent, set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        safe = inside_replacing(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or node in safe:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
            own = isinstance(node.func, ast.Name) and name == "write_text"
            if (name in DIRECT and not own) or (name in ("open", "OSFile") and modes & {"w", "wb", "x"}):
                direct.add((path.relative_to(package).as_posix(), name))
    assert direct == EXCEPTIONS
