"""A run folder from outside: read while it is being written, and shown without trusting what is in it.

For the commands that look at runs (`watch`, `ls`, `clean`, `explain`, `card`). Nothing here locks, writes or loads a
model.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import DataError
from tutelage.method.methods import find_method
from tutelage.records import BASE_MODELS
from tutelage.run.manifest import MANIFEST, STARTED

if TYPE_CHECKING:
    import psutil

DEPTHS = ("*", "*/*", "*/*/*")
"""Where the folder of a piece of work lies in a run: cache, evaluate/anchor, distill/METHOD/seed-K."""
ORDER = (
    *("prepare", "teach", "anchor", "anchor_cache", "cache", "teacher_answers", "cross_fit", "distill", "evaluate"),
    *("diagnose", "report"),
)
"""First folders of the pieces of work, in the order in which a run does them."""


def parameters(folder: Path | None) -> int:
    """Parameters in a folder's safetensors files, from their headers; 0 for none, or for adapters alone."""
    total = 0
    for path in sorted(folder.glob("model*.safetensors")) if folder else ():
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            count = 1
            for length in tensor["shape"] if name != "__metadata__" else (0,):
                count *= length
            total += count
    return total


def is_pruned(teacher: Path, student: Path) -> bool:
    """Whether one model folder is another with layers taken out: everything else of their make-up is the same."""
    ours, theirs = (_make_up(folder) for folder in (student, teacher))
    layers = "num_hidden_layers"
    if not (ours and theirs and isinstance(ours.get(layers), int) and isinstance(theirs.get(layers), int)):
        return False
    return ours.pop(layers) < theirs.pop(layers) and ours == theirs


def _make_up(folder: Path) -> dict[str, Any]:
    """Sizes of a model's parts by its config.json, without what is listed layer by layer; empty where there is none."""
    config = read_or_none(folder / "config.json")
    config = config.get("text_config", config) if isinstance(config, dict) else {}
    return {
        key: value
        for key, value in config.items()
        if key == "model_type" or key.endswith("_size") or key.startswith("num_")
    }


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: `prepare` has begun there, or a result lies there."""
    return any(
        (folder / name).is_file() for name in (f"prepare/{STARTED}", f"prepare/{MANIFEST}", "evaluate/scores.json")
    )


def read_or_none(path: Path) -> Any:
    """The value in a JSON file; None where there is none, or none that can be read now (it may be about to be
    written)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records with a loss of a log that may be being written: a line that is not whole is left out, and so is what a
    training that was killed had logged beyond the step from which it went on."""
    found: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int) and "loss" in record:
                while found and _place(found[-1]) >= _place(record):
                    found.pop()
                found.append(record)
    return found


def _place(record: dict[str, Any]) -> tuple[int, int]:
    return record.get("stage") or 0, record["step"]


def recipe_of(run: Path) -> dict[str, Any]:
    """recipe.yaml as plain values; empty where there is none yet. Raises DataError if it cannot be read."""
    import yaml

    try:
        # The C loader reads a recipe of 150 lines in 2 ms instead of 20.
        found = yaml.load(
            (run / "recipe.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except OSError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{run / 'recipe.yaml'} is not YAML: `tutelage run RECIPE` writes it again") from error
    return found if isinstance(found, dict) else {}


def dig(value: Any, *keys: str, default: Any = None) -> Any:
    """The value under keys of nested dicts; `default` where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return default if value is None else value


def pieces(recipe: dict[str, Any]) -> list[str]:
    """Folders that a run of this recipe fills, in order; none while there is no recipe."""
    names = [name for name in dig(recipe, "distill", "methods", default=[]) if isinstance(name, str)]
    seeds, methods = dig(recipe, "distill", "seeds", default=[0]), []
    for name in names:
        with contextlib.suppress(KeyError, TypeError, ImportError):  # a method of a package that is not on this machine
            methods.append(find_method(name))
    if not names:
        return []
    found = ["prepare", "teach", "anchor"]
    found += ["anchor_cache"] if any(method.weighting == "gated" for method in methods) else []
    found += ["cache"] if any(method.schedule != "none" for method in methods) else []
    found += ["teacher_answers"] if any(method.answers == "teacher" for method in methods) else []
    found += ["cross_fit"] if any(method.needs_cross_fit for method in methods) else []
    students = [f"{name}/seed-{seed}" for name in names for seed in seeds]
    models = [*BASE_MODELS, *students]
    return [
        *found,
        *(f"distill/{name}" for name in students),
        *(f"evaluate/{name}" for name in models),
        "diagnose",
        "report",
    ]


def last_part(path: Any) -> Any:
    """A path, or each of a list of them, without the folders it lies in; nothing stays nothing."""
    return [last_part(one) for one in path] if isinstance(path, list) else path and Path(str(path)).name


def best_checkpoint(run: Path) -> Path | None:
    """Folder of T*: in the run, or as recorded for checkpoints of the user's own; None if neither folder exists."""
    taught = read_or_none(run / "teach" / "checkpoints.json") or {}
    best = next((c for c in taught.get("checkpoints") or [] if c.get("name") == taught.get("best")), None)
    folders = [run / "teach" / best["name"], *([Path(best["folder"])] if best.get("folder") else [])] if best else []
    return next((folder for folder in folders if folder.is_dir()), None)


def begun(run: Path) -> list[str]:
    """Pieces of work that have begun and not ended, the one that began last at the end."""
    found = [
        path for depth in DEPTHS for path in run.glob(f"{depth}/{STARTED}") if not (path.parent / MANIFEST).is_file()
    ]
    names = [path.parent.relative_to(run).as_posix() for path in sorted(found, key=written)]
    return [name for name in names if not name.startswith(".")]


def newest_change(folder: Path) -> float:
    """When a file of a folder was last written, in seconds since 1970; 0 for an empty one."""
    return max((written(Path(place, name)) for place, _, names in os.walk(folder) for name in names), default=0.0)


def written(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 for one that is not there."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def worker(run: Path) -> psutil.Process | None:
    """The process of this machine that holds the run's lock, found without touching the lock; None if there is none."""
    import psutil

    lock = run.resolve() / ".lock"
    if not lock.is_file():
        return None
    for pid in _holders(lock) if Path("/proc/locks").is_file() else psutil.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if any(Path(file.path) == lock for file in process.open_files()):
                return process
    return None


def _holders(lock: Path) -> list[int]:
    """Processes that have locked a file of this inode, as Linux lists them: looking into every process takes a
    second."""
    node, found = str(lock.stat().st_ino), []
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if len(words) > 5 and words[1] in ("FLOCK", "POSIX", "OFDLCK") and words[5].split(":")[-1] == node:
            found.append(int(words[4]))
    return found
