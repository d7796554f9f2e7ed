"""Packages import their own modules and the packages below them, and what must start quickly loads nothing heavy."""

import ast
import subprocess
import sys
from collections import Counter

import pytest

from helpers.import_graph import PACKAGES, ROOT_MODULES, SOURCE, TREES, cycles, heavy_imports, package_of, wrong_imports

HEAVY = {"torch", "transformers", "datasets"}
WITHOUT_TORCH = ("errors", "utils", "recipe", "tasks", "run", "analysis", "report", "cli")
"""Packages that start without torch, transformers and datasets; so do `doctor` itself and the modules named below."""
MORE_WITHOUT_TORCH = (
    *("records", "__init__", "method", "method.methods", "method.schedule", "method.weighting", "method.risk_split"),
    *("data.dataset", "data.encode", "cli.guess_columns", "stages.diagnose", "stages.report", "doctor"),
    *("compare.cell_table", "compare.summary.summarise", "compare.summary.page", "export.measure"),
)
LARGEST_PACKAGE = 12


def test_the_root_holds_packages_and_little_else():
    assert {path.stem for path in SOURCE.glob("*.py")} == ROOT_MODULES
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for_and_stays_small(package):
    assert ast.get_docstring(TREES[package])
    folders = Counter(module.rpartition(".")[0] for module in TREES if package_of(module) == package)
    assert max(folders.values()) <= LARGEST_PACKAGE


@pytest.mark.parametrize("module", TREES)
def test_imports_point_down(module):
    assert wrong_imports(module, TREES[module]) == []


def test_no_module_imports_itself_through_others():
    assert cycles() == []


@pytest.mark.parametrize("module", [m for m in TREES if package_of(m) in WITHOUT_TORCH or m in MORE_WITHOUT_TORCH])
def test_what_starts_quickly_loads_nothing_heavy(module):
    assert heavy_imports(module, HEAVY) == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("records", "from tutelage.recipe.load import flatten", "records imports recipe.load, which is above it"),
        ("records", "from tutelage.method import schedule", "records imports method.schedule, which is above it"),
        ("method.schedule", "import tutelage.cli", "method.schedule imports cli, which is above it"),
        ("method.schedule", "try:\n    import tutelage.data\nexcept ImportError: pass", "method.schedule imports data"),
        ("method.schedule", "class A:\n    import tutelage.data", "method.schedule imports data"),
        ("method.schedule", "def f():\n    import tutelage.data", "method.schedule imports data"),
        ("method.schedule", "if TYPE_CHECKING:\n    import tutelage.data", "method.schedule imports data"),
        ("stages.teach", "from tutelage import __version__", ""),
        ("stages.teach", "from tutelage.stages import cache", "stages.teach imports stages.cache: a stage reads"),
        ("stages.teach", "def f():\n    from tutelage.stages.cache import run", "stages.teach imports stages.cache"),
        ("cli.main", "from tutelage.stages import cache, teach", ""),
    ],
)
def test_the_rules_see_what_they_should(module, text, expected):
    wrong = wrong_imports(module, ast.parse(text))
    assert expected in wrong[0] if expected else wrong == []


def test_the_package_the_command_and_the_recipe_load_nothing_heavy():
    code = f"""
import sys
import tutelage, tutelage.cli.main, tutelage.recipe.load
print(sorted({HEAVY | {"pandas"}!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_help_loads_little_more_than_its_own_library():
    heavy = {"numpy", "pydantic", "yaml", "filelock"}
    code = f"import sys; import tutelage.cli.main; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
