"""Every configuration is one that the program takes, for every argument, and says how it is launched."""

import importlib
import pathlib

import pytest

from selfparam_jax.jobs.settings import JOBS, read_settings

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
ARGUMENTS = {
    "base": [""],
    "batch": ["", "all", "development", "quick", "reading"],
    "single": ["", "quick"],
    "sequential": ["", "published", "quick"],
    "recommend": ["", "slice", "paper", "quick"],
    "compare": ["", "all", "single", "sequential", "quick"],
    "paper": ["batch", "single", "sequential"],
    "models.llama3_8b": ["", "batch", "single", "sequential"],
    "models.mistral_7b": ["", "batch", "single", "sequential"],
    "models.openllama_3b": ["", "batch", "single", "sequential"],
}


def module_of(name):
    return importlib.import_module(f"selfparam_jax.configs.{name}")


def test_none_is_forgotten():
    paths = (path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.py"))
    names = {".".join(path.parts) for path in paths if path.name != "__init__"}
    assert names - {"models.large"} == set(ARGUMENTS)


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name, all_ in ARGUMENTS.items() for each in all_])
def test_every_argument_is_a_job(name, argument):
    settings = read_settings(module_of(name).get_config(argument))
    if argument in JOBS:
        assert settings.job == argument


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_docstring_launches_it_and_other_arguments_are_refused(name):
    module = module_of(name)
    assert f"python -m selfparam_jax.main --config=configs/{name.replace('.', '/')}.py" in module.__doc__
    with pytest.raises(ValueError, match="'no such'"):
        module.get_config("no such")


def test_the_papers_settings():
    """As released: rank 8, alpha 32, dropout 0.1; AdamW at 2e-5, constant, unclipped, batch 1; 500 and 200 pairs."""
    for argument, pairs in (("batch", 500), ("single", 500), ("sequential", 200)):
        settings = read_settings(module_of("paper").get_config(argument))
        lora, train, targets = settings.lora, settings.train, settings.targets
        assert (lora.rank, lora.alpha, lora.dropout) == (8, 32.0, 0.1)
        assert lora.target_modules == ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
        assert (train.learning_rate, train.schedule, train.clip_norm, train.warmup) == (2e-5, "constant", 0.0, 0.0)
        assert (train.batch_size, train.pack, train.epochs, train.temperature) == (1, False, 1, 1.0)
        # One of each kind in turn, over question and answer alike, and no supervision.
        contexts = 100 if argument == "batch" else 1
        assert targets.qa_per_context == targets.tails_per_context == pairs
        assert targets.unrelated_per_epoch == pairs * contexts
        assert (targets.loss_tokens, targets.answer_supervision) == ("all", 0.0)
        assert (targets.unrelated_tokens, targets.unrelated_context) == (256, True)
    assert (settings.sequential.length, settings.sequential.sequences) == (20, 50)
    assert (settings.sequential.teacher, settings.sequential.replay_pairs) == ("current", 0)
