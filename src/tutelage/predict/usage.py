"""tutelage.json: how a model of a run renders a row and reads an answer."""

from __future__ import annotations

from typing import Any, TypedDict

from tutelage.errors.wording import SHOWN
from tutelage.run.run_folder import RunFolder


class Usage(TypedDict):
    """Content of tutelage.json."""

    task: dict[str, Any]
    """The recipe's `task` section, with the labels of the run."""
    data: dict[str, Any]
    """The recipe's `data` section, with what was decided from all rows."""
    choice: bool
    """Whether questions have choices."""
    max_new_tokens: int
    run: str
    """Name of the run."""


def other_answers(ours: Usage, theirs: Usage) -> str | None:
    """How the answers of `theirs` differ from those of `ours`, so that neither can stand in for the other; None if they
    do not: one task, the same labels, questions with or without choices alike."""
    task, other = ours["task"], theirs["task"]
    if task["type"] != other["type"]:
        return f"its task is {other['type']}, and the student's {task['type']}"
    if ours["choice"] != theirs["choice"]:
        return f"its questions have {_choices(theirs)}, and the student's {_choices(ours)}"
    labels, others = (set(section.get("labels") or ()) for section in (task, other))
    if labels != others:
        apart = sorted(map(repr, labels ^ others))
        more = ", ..." if len(apart) > SHOWN else ""
        return f"it has other labels than the student (only one of them has {', '.join(apart[:SHOWN])}{more})"
    return None


def _choices(usage: Usage) -> str:
    return "choices" if usage["choice"] else "free answers"


def usage_of(run: RunFolder) -> Usage:
    """The same for all models of a run: teacher, anchor and students."""
    about = run.prepared
    return {
        "task": run.recipe.task.model_dump() | {"labels": about["labels"]},
        "data": run.recipe.data.model_dump() | about.get("decided", {}),
        "choice": about["choice"],
        "max_new_tokens": about["max_new_tokens"],
        "run": run.recipe.name,
    }
