"""Effects of weighting and schedule: which methods are compared, and rows counted by hand."""

import numpy as np
import pytest

from tutelage.analysis.method_effects import comparable_pairs, effect_of
from tutelage.analysis.slices import Answers


def answers(score, nll=None):
    return Answers(np.array(score, float), np.array(nll if nll is not None else [1.0] * len(score), float))


def test_methods_that_differ_in_one_part_are_compared():
    assert set(comparable_pairs(["sft", "td", "td-aw", "scd", "scd-aw", "akl", "seqkd"])) == {
        ("weighting", "td", "td-aw"),
        ("weighting", "scd", "scd-aw"),
        ("schedule", "td", "scd"),
        ("schedule", "td-aw", "scd-aw"),
    }


def test_variants_are_compared_with_variants_of_the_same_settings_and_unknown_methods_with_none():
    names = ["td", "td-aw", "td+schedule.advance=true", "td-aw+schedule.advance=true", "somebody-elses"]
    pairs = [(pair.plain, pair.changed) for pair in comparable_pairs(names)]
    assert sorted(pairs) == [("td", "td-aw"), ("td+schedule.advance=true", "td-aw+schedule.advance=true")]


def test_rows_that_weights_kept_and_rows_that_they_lost_by_hand():
    #                  kept gained lost missed same
    anchor = answers([1, 0, 1, 0, 1], [0.1, 2.0, 0.1, 2.0, 0.1])
    plain = answers([0, 0, 1, 1, 1], [2.0, 2.0, 0.1, 0.1, 0.5])
    changed = answers([1, 1, 0, 0, 1], [0.5, 0.5, 1.0, 1.0, 0.25])
    teacher = answers([1, 1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5, 0.5])
    (pair,) = comparable_pairs(["td", "td-aw"])
    effect = effect_of(pair, {0: (plain, changed), 1: (plain, changed)}, anchor, teacher, list("abcde"))
    assert effect["rows"] == {
        "kept": {"count": 2, "ids": ["a"]}, "lost": {"count": 2, "ids": ["c"]},
        "gained": {"count": 2, "ids": ["b"]}, "missed": {"count": 2, "ids": ["d"]},
    }  # fmt: skip
    assert (effect["score"]["plain"], effect["score"]["changed"], effect["score"]["difference"]) == (0.6, 0.6, 0.0)
    assert effect["nll_where"]["sfs"]["rows"] == 3
    assert effect["nll_where"]["sfs"]["difference"] == pytest.approx((-1.5 + 0.9 - 0.25) / 3)
    assert effect["nll_where"]["tfs"]["difference"] == pytest.approx((-1.5 + 0.9) / 2)
    assert effect["seeds"] == [0, 1]


def test_without_an_anchor_only_the_two_students_are_compared():
    (pair,) = comparable_pairs(["td", "scd"])
    effect = effect_of(pair, {0: (answers([0, 1]), answers([1, 1]))}, None, answers([1, 1]), ["a", "b"])
    assert effect["effect"] == "schedule" and effect["score"]["difference"] == 0.5 and "rows" not in effect
