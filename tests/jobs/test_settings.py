"""Settings: one set of defaults, every field in its place, and names that do not exist."""

import dataclasses

import pytest
from ml_collections import ConfigDict
from selfparam_jax.configs import base

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.distributed.files import flatten
from selfparam_jax.distributed.mesh import MeshConfig
from selfparam_jax.evaluation.recommenders import RecommendConfig
from selfparam_jax.jobs import settings as job_settings
from selfparam_jax.jobs.settings import RENAMED, Settings, check_names, fields_of, read_settings, setting_names
from selfparam_jax.models.lora import LoraConfig
from selfparam_jax.sequential.config import SequentialConfig
from selfparam_jax.targets.config import EndpointConfig, GeneratorConfig, TargetConfig
from selfparam_jax.training.optimizer import TrainConfig
from selfparam_jax.training.other_teacher import TeacherConfig
from selfparam_jax.training.recipe import Recipe

SECTIONS = {
    "mesh": MeshConfig,
    "targets": TargetConfig,
    "generator": GeneratorConfig,
    "endpoint": EndpointConfig,
    "recommend": RecommendConfig,
    "sequential": SequentialConfig,
    "lora": LoraConfig,
    "train": TrainConfig,
    "eval": job_settings.EvalConfig,
    "teacher": TeacherConfig,
    "baselines": job_settings.BaselineOptions,
}


def test_configurations_fill_every_field():
    """A dataclass field without a setting, or a setting without a field, is an error here."""
    config = base.get_config()
    assert {field.name for field in fields_of(Settings)} == set(config)
    for name, section in SECTIONS.items():
        assert {field.name for field in fields_of(section)} == set(config[name]), name
    derived = {"generator": {"generator", "answer_shape", "seed"}, "train": {"seed"}}
    for name, section in SECTIONS.items():
        left_out = {field.name for field in dataclasses.fields(section)} - set(config[name])
        assert left_out == derived.get(name, set()), name


def test_the_defaults_of_the_configuration_are_those_of_the_classes():
    assert read_settings(base.get_config()) == Settings() == read_settings({})
    assert Settings().recipe == Recipe()
    for name, section in SECTIONS.items():
        assert getattr(Settings(), name) == section()


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    return {int: 77, float: 0.123, str: "x", tuple: ("x",)}[type(value)]


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_arrives(name, monkeypatch):
    """Each is read into the field of its own name; what values are possible is the classes' business."""
    options = {each for system in SYSTEMS.values() if system.options for each in system.options.__mro__[:-1]}
    for section in {Settings, *SECTIONS.values(), *options}:
        monkeypatch.setattr(section, "__post_init__", lambda self: None, raising=False)
    config = base.get_config()
    before = flatten(config.to_dict())[name]
    config.update_from_flattened_dict({name: changed(before)})
    found = read_settings(config)
    for part in name.split("."):
        found = getattr(found, part)
    assert found == changed(before) != before


def test_what_the_recipe_takes_from_elsewhere():
    config = base.get_config()
    config.targets.generator, config.generator.form, config.endpoint.model = "endpoint", "chat", "m"
    config.targets.answer_shape, config.seed = "short", 7
    recipe = read_settings(config).recipe
    assert recipe.generator.generator == "endpoint" and recipe.endpoint.model == "m"
    assert recipe.generator.answer_shape == recipe.targets.answer_shape == "short"
    assert recipe.seed == recipe.generator.seed == recipe.train.seed == 7


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(old):
    assert RENAMED[old] in setting_names() and old not in setting_names()
    config = base.get_config()
    section, name = old.split(".")
    with config.unlocked():
        config[section][name] = 1
    with pytest.raises(ValueError, match=f"the setting {old} is called {RENAMED[old]} now"):
        read_settings(config)
    with pytest.raises(ValueError, match=f"is called {RENAMED[old]} now"):
        read_settings({section: {name: 1}})


def test_an_old_value_is_refused_with_the_new_one():
    with pytest.raises(ValueError, match="prompt = 'worked' is called 'few_shot' now; write prompt = 'few_shot'"):
        read_settings({"prompt": "worked"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora": {"rnak": 4}}, r"there is no setting lora\.rnak; did you mean lora\.rank\?"),
        ({"promt": "plain"}, r"there is no setting promt; did you mean prompt\?"),
        ({"train": {"batchsize": 4}}, r"did you mean train\.batch_size\?"),
        ({"qqqq": 1}, "there is no setting qqqq"),
        # Filled in from elsewhere, so no setting.
        ({"train": {"seed": 1}}, r"there is no setting train\.seed"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_what_may_be_meant(given, message):
    with pytest.raises(ValueError, match=message):
        read_settings(ConfigDict(given))


def test_sections_and_settings_are_known():
    check_names([*setting_names(), *SECTIONS])


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "1"}, "seed = '1', expected an int"),
        ({"seed": True}, "seed = True, expected an int"),
        ({"seed": -1}, "seed = -1, expected a whole number from 0 to 4294967295"),
        ({"limit": -1}, r"limit = -1, expected 0 \(all documents\) or a whole number from 1"),
        ({"lora": {"target_modules": "q_proj"}}, r"lora.target_modules = 'q_proj', expected a tuple"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate = 'fast', expected a float"),
        ({"train": {"pack": 1}}, "train.pack = 1, expected a bool"),
        ({"eval": {"batch_size": 0}}, "eval.batch_size = 0, expected a whole number from 1 to 65536"),
        ({"remat": "some"}, "remat = 'some', expected one of"),
        ({"export_dtype": "float8"}, "export_dtype = 'float8', expected one of 'float32', 'bfloat16', ''"),
        ({"base_weights": "int4"}, "base_weights = 'int4', expected one of 'float', 'int8'"),
        ({"base_weights": "int8", "job": "sequential"}, "'int8' with job 'sequential', expected 'float'"),
    ],
)
def test_impossible_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_settings(given)


def test_whole_numbers_serve_as_floats_and_lists_as_tuples():
    found = read_settings({"lora": {"alpha": 32, "target_modules": ["q_proj"]}})
    assert (found.lora.alpha, found.lora.target_modules) == (32.0, ("q_proj",))
    assert isinstance(found.lora.alpha, float)


def test_names_may_be_given_with_commas():
    config = base.get_config()
    config.systems, config.context_ids = ("base, base_cq", "ft_c"), ("a,b",)
    found = read_settings(config)
    assert found.systems == ("base", "base_cq", "ft_c") and found.context_ids == ("a,b",)
