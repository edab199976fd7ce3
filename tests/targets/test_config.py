"""The settings of target sentences: their defaults, and what is refused."""

import dataclasses
import math
import re

import pytest

from selfparam_jax.targets.config import EndpointConfig, GeneratorConfig, TargetConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generator": "oracle"},
            "targets.generator = 'oracle', expected one of none, auto, grounded, local, endpoint",
        ),
        ({"answer_shape": "long"}, "targets.answer_shape = 'long', expected one of any, short, sentence"),
        ({"agreement": "maybe"}, "targets.agreement = 'maybe', expected one of none, keep, rewrite"),
        ({"tail_cut": "sentences"}, "targets.tail_cut = 'sentences', expected one of random, sentence"),
        ({"long_pairs": "cut"}, "targets.long_pairs = 'cut', expected one of refuse, skip"),
        ({"qa_weight": -1.0}, "targets.qa_weight = -1.0, expected a number from 0 to 1000000"),
        ({"tail_weight": math.nan}, "targets.tail_weight = nan"),
        ({"unrelated_weight": math.inf}, "targets.unrelated_weight = inf"),
        ({"answer_supervision": "much"}, "targets.answer_supervision = 'much'"),
        (
            {"qa_per_context": -1},
            "targets.qa_per_context = -1, expected 0 (all) or a whole number",
        ),
        ({"tails_per_context": 1.5}, "targets.tails_per_context = 1.5"),
        ({"unrelated_per_epoch": True}, "targets.unrelated_per_epoch = True"),
        ({"unrelated_tokens": 0}, "targets.unrelated_tokens = 0, expected a whole number from 1 to 1048576"),
        ({"least_agreement": 1.5}, "targets.least_agreement = 1.5, expected a number from 0 to 1"),
        ({"least_agreement": math.nan}, "targets.least_agreement = nan"),
        ({"least_confidence": 1.0}, "targets.least_confidence = 1.0, expected a number from 0 to below 1"),
        ({"least_confidence": -0.1}, "targets.least_confidence = -0.1"),
        ({"loss_tokens": "some"}, "targets.loss_tokens = 'some', expected 'all', 'answer' or two weights"),
        ({"loss_tokens": "1,inf"}, "targets.loss_tokens = '1,inf'"),
        ({"loss_tokens": "nan,1"}, "targets.loss_tokens = 'nan,1'"),
    ],
)
def test_impossible_targets_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TargetConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generator": "oracle"},
            "targets.generator = 'oracle', expected one of none, auto, grounded, local, endpoint",
        ),
        ({"form": "poem"}, "generator.form = 'poem', expected one of chat, completion"),
        ({"generator": "endpoint"}, "an endpoint answers chats only; set generator.form=chat"),
        ({"teacher_scores": False, "least_gain": 0.1}, "need the teacher's scores"),
        ({"rounds": 0}, "generator.rounds = 0, expected a whole number from 1 to 1000"),
        ({"replies": 2.5}, "generator.replies = 2.5"),
        ({"temperature": 0.0}, "generator.temperature = 0.0, expected a number from 1e-06 to 100"),
        ({"temperature": math.nan}, "generator.temperature = nan"),
        ({"top_p": 1.1}, "generator.top_p = 1.1, expected a number above 0 and at most 1"),
        ({"top_p": 0}, "generator.top_p = 0"),
        ({"least_support": 1.1}, "generator.least_support = 1.1"),
        ({"least_likelihood": 1.0}, "generator.least_likelihood = 1.0"),
        ({"least_gain": math.nan}, "generator.least_gain = nan"),
        ({"duplicate_threshold": 101}, "generator.duplicate_threshold = 101"),
        ({"answer_shape": "long"}, "targets.answer_shape = 'long'"),
    ],
)
def test_impossible_generators_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GeneratorConfig(**changes)


@pytest.mark.parametrize("config", [TargetConfig, GeneratorConfig, EndpointConfig])
def test_every_setting_is_described(config):
    described = re.findall(r"^      (\w+): ", config.__doc__, flags=re.MULTILINE)
    assert described == [field.name for field in dataclasses.fields(config)]


def test_the_defaults_can_be_made_and_are_those_of_the_recipe():
    """A change of a default changes every run; it is made here, too."""
    assert dataclasses.asdict(TargetConfig()) == {
        "generator": "auto", "qa_per_context": 0, "long_pairs": "refuse", "qa_weight": 1.0, "formats": "auto",
        "dated": False, "two_step_pairs": 0, "distractors": 0, "answer_shape": "any",
        "contrast_per_epoch": 24, "chat_per_epoch": 16, "agreement": "none",
        "least_agreement": 1.0, "least_confidence": 0.0, "loss_tokens": "answer",
        "answer_supervision": 0.5, "by_confidence": True,
        "tails_per_context": 0, "tail_weight": 1.0, "tail_cut": "random",
        "unrelated_per_epoch": 28, "unrelated_weight": 1.0, "unrelated_tokens": 48, "unrelated_context": False,
    }  # fmt: skip
    assert TargetConfig().generator == GeneratorConfig().generator
    derived = [field.name for field in dataclasses.fields(GeneratorConfig) if field.metadata.get("derived")]
    assert derived == ["generator", "answer_shape", "seed"]
    assert EndpointConfig().model == ""
