"""Packages that are no dependency: whether they are here, and by which extra to install them."""

from __future__ import annotations

import importlib.util

from tutelage.errors.kinds import Kind
from tutelage.errors.problem import Problem


def missing_package(package: str, extra: str, purpose: str, key: str | None = None) -> Problem | None:
    """The problem of a package that is not installed; None if it is. Nothing is imported.

    extra: `pip install 'tutelage[EXTRA]'`. purpose: what needs it. key: of the recipe, if that asks for it.
    """
    if importlib.util.find_spec(package) is not None:
        return None
    return Problem(Kind.EXTRA_MISSING, key=key, values={"package": package, "extra": extra, "purpose": purpose})
