"""Modules import their own layer and the ones below it, and what must start quickly loads nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tutelage"

LAYERS = (
    "errors records recipe_schema recipe_yaml recipe_checks config artifacts ui memory cells methods",
    "tasks tasks.* sources columns entities shapes",
    "schedule weighting divergences gradients objective theory rows charts page results resampling statistics slices slice_search"
    " calibration effects scored_rows outside watching runs explaining card_text cards foretold wording browsing report_sections"
    " report_insight training_rows",
    "precision data token_store heads head_loss models hidden_store teachers caching taid trainer finetuning generation labels"
    " evaluation probe mixtures losses"
    " distillation workspace lineage shrinking prediction scd_trainer demo demo.* comparison executors"
    " ray_executor tuning comparison_table comparison_page scored guessing initialise doctor doctor.*",
    "stages stages.*",
    "compare cli __main__ __init__",
)
"""Names of modules inside the package, or patterns, lowest layer first. A name may be there before its module is."""

HEAVY = {"torch", "transformers", "datasets"}


def module_name(path: Path) -> str:
    """`tasks.ner`; a package goes by its own name (`tasks`), the root by `__init__`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def layer_of(module: str) -> int | None:
    return next((n for n, names in enumerate(LAYERS) if any(fnmatch(module, name) for name in names.split())), None)


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: functions and `if TYPE_CHECKING:` are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            child = ast.Module(child.orelse, [])
        yield child
        yield from run_at_import(child)


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """What these nodes import: `.tasks.ner` for a module of ours, `torch` for a package of others."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write imports in full, from tutelage..."
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {f".{ours(name)}" if name.split(".")[0] == "tutelage" else name.split(".")[0] for name in names}


def ours(name: str) -> str:
    """The module that a dotted name is or lies in: tutelage.records.Example lies in records."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in TREES:
        parts.pop()
    return ".".join(parts) or "__init__"


def wrong_imports(module: str, tree: ast.Module) -> list[str]:
    """Imports that a module may not have, in words."""
    found = []
    for name in sorted(imported(run_at_import(tree))):
        if name.startswith(".") and layer_of(name[1:]) is not None and layer_of(name[1:]) > layer_of(module):
            found.append(f"{module} (L{layer_of(module)}) imports {name[1:]} (L{layer_of(name[1:])}), which is above it")
    for name in sorted(imported(ast.walk(tree))):  # in functions too: stages speak through the run folder
        if module.startswith("stages.") and name.startswith(".stages.") and name != f".{module}":
            found.append(f"{module} imports {name[1:]}: a stage reads what another one wrote, and does not call it")
    return found


def heavy_imports(module: str) -> list[str]:
    """Heavy packages that importing a module loads, with the module of ours that imports each."""
    seen, waiting, found = set(), [module], []
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        names = imported(run_at_import(TREES[at]))
        found += [f"{module} loads {name}, imported by {at}" for name in sorted(names & HEAVY)]
        waiting += [name[1:] for name in names if name.startswith(".")]
    return found


def test_every_module_has_a_layer():
    lost = [module for module in TREES if layer_of(module) is None]
    assert not lost, f"no layer for: {', '.join(lost)}; add each new module to LAYERS in tests/test_layers.py"


@pytest.mark.parametrize("module", [module for module in TREES if layer_of(module) is not None])
def test_a_module_imports_its_own_layer_and_below(module):
    assert wrong_imports(module, TREES[module]) == []


@pytest.mark.parametrize("module", [m for m in TREES if layer_of(m) in (0, 1) or m == "stages.report"])
def test_what_starts_quickly_imports_nothing_heavy(module):
    assert heavy_imports(module) == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("records", "from tutelage.config import flatten", ""),
        ("records", "from tutelage.tasks.ner import Ner", "records (L0) imports tasks.ner (L1), which is above it"),
        ("records", "from tutelage import schedule", "records (L0) imports schedule (L2)"),
        ("records", "import tutelage.cli", "records (L0) imports cli (L5)"),
        ("stages.teach", "from tutelage import __version__", "stages.teach (L4) imports __init__ (L5)"),
        ("records", "try:\n    import tutelage.data\nexcept ImportError: pass", "records (L0) imports data (L3)"),
        ("records", "class A:\n    import tutelage.data", "records (L0) imports data (L3)"),
        ("records", "def f():\n    import tutelage.data", ""),
        ("records", "if TYPE_CHECKING:\n    import tutelage.data", ""),
        ("records", "if TYPE_CHECKING:\n    pass\nelse:\n    import tutelage.data", "records (L0) imports data (L3)"),
        ("stages.teach", "from tutelage.stages import cache", "stages.teach imports stages.cache: a stage reads"),
        ("stages.teach", "def f():\n    from tutelage.stages.cache import run", "stages.teach imports stages.cache"),
        ("cli", "from tutelage.stages import cache, teach", ""),
    ],
)
def test_the_rules_see_what_they_should(module, text, expected):
    found = wrong_imports(module, ast.parse(text))
    assert expected in found[0] if expected else found == []


def test_the_package_the_command_and_the_recipe_load_nothing_heavy():
    code = f"""
import sys
import tutelage, tutelage.cli, tutelage.config
print(sorted({HEAVY | {"pandas"}!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
