"""Entities, questions and labels with short forms over HTTP: a student that has learned its rows by heart answers
them."""

from __future__ import annotations

import pytest

from helpers.served import served
from helpers.small_student import COLOR_ROWS, COLOR_TASK, small_student
from tutelage.records import Example

pytest.importorskip("fastapi", reason='needs FastAPI: pip install "tutelage[serve]"')
openai = pytest.importorskip("openai", reason='needs the OpenAI client: pip install "tutelage[serve]"')
pytest.importorskip("prometheus_client", reason='needs prometheus-client: pip install "tutelage[serve]"')

PEOPLE = [("Ada", "London"), ("Bo", "New York"), ("Cy", "Low Hill"), ("Di", "Paris")]
TEXTS = [f"{who} lives in {place}." for who, place in PEOPLE]


def test_entities_are_answered_as_typed_texts(tmp_path):
    answers = [f"person: {who}\nplace: {place}" for who, place in PEOPLE] + ["none"]
    texts = [*TEXTS, "nothing at all"]
    rows = [Example(f"e-{n}", "test", text, answers[n], [answers[n]]) for n, text in enumerate(texts)]
    task = {"type": "ner", "labels": ["person", "place"], "language": "en"}
    student = small_student(tmp_path / "student", rows, task, passes=60)
    with served(student.folder) as server:
        reply = server.post("/v1/answer", {"rows": [{"id": str(n), "text": text} for n, text in enumerate(texts)]})
        refused = server.post("/v1/answer", {"rows": [{"texts": "a"}]})
    found = reply.json["answers"]
    assert [answer["id"] for answer in found] == ["0", "1", "2", "3", "4"]
    assert [answer["raw"] for answer in found] == answers
    assert found[1]["prediction"] == [["person", "Bo"], ["place", "New York"]] and found[4]["prediction"] == []
    assert all(0 < answer["confidence"] <= 1 for answer in found)
    assert refused.status == 400 and refused.json["error"]["code"] == "template_value_missing"


def test_questions_are_answered_to_the_openai_client_as_to_rows(tmp_path):
    rows = [
        Example(f"q-{n}", "test", f"{text}\nWhere?", place, [place])
        for n, (text, (_, place)) in enumerate(zip(TEXTS, PEOPLE, strict=True))
    ]
    data = {"template": "{context}\n{question}"}
    student = small_student(tmp_path / "student", rows, {"type": "qa", "language": "en"}, data=data, passes=60)
    with served(student.folder) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        completion = client.completions.create(model="small", prompt=[row.prompt for row in rows], temperature=0)
        messages = [{"role": "user", "content": rows[2].prompt}]
        chat = client.chat.completions.create(model="small", messages=messages).choices[0]
        asked = [{"question": "Where?", "context": text} for text in TEXTS]
        answered = server.post("/v1/answer", {"rows": asked}).json["answers"]
    places = [place for _, place in PEOPLE]
    assert [choice.text for choice in completion.choices] == places
    assert (chat.message.content, chat.finish_reason) == ("Low Hill", "stop")
    assert chat.model_extra["prediction"] == "Low Hill"
    assert [answer["prediction"] for answer in answered] == places


def test_labels_with_short_forms_are_answered_whole(tmp_path):
    long = {"red": "a red one", "green": "a green one", "blue": "a blue one"}
    rows = [Example(row.id, "test", row.prompt, long[row.answer], [long[row.answer]]) for row in COLOR_ROWS[:6]]
    task = {**COLOR_TASK, "labels": list(long.values()), "verbalizers": {label: label[2] for label in long.values()}}
    student = small_student(tmp_path / "student", rows, task, passes=60)
    with served(student.folder) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        prompts = [row.prompt for row in rows]
        completion = client.completions.create(model="small", prompt=prompts, temperature=0, max_tokens=4)
        answered = server.post("/v1/answer", {"rows": [{"text": prompt} for prompt in prompts]}).json["answers"]
    wanted = [row.answer for row in rows]
    assert [choice.text for choice in completion.choices] == wanted
    assert [answer["prediction"] for answer in answered] == [answer["raw"] for answer in answered] == wanted
    # what was written, and paid for: " r" is one or two tokens, "a red one" would be more
    assert completion.usage.completion_tokens <= 2 * len(rows)
