"""The report page in Korean and Japanese: every message is translated, and text from data stays escaped."""

import ast
import html
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from helpers.fake_run import INJECTION, Page, make_fake_run
from tutelage.errors import UserError
from tutelage.report import page
from tutelage.report.translations import CATALOGS, LANGUAGES, check_language, join_sentences, translator
from tutelage.stages.report import build_report
from tutelage.utils import format

TRANSLATED = sorted(set(LANGUAGES) - {"en"})
OWN_SCRIPT = {"ko": "[가-힣]", "ja": "[ぁ-ゖァ-ヺ一-龯]"}
TAG = re.compile(r"</?[a-z][^<>]*>")


@cache
def messages() -> dict[str, str]:
    """Every message of the page, with a file it stands in; of a plural the plural form."""
    environment = page.page_environment()
    sources = {}
    for path in [
        page.TEMPLATES / "report.html.jinja",
        *sorted(CATALOGS.glob("*.jinja")),
        *sorted(CATALOGS.glob("*.js")),
    ]:
        for line, function, message in environment.extract_translations(path.read_text(encoding="utf-8")):
            forms = [form for form in message if form] if isinstance(message, tuple) else [message]
            assert forms[-1], f"{path.name}:{line}: {function} needs its message as a literal"
            sources[forms[-1]] = path.name
    for module, function in ((page, "translate"), (format, "translate")):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == function
                and isinstance(node.args[0], ast.Constant)
            ):
                sources[node.args[0].value] = module.__name__
    return sources | dict.fromkeys([*page.NAMES.values(), *format.METRICS.values(), *page.TERMS.values()], "page.py")


@cache
def catalog(lang: str) -> dict[str, str]:
    return json.loads((CATALOGS / f"{lang}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=TRANSLATED)
def translated(request, tmp_path_factory) -> tuple[str, Page]:
    run = make_fake_run(tmp_path_factory.mktemp("run"))
    return request.param, Page(build_report(run, title="Clinic <notes>", lang=request.param))


def placeholders(message: str) -> set[str]:
    return set(re.findall(r"%%|%\(\w+\)|\{\w+\}", message))  # whatever the width: 3 min 02 s, 3분 2초


@pytest.mark.parametrize("lang", TRANSLATED)
def test_every_message_is_translated_and_no_translation_is_dead(lang):
    assert len(messages()) > 100
    assert {message: source for message, source in messages().items() if message not in catalog(lang)} == {}
    assert set(catalog(lang)) - set(messages()) == set()


@pytest.mark.parametrize("lang", TRANSLATED)
def test_a_translation_has_the_placeholders_and_the_markup_of_its_message(lang):
    for message, translation in catalog(lang).items():
        assert placeholders(translation) == placeholders(message), translation
        assert Counter(TAG.findall(translation)) == Counter(TAG.findall(message)), translation
        values = {name: 1 for name in re.findall(r"%\((\w+)\)", message)}
        assert translation % values and message % values
        assert '"' not in TAG.sub("", message + translation), f"{translation}: ends an attribute"
        assert translation.strip() == translation and message.strip() == message


@pytest.mark.parametrize("lang", ["fr", "KO", "ko-KR", "", "../../../etc/passwd"])
def test_another_language_is_refused_with_what_to_type(lang, tmp_path):
    for refuse in (check_language, translator, lambda code: page.render("report.html.jinja", lang=code)):
        with pytest.raises(
            UserError, match=r"(?s)not written in .*en \(English\), ko \(한국어\), ja \(日本語\).*--lang ko"
        ):
            refuse(lang)


def test_the_page_says_its_language_and_its_headings_are_in_it(translated):
    lang, shown = translated
    assert ("html", {"lang": lang}) in shown.tags
    headings = [
        html.unescape(TAG.sub("", heading))
        for heading in re.findall(r"<(?:h2|h3|summary)\b.*?>(.*?)</", shown.source, re.S)
    ]
    assert len(headings) > 8
    for heading in headings:
        named = heading in ("scd-aw/seed-0", "td/seed-0")
        assert named or re.search(OWN_SCRIPT[lang], heading), heading
        assert not re.search(r"[a-z]{3,} [a-z]{2,}", heading), heading


def test_no_sentence_of_the_page_is_left_in_english(translated):
    _, shown = translated
    text = html.unescape(TAG.sub(" ", re.sub(r"<(script|style|pre|code)\b.*?</\1>", " ", shown.source, flags=re.S)))
    left = [message for message in messages() if message.count(" ") > 1 and "%" not in message and message in text]
    assert left == []
    assert "seed 0" not in text and " rows" not in text
    words = re.search(r'id="rows-words">(.*?)</script>', shown.source, re.S)
    assert not words or not re.search("Student|Teacher|Plain fine-tuning", words[1])


def test_recorded_english_is_marked_as_english(translated):
    _, shown = translated
    assert shown.source.count('<span lang="en">Smallest sum in ') == 4
    assert '<span lang="en">checkpoint-120 was chosen again' in shown.source


def test_text_from_data_is_inert_in_every_language(translated):
    _, shown = translated
    assert INJECTION in shown.text and INJECTION not in shown.source
    assert "Clinic &lt;notes&gt;" in shown.source
    assert not [name for _, attrs in shown.tags for name in attrs if name.startswith("on")]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize(
    "template",
    [
        '{{ _("The student scores %(score)s.", score=value) }}',
        "{% trans score=value %}The student scores {{ score }}.{% endtrans %}",
        '{{ ngettext("%(num)s checkpoint %(x)s", "%(num)s checkpoints %(x)s", 2, x=value) }}',
        '{{ _("The student scores %(score)s.", score=value | metric_name) }}',
        "{{ value | metric_name }} {{ value | term }} {{ value | model_role }} {{ value | words }}",
    ],
)
def test_values_in_messages_are_escaped_and_never_formatted(lang, template):
    text = page.page_environment(lang=lang).from_string(template).render(value="<b>%(score)s</b> %s 5 %")
    assert "<b>" not in text.lower() and "&lt;b&gt;%(score)s" in text.lower() and "5 %" in text


def test_marked_up_values_stay_marked_up():
    environment = page.page_environment(lang="ko")
    source = (
        '{% macro bold(x) %}<i>{{ x }}</i>{% endmacro %}{{ _("The student scores %(score)s.", score=bold("<0.5>")) }}'
    )
    assert environment.from_string(source).render() == "학생 모델의 점수는 <i>&lt;0.5&gt;</i>입니다."


def test_plurals():
    one, many = "%(num)s checkpoint, measured on validation.", "%(num)s checkpoints, measured on validation."
    source = f'{{{{ ngettext("{one}", "{many}", n) }}}}'
    texts = {
        lang: [page.page_environment(lang=lang).from_string(source).render(n=n) for n in (1, 4)]
        for lang in ("en", "ko")
    }
    assert texts["en"] == ["1 checkpoint, measured on validation.", "4 checkpoints, measured on validation."]
    assert texts["ko"] == [f"체크포인트 {n}개를 검증 데이터로 측정했습니다." for n in (1, 4)]


def test_names_and_durations_in_each_language():
    for lang, expected in {
        "en": [
            "3 min 02 s",
            "8.4 s",
            "1 h 03 min",
            "",
            "Teacher",
            "entity F1",
            "68\N{NO-BREAK SPACE}%",
            "my own",
        ],
        "ko": ["3분 2초", "8.4초", "1시간 3분", "", "교사 모델", "개체명 F1", "68%", "my own"],
        "ja": ["3 分 2 秒", "8.4 秒", "1 時間 3 分", "", "教師モデル", "固有表現F1", "68%", "my own"],
    }.items():
        translate = translator(lang)
        texts = [format.duration(seconds, translate) for seconds in (182, 8.44, 3780)]
        texts += [page.model_role(name, translate) for name in ("scd-aw/seed-0", "teacher")]
        assert [
            *texts,
            page.metric_name("entity_f1", translate),
            format.percent(0.684, translate),
            page.metric_name("my_own", translate),
        ] == expected


def test_japanese_sentences_follow_each_other_without_a_space():
    lines = "<p><b>一：</b>\n  差です。\n  次の文です。\n</p><pre>一。\n二。\n</pre>"
    assert join_sentences(lines, "ja") == "<p><b>一：</b>差です。次の文です。</p><pre>一。\n二。\n</pre>"
    assert join_sentences(lines, "en") == lines
