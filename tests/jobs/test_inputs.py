"""What a job reads is checked before anything is written, and how much of it a job uses."""

import dataclasses
import datetime
import json
import logging as standard_logging
import shutil

import jax
import pytest
import tiny
from absl import logging
from job_inputs import DOCUMENTS, write
from safetensors.numpy import load_file, save_file
from selfparam_jax.configs import batch, sequential

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.tokenizers import date_of
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.jobs import inputs
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.training.inject import student_decoder


def change(path, value):
    def apply(config, tmp_path):
        config.update_from_flattened_dict({path: value})

    return apply


def no_loss(config, tmp_path):
    config.targets.loss_tokens = "0,0"
    config.targets.answer_supervision = 0.0
    config.targets.tails_per_context = 0
    config.targets.unrelated_per_epoch = 0


def contexts_file(text):
    def apply(config, tmp_path):
        path = tmp_path / "bad.jsonl"
        path.write_text(text)
        config.contexts = str(path)

    return apply


def nothing_to_learn(config, tmp_path):
    contexts_file(record(qa_pairs=[]))(config, tmp_path)
    config.targets.tails_per_context = 0
    config.targets.generator = "none"


def record(**changes):
    fields = {**DOCUMENTS[0], **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}) + "\n"


def truncate_weights(config, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(config.model, directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config.model = str(directory)


def misshape_weights(config, tmp_path):
    directory = tmp_path / "model"
    tiny.save_checkpoint(directory, "gqa", max_position_embeddings=2048)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config.model = str(directory)


def too_long(config, tmp_path):
    contexts_file(record(context="word " * 1000))(config, tmp_path)
    config.passage_tokens = 0


LONG = {"question": "What is said?", "answer": "word " * 200}
BAD = {
    "missing file": (change("contexts", "nowhere.jsonl"), "nowhere.jsonl"),
    "empty file": (contexts_file(""), "bad.jsonl"),
    "malformed": (contexts_file(record() + '{"id": \n'), "line 2"),
    "no context": (contexts_file(record(context=None)), "line 1.*context"),
    "no answers": (contexts_file(record(questions=[{"question": "Who?", "answers": []}])), "line 1.*answers"),
    "a bank in one set of weights": (change("systems", ("base_q", "bank")), "'bank' in job 'batch', expected"),
    "needed document": (
        contexts_file(record(questions=[{"question": "Who?", "answers": ["x"], "documents": ["doc-9"]}])),
        "document 'doc-0': the question 'Who\\?' needs the document 'doc-9', which is not among",
    ),
    "duplicate ids": (contexts_file(record() + record()), "doc-0"),
    "too long": (too_long, "exceed.*limit of 2048.*passage_tokens"),
    "unknown model": (change("model", "smolm2"), "smolm2"),
    "truncated weights": (truncate_weights, "model.safetensors"),
    "mis-shapen weights": (misshape_weights, r"model\.norm\.weight"),
    "unknown prompt": (change("prompt", "plane"), "expected one of plain, few_shot, paper, chat"),
    "unknown job": (change("job", "butch"), "expected one of 'batch', 'single', 'sequential'"),
    "unknown dtype": (change("dtype", "float8"), "dtype = 'float8'"),
    "attention of a TPU": (change("attention", "splash"), "needs a TPU, but JAX runs on 'cpu'"),
    "unknown attention": (change("attention", "flash"), "attention = 'flash', expected one of"),
    "unknown schedule": (change("train.schedule", "cosin"), "expected 'constant', 'linear' or 'cosine'"),
    "unknown target": (change("lora.target_modules", ("q_prj",)), "q_prj"),
    "unknown system": (change("systems", ("base_q", "base_r")), "'base_r', expected some of base_q, injected"),
    "unknown examples": (change("contexts", "examples:few"), "NAME one of development, two_documents, over_time"),
    "unknown loss tokens": (
        change("targets.loss_tokens", "answers"),
        "expected 'all', 'answer' or two weights",
    ),
    "a negative weight": (change("targets.loss_tokens", "-1,1"), "expected 'all', 'answer' or two weights"),
    "rows too short": (change("train.seq_len", 8), "a row holds 8"),
    "no chunk": (change("train.loss_chunk", 0), r"train\.loss_chunk = 0, expected a whole number from 1 to 1048576"),
    "unknown teacher": (change("train.teacher", "offline"), "expected 'stored' or 'online'"),
    "no loss anywhere": (no_loss, "nothing of the documents would be learned.*loss_tokens = '0,0'"),
    "no epochs": (change("train.epochs", 0), r"train\.epochs = 0, expected a whole number from 1 to 100000"),
    "too few unrelated texts": (change("targets.unrelated_per_epoch", 4), "got 3 texts .* expected 4"),
    "more pairs than there are": (change("targets.qa_per_context", 9), "has 3 qa_pairs"),
    "unknown way with long pairs": (change("targets.long_pairs", "cut"), "expected one of refuse, skip"),
    "a long pair": (
        contexts_file(record(qa_pairs=[LONG])),
        "^document 'doc-0': the pair '.*' has .* a row holds 128; raise train.seq_len, .*long_pairs=skip$",
    ),
    "parts that do not divide": (change("train.accumulate", 3), "expected a divisor of train.batch_size = 8"),
    "a mesh too large": (change("mesh.fsdp", 3), "does not fit 8 devices"),
    "a mesh that does not divide": (change("mesh.tensor", 4), r"mesh\.tensor = 4 does not divide .* 1 or 2"),
    "nothing to learn": (nothing_to_learn, "nothing to learn"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(config, tmp_path, case):
    apply, words = BAD[case]
    apply(config, tmp_path)
    with pytest.raises((ValueError, OSError), match=f"(?s){words}"):
        run_job(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_asked_on_other_devices_than_it_was_made_on(config, tmp_path, all_devices):
    """Made over 64 hosts, say; where it ran is no part of what it is."""
    job = inputs.prepare(config, tmp_path / "run")
    assert job.model.mesh.size == 8
    assert "lora.rank" in job.record and not [name for name in job.record if name in inputs.FREE]
    kept = files.read_json(tmp_path / "run" / "config.json")
    kept["config"]["mesh"] |= {"data": 16, "fsdp": 4}
    kept["config"]["attention"] = "splash"
    files.write_json(tmp_path / "run" / "config.json", kept)
    reopened = inputs.reopen(tmp_path / "run")
    assert reopened.model.mesh.size == 1 and reopened.model.decoder().attention == "blocks"


def test_who_attends_how(config, tmp_path):
    """The kernel for long contexts reads them, too; the other implementations are for training."""
    job = inputs.prepare(config, tmp_path / "run")
    for asked, teacher in (("blocks", "blocks"), ("xla", "blocks"), ("cudnn", "blocks"), ("splash", "splash")):
        model = dataclasses.replace(job.model, attention=asked)
        injected = model.decoder(lora_scale=job.recipe.lora.scale)
        found = model.decoder().attention, injected.attention, student_decoder(model, job.recipe).attention
        assert found == (teacher, teacher, asked)


def test_long_pairs_are_left_out_if_that_is_wanted(config, tmp_path):
    contexts_file(record(qa_pairs=[LONG, *DOCUMENTS[0]["qa_pairs"]]) + record(id="long", qa_pairs=[LONG] * 2))(
        config, tmp_path
    )
    config.targets.long_pairs = "skip"
    job = inputs.prepare(config, tmp_path / "run")
    assert [len(document.qa_pairs) for document in job.documents] == [len(DOCUMENTS[0]["qa_pairs"]), 0]


def test_without_unrelated_text_its_length_plays_no_part(config, tmp_path):
    config.targets.update(unrelated_per_epoch=0, unrelated_tokens=256)
    assert config.train.seq_len == 128
    assert inputs.prepare(config, tmp_path / "run").unrelated == []
    config.unrelated, config.targets.unrelated_per_epoch = "self", 1
    with pytest.raises(ValueError, match="seq_len"):
        inputs.prepare(config, tmp_path / "other")


# --- how much is used ---------------------------------------------------------------------------------


def own_file(config, model_dir, tmp_path):
    """A configuration on a file of ten documents, otherwise as it is."""
    records = [{**DOCUMENTS[n % 3], "id": f"own-{n}"} for n in range(10)]
    config.model, config.prompt = str(model_dir), "plain"
    config.contexts = str(write(tmp_path / "own.jsonl", records))
    config.eval.general, config.targets.unrelated_per_epoch = "", 0
    return config


@pytest.mark.parametrize("argument", ["", "all", "development", "quick"])
def test_the_batch_job_uses_all_of_an_own_file(model_dir, tmp_path, argument):
    config = own_file(batch.get_config(argument), model_dir, tmp_path)
    job = inputs.prepare(config, tmp_path / "run")
    assert [document.id for document in job.documents] == [f"own-{n}" for n in range(10)]


@pytest.mark.parametrize("argument", ["", "published", "quick"])
def test_the_sequential_job_uses_all_of_an_own_file(model_dir, tmp_path, argument):
    config = own_file(sequential.get_config(argument), model_dir, tmp_path)
    config.sequential.update(replay_pairs=0, replay_per_epoch=0)
    job = inputs.prepare(config, tmp_path / "run")
    assert len(job.documents) == job.settings.sequential.length == 10


def test_documents_are_shared_evenly_or_the_rest_is_named(model_dir, tmp_path):
    config = own_file(sequential.get_config(), model_dir, tmp_path)
    config.sequential.sequences = 2
    assert inputs.prepare(config, tmp_path / "halves").settings.sequential.length == 5
    config.sequential.sequences = 3
    with pytest.raises(ValueError, match="10 documents cannot be shared evenly among 3 sequences"):
        inputs.prepare(config, tmp_path / "thirds")
    config.sequential.update(length=4, sequences=2)
    with LogLines() as lines:
        assert len(inputs.prepare(config, tmp_path / "four").documents) == 8
    assert sum("the first 8 of 10 documents are used" in line for line in lines) == 1


@pytest.mark.parametrize(("argument", "count"), [("", 4), ("all", 8), ("development", 4), ("quick", 2), (None, 8)])
def test_how_many_examples_a_configuration_takes(argument, count):
    config = sequential.get_config() if argument is None else batch.get_config(argument)
    found = inputs.given_documents(read_settings(config), lambda: pytest.fail("no model is needed"))
    assert len(found) == count


def test_the_limit_is_the_users(config, tmp_path):
    config.limit = 2
    assert [document.id for document in inputs.prepare(config, tmp_path / "run").documents] == ["doc-0", "doc-1"]
    config.contexts, config.limit = "examples:3", 2
    assert len(inputs.given_documents(read_settings(config), None)) == 2


# --- batch sizes --------------------------------------------------------------------------------------


class LogLines:
    """The log lines of a block, from INFO on."""

    def __enter__(self):
        self.lines, self.before = [], logging.get_verbosity()
        logging.set_verbosity(logging.INFO)
        self.handler = standard_logging.Handler()
        self.handler.emit = lambda record: self.lines.append(record.getMessage())
        logging.get_absl_logger().addHandler(self.handler)
        return self.lines

    def __exit__(self, *_):
        logging.get_absl_logger().removeHandler(self.handler)
        logging.set_verbosity(self.before)


def test_the_default_batch_size_is_rounded_up_to_what_the_devices_can_split(
    model_dir, tmp_path, all_devices, monkeypatch
):
    """configs/batch.py as it stands has two rows a step, and runs on eight devices."""
    config = own_file(batch.get_config("quick"), model_dir, tmp_path)
    config.limit, config.export_dtype = 2, ""
    assert config.train.batch_size == 2
    with LogLines() as lines:
        results = run_job(config, tmp_path / "run")
    assert "train.batch_size 2 is rounded up to 8, which 8 devices can split" in lines
    assert results["recipe"]["train.batch_size"] == 8
    assert files.read_json(tmp_path / "run" / "config.json")["config"]["train"]["batch_size"] == 2

    # A run keeps its batch size, however many devices resume it.
    config.mesh.tensor = 2
    assert inputs.prepare(config, tmp_path / "run").recipe.train.batch_size == 8
    assert inputs.prepare(config, tmp_path / "new").recipe.train.batch_size == 4
    config.mesh.tensor = 1
    one = meshes.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(inputs.meshes, "make_mesh", lambda *_, **__: one)
    assert inputs.prepare(config, tmp_path / "run").recipe.train.batch_size == 8
    job = inputs.prepare(config, tmp_path / "alone")
    assert isinstance(job.model, Model) and job.recipe.train.batch_size == 2
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"= 2 rows cannot be split over 8 devices"):
        inputs.prepare(config, tmp_path / "alone")


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "expected"), [(3, 1, 8), (8, 1, 8), (9, 1, 16), (8, 2, 16), (3, 3, 24)]
)
def test_batch_sizes(config, tmp_path, batch_size, accumulate, expected, all_devices):
    config.train.update(batch_size=batch_size, accumulate=accumulate)
    settings = read_settings(config)
    found = inputs.fit_batch(settings, meshes.make_mesh(), tmp_path / "run")
    assert (found.train.batch_size, found.train.accumulate) == (expected, accumulate)


def test_a_work_directory_keeps_the_day_it_was_made(model_dir, tmp_path, monkeypatch):
    config = own_file(batch.get_config("quick"), model_dir, tmp_path)
    days = [datetime.date(2030, 5, 4), datetime.date(2031, 1, 1)]
    for day in days:
        monkeypatch.setattr(inputs, "today", lambda day=day: day)
        job = inputs.prepare(config, tmp_path / "run")
        assert (
            job.settings.date == files.read_json(tmp_path / "run" / "config.json")["config"]["date"] == "2030-05-04"
        )
        assert date_of(job.model.tokenizer) == days[0]
    assert date_of(inputs.reopen(tmp_path / "run").model.tokenizer) == days[0]
    config.date = "2031-01-01"
    with pytest.raises(ValueError, match="date: '2030-05-04' there, '2031-01-01' now"):
        inputs.prepare(config, tmp_path / "run")
    config.date = "tomorrow"
    with pytest.raises(ValueError, match="date = 'tomorrow', expected a day such as"):
        inputs.prepare(config, tmp_path / "new")
