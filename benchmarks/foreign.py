"""Checkpoints of another version of transformers: theirs read by us, ours read by them, for every model family.

    OTHER/bin/python benchmarks/foreign.py write DIR     tiny random checkpoints, with their logits
    python -m benchmarks.foreign exchange DIR            reads these, compares, and exports each again
    OTHER/bin/python benchmarks/foreign.py read DIR      reads the exports, compares logits and tokenizers

OTHER is an environment with that version and torch, for example transformers==4.57.6. Prints a line for each case:
the largest difference of the logits, in float32.
"""

import sys
from pathlib import Path

import numpy as np

SIZES = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 5}
# A config class of transformers, and settings in the layout of version 4.
CASES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama3": ("LlamaConfig", {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": 5}),
    "nemo": ("MistralConfig", {"sliding_window": None, "head_dim": 12, "rope_theta": 1e6}),
    "qwen2": ("Qwen2Config", {"rope_scaling": YARN, "rope_theta": 1e6}),
    "qwen2-windows": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 1, 0]}),
    "olmo2": ("Olmo2Config", {}),
    "phi3": ("Phi3Config", {"sliding_window": 5}),
    "phi3-longrope": ("Phi3Config", {"original_max_position_embeddings": 16, "rope_scaling": LONGROPE}),
    "gemma2": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 12.0}),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "sliding_window_pattern": 3, "rope_theta": 1e6}),
}
IDS = np.random.default_rng(0).integers(0, 272, (2, 14))
TEXT = "the inn and ants"


def torch_logits(model) -> np.ndarray:
    """Float32 logits of IDS."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.float().numpy()


def write(folder: Path) -> None:
    """Their checkpoints: weights so large that every part of a model changes its logits."""
    import torch
    import transformers

    for name, (kind, changes) in CASES.items():
        config = getattr(transformers, kind)(**{**SIZES, **changes})
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, value in model.named_parameters():
                noise = torch.randn(value.shape, generator=generator)
                wide = 1.0 if "embed" in key else value.shape[-1] ** -0.5
                value.copy_(0.3 * noise + (not key.endswith("bias")) if value.ndim == 1 else noise * wide)
        model.save_pretrained(folder / "theirs" / name)
        np.save(folder / "theirs" / name / "logits.npy", torch_logits(model))


def exchange(folder: Path) -> None:
    """Reads theirs, and writes ours."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import tiny

    from selfparam_jax.checkpoints.export import save_model
    from selfparam_jax.checkpoints.load import load_model
    from selfparam_jax.checkpoints.round_trip import read_logits

    for name in CASES:
        tiny.tokenizer().save_pretrained(folder / "theirs" / name)
        model = load_model(folder / "theirs" / name)
        found = read_logits(model, IDS.astype(np.int32))
        _tell(f"{name}: theirs read by us", found, np.load(folder / "theirs" / name / "logits.npy"))
        out = save_model(model.params, model, folder / "ours" / name, "float32")
        np.save(out / "logits.npy", found)
        (out / "ids.txt").write_text(" ".join(map(str, model.tokenizer(TEXT)["input_ids"])))


def read(folder: Path) -> None:
    """Reads ours, with everything that could be missing or unexpected an error."""
    import transformers

    for name in CASES:
        place = folder / "ours" / name
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            place, attn_implementation="eager", output_loading_info=True
        )
        if wrong := {key: value for key, value in info.items() if value}:
            raise ValueError(f"{name}: {wrong}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        if " ".join(map(str, tokenizer(TEXT)["input_ids"])) != (place / "ids.txt").read_text():
            raise ValueError(f"{name}: the tokenizer gives other ids")
        _tell(f"{name}: ours read by {transformers.__version__}", torch_logits(model.float().eval()),
              np.load(place / "logits.npy"))  # fmt: skip


def _tell(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    print(f"{what}: {np.abs(found - expected).max():.1e} of a spread of {expected.std():.1f}", flush=True)


def main() -> None:
    """Does what the command line says."""
    verbs = {"write": write, "exchange": exchange, "read": read}
    if len(sys.argv) != 3 or sys.argv[1] not in verbs:
        raise SystemExit(__doc__)
    verbs[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    main()
