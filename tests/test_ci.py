"""Continuous integration: a skipped test fails it, and the commit hooks use the versions that it uses."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.skip_rule import ALLOWED_SKIPS

ROOT = Path(__file__).parents[1]
MODULE = """
import pytest

def test_passes():
    pass

@pytest.mark.parametrize("number", [1, 2])
def test_skips(number):
    pytest.skip(f"reason {number}")

@pytest.mark.xfail
def test_fails_as_expected():
    assert False
"""
CONFTEST = """
from helpers import skip_rule
from helpers.skip_rule import pytest_configure

skip_rule.ALLOWED_SKIPS = {allowed}
"""


def session(folder: Path, allowed: list[str], ci: str = "true", options: tuple[str, ...] = ()):
    """A pytest session over the test files in `folder`, with the rule and these allowed skips."""
    (folder / "conftest.py").write_text(CONFTEST.format(allowed=dict.fromkeys(allowed, "a reason")))
    environment = os.environ | {"CI": ci, "PYTHONPATH": str(ROOT / "tests"), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("options", [("-p", "no:xdist"), ("-n", "2")], ids=["one process", "xdist"])
def test_skipped_tests_and_files_fail_the_session(tmp_path, options):
    (tmp_path / "test_module.py").write_text(MODULE)
    (tmp_path / "test_missing.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    ended = session(tmp_path, [], options=options)
    assert ended.returncode == 1
    listed = re.findall(r"^(test_\w+\.py\S*): Skipped: (.+)$", ended.stdout, re.MULTILINE)
    assert sorted(listed) == [
        ("test_missing.py", "could not import 'no_such_module': No module named 'no_such_module'"),
        ("test_module.py::test_skips[1]", "reason 1"),
        ("test_module.py::test_skips[2]", "reason 2"),
    ]


def test_allowed_skips_do_not_fail_the_session(tmp_path):
    for name in ("test_module.py", "test_other.py"):
        (tmp_path / name).write_text(MODULE)
    ended = session(tmp_path, ["test_module.py", "test_other.py::test_skips"], options=("-p", "no:xdist"))
    assert ended.returncode == 0 and "ALLOWED_SKIPS" not in ended.stdout


def test_skips_do_not_fail_a_session_outside_of_continuous_integration(tmp_path):
    (tmp_path / "test_module.py").write_text(MODULE)
    ended = session(tmp_path, [], ci="", options=("-p", "no:xdist"))
    assert ended.returncode == 0 and "ALLOWED_SKIPS" not in ended.stdout


def test_a_failure_keeps_its_exit_code(tmp_path):
    (tmp_path / "test_module.py").write_text(MODULE + "\n\nimport no_such_module\n")
    assert session(tmp_path, [], options=("-p", "no:xdist")).returncode == 2


def test_every_allowed_skip_names_a_test():
    for node, reason in ALLOWED_SKIPS.items():
        file, *names = node.split("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert set(names) <= {part.name for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)}
        assert len(reason) > 20


def test_commit_hooks_use_the_versions_of_the_constraints():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    ruff = {
        version for hook in hooks if hook["entry"].startswith("ruff") for version in hook["additional_dependencies"]
    }
    assert ruff and ruff <= set(constraints)
