"""Which files in a run folder are the tool's own. Nothing else is ever deleted or overwritten there.

A file is the tool's own by its name and the folders that it is in. A name that is missing below is refused, which costs
the user a move; a name too many would cost a file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from tutelage.errors import DataError, Kind, Problem
from tutelage.utils.files import discard, is_remains

RESUME_ONLY = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "training_args.bin", "scaler.pt", "whole")
"""Glob patterns of the files in a checkpoint folder that only an unfinished fine-tuning run needs."""
_MODEL = (
    r"(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|model\.safetensors\.index)\.json|(merges|vocab)\.txt|chat_template\.jinja|qwen\.tiktoken"
    r"|(adapter_)?model(-\d+-of-\d+)?\.safetensors|(tokenizer|spiece|sentencepiece\.bpe)\.model"
    r"|additional_chat_templates/\w+\.jinja|(configuration|modeling|tokenization)_\w+\.py"
)
"""What transformers and peft save of a model and a tokenizer."""
_CHECKPOINT = (
    rf"checkpoint-\d+/({_MODEL}|README\.md|whole|taid\.json|trainer_state\.json|training_args\.bin|optimizer\.(pt|bin)"
    r"|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth)"
)
_TRAINING = rf"log\.jsonl|choice\.json|{_CHECKPOINT}|runs/(.+/)?events\.out\.tfevents[^/]*"
"""What a training run writes, trackers included."""
_NAMES = (
    r"(started|manifest|data|checkpoints|validation|stages|probe|tutelage|silver|scores|slices|summary)\.json",
    r"(progress|rows|sample_loss|answers|validation_rows|weights|predictions|validation_loss)\.jsonl|optimizer-\d+\.pt",
    r"unlabelled\.jsonl|answers-\d+\.jsonl|tokens/(teacher/)?\w+\.(arrow|index\.safetensors)",
    r"index(\.(en|ko|ja))?\.html",
    r"(train|teacher)\.(arrow|index\.safetensors)|validation/[^/]+\.jsonl?",
    r"head-\w+\.safetensors|[^/]+/((shard-\d+|index)\.safetensors|store\.json|sample_loss\.jsonl)",
    rf"(trainer(-\d+)?/|fold-\d+/(student/|teacher/)?)?({_TRAINING})|fold-\d+/(row_)?losses\.safetensors",
    rf"(stage-\d+-(start|end)/)?({_MODEL})|stage-\d+-(start|end)/README\.md",  # peft describes adapters
)
_OWN = re.compile("|".join(f"({names})" for names in _NAMES))
"""Files of a folder that ends with a manifest, relative to it."""
SHOWN = 5
"""Names in a message."""


def foreign_files(
    folder: Path, own: Callable[[str], object] = _OWN.fullmatch, *, within: Path | None = None
) -> Iterator[str]:
    """What lies in a folder and its subfolders, and is not the tool's own: files and links, relative to the folder.

    own: whether a name, with its subfolders before it, is the tool's own. within: the only subfolder to look at.
    """
    for parent, folders, names in os.walk(within or folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not is_remains(Path(name)))
        for name in sorted([*names, *links]):
            path = Path(parent, name)
            ours = own(path.relative_to(folder).as_posix()) or is_own_card(path)
            if not is_remains(path) and name != ".DS_Store" and (path.is_symlink() or not ours):
                yield path.relative_to(folder).as_posix()


def is_own_card(path: Path) -> bool:
    """Whether a file is a model card that was not changed by hand."""
    if path.name != "README.md" or not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return not by_hand(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))


def by_hand(text: str) -> bool:
    """Whether the text of a model card, without its metadata, is not what `card_mark` was made from."""
    mark = re.search(r"\n<!-- tutelage card (\w+) -->\s*$", text)
    return bool(text.strip()) and (not mark or mark[1] != _hash(text[: mark.start()]))


def card_mark(text: str) -> str:
    """The line that ends a model card: by it changes by hand are recognised."""
    return f"<!-- tutelage card {_hash(text)} -->"


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def refuse_foreign(
    folder: Path, own: Callable[[str], object] = _OWN.fullmatch, *, found: str = "holds what tutelage did not write:"
) -> None:
    """Raises DataError if a folder is a link, or holds anything that is not the tool's own. found: starts the message
    of the latter."""
    if folder.is_symlink():
        raise refusal(folder, f"is a link to {folder.resolve()}", "delete the link, and the folder if nothing needs it")
    if foreign := list(islice(foreign_files(folder, own), SHOWN + 1)):
        shown = ", ".join(foreign[:SHOWN]) + (", ..." if len(foreign) > SHOWN else "")
        raise refusal(folder, f"{found} {shown}", "move that away, or name another folder")


def refusal(folder: Path, found: str, remedy: str) -> DataError:
    """The error about a folder that tutelage must not write to, or delete."""
    return DataError(Problem(Kind.FOREIGN_FILES, values={"folder": str(folder), "found": found, "remedy": remedy}))


def clear(folder: Path, aside: Path | None = None) -> None:
    """Delete a folder that ends with a manifest. Raises DataError as `refuse_foreign`. aside: as in `discard`."""
    refuse_foreign(folder)
    if folder.exists():
        discard(folder, aside)
