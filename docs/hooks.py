"""What `mkdocs build` does besides: pages from outside docs/, and references that are generated from the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tutelage.recipe.schema import Recipe

ROOT = Path(__file__).parents[1]
BESIDE = (
    *("README.md", "README.ko.md", "LOG.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/RESULTS.md"),
    "examples/notebook.ipynb",
)
"""Pages and files from the root of the repository; README.md is the first page."""
API = {
    "Distillation from Python": ("tutelage.SCDTrainer", "tutelage.SCDConfig"),
    "Methods": ("tutelage.Method", "tutelage.METHODS"),
    "A run": (
        "tutelage.recipe.load.load_recipe",
        "tutelage.run.run_folder.RunFolder",
        "tutelage.stages.pipeline.run_stages",
    ),
    "Evaluation and prediction": ("tutelage.models.evaluation.Evaluator", "tutelage.predict.predictor.Predictor"),
    "Report": ("tutelage.analysis.run_results.read_results", "tutelage.report.page"),
}
"""Heading -> names that the API reference documents."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    for name in BESIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    files.append(File.generated(config, "recipe.md", content=recipe_page()))
    files.append(File.generated(config, "api.md", content=api_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the repository, where docs/ is a folder, become those of the site."""
    if page.file.src_uri in BESIDE:
        return re.sub(r"\]\((?:\.\./)?docs/", "](" + "../" * page.file.src_uri.count("/"), markdown)
    return markdown.replace("](../", "](")


def api_page() -> str:
    """The API reference: directives that mkdocstrings replaces."""
    parts = ["# API reference"]
    for heading, names in API.items():
        parts += [f"## {heading}", *(f"::: {name}\n    options: {{heading_level: 3}}" for name in names)]
    return "\n\n".join(parts) + "\n"


def recipe_page() -> str:
    """The recipe reference: a table for each section, from the schema."""
    parts = ["# Recipe reference", "`tutelage show RECIPE` prints all values of a recipe with their origin."]
    parts += [_table("", Recipe, "Top level")]
    for name, field in Recipe.model_fields.items():
        for section in _sections(field.annotation):
            parts.append(_table(name, section, f"`{name}`"))
    return "\n\n".join(parts) + "\n"


def _table(prefix: str, section: type[BaseModel], heading: str) -> str:
    """A section of the page. prefix: of the keys in it."""
    lines = [
        f"## {heading}",
        "",
        " ".join((section.__doc__ or "").split()),
        "",
        "| key | type | default | |",
        "|---|---|---|---|",
    ]
    inner = []
    for name, field in section.model_fields.items():
        key, sections = f"{prefix}.{name}".lstrip("."), _sections(field.annotation)
        if sections and not prefix and not field.description:
            continue  # a table of its own
        default = "" if sections else _default(field)
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(field.annotation)} | {default} | {text} |")
        if prefix:
            inner += [_table(key, found, f"`{key}`") for found in sections]
    return "\n\n".join(["\n".join(lines), *inner])


def _default(field: FieldInfo) -> str:
    """A default as YAML; nothing where the text says what it is."""
    if field.is_required():
        return "" if "Default:" in (field.description or "") else "required"
    return f"`{json.dumps(field.get_default(call_default_factory=True), ensure_ascii=False)}`"


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a value may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def _type(annotation: Any) -> str:
    """A type in words of YAML."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        return " \\| ".join(_type(part) for part in get_args(annotation))
    if origin in (list, dict, tuple):
        return f"{'mapping' if origin is dict else 'list'}"
    names = {str: "text", int: "integer", float: "number", bool: "true \\| false", type(None): "null", Any: "any"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
