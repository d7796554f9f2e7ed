"""All mistakes in a recipe are reported together, each with file, line and remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.recipes_in import GOOD, only
from tutelage.errors import ConfigError
from tutelage.recipe.arguments import RESERVED
from tutelage.recipe.load import check, load_recipe, trainer_argument_names
from tutelage.recipe.schema import Recipe
from tutelage.recipe.yaml_source import REQUIRED

ROOT = Path(__file__).parents[2]


# --- files that are not a mapping of values ---


def test_a_missing_file_suggests_a_similar_name(recipe_file):
    path = recipe_file()
    with pytest.raises(ConfigError, match=r"no such recipe file. Did you mean .*bank\.yaml"):
        load_recipe(path.with_name("bnak.yaml"))


def test_a_folder_is_not_a_recipe(tmp_path):
    with pytest.raises(ConfigError, match=r"without recipe.yaml; give a recipe file.* or a run folder"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_gets_an_example(complaints, text):
    lines = complaints(text=text)
    assert lines[0].startswith("bank.yaml:1: the recipe is empty")
    assert {line.split(":")[0].strip() for line in lines[1:]} >= {"task", "data", "teacher", "student"}


def test_a_list_is_not_a_recipe(complaints):
    assert only(complaints(text="- task\n")).startswith("bank.yaml:1: a recipe is a mapping of sections")


@pytest.mark.parametrize(
    ("more", "line"),
    [("teach:\n\tnum_checkpoints: 2\n", 9), ("data2: {a: [1\n", 9), ("name: a: b\n", 8), ("name: \x07\n", 8)],
)
def test_invalid_yaml_is_reported_with_its_line(complaints, more, line):
    assert only(complaints(more)).startswith(f"bank.yaml:{line}: not valid YAML: ")


def test_recursive_yaml_is_refused(complaints):
    assert "bank.yaml:8: not valid YAML: nested deeper than 20 levels" in only(complaints("teach: &a {trainer: *a}\n"))


def test_text_in_another_encoding(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_recipe(path)


# --- mistakes in keys and values ---


def test_a_key_written_twice_names_both_lines(complaints):
    line = only(complaints("distill:\n  kd_ratio: 0.5\n  kd_ratio: 0.9\n"))
    assert line == "bank.yaml:10: distill.kd_ratio: written twice, first in line 9; keep one of them"
    assert "distill.kd_ratio: written twice" in only(complaints("distill: {kd_ratio: 0.5, kd_ratio: 0.9}\n"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("distill: {temprature: 2}", "bank.yaml:8: distill.temprature: unknown key; did you mean `temperature`?"),
        ("techer: {}", "bank.yaml:8: techer: unknown key; did you mean `teacher`?"),
        ("cache: {max_length: 3}", "`max_length` is a key of another section: write data.max_length"),
        ("anchor: {batch_size: 3}", "write cache.batch_size or evaluate.batch_size"),
        ("temprature: 2", "did you mean distill.temperature?"),
        (
            "distill: {learning_rate: 1}",
            "argument of transformers.TrainingArguments: write distill.trainer.learning_rate",
        ),
        ("cache: {learning_rate: 1}", "argument of transformers.TrainingArguments: write trainer.learning_rate"),
        ("distill: {num_train_epochs: 1}", "unknown key; students are trained for num_stages x epochs_per_stage"),
        ("distill: {schedule: {qqq: 1}}", "distill.schedule.qqq: unknown key; valid here: advance, student_kl"),
        ("3: x", "bank.yaml:8: 3: unknown key"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(complaints, more, expected):
    assert expected in only(complaints(more))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distill.num_stages=4.5", "distill.num_stages: found 4.5, want a whole number above 0"),
        ("distill.num_stages=true", "found true, want a whole number above 0"),
        (
            "distill.num_stages='4'",
            'found "4", want a whole number above 0 and of at most 1000; write it without quotes',
        ),
        ("distill.kd_ratio=2", "found 2, want a number of at least 0 and of at most 1"),
        ("distill.keep_stages=1", "found 1, want true or false"),
        ("distill.save_steps=0", "found 0, want a whole number above 0 or null"),
        ("distill.seeds=[0, x]", 'found [0, "x"], want a list (of a whole number)'),
        ("task.type=clasification", "want one of classification, ner, qa; did you mean classification?"),
        ("task.labels=[yes, no]", "found [true, false], want a list (of text) or null; put text in quotes"),
        ("data.columns={text: 3}", 'found {"text": 3}, want a mapping of text to text; put text in quotes'),
        ("data=here", 'data: found "here", want a mapping of dataset, '),
        ("teacher.lora=true", "found true, want a mapping of r, lora_alpha, lora_dropout, target_modules or null"),
        ("teacher.lora={target_modules: all_linear}", "want a list (of text) or all-linear; did you mean all-linear?"),
        ("trainer=[1]", "trainer: found [1], want a mapping"),
        ("name=null", "name: found null, want text"),
    ],
)
def test_a_wrong_value_says_what_is_wanted(complaints, override, expected):
    assert expected in only(complaints(overrides=[override]))


def test_missing_keys_come_with_an_example(complaints):
    lines = complaints(text="task:\n  language: en\ndata: {train: x}\nteacher: {model_name_or_path: x}\n")
    assert lines[1:] == [
        "bank.yaml:1: task.type: missing; write for example `type: classification`",
        "bank.yaml: student: missing; write for example"
        " `student: {model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct}`",
    ]


def test_every_required_key_has_an_example():
    required = {
        ".".join([*prefix, name])
        for prefix, section in [((), Recipe)]
        + [((s,), Recipe.model_fields[s].annotation) for s in ("task", "teacher", "student")]
        for name, info in section.model_fields.items()
        if info.is_required()
    }
    assert required - {"name", "output_dir"} == REQUIRED.keys()


def test_a_misspelt_required_key_is_one_problem(complaints):
    assert "did you mean `student`?" in only(complaints(text=GOOD.replace("student:", "studnet:")))
    assert "did you mean `train`?" in only(complaints(text=GOOD.replace("train:", "trian:")))


# --- conflicting values ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.train=null"], "data.dataset: no training rows; set data.dataset (a folder or Hub id) or data.train"),
        (["task.type=ner", "task.decoding=labels"], "task.decoding: `labels` chooses one answer of a closed set"),
        (["data.system=Hi"], "data.system: a system message needs a chat prompt; set data.chat_template: true"),
        (
            ["task.metric=acuracy"],
            "task.metric: classification has no metric 'acuracy'; did you mean accuracy?",
        ),
        (["task.type=ner", "task.metric=accuracy"], "task.metric: ner has no metric 'accuracy'"),
        (
            ["distill.methods=scd_aw"],
            "distill.methods: no method is called 'scd_aw'; did you mean scd-aw? Available: sft, td",
        ),
        (["distill.methods=[]"], "distill.methods: empty; leave it out for ['scd-aw']"),
        (["distill.methods=[td, td]"], "distill.methods: td is listed 2 times; write it once"),
        (["distill.seeds=[]"], "distill.seeds: empty; leave it out for [0]"),
        (["distill.seeds=[1, 2, 1]"], "distill.seeds: 1 is listed 2 times; write it once"),
        (["seed=-1"], "seed: -1 is not a valid seed"),
        (["teach.checkpoints=[]"], "teach.checkpoints: lists no checkpoint"),
        (
            ["teach.checkpoints=mine", "teach.trainer.num_train_epochs=2"],
            "teach.trainer: has no effect: nothing is trained, because teach.checkpoints gives your own model",
        ),
        (
            ["anchor.model_name_or_path=mine", "anchor.trainer.learning_rate=1e-4"],
            "anchor.trainer: has no effect: nothing is trained, because anchor.model_name_or_path",
        ),
    ],
)
def test_conflicting_values(complaints, overrides, expected):
    assert expected in only(complaints(overrides=overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.train=null", "data.dataset=somewhere"],
        ["task.type=qa", "task.decoding=labels", "task.metric=exact_match"],
        ["data.system=Hi", "data.chat_template=true"],
        ["teach.checkpoints=[a, b]", "teacher.lora={r: 8}"],
        [
            "data.answer_prefix=''",
            "teacher.trust_remote_code=true",
            "distill.seeds=[0, 1]",
            "distill.methods=[td, scd]",
        ],
    ],
)
def test_values_without_conflict(recipe_file, overrides):
    assert check(load_recipe(recipe_file(), overrides).recipe) == []


# --- TrainingArguments ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.warmup_ratio=0.1", "write warmup_steps: 0.1 (a value below 1 is a fraction of the steps)"),
        ("trainer.evaluation_strategy=epoch", "validation runs after each stage"),
        ("trainer.eval_steps=10", "validation runs after each stage"),
        ("trainer.save_steps=10", "set `teach.num_checkpoints`"),
        ("trainer.output_dir=x", "set the recipe's own `output_dir`"),
        ("teach.trainer.seed=1", "teach.trainer.seed: not accepted here; set the recipe's `seed`, or `distill.seeds`"),
        ("trainer.max_steps=10", "set `distill.num_stages` and `distill.epochs_per_stage`"),
        ("trainer.group_by_length=true", "write train_sampling_strategy: group_by_length"),
        ("trainer.num_train_epochs=1", "students are trained for num_stages x epochs_per_stage"),
        ("anchor.trainer.num_train_epochs=1", "students are trained for num_stages x epochs_per_stage"),
        ("distill.trainer.num_train_epochs=1", "students are trained for num_stages x epochs_per_stage"),
        (
            "distill.trainer.learning_rat=1",
            "not an argument of transformers.TrainingArguments; did you mean `learning_rate`?",
        ),
        ("trainer.learning_rate=fast", 'trainer.learning_rate: found "fast", want a number'),
        ("trainer.bf16=1", "found 1, want true or false"),
        ("trainer.gradient_accumulation_steps=true", "found true, want a whole number"),
    ],
)
def test_a_training_argument_that_is_not_accepted(complaints, override, expected):
    assert expected in only(complaints(overrides=[override]))


@pytest.mark.parametrize(
    "name", [n for n in RESERVED if "*" not in n] + ["eval_strategy", "save_strategy", "hub_token"]
)
def test_reserved_names_are_refused_everywhere(complaints, name):
    lines = complaints(overrides=[f"{place}trainer.{name}=1" for place in ("", "teach.", "anchor.", "distill.")])
    assert sum("not accepted here; " in line for line in lines) == 4


def test_training_arguments_that_are_accepted(recipe_file):
    taken = [
        "teach.trainer.num_train_epochs=3",
        "trainer.train_sampling_strategy=group_by_length",
        "trainer.warmup_steps=0.1",
        "trainer.learning_rate=1",
        "trainer.lr_scheduler_kwargs={num_cycles: 2}",
        "distill.trainer.bf16=true",
    ]
    assert load_recipe(recipe_file(), taken).recipe.teach.trainer == {"num_train_epochs": 3}


def test_names_are_those_of_the_installed_class():
    from dataclasses import fields

    from transformers import TrainingArguments

    assert trainer_argument_names() == {field.name for field in fields(TrainingArguments) if field.init}


# --- all problems together, quickly ---


def test_all_problems_are_reported_together(complaints):
    lines = complaints(
        "distill:\n  temprature: 2\n  num_stages: x\n  methods: scd_aw\n  kd_ratio: 0\n  kd_ratio: 1\nseed: -1\n",
        ["nonsense", "cache.top_k=0", "trainer.warmup_ratio=0.1"],
        GOOD.replace("classification}", "ner, decoding: labels}").replace(
            "  model_name_or_path: small\n", "  dtype: f\n"
        ),
    )
    assert lines[0] == "bank.yaml has 11 problems:"
    places = {":".join(line.split(":")[:3]) for line in lines[1:]}
    assert {
        "bank.yaml:9: distill.temprature",
        "bank.yaml:10: distill.num_stages",
        "bank.yaml:11: distill.methods",
        "bank.yaml:13: distill.kd_ratio",
        "bank.yaml:14: seed",
        "bank.yaml:1: task.decoding",
        "bank.yaml:7: student.dtype",
        "bank.yaml:6: student.model_name_or_path",
    } <= places
    assert sum(line.startswith("override") for line in lines) == 3


def test_a_wrong_value_brings_no_problem_that_follows_from_it(complaints):
    assert "task.type" in only(complaints(overrides=["task.type=nre", "task.metric=entity_f1"]))
    assert "data.train" in only(complaints(overrides=["data.train=3"]))


def test_a_typo_is_found_without_heavy_imports(recipe_file):
    code = f"""
import sys
from tutelage.recipe.load import load_recipe
try:
    load_recipe({str(recipe_file())!r}, ["distill.trainer.learning_rat=1", "distill.methods=scd_aw"])
except ValueError as error:
    assert "2 problems" in str(error), error
print([name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
