"""Values that could only fail after hours of training, and text that takes long to read, are refused by the recipe."""

import time

import pytest

from helpers.recipes_in import only
from tutelage.errors import ConfigError
from tutelage.recipe.load import load_recipe, varied

DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.learning_rate=-1e-4", "found -0.0001, want a number above 0"),
        ("teach.trainer.learning_rate=0", "found 0, want a number above 0"),
        ("trainer.learning_rate=.nan", "found NaN, want a number above 0"),
        ("trainer.learning_rate=.inf", "found Infinity, want a number above 0"),
        (f"trainer.learning_rate={DIGITS}", "found Infinity"),
        ("trainer.per_device_train_batch_size=0", "want a whole number of at least 1"),
        ("trainer.gradient_accumulation_steps=-2", "want a whole number of at least 1"),
        ("trainer.per_device_train_batch_size=1.5", "want a whole number of at least 1"),
        ("teach.trainer.num_train_epochs=0", "want a number above 0"),
        ("trainer.warmup_steps=-1", "want a number of at least 0"),
        ("trainer.adam_beta1=1", "want a number of at least 0 and below 1"),
        ("trainer.weight_decay=-0.1", "want a number of at least 0"),
        ("trainer.max_grad_norm=.nan", "found NaN"),
        ("trainer.logging_steps=0", "want a number above 0"),
        ("trainer.dataloader_num_workers=-1", "want a whole number of at least 0"),
        ("trainer.optim=adam", "want one of adamw_torch, "),
        ("trainer.optim=adamw_torhc", "did you mean adamw_torch?"),
        ("trainer.lr_scheduler_type=cosin", "did you mean cosine?"),
        ("trainer.lr_scheduler_type=reduce_lr_on_plateau", "needs a validation in training"),
        ("trainer.report_to=wand", "no tracker is called 'wand'; did you mean wandb?"),
        ("trainer.report_to=[tensorboard, 3]", "no tracker is called '3'"),
        ("trainer.fsdp=full_shard", "start with `accelerate launch --use_fsdp"),
        ("trainer.fsdp_config={}", "for the launcher to say"),
        ("teach.trainer.deepspeed=ds.json", "divided by FSDP2 alone"),
        ("trainer.lr_scheduler_kwargs=3", "want a mapping"),
        ("distill.temperature=1e-9", "want a number of at least 0.01 and of at most 100"),
        ("distill.temperature=1e9", "want a number of at least 0.01 and of at most 100"),
        ("distill.epochs_per_stage=.inf", "found Infinity, want a number above 0"),
        ("distill.num_stages=1000000", "want a whole number above 0 and of at most 1000"),
        ("distill.seeds=[4294967]", "4294967 is not a valid seed; write a number from 0 to 4294966"),
        ("seed=4294966296", "write a number from 0 to 4294966295"),
        ("teach.seed=-1", "write a number from 0 to 4294966295"),
        (f"seed={DIGITS}", "found Infinity, want a whole number"),
        ("data.validation_fraction=1", "want a number above 0 and below 1"),
        ("data.validation_fraction=.nan", "found NaN"),
        ("data.max_length=99999999999", "of at most 1048576"),
        ("evaluate.resamples=100000000", "of at most 100000"),
        ("tune.grid=[1e-4, -1]", "want learning rates above 0"),
        ("tune.grid=[.nan]", "found [NaN], want a list (of a number); infinity and NaN"),
        ("compare.num_cpus=.inf", "found Infinity"),
        ('output_dir="a\\0b"', "output_dir: holds the character U+0000"),
        ('task.labels=["a", "\\uD800"]', "task.labels: holds the character U+D800"),
        ("teacher.lora={r: 8, r: 16}", "r is written 2 times"),
        ("distill.methods=[td+kd_ratio=2]", "method td+kd_ratio=2: distill.kd_ratio: found 2, want a number"),
        ("distill.methods=[td+kd_ratio=0.1+kd_ratio=0.2]", "kd_ratio is set 2 times; set it once"),
    ],
)
def test_what_can_only_fail_later_is_refused(complaints, override, expected):
    assert expected in only(complaints(overrides=[override]))


def test_a_name_of_a_method_is_the_name_of_a_folder(recipe_file):
    recipe = load_recipe(recipe_file()).recipe
    for name in (f"td+trainer.optim_args={'x' * 300}", "td+trainer.optim_args='a\x1bb'", "td+trainer.run_name='a\nb'"):
        with pytest.raises(ConfigError, match="name of a"):
            varied(recipe, name)


def test_every_wrong_value_is_reported_with_its_line(complaints):
    lines = complaints(
        "seed: 99999999999\ntrainer:\n  learning_rate: -1\n  optim: adan\n  deepspeed: x\n"
        "distill:\n  methods: [td+kd_ratio=2, rkl+temperature=0]\n  temperature: .nan\n  seeds: [5000000]\n"
    )
    assert [":".join(line.split(":")[:3]) for line in lines[1:]] == [
        "bank.yaml:15: distill.temperature",
        "bank.yaml:8: seed",
        "bank.yaml:16: distill.seeds",
        "bank.yaml:10: trainer.learning_rate",
        "bank.yaml:11: trainer.optim",
        "bank.yaml:12: trainer.deepspeed",
        "bank.yaml:14: method td+kd_ratio=2",
        "bank.yaml:14: method rkl+temperature=0",
    ]


def test_values_at_the_limits_are_taken(recipe_file):
    taken = [
        "trainer.report_to=[tensorboard, wandb]",
        "trainer.lr_scheduler_kwargs={num_cycles: 2}",
        "trainer.optim=adafactor",
        "trainer.max_grad_norm=0",
        "teach.trainer.report_to=none",
        "distill.seeds=[0, 4294966]",
        "seed=4294966295",
        "task.labels=['1', '☃']",
    ]
    assert load_recipe(recipe_file(), taken).recipe.distill.seeds == [0, 4294966]


# --- text that is expensive or impossible to read ---

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, "more than 100,000 values, those that aliases repeat included"),
        (MERGES, "more than 100,000 values, those that aliases repeat included"),
        ("a: &a {<<: *a}\n", "nested deeper than 20 levels"),
        ("[" * 50_000, "nested deeper than 20 levels"),
        ("a: {" * 5_000, "nested deeper than 20 levels"),
        ("x" * 2_000_000, "longer than 1,000,000 characters; rows belong in data files"),
        ("a: !!int x\n", "'x' is no int"),
        ("a: !!float ''\n", "'' is no float"),
        ("a: !!bool maybe\n", "'maybe' is no bool"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("{[1, 2]: 3}\n", "found unhashable key"),
        ("name: ok\nseed: \0\n", "bank.yaml:2: not valid YAML"),
    ],
    ids=lambda value: value[:12],
)
def test_yaml_that_recurses_or_blows_up_is_refused_in_seconds(complaints, text, expected):
    began = time.process_time()
    assert expected in only(complaints(text=text))
    assert time.process_time() - began < 2


@pytest.mark.parametrize("value", [LAUGHS.replace("\n", " "), "&a [*a]", "[" * 5_000, f"!!int {DIGITS}x", "x" * 2**21])
def test_an_override_is_read_as_carefully_as_a_file(complaints, value):
    line = only(complaints(overrides=[f"task.labels={value}"]))
    assert "the value is not valid YAML" in line and len(line) < 1000


def test_a_dotted_key_has_no_thousand_levels(complaints):
    assert "more than 20 levels" in only(complaints(overrides=["a." * 3000 + "b=1"]))
