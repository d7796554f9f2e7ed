"""`diagnose` on whole run folders: three files, from artifacts alone, for all three tasks, and notes on what is
missing."""

import json
import subprocess
import sys

import numpy as np
import pytest

from helpers.fake_run import make_fake_run, write
from helpers.typed_json import mismatches
from tutelage.analysis.evaluated_rows import parameter_count
from tutelage.analysis.run_results import RowRecord, SlicesFile, SummaryFile
from tutelage.errors import DataError
from tutelage.stages.diagnose import run_stage, show
from tutelage.utils.files import read_jsonl, write_jsonl


def files(folder):
    diagnosis = folder / "diagnose"
    return (
        json.loads((diagnosis / "slices.json").read_text(encoding="utf-8")),
        list(read_jsonl(diagnosis / "rows.jsonl")),
        json.loads((diagnosis / "summary.json").read_text(encoding="utf-8")),
    )


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    folder = make_fake_run(tmp_path_factory.mktemp("run"))
    run_stage(folder)
    return folder, *files(folder)


def small_run(folder, gold, answers, rows=40, confidence=None, task="ner"):
    """A run of teacher and one student on rows whose gold and answers are given, in turn."""
    about, lines = [], []
    for n in range(rows):
        truth = gold[n % len(gold)]
        text = truth[0] if isinstance(truth, list) and truth and isinstance(truth[0], str) else str(truth)
        about.append({
            "id": f"r{n}", "split": "test", "prompt": [{"role": "user", "content": f"row {n}"}], "answer": text,
            "answers": [text], "labels": None, "language": None, "subdomain": None,
        })  # fmt: skip
        for model in ("teacher", "anchor"):
            said, score = answers[model][n % len(gold)]
            line = {
                "id": f"r{n}", "model": model, "split": "test", "gold": truth, "raw": str(said), "prediction": said,
                "score": score, "nll": 0.1 + 0.01 * n + 0.2 * (model == "anchor") * (n % 2),
            }  # fmt: skip
            lines.append(line | ({"confidence": confidence} if confidence is not None else {}))
    write_jsonl(folder / "prepare" / "rows.jsonl", about)
    write_jsonl(folder / "evaluate" / "predictions.jsonl", lines)
    return folder


def test_every_student_and_the_anchor_are_compared_with_the_teacher(diagnosed):
    _, slices, _, summary = diagnosed
    names = ["anchor", "scd-aw/seed-0", "td/seed-0"]
    assert [pair["student"] for pair in slices["pairs"]] == list(summary["pairs"]) == names
    assert {part["key"] for part in slices["partitions"]} == {
        "subdomain",
        "language",
        "label",
        "answer_length",
        "teacher_loss",
    }


def test_the_whole_is_what_the_predictions_say(diagnosed):
    folder, slices, rows, _ = diagnosed
    scores = {}
    for line in read_jsonl(folder / "evaluate" / "predictions.jsonl"):
        scores.setdefault(line["model"], []).append(line["score"])
    whole = slices["pairs"][1]["whole"]["score"]
    assert whole["student"] == pytest.approx(np.mean(scores["scd-aw/seed-0"]))
    assert whole["difference"] == pytest.approx(np.mean(scores["scd-aw/seed-0"]) - np.mean(scores["teacher"]))
    outcomes = [row["models"]["scd-aw/seed-0"]["outcome"] for row in rows]
    assert (outcomes.count("win"), outcomes.count("loss"), outcomes.count("tie")) == (
        whole["wins"],
        whole["losses"],
        whole["ties"],
    )


def test_slices_add_up_to_the_whole_and_rows_say_which_slices_they_are_in(diagnosed):
    _, slices, rows, _ = diagnosed
    for pair in slices["pairs"]:
        for part in slices["partitions"]:
            lines = [line for line in pair["slices"] if line["key"] == part["key"]]
            for measure in ("nll", "score"):
                total = sum(line[measure]["contribution"] for line in lines)
                assert total == pytest.approx(pair["whole"][measure]["difference"], abs=1e-9)
            for line in lines:
                inside = [row["models"] for row in rows if row["slices"][part["key"]] == line["value"]]
                assert len(inside) == line["rows"]
                mean = np.mean([models[pair["student"]]["nll"] - models["teacher"]["nll"] for models in inside])
                assert line["nll"]["difference"] == pytest.approx(mean, abs=1e-9)


def test_no_slice_is_discovered_in_a_run_without_one(diagnosed):
    _, slices, rows, _ = diagnosed
    assert [pair["found"] for pair in slices["pairs"]] == [[], [], []]
    assert {row["half"] for row in rows} == {"searched", "judged"}


def test_slices_made_from_the_losses_are_not_tested(diagnosed):
    _, slices, _, summary = diagnosed
    lines = [line for line in slices["pairs"][0]["slices"] if line["key"] == "teacher_loss"]
    assert len(lines) == 4 and all(line["nll"]["p_value"] is None for line in lines)
    assert not any(part["key"] == "teacher_loss" for part in summary["pairs"]["anchor"]["student_ahead"]["nll"])


def test_stages_and_weights_of_the_training_are_summarised(diagnosed):
    folder, _, _, summary = diagnosed
    student = summary["training"]["students"]["scd-aw/seed-0"]
    lines = [line for line in read_jsonl(folder / "distill/scd-aw/seed-0/weights.jsonl") if line["stage"] == 2]
    stage = student["stages"][1]
    assert (student["kept_stage"], stage["stage"]) == (4, 2)
    assert stage["weight"]["mean"] == pytest.approx(np.mean([line["weight"] for line in lines]))
    assert stage["train"]["risk_teacher"] == pytest.approx(np.mean([line["teacher_nll"] for line in lines]))
    assert stage["train"]["sfs_mass"] == np.mean([line["anchor_nll"] < line["teacher_nll"] for line in lines])


def test_without_recorded_confidences_there_is_a_note_and_no_calibration(diagnosed):
    _, _, _, summary = diagnosed
    (note,) = summary["notes"]
    assert "were not recorded" in note and "tutelage evaluate RECIPE --force" in note
    assert "teacher, anchor, scd-aw/seed-0 and 1 more models" in note
    assert set(summary["calibration"].values()) == {None} and summary["cascades"] == {}


def test_a_second_run_changes_nothing_and_changed_predictions_are_diagnosed_again(tmp_path):
    folder = make_fake_run(tmp_path / "run", rows=120)
    run_stage(folder)
    first = (folder / "diagnose" / "slices.json").stat().st_mtime_ns
    run_stage(folder)
    assert (folder / "diagnose" / "slices.json").stat().st_mtime_ns == first
    path = folder / "evaluate" / "predictions.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"nll": 9.0', '"nll": 8.0'), encoding="utf-8")
    run_stage(folder)
    assert (folder / "diagnose" / "slices.json").stat().st_mtime_ns != first


def test_entities_are_scored_by_type(tmp_path):
    gold = [[["drug", "a"], ["dose", "1 mg"]], [["drug", "b"]], []]
    missed = [["dose", "1 mg"]]
    answers = {
        "teacher": [(gold[0], 1.0), (gold[1], 1.0), ([], 1.0)],
        "anchor": [(missed, 2 / 3), (None, 0.0), ([], 1.0)],
    }
    run_stage(small_run(tmp_path, gold, answers))
    lines = {line["value"]: line for line in files(tmp_path)[0]["pairs"][0]["slices"] if line["key"] == "entity_type"}
    assert (lines["drug"]["rows"], lines["dose"]["rows"], lines[None]["rows"]) == (27, 14, 13)
    assert (lines["drug"]["score"]["student"], lines["dose"]["score"]["student"], lines[None]["score"]["student"]) == (
        0.0,
        1.0,
        1.0,
    )
    assert lines["drug"]["score"]["losses"] == 27 and lines["drug"]["score"]["p_holm"] < 1e-4
    assert files(tmp_path)[1][0]["slices"]["entity_type"] == ["drug", "dose"]


def test_free_answers_have_no_labels_and_few_rows_are_not_searched(tmp_path):
    answers = {"teacher": [("yes", 1.0), ("no", 0.0)], "anchor": [("yes", 1.0), ("no", 1.0)]}
    run_stage(small_run(tmp_path, [["yes", "sure"], ["no"]], answers))
    slices, rows, summary = files(tmp_path)
    assert {part["key"] for part in slices["partitions"]} == {"answer_length", "prompt_length", "teacher_loss"}
    assert slices["pairs"][0]["tried"] == [] and rows[0]["half"] is None and summary["cascades"] == {}
    assert any("40 test rows" in note for note in summary["notes"])


def test_recorded_confidences_give_calibration_and_cascade(tmp_path):
    answers = {"teacher": [("x", 1.0), ("y", 1.0)], "anchor": [("x", 1.0), ("x", 0.0)]}
    folder = small_run(tmp_path, ["x", "y"], answers, confidence=0.5)
    path = folder / "evaluate" / "predictions.jsonl"
    lines = [line | {"confidence": 0.9 if line["score"] else 0.4} for line in read_jsonl(path)]
    write_jsonl(path, lines)
    run_stage(folder)
    slices, rows, summary = files(tmp_path)
    anchor = summary["calibration"]["anchor"]
    assert (anchor["from"], anchor["auroc"]) == ("confidence", 1.0)
    assert anchor["ece"] == pytest.approx((0.1 + 0.4) / 2)
    assert summary["cascades"]["anchor"]["signal"] == "confidence" and summary["cascades"]["anchor"]["level"] == 0.5
    assert rows[0]["models"]["anchor"]["confidence"] == 0.9
    assert summary["notes"] == ["slice discovery is skipped: 40 test rows, it needs 100"]
    assert "teacher_loss" not in {part["key"] for part in slices["partitions"]}


def test_answers_that_cannot_be_parsed_go_to_the_teacher_at_every_point_of_a_cascade(tmp_path):
    answers = {"teacher": [("x", 1.0), ("y", 1.0)], "anchor": [("x", 1.0), ("x", 0.0)]}
    folder = small_run(tmp_path, ["x", "y"], answers, confidence=0.5)
    path = folder / "evaluate" / "predictions.jsonl"
    unreadable = [line["model"] == "anchor" and not line["score"] for line in read_jsonl(path)]
    lines = [line | ({"prediction": None, "confidence": 0.9} if no else {}) for line, no in
             zip(read_jsonl(path), unreadable, strict=True)]  # fmt: skip
    write_jsonl(path, lines)
    run_stage(folder)
    _, _, summary = files(tmp_path)
    made = summary["cascades"]["anchor"]
    assert [point["share"] for point in made["points"][:3]] == [0.0, 0.5, pytest.approx(0.55)]
    assert made["points"][1]["threshold"] == 0.0 and made["points"][1]["score"] == 1.0 and made["level"] == 0.5


def test_lengths_are_in_tokens_where_prepare_recorded_them(tmp_path):
    from safetensors.numpy import save_file

    answers = {"teacher": [("x", 1.0), ("y", 1.0)], "anchor": [("x", 1.0), ("x", 0.0)]}
    folder = small_run(tmp_path, ["x", "y"], answers)
    (folder / "prepare" / "tokens").mkdir()
    lengths = {"answers": np.full(40, 2), "prompts": np.arange(40) + 3, "keys": np.arange(40)}
    save_file(lengths, str(folder / "prepare" / "tokens" / "test.index.safetensors"))
    run_stage(folder)
    slices, _, _ = files(tmp_path)
    assert {part["key"]: part["unit"] for part in slices["partitions"]}["prompt_length"] == "tokens"


@pytest.mark.parametrize("confidence", [None, 0.5])
def test_the_files_have_the_documented_keys_and_types(tmp_path, confidence):
    folder = make_fake_run(tmp_path / "run", rows=120)
    path = folder / "evaluate" / "predictions.jsonl"
    if confidence is not None:
        write_jsonl(path, [line | {"confidence": confidence} for line in read_jsonl(path)])
    run_stage(folder)
    slices, rows, summary = files(folder)
    assert mismatches(slices, SlicesFile) == mismatches(summary, SummaryFile) == []
    assert [wrong for row in rows for wrong in mismatches(row, RowRecord)] == []
    assert slices.keys() == SlicesFile.__annotations__.keys() and summary.keys() == SummaryFile.__annotations__.keys()


def test_a_folder_without_evaluated_rows_is_refused_and_left_unchanged(tmp_path):
    with pytest.raises(DataError, match="tutelage evaluate RECIPE"):
        run_stage(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_evaluated_on_other_rows_is_left_out_with_a_note(tmp_path):
    folder = make_fake_run(tmp_path / "run", rows=120)
    path = folder / "evaluate" / "predictions.jsonl"
    lines = list(read_jsonl(path))
    dropped = next(line for line in lines if line["model"] == "td/seed-0")
    lines.remove(dropped)
    next(line for line in lines if line["model"] == "anchor")["nll"] = None
    write_jsonl(path, lines)
    run_stage(folder)
    slices, _, summary = files(folder)
    assert [pair["student"] for pair in slices["pairs"]] == ["anchor", "scd-aw/seed-0"] and slices["rows"] == 119
    assert any("td/seed-0" in note for note in summary["notes"]) and any("1 row" in note for note in summary["notes"])


def test_models_evaluated_besides_the_recipes_methods_are_diagnosed_too(tmp_path):
    folder = make_fake_run(tmp_path / "run", rows=120)
    lines = [line for line in read_jsonl(folder / "evaluate" / "predictions.jsonl") if line["model"] == "td/seed-0"]
    evaluated = folder / "evaluate" / "scd" / "seed-7"
    write_jsonl(evaluated / "predictions.jsonl", lines)
    write(evaluated / "manifest.json", {"seconds": 1.0})
    run_stage(folder)
    slices, _, summary = files(folder)
    assert "scd/seed-7" in [pair["student"] for pair in slices["pairs"]]
    assert summary["effects"] == []  # no seed in common


def test_parameters_are_counted_from_the_headers_of_weight_files(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "anchor").mkdir()
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, str(tmp_path / "anchor" / "model.safetensors"))
    assert parameter_count(tmp_path, "anchor") == 17
    assert parameter_count(tmp_path, "teacher") is None


def test_show_prints_students_and_notes(diagnosed, capsys):
    show(diagnosed[0])
    printed = capsys.readouterr().out
    assert "scd-aw/seed-0" in printed and "deficit" in printed and "confidence" in printed


def test_nothing_heavy_is_imported():
    heavy = {"torch", "transformers", "sklearn", "pandas", "scipy"}
    code = f"import sys; import tutelage.stages.diagnose; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_a_p_value_too_small_for_a_number_counts_as_significant(tmp_path, capsys):
    answers = {"teacher": [("x", 1.0), ("y", 1.0)], "anchor": [("x", 1.0), ("x", 0.0)]}
    run_stage(small_run(tmp_path, ["x", "y"], answers, rows=2600))  # 1,300 lost rows: 2^-1300 is 0 to a computer
    slices, _, summary = files(tmp_path)
    line = next(line for line in slices["pairs"][0]["slices"] if (line["key"], line["value"]) == ("label", "y"))
    assert line["score"]["p_holm"] == 0
    assert {"key": "label", "value": "y"} in summary["pairs"]["anchor"]["teacher_ahead"]["score"]
    show(tmp_path)
    assert "label y" in capsys.readouterr().out
