"""`tutelage shrink` and `tutelage export`: their options, and which of them belong together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tutelage.errors import ConfigError


def _a_number(value: float | None) -> float | None:
    """NaN passes a check of bounds."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is no number")
    return value


def shrink(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of the model to prune.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the smaller model; must not exist yet.")],
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers to keep. Default: all, if --width is given.")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=1, help="Feed-forward units to keep in each layer: the most active ones on your text. Default: all."
        ),
    ] = None,
    by: Annotated[
        Literal["even", "influence"],
        typer.Option(
            help="Which layers to keep. even: evenly spaced, first and last included. influence: the first, and those"
            " that change their input most on your text."
        ),
    ] = "even",
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text without labels; may be given more than once. Plain text (.txt, .md), rows (.jsonl, .csv, ...),"
            " or a recipe (.yaml) for the prompts of its training and unlabelled rows.",
        ),
    ] = None,
    heal: Annotated[
        bool, typer.Option("--heal", help="Then distil the unpruned model into the pruned one on that text.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="With --heal: tokens to train on, all epochs together. Default: 1000000.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, max=1, callback=_a_number, help="With --heal: peak learning rate. Default: 5e-4."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="With --heal: blocks per optimizer step. Default: 8.")
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(min=2, max=1_000_000, help="With --heal: tokens per block. Default: 512.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="With --heal: of held-out blocks and order. Default: 0.")
    ] = None,
) -> None:
    """Make a student from a model by removing layers and units. It keeps the model's tokenizer.

    With --heal, the same command continues after an interruption, and the perplexity of the unpruned, pruned and healed
    model on held-out text is printed at the end.
    """
    given = {
        "tokens": tokens,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "block_length": block_length,
        "seed": seed,
    }
    options = {name: value for name, value in given.items() if value is not None}
    _refuse(layers, width, by, text, heal, options)
    from tutelage.shrink.healing import heal_model
    from tutelage.shrink.make import shrink_model
    from tutelage.shrink.plan import HealingPlan

    if heal:
        heal_model(model, out, HealingPlan(layers, tuple(text or ()), by, width, **options))
    else:
        shrink_model(model, out, layers, by, text or (), width)


def _refuse(
    layers: int | None,
    width: int | None,
    by: str,
    text: list[Path] | None,
    heal: bool,
    options: dict[str, Any],
) -> None:
    """Raises ConfigError for options that have no effect together, or lack the text that they need."""
    names = ", ".join("--" + name.replace("_", "-") for name in options)
    if layers is None and width is None:
        raise ConfigError("nothing was said to be removed: type --layers with the number of layers to keep, or --width")
    if layers is None and by == "influence":
        raise ConfigError("--by influence chooses layers, and all are kept: add --layers, or leave it out")
    if options and not heal:
        raise ConfigError(f"{names} sets how the pruned model is healed, which was not asked for: add --heal")
    if text and not heal and by == "even" and width is None:
        raise ConfigError("--text is read by --by influence, --width and --heal: add one of them, or leave --text out")
    if heal and not text:
        raise ConfigError(
            "--heal distils on text without labels, and there is none: add --text FILE (plain text, rows, or your"
            " recipe)"
        )


def export(
    model: Annotated[Path, typer.Argument(metavar="STUDENT", help="Folder of a distilled student, or a run folder.")],
    to: Annotated[
        Literal["gguf", "ctranslate2", "lm-eval"],
        typer.Option(
            help="gguf: one file for llama.cpp, and a Modelfile for Ollama. ctranslate2: a folder for CTranslate2."
            " lm-eval: no model, but the test rows of its run as a task of lm-evaluation-harness."
        ),
    ],
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="PRECISION",
            help="Of the weights. gguf: f32, f16, bf16, q8_0, q4_0. ctranslate2: float32, int8. Default: as they are.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write. Default: RUN-STUDENT-FORMAT in this folder.")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Answer the run's test rows with the export and with the student: score, agreement, time, memory.",
        ),
    ] = None,
    accept_drop: Annotated[
        bool, typer.Option("--accept-drop", help="With --verify: accept a score that is significantly lower.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="With --verify: threads of both. Default: as for training.")
    ] = None,
) -> None:
    """Write a student for another runtime, and score it there.

    Or write its task for lm-evaluation-harness.

    Exit code 2 with --verify: the export scores significantly less than the student.
    """
    from tutelage.export.command import LM_EVAL, export, export_task

    if to == LM_EVAL:
        if quantize or verify or accept_drop or threads:
            raise ConfigError("--to lm-eval writes no model: leave out --quantize, --verify, --accept-drop, --threads")
        export_task(model, output)
        return
    export(model, to, output, precision=quantize, run=verify, accept_drop=accept_drop, threads=threads)
