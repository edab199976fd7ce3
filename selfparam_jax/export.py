"""The injected model as a directory in Hugging Face's layout: the base with the adapters merged in."""

import shutil
from collections.abc import Sequence

import jax

from selfparam_jax import hub, weights
from selfparam_jax import mesh as meshes
from selfparam_jax.injection import DTYPES, Run
from selfparam_jax.lora import merge_adapters_lazily
from selfparam_jax.processes import written_by_first


def export_merged(run: Run, adapters: Sequence[tuple[dict, float]]) -> None:
    """The merged model as a Hugging Face directory, WORKDIR/merged."""
    if (run.workdir / "merged").exists():
        return
    with written_by_first(run.workdir / "merged") as target:
        temporary = target.with_name(".merged.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        dtype = DTYPES[run.settings.export_dtype]
        merged = merge_adapters_lazily(*_parts(run, adapters))
        weights.save_safetensors(merged, run.base.config, temporary, dtype)
        run.base.hf_config.dtype = run.settings.export_dtype
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
