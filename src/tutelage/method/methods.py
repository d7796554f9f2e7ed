"""METHODS: what each method of distillation is made of. A new method is one line.

A method is a point in a small product: which checkpoint teaches (schedule), how far the student is from it
(divergence), and how much of a sample's loss follows it (weighting). Rows, steps, stages, resets and seeds are the same
for all of them.

A part may be a function of your own instead of a name; a method of your own is a line in METHODS, or an entry point of
the group
`tutelage.method.methods` (docs/your-own-method.md).

A method may be named with settings of its own: `scd+schedule.advance=true` is `scd` with
`distill.schedule.advance=true`, a student beside that of `scd` in the same run folder. Variants share teacher, anchor
and cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

_SETTING = re.compile(r"\+(?=[a-z_.]+=)")
"""Between the settings of a variant; the plus in 1e+3 is none."""

GROUP = "tutelage.method.methods"
"""Entry points of packages that bring methods."""


class Method(NamedTuple):
    """One way to train the student."""

    schedule: Literal["none", "best", "interpolated", "in_order", "nearest", "random", "ensemble"] | Callable[..., str]
    """`none`: no teacher. `best`: always T*. `interpolated`: between the student and T*. `in_order`: oldest to newest.
    `nearest`: SCD's choice. `random`: seeded. `ensemble`: a mixture of all checkpoints, shares fitted on validation. A
    function: (candidates,
    *, stage, num_stages, best, previous) to the name of a checkpoint, see `schedule.nearest`."""
    divergence: Literal["none", "forward_kl", "reverse_kl", "jsd", "skew_kl", "akl"] | Callable[..., Any]
    """See `divergences.py`. A function: (student logits, teacher logits, temperature) to [positions], in nats."""
    weighting: Literal["none", "constant", "adaptive", "adaptive_cross_fit", "gated"] | Callable[..., Any]
    """`none`: gold only. `constant`: `kd_ratio`. `adaptive`: AW, from the anchor's and the checkpoint's losses;
    `adaptive_cross_fit`: the same from losses on rows that neither was trained on. `gated`: these weights mix the
    checkpoint with the anchor, w : 1 - w, into one teacher, whom `kd_ratio` of the loss follows. A function:
    (anchor's losses, checkpoint's losses), both [rows] in nats, to [rows] weights in [0, 1]."""
    source: str
    """Where the method comes from."""
    answers: Literal["gold", "teacher"] = "gold"
    """What cross-entropy is taken on: `teacher`: T*'s own greedy answers."""
    settings: tuple[str, ...] = ()
    """Of the `distill` section, as the name of a variant has them: `restart=false`. Those in a variant's name win over
    them."""

    @property
    def looks(self) -> bool:
        """Whether the schedule compares student and checkpoints at the start of a stage."""
        return self.schedule == "nearest" or callable(self.schedule)

    @property
    def needs_anchor(self) -> bool:
        """Whether weights are made of the anchor's losses."""
        return self.weighting == "adaptive" or callable(self.weighting)

    @property
    def needs_cross_fit(self) -> bool:
        """Whether weights are made of losses out of sample."""
        return self.weighting in ("adaptive_cross_fit", "gated")

    @property
    def needs_distributions(self) -> bool:
        """Whether it needs all of the teacher's distribution; otherwise its largest entries will do, at temperature
        1."""
        mixes = self.schedule in ("interpolated", "ensemble") or self.weighting == "gated"
        return self.schedule != "none" and (self.looks or mixes or self.divergence != "forward_kl")

    def reads(self, setting: str) -> bool:
        """Whether a setting of the `distill` section, by its dotted name, makes a difference to this method."""
        taught, nearest = self.schedule != "none", self.schedule == "nearest"
        not_by_all = {
            "kd_ratio": taught and self.weighting in ("constant", "gated"),
            "temperature": taught,
            "weighting": taught and self.weighting in ("adaptive", "adaptive_cross_fit", "gated"),
            "schedule.advance": nearest,
            "schedule.trust": nearest,
            "schedule.reach": self.looks,
            "schedule.glide": taught and self.schedule not in ("best", "interpolated", "ensemble"),
            "probe_rows": self.looks,
        }
        return next((read for name, read in not_by_all.items() if f"{setting}.".startswith(f"{name}.")), True)

    def mistakes(self) -> list[str]:
        """Why these parts cannot make a method: what a line of the user's own may have got wrong."""
        found, hints = [], get_type_hints(Method)
        for part in ("schedule", "divergence", "weighting", "answers"):
            given, known = (
                getattr(self, part),
                [name for choice in get_args(hints[part]) for name in get_args(choice) or [choice]],
            )
            if not callable(given) and given not in known:
                found.append(
                    f"its {part} is {given!r}; there are {', '.join(name for name in known if isinstance(name, str))}"
                )
            elif given == "none" and self.schedule != "none":
                found.append(f"it follows a teacher and its {part} is none")
        if self.schedule != "none" and self.answers == "teacher":
            found.append(
                "the teacher's view that it follows is of gold answers, and it trains on the teacher's; one of the two"
            )
        return found


METHODS: dict[str, Method] = {
    "sft": Method("none", "none", "none", "plain fine-tuning on gold, with the stages and resets of the others"),
    "td": Method("best", "forward_kl", "constant", "Hinton et al. 2015, arXiv 1503.02531"),
    "td-aw": Method("best", "forward_kl", "adaptive", "the weighting of arXiv 2601.10114 without its schedule"),
    "cd": Method("in_order", "forward_kl", "constant", "arXiv 2601.10114, baseline: checkpoints in fixed order"),
    "cd-aw": Method("in_order", "forward_kl", "adaptive", "checkpoints in fixed order with adaptive weighting"),
    "scd": Method("nearest", "forward_kl", "constant", "arXiv 2601.10114, without adaptive weighting"),
    "scd-aw": Method("nearest", "forward_kl", "adaptive", "arXiv 2601.10114, the whole method"),
    "td-aw-cf": Method("best", "forward_kl", "adaptive_cross_fit", "td-aw with losses out of sample (cross-fitted)"),
    "cd-aw-cf": Method(
        "in_order", "forward_kl", "adaptive_cross_fit", "cd-aw with losses out of sample (cross-fitted)"
    ),
    "scd-aw-cf": Method(
        "nearest", "forward_kl", "adaptive_cross_fit", "scd-aw with losses out of sample (cross-fitted)"
    ),
    "cd-mix": Method(
        "in_order", "forward_kl", "gated", "checkpoints in fixed order, each mixed with the anchor row by row"
    ),
    "ens": Method(
        "ensemble", "forward_kl", "constant", "the teacher's checkpoints as an ensemble, cf. arXiv 1704.00109"
    ),
    "ccd": Method(
        "in_order", "forward_kl", "constant", "cd as one training without restarts", settings=("restart=false",)
    ),
    "ccd-aw": Method(
        "in_order",
        "forward_kl",
        "adaptive_cross_fit",
        "cd-aw-cf as one training without restarts",
        settings=("restart=false",),
    ),
    "random": Method("random", "forward_kl", "constant", "ablation of the schedule: a random checkpoint each stage"),
    "rkl": Method("best", "reverse_kl", "constant", "reverse KL as in MiniLLM, arXiv 2306.08543, on gold answers"),
    "jsd": Method("best", "jsd", "constant", "generalised JSD at 0.5 as in GKD, arXiv 2306.13649, on gold answers"),
    "seqkd": Method("none", "none", "none", "fine-tuning on the teacher's own answers, arXiv 1606.07947", "teacher"),
    "akl": Method("best", "akl", "constant", "adaptive mixture of forward and reverse KL, arXiv 2404.02657"),
    "taid": Method(
        "interpolated", "forward_kl", "constant", "a target that moves from student to teacher, arXiv 2501.16937"
    ),
    "skew": Method("best", "skew_kl", "constant", "skewed KL at 0.1 as in DistiLLM, arXiv 2402.03898"),
}


@cache
def _brought() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def method_names() -> list[str]:
    """Every method there is: those of the table and those that installed packages bring."""
    return list(dict.fromkeys([*METHODS, *_brought()]))


def split_variant(name: str) -> tuple[str, list[str]]:
    """Method and settings: `scd+schedule.advance=true` is ("scd", ["schedule.advance=true"])."""
    base, *settings = _SETTING.split(name)
    return base, settings


def find_method(name: str) -> Method:
    """A method by name, of a variant its base. Raises KeyError for one that nobody has, TypeError for an entry point
    that is no
    `Method`."""
    name, _ = split_variant(name)
    if name not in METHODS:
        method = _brought()[name].load()
        if not isinstance(method, Method):
            raise TypeError(
                f"entry point {name!r} of {GROUP} gives {method!r}; it must give a tutelage.method.methods.Method"
            )
        METHODS[name] = method
    return METHODS[name]
