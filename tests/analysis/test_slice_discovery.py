"""Slice discovery: a planted slice is found, in any script, and without a planted one none is found."""

import numpy as np
import pytest

from tutelage.analysis.slice_discovery import Condition, halves, read_prompts, rows_inside, search, terms_of
from tutelage.analysis.slices import Answers

WORDS = {
    "en": [
        "patient",
        "man",
        "woman",
        "pain",
        "since",
        "week",
        "doctor",
        "knee",
        "eye",
        "chest",
        "fever",
        "cough",
        "rash",
        "old",
        "left",
    ],
    "ko": [
        "환자는",
        "여성",
        "남성",
        "두통",
        "발열",
        "기침",
        "복통",
        "무릎",
        "통증을",
        "지난주부터",
        "심한",
        "가벼운",
        "약을",
        "아침",
        "저녁",
    ],
    "ja": [
        "患者は",
        "女性",
        "男性",
        "頭痛",
        "発熱",
        "咳",
        "腹痛",
        "膝",
        "先週から",
        "激しい",
        "軽い",
        "薬を",
        "服用中",
        "朝",
        "食後",
    ],
}
PLANTED = {"en": "denies", "ko": "없으나", "ja": "ないが"}


def simulated(seed: int, effect: float, languages: str = "en ko ja", rows: int = 800):
    """Prompts, their languages, which hold the planted word, and (student, teacher); the student is behind by 0.05
    everywhere."""
    rng = np.random.default_rng(seed)
    language = rng.choice(languages.split(), rows)
    planted = rng.random(rows) < 0.2
    texts = []
    for name, has_planted in zip(language, planted, strict=True):
        words = [*rng.choice(WORDS[name], 8), *([PLANTED[name]] if has_planted else [])]
        texts.append(("" if name == "ja" else " ").join(rng.permutation(words)))
    ease, answers = rng.random(rows), []
    for skill in (np.where(planted, 0.75 - effect, 0.75), np.full(rows, 0.8)):
        right = 0.7 * ease + 0.3 * rng.random(rows) < skill
        answers.append(
            Answers(right.astype(float), np.where(right, rng.gamma(0.5, 0.1, rows), rng.gamma(2.0, 0.8, rows)))
        )
    return texts, language.tolist(), planted, *answers


def discover(data, **known):
    texts, language, _, student, teacher = data
    prompts = read_prompts(texts, {"language": language, **known})
    return search(student, teacher, prompts, resamples=50), prompts


@pytest.mark.parametrize(
    ("languages", "seed"), [("en", 0), ("en", 1), ("ko", 2), ("ja", 3), ("en ko ja", 4), ("en ko ja", 5)]
)
def test_a_planted_slice_is_found(languages, seed):
    data = simulated(seed, 0.45, languages)
    result, prompts = discover(data)
    inside = rows_inside(result["found"][0], prompts)
    planted = data[2]
    rate = planted[inside].mean(), planted[~inside].mean()
    assert max(rate) > 0.4 and min(rate) < 0.1  # the slice, or everything but the slice
    words = {part["value"] for line in result["found"] for part in line["rule"] if part["what"] == "contains"}
    assert any(word in PLANTED[name] or PLANTED[name] in word for word in words for name in languages.split())


@pytest.mark.parametrize("seed", range(6))
def test_without_a_planted_slice_candidates_are_tried_and_none_is_found(seed):
    result, _ = discover(simulated(seed, 0.0))
    assert result["found"] == []
    assert 1 <= len(result["tried"]) <= 10 and not any(line["held"] for line in result["tried"])


def test_numbers_of_a_discovered_slice_come_from_the_half_that_was_not_searched():
    data = simulated(4, 0.45)
    result, prompts = discover(data)
    line, judged = result["found"][0], ~halves(len(data[0]))
    inside = rows_inside(line, prompts)
    assert line["rows"] == (inside & judged).sum()
    assert line["searched"]["rows"] == (inside & ~judged).sum()
    student, teacher = data[3].score, data[4].score
    assert line["score"]["student"] == pytest.approx(student[inside & judged].mean())
    apart = (student - teacher)[judged]
    rest = apart[inside[judged]].mean() - apart[~inside[judged]].mean()
    assert line["score"]["against_rest"]["difference"] == pytest.approx(rest)
    assert line[line["by"]]["against_rest"]["p_holm"] <= 0.05


def test_a_known_key_can_make_a_slice():
    data = simulated(6, 0.45)
    result, _ = discover(
        (["same words in every prompt"] * 800, *data[1:]), subdomain=np.where(data[2], "odd", "plain").tolist()
    )
    assert result["found"][0]["name"] in (
        "subdomain is odd",
        "subdomain is not odd",
        "subdomain is plain",
        "subdomain is not plain",
    )


def test_the_same_rows_give_the_same_slices():
    assert discover(simulated(1, 0.3))[0] == discover(simulated(1, 0.3))[0]


def test_two_equal_models_have_no_slices():
    texts, language, _, _, teacher = simulated(0, 0.0)
    assert search(teacher, teacher, read_prompts(texts, {"language": language}))["found"] == []


def test_prompts_without_a_common_word_have_no_slices():
    texts = [f"w{chr(97 + n % 26)}{chr(97 + n // 26)}x{n}" for n in range(120)]
    student = Answers(np.arange(120) % 2 * 1.0, np.ones(120))
    teacher = Answers(np.ones(120), np.ones(120))
    assert search(student, teacher, read_prompts(texts, {}))["found"] == []


def test_terms_of_words_numbers_and_scripts_without_spaces():
    assert terms_of("Denies pain, 64") == {"denies", "pain", "#", "denies pain", "pain #"}
    assert {"痛", "頭痛", "頭痛は", "痛は"} <= terms_of("頭痛は 2日")
    assert "없으" in terms_of("설사는 없으나")


def test_conditions_read_as_words():
    assert str(Condition("contains", "not")) == "contains 'not'"
    assert str(Condition("language", "ko", False)) == "language is not ko"
    assert str(Condition("characters", "120", False)) == "fewer than 120 characters"
