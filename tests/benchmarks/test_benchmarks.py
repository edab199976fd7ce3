"""The speed benchmarks: the workload that all candidates read, our side of it, and the arithmetic of the tables."""

import dataclasses
import itertools

import jax
import numpy as np
import processes
import pytest
import tiny

from benchmarks import workload as workloads
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.models.lora import init_lora
from selfparam_jax.training import train_step
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer

speed, scaling = tiny.benchmark("speed"), tiny.benchmark("scaling")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model with a tokenizer, from a directory."""
    directory = tmp_path_factory.mktemp("model")
    tiny.save_checkpoint(directory, "gqa", max_position_embeddings=4096)
    return load_model(str(directory))


@pytest.fixture(scope="module")
def written(base, tmp_path_factory):
    """A small workload in a directory, its model beside it: (directory, content)."""
    directory = tmp_path_factory.mktemp("workload")
    contexts = [dataclasses.replace(context, text=context.text[:200]) for context in workloads.example_contexts(2, 4)]
    config = workloads.train_config(epochs=1, batch_size=8, seq_len=256)
    content = workloads.write_workload(directory, base, contexts, Prompt("plain", base.tokenizer), config)
    workloads.write_model(directory / "model", base)
    return directory, content


def test_contexts_of_the_examples():
    assert len(workloads.example_contexts(3)) == 3
    assert len(workloads.example_contexts(3)[0].qa_pairs) > 50
    many = workloads.example_contexts(40, 16)
    assert len({context.id for context in many}) == 40
    assert all(len(context.qa_pairs) == 16 for context in many)
    assert many[0].text == many[16].text == many[32].text
    turns = [set(many[n].qa_pairs) for n in (0, 16, 32)]
    assert not turns[0] & turns[1] and not turns[1] & turns[2] and not turns[0] & turns[2]


@pytest.mark.parametrize(("count", "pairs"), [(17, 0), (2, 1000), (200, 16)])
def test_more_contexts_than_the_examples_have_are_refused(count, pairs):
    with pytest.raises(ValueError, match="the examples have not enough"):
        workloads.example_contexts(count, pairs)


def test_a_workload_is_read_as_it_was_written(base, written):
    directory, content = written
    assert workloads.read_workload(directory) == files.read_json(directory / "workload.json") | files.read_json(
        directory / "packing.json"
    )
    contexts = [dataclasses.replace(context, text=context.text[:200]) for context in workloads.example_contexts(2, 4)]
    expected = workloads.make_sentences(contexts, Prompt("plain", base.tokenizer))
    found = workloads.read_sentences(workloads.read_workload(directory))
    assert [sentence.ids for sentence in found] == [sentence.ids for sentence in expected]
    assert [sentence.loss_tokens for sentence in found] == [sentence.loss_tokens for sentence in expected]
    assert sum(sentence.context is None for sentence in found) == 1  # a tenth of eight pairs
    assert all(weight == 1.0 for sentence in found for weight in (*sentence.weights, *sentence.supervision))
    assert [sorted(itertools.chain(*rows)) for rows in content["rows"]] == [sorted(step) for step in content["steps"]]
    assert sorted(itertools.chain(*content["steps"])) == list(range(len(found)))


def test_the_adapter_is_the_one_that_training_starts_from(base, written):
    lora = workloads.read_adapter(written[0])
    fresh = init_lora(jax.random.key(0), base.params, workloads.LORA)
    jax.tree.map(np.testing.assert_array_equal, lora, fresh)


def test_ours_and_the_naive_path_train_the_same(written, monkeypatch):
    """Whole processes, as the benchmark starts them, and the same numbers without them."""
    monkeypatch.setattr(workloads.subprocess, "run", processes.run_command)
    directory, content = written
    steps = len(content["steps"])
    found = {mode: workloads.run_child("benchmarks.ours", mode, directory, 0) for mode in ("ours", "naive", "pair")}
    for mode in ("ours", "naive"):
        assert len(found[mode]["step_s"]) == len(found[mode]["losses"]) == steps
        assert 0 < found[mode]["loaded_rss_bytes"] <= found[mode]["peak_rss_bytes"]
        assert found[mode]["start_s"] > 0 and found[mode]["compiled_programs"] > 0
    np.testing.assert_allclose(found["naive"]["losses"], found["ours"]["losses"], rtol=1e-5)
    assert found["ours"]["losses"][0] > 0
    assert len(found["pair"]["kl_step_s"]) == len(found["pair"]["finetune_step_s"]) == steps
    limited = workloads.run_child("benchmarks.ours", "ours", directory, 1, "--warm")
    assert limited["losses"] == found["ours"]["losses"][:1]


def test_both_candidates_of_decoding_make_the_same_tokens(model_dir):
    """Greedy and without a stop; rows of several lengths, which transformers pads and ours does not."""
    decoding = tiny.benchmark("decoding")
    ours = decoding.our_generate(str(model_dir), 3, 12)()
    assert [len(row) for row in ours] == [12] * 3
    assert ours == decoding.their_generate(str(model_dir), 3, 12, "float32")()
    assert decoding.equal_share(ours, ours) == 1.0
    assert decoding.equal_share([[1, 2], [3, 4]], [[1, 0], [3, 5]]) == 0.5


def test_total_seconds_by_hand():
    workload = {"steps": [[0, 1], [2, 3], [0, 2], [1, 3], [0, 4]]}
    measured = {"start_s": 1.0, "teacher_s": 10.0, "step_s": [7.0, 2.0, 4.0]}
    assert speed.total_seconds("ours", measured, workload) == 1.0 + 10.0 + 7.0 + 4 * 3.0
    # The kept teacher has read the four sentences of three steps; there are five.
    assert speed.total_seconds("torch_cached", measured, workload) == 1.0 + 12.5 + 7.0 + 4 * 3.0


def test_largest_difference_by_hand():
    runs = {"ours": [{"losses": [2.0, 1.0, 4.0]}], "torch": [{"losses": [2.0, 1.01]}, {"losses": [2.1]}]}
    assert speed.largest_difference(runs) == pytest.approx(0.05)
    runs["torch"][1]["losses"] = []
    assert speed.largest_difference(runs) == pytest.approx(0.01)


def test_cost_per_context_by_hand():
    measured = {"teacher_s": 8.0, "step_s": [9.0, 1.0, 3.0, 2.0], "loaded_rss_bytes": 5, "peak_rss_bytes": 7}
    slower = measured | {"teacher_s": 12.0, "step_s": [9.0, 4.0]}
    workload = {"steps": [[0, 5]] * 10, "sentences": [{"ids": [7] * n} for n in range(1, 7)], "fill": 0.9}
    assert scaling.cost_per_context([measured, slower], workload, 4)["s_per_context"] == (10.0 + 30.0) / 4
    found = scaling.cost_per_context([measured, measured, slower], workload, 4)
    assert found["step_s"] == 2.0
    assert (found["sentence_tokens"], found["ms_per_token"]) == (70, 400.0)
    assert (found["teacher_s_per_context"], found["train_s_per_context"], found["s_per_context"]) == (2.0, 5.0, 7.0)


def test_what_a_further_context_costs_by_hand():
    """3 s once and 2 s each."""
    found = scaling.s_per_further_context({"1": {"s_per_context": 5.0}, "4": {"s_per_context": 11 / 4}})
    assert found == {"4": pytest.approx(2.0)}


def test_the_memory_of_the_loss_does_not_follow_the_positions(tiny_model):
    config = dataclasses.replace(tiny_model.config, vocab_size=4096)
    few, many = (scaling.loss_memory(config, positions, chunked=True) for positions in (256, 2048))
    logits = 2048 * 4096 * 4
    assert many - few < 0.1 * logits
    assert scaling.loss_memory(config, 2048, chunked=False) > logits


def test_the_memory_of_a_step(tiny_model):
    plain, again = (scaling.step_memory(tiny_model.config, remat) for remat in ("none", "layers"))
    assert plain["weights_bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(tiny_model.params))
    assert plain["chunk_bytes"] == 128 * tiny_model.config.vocab_size * 4
    optimizer = make_optimizer(TrainConfig(), 1)
    lora = init_lora(jax.random.key(0), tiny_model.params, workloads.LORA)
    state = train_step.init_state(lora, optimizer)
    assert plain["adapter_and_optimizer_bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert again["reserved_bytes"] < plain["reserved_bytes"]


def test_filling_by_hand():
    filling = tiny.benchmark("filling")
    padded, buckets, packed = filling.count([10, 16, 17, 60], packed=0.8)
    assert (padded[1], buckets[1], packed[1]) == (4 * 60 / 103, (16 + 16 + 32 + 64) / 103, 1.25)
    assert (padded[2], buckets[2], packed[2]) == (1, 3, 1)


def test_options(base, monkeypatch):
    """Options train on the same rows; those that change nothing but memory have the same losses."""
    options = tiny.benchmark("options")
    monkeypatch.setattr(options, "GENERAL", 2)
    shortened = [dataclasses.replace(each, text=each.text[:200]) for each in workloads.example_contexts(1, 24)]
    monkeypatch.setattr(options, "example_contexts", lambda count: shortened)

    def load(option):
        params = jax.tree.map(lambda leaf: leaf.astype(option.dtype), base.params)
        params = tiny.rounded(params) if option.int8 else params
        return dataclasses.replace(base, params=params, matmul_precision=option.matmul)

    assert list(options.chosen(["accumulate=2"], 4)) == ["remat=none", "train.accumulate=2"]
    assert list(options.chosen(["accumulate"], 2)) == ["remat=none", "train.accumulate=2"]
    there = options.chosen([], 4)
    assert len(there) == len(options.OPTIONS) - 2  # neither cuDNN nor a TPU's kernel on a CPU
    same = ("layers apart", "remat=layers", "train.accumulate=4", "attention=xla")
    others = ("remat=none", "matmul_precision=bfloat16", "base_weights=int8", "dtype=bfloat16")
    wanted = {name: there[name] for name in (*others[:1], *same, *others[1:])}
    rows = {row["option"]: row for row in options.measure(wanted, load, 2, rows=4, length=128)}
    for name in same:
        assert rows[name]["loss_difference"] < 1e-5, name
        assert rows[name]["kl_to_float32"] < 1e-9
    assert rows["remat=layers"]["reserved_bytes"] < rows["remat=none"]["reserved_bytes"]
    assert rows["train.accumulate=4"]["reserved_bytes"] < rows["remat=none"]["reserved_bytes"]
    assert 1e-6 < rows["base_weights=int8"]["kl_to_float32"] < 1e-2
    # Nothing of the base is kept in float for the backward pass.
    assert rows["base_weights=int8"]["reserved_bytes"] < 1.02 * rows["remat=none"]["reserved_bytes"]
    assert rows["base_weights=int8"]["base_bytes"] < rows["remat=none"]["base_bytes"]
    assert 0 < rows["matmul_precision=bfloat16"]["loss_difference"] < 1e-2
    assert 0 < rows["matmul_precision=bfloat16"]["kl_to_float32"] < rows["base_weights=int8"]["kl_to_float32"]
    assert rows["dtype=bfloat16"]["base_bytes"] == rows["remat=none"]["base_bytes"] / 2
    assert len(options.table(list(rows.values())).splitlines()) == 2 + len(rows)
