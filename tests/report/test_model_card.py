"""Model cards: valid for huggingface_hub, true to the run, without rows of the data; and the upload to the Hub."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import OfflineModeIsEnabled

from helpers.fake_run import INJECTION, write
from helpers.whole_run import HOSTILE, model, whole_run
from tutelage.errors import DataError, UserError
from tutelage.report.card_facts import find_student
from tutelage.report.model_card import push, write_card
from tutelage.utils.files import write_jsonl

MAIN = "scd-aw/seed-0"


def changed(run: Path, **sections: dict) -> None:
    """Change the recipe of a run."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for name, values in sections.items():
        recipe[name] = {**recipe.get(name, {}), **values} if isinstance(values, dict) else values
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def card_of(run: Path, **options: object) -> ModelCard:
    return ModelCard.load(write_card(run, **options))


def test_the_metadata_is_what_the_hub_reads(tmp_path, monkeypatch):
    run = whole_run(tmp_path)
    card = card_of(run)
    data = card.data
    assert (data.license, data.license_name, data.license_link) == ("other", "not-chosen", None)
    assert (data.language, data.library_name, data.pipeline_tag) == (
        ["en", "ja", "ko", "zh"],
        "transformers",
        "text-generation",
    )
    assert data.base_model is None and data.datasets is None  # a local folder has no name on the Hub
    (result,) = data.eval_results
    scores = json.loads((run / "evaluate/scores.json").read_text())["models"][MAIN]["accuracy"]
    assert (result.task_type, result.metric_type, result.dataset_split) == ("text-classification", "accuracy", "test")
    assert (
        result.metric_value == round(scores["value"], 4)
        and f"{scores['low']:.3f} to {scores['high']:.3f}" in result.metric_name
    )
    sent = {}
    answer = SimpleNamespace(status_code=200, text="", raise_for_status=lambda: None, headers={})
    session = SimpleNamespace(post=lambda url, json, headers: sent.update(url=url, **json) or answer)
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: session)
    monkeypatch.setattr("huggingface_hub.repocard.hf_raise_for_status", lambda response: None)
    card.validate()
    assert sent["repoType"] == "model" and ModelCard(sent["content"]).data.to_dict() == data.to_dict()


def test_models_and_data_of_the_hub_are_named(tmp_path):
    run = whole_run(tmp_path)
    inputs = {
        "student model": "org/small@main",
        "teacher model": "big/teacher-1b@abc",
        "data files": {"hub": "org/rows/None@None"},
    }
    write(run / "prepare/manifest.json", {"inputs": inputs, "seconds": 1.0, "finished": "2026"})
    changed(run, student={"model_name_or_path": "org/small"}, data={"dataset": "org/rows", "dataset_config": "en"})
    card = card_of(run)
    assert (card.data.base_model, card.data.datasets) == ("org/small", ["org/rows"])
    assert (card.data.eval_results[0].dataset_type, card.data.eval_results[0].dataset_config) == ("org/rows", "en")
    assert "teacher: big/teacher-1b" in card.text


def test_scores_are_shown_beside_the_teachers(tmp_path):
    run = whole_run(tmp_path, rows=400)
    text = card_of(run).text
    scores = json.loads((run / "evaluate/scores.json").read_text())["models"]
    spans = [
        f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"
        for s in (scores[n]["accuracy"] for n in (MAIN, "teacher", "anchor"))
    ]
    assert f"| accuracy | {' | '.join(spans)} |" in text
    assert "On 400 test rows" in text
    share = (scores[MAIN]["accuracy"]["value"] - scores["anchor"]["accuracy"]["value"]) / (
        scores["teacher"]["accuracy"]["value"] - scores["anchor"]["accuracy"]["value"]
    )
    assert f"It closes {100 * share:.0f} % of the gap" in text
    assert "60 parameters, 4.0 times fewer than its teacher" in text  # 6 x 10 and 24 x 10 numbers


def planted(run: Path) -> None:
    """On 40 rows of `night` the student is wrong on 20 that the teacher gets right; on 60 of `day` both are right."""
    rows, lines = [], []
    for n in range(100):
        shift, answer = ("night", "fever") if n < 40 else ("day", "cough")
        rows.append(
            {"id": f"r{n}", "split": "test", "prompt": "SECRET ROW\nDepartment:", "answer": answer, "subdomain": shift}
        )
        for name in ("teacher", MAIN):
            right = name == "teacher" or not n < 20
            lines.append(
                {"id": f"r{n}", "model": name, "gold": answer, "prediction": answer, "score": float(right), "nll": 0.1}
            )
    write_jsonl(run / "prepare/rows.jsonl", rows)
    answered(run, lines)


def answered(run: Path, lines: list[dict]) -> None:
    """Write predictions as `evaluate` does: all of them, and each model's."""
    write_jsonl(run / "evaluate/predictions.jsonl", [{**line, "split": "test"} for line in lines])
    for name in dict.fromkeys(line["model"] for line in lines):
        mine = [{**line, "split": "test"} for line in lines if line["model"] == name]
        write_jsonl(run / f"evaluate/{name}/predictions.jsonl", mine)
    for name in ("student", "anchor", "td/seed-0"):
        (run / f"evaluate/{name}/predictions.jsonl").unlink()


def test_slices_on_which_it_loses_are_listed(tmp_path):
    run = whole_run(tmp_path)
    planted(run)
    text = card_of(run).text.replace("\n", " ")
    # slices: two of subdomain, two of label, which divide the rows alike; the languages are not known
    assert "Of 4 slices with at least 10 test rows, it scores below its teacher on 2 (on 2 with" in text
    assert "above it on 0" in text
    assert re.search(
        r"\| subdomain: night \| 40 \| 0\.500 \| 1\.000 \| −0\.500 \[−0\.\d+, −0\.\d+\] \| < 0\.001 \|", text
    )
    assert "subdomain: day" not in text and "its accuracy is significantly lower than its teacher's" in text
    assert "SECRET ROW" not in text


def test_slices_come_from_the_diagnosis_if_there_is_one(tmp_path):
    run = whole_run(tmp_path)
    score = {"student": 0.25, "teacher": 0.75, "difference": -0.5, "low": -0.6, "high": -0.4, "p_holm": 0.001}
    line = {"key": "answer_length", "value": "3-5", "rows": 77, "score": score, "nll": {}}
    found = [{**line, "key": "found", "value": "contains 'not'"}]
    lines = [line, {**line, "key": "teacher_loss"}, {**line, "value": "9", "rows": 9}]
    pair = {"student": MAIN, "teacher": "teacher", "whole": {"score": score}, "slices": lines, "found": found}
    other = {**pair, "student": "anchor", "slices": [{**line, "value": "ANOTHER"}]}
    write(
        run / "diagnose/slices.json", {"partitions": [{"key": "teacher_loss", "tested": False}], "pairs": [other, pair]}
    )
    text = card_of(run).text
    for name in ("found: contains 'not'", "answer length: 3–5"):
        assert f"| {name} | 77 | 0.250 | 0.750 | −0.500 [−0.600, −0.400] | 0.001 |" in text
    assert "Of 2 slices" in text and "teacher loss" not in text and "ANOTHER" not in text


def test_a_stale_diagnosis_is_not_used(tmp_path):
    run = whole_run(tmp_path)
    write(run / "diagnose/slices.json", {"pairs": "of another day"})
    os.utime(run / "diagnose/slices.json", (1e9, 1e9))
    planted(run)
    assert "subdomain: night" in card_of(run).text


def test_entity_types_are_slices_of_their_own(tmp_path):
    run = whole_run(tmp_path)
    changed(run, task={"type": "ner"})
    gold, lines = [["drug", "ibuprofen"], ["dose", "5 mg"]], []
    for name, answer, score in (("teacher", gold, 1.0), (MAIN, gold[:1], 2 / 3)):
        line = {"model": name, "gold": gold, "prediction": answer, "nll": 0.1, "score": score}
        lines += [{**line, "id": f"row-{n:04d}"} for n in range(1, 41)]
    answered(run, lines)
    scores = {"entity_f1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    write(run / "evaluate/scores.json", {"task": "ner", "metric": "entity_f1", "models": {MAIN: scores}})
    card = card_of(run, student=MAIN)
    assert "| entity type: dose | 40 | 0.000 | 1.000 | −1.000 [−1.000, −0.825] | < 0.001 |" in card.text
    assert "entity type: drug" not in card.text
    assert (card.data.eval_results[0].task_type, card.data.eval_results[0].metric_type) == (
        "token-classification",
        "f1",
    )


def python_in(text: str) -> str:
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.parametrize("chat", [False, True])
def test_the_usage_code_is_python(tmp_path, chat):
    run = whole_run(tmp_path)
    usage = json.loads((run / "distill" / MAIN / "tutelage.json").read_text())
    usage["data"] |= {
        "chat_template": chat,
        "system": "Be 'brief'." if chat else None,
        "template": "{text} in {{braces}} of {labels}:",
    }
    write(run / "distill" / MAIN / "tutelage.json", usage)
    code = python_in(card_of(run, repo="me/small").text)
    compile(code, "card", "exec")
    assert "name = 'me/small'" in code and "max_new_tokens=7" in code
    line = next(line for line in code.splitlines() if line.startswith("prompt = "))
    assert eval(line.removeprefix("prompt = ")) == "... in {braces} of fever, cough:"
    assert ("Be 'brief'." in code) == chat


def test_rows_with_prompts_of_their_own_are_shown_without_a_template(tmp_path):
    run = whole_run(tmp_path)
    usage = json.loads((run / "distill" / MAIN / "tutelage.json").read_text())
    usage["data"]["template"] = None
    write(run / "distill" / MAIN / "tutelage.json", usage)
    assert 'prompt = "..."  # as in the training rows' in python_in(card_of(run).text)


def test_the_recipe_has_no_path_of_this_machine_and_no_default(tmp_path):
    run = whole_run(tmp_path)
    changed(
        run,
        anchor={"model_name_or_path": str(tmp_path / "my/anchor")},
        data={"train": [str(tmp_path / "a/rows.jsonl")]},
    )
    text = card_of(run).text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe["data"] == {"dataset": "rows", "train": ["rows.jsonl"], "template": "{text}\nDepartment:"}
    assert (recipe["student"], recipe["anchor"]) == (
        {"model_name_or_path": "small-student"},
        {"model_name_or_path": "anchor"},
    )
    assert recipe["distill"] == {"methods": ["scd-aw"], "seeds": [0]}  # num_stages 4 and epochs 2.0 are the defaults
    assert str(tmp_path) not in text and "output_dir" not in text


def test_text_from_data_is_escaped(tmp_path):
    run = whole_run(tmp_path)
    changed(run, name=f"{HOSTILE}| <img src=x>", teacher={"model_name_or_path": "a/`rm`"})
    usage = json.loads((run / "distill" / MAIN / "tutelage.json").read_text())
    usage["task"]["labels"] = [INJECTION, "a|b", "```\nend"]
    write(run / "distill" / MAIN / "tutelage.json", usage)
    raw = write_card(run).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", ModelCard(raw).text, flags=re.DOTALL)
    assert not {"\x1b", "\u202e", "\r"} & set(raw)
    assert not re.search(r"(?<!\\)<(?!!-- tutelage)", prose) and "\\<script\\>" in prose and "a\\|b" in prose


@pytest.mark.parametrize("rows", [60, 400])
def test_paragraphs_are_one_blank_line_apart_and_code_keeps_its_own(tmp_path, rows):
    run = whole_run(tmp_path, rows=rows)
    changed(run, name="a\n\n\n\nb")
    body = ModelCard(write_card(run).read_text(encoding="utf-8")).text
    code = re.findall(r"```.*?```", body, flags=re.DOTALL)
    assert yaml.safe_load(code[-1].removeprefix("```yaml").removesuffix("```"))["name"] == "a\n\n\n\nb"
    assert "\n\n\n" not in re.sub(r"```.*?```", "CODE", body, flags=re.DOTALL)
    assert re.search(r"^\| accuracy \|.*\|$", body, flags=re.MULTILINE)


# --- what the owner wrote ---


def test_a_rewritten_card_keeps_the_metadata_of_the_owner(tmp_path):
    run = whole_run(tmp_path)
    path = write_card(run)
    assert "Licence: not chosen yet" in path.read_text()
    text = path.read_text().replace(
        "license: other\nlicense_name: not-chosen", "license: apache-2.0\nbase_model: org/mine\nextra: 1"
    )
    path.write_text(text)
    card = card_of(run)
    assert (card.data.license, card.data.license_name, card.data.base_model) == ("apache-2.0", None, "org/mine")
    assert card.data.to_dict()["extra"] == 1 and "Licence: not chosen yet" not in card.text
    assert write_card(run).read_text() == path.read_text()


def test_a_text_changed_by_hand_is_not_overwritten(tmp_path):
    run = whole_run(tmp_path)
    path = write_card(run)
    mine = path.read_text().replace("## Scores", "## My scores")
    path.write_text(mine)
    with pytest.raises(UserError, match="written or changed by hand"):
        write_card(run)
    assert path.read_text() == mine
    path.write_text("# mine\n")
    with pytest.raises(UserError, match="written or changed by hand"):
        write_card(run)


def test_the_student_is_the_best_on_validation_or_the_one_named(tmp_path):
    run = whole_run(tmp_path)
    assert write_card(run).parent == run / "distill" / MAIN
    assert write_card(run, "td/seed-0").parent == run / "distill/td/seed-0"
    with pytest.raises(DataError, match=r"no finished student 'td/seed-7': name one of scd-aw/seed-0, td/seed-0"):
        write_card(run, "td/seed-7")
    with pytest.raises(DataError, match="has no finished student"):
        write_card(tmp_path / "nowhere")
    (run / "evaluate/scores.json").unlink()
    with pytest.raises(DataError, match="several students"):
        find_student(run, None)


def test_a_student_that_was_not_scored_has_a_card(tmp_path):
    run = whole_run(tmp_path)
    for name in (f"evaluate/{MAIN}/scores.json", f"evaluate/{MAIN}/predictions.jsonl", "evaluate/scores.json"):
        (run / name).unlink()
    (run / "evaluate/predictions.jsonl").unlink()
    card = card_of(run, student=MAIN)
    assert "This model has not been scored." in card.text and card.data.eval_results is None


# --- push ---


class FakeHub:
    """Records the calls of `HfApi` that push makes."""

    def __init__(self, *, private: bool = True, error: Exception | None = None) -> None:
        self.calls, self.private, self.error = [], private, error
        self.sent: dict[str, bytes] = {}

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        self.calls.append(("create_repo", repo_id, repo_type, private, exist_ok))
        if self.error:
            raise self.error
        return f"https://hub.example/{repo_id}"

    def repo_info(self, repo_id, *, repo_type):
        return SimpleNamespace(private=self.private)

    def create_commit(self, repo_id, operations, *, commit_message, repo_type):
        self.calls.append(("create_commit", repo_id, commit_message))
        for one in operations:
            what = one.path_or_fileobj
            self.sent[one.path_in_repo] = what if isinstance(what, bytes) else Path(what).read_bytes()


def pushed_run(folder: Path) -> Path:
    run = whole_run(folder)
    student = run / "distill" / MAIN
    for name in ("tokenizer.json", "generation_config.json", "probe.json", "log.jsonl", "special_tokens_map.json"):
        write(student / name, {})
    (student / "trainer-1").mkdir()
    return run


def test_a_dry_run_touches_no_network_and_writes_nothing(tmp_path, capsys, monkeypatch):
    run = pushed_run(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was touched"))
    sizes = dict(push(run, None, "me/small", dry_run=True))
    assert set(sizes) == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("special_tokens_map.json", "tokenizer.json", "tutelage.json"),
    }
    assert sizes["model.safetensors"] == (run / "distill" / MAIN / "model.safetensors").stat().st_size
    out = capsys.readouterr().out
    assert "dry run: nothing was uploaded to me/small (private)" in out
    assert "not uploaded: log.jsonl, manifest.json, probe.json, stages.json, trainer-1, weights.jsonl" in out
    assert not (run / "distill" / MAIN / "README.md").exists()


def test_a_push_is_private_and_uploads_the_student_with_its_card(tmp_path, capsys):
    run, hub = pushed_run(tmp_path), FakeHub()
    push(run, None, "me/small", api=hub)
    assert hub.calls[0] == ("create_repo", "me/small", "model", True, True)
    card = ModelCard(hub.sent["README.md"].decode())
    assert "name = 'me/small'" in card.text and "hf download me/small --local-dir student" in card.text
    assert (run / "distill" / MAIN / "README.md").read_bytes() == hub.sent["README.md"]
    assert json.loads(hub.sent["tutelage.json"])["data"]["dataset"] is None  # the folder of this machine
    assert str(tmp_path) not in b"".join(hub.sent.values()).decode(errors="replace")
    assert "uploaded: https://hub.example/me/small" in capsys.readouterr().out


def test_a_public_repository_is_refused(tmp_path):
    hub = FakeHub(private=False)
    with pytest.raises(UserError, match="me/small exists and is public"):
        push(pushed_run(tmp_path), None, "me/small", api=hub)
    assert not hub.sent


def test_nothing_is_published_without_a_licence(tmp_path):
    run, hub = pushed_run(tmp_path), FakeHub(private=False)
    with pytest.raises(UserError, match="has no licence yet"):
        push(run, None, "me/small", private=False, api=hub)
    assert not hub.calls
    path = write_card(run)
    path.write_text(path.read_text().replace("license: other\nlicense_name: not-chosen", "license: mit"))
    push(run, None, "me/small", private=False, api=hub)
    assert hub.calls[0][3] is False and ModelCard(hub.sent["README.md"].decode()).data.license == "mit"


def test_a_card_written_by_hand_is_uploaded_unchanged(tmp_path):
    run, hub = pushed_run(tmp_path), FakeHub()
    (run / "distill" / MAIN / "README.md").write_text("# mine\n")
    push(run, None, "me/small", api=hub)
    assert hub.sent["README.md"] == b"# mine\n" == (run / "distill" / MAIN / "README.md").read_bytes()


@pytest.mark.parametrize("repo", ["small", "", "a/b/c", "me/sm all", "../x", "me/\x1b"])
def test_the_repository_must_be_named_in_full(tmp_path, repo):
    hub = FakeHub()
    with pytest.raises(UserError, match=r"is not a repository name|write OWNER/"):
        push(pushed_run(tmp_path), None, repo, api=hub)
    assert not hub.calls


def test_an_error_of_the_hub_is_reported_with_a_remedy(tmp_path):
    hub = FakeHub(error=OfflineModeIsEnabled("cannot reach the Hub: offline mode is on"))
    with pytest.raises(
        UserError, match=r"the Hub did not accept me/small: cannot reach the Hub: offline.*`hf auth login`"
    ):
        push(pushed_run(tmp_path), None, "me/small", api=hub)


def test_shards_of_a_large_student_are_uploaded(tmp_path):
    run, hub = pushed_run(tmp_path), FakeHub()
    student = run / "distill" / MAIN
    (student / "model.safetensors").rename(student / "model-00001-of-00001.safetensors")
    write(student / "model.safetensors.index.json", {})
    push(run, None, "me/small", api=hub)
    assert {"model-00001-of-00001.safetensors", "model.safetensors.index.json"} <= hub.sent.keys()
    assert "60 parameters" in hub.sent["README.md"].decode()


def test_a_student_without_usage_is_uploaded_without_it(tmp_path):
    run, hub = pushed_run(tmp_path), FakeHub()
    (run / "distill" / MAIN / "tutelage.json").unlink()
    model(run / "distill" / MAIN, 6)
    push(run, None, "me/small", api=hub)
    assert "tutelage.json" not in hub.sent


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("sft", "was fine-tuned without a teacher (SFT) with tutelage."),
        ("seqkd", r"distilled from big/teacher-1b by SEQKD (fine-tuning on the teacher's own answers"),
        ("my-own", "distilled from big/teacher-1b by MY-OWN with tutelage."),
    ],
)
def test_the_card_says_how_the_student_was_trained(tmp_path, method, says):
    run = whole_run(tmp_path)
    (run / "distill/td").rename(run / "distill" / method)
    assert says in card_of(run, student=f"{method}/seed-0").text


def test_the_recipe_of_an_earlier_version_is_shown_without_defaults(tmp_path):
    from tutelage.recipe.schema import Recipe

    run = whole_run(tmp_path)
    recipe = Recipe(**yaml.safe_load((run / "recipe.yaml").read_text())).model_dump(mode="json")
    recipe["distill"]["weighting"], recipe["distill"]["schedule"]["glide"] = {"gamma": 1.0}, False
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    text = card_of(run).text
    assert "template: " in text and "gamma" not in text and "glide" not in text
    assert "resamples" not in text and "shard_rows" not in text
