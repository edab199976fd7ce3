"""A dry run reads and checks all that the job would, and writes nothing."""

import json

import jax
import pytest
from job_inputs import modified, write

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.peft import save_adapter
from selfparam_jax.jobs.dry_run import dry_run
from selfparam_jax.jobs.run import run_job
from selfparam_jax.models.lora import LoraConfig, init_lora


@pytest.mark.parametrize(
    ("setting", "content", "message"),
    [
        ("unrelated", None, "no such file"),
        ("unrelated", '{"tex": "a"}\n', "other.jsonl"),
        ("eval.general", None, "no such file"),
        ("eval.general", '{"tex": "a"}\n', "other.jsonl, line 1"),
        ("eval.reach_file", None, "other.jsonl: no such file"),
        ("eval.reach_file", '{"context": "a"}\n', "other.jsonl, line 1: expected an object with context"),
        ("generator.file", '{"text": "a"}\n', "other.jsonl: got no settings in its first line"),
        ("adapter", None, "adapter_config.json"),
        ("teacher.model", None, "model '.*other.jsonl' is not known"),
        ("attention", "cudnn", "attention = 'cudnn'"),
    ],
)
def test_what_the_job_would_refuse_is_refused(config, tmp_path, setting, content, message):
    path = tmp_path / "other.jsonl"
    config.targets.generator = "grounded" if setting == "generator.file" else "none"
    config.eval.reach = "all"
    assert next(dry_run(config, tmp_path / "run")).split()[0] == "document"
    with config.unlocked():
        config.update_from_flattened_dict({setting: content if setting == "attention" else str(path)})
    if content is not None:
        path.write_text(content)
    before = modified(tmp_path)
    for run in (lambda: next(dry_run(config, tmp_path / "run")), lambda: run_job(config, tmp_path / "run")):
        with pytest.raises((ValueError, OSError), match=message):
            run()
        assert modified(tmp_path) == before
        if setting == "generator.file":  # which the job opens when it is to write
            break


def test_an_adapter_of_other_shapes_is_refused(config, tmp_path, model_dir):
    model = load_model(model_dir)
    lora = init_lora(jax.random.key(0), model.params, LoraConfig(rank=2))
    save_adapter(lora, 1.0, model, tmp_path / "other")
    config.adapter = str(tmp_path / "other")
    assert next(dry_run(config)).split()[0] == "document"
    path = tmp_path / "other" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))
    with pytest.raises(ValueError, match=r"has shape .*, expected"):
        next(dry_run(config))


def test_texts_are_counted_as_they_are(config, tmp_path):
    """The steps of the job's own texts, not of others of a guessed length."""
    config.targets.generator = "none"
    said = [next(line for line in dry_run(config) if line.startswith("training:"))]
    write(tmp_path / "texts.jsonl", [{"text": "word " * 20}] * 3)
    said.append(next(line for line in dry_run(config) if line.startswith("training:")))
    assert said[0] != said[1]
