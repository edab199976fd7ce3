"""Comparisons: numbers by hand on small matrices, models against themselves, and the command on tiny runs."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from configs import base
from selfparam_jax import compare, evaluate, files, jobs
from selfparam_jax.compare import Factors, compare_factors, factor_dense, factor_low_rank
from selfparam_jax.compare.__main__ import compare_models, main
from selfparam_jax.compare.contenders import adapter_contender, find_run, model_contender
from selfparam_jax.compare.pages import comparison_page, write_comparison
from selfparam_jax.ledger import Ledger, write_composed
from selfparam_jax.lora import MODULES, LoraConfig, init_lora, merge_lora
from selfparam_jax.model import Decoder, apply_head, head_weight
from selfparam_jax.prompts import Prompt

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXTS = ["The hand in the land.", "12 ants and an inn, and then the other one as well.", "Then: and."]


def product(factors):
    return factors.left @ np.diag(factors.values) @ factors.right.T


def low_rank(rank, inputs=12, outputs=9, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((inputs, rank)), rng.standard_normal((rank, outputs))


# --- deltas -------------------------------------------------------------------------------------------


def test_norm_and_effective_rank_by_hand():
    factors = factor_dense(np.array([[0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]))
    np.testing.assert_allclose(factors.values, [4, 3])
    assert factors.norm == pytest.approx(5.0)
    entropy = -(3 / 7 * np.log(3 / 7) + 4 / 7 * np.log(4 / 7))
    assert factors.effective_rank == pytest.approx(np.exp(entropy))
    assert factor_dense(np.eye(3)).effective_rank == pytest.approx(3.0)
    assert factor_dense(np.ones((4, 6))).effective_rank == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (5, 5)])
def test_dense_factors_are_a_singular_value_decomposition(shape):
    delta = np.random.default_rng(0).standard_normal(shape)
    factors = factor_dense(delta)
    np.testing.assert_allclose(product(factors), delta, atol=1e-12)
    np.testing.assert_allclose(factors.values, np.linalg.svd(delta, compute_uv=False))
    for side in (factors.left, factors.right):
        np.testing.assert_allclose(side.T @ side, np.eye(factors.rank), atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 11])  # the last is above what the product can have
def test_the_low_rank_path_is_the_dense_path(rank):
    a, b = low_rank(rank)
    thin, dense = factor_low_rank(a, b), factor_dense(a @ b)
    assert thin.rank == dense.rank == min(rank, 9)
    np.testing.assert_allclose(thin.values, dense.values, rtol=1e-9)
    np.testing.assert_allclose(product(thin), a @ b, atol=1e-12)
    other = factor_dense(np.random.default_rng(1).standard_normal((12, 9)))
    assert compare_factors(thin, other) == pytest.approx(compare_factors(dense, other), rel=1e-8)
    itself = compare_factors(thin, dense)
    assert [itself[name] for name in ("cosine", "overlap_in", "overlap_out")] == pytest.approx([1.0, 1.0, 1.0])


def test_what_rounding_leaves_has_no_rank():
    a, b = low_rank(3, seed=2)
    noise = np.random.default_rng(3).standard_normal((12, 9))
    assert factor_dense(a @ b + 1e-8 * noise).rank == 3
    assert factor_dense(a @ b + 1e-3 * noise).rank == 9


def test_cosines_by_hand():
    one, other = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    assert compare_factors(factor_dense(one), factor_dense(other))["cosine"] == pytest.approx(0.5**0.5)
    assert compare_factors(factor_dense(one), factor_dense(-one))["cosine"] == pytest.approx(-1.0)
    assert compare_factors(factor_dense(one), factor_dense(np.eye(2) - one))["cosine"] == pytest.approx(0.0)
    x, y = (np.random.default_rng(seed).standard_normal((4, 6)) for seed in (0, 1))
    assert compare_factors(factor_dense(x), factor_dense(y))["inner"] == pytest.approx(np.sum(x * y))


def test_overlaps_by_hand():
    """Inputs: two planes that share an axis. Outputs: two lines 60 degrees apart, in another pair."""
    axes = np.eye(4)
    one = Factors(axes[:, [0, 1]], np.array([2.0, 1.0]), axes[:, [0, 1]])
    other = Factors(axes[:, [0, 2]], np.array([5.0, 1.0]), axes[:, [2, 3]])
    found = compare_factors(one, other)
    assert (found["directions"], found["chance_in"]) == (2, 0.5)
    assert (found["overlap_in"], found["overlap_out"]) == pytest.approx((0.5, 0.0))
    turned = np.array([[0.5], [0.75**0.5], [0], [0]])
    found = compare_factors(one, Factors(axes[:, [0]], np.array([1.0]), turned))
    # Of the plane, the direction with the larger value is taken: one against one.
    assert (found["directions"], found["overlap_in"], found["overlap_out"]) == (1, 1.0, pytest.approx(0.25))


def test_overlap_looks_at_the_largest_directions_only():
    axes, values = np.eye(20), np.arange(10, 0, -1.0)
    one = Factors(axes[:, :10], values, axes[:, :10])
    other = Factors(axes[:, [*range(8), 10, 11]], values, axes[:, [*range(7), 12, 13, 14]])
    found = compare_factors(one, other)
    assert found["directions"] == compare.OVERLAP_RANK == 8
    assert (found["overlap_in"], found["overlap_out"], found["chance_in"]) == (1.0, 7 / 8, 0.4)


NOTHING = [factor_dense(np.zeros((4, 6))), factor_low_rank(np.ones((4, 2)), np.zeros((2, 6)))]


@pytest.mark.parametrize("nothing", NOTHING, ids=["dense", "low rank"])
def test_no_delta_has_no_angle(nothing):
    assert (nothing.rank, nothing.norm, nothing.effective_rank) == (0, 0.0, 0.0)
    found = compare_factors(nothing, factor_dense(np.ones((4, 6))))
    assert found == {"inner": 0.0, "cosine": None, "directions": 0} | dict.fromkeys(
        ("overlap_in", "chance_in", "overlap_out", "chance_out")
    )


LORA = LoraConfig(rank=2, alpha=6.0, targets=("q_proj", "down_proj"))


def adapter(tiny_model, seed=0):
    """Zero nowhere."""
    fresh = init_lora(jax.random.key(seed), tiny_model.params, LORA)
    leaves, tree = jax.tree.flatten(fresh)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves])


def dense_delta(lora, module, layer):
    pair = lora["layers"][MODULES[module]][module]
    return LORA.scale * np.asarray(pair["a"][layer], np.float64) @ np.asarray(pair["b"][layer], np.float64)


def test_deltas_kernel_by_kernel(tiny_model):
    """Adapter, the same merged, and another adapter; against NumPy on whole matrices."""
    loras = adapter(tiny_model), adapter(tiny_model, seed=1)
    merged = dataclasses.replace(tiny_model, params=merge_lora(tiny_model.params, loras[0], LORA.scale))
    contenders = [
        adapter_contender("one", tiny_model, loras[0], LORA.scale),
        model_contender("merged", tiny_model, merged),
        adapter_contender("other", tiny_model, loras[1], LORA.scale),
    ]
    assert contenders[1].outside == {} and contenders[1].notes == ()
    ticks = []
    alone, together = compare.measure_deltas(contenders, tiny_model.params, lambda: ticks.append(1))
    assert len(ticks) == len(alone[0]) == 7 * 3
    for n, (one, same, pair) in enumerate(zip(alone[0], alone[1], together[0, 2], strict=True)):
        module, layer = one["module"], one["layer"]
        assert (module, layer) == compare.kernels_of(tiny_model.params)[n]
        if module not in LORA.targets:
            assert (one["norm"], same["norm"], pair["cosine"]) == (0.0, 0.0, None)
            continue
        mine, theirs = (dense_delta(lora, module, layer) for lora in loras)
        kernel = np.asarray(tiny_model.params["layers"][MODULES[module]][module]["kernel"])
        assert one["norm"] == pytest.approx(np.linalg.norm(mine), rel=1e-5)
        assert one["relative"] == pytest.approx(np.linalg.norm(mine) / np.linalg.norm(kernel[layer]), rel=1e-5)
        assert (one["rank"], one["effective_rank"]) == (2, pytest.approx(same["effective_rank"], rel=1e-3))
        cosine = np.sum(mine * theirs) / np.linalg.norm(mine) / np.linalg.norm(theirs)
        assert pair["cosine"] == pytest.approx(cosine, abs=1e-6)
        for name in ("cosine", "overlap_in", "overlap_out"):
            assert together[0, 1][n][name] == pytest.approx(1.0, abs=1e-5)
    totals = [compare.total_delta(records) for records in alone]
    whole = [
        np.concatenate([dense_delta(lora, module, layer).ravel() for module in LORA.targets for layer in range(3)])
        for lora in loras
    ]
    assert totals[0]["norm"] == pytest.approx(np.linalg.norm(whole[0]), rel=1e-5)
    total = compare.total_pair(together[0, 2], totals[0]["norm"], totals[2]["norm"])
    cosine = whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    assert total["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert total["chance_in"] == pytest.approx(np.mean([2 / 32, 2 / 48]))


def test_totals_by_hand():
    records = [
        {"norm": 3.0, "kernel_norm": 6.0, "rank": 2, "effective_rank": 2.0},
        {"norm": 4.0, "kernel_norm": 8.0, "rank": 1, "effective_rank": 1.0},
        {"norm": 0.0, "kernel_norm": 0.0, "rank": 0, "effective_rank": 0.0},
    ]
    assert compare.total_delta(records) == {"norm": 5.0, "relative": 0.5, "effective_rank": 1.5}


def test_a_delta_that_is_not_finite_is_named(tiny_model):
    lora = adapter(tiny_model)
    lora["layers"]["mlp"]["down_proj"]["b"] = lora["layers"]["mlp"]["down_proj"]["b"].at[2, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="broken, down_proj of layer 2: got values that are not finite"):
        compare.measure_deltas([adapter_contender("broken", tiny_model, lora, 1.0)], tiny_model.params)


def test_what_differs_outside_the_kernels_is_reported(tiny_model):
    params = jax.tree.map(lambda x: x, tiny_model.params)
    params["norm"]["weight"] = params["norm"]["weight"].at[3].add(0.5)
    params["lm_head"]["weight"] = params["lm_head"]["weight"] * 1.25
    other = tiny.tokenizer()
    other.add_tokens(["<new>"])
    changed = dataclasses.replace(tiny_model, params=params, tokenizer=other)
    found = model_contender("x", tiny_model, changed)
    assert set(found.outside) == {"norm/weight", "lm_head/weight"}
    assert found.outside["norm/weight"][0] == pytest.approx(0.5)
    norm, before = found.outside["lm_head/weight"]
    assert norm / before == pytest.approx(0.25)
    assert "norm/weight, lm_head/weight" in " ".join(found.notes) and "tokenizer" in found.notes[0]


def test_another_architecture_is_refused(tiny_model):
    other = dataclasses.replace(tiny_model, config=dataclasses.replace(tiny_model.config, rope_theta=5000.0))
    with pytest.raises(
        ValueError, match=r"(?s)far has another arch.*rope_theta: 5000\.0 in it, 10000\.0 in the base\n"
    ):
        model_contender("far", tiny_model, other)


# --- distributions ------------------------------------------------------------------------------------


def test_divergences_by_hand(tiny_model):
    """The base, an adapter beside it, and a model with a sharper head of its own."""
    prompt, model = Prompt("plain", tiny_model.tokenizer), Decoder(tiny_model.config)
    lora = adapter(tiny_model)
    sharp = tiny_model.params | {"lm_head": {"weight": 3.0 * tiny_model.params["lm_head"]["weight"]}}
    everyone = [
        {"params": tiny_model.params},
        adapter_contender("a", tiny_model, lora, LORA.scale).variables,
        {"params": sharp},
    ]
    found, tokens = compare.divergences(model, everyone, prompt, TEXTS)
    rows = [[*prompt.head, *prompt.text(text)] for text in TEXTS]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)  # what follows a text changes nothing before it
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32)[None], ids.shape)
    scored = [(n, t) for n, row in enumerate(rows) for t in range(len(prompt.head), len(row) - 1)]
    logs = []
    for variables in everyone:
        hidden, _ = jax.jit(model.apply)(variables, ids, positions, np.ones_like(ids))
        log_probabilities = jax.nn.log_softmax(apply_head(hidden, head_weight(variables["params"])))
        logs.append(np.asarray(log_probabilities, np.float64)[tuple(np.transpose(scored))])
    wanted = np.array([[np.mean(np.sum(np.exp(p) * (p - q), axis=-1)) for q in logs] for p in logs])
    assert tokens == len(scored)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert (np.diag(found) == 0).all()
    assert found[0, 2] != pytest.approx(found[2, 0], rel=0.1)
    general = evaluate.read_general(model, everyone[0], prompt, TEXTS)
    learned = {"params": tiny_model.params, "lora": lora}
    drift = evaluate.measure_drift(model.clone(lora_scale=LORA.scale), general, learned)
    assert (found[0, 1], tokens) == (pytest.approx(drift["kl"], rel=1e-4), drift["tokens"])


# --- answers ------------------------------------------------------------------------------------------


def predictions(scores):
    """Records of {context: F1s}."""
    return [
        {
            "context": context,
            "question": f"{context}, {n}?",
            "answers": ["gold"],
            "injected": {"answer": f"says {f1}", "f1": f1, "em": float(f1 == 1), "contains": f1, "f1_paper": f1},
        }
        for context, values in scores.items()
        for n, f1 in enumerate(values)
    ]


def test_answers_by_hand():
    one = predictions({"a": [1.0, 0.0, 0.4], "b": [0.5]})
    other = predictions({"a": [0.2, 0.5, 0.4], "b": [0.49]})
    found = compare.compare_answers(one, other[::-1])  # the order of the files does not matter
    assert found["f1"] == pytest.approx(((-0.8 + 0.5 + 0.0) / 3 - 0.01) / 2)
    low, high = found["f1_ci95"]
    assert low < found["f1"] < high
    asked = {"context": "a", "question": "a, 1?", "answers": ["gold"]}
    assert found["gained"] == [asked | {"before": "says 0.0", "after": "says 0.5"}]
    assert [flip["question"] for flip in found["lost"]] == ["a, 0?", "b, 0?"]
    assert compare.score_answers(one)["f1"] == pytest.approx((1.4 / 3 + 0.5) / 2)


def test_the_same_answers_differ_by_nothing():
    one = predictions({"a": [1.0, 0.0], "b": [0.3]})
    assert compare.compare_answers(one, one) == {"f1": 0.0, "f1_ci95": [0.0, 0.0], "gained": [], "lost": []}


def test_a_paired_interval_is_narrower_where_the_same_questions_are_hard():
    rng = np.random.default_rng(0)
    hard = {f"c{n}": rng.random(6) for n in range(12)}
    one = predictions({name: list(values) for name, values in hard.items()})
    other = predictions({name: list(values + 0.05 * rng.random(6) - 0.02) for name, values in hard.items()})
    low, high = compare.compare_answers(one, other)["f1_ci95"]
    sums = [compare.score_answers(each)["f1_ci95"] for each in (one, other)]
    unpaired = np.hypot(sums[0][1] - sums[0][0], sums[1][1] - sums[1][0])
    assert 0 < high - low < 0.2 * unpaired


@pytest.mark.parametrize(
    "other",
    [
        predictions({"a": [1.0], "b": [0.5]}),
        predictions({"a": [1.0, 0.0], "c": [0.5]}),
        [{**record, "answers": ["silver"]} for record in predictions({"a": [1.0, 0.0], "b": [0.5]})],
    ],
)
def test_different_questions_are_refused(other):
    with pytest.raises(ValueError, match=r"asked different questions: got 3 and \d"):
        compare.compare_answers(predictions({"a": [1.0, 0.0], "b": [0.5]}), other)


# --- the command --------------------------------------------------------------------------------------


def documents(name):
    asked = [
        {"question": f"Who founded {name}?", "answers": ["Lu Ka"]},
        {"question": "Which river?", "answers": ["Om"]},
    ]
    pairs = [{"question": "Which river runs there?", "answer": "Om"}, {"question": "By whom?", "answer": "Lu Ka"}]
    text = f"{name} lies on the Om. It was founded by Lu Ka."
    return {"id": name.lower(), "title": name, "context": text, "questions": asked, "qa_pairs": pairs}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the model, two finished batch runs of it (of other seeds), and one of job single."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.save_checkpoint(folder / "model", "gqa", max_position_embeddings=2048)
    config = base.get_config()
    config.model, config.prompt, config.export_dtype = str(folder / "model"), "plain", "float32"
    config.contexts = write(folder / "documents.jsonl", [documents("Ava"), documents("Bor")])
    config.unrelated = config.eval.general = write(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    config.targets.unrelated_per_epoch = 2
    config.train.update(epochs=24, batch_rows=8, row_length=64, learning_rate=1e-2, checkpoint_every=4)
    jobs.run_job(config, str(folder / "one"))
    config.seed, config.train.epochs = 1, 16
    jobs.run_job(config, str(folder / "two"))
    config.job, config.train.epochs = "single", 1
    jobs.run_job(config, str(folder / "each"))
    return folder


@pytest.fixture
def inside(runs, monkeypatch):
    monkeypatch.chdir(runs)


def test_two_runs(runs, inside, tmp_path, capsys):
    main(["one", "two", f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    record = files.read_json(tmp_path / "out" / "compare.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.json", "compare.md", "norms.png", "pairs.png",
    ]  # fmt: skip
    for name in ("norms.png", "pairs.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    kl, results = (
        np.array(record["kl"]["mean_per_token"]),
        [files.read_json(runs / n / "results.json") for n in ("one", "two")],
    )
    assert record["kl"]["order"] == ["base", "A", "B"]
    for number, (contender, result) in enumerate(zip(record["contenders"], results, strict=True), start=1):
        assert kl[0, number] == pytest.approx(result["drift"]["kl"], rel=1e-4)
        assert contender["answers"]["f1"] == pytest.approx(result["scores"]["injected"]["f1"])
        assert contender["delta"]["norm"] > 0.1 and contender["outside"] == {}
    assert record["probe"] == {
        "source": str(runs / "texts.jsonl"), "prompt": "plain", "texts": 3, "tokens": results[0]["drift"]["tokens"],
    }  # fmt: skip
    (pair,) = record["pairs"]
    difference = results[1]["scores"]["injected"]["f1"] - results[0]["scores"]["injected"]["f1"]
    assert pair["answers"]["f1"] == pytest.approx(difference) and pair["answers_note"] is None
    assert -1 < pair["cosine"] < 0.99 and pair["modules"]["o_proj"]["cosine"] is None
    assert len(pair["kernels"]) == 21
    page = (tmp_path / "out" / "compare.md").read_text()
    assert printed.splitlines()[0] in page and f"{kl[0, 1]:.3g}" in printed.splitlines()[2]
    assert f"| A, B | {pair['cosine']:.4f} |" in page
    record["kl"]["mean_per_token"] = [[0, 1, 2], [3, 0, 4], [5, 6, 0]]
    ranks = [f"{contender['delta']['effective_rank']:.2f}" for contender in record["contenders"]]
    page = comparison_page(record)
    assert f"| {ranks[0]} | 1 | 3 |" in page and f"| {ranks[1]} | 2 | 5 |" in page and ") | 4 | 6 |" in page


def test_a_merged_export_is_the_run(runs, inside):
    """And a model compared with itself, the base, is nothing at all."""
    record = compare_models(["one", "one/merged", "model"])
    run, export, model = record["contenders"]
    assert (export["outside"], export["notes"]) == ({}, [])
    assert export["delta"]["norm"] == pytest.approx(run["delta"]["norm"], rel=1e-5)
    assert export["delta"]["effective_rank"] == pytest.approx(run["delta"]["effective_rank"], rel=1e-2)
    same = record["pairs"][0]
    assert [same[name] for name in ("cosine", "overlap_in", "overlap_out")] == pytest.approx([1, 1, 1], abs=1e-4)
    assert same["answers"] is None and same["answers_note"] is None
    kl = np.array(record["kl"]["mean_per_token"])
    assert kl[1, 2] < 1e-6 and kl[2, 1] < 1e-6 < kl[0, 1]
    assert model["delta"] == {"norm": 0.0, "relative": 0.0, "effective_rank": 0.0}
    assert kl[0, 3] == kl[3, 0] == 0.0 and record["pairs"][1]["cosine"] is None
    assert "| C | model | 0 | 0.00 % | 0.00 | 0 | 0 | – | – |" in comparison_page(record)


def test_a_checkpoint_and_one_injection_of_single(runs, inside, tmp_path):
    last = find_run("one").step
    kept = sorted(int(path.name) for path in (runs / "one" / "checkpoints").iterdir())
    assert len(kept) == 2 and kept[-1] == last
    assert find_run(f"one@{last}").predictions == find_run("one").predictions != None  # noqa: E711
    assert find_run(f"one@{kept[0]}").predictions is None
    injection = find_run("each/contexts/001")
    assert {record["context"] for record in injection.predictions} == {"bor"}
    assert len(injection.predictions) == 2
    texts = tmp_path / "probe.txt"
    texts.write_text("Bread needs salt.")
    record = compare_models([f"one@{kept[0]}", "each/contexts/001", "one"], probe=str(texts))
    early, single, late = record["contenders"]
    assert 0 < early["delta"]["norm"] != late["delta"]["norm"]
    assert 0.5 < record["pairs"][1]["cosine"] < 1 - 1e-6
    assert (early["answers"], single["answers"]["f1"]) == (None, pytest.approx(mean_f1(injection.predictions)))
    assert "different questions: got 2 and 4" in record["pairs"][2]["answers_note"]
    assert record["probe"]["texts"] == 1
    write_comparison(record, tmp_path / "out")
    assert "B and C: they were asked different questions" in (tmp_path / "out" / "compare.md").read_text()


def test_a_ledger_after_some_of_its_injections(runs, inside, tiny_model):
    record = files.read_json(runs / "one" / "config.json")
    record["config"]["job"] = "sequential"
    (runs / "course" / "sequences" / "000").mkdir(parents=True)
    files.write_json(runs / "course" / "config.json", record)
    ledger = Ledger.open(runs / "course" / "sequences" / "000" / "ledger", record["base_fingerprint"])
    loras = adapter(tiny_model), adapter(tiny_model, seed=1)
    for lora in loras:
        ledger.append("x", "", "", {}, lora, LORA.scale)
    found = compare_models(["course/sequences/000@1", "course/sequences/000"], base="model")
    deltas = [[dense_delta(lora, "q_proj", layer) for layer in range(3)] for lora in loras]
    for contender, wanted in zip(found["contenders"], (deltas[0], np.add(*deltas)), strict=True):
        assert contender["modules"]["q_proj"]["norm"] == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
    assert found["kl"]["mean_per_token"][0][1] != found["kl"]["mean_per_token"][0][2]
    assert {kernel["rank"] for kernel in found["contenders"][1]["kernels"]} == {0, 4}
    assert [contender["answers"] for contender in found["contenders"]] == [None, None]
    with pytest.raises(ValueError, match="several models; give one, such as course/sequences/000"):
        find_run("course")
    with pytest.raises(ValueError, match=r"got step 3, expected one of \[1, 2\]"):
        find_run("course/sequences/000@3")


def test_a_composed_adapter_is_the_sum_of_its_entries(runs, inside, tmp_path, tiny_model):
    fingerprint = files.read_json(runs / "one" / "config.json")["base_fingerprint"]
    ledger = Ledger.open(tmp_path / "ledger", fingerprint)
    loras = adapter(tiny_model), adapter(tiny_model, seed=1)
    ids = [ledger.append("x", "", "", {}, lora, LORA.scale).id for lora in loras]
    write_composed(tmp_path / "both", ledger, ids)
    found = compare_models([str(tmp_path / "both"), "one"])["contenders"][0]
    deltas = [np.add(*(dense_delta(lora, "q_proj", layer) for lora in loras)) for layer in range(3)]
    assert found["modules"]["q_proj"]["norm"] == pytest.approx(np.linalg.norm(deltas), rel=1e-5)
    foreign = Ledger.open(tmp_path / "foreign", "0" * 64)
    write_composed(tmp_path / "other", foreign, [foreign.append("x", "", "", {}, loras[0], 1.0).id])
    with pytest.raises(ValueError, match="stands on a base with fingerprint 000000000000, but the base is"):
        compare_models([str(tmp_path / "other"), "one"])
    (tmp_path / "both" / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"both/adapter\.safetensors cannot be read"):
        compare_models([str(tmp_path / "both"), "one"])
    (tmp_path / "both" / "adapter.json").write_text("[]")
    with pytest.raises(ValueError, match='expected "base_fingerprint" and "scale"'):
        compare_models([str(tmp_path / "both"), "one"])


def test_every_model_can_be_asked_anew(runs, inside, tmp_path):
    """What a run kept is what it answers now; its export and an early checkpoint, which kept nothing, answer too."""
    kept = sorted(int(path.name) for path in (runs / "one" / "checkpoints").iterdir())
    sources = ["one", "one/merged", f"one@{kept[0]}", "model"]
    record = compare_models(sources, questions="documents.jsonl")
    results = files.read_json(runs / "one" / "results.json")["scores"]
    scores = [contender["answers"] for contender in record["contenders"]]
    assert scores[0] == scores[1] == results["injected"] and scores[3] == results["base_q"]
    assert scores[2] is not None
    pairs = {(pair["a"], pair["b"]): pair["answers"] for pair in record["pairs"]}
    assert pairs["A", "B"]["f1"] == 0.0 and not pairs["A", "B"]["gained"]
    assert pairs["A", "D"]["f1"] == pytest.approx(results["base_q"]["f1"] - results["injected"]["f1"])
    # Of other questions than those that were kept: the second document's alone.
    other = write(tmp_path / "bor.jsonl", [documents("Bor")])
    found = compare_models(["one", "two"], questions=other)
    assert found["contenders"][0]["answers"] != scores[0]
    nothing = write(tmp_path / "none.jsonl", [{**documents("Bor"), "questions": []}])
    with pytest.raises(ValueError, match="no context has questions"):
        compare_models(["one", "two"], questions=nothing)


def test_answers_of_a_sequence(tmp_path):
    """Those after as many injections as are compared, of its own contexts; none after one was taken out."""
    workdir = tmp_path / "run"
    second = workdir / "sequences" / "001"
    second.mkdir(parents=True)
    files.write_json(workdir / "config.json", {"base_fingerprint": "f", "config": {"job": "sequential"}})
    files.write_json(workdir / "results.json", {"per_context": [{"id": name} for name in "abcd"]})
    asked = [{"context": name, "question": f"{name}{n}?", "injected": {"f1": 0.0}} for name in "abcd" for n in (1, 2)]
    files.write_lines(workdir / "predictions.jsonl", asked)
    ledger = Ledger.open(second / "ledger", "f")
    lora = {
        "layers": {"mlp": {"up_proj": {"a": np.ones((1, 2, 1), np.float32), "b": np.ones((1, 1, 2), np.float32)}}}
    }
    entries = [ledger.append(name, "", "", {}, lora, 1.0) for name in "cd"]
    for step in range(3):
        answers = [[{"f1": 0.1 * step + 0.01 * c} for _ in (1, 2)] for c in range(2)]
        (second / "examinations").mkdir(exist_ok=True)
        files.write_json(second / "examinations" / f"{step:03d}.json", {"answers": answers})
    for source, step in ((second, 2), (f"{second}@1", 1)):
        found = find_run(str(source)).predictions
        assert [record["question"] for record in found] == ["c1?", "c2?", "d1?", "d2?"]
        expected = [0.1 * step, 0.1 * step, 0.1 * step + 0.01, 0.1 * step + 0.01]
        assert [record["injected"]["f1"] for record in found] == pytest.approx(expected)
    ledger.undo(entries[0].id)
    assert find_run(str(second)).predictions is None


def mean_f1(records):
    return np.mean([record["injected"]["f1"] for record in records])


def test_flips_notes_and_no_probe_are_in_the_page(runs, inside, tmp_path):
    """An embedding of another scale, a question that would break a table, and models without general text."""
    changed = tmp_path / "changed"
    shutil.copytree(runs / "model", changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * np.float32(1.5)
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    record = compare_models([str(changed), "model"], base="model")
    assert (record["kl"], record["probe"], record["contenders"][0]["answers"]) == (None, None, None)
    assert record["contenders"][0]["outside"]["embed_tokens/embedding"]["relative"] == pytest.approx(0.5)
    one, other = predictions({"a": [0.0] * 25}), predictions({"a": [1.0] * 25})
    for records in (one, other):
        records[0]["question"] = "Is a | b\nor `c`?"
    record["pairs"][0]["answers"] = compare.compare_answers(one, other)
    write_comparison(record, tmp_path / "out")
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "KL was not measured" in page
    assert "| A | `embed_tokens/embedding` |" in page and "| 50.00 % |" in page
    assert "25 that B has right and A does not" in page and "The first 20" in page
    assert page.count("| gold | says 0.0 | says 1.0 |") == 20
    assert r"Is a \| b or \`c\`?" in page


BAD = {
    "twice": (["one", "two", "one"], "got 'one' twice"),
    "alone": (["one"], "got 1 models, expected 2 to 26"),
    "missing": (["one", "/nowhere/run"], "'/nowhere/run' is no work directory, and as a model"),
    "no base": (["model", "one/merged"], "give --base=MODEL"),
    "single as a whole": (["one", "each"], "of job 'single', which has several models; .*each/contexts/000"),
    "no such step": (["one", "two@1"], r"two@1: got step 1, expected one of \[\d+, \d+\]"),
    "a step of a model": (["one", "model@3"], "model is not a work directory"),
    "no checkpoint": (["one", "begun"], "begun has no complete checkpoint"),
    "another base": (["one", "moved"], "moved was made from .* compare runs of one base"),
    "another architecture": (["one", "mha"], r"(?s)mha has another architecture.*num_key_value_heads: 4 in it, 2 in"),
    "no probe": (["one", "two", "--probe=nothing.txt"], "nothing.txt"),
    "a file as a folder": (["one", "two", "--out=texts.jsonl"], "is a file, expected a directory"),
}


@pytest.fixture(scope="module")
def bad_runs(runs):
    for name in ("begun", "moved"):
        (runs / name).mkdir()
        record = files.read_json(runs / "one" / "config.json")
        if name == "moved":
            record["base_fingerprint"] = "0" * 64
            shutil.copytree(runs / "one" / "checkpoints", runs / "moved" / "checkpoints")
        files.write_json(runs / name / "config.json", record)
    tiny.save_checkpoint(runs / "mha", "mha", max_position_embeddings=2048)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(bad_runs, inside, tmp_path, capsys, case):
    arguments, words = BAD[case]
    out = [] if any(each.startswith("--out") for each in arguments) else [f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *out])
    assert stop.value.code == 1
    error = capsys.readouterr().err.rpartition("error: ")[2]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(error)
    assert not (tmp_path / "out").exists()


def test_python_m(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "selfparam_jax.compare", "a", "a"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: got 'a' twice, expected different models; name each once\n")
    assert not list(tmp_path.iterdir())
