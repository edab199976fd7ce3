"""Two real processes that load one model: one fingerprint, files written once, errors heard by both."""

import json
import socket

import numpy as np
import processes
import pytest
import tiny
from safetensors.numpy import save_file

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.peft import load_adapter

pytestmark = pytest.mark.processes

PROGRAM = """
import json, sys
import jax
from selfparam_jax.checkpoints.export import merge_for_export, save_model
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.peft import save_adapter
from selfparam_jax.distributed import mesh, processes
from selfparam_jax.models.lora import LoraConfig, init_lora

folder, address, index = sys.argv[1:]
processes.start("on", address, 2, int(index))
found = []
for sizes in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
    model = load_model(f"{folder}/good", mesh=mesh.make_mesh(config=mesh.MeshConfig(*sizes)))
    found.append(model.fingerprint)
lora = init_lora(jax.random.key(0), model.params, LoraConfig(rank=2))
for _ in range(2):  # the second time it is kept
    save_model(merge_for_export(model, [(lora, 1.0)]), model, f"{folder}/merged", "float32")
    save_adapter(lora, 1.0, model, f"{folder}/adapter")
try:
    load_model(f"{folder}/damaged", mesh=model.mesh)
except ValueError as error:
    print(json.dumps([found, str(error)]), flush=True)
processes.end(0)
"""


def test_two_processes(tmp_path):
    made = tiny.save_checkpoint(tmp_path / "good", "gqa")
    tiny.save_checkpoint(tmp_path / "damaged", "gqa")
    # In the half that only the second process reads on the last mesh.
    made.tensors["model.layers.0.mlp.up_proj.weight"][40, 3] = np.nan
    save_file(made.tensors, tmp_path / "damaged" / "model.safetensors")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    (tmp_path / "loading.py").write_text(PROGRAM)
    outputs = [tmp_path / f"{index}.txt" for index in range(2)]
    started = [
        processes.start(["loading", str(tmp_path), address, str(index)], output, cwd=tmp_path)
        for index, output in enumerate(outputs)
    ]
    codes = [process.wait(timeout=300) for process in started]
    assert codes == [0, 0], [output.read_text() for output in outputs]
    alone = load_model(tmp_path / "good")
    for output in outputs:
        found, error = json.loads(output.read_text().splitlines()[-1])
        assert found == [alone.fingerprint] * 3
        assert "damaged: tensor 'model.layers.0.mlp.up_proj.weight' holds NaN or infinity" in error
    merged = load_model(tmp_path / "merged")  # the adapter's b is still zero
    np.testing.assert_array_equal(merged.params["lm_head"]["weight"], alone.params["lm_head"]["weight"])
    assert load_adapter(tmp_path / "adapter", alone)[1] == 1.0
