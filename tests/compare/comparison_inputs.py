"""Adapters and answers that several tests compare."""

import jax
import numpy as np

from selfparam_jax.models.lora import MODULES, LoraConfig, init_lora

LORA = LoraConfig(rank=2, alpha=6.0, target_modules=("q_proj", "down_proj"))


def adapter(tiny_model, seed=0):
    """Zero nowhere."""
    fresh = init_lora(jax.random.key(seed), tiny_model.params, LORA)
    leaves, tree = jax.tree.flatten(fresh)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves])


def dense_delta(lora, module, layer):
    pair = lora["layers"][MODULES[module]][module]
    return LORA.scale * np.asarray(pair["a"][layer], np.float64) @ np.asarray(pair["b"][layer], np.float64)


def predictions(scores):
    """Records of {context: F1s}."""
    return [
        {
            "context": context,
            "question": f"{context}, {n}?",
            "answers": ["gold"],
            "answer": {"answer": f"says {f1}", "f1": f1, "em": float(f1 == 1), "contains": f1, "f1_paper": f1},
        }
        for context, values in scores.items()
        for n, f1 in enumerate(values)
    ]
