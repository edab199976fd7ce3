"""After an export: its files are loaded again and must give the distribution of the model in memory."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.peft import load_adapter
from selfparam_jax.distributed.mesh import make_mesh
from selfparam_jax.models.decoder import apply_head, output_head

# The largest KL divergence of one token, in nats, by the type of numbers.
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "q8_0": 2e-1}
# PyTorch is asked too up to this size; a larger model would need the memory of both.
TORCH_PARAMETERS = 3e9
TOKENS = 48  # of each text
TEXTS = (
    "The library of the old town was built of red brick in 1907. It stands beside the river, and its clock is slow.",
    "Question: Which lamp did the glass blower make?\nAnswer: She called it the Tideglow, and it cost 750 euros.\n",
)


def probe_ids(model: Model, longest: int = TOKENS) -> np.ndarray:
    """Ids [2, T] of two short texts, at most `longest` tokens of each."""
    length = min(longest, model.config.max_position_embeddings)
    rows = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    return np.array([(row * (length // len(row) + 1))[:length] for row in rows], np.int32)


def read_logits(model: Model, ids: np.ndarray, lora: dict | None = None, scale: float = 1.0) -> np.ndarray:
    """Logits of a model, perhaps with an adapter beside it.

    Args:
      model: the model.
      ids: int32 [B, T].
      lora: the adapter; None for none.
      scale: of the adapter.

    Returns:
      float32 [B, T, V].
    """
    variables = {"params": model.params} | ({} if lora is None else {"lora": lora})
    decoder = model.decoder(**({} if lora is None else {"lora_scale": scale}))
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    hidden, _ = decoder.apply(variables, jnp.asarray(ids), positions, jnp.ones_like(positions))
    return np.asarray(apply_head(hidden, output_head(model.params, model.config)), np.float32)


def compare_logits(expected: np.ndarray, found: np.ndarray) -> dict:
    """How far two models' distributions [B, T, V] are apart.

    Returns:
      "max_token_kl", the largest KL divergence of one token in nats; "greedy_agreement", the share of tokens whose
      likeliest successor is the same; "tokens", their number.
    """
    logs = []
    for logits in (expected, found):
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
    divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    agreement = np.mean(expected.argmax(-1) == found.argmax(-1))
    kl = float(divergence.max()) if np.isfinite(divergence).all() else float("inf")
    return {"max_token_kl": max(0.0, kl), "greedy_agreement": float(agreement), "tokens": int(divergence.size)}


def check_round_trip(
    directory: Path, form: str, model: Model, lora: dict | None, scale: float, numbers: str = "float32"
) -> dict:
    """Loads an export and compares it with the model in memory.

    Args:
      directory: of the export.
      form: "hf", "peft" or "gguf".
      model: the base that was exported.
      lora: the adapter that was exported with it; None for none.
      scale: of the adapter.
      numbers: what the weights of the files are written in: float32, bfloat16, float16 or q8_0.

    Returns:
      {"bound": nats, reader: `compare_logits` or {"not_checked": reason}}; the readers are "selfparam_jax" and, for
      what they can read, "transformers" or "peft".

    Raises:
      ValueError: a reader's distribution is farther away than the bound.
    """
    # llama.cpp's files have no window; up to its length a text is the same.
    ids = probe_ids(model, min(TOKENS, model.config.sliding_window or TOKENS) if form == "gguf" else TOKENS)
    expected = read_logits(model, ids, lora, scale)
    bound = max(BOUNDS[numbers], BOUNDS[model.dtype.name])
    found: dict[str, Any] = {"selfparam_jax": compare_logits(expected, _read_again(directory, form, model, ids))}
    if form != "gguf":
        reader = "transformers" if form == "hf" else "peft"
        reason = _no_torch(reader, form, model)
        if reason:
            found[reader] = {"not_checked": reason}
        else:
            found[reader] = compare_logits(expected, _read_by_torch(directory, form, model, ids))
    for reader, result in found.items():
        if result.get("max_token_kl", 0.0) > bound:
            raise ValueError(
                f"the export does not give the model back: read by {reader}, a token's distribution is "
                f"{result['max_token_kl']:.3g} nats away (greedy agreement {result['greedy_agreement']:.1%}), "
                f"expected at most {bound:g}. Nothing is left of it; export in another format or dtype."
            )
    return {"bound": bound, **found}


def _read_again(directory: Path, form: str, model: Model, ids: np.ndarray) -> np.ndarray:
    if form == "peft":
        lora, scale, _ = load_adapter(directory, model)
        return read_logits(model, ids, lora, scale)
    source = directory if form == "hf" else next(directory.glob("*.gguf"))
    # On the host: an accelerator may have no room for a second model.
    return read_logits(load_model(source, model.dtype, make_mesh(jax.local_devices(backend="cpu")[:1])), ids)


def _no_torch(reader: str, form: str, model: Model) -> str:
    """Why PyTorch's libraries cannot be asked; "" if they can."""
    for package in ("torch", reader):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if form == "peft" and not model.files:
        return "the base is a GGUF file, which PEFT cannot read"
    sizes = (int(np.prod(leaf.shape)) for leaf in _leaves(model.params))
    return f"the model has more than {TORCH_PARAMETERS:g} parameters" if sum(sizes) > TORCH_PARAMETERS else ""


def _leaves(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]


def _read_by_torch(directory: Path, form: str, model: Model, ids: np.ndarray) -> np.ndarray:
    """Float32 logits of transformers, or of PEFT on transformers' base."""
    import torch
    from transformers import AutoModelForCausalLM

    source = directory if form == "hf" else model.files
    made = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    if form == "peft":
        from peft import PeftModel

        made = PeftModel.from_pretrained(made, directory)
    with torch.no_grad():
        return made.eval()(torch.from_numpy(ids.astype(np.int64))).logits.float().numpy()
