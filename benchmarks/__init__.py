"""Speed and memory, measured: each module runs by itself (`python -m benchmarks.NAME`); RESULTS.md holds what came
out."""

from __future__ import annotations

from collections.abc import Sequence


def command_line(words: Sequence[str]) -> list[str]:
    """`tutelage WORDS`; a teacher that learned nothing, as the tiny ones here, stops none of its stages."""
    from tutelage.cli.main import MAY_STOP

    may_stop = words[0].replace("-", "_") in ("run", "compare", *MAY_STOP)
    return ["tutelage", *words, *(["--anyway"] if may_stop else [])]
