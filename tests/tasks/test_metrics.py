"""Scores against numbers derived by hand, and against scikit-learn where it has the same score."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tutelage.tasks.metrics import (
    answer_tokens,
    base_language,
    entity_counts,
    exact_match,
    macro_f1,
    token_f1,
)


@pytest.mark.parametrize(
    ("prediction", "answer", "language", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", "en", 1.0),
        ("The Eiffel Tower", "eiffel tower", "de", 0.0),  # articles go in English only
        ("The Eiffel Tower", "eiffel tower", None, 0.0),
        ("ＡＩ  Lab", "ai lab", None, 1.0),  # width, case, white space
        ("晋朝 敦煌人。", "晋朝敦煌人", "zh", 1.0),
        ("서울 특별시", "서울특별시", "ko", 1.0),
        ("東京・大阪", "東京大阪", "ja-JP", 1.0),
        ("Straße", "STRASSE", "de", 1.0),
        ("The", "A", "en", 0.0),  # nothing but articles: kept, so that they stay different
        ("?", "!", "en", 0.0),
    ],
)
def test_exact_match_after_normalisation(prediction, answer, language, expected):
    assert exact_match(prediction, [answer], language) == expected


def test_token_f1_counts_words_as_a_multiset():
    # {red, red, car} against {red, car}: 2 shared of 3 and 2, F1 = 2 * 2 / 5
    assert token_f1("the red red car", ["red car"], "en") == pytest.approx(4 / 5)
    assert token_f1("blue", ["red car"], "en") == 0.0


def test_token_f1_counts_characters_in_chinese_japanese_and_korean():
    # 東京都 against 東京: 2 shared of 3 and 2
    assert token_f1("東京都", ["東京"], "ja") == pytest.approx(4 / 5)
    # 서울에서 against 서울, a particle more: 2 shared of 4 and 2
    assert token_f1("서울에서", ["서울"], "ko") == pytest.approx(4 / 6)
    assert token_f1("서울에서", ["서울"], "en") == 0.0
    assert answer_tokens("敦煌 人", "zh") == ["敦", "煌", "人"]


def test_best_of_several_accepted_answers_counts():
    answers = ["New York City", "New York", "NYC"]
    assert exact_match("nyc", answers, "en") == 1.0
    # against "New York": 1 shared of 1 and 2
    assert token_f1("York", answers, "en") == pytest.approx(2 / 3)


def test_language_codes_with_a_region():
    assert [base_language(code) for code in ("zh-Hant", "KO_kr", "en", None, "")] == ["zh", "ko", "en", None, None]


def test_two_equal_gold_entities_and_one_predicted_match_once():
    gold = [["Chemical", "PB"], ["Chemical", "PB"]]
    assert entity_counts([["Chemical", "PB"]], gold) == {"Chemical": (1, 1, 2)}
    assert entity_counts([["Chemical", "PB"]] * 3, gold) == {"Chemical": (2, 3, 2)}


def test_entity_surfaces_compare_in_width_and_white_space_but_not_in_case():
    assert entity_counts([["人名", "Ａ  B"]], [["人名", "A B"]]) == {"人名": (1, 1, 1)}
    assert entity_counts([["人名", "a b"]], [["人名", "A B"]]) == {"人名": (0, 1, 1)}
    assert entity_counts([["地名", "A B"]], [["人名", "A B"]]) == {"地名": (0, 1, 0), "人名": (0, 0, 1)}


def test_macro_f1_from_counts_equals_sklearn():
    rng = np.random.default_rng(0)
    gold, guess = rng.integers(0, 5, 200), rng.integers(0, 7, 200)  # 5 and 6 are never gold
    labels = np.arange(7)
    is_gold, is_guess = gold[:, None] == labels, guess[:, None] == labels
    ours = macro_f1((is_gold & is_guess).sum(0), is_guess.sum(0), is_gold.sum(0))
    assert ours == pytest.approx(f1_score(gold, guess, average="macro", labels=range(5), zero_division=0))
