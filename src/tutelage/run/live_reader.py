"""Reads a run folder from outside, perhaps while a run writes to it. Nothing here locks, writes or loads a model.

For the commands that show runs (`watch`, `ls`, `clean`, `explain`, `card`), the report and the preflight checks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import DamagedArtifactError, DataError
from tutelage.run.artifacts import checkpoint_folder
from tutelage.run.manifest import MANIFEST, STARTED
from tutelage.utils import integrity
from tutelage.utils.files import read_json

if TYPE_CHECKING:
    import psutil

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1}
"""Of a number in a safetensors file, by its type; tensors of rare types are not checked."""
_IN_LAYER = re.compile(r"\.\d+\.")
"""In the name of a weight: it belongs to a numbered layer."""
DEPTHS = ("*", "*/*", "*/*/*")
"""Glob patterns of the folders in a run that a manifest can end: cache, evaluate/anchor, distill/METHOD/seed-K."""


def read_or_none(path: Path) -> Any:
    """The value in a JSON file; None if the file is missing or cannot be read now (it may be half written).

    Raises DamagedArtifactError for a file of a finished folder that is not as it was written.
    """
    integrity.check(path)
    try:
        return read_json(path)
    except DamagedArtifactError:  # of a manifest, or of a file that no manifest lists yet
        return None


def dig(value: Any, *keys: str, default: Any = None) -> Any:
    """The value under these keys of nested dicts; `default` where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return default if value is None else value


def recipe_of(run: Path) -> dict[str, Any]:
    """recipe.yaml as plain values; empty if there is none yet. Raises DataError if it is not YAML."""
    import yaml

    path = run / "recipe.yaml"
    integrity.check(path)
    try:
        # The C loader reads a recipe of 150 lines in 2 ms instead of 20.
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise integrity.damaged(path, error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: `tutelage run RECIPE` writes it again") from error
    return values if isinstance(values, dict) else {}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records with a loss of a training log (log.jsonl), in order of stage and step.

    Half-written lines are left out, and so are records that a killed process logged after its last resume checkpoint.
    Raises DamagedArtifactError as `read_or_none`.
    """
    integrity.check(path)
    records: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return records
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int) and "loss" in record:
                while records and _stage_and_step(records[-1]) >= _stage_and_step(record):
                    records.pop()
                records.append(record)
    return records


def _stage_and_step(record: dict[str, Any]) -> tuple[int, int]:
    return record.get("stage") or 0, record["step"]


def last_part(path: Any) -> Any:
    """A path, or each of a list of paths, without its folders; None and empty values as they are."""
    return [last_part(item) for item in path] if isinstance(path, list) else path and Path(str(path)).name


# --- models in a run ---


def best_checkpoint(run: Path) -> Path | None:
    """Folder of the best teacher checkpoint T*, in the run or the user's own; None if it does not exist."""
    taught = read_or_none(run / "teach" / "checkpoints.json") or {}
    best = next((c for c in taught.get("checkpoints") or [] if c.get("name") == taught.get("best")), None)
    folder = checkpoint_folder(run, best, bool(dig(recipe_of(run), "teach", "checkpoints"))) if best else None
    return folder if folder and folder.is_dir() else None


def parameters(folder: Path | None) -> int:
    """Number of parameters in a folder's safetensors files, from their headers; 0 for none, or for adapters alone.

    Raises DamagedArtifactError for a header that contradicts itself or the size of the file.
    """
    return sum(map(_parameters, folder.glob("model*.safetensors"))) if folder else 0


def layer_sizes(folder: Path) -> tuple[int, int] | None:
    """Number of layers of a model, and of the parameters in all of them together; None if config.json or the names of
    the weights do not show it. Raises as `parameters`."""
    layers = _sizes(folder).get("num_hidden_layers")
    inside = sum(_parameters(path, only=_IN_LAYER) for path in folder.glob("model*.safetensors"))
    return (layers, inside) if isinstance(layers, int) and inside else None


def _parameters(path: Path, only: re.Pattern[str] | None = None) -> int:
    """Of one file. Shapes are checked against the space of the tensors: the weights themselves are not read. only: the
    tensors whose names this pattern finds."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size - 8 - length
            header = json.loads(file.read(length)) if size >= 0 else {}
        names = [name for name in header if name != "__metadata__"]
        tensors = [header[name] for name in names]
        counts = [math.prod(tensor["shape"]) for tensor in tensors]
        spaces = [end - start for start, end in (tensor["data_offsets"] for tensor in tensors)]
        widths = [_BYTES.get(tensor["dtype"]) for tensor in tensors]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise integrity.damaged(path, error) from error
    needed = [count * width if width else space for count, width, space in zip(counts, widths, spaces, strict=True)]
    if sum(spaces) != size or spaces != needed:
        raise integrity.damaged(path, "one that does not", "a header that fits the size of the file")
    return sum(count for name, count in zip(names, counts, strict=True) if only is None or only.search(name))


def is_pruned(teacher: Path, student: Path) -> bool:
    """Whether the student has the teacher's config with fewer layers, and everything else the same."""
    ours, theirs = (_sizes(folder) for folder in (student, teacher))
    layers = "num_hidden_layers"
    if not (ours and theirs and isinstance(ours.get(layers), int) and isinstance(theirs.get(layers), int)):
        return False
    return ours.pop(layers) < theirs.pop(layers) and ours == theirs


def _sizes(folder: Path) -> dict[str, Any]:
    """Type and sizes of a model from its config.json, without lists by layer; empty if there is no config."""
    config = read_or_none(folder / "config.json")
    config = config.get("text_config", config) if isinstance(config, dict) else {}
    return {
        key: value
        for key, value in config.items()
        if key == "model_type" or key.endswith("_size") or key.startswith("num_")
    }


# --- what is being written, and by which process ---


def begun(run: Path) -> list[str]:
    """Folders whose work has begun and not finished, the latest last."""
    paths = [
        path for depth in DEPTHS for path in run.glob(f"{depth}/{STARTED}") if not (path.parent / MANIFEST).is_file()
    ]
    names = [path.parent.relative_to(run).as_posix() for path in sorted(paths, key=written)]
    return [name for name in names if not name.startswith(".")]


def newest_change(folder: Path) -> float:
    """When a file in a folder was last written, in seconds since 1970; 0 for an empty folder."""
    return max((written(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names), default=0.0)


def written(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 if it does not exist."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def worker(run: Path) -> psutil.Process | None:
    """The process on this machine that holds the run's lock, found without touching the lock; None if there is none."""
    import psutil

    lock = run.resolve() / ".lock"
    if not lock.is_file():
        return None
    for pid in _lock_holders(lock) if Path("/proc/locks").is_file() else psutil.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if any(Path(file.path) == lock for file in process.open_files()):
                return process
    return None


def _lock_holders(lock: Path) -> list[int]:
    """Process ids that hold a lock on this inode, from Linux's /proc/locks: asking every process takes a second."""
    inode, pids = str(lock.stat().st_ino), []
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if len(words) > 5 and words[1] in ("FLOCK", "POSIX", "OFDLCK") and words[5].split(":")[-1] == inode:
            pids.append(int(words[4]))
    return pids
