"""The HTTP API, by the official OpenAI client, curl and plain requests: the same answers as `tutelage predict`."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.project import Command, write_rows
from helpers.served import save_served, served
from helpers.tiny import byte_tokenizer
from tutelage import __version__
from tutelage.predict.predictor import Predictor
from tutelage.utils.files import read_jsonl

pytest.importorskip("fastapi", reason='needs FastAPI: pip install "tutelage[serve]"')
openai = pytest.importorskip("openai", reason='needs the OpenAI client: pip install "tutelage[serve]"')
pytest.importorskip("prometheus_client", reason='needs prometheus-client: pip install "tutelage[serve]"')

ROWS = [{"id": f"row-{n}", "text": f"new thing {n} is {color}"} for n, color in enumerate(("red", "blue", "green") * 3)]
PROMPT = "new thing 0 is red:"
CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return save_served(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def server(student):
    with served(student) as running:
        yield running


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def command(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def predicted(student, command, tmp_path):
    """What `tutelage predict` answers to rows."""

    def predict(rows, folder=student, *words) -> list[dict]:
        write_rows(tmp_path / "rows.jsonl", rows)
        (tmp_path / "answers.jsonl").unlink(missing_ok=True)
        files = ["--input", tmp_path / "rows.jsonl", "--output", tmp_path / "answers.jsonl"]
        assert command("predict", folder, *files, *words) == 0
        return list(read_jsonl(tmp_path / "answers.jsonl"))

    return predict


def same(found: list[dict], expected: list[dict]) -> None:
    """Answers are equal but for the rounding of confidences in other batches."""
    for got, wanted in zip(found, expected, strict=True):
        assert got["confidence"] == pytest.approx(wanted["confidence"], rel=1e-4)
        assert [got[key] for key in ("id", "prediction", "raw")] == [wanted[key] for key in ("id", "prediction", "raw")]


# --- rows ---


@pytest.mark.parametrize("decoding", ["labels", "generate"])
def test_rows_are_answered_as_by_predict(tmp_path, predicted, decoding):
    folder = save_served(tmp_path / "student", decoding=decoding)
    with served(folder) as running:
        reply = running.post("/v1/answer", {"rows": ROWS})
    assert reply.status == 200 and reply.json["model"] == "colors"
    assert {answer["answered_by"] for answer in reply.json["answers"]} == {"student"}
    same(reply.json["answers"], predicted(ROWS, folder))


def test_rows_with_other_columns_are_mapped_as_by_predict(student, predicted):
    rows = [{"review": row["text"]} for row in ROWS]
    with served(student, columns=["text=review"]) as running:
        answers = running.post("/v1/answer", {"rows": rows}).json["answers"]
    same(answers, predicted(rows, student, "--column", "text=review"))


def test_curl_gets_an_answer(server, predicted):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"rows": ROWS[:2]})
    words = [
        "curl",
        "--silent",
        "--fail",
        f"{server.url}/v1/answer",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    same(json.loads(done.stdout)["answers"], predicted(ROWS[:2]))


# --- OpenAI's client ---


def test_the_client_lists_the_model(client):
    assert [model.id for model in client.models.list()] == ["colors"]
    assert client.models.retrieve("colors").owned_by == "tutelage"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_rendered_prompt_is_answered_as_its_row(client, predicted):
    (row,) = predicted(ROWS[:1])
    chat = client.chat.completions.create(model="colors", messages=[{"role": "user", "content": PROMPT}])
    plain = client.completions.create(model="colors", prompt=PROMPT, temperature=0)
    for response, text in ((chat, chat.choices[0].message.content), (plain, plain.choices[0].text)):
        choice = response.choices[0]
        assert (text, choice.prediction, choice.answered_by) == (row["raw"], row["prediction"], "student")
        assert choice.confidence == pytest.approx(row["confidence"], rel=1e-4)
        # a byte is a token; the answer begins with the answer prefix, a space
        used = (response.usage.prompt_tokens, response.usage.completion_tokens)
        assert used == (len(PROMPT), len(f" {row['raw']}"))
        assert choice.finish_reason == ("length" if used[1] >= 6 else "stop")


def test_several_prompts_are_several_choices(client, predicted):
    completion = client.completions.create(model="colors", prompt=[f"{row['text']}:" for row in ROWS])
    assert [choice.index for choice in completion.choices] == list(range(len(ROWS)))
    assert [choice.text for choice in completion.choices] == [row["raw"] for row in predicted(ROWS)]


def test_a_stream_says_the_same(client):
    messages = [{"role": "user", "content": PROMPT}]
    whole = client.chat.completions.create(model="colors", messages=messages)
    stream = client.chat.completions.create(
        model="colors", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert pieces[-1].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].prediction == whole.choices[0].prediction
    assert chunks[-1].usage == whole.usage


def test_an_answer_is_cut_where_the_client_wants(client, predicted):
    (row,) = predicted(ROWS[:1])
    cut = client.completions.create(model="colors", prompt=PROMPT, max_tokens=3).choices[0]
    assert (cut.text, cut.finish_reason, cut.prediction) == (row["raw"][:2], "length", row["prediction"])
    stopped = client.completions.create(model="colors", prompt=PROMPT, stop=row["raw"][2]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (row["raw"].partition(row["raw"][2])[0], "stop")


@pytest.mark.parametrize("parts", [False, True])
def test_turns_of_a_plain_student_are_joined_as_in_training(server, parts):
    texts = ["be short", PROMPT]
    turns = [{"role": role, "content": text} for role, text in zip(("system", "user"), texts, strict=True)]
    if parts:
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    chat = server.post("/v1/chat/completions", {"model": "colors", "messages": turns}).json
    joined = server.post("/v1/completions", {"model": "colors", "prompt": "\n".join(texts)}).json
    assert chat["choices"][0]["confidence"] == pytest.approx(joined["choices"][0]["confidence"], rel=1e-4)
    assert chat["usage"] == joined["usage"]


def test_a_chat_student_gets_its_chat_template_and_system_message(tmp_path, predicted):
    folder = save_served(tmp_path / "chat", chat_template=True, system="be short")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    rendered = f"[system]be short[user]{PROMPT}[assistant]"
    with served(folder) as running:
        turns = [{"role": "user", "content": PROMPT}]
        chat = running.post("/v1/chat/completions", {"model": "colors", "messages": turns}).json
        row = running.post("/v1/answer", {"rows": ROWS[:1]}).json["answers"][0]
        own = running.post(
            "/v1/chat/completions",
            {"model": "colors", "messages": [{"role": "developer", "content": "be short"}, *turns]},
        ).json
    assert chat["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"] == len(rendered)
    for response in (chat, own):
        assert response["choices"][0]["confidence"] == pytest.approx(row["confidence"], rel=1e-4)
    same([row], predicted(ROWS[:1], folder))


# --- bad requests ---


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("answer", {"rows": []}, 400, "value_invalid", "rows: "),
        ("answer", {}, 400, "value_invalid", "rows: Field required"),
        ("answer", {"rows": ["text"]}, 400, "value_invalid", "rows.0: "),
        ("answer", {"rows": [{"text": "a"}], "model": "b"}, 400, "value_invalid", "model: Extra"),
        ("answer", {"rows": [{"text": "a"}, {"txt": "b"}]}, 400, "template_value_missing", "request:row 2: "),
        ("answer", {"rows": [{"text": ""}]}, 400, "template_value_missing", "empty"),
        ("answer", {"rows": [{"text": "\ud800"}]}, 400, "half_character", "half of a character"),
        ("answer", {"rows": [{"text": "x" * 300}]}, 400, "context_length_exceeded", "row 1: the prompt has 301 tokens"),
        ("answer", b'{"rows": [', 400, "json_invalid", "no JSON"),
        ("answer", b"", 400, "value_invalid", "Field required"),
        ("answer", b"[" * 100_000, 400, "http_error", "parsing the body"),
        ("answer", b'"\xff"', 400, "http_error", "parsing the body"),
        ("completions", {"model": "gpt-4", "prompt": "a"}, 404, "model_not_found", "send 'colors'"),
        ("completions", {"model": "\ud800", "prompt": "a"}, 404, "model_not_found", "send 'colors'"),
        ("completions", {"model": "colors", "prompt": ""}, 400, "prompt_without_tokens", "no tokens"),
        ("completions", {"model": "colors", "prompt": "\ud800"}, 400, "half_character", "half of a character"),
        ("completions", {"model": "colors", "prompt": "x" * 300}, 400, "context_length_exceeded", "at most 256"),
        ("completions", {"model": "colors", "prompt": [1, 2]}, 400, "value_invalid", "prompt.0: "),
        ("completions", {"model": "colors", "prompt": "a", "n": 2}, 400, "value_invalid", "n: Input should be 1"),
        ("completions", {"model": "colors", "prompt": "a", "max_tokens": 0}, 400, "value_invalid", "max_tokens: "),
        ("chat/completions", {"model": "colors", "messages": []}, 400, "value_invalid", "messages: "),
        (
            "chat/completions",
            {"model": "colors", "messages": [{"role": "user", "content": "a"}], "temperature": 0.7, "tools": [{}]},
            400,
            "value_invalid",
            "temperature: Input should be 0; tools: Extra",
        ),
        (
            "chat/completions",
            {"model": "colors", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "value_invalid",
            "messages.0.content: a part of type image_url, and this model reads text alone: send a string",
        ),
        ("chat/completions", {"model": "colors", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400,
         "value_invalid", "messages.0.content: a part without its text"),
        ("chat/completions", {"model": "colors", "messages": [{"role": "user", "content": 3}]}, 400,
         "value_invalid", "messages.0.content: Input should be a valid string"),
        ("chat/completions", {"model": "colors", "messages": None}, 400, "value_invalid", "messages: Field required"),
        ("chat/completions", {"model": "colors", "messages": [{"role": "user", "content": ""}]}, 400,
         "prompt_without_tokens", "no tokens"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_what_is_wrong(server, path, body, status, code, words):
    reply = server.post(f"/v1/{path}", body)
    error = reply.json["error"]
    assert (reply.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert words in error["message"]


@pytest.mark.parametrize(("template", "kind"), [(None, "columns_unrecognised"), ("{text}:", "template_value_missing")])
def test_a_client_is_told_the_field_that_is_missing(tmp_path, template, kind):
    student = save_served(tmp_path / "student", template=template)
    with served(student) as running:
        error = running.post("/v1/answer", {"rows": [{"message": "a"}]}).json["error"]
    assert error["code"] == kind and "'text'" in error["message"] and "end " in error["message"]
    assert not any(word in error["message"] for word in ("data.", "--column", "label", "completion"))


def test_fields_that_ask_for_nothing_are_taken(server):
    """Clients and proxies send all fields that they know, as null or empty."""
    chat = {"model": "colors", "messages": [{"role": "user", "content": PROMPT, "tool_calls": None, "name": None}]}
    plain = server.post("/v1/chat/completions", chat).json["choices"][0]["message"]["content"]
    names = ("tools", "metadata", "top_logprobs", "temperature", "stop", "stream", "stream_options", "seed")
    empty = dict.fromkeys(names) | {"logit_bias": {}, "functions": [], "service_tier": ""}
    reply = server.post("/v1/chat/completions", chat | empty)
    assert reply.status == 200 and reply.json["choices"][0]["message"]["content"] == plain
    completion = {"model": "colors", "prompt": PROMPT, "suffix": None, "logit_bias": {}, "echo": None}
    assert server.post("/v1/completions", completion).status == 200
    refused = server.post("/v1/completions", completion | {"suffix": "end", "logit_bias": {"5": 1}})
    assert refused.status == 400 and "suffix: Extra" in refused.json["error"]["message"]


def test_every_row_that_is_wrong_is_named(server):
    error = server.post("/v1/answer", {"rows": [{"text": None}, {"text": "a"}, {"other": 1}]}).json["error"]
    assert "row 1" in error["message"] and "row 3" in error["message"] and "row 2" not in error["message"]


def test_the_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="colors", prompt="x" * 300)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_the_description_has_the_version_of_the_package(server):
    assert server.get("/openapi.json").json["info"]["version"] == __version__


def test_unknown_paths_methods_and_types_are_refused(server):
    assert server.get("/v1/nothing").status == 404
    assert server.get("/v1/answer").status == 405
    form = server.send("/v1/answer", b'{"rows": [{"text": "a"}]}', {"Content-Type": "text/plain"})
    assert (form.status, form.json["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(server, chunked):
    piece = b" " * 2**16
    body = iter([piece] * 17) if chunked else piece * 17
    reply = server.send("/v1/answer", body, {"Content-Type": "application/json"})
    assert (reply.status, reply.json["error"]["code"]) == (413, "body_too_large")
    assert server.get("/health").status == 200


# --- health, metrics, key ---


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("evil.example:8000", 403),
     ("127.0.0.1.evil.example", 403), ("", 403)],
)  # fmt: skip
def test_a_local_server_has_no_other_name(server, host, status):
    assert server.get("/v1/models", Host=host).status == status


def test_a_page_of_another_origin_gets_no_permission(server):
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=60)
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    connection.request("OPTIONS", "/v1/answer", headers=headers)
    response = connection.getresponse()
    assert response.status == 405
    assert not [name for name, _ in response.getheaders() if name.lower().startswith("access-control")]
    connection.close()


def test_health_and_metrics_tell_what_happened(student):
    with served(student) as running:
        assert running.get("/health").json == {"status": "ok", "model": "colors"}
        running.post("/v1/answer", {"rows": ROWS})
        running.post("/v1/answer", {"rows": []})
        running.get("/nothing/at/all")
        assert running.metric('tutelage_rows_total{answered_by="student"}') == len(ROWS)
        assert running.metric('tutelage_requests_total{endpoint="/v1/answer",status="200"}') == 1
        assert running.metric('tutelage_requests_total{endpoint="/v1/answer",status="400"}') == 1
        assert running.metric('tutelage_requests_total{endpoint="other",status="404"}') == 1
        assert running.metric('tutelage_batch_rows_sum{model="student"}') == len(ROWS)
        assert running.metric("tutelage_rows_in_progress") == 0


def test_a_key_is_asked_for_where_one_is_set(student, monkeypatch):
    monkeypatch.setenv("TUTELAGE_SERVE_KEY", "secret words")
    with served(student) as running:
        body = {"rows": ROWS[:1]}
        assert running.post("/v1/answer", body).status == 401
        assert running.post("/v1/answer", body, Authorization="Bearer other").status == 401
        assert running.get("/metrics").status == 401
        assert running.post("/v1/answer", body, Authorization="Bearer secret words").status == 200
        assert running.get("/health").status == 200
        own = openai.OpenAI(base_url=f"{running.url}/v1", api_key="secret words")
        assert [model.id for model in own.models.list()] == ["colors"]


def test_an_error_of_the_server_costs_only_its_row_an_answer(student, monkeypatch):
    real = Predictor.answer

    def fails(self, examples):
        if any("poison" in str(example.prompt) for example in examples):
            raise RuntimeError("with words of the row: poison")
        return real(self, examples)

    monkeypatch.setattr(Predictor, "answer", fails)
    with served(student) as running:
        reply = running.post("/v1/answer", {"rows": [{"text": "poison"}, {"text": "water"}]})
        assert (reply.status, reply.json["error"]["type"]) == (500, "server_error")
        assert "poison" not in reply.body
        assert running.metric('tutelage_rows_total{answered_by="student"}') == 1
        assert running.post("/v1/answer", {"rows": ROWS[:1]}).status == 200
