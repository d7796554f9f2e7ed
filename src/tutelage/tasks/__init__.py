"""What is asked and how answers are scored: one module per task, chosen by `task.type`. May import recipe, no torch."""

from __future__ import annotations

from difflib import get_close_matches

from tutelage.errors import ConfigError, Kind, Problem
from tutelage.recipe.schema import Task, known_metrics
from tutelage.tasks import classification, ner, qa
from tutelage.tasks.base import BaseTask
from tutelage.tasks.metrics import base_language

TASKS: dict[str, type[BaseTask]] = {
    "classification": classification.Classification,
    "ner": ner.EntityRecognition,
    "qa": qa.SpanQA,
}
"""Task by `task.type`. A `qa` run whose rows have closed choices is `qa.ChoiceQA`."""


def make_task(section: Task, labels: list[str] | None, *, choice: bool = False) -> BaseTask:
    """The task of a run. labels: label set, entity types or choices. choice: whether the qa rows have closed choices.

    Raises ConfigError if checkpoints of such a run cannot be selected by `task.metric`.
    """
    task = qa.ChoiceQA if choice and section.type == "qa" else TASKS[section.type]
    if section.metric is not None and section.metric not in task.choosable_metrics:
        raise ConfigError(_metric_problem(section, task.choosable_metrics, choice))
    return task(section.metric, labels, section.language)


def template_for(task_type: str, language: str | None, choice: bool = False) -> str:
    """The default prompt, in English where the language is unknown. Its fields:

    classification and ner `{labels}` `{text}`, span qa `{context}` `{question}`, choice qa `{question}` `{choices}`.
    """
    if task_type == "qa":
        templates = qa.CHOICE_TEMPLATES if choice else qa.SPAN_TEMPLATES
    else:
        templates = {"classification": classification.TEMPLATES, "ner": ner.TEMPLATES}[task_type]
    return templates.get(base_language(language) or "en", templates["en"])


def _metric_problem(section: Task, metrics: tuple[str, ...], choice: bool) -> Problem:
    near = get_close_matches(section.metric or "", metrics, 1)
    values = {
        "metric": section.metric,
        "metrics": metrics,
        "task": section.type,
        "known_to_task": section.metric in known_metrics(section.type),
        "choice": choice,
        "near": near[0] if near else None,
    }
    return Problem(Kind.METRIC_UNSUITABLE, key="task.metric", change=f"task.metric={metrics[0]}", values=values)
