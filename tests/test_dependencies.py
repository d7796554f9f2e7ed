"""Bounds of dependencies are those that were tested: the lowest in constraints-lowest.txt, newer in constraints.txt."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
REQUIRED = [
    Requirement(text)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
]


def pinned(name):
    """Versions of a constraints file by package."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): Version(version) for package, version in pins}


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda requirement: requirement.name)
def test_every_bound_was_tested(requirement):
    (bound,) = requirement.specifier
    name = canonicalize_name(requirement.name)
    assert bound.operator == ">=" and Version(bound.version) == pinned("constraints-lowest.txt")[name]
    assert pinned("constraints.txt")[name] >= Version(bound.version)
