"""Every number among the settings has a range, and what lies outside is refused before anything is read."""

import argparse
import json
import math
import pathlib
import re

import numpy as np
import pytest
from absl import flags
from selfparam_jax.configs import base

from selfparam_jax.commands import cli, command, inject, plan, run, targets
from selfparam_jax.distributed.files import flatten
from selfparam_jax.distributed.ranges import Range, kinds_of, ranges_of, shown, texts_of
from selfparam_jax.jobs.harness import HarnessConfig
from selfparam_jax.jobs.settings import Settings, fields_of, read_settings, setting_names
from selfparam_jax.main import main
from selfparam_jax.training.recipe import Recipe


def numeric(section=Settings, prefix=""):
    """Dotted name -> (type, range) of every numeric setting; the range is None where it has none."""
    known, found = ranges_of(section), {}
    for field in fields_of(section):
        if field.name in known:
            found[prefix + field.name] = known[field.name]
        elif hasattr(field.default, "__dataclass_fields__"):
            found |= numeric(type(field.default), f"{prefix}{field.name}.")
    return found


NUMERIC = numeric()
# In no range, whatever it is of; the last is a whole number that Python does not print.
NONSENSE = [math.nan, math.inf, -math.inf, -1e308, 1e308, 2**70, -(2**70), True, "1", None, [1], 10**5000]


def nested(name, value):
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def outside(kind, within):
    """The numbers nearest to a range that are not in it."""
    step = (lambda value, to: value + (1 if to > value else -1)) if kind is int else math.nextafter
    low = within.least if within.open_least else step(within.least, -math.inf)
    high = within.most if within.open_most else step(within.most, math.inf)
    return [value for value in (low, high, -0.5 if kind is float else -3) if value not in within.also]


def test_all_settings_are_found():
    values = flatten(base.get_config().to_dict())
    assert set(values) == set(setting_names())
    numbers = {name for name, value in values.items() if type(value) in (int, float)}
    assert numbers == set(NUMERIC) and len(numbers) > 70


@pytest.mark.parametrize("name", NUMERIC)
def test_every_number_has_a_range_that_is_checked(name):
    kind, within = NUMERIC[name]
    assert within is not None, f"{name} has no range; write Annotated[{kind.__name__}, Range(...)]"
    default = flatten(base.get_config().to_dict())[name]
    assert within.has(default, kind) and within.most < 1e16
    wrong = [*NONSENSE, *outside(kind, within), *([0.5] if kind is int else [])]
    for value in wrong:
        with pytest.raises(ValueError) as refused:
            read_settings(nested(name, value))
        said = str(refused.value)
        assert said.startswith(f"{name} = ") and "expected" in said and len(said.splitlines()) == 1
        assert len(said) < 300


# What was accepted once, and ran into a traceback, NaN or nothing at all.
ONCE = {
    "train.epochs": -1, "train.learning_rate": math.nan, "train.clip_norm": math.inf, "train.warmup": 2.0,
    "train.final_fraction": -1.0, "train.beta2": 1.5, "train.loraplus_ratio": 0.0, "lora.alpha": 0.0,
    "targets.least_confidence": 1.0, "targets.unrelated_per_epoch": -3, "eval.batch_size": 0, "seed": 2**32,
    "baselines.memoryllm.seed": -1, "lora.rank": 10**9, "train.seq_len": 10**12, "sequential.replay_weight": math.nan,
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE)
def test_values_of_the_campaign_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} = .*, expected "):
        read_settings(nested(name, ONCE[name]))


def test_rows_that_no_machine_holds_are_refused():
    assert read_settings({"train": {"batch_size": 2**13, "seq_len": 2**13}})
    with pytest.raises(ValueError, match=r"batch_size = 16384 with train.seq_len = 8192, expected at most 67108864"):
        read_settings({"train": {"batch_size": 2**14, "seq_len": 2**13}})


@pytest.mark.parametrize(
    "targets",
    [
        {"qa_weight": 0.0},
        {"loss_tokens": "0,0", "answer_supervision": 0.0},
        {"qa_weight": 0.0, "tails_per_context": 4, "tail_weight": 0.0},
    ],
)
def test_a_run_that_would_learn_nothing_of_the_documents_is_refused(targets):
    with pytest.raises(ValueError, match="nothing of the documents would be learned"):
        read_settings({"targets": targets})
    with pytest.raises(ValueError, match="nothing of the documents would be learned"):
        Recipe(**targets)


@pytest.mark.parametrize(
    "targets",
    [
        {"qa_weight": 0.0, "tails_per_context": 1},
        {"loss_tokens": "0,0"},
        {"loss_tokens": "1,0", "answer_supervision": 0.0},
        {"unrelated_per_epoch": 0},
    ],
)
def test_a_run_that_learns_something_is_not(targets):
    assert read_settings({"targets": targets})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("seed=4294967296", "seed = 4294967296, expected a whole number from 0 to 4294967295"),
        ("train.beta2=1.5", "train.beta2 = 1.5, expected a number from 0 to below 1"),
        ("train.epochs=" + "9" * 5000, "train.epochs = '9999"),
        ("train.epochs=" + "9" * 400, "train.epochs = 9999"),
        ("train.learning_rate=1e400", "train.learning_rate = '1e400', expected a float"),
        ("train.epochs=five", "train.epochs = 'five', expected an int"),
        ("lora=5", "lora = '5', expected one of its settings, such as lora.alpha"),
        ("targets.qa_weight=0", "nothing of the documents would be learned"),
    ],
)
def test_a_command_line_is_refused_in_one_line(flag, message, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["--config=batch", f"--config.{flag}", f"--workdir={tmp_path / 'run'}"])
    said = capfd.readouterr().err.strip()
    assert ended.value.code == 1 and len(said.splitlines()) == 1 and message in said and len(said) < 500
    assert not (tmp_path / "run").exists()


def test_a_section_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"lora = 5, expected its settings, such as rank"):
        read_settings({"lora": 5})


def test_the_words_of_a_range():
    assert Range(0, 1).words(float) == "a number from 0 to 1"
    assert Range(0, 1, open_most=True).words(float) == "a number from 0 to below 1"
    assert Range(0, 1, open_least=True).words(float) == "a number above 0 and at most 1"
    assert Range(1, 8, also={0: "all"}).words(int) == "0 (all) or a whole number from 1 to 8"
    assert Range(1e-6, 10).words(float) == "a number from 1e-06 to 10"
    assert shown("x" * 500) == "'" + "x" * 59 + "..." and shown(10**5000) == "a number of 5001 digits"


@pytest.mark.parametrize("given", [{"limit": -1}, {"batch_size": 0}, {"num_fewshot": -1}, {"bootstrap": 10**9}])
def test_the_harness_has_ranges_too(given):
    assert all(within for _, within in ranges_of(HarnessConfig).values())
    with pytest.raises(ValueError, match=f"--{next(iter(given))} = .*, expected "):
        HarnessConfig(("a",), **given)


# --- flags of commands ------------------------------------------------------------------------------------


def parsers_of(verb, monkeypatch):
    """The parsers of a verb that uses argparse, its subcommands' among them."""
    made, init = [], argparse.ArgumentParser.__init__

    def keep(self, *given, **options):
        init(self, *given, **options)
        made.append(self)

    monkeypatch.setattr(argparse.ArgumentParser, "__init__", keep)
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    return made


ABSL = {"run": run, "inject": inject, "plan": plan, "targets": targets}


@pytest.mark.parametrize("verb", sorted(set(cli.VERBS) - set(ABSL)))
def test_every_number_on_a_command_line_has_a_range(verb, monkeypatch, capsys):
    parsers = parsers_of(verb, monkeypatch)
    actions = [(parser, action) for parser in parsers for action in parser._actions]
    assert parsers and not [action.dest for _, action in actions if action.type in (int, float)], "use command.Number"
    for parser, action in actions:
        if not isinstance(action.type, command.Number):
            continue
        kind, within = action.type.kind, action.type.within
        assert action.default is None or within.has(action.default, kind)
        for text in ["nan", "inf", "-inf", "x", "", "9" * 5000, *map(str, outside(kind, within))]:
            with pytest.raises(argparse.ArgumentError, match=rf"{action.option_strings[0]}: .*, expected "):
                parser._get_value(action, text) if text else parser._get_values(action, [text])
        assert parser._get_value(action, str(within.most if kind is int else 0.5)) is not None


@pytest.mark.parametrize("verb", ABSL)
def test_every_number_of_a_job_on_a_command_line_has_bounds(verb):
    values = ABSL[verb].define_flags([f"selfparam {verb}"])
    for name in values:
        parser = values[name].parser
        assert not isinstance(parser, flags.FloatParser), name
        if isinstance(parser, flags.IntegerParser) and not name.startswith("config."):
            assert parser.lower_bound is not None and parser.upper_bound is not None, name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["plan", "--config=batch", "--devices=v5e-1000000"],
            "devices = v5e-1000000, expected a number",
        ),
        (["plan", "--config=batch", "--devices=v5e-8", "--context_tokens=-1"], "context_tokens=-1"),
        (["run", "--config=batch", "--process_count=-5"], "process_count=-5"),
        (["run", "--config=batch", "--heartbeat_s=0"], "heartbeat_s=0"),
        (["serve", "x", "--port=99999"], "argument --port: '99999', expected a whole number from 0 to 65535"),
        (
            ["chat", "x", "--temperature=nan"],
            "--temperature: 'nan', expected 0 (the most likely",
        ),
    ],
)
def test_a_number_on_a_command_line_is_refused_in_one_line(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(line)
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code in (1, 2) and message in said[-1] and not list(tmp_path.iterdir())


# --- fields that are no numbers -----------------------------------------------------------------------------


def sections(section=Settings):
    """Every settings dataclass."""
    yield section
    for field in fields_of(section):
        if hasattr(field.default, "__dataclass_fields__"):
            yield from sections(type(field.default))


TRUE_OR_FALSE = [
    (section, name) for section in sections() for name, kind in kinds_of(section).items() if kind is bool
]


@pytest.mark.parametrize(("section", "name"), TRUE_OR_FALSE)
def test_what_is_true_or_false_is_nothing_else(section, name):
    for value in ("no", "", 0, 1, None, [True]):
        with pytest.raises(TypeError, match=rf"^(\w+\.)?{name}: got .+, expected True or False; write it without"):
            section(**{name: value})
    made = getattr(section(**{name: np.False_}), name)
    assert made is False, "as JSON has it"


def test_all_of_these_are_found():
    assert {name for _, name in TRUE_OR_FALSE} >= {"pack", "dated", "by_confidence", "teacher_scores", "orthogonal"}


TEXTS = [(section, name) for section in (*sections(), Recipe, HarnessConfig) for name in texts_of(section)]


@pytest.mark.parametrize(("section", "name"), TEXTS)
def test_what_is_text_is_nothing_else(section, name):
    """Text, or a tuple of texts, as the Python API is given them."""
    needed = {"tasks": ("a",)} if section is HarnessConfig else {}
    several = texts_of(section)[name]
    expected = "expected a tuple of strings" if several else "expected a string; write it in quotes"
    for value in (5, None, {"a": 1}, b"a", str, *(["a"] if several else [["a"], ("a",)])):
        with pytest.raises(TypeError) as refused:
            section(**{**needed, name: value})
        assert re.match(rf"(--|\w+\.)?{name}: got .+, {expected}", said := str(refused.value)), said
        assert len(said.splitlines()) == 1
    if several:
        with pytest.raises(TypeError, match=rf"{name}\[1\]: got 5, expected \S*{name} to be a tuple of strings"):
            section(**{**needed, name: ("a", 5)})


def test_all_texts_are_found():
    texts = {name for name, value in flatten(base.get_config().to_dict()).items() if isinstance(value, str)}
    known = {name for section, name in TEXTS if not texts_of(section)[name]}
    assert {name.rpartition(".")[2] for name in texts} <= known and len(TEXTS) > 40


def test_a_path_is_made_text():
    assert Settings(model=pathlib.Path("a/b")).model == "a/b"


@pytest.mark.parametrize("name", [name for name, kind in kinds_of(Recipe).items() if kind is not bool])
def test_settings_of_a_section_are_an_instance_of_its_class(name):
    kind = kinds_of(Recipe)[name]
    words = [({"epochs": 1}, "a dict"), (("a",), "a tuple"), (kind, f"the class {kind.__name__}"), (None, "None")]
    for value, got in words:
        with pytest.raises(TypeError, match=f"^{name}: got {got}, expected an instance of {kind.__name__}; write "):
            Recipe(**{name: value})


def test_numbers_and_lists_are_made_pythons_own():
    made = Recipe(epochs=np.int64(3), learning_rate=np.float32(0.5), target_modules=["q_proj"])
    assert type(made.train.epochs) is int and type(made.train.learning_rate) is float
    assert json.loads(json.dumps(made.record()))["train.epochs"] == 3
    assert made.lora.target_modules == ("q_proj",) and hash(made.lora)
