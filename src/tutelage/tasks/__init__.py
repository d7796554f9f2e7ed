"""What is asked and how answers are judged: one module per task, chosen by `task.type` of the recipe."""

from __future__ import annotations

from difflib import get_close_matches

from tutelage.errors import ConfigError
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
    """The task of a run. `labels`: resolved labels, entity types or choices. `choice`: the qa rows have closed choices.

    A `ConfigError` if `task.metric` is not one that this kind of task can be chosen by.
    """
    kind = qa.ChoiceQA if choice and section.type == "qa" else TASKS[section.type]
    if section.metric is not None and section.metric not in kind.choosable_metrics:
        raise ConfigError(_metric_problem(section, kind.choosable_metrics, choice))
    return kind(section.metric, labels, section.language)


def template_for(task_type: str, language: str | None, choice: bool = False) -> str:
    """The default prompt, in English where the language is unknown. Its places:

    classification and ner `{labels}` `{text}`, span qa `{context}` `{question}`, choice qa `{question}` `{choices}`.
    """
    if task_type == "qa":
        templates = qa.CHOICE_TEMPLATES if choice else qa.SPAN_TEMPLATES
    else:
        templates = {"classification": classification.TEMPLATES, "ner": ner.TEMPLATES}[task_type]
    return templates.get(base_language(language) or "en", templates["en"])


def _metric_problem(section: Task, metrics: tuple[str, ...], choice: bool) -> str:
    found, known = f"task.metric: {section.metric!r}", ", ".join(metrics)
    if section.metric in known_metrics(section.type):
        rows = "choices (a closed set of answers)" if choice else "free answers"
        return f"{found} does not fit questions with {rows}. Write one of: {known}."
    near = get_close_matches(section.metric or "", metrics, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{found} is not a score that a {section.type} run can be chosen by. Write one of: {known}.{hint}"
