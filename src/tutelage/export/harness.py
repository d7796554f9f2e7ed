"""The test rows of a run as a task of lm-evaluation-harness, which gives a student the score that `evaluate` gave; and
that score in the form in which the harness writes results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import DataError
from tutelage.export import harness_task
from tutelage.export.prompts import asks_for
from tutelage.export.runtimes import Ask
from tutelage.models.evaluation import EvalSet, Evaluator
from tutelage.predict.find_model import FoundModel
from tutelage.predict.predictor import Predictor
from tutelage.records import Example
from tutelage.run.manifest import MANIFEST
from tutelage.utils.files import read_json, replacing, write_json, write_jsonl, write_text

LOWER_IS_BETTER = "_rate"
"""Ending of the metrics that count answers of no use."""


class _Function(str):
    """The name of a function in utils.py."""


class _Dumper(yaml.SafeDumper):
    """Writes `!function utils.NAME`."""


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", f"utils.{name}"))


@dataclass(frozen=True)
class Recorded:
    """What `evaluate` has recorded of a student."""

    model: str
    """METHOD/seed-K."""
    scores: dict[str, dict[str, float]]
    """Content of its scores.json."""
    manifest: dict[str, Any]


def recorded(run: Path, model: str | None) -> Recorded | None:
    """The recorded scores of a student of a run; None where it was not evaluated."""
    folder = run / "evaluate" / str(model)
    if model is None or not (folder / MANIFEST).is_file():
        return None
    return Recorded(model, read_json(folder / "scores.json"), read_json(folder / MANIFEST))


def write_harness_task(
    found: FoundModel, examples: Sequence[Example], folder: Path, scored: Recorded | None = None
) -> str:
    """Write NAME.yaml, utils.py, task.json, rows.jsonl and, for a student with recorded scores, results.json into a new
    folder; returns the task's name.

    examples: the test rows of the student's run. Raises DataError for prompts that the harness would read otherwise.
    """
    predictor = Predictor(found)
    evaluator = predictor.evaluator
    eval_set = evaluator.eval_set(examples)
    asks = asks_for(evaluator, eval_set)
    _check_prompts(evaluator, examples, asks)
    name = "tutelage_" + re.sub(r"\W+", "_", str(found.usage["run"])).strip("_").lower()
    metrics = [
        name for name in evaluator.task.metrics([None] * len(examples), examples, resamples=1) if "/" not in name
    ]
    task = predictor.task_section.model_dump()
    with replacing(folder, new=True) as draft:
        draft.mkdir()
        write_jsonl(draft / "rows.jsonl", _rows(evaluator, eval_set, asks))
        write_json(draft / "task.json", {"task": task, "choice": found.usage["choice"], "metrics": metrics})
        write_text(draft / "utils.py", Path(harness_task.__file__).read_text(encoding="utf-8"))
        config = _config(name, evaluator, metrics)
        write_text(draft / f"{name}.yaml", yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
        if scored:
            write_json(draft / "results.json", _results(name, found, config, metrics, len(examples), scored))
    return name


def _results(
    name: str, found: FoundModel, config: dict[str, Any], metrics: Sequence[str], rows: int, scored: Recorded
) -> dict[str, Any]:
    """The recorded scores under the keys of the harness (0.4.13). It writes N/A, too, for the error of metrics that a
    task brings; scores.json of the run has the intervals. Functions of the task are named, not printed."""
    values: dict[str, Any] = {"name": name, "alias": name, "sample_len": rows}
    for metric in metrics:
        values |= {f"{metric},none": scored.scores[metric]["value"], f"{metric}_stderr,none": "N/A"}
    versions, seconds = scored.manifest.get("versions") or {}, scored.manifest.get("answering")
    model = f"{found.usage['run']}/{scored.model}"
    return {
        "results": {name: values},
        "group_subtasks": {},
        "configs": {name: config},
        "versions": {name: config["metadata"]["version"]},
        "n-shot": {name: config["num_fewshot"]},
        "higher_is_better": {name: {line["metric"]: line["higher_is_better"] for line in config["metric_list"]}},
        "n-samples": {name: {"original": rows, "effective": rows}},
        "config": {"model": "tutelage", "model_args": {"pretrained": model}, "limit": None},
        "date": datetime.fromisoformat(scored.manifest["finished"]).timestamp(),
        "transformers_version": versions.get("transformers"),
        "model_source": "tutelage",
        "model_name": model,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model),
        "total_evaluation_time_seconds": None if seconds is None else str(seconds),
    }


def _rows(evaluator: Evaluator, eval_set: EvalSet, asks: Sequence[Ask]) -> Iterator[dict[str, Any]]:
    """The prompt as text, and what is scored: the row itself, and its allowed answers, as the model writes them, with
    their numbers of tokens."""
    end = evaluator.encoder.tokenizer.eos_token
    for example, labels, ask in zip(eval_set.examples, eval_set.labels, asks, strict=True):
        row = {"prompt": ask["text"], "example": json.dumps(asdict(example), ensure_ascii=False)}
        if labels:
            row["labels"] = labels
            row["continuations"] = [f"{label}{end}" for label in ask["labels"]]
            row["tokens"] = [len(candidate) for candidate in ask["candidates"]]
        yield row


def _config(name: str, evaluator: Evaluator, metrics: Sequence[str]) -> dict[str, Any]:
    """The task's YAML."""
    shared = {"task": name, "custom_dataset": _Function("load"), "test_split": "test", "num_fewshot": 0}
    if evaluator.decoding == "labels":
        asked: dict[str, Any] = {
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "continuations",
            "doc_to_target": 0,
            "target_delimiter": evaluator.encoder.answer_prefix,
            "process_results": _Function("read_choice"),
        }
    else:
        asked = {
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "",
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": evaluator.max_new_tokens},
            "process_results": _Function("read_text"),
        }
    listed = [
        {"metric": metric, "aggregation": _Function(metric), "higher_is_better": not metric.endswith(LOWER_IS_BETTER)}
        for metric in metrics
    ]
    return {**shared, **asked, "metric_list": listed, "metadata": {"version": 1.0}}


def _check_prompts(evaluator: Evaluator, examples: Sequence[Example], asks: Sequence[Ask]) -> None:
    """Raises DataError for prompts of which the harness would make other tokens.

    It moves white space at the end of a prompt into the choices, and reads a prompt as one text from its start.
    """
    for example, ask in zip(examples, asks, strict=True):
        text = ask["text"]
        if text is None:
            raise DataError(
                f"the prompt of row {example.id} was cut at its start (data.too_long: truncate_prompt), which"
                " lm-evaluation-harness cannot do: raise data.max_length, or drop such rows"
            )
        if ask["labels"] and text != text.rstrip():
            raise DataError(
                f"the prompt of row {example.id} ends with white space, which lm-evaluation-harness would count as part"
                " of the answers: score it with task.decoding=generate"
            )
