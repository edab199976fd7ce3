"""Exports read by others: transformers 4 and 5, PEFT, llama.cpp's file; what is measured on them, and their card."""

import json
import resource
import shutil

import jax
import numpy as np
import pytest
import tiny
from extras import require
from saved_weights import logits_of

from selfparam_jax.checkpoints import round_trip
from selfparam_jax.checkpoints.companions import licence_of, portable_config
from selfparam_jax.checkpoints.export import merge_for_export, save_model
from selfparam_jax.checkpoints.gguf_export import save_gguf
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model_card import write_card
from selfparam_jax.checkpoints.peft import save_adapter
from selfparam_jax.distributed.files import StorageError
from selfparam_jax.models.lora import LoraConfig, init_lora


def adapter_for(model):
    lora = init_lora(jax.random.key(0), model.params, LoraConfig(rank=2))
    return jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), lora)


@pytest.fixture
def base(tmp_path):
    directory = tmp_path / "base"
    tiny.save_checkpoint(directory, "llama3", max_position_embeddings=96)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    (directory / "LICENSE").write_text("A licence\n")
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 5], "temperature": 0.6}')
    (directory / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    return load_model(directory)


def test_the_bases_files_are_kept_and_both_versions_read_the_config(base, tmp_path):
    out = save_model(merge_for_export(base, [(adapter_for(base), 0.5)]), base, tmp_path / "out", "bfloat16")
    given = {path.name for path in (tmp_path / "base").iterdir()} - {"config.json", "model.safetensors", "README.md"}
    assert {"LICENSE", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= given
    for name in given - {"tokenizer_config.json"}:
        assert (out / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    # Version 5 wrote the base's, and names a class that version 4 does not know.
    theirs, ours = (json.loads((each / "tokenizer_config.json").read_text()) for each in (tmp_path / "base", out))
    assert (theirs.pop("tokenizer_class"), ours.pop("tokenizer_class")) == (
        "TokenizersBackend",
        "PreTrainedTokenizerFast",
    )
    assert ours == {name: value for name, value in theirs.items() if name != "backend"}
    fields = json.loads((out / "config.json").read_text())
    assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
    assert fields["rope_theta"] == 10000.0 == fields["rope_parameters"]["rope_theta"]
    assert fields["rope_scaling"] == {name: value for name, value in tiny.LLAMA3_ROPE.items() if name != "rope_theta"}
    # With either half alone, as one of the versions reads it, it is the same architecture.
    for halves in (("rope_parameters",), ("rope_theta", "rope_scaling")):
        copy = tmp_path / "-".join(halves)
        shutil.copytree(out, copy)
        (copy / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k not in halves}))
        assert load_model(copy).config == base.config
    assert load_model(out).end_ids == base.end_ids == (1, 5)
    assert licence_of(base) == "apache-2.0"


def test_a_tokenizer_of_a_gguf_file_is_written_for_both_versions(tmp_path):
    tiny.write_gguf(tmp_path / "a.gguf", tiny.checkpoint("gqa"), tokenizer__ggml__eot_token_id=7)
    model = load_model(tmp_path / "a.gguf")
    out = save_model(model.params, model, tmp_path / "out", "float32")
    fields = json.loads((out / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(fields.get("extra_special_tokens"), list)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 7]
    again = load_model(out)
    assert again.end_ids == (1, 7) and again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    fields = json.loads((out / "config.json").read_text())
    assert (fields["rope_theta"], fields["rope_scaling"]) == (10000.0, None)


def test_a_config_without_rope_parameters_stays(base):
    class Old:
        dtype = None

        def to_json_string(self):
            return '{"rope_theta": 5.0, "dtype": null}'

    assert portable_config(Old(), "float32") == {"rope_theta": 5.0, "dtype": "float32", "torch_dtype": "float32"}


@pytest.mark.parametrize("case", ["gqa", "tied", "llama3", "linear"])
@pytest.mark.parametrize("quantization", ["float16", "q8_0"])
def test_gguf_export(tmp_path, case, quantization):
    """The adapter merged, read again: the same to the rounding; tokenizer, template and ends are kept."""
    tiny.save_checkpoint(tmp_path / "base", case, eos_token_id=[1, 9])
    base = load_model(tmp_path / "base")
    lora, template = adapter_for(base), base.tokenizer.chat_template
    if case == "linear":  # of several templates the file holds the default one
        base.tokenizer.chat_template = {"tool_use": "{{ tools }}", "default": template}
    out = save_gguf(merge_for_export(base, [(lora, 0.5)]), base, tmp_path / "out", quantization)
    (path,) = out.glob("*.gguf")
    made = load_model(path)
    ids = tiny.token_ids(24)
    expected, found = round_trip.read_logits(base, ids, lora, 0.5), logits_of(made, ids)
    result = round_trip.compare_logits(expected, found)
    assert result["max_token_kl"] < {"float16": 1e-3, "q8_0": 0.2}[quantization] and result["tokens"] == 48
    text = "in the and 12\n, it's 345."
    assert made.tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]
    assert made.tokenizer.chat_template == template
    assert made.end_ids == base.end_ids == (1, 9)
    assert made.config.tie_word_embeddings == base.config.tie_word_embeddings
    # From a GGUF file to another one.
    again = save_gguf(made.params, made, tmp_path / "again", quantization)
    assert load_model(next(again.glob("*.gguf"))).tokenizer.get_vocab() == made.tokenizer.get_vocab()


@pytest.mark.parametrize("form", ["gguf", "hf", "peft"])
def test_a_disk_that_takes_no_more_is_named(tmp_path, form):
    """NumPy says how many numbers it wrote, and safetensors has an error of its own."""
    tiny.save_checkpoint(tmp_path / "base", "gqa")
    base = load_model(tmp_path / "base")
    lora = init_lora(jax.random.key(0), base.params, LoraConfig(rank=64))
    write = {
        "gguf": lambda: save_gguf(base.params, base, tmp_path / "out"),
        "hf": lambda: save_model(base.params, base, tmp_path / "out", "float32"),
        "peft": lambda: save_adapter(lora, 1.0, base, tmp_path / "out"),
    }[form]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageError) as refused:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = f"{tmp_path / 'out'}: a file is larger than its disk allows; nothing of it was left there: give the"
    assert str(refused.value).startswith(said) and [path.name for path in tmp_path.iterdir()] == ["base"]
    assert write().is_dir()


def test_what_gguf_cannot_hold_is_refused(tmp_path):
    tiny.save_checkpoint(tmp_path / "base", "mistral")
    base = load_model(tmp_path / "base")
    with pytest.raises(ValueError, match="dtype 'int4', expected one of float16, q8_0"):
        save_gguf(base.params, base, tmp_path / "out", "int4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["hf", "peft", "gguf"])
def test_round_trip_through_all_readers(base, tmp_path, form):
    require("torch")
    lora = adapter_for(base)

    def finish(directory):
        return round_trip.check_round_trip(directory, form, base, lora, 0.5, "float32")

    merged = merge_for_export(base, [(lora, 0.5)])
    if form == "hf":
        out = save_model(merged, base, tmp_path / "out", "float32", finish)
    elif form == "peft":
        out = save_adapter(lora, 0.5, base, tmp_path / "out", {}, finish)
    else:
        out = save_gguf(merged, base, tmp_path / "out", "float16", finish)
    record = json.loads((out / ("selfparam.json" if form == "peft" else "export.json")).read_text())
    readers = {"hf": ["selfparam_jax", "transformers"], "peft": ["selfparam_jax", "peft"], "gguf": ["selfparam_jax"]}
    assert list(record["found"]) == ["bound", *readers[form]]
    for reader in readers[form]:
        assert record["found"][reader]["max_token_kl"] < 1e-3
        assert record["found"][reader]["greedy_agreement"] > 0.97


def test_an_export_that_does_not_give_the_model_back_leaves_nothing(base, tmp_path):
    lora = adapter_for(base)
    other = merge_for_export(base, [(lora, -0.5)])
    with pytest.raises(ValueError, match=r"give the model back: read by selfparam_jax.*expected at most 0\.001"):
        save_model(
            other, base, tmp_path / "out", "float32",
            lambda directory: round_trip.check_round_trip(directory, "hf", base, lora, 0.5, "float32"),
        )  # fmt: skip
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_compare_logits_by_hand():
    one, other = np.log([[[0.5, 0.25, 0.25]]]), np.log([[[0.25, 0.5, 0.25]]])
    found = round_trip.compare_logits(one + 3.0, other)
    assert found == {"max_token_kl": pytest.approx(0.25 * np.log(2)), "greedy_agreement": 0.0, "tokens": 1}
    assert round_trip.compare_logits(one, one)["max_token_kl"] == 0.0
    assert round_trip.compare_logits(one, np.full_like(one, np.nan))["max_token_kl"] == float("inf")


def test_model_card():
    trip = {"bound": 1e-3, "selfparam_jax": {"max_token_kl": 2e-7, "greedy_agreement": 1.0, "tokens": 96}}
    trip["transformers"] = {"not_checked": "torch is not installed"}
    documents = [{"title": "A | B", "digest": "abc"}]
    scores = {"scores": {"injected": {"f1": 0.5}}, "drift": {"kl": 0.01}}
    card = write_card("peft", "org/base", "f" * 64, "apache-2.0", documents, {"seed": 1}, scores, trip)
    wanted = [
        "`org/base`",
        "apache-2.0",
        "| A \\| B | `abc` |",
        "| this model: F1 | 0.5 |",
        "| KL to the base on unrelated text, nats per token | 0.01 |",
    ]
    wanted += [
        "2.00e-07 nats, greedy agreement 100.0% of 96",
        "transformers: not read again: torch is not installed",
        '"seed": 1',
    ]
    for text in (*wanted, 'from_pretrained("org/base")'):
        assert text in card
    assert "GGUF" not in card
    ours = write_card("peft", "smollm2-135m-instruct", "f" * 64, "apache-2.0", [], {}, {}, {})
    assert (
        'from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in ours
        and "`smollm2-135m-instruct` is a GGUF" in ours
    )
    assert 'load_adapter(load_model("smollm2-135m-instruct"), "THIS_DIRECTORY")' in ours
    assert "not named in its files" in write_card("hf", "b", "f", "", [], {}, {}, {})
