"""The fastest settings with which a training step fits a machine: mesh, recomputation, size of the loss chunks.

All of them train the same, but for rounding. One after another is changed, each from the best so far, and every
choice is compiled; a walk along an axis ends where it is no longer faster. The batch size stays: it changes what is
learned.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax

from selfparam_jax.distributed.mesh import MeshConfig
from selfparam_jax.models.decoder import ModelConfig
from selfparam_jax.plan.machines import Machine
from selfparam_jax.plan.plan import compiled_plan, make_plan
from selfparam_jax.plan.workload import Workload

TENSOR_PARTS = (2, 4, 8)  # of a layer: beyond a host's devices every product waits for the links
LARGER_CHUNKS = (2, 4, 8)  # times the given size of the loss chunks


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings that were tried.

    Attributes:
      flags: what differs from the job as it is; "" for the job itself.
      workload: with them.
      total: bytes that a device holds; None where the program was refused.
      tokens_per_s: sentence tokens by the estimate, 0.0 where the program was refused.
      fits: whether the memory is there.
      note: why it was refused, or "".
    """

    flags: str
    workload: Workload
    total: float | None
    tokens_per_s: float
    fits: bool
    note: str = ""


def fastest_settings(
    workload: Workload,
    config: ModelConfig,
    machine: Machine,
    compiler: str = "cpu",
    on_choice: Callable[[str], None] = lambda flags: None,
) -> list[Choice]:
    """Tries settings of a job.

    Args:
      workload: the job as it is.
      config: the model's architecture.
      machine: what is compiled for.
      compiler: of `compilers.COMPILERS`; "cpu" takes the estimates of `make_plan`.
      on_choice: called with the flags before a choice is compiled, which may take minutes.

    Returns:
      all choices in the order in which they were tried, the job itself first.

    Raises:
      ValueError: the job's own mesh does not go with the machine or the model.
    """
    given = workload.settled(config)
    given = dataclasses.replace(given, mesh=_as_mesh(given.mesh.sizes(machine.count), given.mesh))
    tried: list[Choice] = []

    def attempt(changed: Workload) -> Choice:
        for choice in tried:
            if choice.workload == changed:
                return choice
        flags = _flags(given, changed)
        on_choice(flags)
        tried.append(_tried(flags, changed, config, machine, compiler))
        return tried[-1]

    best = attempt(given)
    for walks in (_meshes, _recomputation, _chunks):
        for walk in walks(best.workload, machine):
            for changed in walk:
                choice = attempt(changed)
                if choice is best:
                    continue
                if not _better(choice, best):
                    break
                best = choice
    return tried


def fastest(choices: Sequence[Choice]) -> Choice | None:
    """The fastest that fits; None if none does."""
    return max((each for each in choices if each.fits), key=lambda each: each.tokens_per_s, default=None)


def _better(choice: Choice, best: Choice) -> bool:
    if choice.fits and best.fits:
        return choice.tokens_per_s > best.tokens_per_s
    if choice.fits or best.fits or choice.total is None:
        return choice.fits
    return best.total is None or choice.total < best.total


def _tried(flags: str, workload: Workload, config: ModelConfig, machine: Machine, compiler: str) -> Choice:
    try:
        if compiler == "cpu":
            plan = make_plan(workload, config, machine, jax.devices("cpu")[: machine.count])
            return Choice(flags, workload, plan["total"], plan["sentence_tokens_per_s"], plan["fits"])
        plan = compiled_plan(workload, config, machine, compiler, names=("training",))
    except ValueError as error:  # a size that this mesh cannot split
        if not flags:
            raise
        return Choice(flags, workload, None, 0.0, False, str(error).splitlines()[0])
    (program,) = plan["programs"]
    if "error" in program:
        return Choice(flags, workload, None, 0.0, False, program["error"])
    tokens = plan["batch_size"] * plan["seq_len"]
    return Choice(flags, workload, program["total"], tokens / estimated_s(program, machine), plan["fits"])


def estimated_s(program: dict, machine: Machine) -> float:
    """Seconds of a program's run (`plan.describe_program`).

    By the compiler's cycles where it notes them; else the longer of computing and reading by the published peaks, and
    the transfers that are waited for.
    """
    if program["cycles_s"] is not None:
        return program["cycles_s"]
    waiting = sum(program["exposed"].values()) / machine.chip.link
    return max(program["compute_s"], program["read_s"]) + waiting


def _as_mesh(sizes: Iterable[int], mesh: MeshConfig) -> MeshConfig:
    data, fsdp, tensor = sizes
    return dataclasses.replace(mesh, data=data, fsdp=fsdp, tensor=tensor)


def _meshes(workload: Workload, machine: Machine) -> Iterator[Iterable[Workload]]:
    """Fewer and fewer parts of the weights, from one on each device; then more and more parts of a layer."""

    def at(fsdp: int, tensor: int) -> Workload:
        mesh = _as_mesh((machine.count // fsdp // tensor, fsdp, tensor), workload.mesh)
        return dataclasses.replace(workload, mesh=mesh)

    divisors = [size for size in range(machine.count, 0, -1) if machine.count % size == 0]
    yield (at(fsdp, 1) for fsdp in divisors)
    yield (at(machine.count // parts, parts) for parts in TENSOR_PARTS if machine.count % parts == 0)


def _recomputation(workload: Workload, machine: Machine) -> Iterator[Iterable[Workload]]:
    for remat in ("products", "none", "layers"):
        yield [dataclasses.replace(workload, remat=remat)]


def _chunks(workload: Workload, machine: Machine) -> Iterator[Iterable[Workload]]:
    """Larger loss chunks, as far as a device has that many tokens; or smaller ones."""
    data, fsdp, _ = workload.mesh.sizes(machine.count)
    train = workload.train
    tokens = -(-train.batch_size // (data * fsdp * train.accumulate)) * train.seq_len  # of a part, on a device
    size = train.loss_chunk

    def at(chunk: int) -> Workload:
        return dataclasses.replace(workload, train=dataclasses.replace(train, loss_chunk=chunk))

    yield (at(size * times) for times in LARGER_CHUNKS if size * times < 2 * tokens)
    if size >= 2:
        yield [at(size // 2)]


def _flags(given: Workload, changed: Workload) -> str:
    """The command line's flags that make one of the other."""
    flags = [
        f"--config.mesh.{axis}={getattr(changed.mesh, axis)}"
        for axis in ("data", "fsdp", "tensor")
        if getattr(changed.mesh, axis) != getattr(given.mesh, axis)
    ]
    if changed.remat != given.remat:
        flags.append(f"--config.remat={changed.remat}")
    if changed.train.loss_chunk != given.train.loss_chunk:
        flags.append(f"--config.train.loss_chunk={changed.train.loss_chunk}")
    return " ".join(flags)
