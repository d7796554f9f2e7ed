"""`tutelage card` and `tutelage push`: a distilled student with its Hugging Face model card, and the way to the Hub.

The card says what the run can prove: scores with intervals beside the teacher's, slices where the student loses, how it
was made and how to use it. It holds no row of the data. Licence: `license: other`, `license_name: not-chosen` until the
owner writes another into the card's first lines; what is written there stays when the card is written again.
"""

from __future__ import annotations

import hashlib
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.report.card_text import PATHS, TASK_TYPES, Student, card_body, card_name, find_student
from tutelage.report.page import metric_name
from tutelage.run.live_reader import dig
from tutelage.utils.console import print_table, visible
from tutelage.utils.format import file_size, number

LICENSE = {"license": "other", "license_name": "not-chosen"}
"""What stands in a card until its owner has chosen. The Hub accepts it; `push` publishes no model with it."""
HUB_METRICS = {"macro_f1": "f1", "entity_f1": "f1", "token_f1": "f1"}
"""Our metrics by the Hub's names, where those differ."""
UPLOADED = (
    *(
        "README.md",
        "LICENSE*",
        "config.json",
        "generation_config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "*.py",
    ),
    *(
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*",
        "merges.txt",
        "*.model",
        "*.jinja",
        "tutelage.json",
    ),
)
"""Files of a student that others need. Logs, weights and probe rows stay: they hold ids and losses of the rows."""


# --- the card ---


def write_card(run: Path, student: str | None = None, repo: str | None = None) -> Path:
    """Write README.md into the student's folder and return its path.

    repo: the model's name on the Hub, for the lines that show how to load it. The metadata that the owner has set in an
    earlier card stay. Raises UserError for a README.md whose text was changed by hand, DataError as `find_student`.
    """
    one = find_student(run, student)
    path = one.folder / "README.md"
    if _by_hand(path):
        raise UserError(
            f"{path} was written or changed by hand and would be lost: move it away first, or keep it as the card"
        )
    text = make_card(one, repo)
    draft = path.with_name("README.md.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def make_card(one: Student, repo: str | None = None) -> str:
    """The card's text: metadata in YAML, then Markdown."""
    data = metadata(one)
    body = card_body(one, repo, licensed=data.license_name != LICENSE["license_name"])
    return f"---\n{data.to_yaml()}\n---\n{body}\n<!-- tutelage card {_mark(body)} -->\n"


def _mark(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]


def _parts_of(path: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card that is there; both empty where there is none."""
    return _split(path.read_text(encoding="utf-8") if path.is_file() else "", path)


def _split(text: str, path: Path | str = "the card") -> tuple[dict[str, Any], str]:
    import yaml

    found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n(.*)", text, re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise UserError(f"the first lines of {path} are not YAML: mend them, or delete the file") from error
    return (values if isinstance(values, dict) else {}), found[2] if found else text


def _by_hand(path: Path) -> bool:
    """Whether a README.md holds text that we did not write."""
    _, text = _parts_of(path)
    mark = re.search(r"\n<!-- tutelage card (\w+) -->\s*$", text)
    return bool(text.strip()) and (not mark or mark[1] != _mark(text[: mark.start()]))


def metadata(one: Student) -> Any:
    """The card's metadata, a `huggingface_hub.ModelCardData`; what the owner has set before wins where we know nothing
    better."""
    from huggingface_hub.repocard_data import ModelCardData

    before, _ = _parts_of(one.folder / "README.md")
    languages = {
        str(row["language"]).split("-")[0].split("_")[0].lower() for row in one.rows.values() if row.get("language")
    }
    names = [name for name in one.scores(one.name) if "/" not in name and name != "nll" and not name.endswith("_rate")]
    ours = {
        **({key: value for key, value in before.items() if key.startswith("license")} or LICENSE),
        "language": sorted(code for code in languages if re.fullmatch("[a-z]{2,3}", code)) or None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": one.hub_name("student"),
        "datasets": [one.hub_name("dataset")] if one.hub_name("dataset") else None,
        "tags": ["tutelage", "knowledge-distillation", TASK_TYPES[one.task]],
        "metrics": list(dict.fromkeys(HUB_METRICS.get(name, name) for name in names)) or None,
    }
    known = {
        key: value for key, value in before.items() if ours.get(key) is None and key not in ("model-index", *LICENSE)
    }
    results = _eval_results(one, names)
    return ModelCardData(
        **{**ours, **known}, model_name=visible(card_name(one)) if results else None, eval_results=results or None
    )


def _eval_results(one: Student, names: list[str]) -> list[Any]:
    from huggingface_hub.repocard_data import EvalResult

    scores, source = one.scores(one.name), visible(one.short_name("dataset"))
    names = sorted(names, key=lambda name: name != one.metric)
    return [
        EvalResult(
            task_type=TASK_TYPES[one.task],
            dataset_type=one.hub_name("dataset") or re.sub(r"[^\w.-]+", "-", source),
            dataset_name=source,
            dataset_config=dig(one.recipe, "data", "dataset_config"),
            dataset_split=str(one.about.get("split", "test")),
            metric_type=HUB_METRICS.get(name, name),
            metric_name=f"{metric_name(name)}, 95 % interval {number(scores[name].low)} to {number(scores[name].high)}",
            metric_value=round(scores[name].value, 4),
        )
        for name in names
    ]


# --- to the Hub ---


def push(
    run: Path, student: str | None, repo: str, private: bool = True, dry_run: bool = False, *, api: Any = None
) -> list[tuple[str, int]]:
    """Upload a student to the model repository `repo` (OWNER/NAME) of the Hub, which is made if it is not there; with
    its card.

    private: the repository must be private, and is made so. dry_run: print what would be sent, touch no network, write
    nothing.
    api: a `huggingface_hub.HfApi`; default: that of the user who is logged in. Returns names and sizes in bytes. Raises
    UserError where the repository is open to all and `private` is on, for publishing without a licence, and for what
    the Hub refuses.
    """
    _check_name(repo)
    one = find_student(run, student)
    files = _files(one, repo)
    unlicensed = dig(_split(files["README.md"].decode())[0], "license_name") == LICENSE["license_name"]
    if unlicensed and not private:
        raise UserError(
            f"the card of {one.name} has no licence yet, so nobody could use what is published: run `tutelage card`, write one in"
            f" place of `license: other` into the first lines of {one.folder / 'README.md'}, and push again"
        )
    sizes = [(name, len(what) if isinstance(what, bytes) else what.stat().st_size) for name, what in files.items()]
    rows = [[name, file_size(size)] for name, size in (*sizes, ("in all", sum(size for _, size in sizes)))]
    print_table(f"{visible(one.folder)} → {repo}", ["file", "size"], rows)
    left = sorted(path.name for path in one.folder.iterdir() if path.name not in files)
    if left:
        print(f"stays here: {visible(', '.join(left))}")
    if dry_run:
        print(f"dry run: nothing was sent to {repo} ({'private' if private else 'open to all'})")
    else:
        url = _send(files, repo, private, api, f"{card_name(one)}, made with tutelage")
        if isinstance(files["README.md"], bytes):
            (one.folder / "README.md").write_bytes(files["README.md"])
        print(f"sent: {visible(url)}")
    return sizes


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{visible(repo)!r} is no name of a repository: {str(error).splitlines()[0]}") from error
    if "/" not in repo:
        raise UserError(f"{repo!r} does not say whose repository it is: write OWNER/{repo}")


def _files(one: Student, repo: str) -> dict[str, bytes | Path]:
    """What is sent, by its name in the repository: files as they are, and texts that are made for it."""
    found: dict[str, bytes | Path] = {
        path.name: path
        for path in sorted(one.folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in UPLOADED)
    }
    card = one.folder / "README.md"
    found["README.md"] = card.read_bytes() if _by_hand(card) else make_card(one, repo).encode()
    if one.usage:
        data = {
            key: None if key in PATHS and not one.hub_name("dataset") else value
            for key, value in one.usage["data"].items()
        }
        found["tutelage.json"] = json.dumps({**one.usage, "data": data}, indent=2, ensure_ascii=False).encode()
    return found


def _send(files: dict[str, bytes | Path], repo: str, private: bool, api: Any, message: str) -> str:
    """Make the repository if need be, and send all files in one commit. Returns its address."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = api or HfApi()
    try:
        url = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        if private and not api.repo_info(repo, repo_type="model").private:
            raise UserError(
                f"{repo} is there already and open to all: name another, make it private, or push with --public"
            )
        operations = [
            CommitOperationAdd(name, what if isinstance(what, bytes) else str(what)) for name, what in files.items()
        ]
        api.create_commit(repo, operations, commit_message=message, repo_type="model")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the Hub did not take {repo}: {first}. Log in with `hf auth login` and a token that may write"
        ) from error
    return str(url)
