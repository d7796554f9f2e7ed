"""Recorded sizes and hashes: what is found, what passes, and what a large file is checked by."""

import json
from pathlib import Path

import pytest

from tutelage.errors import DamagedArtifactError, DataError, Kind
from tutelage.run.manifest import Work, fingerprint, rewriting
from tutelage.utils import checksums, integrity
from tutelage.utils.files import read_json, read_jsonl, write_json, write_jsonl

ROWS = [{"id": "a", "nll": 0.25}, {"id": "b", "nll": 0.5}]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A finished folder `anchor` of a run, with losses, a file in a subfolder, and what no later step reads."""
    work = Work(tmp_path / "run/anchor", {"seed": 0})
    work.prepare()
    write_jsonl(work.folder / "sample_loss.jsonl", ROWS)
    write_json(work.folder / "validation/one.json", {"best": 1})
    for name in ("optimizer-1.pt", "README.md", "trainer/checkpoint-1/model.safetensors"):
        (work.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (work.folder / name).write_bytes(b"x")
    work.finish(0.0)
    return work.folder


def test_the_manifest_lists_what_later_steps_read(folder):
    files = read_json(folder / "manifest.json")["files"]
    assert list(files) == ["sample_loss.jsonl", "validation/one.json"]
    assert files["sample_loss.jsonl"]["bytes"] == (folder / "sample_loss.jsonl").stat().st_size
    assert list(read_jsonl(folder / "sample_loss.jsonl")) == ROWS and read_json(folder / "validation/one.json")


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.35"))


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (flip, "SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "48 bytes"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (Path.unlink, "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder"),
    ],
)
def test_damage_is_refused_with_what_was_found_and_what_to_do(folder, fault, found):
    path = folder / "sample_loss.jsonl"
    fault(path)
    with pytest.raises(DamagedArtifactError) as raised:
        list(read_jsonl(path))
    text = str(raised.value)
    assert raised.value.kind == Kind.ARTIFACT_DAMAGED and found in text and "49 bytes with SHA-256" in text
    assert str(path) in text and f"Delete {folder}, and `tutelage anchor RECIPE` makes it again" in text


def test_a_missing_file_that_is_listed_is_no_file_left_out(folder):
    (folder / "validation/one.json").unlink()
    with pytest.raises(DamagedArtifactError):
        integrity.present(folder / "validation/one.json")
    assert not integrity.present(folder / "never-written.json")


@pytest.mark.parametrize("name", ["manifest.json", "started.json"])
@pytest.mark.parametrize("content", ['{"inputs": {"seed": 1}}', "[]", "", '{"inputs": [], "x": 1}', "\x00"])
def test_a_changed_manifest_is_found_by_its_own_checksum(tmp_path, name, content):
    path = tmp_path / "teach" / name
    write_json(path, {"inputs": {"seed": 0}})
    write_json(path.with_name("other.json"), {})
    assert read_json(path) == {"inputs": {"seed": 0}}
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, **json.loads(content)}) if content.startswith('{"inputs": {') else content)
    with pytest.raises(DamagedArtifactError, match=name):
        Work(tmp_path / "teach", {"seed": 0}).prepare()


def test_a_manifest_of_an_older_version_lists_nothing_and_its_files_are_read(tmp_path):
    folder = tmp_path / "anchor"
    write_jsonl(folder / "sample_loss.jsonl", ROWS)
    (folder / "manifest.json").write_text('{"inputs": {"seed": 0}, "seconds": 1.0}')
    assert not Work(folder, {"seed": 0}).prepare() and list(read_jsonl(folder / "sample_loss.jsonl")) == ROWS


def test_unreadable_content_that_nothing_lists_is_a_user_error_too(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1}\n\xff\n')
    for path, read in ((tmp_path / "a.json", read_json), (tmp_path / "a.jsonl", lambda path: list(read_jsonl(path)))):
        with pytest.raises(DamagedArtifactError, match=path.name):
            read(path)


def test_a_folder_that_lost_its_manifest_is_not_taken_for_unfinished_work(folder):
    (folder / "manifest.json").unlink()
    for use in (Work(folder, {"seed": 0}).prepare, lambda: fingerprint(folder, {"seed": 0})):
        with pytest.raises(DataError, match=r"manifest\.json"):
            use()


def test_what_is_cheap_is_rebuilt_when_it_is_damaged(folder):
    flip(folder / "sample_loss.jsonl")
    (folder / "README.md").unlink()  # a card that was written by hand is never deleted
    work = Work(folder, {"seed": 0}, rebuild_stale=True)
    assert work.prepare() and "sample_loss.jsonl is damaged" in work.notes[0]


def test_files_without_a_manifest_have_checksums_beside_them(tmp_path):
    folder = tmp_path / "run/evaluate"
    with rewriting(folder, "scores.json"):
        write_json(folder / "scores.json", {"score": 0.5})
    assert read_json(folder / "scores.json") == {"score": 0.5}
    (folder / "scores.json").write_text('{"score": 0.6}')
    with pytest.raises(DamagedArtifactError, match="`tutelage evaluate RECIPE` writes it again"):
        read_json(folder / "scores.json")


def test_a_file_is_hashed_once(folder):
    checksums._sha256.cache_clear()
    for _ in range(3):
        integrity.check(folder / "sample_loss.jsonl")
    assert checksums._sha256.cache_info().misses == 1


def test_of_a_large_file_samples_are_hashed_with_both_ends_among_them(folder, monkeypatch):
    monkeypatch.setattr(checksums, "LARGE", 1 << 10)
    monkeypatch.setattr(checksums, "SAMPLE", 64)
    monkeypatch.setattr(checksums, "SAMPLES", 4)
    path = folder / "model.safetensors"
    path.write_bytes(bytes(4096))
    before = checksums.file_record(path)
    assert before["sampled"] and before["bytes"] == 4096
    for place, found in ((0, True), (4095, True), (1000, False)):
        content = bytearray(4096)
        content[place] = 1
        path.write_bytes(content)
        assert (checksums.file_record(path) != before) == found


def test_a_run_is_checked_by_patterns(folder):
    run = folder.parent
    integrity.check_run(run, ["anchor/*.jsonl"])
    (folder / "validation/one.json").unlink()
    integrity.check_run(run, ["anchor/*.jsonl"])
    with pytest.raises(DamagedArtifactError, match=r"one\.json"):
        integrity.check_run(run, ["anchor/validation/*"])


@pytest.mark.parametrize("content", ['{"inputs": [], "files": []}', "binary \x00"])
def test_a_manifest_of_other_software_beside_a_model_says_nothing(tmp_path, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/manifest.json").write_text(content)
    (tmp_path / "model/config.json").write_text("{}")
    integrity.check_folder(tmp_path / "model", ".json")
    assert read_json(tmp_path / "model/config.json") == {}
