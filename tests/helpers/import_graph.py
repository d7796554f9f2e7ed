"""Which module of the package imports which, read from the source text: nothing is imported to find out."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "tutelage"

PACKAGES = [
    "errors",
    "utils",
    "method",
    "recipe",
    "tasks",
    "data",
    "run",
    "analysis",
    "report",
    "models",
    "bytes",
    "teacher",
    "training",
    "shrink",
    "doctor",
    "predict",
    "export",
    "serve",
    "stages",
    "compare",
    "demo",
    "cli",
]
"""Lowest first: a package imports its own modules and those of the packages before it; all import `errors` and
`records`."""
ROOT_MODULES = {"records", "__init__", "__main__"}
BELOW_ALL = ("errors", "records")


def module_name(path: Path) -> str:
    """`tasks.ner`; a package goes by its own name (`tasks`), the root by `__init__`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def package_of(module: str) -> str:
    """The first part of a module's name."""
    return module.split(".")[0]


def level_of(module: str) -> int | None:
    """Position of a module's package in PACKAGES; -1 for what is below all, above all for the entry points, None for
    unknown."""
    name = package_of(module)
    if name in BELOW_ALL:
        return -1
    if name in ("__init__", "__main__"):
        return len(PACKAGES)
    return PACKAGES.index(name) if name in PACKAGES else None


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
    """What these nodes import: `.tasks.ner` for a module of ours, `torch` for another package."""
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
    """Imports that point up, those inside functions and for type checkers included, and one stage importing another."""
    wrong = []
    for name in sorted(imported(ast.walk(tree))):
        if not name.startswith("."):
            continue
        target = name[1:]
        version = target == "__init__"  # `from tutelage import __version__`
        if not version and (level_of(target) or 0) > (level_of(module) or 0):
            wrong.append(f"{module} imports {target}, which is above it")
        if module.startswith("stages.") and target.startswith("stages.") and target != module:
            wrong.append(f"{module} imports {target}: a stage reads what another one wrote, and does not call it")
    return wrong


def cycles() -> list[str]:
    """Modules that import each other, directly or through others, as `a -> b -> a`; type-checker imports included."""
    edges = {
        m: sorted(n[1:] for n in imported(ast.walk(t)) if n.startswith(".") and n[1:] != m) for m, t in TREES.items()
    }
    edges["__init__"] = []  # the entry point loads SCDTrainer when asked; modules below ask it for the version
    done: set[str] = set()
    found: list[str] = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in edges.get(module, []):
                visit(target, [*path, module])
            done.add(module)

    for module in edges:
        visit(module, [])
    return found


def heavy_imports(module: str, heavy: set[str]) -> list[str]:
    """Heavy packages that importing a module loads, with the module of ours that imports each."""
    seen, waiting, found = set(), [module], []
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        names = imported(run_at_import(TREES[at]))
        found += [f"{module} loads {name}, imported by {at}" for name in sorted(names & heavy)]
        parents = [".".join(at.split(".")[:n]) for n in range(1, at.count(".") + 1)]
        waiting += [name[1:] for name in names if name.startswith(".")] + [p for p in parents if p in TREES]
    return found
