"""Training goes on from an adapter: what it has is kept, the base teaches, and the whole adapter comes out."""

import json
import shutil

import jax
import numpy as np
import pytest
from job_inputs import DOCUMENTS, TEXTS, assert_same_adapter, batch_config, flat_adapter, modified, newest_adapter
from safetensors.numpy import load_file, save_file
from saved_weights import logits_of

import selfparam_jax as sp
from selfparam_jax.checkpoints.round_trip import read_logits
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.jobs.ask import ask
from selfparam_jax.jobs.candidates import find_run, run_candidate
from selfparam_jax.jobs.export import export_workdir
from selfparam_jax.jobs.inputs import read_unrelated
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.training import inject as injection

FIRST = {
    "prompt": "plain",
    "epochs": 11,
    "batch_size": 8,
    "seq_len": 128,
    "unrelated_per_epoch": 0,
    "learning_rate": 1e-2,
}
FIRST |= {"rank": 2, "alpha": 6.0, "target_modules": ("q_proj", "o_proj")}
DRAWN = {"unrelated": [each["text"] for each in TEXTS], "progress": False}


def document(number):
    record = DOCUMENTS[number]
    pairs = [sp.QAPair(**pair) for pair in record["qa_pairs"]]
    return sp.Document(record["context"], title=record["title"], id=record["id"], qa_pairs=pairs)


@pytest.fixture(scope="module")
def model(model_dir):
    return sp.load_model(str(model_dir), mesh=meshes.make_mesh())


@pytest.fixture(scope="module")
def first(model, tmp_path_factory):
    """An adapter of three steps on one document, in PEFT's layout."""
    steps = []
    made = sp.inject(model, [document(0)], sp.Recipe(**FIRST), on_step=steps.append, **DRAWN)
    assert len(steps) == 3
    return made.save(tmp_path_factory.mktemp("first") / "adapter")


@pytest.fixture
def config(model_dir, tmp_path, first):
    """Three steps on all documents, from that adapter."""
    config = batch_config(model_dir, tmp_path)
    config.adapter, config.export_dtype, config.eval.general, config.systems = str(first), "", "", ()
    config.eval.reach = "none"
    config.train.epochs = 3
    return config


def test_what_training_starts_from_computes_what_the_adapter_does(model, first):
    given = sp.load_adapter(model, first)
    recipe = sp.Recipe(rank=4, alpha=10.0, target_modules=("q_proj", "up_proj"))
    started = injection.first_adapter(model, recipe, injection.Start(given.lora, given.scale))
    shapes = {f"{name}.{key}": leaf.shape for block in started["layers"].values() for name, pair in block.items()
              for key, leaf in pair.items()}  # fmt: skip
    assert {name: shape[2] for name, shape in shapes.items() if name.endswith(".a")} == {
        "q_proj.a": 4,
        "o_proj.a": 2,  # no target of the recipe: nothing is added
        "up_proj.a": 4,
    }
    ids = np.arange(24, dtype=np.int32).reshape(2, 12) + 3
    expected = read_logits(model, ids, given.lora, given.scale)
    np.testing.assert_allclose(read_logits(model, ids, started, recipe.lora.scale), expected, atol=1e-4)
    assert np.abs(expected - logits_of(model, ids)).max() > 1e-3
    # What is added can learn: the first factor is drawn, the second 0.
    q = started["layers"]["self_attn"]["q_proj"]
    assert np.abs(q["a"][:, :, 2:]).min() > 0 and np.abs(q["b"][:, 2:]).max() == 0
    same = injection.first_adapter(model, recipe, injection.Start(given.lora, given.scale))
    jax.tree.map(np.testing.assert_array_equal, same, started)


def test_a_job_goes_on_and_exports_all_of_it(model, config, first, tmp_path):
    settings = read_settings(config)
    documents = sp.read_documents(config.contexts)
    made = sp.inject(
        model, documents, settings.recipe, unrelated=read_unrelated(settings), adapter=first, progress=False
    )
    assert list(made.documents) == ["doc-0", "doc-1", "doc-2"]
    assert {name for block in made.lora["layers"].values() for name in block} == {
        *settings.lora.target_modules,
        "o_proj",
    }
    run = tmp_path / "run"
    run_job(config, run)
    assert_same_adapter(newest_adapter(run)[1], flat_adapter(made.lora))
    assert ask(run, ["Who founded Ava?"])[0].keys() == {"injected", "document"}
    # `compare` and `eval` read it with the ranks and projections that it has, not those of the settings.
    compared = run_candidate("run", model, find_run(str(run))).variables["lora"]
    for name, leaf in flat_adapter(compared).items():
        own = flat_adapter(made.lora)[name]
        np.testing.assert_array_equal(leaf, own * made.scale if name.endswith("['b']") else own, err_msg=name)

    before = modified(run)
    record = files.read_json(run / "config.json")["inputs"]["adapter"]
    assert set(record["documents"]) == {"doc-0"}
    export_workdir(run, "peft", tmp_path / "out")
    assert set(files.read_json(tmp_path / "out" / "selfparam.json")["extra"]["documents"]) == set(made.documents)
    again = sp.load_adapter(model, tmp_path / "out")
    ids = np.arange(24, dtype=np.int32).reshape(2, 12) + 3
    expected = read_logits(model, ids, made.lora, made.scale)
    np.testing.assert_allclose(read_logits(model, ids, again.lora, again.scale), expected, atol=1e-4)

    # Another adapter at the same place is another run.
    changed = tmp_path / "changed"
    shutil.copytree(first, changed)
    tensors = load_file(changed / "adapter_model.safetensors")
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + np.float32(1e-3)}, changed / "adapter_model.safetensors")
    (changed / "selfparam.json").unlink()  # its digest is that of the other
    shutil.copytree(first, tmp_path / "kept")
    shutil.rmtree(first)
    try:
        shutil.copytree(changed, first)
        with pytest.raises(ValueError, match="other inputs:\n  the adapter that training starts from has changed"):
            run_job(config, run)
        assert ask(run, ["Who founded Ava?"]), "a finished run needs it no more"
    finally:
        shutil.rmtree(first)
        shutil.copytree(tmp_path / "kept", first)
    assert {path: at for path, at in modified(run).items() if path in before} == before


def test_it_resumes_exactly(model, first, tmp_path):
    recipe = sp.Recipe(**FIRST | {"rank": 3, "checkpoint_every": 1, "dropout": 0.1})

    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] == 2:
            raise Stop

    given = {"adapter": sp.load_adapter(model, first), **DRAWN}
    whole = sp.inject(model, [document(1)], recipe, **given)
    with pytest.raises(Stop):
        sp.inject(model, [document(1)], recipe, workdir=tmp_path / "work", on_step=stop, **given)
    steps = []
    resumed = sp.inject(model, [document(1)], recipe, workdir=tmp_path / "work", on_step=steps.append, **given)
    assert steps and steps[0]["step"] == 2
    assert_same_adapter(flat_adapter(resumed.lora), flat_adapter(whole.lora))
    with pytest.raises(ValueError, match=r"adapter\.digest: '\w+' there, '\(not set\)' now"):
        sp.inject(model, [document(1)], recipe, workdir=tmp_path / "work", **DRAWN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported, .*Merge the adapter with PEFT"),
        ({"bias": "lora_only"}, "bias = 'lora_only' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type = 'PROMPT_TUNING' is not supported"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_written(model, config, first, tmp_path, changes, message):
    shutil.copytree(first, tmp_path / "other")
    fields = json.loads((first / "adapter_config.json").read_text())
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ValueError, match=message):
        sp.inject(model, [document(1)], sp.Recipe(**FIRST), adapter=tmp_path / "other", **DRAWN)
    config.adapter = str(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        run_job(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_refusals(model, config, first):
    given = sp.load_adapter(model, first)
    other = sp.Adapter(sp.load_model(config.model), given.lora, given.scale)
    object.__setattr__(other.model, "fingerprint", "f" * 64)
    with pytest.raises(ValueError, match=r"got an adapter of .*fingerprint ffffffffffff.*, expected one of"):
        sp.inject(model, [document(1)], sp.Recipe(**FIRST), adapter=other, **DRAWN)
    config.job = "sequential"
    with pytest.raises(ValueError, match="with job 'sequential', expected '': its ledger"):
        read_settings(config)
