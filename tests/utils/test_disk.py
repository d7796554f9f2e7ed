"""A full disk is recognised by error numbers and exception types, whatever a message says."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tutelage.errors import DataError, DiskFullError
from tutelage.utils import disk
from tutelage.utils.disk import full_disk_as_user_error, is_disk_full

MEGABYTE = 1_000_000


def set_free(monkeypatch, size: int) -> None:
    monkeypatch.setattr(disk, "free_space", lambda folder: size)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_error_number_anywhere_in_the_chain_decides(tmp_path, number):
    try:
        try:
            raise OSError(number, "any words")
        except OSError as error:
            raise RuntimeError("another message") from error
    except RuntimeError as error:
        assert is_disk_full(error, tmp_path)


@pytest.mark.parametrize(
    ("error", "free", "full"),
    [
        (OSError(errno.EACCES, "No space left on device"), 0, False),
        (ValueError("No space left on device"), 0, False),
        (RuntimeError("any words"), 0, True),
        (RuntimeError("No space left on device"), 10 * MEGABYTE, False),
        (Exception("any words"), 0, True),
        (SafetensorError("any words"), 500 * MEGABYTE, True),
        (SafetensorError("No space left on device"), 5000 * MEGABYTE, False),
    ],
)
def test_without_an_error_number_type_and_free_space_decide(tmp_path, monkeypatch, error, free, full):
    set_free(monkeypatch, free)
    assert is_disk_full(error, tmp_path) == full


def test_safetensors_needs_room_for_a_file_like_the_largest(tmp_path, monkeypatch):
    set_free(monkeypatch, 5000 * MEGABYTE)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(4000 * MEGABYTE)
    assert is_disk_full(SafetensorError("any words"), tmp_path)


def test_a_full_disk_becomes_an_error_of_the_user(tmp_path, monkeypatch):
    with pytest.raises(DiskFullError, match="free some space"), full_disk_as_user_error(tmp_path / "not/there"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(KeyError), full_disk_as_user_error(tmp_path):
        raise KeyError("ours")
    with pytest.raises(DataError), full_disk_as_user_error(tmp_path):
        raise DataError("a message of its own")


@pytest.fixture
def small_files():
    """A limit of 1 MB for every file, so that writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("library", ["safetensors", "torch", "tokenizers"])
def test_libraries_raise_the_types_that_are_expected(tmp_path, monkeypatch, small_files, library):
    set_free(monkeypatch, 0)
    write = {"safetensors": write_safetensors, "torch": write_torch, "tokenizers": write_tokenizer}[library]
    with pytest.raises(DiskFullError), full_disk_as_user_error(tmp_path):
        write(tmp_path / "file")


def write_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(MEGABYTE)}, str(path))


def write_torch(path: Path) -> None:
    torch.save(torch.zeros(MEGABYTE), path)


def write_tokenizer(path: Path) -> None:
    words = {f"word {index}": index for index in range(100_000)}
    Tokenizer(WordLevel(words, "word 0")).save(str(path))
