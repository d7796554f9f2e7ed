"""`tutelage card` and `tutelage push`: the Hugging Face model card of a finished student, and its upload to the Hub.

The text is templates/model_card.md.jinja. It holds no row of the data. The licence is `license: other`,
`license_name: not-chosen` until the owner writes another one into the card's metadata; metadata that the owner wrote
stay when the card is written again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.analysis.run_results import is_plain
from tutelage.analysis.slices import LEAST_ROWS, SliceRecord
from tutelage.analysis.worth import skill_on_test
from tutelage.errors import Kind, Problem, UserError
from tutelage.errors.wording import first_line
from tutelage.method.methods import find_method
from tutelage.method.risk_split import gap_closed
from tutelage.recipe.schema import row_metric
from tutelage.records import SPLITS, Interval
from tutelage.report.card_facts import (
    PATHS,
    FinishedStudent,
    find_student,
    prompt_expression,
    recipe_text,
    slices_against_teacher,
)
from tutelage.report.page import TEMPLATES, method_label, metric_name, slice_value
from tutelage.report.sections_run import silver_rows, verified_exports
from tutelage.run.live_reader import best_checkpoint, dig, parameters, read_or_none
from tutelage.run.own_files import by_hand, card_mark
from tutelage.utils import format
from tutelage.utils.console import out, print_table, visible
from tutelage.utils.files import write_text
from tutelage.utils.integrity import check_all

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

LICENSE = {"license": "other", "license_name": "not-chosen"}
"""Licence of a card until its owner has chosen one. The Hub accepts it; `push --public` does not."""
TASK_TYPES = {"classification": "text-classification", "ner": "token-classification", "qa": "question-answering"}
"""Our tasks by the Hub's names."""
LABEL_KINDS = {"classification": "labels", "ner": "entity types", "qa": "choices"}
HUB_METRICS = {"macro_f1": "f1", "entity_f1": "f1", "token_f1": "f1"}
"""Our metrics by the Hub's names, where those differ."""
DISTILLED = "knowledge-distillation"
"""The Hub's tag of models with a teacher."""
UPLOADED = (
    *("README.md", "LICENSE*", "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("*.py", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
    *("*.jinja", "tutelage.json"),
)
"""Files of a student that others need. Logs, weights and the probe set stay: they hold ids and losses of the rows."""


class Verbatim(str):
    """Text for a code block, which is not escaped."""


# --- the card ---


def write_card(run: Path, student: str | None = None, repo: str | None = None) -> Path:
    """Write README.md into the student's folder and return its path.

    repo: the model's name on the Hub, for the code that loads it. Raises UserError for a README.md whose text was
    changed by hand, DataError as `find_student`.
    """
    finished = find_student(run, student)
    path = finished.folder / "README.md"
    if _is_by_hand(path):
        raise UserError(
            f"{path} was written or changed by hand and would be lost: move it away first, or keep it as the card"
        )
    write_text(path, make_card(finished, repo))
    return path


def make_card(student: FinishedStudent, repo: str | None = None) -> str:
    """The card's text: metadata in YAML, Markdown, and a hash by which changes by hand are recognised."""
    from huggingface_hub import ModelCard

    data, template = metadata(student), str(TEMPLATES / "model_card.md.jinja")
    functions = {name: getattr(format, name) for name in ("number", "span", "signed_span", "p_value", "duration")}
    context = _about(student) | _scores(student) | _usage(student, repo) | _training(student) | _exports(student)
    context |= {"licensed": data.license_name != LICENSE["license_name"]}
    card = ModelCard.from_template(data, template, **_escaped(context), **functions, code_block=_code_block)
    card.text += f"\n\n{card_mark(card.text)}\n"
    return str(card)


def _code_block(code: str, language: str) -> str:
    return "\n".join(format.code_block(code, language))


def _escaped(value: Any) -> Any:
    """The value with every text in it, also inside lists and dicts, escaped for Markdown."""
    if isinstance(value, str) and not isinstance(value, Verbatim):
        return format.escape_markdown(value)
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def _about(student: FinishedStudent) -> dict[str, Any]:
    """Variables of the template: names and sizes."""
    size, teacher_size = parameters(student.folder), parameters(best_checkpoint(student.results.folder))
    method = None
    with contextlib.suppress(KeyError, TypeError):  # a method of a package that is not installed here
        method = find_method(student.method)
    return {
        "name": student.card_name,
        "task": TASK_TYPES[student.task].replace("-", " "),
        "labels": dig(student.usage, "task", "labels", default=[]),
        "label_kind": LABEL_KINDS[student.task],
        "parameters": format.parameter_count(size),
        "times_fewer": teacher_size / size if size and teacher_size > size else None,
        "without_teacher": method is not None and method.schedule == "none" and method.answers == "gold",
        "method": method_label(student.method),
        "source": method.source if method else None,
        **{role: student.short_name(role) for role in ("student", "teacher", "dataset")},
    }


def _scores(student: FinishedStudent) -> dict[str, Any]:
    """Variables of the template: scores beside those of teacher and plain fine-tuning, and slices."""
    results = student.results
    tables = results.scores.get("models", {})
    models = {"this model": student.name, "teacher": "teacher", "plain fine-tuning": "anchor"}
    if is_plain(student.name):  # two models of the table are plain fine-tuning
        models = {f"this model ({student.method})": student.name, "teacher": "teacher", "anchor": "anchor"}
    scored = {label: name for label, name in models.items() if name in tables}
    names = [name for name in tables.get(student.name, {}) if "/" not in name]
    chosen = [results.score(name) for name in ("anchor", "teacher", student.name)]
    gap_is_known = all(chosen) and not is_plain(student.name)
    slices = slices_against_teacher(student)
    teacher = skill_on_test(results, "teacher")
    return {
        "models": list(scored),
        "two_plain": is_plain(student.name) and "anchor" in scored,
        "scores": [
            {"metric": metric_name(name), "values": [results.score(model, name) for model in scored.values()]}
            for name in sorted(names, key=lambda name: name != results.scores["metric"])
        ],
        "test_rows": len(results.predictions.get(student.name, ())) or results.scores.get("rows", 0),
        "difference": results.lead(student.name, "teacher"),
        "row_metric": metric_name(row_metric(results.scores.get("metric"))),
        "doubts": doubts(student),
        "teacher_of": "the" if is_plain(student.name) else "its",
        "teacher_nothing": teacher is not None and teacher.nothing,
        "gap_closed": gap_closed(*(score.value for score in chosen)) if gap_is_known else None,
        "slices": None if slices is None else [_slice(line) for line in slices if line["rows"] >= LEAST_ROWS],
        "least_rows": LEAST_ROWS,
    }


def doubts(student: FinishedStudent) -> str | None:
    """Why the student may not be worth using; None if its test scores raise no doubt, or are missing."""
    skill, metric = skill_on_test(student.results, student.name), metric_name(student.results.scores.get("metric"))
    if skill is None or skill.surely_something:
        return None
    if skill.many_unreadable:
        return f"{skill.unreadable:.0%} of its answers to {skill.rows:,} test rows are invalid"
    guess = {"majority": "the most common training answer", "chance": "a random answer"}[skill.source]
    return (
        f"its {metric}, {format.span(skill.score)} on {skill.rows:,} test rows, is not significantly above that of"
        f" {guess}, {format.number(skill.baseline)}"
    )


def _slice(line: SliceRecord) -> dict[str, Any]:
    score = line["score"]
    p_holm = score.get("p_holm")
    return {
        "key": str(line["key"]).replace("_", " "),
        "value": slice_value(line["key"], line["value"]) or "(none)",
        "rows": line["rows"],
        "student": score["student"],
        "teacher": score["teacher"],
        "difference": Interval(score["difference"], score["low"], score["high"]),
        "p_holm": p_holm,
        "rank": (1.0 if p_holm is None else p_holm, score["high"]),
    }


def _usage(student: FinishedStudent, repo: str | None) -> dict[str, Any]:
    """Variables of the template: how to load the model and ask it."""
    system, forms = (dig(student.usage, *keys) for keys in (("data", "system"), ("task", "verbalizers")))
    return {
        "repository": repo and Verbatim(repo),
        "repository_literal": Verbatim(repr(repo or "PATH_OR_REPOSITORY")),
        "prompt": Verbatim(prompt_expression(student)),
        "chat": bool(dig(student.usage, "data", "chat_template")),
        "system": system and Verbatim(repr(system)),
        "max_new_tokens": student.usage.get("max_new_tokens", 64),
        "chooses_labels": dig(student.usage, "task", "decoding") == "labels",
        "label_of": Verbatim({form: label for label, form in forms.items()}) if forms else None,
    }


def _exports(student: FinishedStudent) -> dict[str, Any]:
    """Variables of the template: the student and its exports, each in its runtime, on the same test rows."""
    records = verified_exports(student.results.folder, student.name)
    lines = [("the student", record["original"], record["rows"]) for record in records[:1]]
    lines += [(f"{line['format']} {line['precision']}", line["exported"], line["same_answers"]) for line in records]
    return {
        "export_rows": records[0]["rows"] if records else 0,
        "export_threads": records[0]["threads"] if records else 0,
        "export_metric": metric_name(records[0]["metric"]) if records else "",
        "exports": [
            {
                "name": name,
                "runtime": served["runtime"],
                "score": Interval(*(served["scores"][record["metric"]][end] for end in ("value", "low", "high"))),
                "same": same,
                "size": format.file_size(served["bytes"]),
                "milliseconds": f"{served['row_ms']['median']:.1f}",
                "memory": format.file_size(served["peak_memory"]),
            }
            for record, (name, served, same) in zip([*records[:1], *records], lines, strict=True)
        ],
    }


def _training(student: FinishedStudent) -> dict[str, Any]:
    """Variables of the template: data, stages, time, versions and the recipe."""
    manifest = student.results.manifests.get(f"distill/{student.name}") or {}
    stages = read_or_none(student.folder / "stages.json") or []
    splits = [row["split"] for row in student.rows]
    return {
        "rows": {split: splits.count(split) for split in SPLITS},
        "silver": silver_rows(student.results.folder),
        "stages": [stage["chosen"] or "gold" for stage in stages],
        "kept_stage": manifest.get("kept_stage", len(stages)),
        "seconds": manifest.get("seconds"),
        "seed": manifest.get("seed", 0),
        "versions": manifest.get("versions") or {},
        "recipe": Verbatim(recipe_text(student)),
    }


# --- metadata ---


def metadata(student: FinishedStudent) -> ModelCardData:
    """The card's metadata; what the owner wrote into an earlier card stays where we know nothing better."""
    from huggingface_hub import ModelCardData

    before, _ = _read_card(student.folder / "README.md")
    codes = {re.split("[-_]", str(row["language"]))[0].lower() for row in student.rows if row.get("language")}
    scores = student.results.scores
    names = [name for name in scores.get("models", {}).get(student.name, ()) if "/" not in name and name != "nll"]
    names = sorted((name for name in names if not name.endswith("_rate")), key=lambda name: name != scores["metric"])
    ours = {
        **({key: value for key, value in before.items() if key.startswith("license")} or LICENSE),
        "language": sorted(code for code in codes if re.fullmatch("[a-z]{2,3}", code)) or None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": student.hub_name("student"),
        "datasets": [student.hub_name("dataset")] if student.hub_name("dataset") else None,
        "tags": ["tutelage", *([] if is_plain(student.name) else [DISTILLED]), TASK_TYPES[student.task]],
        "metrics": list(dict.fromkeys(HUB_METRICS.get(name, name) for name in names)) or None,
    }
    unknown = before.keys() - {"model-index", *LICENSE} - {key for key, value in ours.items() if value is not None}
    kept = {key: value for key, value in before.items() if key in unknown}
    evaluated = [_eval_result(student, name) for name in names]
    model = {"model_name": visible(student.card_name), "eval_results": evaluated} if evaluated else {}
    return ModelCardData(**{**ours, **kept}, **model)


def _eval_result(student: FinishedStudent, metric: str) -> EvalResult:
    from huggingface_hub import EvalResult

    score, dataset = student.results.score(student.name, metric), visible(student.short_name("dataset"))
    low, high = format.number(score.low), format.number(score.high)
    return EvalResult(
        task_type=TASK_TYPES[student.task],
        dataset_type=student.hub_name("dataset") or re.sub(r"[^\w.-]+", "-", dataset),
        dataset_name=dataset,
        dataset_config=dig(student.results.recipe, "data", "dataset_config"),
        dataset_split=str(student.results.scores.get("split", "test")),
        metric_type=HUB_METRICS.get(metric, metric),
        metric_name=f"{metric_name(metric)}, 95 % interval {low} to {high}",
        metric_value=round(score.value, 4),
    )


def _read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card; both empty if there is no file."""
    return _parse_card(path.read_text(encoding="utf-8"), path) if path.is_file() else ({}, "")


def _parse_card(text: str, path: Path) -> tuple[dict[str, Any], str]:
    import yaml
    from huggingface_hub import ModelCard

    if not text.startswith("---"):
        return {}, text
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"the metadata of {path} are not YAML: correct them, or delete the file") from error
    return card.data.to_dict(), card.text


def _is_by_hand(path: Path) -> bool:
    """Whether a README.md holds text that we did not write."""
    return by_hand(_read_card(path)[1])


# --- to the Hub ---


def push(
    run: Path,
    student: str | None,
    repo: str,
    private: bool = True,
    dry_run: bool = False,
    *,
    api: Any = None,
    confirm: Callable[[str], bool] = lambda doubt: False,
) -> list[tuple[str, int]]:
    """Upload a student with its card to the model repository `repo` (OWNER/NAME) of the Hub, creating it if missing.

    private: the repository must be private, and is created so. dry_run: print what would be uploaded, use no network,
    write nothing. api: a `huggingface_hub.HfApi`, by default of the user who is logged in. confirm: asked whether to
    upload a student in spite of `doubts`. Returns names and sizes in bytes. Raises UserError for a public repository
    while `private` is on, for publishing without a licence, for a student in doubt that is not confirmed, and for what
    the Hub refuses.
    """
    _check_repository_name(repo)
    finished = find_student(run, student)
    check_all(finished.folder)
    doubt = doubts(finished)
    if doubt and dry_run:
        out(f"{visible(finished.name)} may not be worth uploading: {doubt}")
    elif doubt and not confirm(f"{visible(finished.name)} may not be worth uploading: {doubt}. Upload it?"):
        raise UserError(Problem(Kind.STUDENT_NOT_USABLE, values={"student": visible(finished.name), "doubt": doubt}))
    files = _files(finished, repo)
    card, _ = _parse_card(files["README.md"].decode(), finished.folder / "README.md")
    if not private and card.get("license_name") == LICENSE["license_name"]:
        raise UserError(
            f"the card of {finished.name} has no licence yet, so nobody could use the published model: run `tutelage"
            f" card`, replace `license: other` in the metadata of {finished.folder / 'README.md'}, and push again"
        )
    sizes = [(name, len(file) if isinstance(file, bytes) else file.stat().st_size) for name, file in files.items()]
    total = ("total", sum(size for _, size in sizes))
    rows = [[name, format.file_size(size)] for name, size in (*sizes, total)]
    print_table(f"{finished.folder} → {repo}", ["file", "size"], rows)
    left = sorted(path.name for path in finished.folder.iterdir() if path.name not in files)
    if left:
        out(f"not uploaded: {', '.join(left)}")
    if dry_run:
        out(f"dry run: nothing was uploaded to {repo} ({'private' if private else 'public'})")
        return sizes
    url = _upload(files, repo, private, api, f"{finished.card_name}, trained with tutelage")
    if isinstance(files["README.md"], bytes):
        write_text(finished.folder / "README.md", files["README.md"].decode())
    out(f"uploaded: {url}")
    return sizes


def _check_repository_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{visible(repo)!r} is not a repository name: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"{repo!r} does not name the repository's owner: write OWNER/{repo}")


def _files(student: FinishedStudent, repo: str) -> dict[str, bytes | Path]:
    """The files to upload, by name in the repository; those written for the upload as bytes."""
    files: dict[str, bytes | Path] = {
        path.name: path
        for path in sorted(student.folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in UPLOADED)
    }
    card = student.folder / "README.md"
    files["README.md"] = card.read_bytes() if _is_by_hand(card) else make_card(student, repo).encode()
    if student.usage:
        local = PATHS if not student.hub_name("dataset") else ()
        data = {key: None if key in local else value for key, value in student.usage["data"].items()}
        files["tutelage.json"] = json.dumps({**student.usage, "data": data}, indent=2, ensure_ascii=False).encode()
    return files


def _upload(files: dict[str, bytes | Path], repo: str, private: bool, api: Any, message: str) -> str:
    """Create the repository if it is missing, and upload all files in one commit. Returns its address."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = api or HfApi()
    try:
        url = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        if private and not api.repo_info(repo, repo_type="model").private:
            raise UserError(f"{repo} exists and is public: name another, make it private, or push with --public")
        operations = [
            CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
        ]
        api.create_commit(repo, operations, commit_message=message, repo_type="model")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"the Hub did not accept {repo}: {first_line(error)}. Log in with `hf auth login` and a token that may"
            " write"
        ) from error
    return str(url)
