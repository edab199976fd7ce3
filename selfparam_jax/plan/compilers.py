"""The compilers that a planned program can be compiled with: the CPU's, and those of TPUs and GPUs without a device.

The TPU's is in the package `libtpu`; the GPU's is in JAX's CUDA plugin, which is told of a device that is not there.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from selfparam_jax.distributed.backend import traced_for
from selfparam_jax.plan.machines import Machine

# Compiler -> the platform that JAX lowers for, the package that has it, the extra that brings that.
COMPILERS = {
    "cpu": ("cpu", "jax", ""),
    "tpu": ("tpu", "libtpu", "tpu"),
    "gpu": ("cuda", "jax_plugins.xla_cuda12", "gpu-plan"),
}
# libtpu is not to look for a TPU, to ask a cloud for one, or to keep other processes from doing the same.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_HOST = 2  # TPUs of a host along each of the first two axes
# What XLA's GPU compiler wants to know of a device: compute capability, cores, float units and shared memory of each,
# level-2 cache, clock in GHz, the name.
_HOPPER = ((9, 0), 132, 128, 233472, 52428800, 1.98)
_GPUS = {
    "a100": ((8, 0), 108, 64, 167936, 41943040, 1.41, "NVIDIA A100-SXM4-80GB"),
    "h100": (*_HOPPER, "NVIDIA H100 80GB HBM3"),
    "h200": (*_HOPPER, "NVIDIA H200"),
    "b200": ((10, 0), 148, 128, 233472, 132644864, 1.965, "NVIDIA B200"),
}
# Without a device, kernels cannot be timed to choose among them.
_OPTIONS = {"gpu": {"xla_gpu_autotune_level": 0}}


class CompilerMissingError(ValueError):
    """A compiler is not installed; the message says which extra brings it."""


def check_installed(compiler: str) -> None:
    """Raises CompilerMissingError if a compiler, of `COMPILERS`, is not installed."""
    _, package, extra = COMPILERS[compiler]
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(package) is not None:
            return
    raise CompilerMissingError(
        f"--compiler={compiler} needs the package {package.split('.')[0]}, which is not installed; "
        f"pip install 'selfparam-jax[{extra}]'"
    )


def machine_devices(machine: Machine, compiler: str) -> Sequence[Any]:
    """The devices to compile for: those of a machine that need not exist, or as many virtual CPU devices.

    Args:
      machine: what is planned for.
      compiler: of `COMPILERS`.

    Raises:
      CompilerMissingError: it is not installed.
      ValueError: it is not the machine's compiler, or there is no such slice of TPUs.
    """
    check_installed(compiler)
    if compiler == "cpu":
        return jax.devices("cpu")[: machine.count]
    if machine.chip.compiler != compiler:
        raise ValueError(
            f"--compiler={compiler} does not compile for {machine.name}, expected --compiler={machine.chip.compiler}"
        )
    return _tpus(machine) if compiler == "tpu" else _gpus(machine)


def _tpus(machine: Machine) -> Sequence[Any]:
    grid = machine.grid()
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    host = [min(size, _HOST) for size in grid[:2]] + [1]
    options: dict[str, Any] = {"chips_per_host_bounds": host}
    if machine.kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as it is by default
    name = f"{machine.kind}:{'x'.join(map(str, grid))}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def _gpus(machine: Machine) -> Sequence[Any]:
    in_host = min(machine.count, 8)
    hosts = f"1x{-(-machine.count // in_host)}x{in_host}"
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name=machine.kind, target_config=gpu_target(machine), topology=hosts
    )
    return topology.devices[: machine.count]


def gpu_target(machine: Machine) -> str:
    """XLA's description of a machine's GPU (`GpuTargetConfig`, in protobuf's text form)."""
    (major, minor), cores, units, shared, cache, clock, name = _GPUS[machine.kind]
    return (
        "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
        f"shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units} "
        "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 "
        f"memory_bandwidth: {machine.chip.bandwidth:.0f} l2_cache_size: {cache} clock_rate_ghz: {clock} "
        f"device_memory_size: {machine.chip.memory:.0f} shared_memory_per_block_optin: {shared - 1024} "
        f"cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536 "
        'registers_per_block_limit: 65536 } platform_name: "CUDA" '
        "dnn_version_info { major: 9 minor: 8 patch: 0 } runtime_version { major: 12 minor: 8 patch: 0 } "
        f'device_description_str: "{name}"'
    )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Compiled programs of devices that are not there can be kept, but not read again."""
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX asks only once whether there is one
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def compile_program(trace: Callable[[], jax.stages.Traced], compiler: str) -> jax.stages.Compiled:
    """Compiles a program.

    Args:
      trace: traces it, for shapes that are laid out on `machine_devices` of this compiler.
      compiler: of `COMPILERS`.

    Returns:
      the compiled program; it cannot be run where its devices are not there.
    """
    with traced_for(compiler):
        lowered = trace().lower(lowering_platforms=(COMPILERS[compiler][0],))
    with contextlib.nullcontext() if compiler == "cpu" else _without_cache():
        return lowered.compile(compiler_options=_OPTIONS.get(compiler))
