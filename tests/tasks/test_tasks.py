"""Answers parsed, judged and summed up, on rows shaped like the ones users bring."""

import json

import pytest
from sklearn.metrics import f1_score

from tutelage.errors import ConfigError, DataError
from tutelage.recipe.schema import Task
from tutelage.records import Example
from tutelage.tasks import TASKS, known_metrics, make_task, template_for
from tutelage.tasks.ner import answer_from_entities, entities_from_answer
from tutelage.tasks.qa import render_choices

LANGUAGES = ("en", "ja", "ko", "zh", "de")


def row(answer, *, answers=None, labels=None, language=None, id="r"):
    return Example(id, "test", "prompt", answer, answers or [answer], labels, language)


def task(type, labels=None, *, choice=False, **section):
    return make_task(Task(type=type, **section), labels, choice=choice)


def values(metrics):
    return {name: interval.value for name, interval in metrics.items()}


# --- classification ---


def test_a_label_is_read_from_the_first_line():
    intents = task("classification", ["set alarm", "cancel alarm"])
    assert intents.parse(" set alarm\nRequest: next", row("set alarm")) == "set alarm"
    assert intents.parse("\n\n set alarm ", row("set alarm")) == "set alarm"
    assert intents.parse("set alarm please", row("set alarm")) is None
    assert intents.parse(" \n ", row("set alarm")) is None


def test_a_label_of_several_lines_is_compared_as_a_whole():
    shades = task("classification", ["red\ndark", "red", "blue"])
    assert shades.parse(" red\ndark\nText: next", row("red\ndark")) == "red\ndark"
    assert shades.parse("RED\nDark", row("red\ndark")) == "red\ndark"
    assert shades.parse("red\nlight", row("red")) == "red"
    assert shades.parse("dark", row("red\ndark")) is None
    assert shades.score(shades.parse("red\ndark", row("red\ndark")), row("red\ndark")) == 1.0
    assert shades.score(shades.parse("red", row("red\ndark")), row("red\ndark")) == 0.0


def test_case_and_width_lead_back_to_the_label_as_it_is_spelt():
    stages = task("classification", ["T1", "T2"])
    assert stages.parse("ｔ１", row("T1")) == "T1"
    assert stages.gold(row("t2 ")) == "T2"
    # Two labels that differ in case only are told apart, and nothing is guessed.
    countries = task("classification", ["US", "us"])
    assert countries.parse("us", row("us")) == "us"
    assert countries.parse("Us", row("us")) is None


def test_the_labels_of_the_row_win_over_those_of_the_task():
    stages = task("classification", ["T0", "T1", "N0", "N1"])
    axis = row("T1", labels=["T0", "T1"], language="ja")
    assert stages.parse("T1", axis) == "T1"
    assert stages.parse("N0", axis) is None
    assert stages.parse("N0", row("N1")) == "N0"


def test_classification_scores_by_hand():
    intents = task("classification", ["a", "b", "c"])
    examples = [row(label) for label in "aaab"]
    # a: precision 2/3, recall 2/3, F1 2/3; b: nothing right, F1 0; c is never gold. One answer of four is invalid.
    metrics = intents.metrics(["a", "a", None, "a"], examples)
    assert values(metrics) == pytest.approx({"accuracy": 0.5, "macro_f1": 1 / 3, "invalid_rate": 0.25})
    assert all(m.low <= m.value <= m.high for m in metrics.values())
    assert [intents.score(p, e) for p, e in zip(["a", "a", None, "a"], examples, strict=True)] == [1, 1, 0, 0]


def test_macro_f1_equals_sklearn_over_the_labels_in_gold():
    labels = ["단편", "평서", "질문", "명령", "수사의문"]
    gold = [labels[i * i % 4] for i in range(60)]
    predicted = [None if i % 7 == 0 else labels[i * 3 % 5] for i in range(60)]
    metrics = task("classification", labels).metrics(predicted, [row(label) for label in gold])
    written = [label or "(invalid)" for label in predicted]
    expected = f1_score(gold, written, labels=sorted(set(gold)), average="macro", zero_division=0)
    assert metrics["macro_f1"].value == pytest.approx(expected)


# --- question answering ---


def test_choices_are_judged_as_labels_and_letters_may_be_small():
    choices = task("qa", ["A", "B", "C", "D", "E"], choice=True)
    assert (choices.name, choices.metric, choices.closed) == ("qa", "accuracy", True)
    question = row("C", labels=["A", "B", "C"], language="ja")
    assert choices.parse("c\n", question) == "C"
    assert choices.parse("E", question) is None
    assert choices.parse("C. 袋", question) is None
    assert choices.parse("maybe", row("yes", labels=["yes", "no", "maybe"])) == "maybe"
    assert set(choices.metrics(["C"], [question])) == {"accuracy", "macro_f1", "invalid_rate"}


def test_span_scores_by_hand_over_several_answers():
    spans = task("qa", language="en")
    assert (spans.metric, spans.closed) == ("exact_match", False)
    examples = [
        row("The red car", answers=["The red car", "car"]),
        row("晋朝敦煌人", language="zh"),
        row("x"),
        row("six weeks"),
    ]
    raws = ["car\nsecond line", "敦煌人", " \n", "six days"]
    predictions = [spans.parse(raw, example) for raw, example in zip(raws, examples, strict=True)]
    assert predictions == ["car", "敦煌人", None, "six days"]
    # exact: 1, 0, 0, 0. token F1: 1; 3 shared of 3 and 5 characters 6/8; 0; 1 shared of 2 and 2 words 1/2.
    assert values(spans.metrics(predictions, examples)) == pytest.approx(
        {"exact_match": 0.25, "token_f1": (1 + 0.75 + 0 + 0.5) / 4, "empty_rate": 0.25}
    )
    assert spans.score("敦煌人", examples[1]) == 0.0
    assert task("qa", metric="token_f1").score("敦煌人", examples[1]) == pytest.approx(0.75)
    assert spans.score(None, examples[2]) == 0.0
    assert spans.gold(examples[0]) == ["The red car", "car"]


def test_choices_are_rendered_with_letters():
    assert render_choices(["車", "袋"]) == "A. 車\nB. 袋"
    with pytest.raises(DataError, match="27 choices"):
        render_choices(["x"] * 27)


# --- named entities ---


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Chemical: phenobarbital\nChemical: PB", [("Chemical", "phenobarbital"), ("Chemical", "PB")]),
        ("none", []),
        (" None\n", []),
        ("object name: Pulse 2: Afterlife", [("object name", "Pulse 2: Afterlife")]),
        ("人名：田中：太郎", [("人名", "田中：太郎")]),
        ("製品名: 作品：下", [("製品名", "作品：下")]),
        ("\n 인물:  추신수 \n\n수량: 1사", [("인물", "추신수"), ("수량", "1사")]),
        ("no colon here\nperson: Ann", [("person", "Ann")]),
        ("none\nperson: Ann", [("person", "Ann")]),
        ("person:Ann", None),
        ("person: ", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_entities_are_read_line_by_line(text, pairs):
    assert entities_from_answer(text) == pairs


def test_entities_written_are_the_entities_read():
    pairs = [
        ("病変・症状", "胆管 炎"),
        ("object name", "Pulse 2: Afterlife"),
        ("人名", "田中　太郎"),
        ("time", "10：30"),
    ]
    assert entities_from_answer(answer_from_entities(pairs)) == pairs
    assert answer_from_entities([]) == "none"
    assert answer_from_entities([("person", "Ann\n Lee")]) == "person: Ann Lee"
    for unreadable in (("a: b", "x"), ("人：名", "x"), ("a", " "), ("", "x")):
        with pytest.raises(DataError, match="cannot be written"):
            answer_from_entities([unreadable])


def test_a_type_outside_the_set_makes_its_line_unreadable():
    ner = task("ner", ["Chemical", "Disease"])
    gold = row("Chemical: PB")
    assert ner.parse("Gene: ILK\nChemical: PB", gold) == [["Chemical", "PB"]]
    assert ner.parse("Gene: ILK", gold) is None
    assert task("ner").parse("Gene: ILK", gold) == [["Gene", "ILK"]]
    assert task("ner", ["人：名"]).parse("人：名: 田中", gold) == [["人：名", "田中"]]


def test_ner_scores_by_hand():
    ner = task("ner", ["PER", "LOC"])
    examples = [row("PER: Ann\nPER: Ann\nLOC: Rome"), row("none"), row("LOC: Oslo"), row("none")]
    raws = ["PER: Ann\nLOC: Paris", "none", "gibberish", "PER: Bo"]
    predictions = [ner.parse(raw, example) for raw, example in zip(raws, examples, strict=True)]
    # matched 1 (one Ann of two), predicted 3, gold 4. PER: 1 of 2 and 2. LOC: 0 of 1 and 2.
    metrics = ner.metrics(predictions, examples)
    assert values(metrics) == pytest.approx(
        {
            "entity_f1": 2 / 7,
            "precision": 1 / 3,
            "recall": 1 / 4,
            "unparsable_rate": 1 / 4,
            "f1/PER": 2 / 4,
            "f1/LOC": 0.0,
        }
    )
    assert list(metrics)[-2:] == ["f1/PER", "f1/LOC"]
    # Row by row: 2 * 1 / (2 + 3), both empty, unparsable, a false entity.
    scores = [ner.score(prediction, example) for prediction, example in zip(predictions, examples, strict=True)]
    assert scores == pytest.approx([2 / 5, 1.0, 0.0, 0.0])


def test_texts_without_entities_are_right_only_if_the_model_says_so():
    ner = task("ner", ["PER"])
    assert ner.metrics([[], []], [row("none"), row("none")])["entity_f1"].value == 1.0
    assert ner.metrics([None], [row("none")])["entity_f1"].value == 0.0
    assert ner.score(None, row("none")) == 0.0


def test_a_gold_answer_that_cannot_be_read_names_its_row():
    ner = task("ner")
    assert ner.gold(row("PER: Ann\nLOC: Rome")) == [["PER", "Ann"], ["LOC", "Rome"]]
    for answer in ("Ann", "PER: Ann\nRome", ""):
        with pytest.raises(DataError, match="row row-7"):
            ner.gold(row(answer, id="row-7"))


# --- all tasks ---


CASES = [
    (task("classification", ["a", "b"]), "a", row("a")),
    (task("qa", ["A", "B"], choice=True), "A", row("A")),
    (task("qa", language="en"), "Rome", row("Rome")),
    (task("ner", ["LOC"]), "LOC: Rome", row("LOC: Rome")),
]


@pytest.mark.parametrize(("task", "raw", "example"), CASES)
def test_one_row_scores_with_an_interval_of_no_width(task, raw, example):
    prediction = task.parse(raw, example)
    metrics = task.metrics([prediction], [example])
    assert metrics[task.metric].value == metrics[task.metric].high == 1.0
    assert next(iter(metrics)) == task.metric
    assert set(task.choosable_metrics) <= set(metrics)
    assert task.score(prediction, example) == 1.0
    assert json.loads(json.dumps([prediction, task.gold(example)])) == [prediction, task.gold(example)]


@pytest.mark.parametrize(("task", "raw", "example"), CASES)
def test_intervals_repeat_with_their_seed(task, raw, example):
    predictions, examples = [task.parse(raw, example), None] * 20, [example] * 40
    first = task.metrics(predictions, examples, resamples=200, seed=5)
    assert task.metrics(predictions, examples, resamples=200, seed=5) == first
    # Half of the rows are unanswered: recall, like accuracy, is 0.5 and uncertain.
    name = "recall" if task.name == "ner" else task.metric
    assert 0.2 < first[name].low < first[name].value == 0.5 < first[name].high < 0.8


def test_predictions_and_rows_must_pair_up():
    for some, _, example in CASES:
        with pytest.raises(ValueError, match="zip"):
            some.metrics([None], [example, example])


def test_a_metric_that_the_task_lacks_is_refused_with_those_it_has():
    with pytest.raises(ConfigError, match=r"'acuracy'.*accuracy, macro_f1\. Did you mean 'accuracy'\?"):
        task("classification", ["a"], metric="acuracy")
    with pytest.raises(
        ConfigError, match=r"'accuracy' does not fit questions with free answers.*exact_match, token_f1"
    ):
        task("qa", metric="accuracy")
    with pytest.raises(ConfigError, match=r"does not fit questions with choices.*accuracy, macro_f1"):
        task("qa", ["A"], choice=True, metric="token_f1")
    with pytest.raises(ConfigError, match="entity_f1, precision, recall"):
        task("ner", metric="unparsable_rate")  # lower is better: reported, never chosen by


def test_metrics_are_known_before_any_row_is_read():
    assert known_metrics("qa") == ("exact_match", "token_f1", "accuracy", "macro_f1")
    assert {name: known_metrics(name)[0] for name in TASKS} == {
        "classification": "accuracy",
        "ner": "entity_f1",
        "qa": "exact_match",
    }
    assert task("classification", ["a"], metric="macro_f1").metric == "macro_f1"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("type", "choice", "places"),
    [
        ("classification", False, {"labels", "text"}),
        ("ner", False, {"labels", "text"}),
        ("qa", False, {"context", "question"}),
        ("qa", True, {"choices", "question"}),
    ],
)
def test_every_default_prompt_takes_its_places_and_ends_with_a_cue(type, choice, places, language):
    template = template_for(type, language, choice)
    prompt = template.format(**{place: f"<{place}>" for place in places})
    assert all(prompt.count(f"<{place}>") == 1 for place in places)
    assert prompt.endswith((":", "："))
    assert language == "en" or template != template_for(type, "en", choice)


def test_default_prompts_of_other_languages_are_english():
    assert template_for("ner", "fr") == template_for("ner", None) == template_for("ner", "en-GB")
    assert template_for("ner", "ja-JP") == template_for("ner", "ja") != template_for("ner", "en")
