"""Teacher checkpoints that are revisions of a model on the Hugging Face Hub: `owner/name@step-1000`."""

from __future__ import annotations

import contextlib
import os
import re
from functools import cache
from pathlib import Path

from tutelage.errors import ModelError
from tutelage.errors.wording import first_line

READ = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""Files that are downloaded: weights, configs and tokenizers; no other form of the weights, no optimizer."""


def is_revision(entry: str) -> bool:
    """Whether an entry of a list of checkpoints means a revision on the hub, and not a folder."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", entry) is not None and not Path(entry).is_dir()


@cache
def downloaded(entry: str) -> Path:
    """Folder of a revision `owner/name@revision` in the hub's cache, downloaded if it is not there.

    The folder's name is `name@revision`: a link beside the cache's own folders, whose names are hashes. Raises
    ModelError if the hub does not have it or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name, revision = entry.split("@")
    try:
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=list(READ)))
    except Exception as error:  # the hub, the network and the disk raise whatever is wrong
        raise ModelError(f"cannot download {entry} from the hub: {first_line(error)}") from error
    link = snapshot.parents[1] / "named" / f"{name.split('/')[1]}@{revision.replace('/', '-')}"
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # no links on this disk: the checkpoint goes by its hash
        link.parent.mkdir(exist_ok=True)
        draft.symlink_to(snapshot)
        draft.replace(link)
    return link if link.is_dir() and link.samefile(snapshot) else snapshot
