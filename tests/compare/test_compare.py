"""Comparisons: numbers by hand on small matrices, and models in memory against each other."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison_inputs import LORA, adapter, dense_delta, predictions

from selfparam_jax.compare.answers import compare_answers, score_answers
from selfparam_jax.compare.candidates import ModelSet, adapter_candidate, kernels_of, model_candidate
from selfparam_jax.compare.comparison import compare_models, count_steps
from selfparam_jax.compare.deltas import measure_deltas, total_delta, total_pair
from selfparam_jax.compare.divergences import divergences
from selfparam_jax.compare.factors import OVERLAP_RANK, Factors, compare_factors, factor_dense, factor_low_rank
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.drift import measure_drift, read_general
from selfparam_jax.models.decoder import Decoder, apply_head, head_weight
from selfparam_jax.models.lora import MODULES, merge_lora
from selfparam_jax.reports.comparison import check_folder, comparison_markdown, write_comparison

pytestmark = pytest.mark.pictures

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
    assert found["directions"] == OVERLAP_RANK == 8
    assert (found["overlap_in"], found["overlap_out"], found["chance_in"]) == (1.0, 7 / 8, 0.4)


NOTHING = [factor_dense(np.zeros((4, 6))), factor_low_rank(np.ones((4, 2)), np.zeros((2, 6)))]


@pytest.mark.parametrize("nothing", NOTHING, ids=["dense", "low rank"])
def test_no_delta_has_no_angle(nothing):
    assert (nothing.rank, nothing.norm, nothing.effective_rank) == (0, 0.0, 0.0)
    found = compare_factors(nothing, factor_dense(np.ones((4, 6))))
    assert found == {"inner": 0.0, "cosine": None, "directions": 0} | dict.fromkeys(
        ("overlap_in", "chance_in", "overlap_out", "chance_out")
    )


def test_deltas_kernel_by_kernel(tiny_model):
    """Adapter, the same merged, and another adapter; against NumPy on whole matrices."""
    loras = adapter(tiny_model), adapter(tiny_model, seed=1)
    merged = dataclasses.replace(tiny_model, params=merge_lora(tiny_model.params, loras[0], LORA.scale))
    candidates = [
        adapter_candidate("one", tiny_model, loras[0], LORA.scale),
        model_candidate("merged", tiny_model, merged),
        adapter_candidate("other", tiny_model, loras[1], LORA.scale),
    ]
    assert candidates[1].outside == {} and candidates[1].notes == ()
    ticks = []
    alone, together = measure_deltas(candidates, tiny_model.params, lambda: ticks.append(1))
    assert len(ticks) == len(alone[0]) == 7 * 3
    for n, (one, same, pair) in enumerate(zip(alone[0], alone[1], together[0, 2], strict=True)):
        module, layer = one["module"], one["layer"]
        assert (module, layer) == kernels_of(tiny_model.params)[n]
        if module not in LORA.target_modules:
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
    totals = [total_delta(records) for records in alone]
    whole = [
        np.concatenate(
            [dense_delta(lora, module, layer).ravel() for module in LORA.target_modules for layer in range(3)]
        )
        for lora in loras
    ]
    assert totals[0]["norm"] == pytest.approx(np.linalg.norm(whole[0]), rel=1e-5)
    total = total_pair(together[0, 2], totals[0]["norm"], totals[2]["norm"])
    cosine = whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    assert total["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert total["chance_in"] == pytest.approx(np.mean([2 / 32, 2 / 48]))


def test_totals_by_hand():
    records = [
        {"norm": 3.0, "kernel_norm": 6.0, "rank": 2, "effective_rank": 2.0},
        {"norm": 4.0, "kernel_norm": 8.0, "rank": 1, "effective_rank": 1.0},
        {"norm": 0.0, "kernel_norm": 0.0, "rank": 0, "effective_rank": 0.0},
    ]
    assert total_delta(records) == {"norm": 5.0, "relative": 0.5, "effective_rank": 1.5}


def test_a_delta_that_is_not_finite_is_named(tiny_model):
    lora = adapter(tiny_model)
    lora["layers"]["mlp"]["down_proj"]["b"] = lora["layers"]["mlp"]["down_proj"]["b"].at[2, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="broken, down_proj of layer 2: got values that are not finite"):
        measure_deltas([adapter_candidate("broken", tiny_model, lora, 1.0)], tiny_model.params)


def test_what_differs_outside_the_kernels_is_reported(tiny_model):
    params = jax.tree.map(lambda x: x, tiny_model.params)
    params["norm"]["weight"] = params["norm"]["weight"].at[3].add(0.5)
    params["lm_head"]["weight"] = params["lm_head"]["weight"] * 1.25
    other = tiny.tokenizer()
    other.add_tokens(["<new>"])
    changed = dataclasses.replace(tiny_model, params=params, tokenizer=other)
    found = model_candidate("x", tiny_model, changed)
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
        model_candidate("far", tiny_model, other)


# --- distributions ------------------------------------------------------------------------------------


def test_divergences_by_hand(tiny_model):
    """The base, an adapter beside it, and a model with a sharper head of its own."""
    prompt, model = Prompt("plain", tiny_model.tokenizer), Decoder(tiny_model.config)
    lora = adapter(tiny_model)
    sharp = tiny_model.params | {"lm_head": {"weight": 3.0 * tiny_model.params["lm_head"]["weight"]}}
    everyone = [
        {"params": tiny_model.params},
        adapter_candidate("a", tiny_model, lora, LORA.scale).variables,
        {"params": sharp},
    ]
    found, tokens = divergences(model, everyone, prompt, TEXTS)
    rows = [[*prompt.start_ids, *prompt.text(text)] for text in TEXTS]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)  # what follows a text changes nothing before it
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32)[None], ids.shape)
    scored = [(n, t) for n, row in enumerate(rows) for t in range(len(prompt.start_ids), len(row) - 1)]
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
    general = read_general(model, everyone[0], prompt, TEXTS)
    learned = {"params": tiny_model.params, "lora": lora}
    drift = measure_drift(model.clone(lora_scale=LORA.scale), general, learned)
    assert (found[0, 1], tokens) == (pytest.approx(drift["kl"], rel=1e-4), drift["tokens"])


# --- answers ------------------------------------------------------------------------------------------


def test_answers_by_hand():
    one = predictions({"a": [1.0, 0.0, 0.4], "b": [0.5]})
    other = predictions({"a": [0.2, 0.5, 0.4], "b": [0.49]})
    found = compare_answers(one, other[::-1])  # the order of the files does not matter
    assert found["f1"] == pytest.approx(((-0.8 + 0.5 + 0.0) / 3 - 0.01) / 2)
    low, high = found["f1_ci95"]
    assert low < found["f1"] < high
    asked = {"context": "a", "question": "a, 1?", "answers": ["gold"]}
    assert found["gained"] == [asked | {"before": "says 0.0", "after": "says 0.5"}]
    assert [flip["question"] for flip in found["lost"]] == ["a, 0?", "b, 0?"]
    assert score_answers(one)["f1"] == pytest.approx((1.4 / 3 + 0.5) / 2)


def test_the_same_answers_differ_by_nothing():
    one = predictions({"a": [1.0, 0.0], "b": [0.3]})
    assert compare_answers(one, one) == {"f1": 0.0, "f1_ci95": [0.0, 0.0], "gained": [], "lost": []}


def test_a_paired_interval_is_narrower_where_the_same_questions_are_hard():
    rng = np.random.default_rng(0)
    hard = {f"c{n}": rng.random(6) for n in range(12)}
    one = predictions({name: list(values) for name, values in hard.items()})
    other = predictions({name: list(values + 0.05 * rng.random(6) - 0.02) for name, values in hard.items()})
    low, high = compare_answers(one, other)["f1_ci95"]
    sums = [score_answers(each)["f1_ci95"] for each in (one, other)]
    unpaired = np.hypot(sums[0][1] - sums[0][0], sums[1][1] - sums[1][0])
    assert 0 < high - low < 0.2 * unpaired


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (predictions({"a": [1.0], "b": [0.5]}), r"2, 2 of them the same, 1 of the first alone \('a, 1\?' about a\)"),
        (
            predictions({"a": [1.0, 0.0], "c": [0.5]}),
            r"3, 2 .*, 1 of the first alone \('b, 0\?' about b\), 1 of the second alone \('c, 0\?' about c\); for a",
        ),
        (
            [{**record, "answers": ["silver"]} for record in predictions({"a": [1.0, 0.0], "b": [0.5]})],
            r"3, 0 of them the same, 3 of the first alone \(",
        ),
        (
            predictions({"a": [1.0] * 9, "b": [1]}),
            r"10, 3 .* 7 of the second alone \(.*'a, 4\?' about a, \.\.\.\); for a",
        ),
    ],
)
def test_different_questions_are_refused_and_named(other, names):
    with pytest.raises(ValueError, match=rf"asked different questions: got 3 and {names}"):
        compare_answers(predictions({"a": [1.0, 0.0], "b": [0.5]}), other)


# --- whole comparisons, without a work directory -------------------------------------------------------


@pytest.fixture(scope="module")
def model_set(tiny_model):
    """An adapter, the same merged, and the base itself."""
    lora = adapter(tiny_model)
    merged = dataclasses.replace(tiny_model, params=merge_lora(tiny_model.params, lora, LORA.scale))
    candidates = [
        adapter_candidate("adapter", tiny_model, lora, LORA.scale),
        model_candidate("merged", tiny_model, merged),
        model_candidate("base", tiny_model, tiny_model),
    ]
    return ModelSet(tiny_model, jnp.float32, "plain", 4, candidates)


DOCUMENTS = [Document("Ava lies on the Om.", id="ava", questions=(Question("Which river?", ("Om",)),))]


def test_models_in_memory(model_set, tmp_path):
    ticks = []
    record = compare_models(model_set, TEXTS, "my texts", DOCUMENTS, lambda: ticks.append(1))
    assert len(ticks) == count_steps(model_set, DOCUMENTS) == 7 * 3 + 3
    kl = np.array(record["kl"]["mean_per_token"])
    assert record["kl"]["order"] == ["base", "A", "B", "C"] and (np.diag(kl) == 0).all()
    assert kl[1, 2] < 1e-6 < kl[0, 1] and kl[0, 3] == kl[3, 0] == 0.0
    assert record["probe"]["source"] == "my texts" and record["probe"]["texts"] == 3
    same, with_base, _ = record["pairs"]
    assert same["cosine"] == pytest.approx(1.0, abs=1e-4) and with_base["cosine"] is None
    assert same["answers"]["f1"] == 0.0
    assert record["candidates"][2]["delta"] == {"norm": 0.0, "relative": 0.0, "effective_rank": 0.0}
    json.dumps(record)
    write_comparison(record, tmp_path)
    assert (tmp_path / "compare.md").read_text() == comparison_markdown(record)
    for name in ("norms.png", "pairs.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_without_texts_and_questions(model_set):
    record = compare_models(model_set)
    assert (record["kl"], record["probe"]) == (None, None)
    assert [candidate["answers"] for candidate in record["candidates"]] == [None] * 3
    assert "KL was not measured" in comparison_markdown(record)


def test_answers_that_the_candidates_bring(model_set):
    own = predictions({"a": [1.0]}), predictions({"a": [0.0]}), predictions({"b": [0.0]})
    candidates = [
        dataclasses.replace(candidate, predictions=records)
        for candidate, records in zip(model_set.candidates, own, strict=True)
    ]
    record = compare_models(dataclasses.replace(model_set, candidates=candidates))
    assert [candidate["answers"]["f1"] for candidate in record["candidates"]] == [1.0, 0.0, 0.0]
    assert record["pairs"][0]["answers"]["f1"] == -1.0
    assert "different questions: got 1 and 1, 0 of them the same" in record["pairs"][1]["answers_note"]


@pytest.mark.parametrize("name", ["compare.json", "compare.md", "norms.png", "pairs.png"])
def test_a_folder_with_other_files_of_these_names_is_refused(model_set, tmp_path, name):
    check_folder(tmp_path / "new")
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"{name}: is .*would be lost; choose another"):
        check_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / "thesis.txt").write_text("mine")
    write_comparison(compare_models(model_set), tmp_path)
    check_folder(tmp_path)


def test_without_matplotlib_the_text_is_written(model_set, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_comparison(compare_models(model_set), tmp_path)
    text = (tmp_path / "compare.md").read_text()
    assert text.count("pip install 'selfparam-jax[report]'") == 1 and ".png" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.json", "compare.md"]


@pytest.mark.parametrize("count", [1, 27])
def test_a_number_of_models_that_cannot_be_compared(model_set, count):
    with pytest.raises(ValueError, match=f"got {count} models, expected 2 to 26"):
        dataclasses.replace(model_set, candidates=model_set.candidates[:1] * count)
