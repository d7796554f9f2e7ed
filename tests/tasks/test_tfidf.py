"""The baseline of TF-IDF and logistic regression: what it learns, in which languages, and which answers it may give."""

from __future__ import annotations

import random

import pytest

from tutelage.data.near_duplicates import distinct_texts
from tutelage.records import Example
from tutelage.tasks import tfidf
from tutelage.tasks.classification import Classification
from tutelage.tasks.ner import EntityRecognition
from tutelage.tasks.qa import ChoiceQA, SpanQA
from tutelage.tasks.tfidf import TfidfAnswers, suits, tfidf_answers

TOPICS = {
    "en": {"weather": ["rain tomorrow", "snowfall", "a sunny day"], "music": ["play a song", "the album", "louder"]},
    "ja": {"weather": ["明日の雨", "雪が降る", "晴れの日"], "music": ["曲を再生", "アルバムを", "音量を上げる"]},
    "ko": {"weather": ["내일 비가", "눈이 내려요", "맑은 날씨"], "music": ["노래를 틀어", "앨범을", "음악 소리"]},
    "zh": {"weather": ["明天下雨", "会下雪吗", "晴天"], "music": ["播放歌曲", "这张专辑", "声音大一点"]},
    "de": {"weather": ["Regen morgen", "der Schneefall", "sonnig"], "music": ["ein Lied spielen", "das Album", "laut"]},
}


def example(n: int, text: str, answer: str, **more) -> Example:
    return Example(str(n), "train", f"Name the topic.\nText: {text}\nTopic:", answer, [answer], **more)


def rows(language: str, count: int, seed: int) -> list[Example]:
    """Rows of two topics, each with a phrase of its topic between digits that say nothing."""
    draw = random.Random(seed)
    return [
        example(n, f"{draw.randint(100, 999)}{draw.choice(TOPICS[language][label])}{draw.randint(100, 999)}", label)
        for n, label in enumerate(["weather", "music"] * (count // 2))
    ]


def answered(training: list[Example], asked: list[Example]) -> TfidfAnswers:
    return tfidf_answers(training, asked, Classification(), distinct_texts([*training, *asked]))


@pytest.mark.parametrize("language", TOPICS)
def test_it_learns_topics_in_every_language(language):
    asked = rows(language, 40, seed=1)
    found = answered(rows(language, 60, seed=0), asked)
    assert sum(a == e.answer for a, e in zip(found.answers, asked, strict=True)) >= 38
    assert found.training_rows == 60 and found.features > 100


def test_chat_prompts_are_read_as_their_text():
    def chat(own: list[Example]) -> list[Example]:
        return [Example(e.id, e.split, [{"role": "user", "content": e.prompt}], e.answer, e.answers) for e in own]

    plain = rows("en", 60, seed=0), rows("en", 40, seed=1)
    assert answered(*map(chat, plain)).answers == answered(*plain).answers


def test_an_answer_is_one_that_the_row_allows():
    train = [example(n, f"stage {n} of the tumour", "T1" if n % 2 else "M0") for n in range(20)]
    asked = [
        example(n, "stage 3 of the tumour", "M0", labels=labels) for n, labels in enumerate((["M0"], ["T1"], ["N2"]))
    ]
    assert answered(train, asked).answers == ["M0", "T1", None]


def test_rows_that_show_nothing_get_the_commonest_label():
    train = [example(n, "", "rare" if n == 0 else "common") for n in range(5)]
    assert answered(train, train[:2]).answers == ["common", "common"]
    assert answered(train[1:], train[:1]).answers == ["common"]


@pytest.mark.parametrize("bound", [{"MOST_ROWS": 30}, {"MOST_CHARACTERS": 400}])
def test_the_work_is_bounded_by_a_sample_of_the_rows(bound, monkeypatch):
    for name, value in bound.items():
        monkeypatch.setattr(tfidf, name, value)
    found = [answered(rows("en", 60, seed=0), rows("en", 10, seed=1)) for _ in range(2)]
    assert 15 < found[0].training_rows <= 30 and found[0] == found[1]


def test_letters_of_choices_and_free_answers_do_not_suit_it():
    letters = [example(n, f"question {n}\nA. this\nB. that", "AB"[n % 2]) for n in range(4)]
    verdicts = [example(n, f"question {n}", ("yes", "no")[n % 2]) for n in range(4)]
    assert not suits(ChoiceQA(), letters) and suits(Classification(), letters)
    assert suits(ChoiceQA(), verdicts)
    assert not suits(SpanQA(), verdicts) and not suits(EntityRecognition(), verdicts)


def test_many_rows_that_share_no_characters_are_no_error():
    train = [Example(str(n), "train", chr(0x4E00 + n), "ab"[n % 2], ["ab"[n % 2]]) for n in range(120)]
    assert answered(train, train).answers == [row.answer for row in train]
