"""The reach table of a job: what its systems have answered already is not asked again."""

import jax
import numpy as np

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation import reach
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.jobs.reach import measure_reach
from selfparam_jax.models.lora import LoraConfig, init_lora

DOCUMENTS = [
    Document("Ava is old. Lu Ka founded Ava.", id="a", questions=(Question("Who founded Ava?", ("Lu Ka",)),)),
    Document("Bor is new.", id="b", questions=(Question("How old is Bor?", ("new",)), Question("Bor?", ("new",)))),
]


def test_answers_in_the_reading_format_are_taken_from_the_systems(tiny_model, monkeypatch):
    lora = init_lora(jax.random.key(0), tiny_model.params, LoraConfig(rank=2))
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), lora)
    prompt = Prompt("plain", tiny_model.tokenizer, tiny_model.end_ids)
    setup = Setup(tiny_model, prompt, 16, lora, 0.5)
    known = {name: SYSTEMS[name].make(setup).answer(DOCUMENTS) for name in ("base_q", "base_cq", "injected")}
    given = (tiny_model, lora, 0.5, prompt, DOCUMENTS, "forms")
    asked = measure_reach(*given)
    assert set(asked[0]["systems"]) == {"base", "base_cq", "injected"}
    answers = {(r["system"], r["question"]): r["answer"] for r in asked[1] if r["column"] == "reading"}
    assert len(set(answers.values())) > 3

    forms, start = [], reach.Asker._start
    monkeypatch.setattr(reach.Asker, "_start", lambda self, *args: forms.append(args[1]) or start(self, *args))
    assert measure_reach(*given, known=known) == asked
    assert forms and "reading" not in forms
