"""Hypothesis-driven fuzzers of recipe, rows and method names: only user errors may come out.
`python -m benchmarks.fuzz [--minutes 60] [--only rows]`

Strategies and limits are those of `fuzz_cases.py`, which the tests run for a minute. Each failure is printed with the
smallest case that shows it; the exit code is 1 if there was one.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.strategies import SearchStrategy

from benchmarks.fuzz_cases import check_method, check_recipe, check_rows, method_names, recipe_cases, rows_cases

TARGETS: dict[str, tuple[SearchStrategy[Any], Callable[[Any], str]]] = {
    "recipes": (recipe_cases(), check_recipe),
    "rows": (rows_cases(), check_rows),
    "methods": (method_names(), check_method),
}
ROUND = 200
"""Cases between two looks at the clock."""


def fuzz(target: str, cases: int, seed: int, outcomes: Counter[str]) -> None:
    """Try so many cases of a target. Raises what a case raised, for the smallest case found.

    outcomes: gets how many cases were read, and how many refused.
    """
    strategy, check = TARGETS[target]

    @seeded(seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def attempt(case: Any) -> None:
        outcomes["read" if check(case) == "read" else "refused"] += 1

    attempt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="time of all targets together")
    parser.add_argument("--only", choices=list(TARGETS), action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    arguments = parser.parse_args()
    targets = arguments.only or list(TARGETS)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    end, failures = time.monotonic() + 60 * arguments.minutes, 0
    outcomes: dict[str, Counter[str]] = {target: Counter() for target in targets}
    while time.monotonic() < end:
        for target in targets:
            seed += 1
            try:
                fuzz(target, ROUND, seed, outcomes[target])
            except Exception:
                failures += 1
                print(f"--- {target}, seed {seed}", traceback.format_exc(limit=-6), sep="\n", flush=True)
    for target, counts in outcomes.items():
        print(f"{target}: {counts['read']:,} cases read, {counts['refused']:,} refused")
    print(f"{failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
