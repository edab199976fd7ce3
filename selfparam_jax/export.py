"""The injected model as a directory in Hugging Face's layout: the base with the adapters merged in."""

import pathlib
import shutil
from collections.abc import Sequence

import jax

from selfparam_jax import hub, weights
from selfparam_jax import mesh as meshes
from selfparam_jax.injection import DTYPES, Run
from selfparam_jax.lora import merge_adapters_lazily
from selfparam_jax.processes import written_by_first


def export_merged(run: Run, adapters: Sequence[tuple[dict, float]], directory: pathlib.Path | None = None) -> None:
    """The merged model as a Hugging Face directory, WORKDIR/merged if it is not told where; one there stays."""
    directory = directory or run.workdir / "merged"
    if directory.exists():
        return
    with written_by_first(directory) as target:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        name = run.settings.export_dtype or run.settings.dtype
        dtype = DTYPES[name]
        merged = merge_adapters_lazily(*_parts(run, adapters))
        weights.save_safetensors(merged, run.base.config, temporary, dtype)
        run.base.hf_config.dtype = name
        run.base.hf_config.save_pretrained(temporary)
        run.base.tokenizer.save_pretrained(temporary)
        temporary.rename(target)


def _parts(run: Run, adapters: Sequence[tuple[dict, float]]) -> tuple[dict, Sequence[tuple[dict, float]]]:
    """What is merged: the base and these adapters. A base in 8 bits is read again, as it was, into host memory."""
    if not run.settings.int8:
        return run.base.params, adapters
    host = meshes.make_mesh(jax.local_devices(backend="cpu")[:1])
    base = hub.load_pretrained(run.settings.model, DTYPES[run.settings.dtype], host)
    return base.params, [(jax.tree.map(meshes.fetch, lora), scale) for lora, scale in adapters]
