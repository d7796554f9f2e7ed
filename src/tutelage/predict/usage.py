"""tutelage.json: how a model of a run renders a row and reads an answer."""

from __future__ import annotations

from typing import Any, TypedDict

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
