"""What a model card says of a distilled student, section by section, from the files of its run.

Nothing in it is a row of the data; names and labels that come from data are shown as they are, never as markup.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.analysis.run_results import as_interval
from tutelage.analysis.run_summary import summarise_run
from tutelage.analysis.statistics import holm, mcnemar_exact
from tutelage.errors import DataError
from tutelage.method.methods import find_method
from tutelage.method.risk_split import gap_closed
from tutelage.records import Interval
from tutelage.report.page import metric_name, model_name, slice_value
from tutelage.run.live_reader import best_checkpoint, dig, last_part, parameters, read_or_none, recipe_of, written
from tutelage.run.run_state import manifests_by_folder
from tutelage.tasks import TASKS, template_for
from tutelage.tasks.metrics import entity_counts
from tutelage.utils.bootstrap import bootstrap
from tutelage.utils.console import visible
from tutelage.utils.files import read_jsonl
from tutelage.utils.format import (
    code_block,
    duration,
    escape_markdown,
    markdown_table,
    number,
    p_value,
    parameter_count,
    signed_span,
    span,
)

TASK_TYPES = {"classification": "text-classification", "ner": "token-classification", "qa": "question-answering"}
"""Our tasks by the Hub's names."""
MOST_SLICES, LEAST_ROWS = 10, 10
"""Slices that a card lists, and rows that one of them has at least: fewer say nothing."""
PATHS = ("dataset", "train", "validation", "test")
"""Keys of the data section that hold files or folders."""
SLICE_TABLE = ["slice", "rows", "this model", "teacher", "difference", "p (Holm)"]


@dataclass(frozen=True)
class Student:
    """A finished student with what its run says of it."""

    run: Path
    name: str
    """METHOD/seed-K."""
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.run / "distill" / self.name

    @property
    def method(self) -> str:
        """Row of METHODS, or a variant of one."""
        return self.name.rpartition("/")[0]

    @cached_property
    def usage(self) -> dict[str, Any]:
        """tutelage.json."""
        return read_or_none(self.folder / "tutelage.json") or {}

    @cached_property
    def manifests(self) -> dict[str, Any]:
        """Manifests of the run, by folder."""
        return manifests_by_folder(self.run)

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """All prepared rows by id."""
        path = self.run / "prepare" / "rows.jsonl"
        return {row["id"]: row for row in read_jsonl(path)} if path.is_file() else {}

    @property
    def task(self) -> str:
        """`classification`, `ner` or `qa`."""
        return str(dig(self.recipe, "task", "type") or dig(self.usage, "task", "type") or self.about.get("task"))

    @property
    def about(self) -> dict[str, Any]:
        """evaluate/scores.json."""
        return read_or_none(self.run / "evaluate" / "scores.json") or {}

    @property
    def metric(self) -> str:
        """The score that choices were made by."""
        return str(
            self.about.get("metric") or dig(self.recipe, "task", "metric") or TASKS[self.task].choosable_metrics[0]
        )

    def scores(self, model: str) -> dict[str, Interval]:
        """Every metric of a model of the run on the test rows."""
        own = read_or_none(self.run / "evaluate" / model / "scores.json") or dig(
            self.about, "models", model, default={}
        )
        return {name: score for name, value in own.items() if (score := as_interval(value))}

    def predictions(self, model: str) -> dict[str, dict[str, Any]]:
        """A model's lines of predictions.jsonl by row id."""
        own = self.run / "evaluate" / model / "predictions.jsonl"
        path = own if own.is_file() else self.run / "evaluate" / "predictions.jsonl"
        return {line["id"]: line for line in read_jsonl(path) if line["model"] == model} if path.is_file() else {}

    @cached_property
    def against_teacher(self) -> dict[str, Any] | None:
        """The student against its teacher on all test rows (`whole`) and by slice (`slices`).

        From diagnose/slices.json if that is there, else worked out from the predictions; None without both models'
        answers.
        """
        diagnosis = self.run / "diagnose" / "slices.json"
        answers = [self.run / "evaluate" / name / "predictions.jsonl" for name in (self.name, "teacher")]
        newer = any(written(path) > written(diagnosis) for path in answers)
        return (None if newer else _diagnosed(read_or_none(diagnosis), self.name)) or _measured(self)

    def hub_name(self, role: str) -> str | None:
        """Hub id of teacher or student (the model it began as) or of the data set; None for a folder or file of one's
        own."""
        name = self._named(role)
        inputs = dig(self.manifests.get("prepare"), "inputs", default={})
        if role == "dataset":
            return name if "hub" in (inputs.get("data files") or {}) else None
        return name if name and str(inputs.get(f"{role} model", "")).startswith(f"{name}@") else None

    def short_name(self, role: str) -> str:
        """What a reader may call it: the Hub id, or the last part of a path."""
        return (
            self.hub_name(role) or Path(str(self._named(role) or dig(self.recipe, "name", default=self.run.name))).name
        )

    def _named(self, role: str) -> Any:
        return dig(self.recipe, *(("data", "dataset") if role == "dataset" else (role, "model_name_or_path")))


def find_student(run: Path, name: str | None) -> Student:
    """A finished student of a run; without a name the best on validation. Raises DataError if there is none, or not
    this one."""
    folders = sorted(
        path.parent for path in run.glob("distill/*/*/manifest.json") if any(path.parent.glob("*.safetensors"))
    )
    names = [folder.relative_to(run / "distill").as_posix() for folder in folders]
    if not names:
        raise DataError(
            f"{run} has no finished student: `tutelage run RECIPE` makes one, `tutelage ls` shows which runs have"
        )
    name = name or summarise_run(run).method or (names[0] if len(names) == 1 else "")
    if name not in names:
        found = f"{run} has no finished student {visible(name)!r}" if name else f"{run} has several students"
        raise DataError(f"{found}: name one of {', '.join(map(visible, names[:20]))}")
    return Student(run, name, recipe_of(run))


def _diagnosed(found: Any, name: str) -> dict[str, Any] | None:
    """This student against T* out of diagnose/slices.json; slices made of the losses that are compared prove
    nothing."""
    untested = {part["key"] for part in dig(found, "partitions", default=[]) if not part["tested"]}
    for pair in dig(found, "pairs", default=[]):
        if (pair["student"], pair["teacher"]) == (name, "teacher"):
            given = [line for line in pair["slices"] if line["key"] not in untested]
            return {"whole": pair["whole"], "slices": [*pair.get("found", []), *given]}
    return None


def _measured(one: Student) -> dict[str, Any] | None:
    """Row scores of student and teacher on all rows, and by language, subdomain, label or entity type."""
    both = {name: one.predictions(name) for name in (one.name, "teacher")}
    ids = [id for id in both[one.name] if id in both["teacher"]]
    if not ids:
        return None
    scores = np.array([[lines[id]["score"] for lines in both.values()] for id in ids], dtype=np.float64)
    gold = [both["teacher"][id]["gold"] for id in ids]
    keys = {key: [one.rows.get(id, {}).get(key) for id in ids] for key in ("language", "subdomain")}
    keys |= {"label": gold} if one.task == "classification" else {}
    found = [
        _record(key, value, scores[[other == value for other in values]])
        for key, values in keys.items() if len(set(values)) > 1 for value in sorted(set(values), key=str)
    ]  # fmt: skip
    if one.task == "ner":
        counts = [
            [entity_counts(lines[id]["prediction"] or [], lines[id]["gold"]) for lines in both.values()] for id in ids
        ]
        for kind in sorted({kind for pairs in gold for kind, _ in pairs}):
            mine = [row for row, pairs in zip(counts, gold, strict=True) if any(other == kind for other, _ in pairs)]
            found.append(
                _record("entity type", kind, np.array([[_f1(*c.get(kind, (0, 0, 1))) for c in row] for row in mine]))
            )
    found = [line for line in found if line["rows"] >= LEAST_ROWS]
    for line, p_holm in zip(found, holm([line["score"]["p_value"] for line in found]) if found else (), strict=True):
        line["score"]["p_holm"] = float(p_holm)
    return {"whole": _record("all", None, scores), "slices": found}


def _record(key: str, value: str | None, scores: np.ndarray) -> dict[str, Any]:
    """[rows, 2] scores of student and teacher on a slice, in the form of diagnose/slices.json; p by an exact test of
    the signs."""
    lead = bootstrap(scores, lambda draws, rows: {"lead": draws @ (rows[:, 0] - rows[:, 1]) / draws.sum(1)})["lead"]
    wins, losses = (int((sign * (scores[:, 0] - scores[:, 1]) > 0).sum()) for sign in (1, -1))
    score = {"student": float(scores[:, 0].mean()), "teacher": float(scores[:, 1].mean()), "difference": lead.value}
    score |= {"low": lead.low, "high": lead.high, "p_value": mcnemar_exact(wins, losses)}
    return {"key": key, "value": value, "rows": len(scores), "score": score}


def _f1(matched: int, guessed: int, true: int) -> float:
    return 2 * matched / (guessed + true)


# --- sections ---


def card_body(one: Student, repo: str | None, licensed: bool) -> str:
    """The card below its metadata, in Markdown. licensed: whether the owner has chosen a licence."""
    parts = (_title(one, licensed), _scores(one), _slices(one), _use(one, repo), _made(one))
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def card_name(one: Student) -> str:
    """What the model is called: the run's name and the method."""
    return f"{dig(one.recipe, 'name', default=one.run.resolve().name)}-{one.method}"


def _title(one: Student, licensed: bool) -> list[str]:
    size, teacher = parameters(one.folder), parameters(best_checkpoint(one.run))
    times = f", {teacher / size:.1f} times as small as its teacher" if size and teacher and teacher > size else ""
    labels = dig(one.usage, "task", "labels", default=[])
    what = {"classification": "labels", "ner": "entity types", "qa": "choices"}[one.task]
    shown = ", ".join(map(escape_markdown, labels[:30])) + (", ..." if len(labels) > 30 else "")
    lines = [
        *(f"# {escape_markdown(card_name(one))}", ""),
        f"A small language model for one task, {TASK_TYPES[one.task].replace('-', ' ')}"
        + (f": {len(labels)} {what} ({shown})." if labels else "."),
        f"It has {parameter_count(size)} parameters{times}, and {_learned(one)} with tutelage.",
        "",
    ]
    if not licensed:
        lines += [
            "> **Licence: not chosen yet.** Whoever owns this model replaces `license: other` and `license_name: not-chosen` in the"
            " first lines of this file by a licence that those of the base model, the teacher and the data allow.",
            "",
        ]
    return lines


def _learned(one: Student) -> str:
    how, source = escape_markdown(model_name(one.method)), ""
    with contextlib.suppress(KeyError, TypeError):  # a method of a package that is not on this machine
        method = find_method(one.method)
        if method.schedule == "none" and method.answers == "gold":
            return f"was fine-tuned on the rows ({how}), without a teacher,"
        source = f" ({escape_markdown(method.source)})"
    return f"learned from {escape_markdown(one.short_name('teacher'))} by {how}{source}"


def _scores(one: Student) -> Iterator[str]:
    """Scores beside the teacher's and plain fine-tuning's, on the test rows."""
    models = {"this model": one.name, "teacher": "teacher", "plain fine-tuning": "anchor"}
    found = {label: scores for label, name in models.items() if (scores := one.scores(name))}
    if "this model" not in found:
        yield from ("## Scores", "", "This model has not been scored.", "")
        return
    rows = len(one.predictions(one.name)) or one.about.get("rows", 0)
    yield from ("## Scores", "", f"On {rows:,} test rows, with 95 % intervals over rows.", "")
    names = [name for name in found["this model"] if "/" not in name]
    names.sort(key=lambda name: name != one.metric)
    yield from markdown_table(
        ["", *found],
        [[escape_markdown(metric_name(n)), *(span(scores.get(n)) for scores in found.values())] for n in names],
    )
    yield from ("", *_comparison(one, found), "")


def _comparison(one: Student, found: dict[str, dict[str, Interval]]) -> Iterator[str]:
    """The score against the teacher's in words, and how much of the gap is closed."""
    ours, teacher, plain = (
        found.get(label, {}).get(one.metric) for label in ("this model", "teacher", "plain fine-tuning")
    )
    whole = one.against_teacher["whole"]["score"] if one.against_teacher else None
    if whole:
        lead = Interval(whole["difference"], whole["low"], whole["high"])
        says = "better than" if lead.low > 0 else "worse than" if lead.high < 0 else "not told apart from"
        yield f"Row by row it is {says} its teacher: mean row score {signed_span(lead)} against it."
    share = gap_closed(plain.value, teacher.value, ours.value) if ours and teacher and plain else None
    if share is not None:
        part = "none" if share < 0 else "all" if share >= 1 else f"{100 * share:.0f} %"
        yield f"It closes {part} of the gap between plain fine-tuning of the same model and the teacher."


def _slices(one: Student) -> Iterator[str]:
    """Where it is behind its teacher, said plainly; the clearest first."""
    if one.against_teacher is None:
        return
    lines = [
        line
        for line in one.against_teacher["slices"]
        if isinstance(line.get("score"), dict) and line["rows"] >= LEAST_ROWS
    ]
    behind = [line for line in lines if line["score"]["difference"] < 0]
    behind.sort(
        key=lambda line: (
            1.0 if line["score"].get("p_holm") is None else line["score"]["p_holm"],
            line["score"]["high"],
        )
    )
    clear = [line for line in behind if line["score"]["high"] < 0]
    yield from ("## Where it loses", "")
    if not lines:
        yield from ("The test rows carry no language, subdomain or label to be divided by.", "")
        return
    ahead = sum(line["score"]["difference"] > 0 for line in lines)
    yield f"Of {len(lines)} slices of {LEAST_ROWS} test rows or more it is behind its teacher on {len(behind)}, clearly (the whole"
    yield f"95 % interval below 0) on {len(clear)}, and ahead on {ahead}. With many slices some differ by chance: p is corrected"
    yield "for that (Holm)."
    yield ""
    if behind:
        yield from markdown_table(SLICE_TABLE, [_slice_cells(line) for line in behind[:MOST_SLICES]])
        more = f" {len(behind) - MOST_SLICES} slices more are behind." if len(behind) > MOST_SLICES else ""
        yield from ("", f"Scores are means over the rows.{more}", "")


def _slice_cells(line: dict[str, Any]) -> list[str]:
    score = line["score"]
    lead = Interval(score["difference"], score["low"], score["high"])
    name = f"{escape_markdown(str(line['key']).replace('_', ' '))}: {escape_markdown(slice_value(line['key'], line['value']) or '(none)')}"
    numbers = (number(score["student"]), number(score["teacher"]), signed_span(lead), p_value(score.get("p_holm")))
    return [name, f"{line['rows']:,}", *numbers]


def _use(one: Student, repo: str | None) -> Iterator[str]:
    """How to load it with plain transformers, and with the command that renders rows as in training."""
    name = repo or "PATH_OR_REPOSITORY"
    yield from ("## How to use it", "", "With plain transformers:", "", *code_block(_code(one, name), "python"), "")
    if dig(one.usage, "task", "decoding") == "labels":
        yield from (
            "The scores above were made by choosing the likeliest of the allowed answers, which `tutelage predict` does.",
            "",
        )
    fetch = f"hf download {repo} --local-dir student\n" if repo else ""
    command = f"{fetch}tutelage predict {'student' if repo else name} --input rows.jsonl"
    yield from ("On files of rows, rendered and read exactly as in training:", "", *code_block(command, "bash"), "")


def _code(one: Student, name: str) -> str:
    prompt, chat = _prompt(one), bool(dig(one.usage, "data", "chat_template"))
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", f"name = {name!r}"]
    lines += ["tokenizer = AutoTokenizer.from_pretrained(name)", "model = AutoModelForCausalLM.from_pretrained(name)"]
    lines.append(f"prompt = {prompt}")
    if chat:
        system = dig(one.usage, "data", "system")
        turns = [f'{{"role": "system", "content": {system!r}}}'] if system else []
        turns.append('{"role": "user", "content": prompt}')
        lines.append(
            f"text = tokenizer.apply_chat_template([{', '.join(turns)}], tokenize=False, add_generation_prompt=True)"
        )
        lines.append('inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)')
    else:
        lines.append('inputs = tokenizer(prompt, return_tensors="pt")')
    lines += [
        'inputs.pop("token_type_ids", None)',
        f"written = model.generate(**inputs, max_new_tokens={one.usage.get('max_new_tokens', 64)})[0]",
        'written = written[inputs["input_ids"].shape[1]:]',
        "print(tokenizer.decode(written, skip_special_tokens=True).strip())",
    ]
    return "\n".join(lines)


def _prompt(one: Student) -> str:
    """The prompt as a Python expression: the template with its places to be filled in, or where rows bring their own a
    text."""
    data, section = one.usage.get("data") or {}, one.usage.get("task") or {}
    template = data.get("template") or template_for(one.task, section.get("language"), bool(one.usage.get("choice")))
    if not data.get("template") and not _ends_with(one, template.rpartition("}")[2]):
        return '"..."  # as in the training rows'
    labels = ", ".join(section.get("labels") or []).replace("{", "{{").replace("}", "}}")
    template = template.replace("{labels}", labels)
    places = list(dict.fromkeys(re.findall(r"(?<!{){(\w+)}(?!})", template)))
    return f"{template!r}.format({', '.join(f'{place}={chr(34)}...{chr(34)}' for place in places)})"


def _ends_with(one: Student, tail: str) -> bool:
    """Whether the rows' prompts end as the template does, so that it is theirs."""
    prompts = [row["prompt"] for row in one.rows.values()][:20]
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return bool(texts and tail.strip()) and all(text.endswith(tail) for text in texts)


def _made(one: Student) -> Iterator[str]:
    """What it was made of and how: models, data, stages, versions, the recipe."""
    yield from ("## How it was made", "")
    counts = {
        split: sum(row["split"] == split for row in one.rows.values()) for split in ("train", "validation", "test")
    }
    yield f"- Student: {escape_markdown(one.short_name('student'))}; teacher: {escape_markdown(one.short_name('teacher'))}"
    yield f"- Data: {escape_markdown(one.short_name('dataset'))}, " + ", ".join(
        f"{count:,} {split} rows" for split, count in counts.items()
    )
    stages = [stage for stage in read_or_none(one.folder / "stages.json") or [] if isinstance(stage, dict)]
    manifest = one.manifests.get(f"distill/{one.name}") or {}
    path = ", ".join(escape_markdown(stage.get("chosen") or "gold") for stage in stages)
    if stages:
        yield f"- Stages: {len(stages)}, following {path}; kept: the student after stage {manifest.get('kept_stage', len(stages))}"
    if manifest.get("seconds"):
        versions = ", ".join(
            f"{name} {escape_markdown(version)}" for name, version in (manifest.get("versions") or {}).items()
        )
        yield f"- Training: {duration(manifest['seconds'])}, seed {manifest.get('seed', 0)}; {versions}"
    yield from ("", "The recipe, where it differs from the defaults; paths are shortened to their last part:", "")
    yield from (*code_block(recipe_text(one), "yaml"), "")


def recipe_text(one: Student) -> str:
    """The recipe of this student alone as YAML, without defaults and without paths of the machine that it was made
    on."""
    import yaml

    from tutelage.recipe.schema import Recipe

    values = json.loads(json.dumps(one.recipe))
    with contextlib.suppress(ValueError):  # a recipe of another version of the library stays as it is
        values = Recipe(**values).model_dump(exclude_defaults=True)
    distill = {**values.get("distill", {}), "methods": [one.method], "seeds": [int(one.name.rpartition("-")[2])]}
    values = {key: value for key, value in values.items() if key not in ("output_dir", "tune", "compare")} | {
        "distill": distill
    }
    for role in ("teacher", "student"):
        values[role] = {**values.get(role, {}), "model_name_or_path": one.short_name(role)}
    if (own := values.get("data")) and not one.hub_name("dataset"):
        values["data"] = {key: last_part(value) if key in PATHS else value for key, value in own.items()}
    for section, key in (("teach", "checkpoints"), ("anchor", "model_name_or_path")):
        if dig(values, section, key):
            values[section] = {**values[section], key: last_part(values[section][key])}
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
