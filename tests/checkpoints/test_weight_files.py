"""Weights in PyTorch's files."""

import builtins

import jax.numpy as jnp
import pytest
import tiny
from extras import require
from saved_weights import (
    check_params,
)

from selfparam_jax.checkpoints.tensors import load_params
from selfparam_jax.checkpoints.weight_files import SafetensorsSource, TorchBinSource
from selfparam_jax.models.registry import model_config_from_hf


@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 1), ("float32", 3)])
def test_torch_bin(tmp_path, dtype, shards):
    model = tiny.save_torch_checkpoint(tmp_path, "gqa", dtype=dtype, shards=shards)
    config = model_config_from_hf(model.config)
    params = load_params(TorchBinSource(tmp_path), config, jnp.float32)
    check_params(params, tiny.hf_tensors(model), config)


def test_torch_bin_damaged(tmp_path):
    tiny.save_torch_checkpoint(tmp_path, "gqa")
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a whole file of torch tensors"):
        TorchBinSource(tmp_path)


def test_torch_bin_runs_no_code(tmp_path):
    torch = require("torch")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "created"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged, or holds more than tensors"):
        TorchBinSource(tmp_path)
    assert not (tmp_path / "created").exists()


def test_torch_bin_of_old_versions(tmp_path):
    """torch before 1.6 wrote no zip archives; these cannot be mapped, but are read as safely, parameters too."""
    torch = require("torch")
    model = tiny.save_torch_checkpoint(tmp_path, "gqa")
    path = tmp_path / "pytorch_model.bin"
    tensors = {name: torch.nn.Parameter(tensor) for name, tensor in torch.load(path).items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    config = model_config_from_hf(model.config)
    check_params(load_params(TorchBinSource(tmp_path), config, jnp.float32), tiny.hf_tensors(model), config)


@pytest.mark.parametrize(
    ("dtype", "name"), [("float8_e4m3fn", "F8_E4M3"), ("int8", "I8"), ("uint8", "U8"), ("int32", "I32")]
)
def test_quantised_tensors_are_no_numbers(tmp_path, dtype, name):
    """Their scales are elsewhere: as numbers they would give a broken model."""
    torch = require("torch")
    from safetensors.torch import save_file

    tensors = {"model.norm.weight": torch.ones(4), "a.weight": torch.ones(4, 4).to(getattr(torch, dtype))}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: tensor 'a\.weight' has type {name}, expected one of F16"
    ):
        SafetensorsSource(tmp_path)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=rf"pytorch_model\.bin: tensor 'a\.weight' has type {dtype}, expected one of"
    ):
        TorchBinSource(tmp_path)


def test_torch_bin_without_torch(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    real = builtins.__import__

    def no_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(ValueError, match=r"pip install 'selfparam-jax\[torch\]'"):
        TorchBinSource(tmp_path)
