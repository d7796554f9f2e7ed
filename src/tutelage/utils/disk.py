"""Recognises a full disk by error numbers and exception types, never by the words of a message."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage.errors import DiskFullError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
NOTHING_FREE = 1_000_000
"""Bytes. Python, torch and tokenizers leave their unfinished file, so a disk that was full has less than this left."""
TOO_LITTLE = 1_000_000_000
"""Bytes. safetensors deletes its unfinished file, so a disk with less than this left, or less than twice the largest
file in the folder, counts as full after one of its errors."""


@contextmanager
def full_disk_as_user_error(folder: Path) -> Iterator[None]:
    """Raises DiskFullError instead of whatever is raised inside, if the disk of `folder` is full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error, folder):
            raise
        raise DiskFullError(
            f"the disk of {folder} is full ({type(error).__name__}: {error}): free some space; the same command"
            " continues where it stopped"
        ) from error


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an exception, or one that led to it, means that the disk of `folder` is full.

    OSError carries an error number. safetensors (SafetensorError), torch.save (RuntimeError) and tokenizers (a bare
    Exception) carry a message alone; for these the free space of the disk decides.
    """
    from safetensors import SafetensorError

    chain = list(_chain(error))
    if any(isinstance(cause, OSError) and cause.errno in FULL for cause in chain):
        return True
    if any(isinstance(cause, SafetensorError) for cause in chain):
        return free_space(folder) < max(TOO_LITTLE, 2 * _largest_file(folder))
    message_only = any(isinstance(cause, RuntimeError) or type(cause) is Exception for cause in chain)
    return message_only and free_space(folder) < NOTHING_FREE


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def free_space(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file in a folder and its subfolders: what is written next is likely no larger."""
    return max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)
