"""Programs of small jobs, compiled for four TPUs (v5e, 2 x 2) by the TPU's own compiler; no TPU is needed.

The compiler is the package `libtpu`, from the extra `tpu`. SELFPARAM_LIBTPU may name a folder from which these tests
alone take it: where JAX's other packages are, every process would look for a TPU. Without it they are skipped, which
fails in CI.

    pip install --no-deps --target /tmp/tpu 'libtpu==0.0.42.*'    # the version that JAX's own extra names
    SELFPARAM_LIBTPU=/tmp/tpu python -m pytest -n0 tests/plan/test_tpu_compile.py
"""

import dataclasses
import os
import sys

import pytest
import tiny

from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.distributed.mesh import MeshConfig
from selfparam_jax.models.lora import LoraConfig
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.plan.compilers import CompilerMissingError, check_installed, compile_program, machine_devices
from selfparam_jax.plan.machines import read_machine
from selfparam_jax.plan.plan import describe_program
from selfparam_jax.plan.programs import job_programs
from selfparam_jax.plan.workload import Workload, read_architecture
from selfparam_jax.training.optimizer import TrainConfig

# Heads of 128, which the kernel for TPUs takes, and a layer's kernels larger than the activations of a device.
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 2048,
}
MODELS = {"llama": ("gqa", {}), "mistral": ("mistral", {"sliding_window": 64})}
CONTEXT = 300  # tokens
CHUNK = 64
SMALL = Workload(
    "bfloat16",
    "layers",
    lora=LoraConfig(rank=8),
    train=TrainConfig(batch_size=4, seq_len=128, loss_chunk=CHUNK),
    mesh=MeshConfig(1, 2, 2),
    questions=4,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A program: its model, what differs from `SMALL`, and the bytes of a device that were recorded for it."""

    model: str
    program: str
    recorded: int
    changes: dict
    accumulate: int = 1


CASES = {
    "step": Case("llama", "training", 20_092_416, {}),
    "step, window, kernel": Case("mistral", "training", 20_622_848, {"attention": "splash"}),
    "step, window": Case("mistral", "training", 19_619_840, {"mesh": MeshConfig(1, 4, 1)}),
    "step, 8 bits, parts, kernel": Case("llama", "training", 16_670_720, {"int8": True, "attention": "splash"}, 2),
    "teacher after a context": Case("llama", "teacher", 6_912_512, {}),
    "teacher after a context, kernel": Case("llama", "teacher", 8_165_888, {"attention": "splash"}),
    "teacher after a context, window": Case("mistral", "teacher", 6_920_192, {}),
    "context": Case("llama", "context", 7_503_872, {"attention": "splash"}),
    "answers": Case("mistral", "answers", 12_768_768, {}),
}


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """The TPU's compiler; where it is missing these tests are skipped, in CI they fail."""
    with pytest.MonkeyPatch.context() as patch:
        if folder := os.environ.get("SELFPARAM_LIBTPU"):
            patch.syspath_prepend(folder)
            # JAX has looked for the package as it was imported, and does not look again.
            patch.setenv("TPU_LIBRARY_PATH", os.path.join(folder, "libtpu", "libtpu.so"))
        try:
            check_installed("tpu")
        except CompilerMissingError as error:
            if os.environ.get("CI") and sys.version_info < (3, 12):  # where .ci/run brings it
                pytest.fail(f"{error}, or set SELFPARAM_LIBTPU; in CI these tests may not be skipped")
            pytest.skip(str(error))
        yield


def describe(workload, config, machine, name):
    """What the compiler reports for one program on some TPUs."""
    machine = read_machine(machine)
    mesh = meshes.make_mesh(machine_devices(machine, "tpu"), workload.mesh)
    (program,) = job_programs(workload, config, mesh, CONTEXT, (name,))
    return describe_program(program, compile_program(program.trace, "tpu"), workload, machine)


def most_gathered(workload, config):
    """Elements of the largest weight that FSDP gathers: a layer's kernel, or the head, of a device's tensor part."""
    if workload.mesh.fsdp == 1:
        return 0
    kernel = config.hidden_size * max(config.intermediate_size, config.num_attention_heads * config.head_dim)
    return max(kernel, config.vocab_size * config.hidden_size) // workload.mesh.tensor


def check(found, workload, config, recorded):
    """No gather of more than FSDP's, and no more memory than was recorded."""
    gathers = [each["largest"] for each in found["collectives"] if each["kind"] == "all-gather"]
    assert max(gathers, default=0) <= most_gathered(workload, config)
    assert found["total"] <= 1.05 * recorded, f"{found['total']:,} bytes a device, {recorded:,} were recorded"


@pytest.mark.parametrize("name", CASES)
def test_a_small_job(name):
    case = CASES[name]
    family, changes = MODELS[case.model]
    config = model_config_from_hf(tiny.hf_config(family, **SIZES, **changes))
    train = dataclasses.replace(SMALL.train, accumulate=case.accumulate)
    workload = dataclasses.replace(SMALL, train=train, **case.changes)
    found = describe(workload, config, "v5e-4", case.program)
    check(found, workload, config, case.recorded)
    assert found["flops"] > 0 and found["cycles_s"] > 0
    assert (found["kernels"] > 0) == (workload.attention == "splash")


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "recorded"), [("blocks", 3_094_620_160), ("splash", 3_091_504_128)])
def test_llama_3_8b(attention, recorded):
    """Its training step on v5e-16, as configs/models/llama3_8b has it."""
    config = read_architecture("", "configs/models/llama3_8b.py", "")
    train = TrainConfig(batch_size=16, seq_len=512, loss_chunk=256)
    workload = Workload("bfloat16", "layers", attention, supervised=False, train=train, mesh=MeshConfig(1, -1, 1))
    found = describe(workload, config, "v5e-16", "training")
    check(found, workload, config, recorded)
