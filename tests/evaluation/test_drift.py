"""Drift on general text, by hand, and its perplexity against torch."""

import jax
import numpy as np
import pytest
import tiny
from extras import require

from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.drift import measure_drift, read_general
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.lora import LoraConfig, init_lora, merge_lora

TEXTS = ["The hand in the land.", "12 ants and an inn, and then the other one as well.", "in", "Then: and."]
ROW = 30


def drift_ids(prompt):
    """Ids of each text as they are scored, and where its own tokens begin."""
    return [(list(prompt.start_ids) + list(prompt.text(text)))[:ROW] for text in TEXTS], len(prompt.start_ids)


LORA = LoraConfig(rank=2, alpha=32.0, dropout=0.1)


def adapter(tiny_model):
    return jax.tree.map(lambda x: x + 0.03, init_lora(jax.random.key(0), tiny_model.params, LORA))


@pytest.fixture(scope="module")
def perturbed(tiny_model):
    return merge_lora(tiny_model.params, adapter(tiny_model), LORA.scale)


def test_no_drift_of_a_model_from_itself(tiny_model):
    prompt = Prompt("plain", tiny_model.tokenizer)
    model, params = Decoder(tiny_model.config), tiny_model.params
    general = read_general(model, {"params": params}, prompt, TEXTS, ROW, 2)
    found = measure_drift(model, general, {"params": params})
    assert found["kl"] == 0.0
    assert found["perplexity_before"] == found["perplexity_after"] > 1.0
    ids, start = drift_ids(prompt)
    assert any(len(row) == ROW for row in ids)  # one text is cut
    assert found["tokens"] == sum(len(row) - start - 1 for row in ids)


def test_drift_by_hand(tiny_model, perturbed):
    prompt = Prompt("plain", tiny_model.tokenizer)
    model = Decoder(tiny_model.config)
    ids, start = drift_ids(prompt)
    nll, kl = np.zeros(2), 0.0
    for row in ids:
        logs = []
        for number, params in enumerate((tiny_model.params, perturbed)):
            logits = tiny.plain_logits(model, {"params": params}, row).astype(np.float64)
            logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
            nll[number] -= sum(logs[-1][t, row[t + 1]] for t in range(start, len(row) - 1))
        scored = slice(start, len(row) - 1)
        kl += (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)[scored].sum()
    count = sum(len(row) - start - 1 for row in ids)
    before, merged = {"params": tiny_model.params}, {"params": perturbed}
    unmerged = before | {"lora": adapter(tiny_model)}
    for rows_per_call, after in ((1, merged), (4, merged), (4, unmerged)):
        general = read_general(model, before, prompt, TEXTS, ROW, rows_per_call)
        found = measure_drift(model.clone(lora_scale=LORA.scale), general, after)
        assert found["tokens"] == count
        assert found["kl"] == pytest.approx(kl / count, rel=1e-4)
        assert found["kl"] > 0.01
        assert found["perplexity_before"] == pytest.approx(np.exp(nll[0] / count), rel=1e-4)
        assert found["perplexity_after"] == pytest.approx(np.exp(nll[1] / count), rel=1e-4)
        assert found["perplexity_after"] != pytest.approx(found["perplexity_before"], rel=1e-3)


def test_perplexity_equals_torch(from_hf):
    torch = require("torch")
    theirs = tiny.hf_model("gqa")
    config, params = from_hf(theirs)
    prompt = Prompt("plain", tiny.tokenizer())
    ids, start = drift_ids(prompt)
    losses = []
    for row in ids:
        logits = torch.from_numpy(tiny.hf_logits(theirs, np.array([row])))[0].double()
        targets = torch.tensor(row)
        losses.append(torch.nn.functional.cross_entropy(logits[start:-1], targets[start + 1 :], reduction="none"))
    expected = torch.cat(losses).mean().exp().item()
    general = read_general(Decoder(config), {"params": params}, prompt, TEXTS, ROW)
    found = measure_drift(Decoder(config), general, {"params": params})
    assert found["perplexity_before"] == pytest.approx(expected, rel=1e-4)
