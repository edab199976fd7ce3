"""This program on a workload, timed; the counterpart of `benchmarks.peer_torch`, started by `benchmarks.speed`.

    python -m benchmarks.ours --workload=DIR --mode=ours --out=result.json

Modes: `ours` (teacher stored, packed rows), `naive` (the teacher reads context and sentence anew in every step,
one sentence a row, student and teacher padded), `pair` (a step with the KL and a fine-tuning step with cross
entropy on the same packed rows in turn).
"""

import time

STARTED = time.perf_counter()  # before the slow imports: they are part of starting up

import pathlib  # noqa: E402
import tempfile  # noqa: E402

import jax  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from benchmarks.memory import peak_memory  # noqa: E402
from benchmarks.workload import LORA, read_adapter, read_sentences, read_workload, train_config  # noqa: E402
from selfparam_jax.checkpoints.load import load_model  # noqa: E402
from selfparam_jax.distributed import backend, files, mesh  # noqa: E402
from selfparam_jax.inference.prefix import round_up  # noqa: E402
from selfparam_jax.models.decoder import REMAT as REMATS  # noqa: E402
from selfparam_jax.models.decoder import Decoder  # noqa: E402
from selfparam_jax.models.rounding import PRECISIONS  # noqa: E402
from selfparam_jax.models.unstacked import layers_apart, trains_apart  # noqa: E402
from selfparam_jax.targets.sentences import first_slots  # noqa: E402
from selfparam_jax.training import teacher, teacher_states, train_step  # noqa: E402
from selfparam_jax.training.batches import make_batch, student_rows  # noqa: E402
from selfparam_jax.training.optimizer import make_optimizer  # noqa: E402

WORKLOAD = flags.DEFINE_string("workload", None, "Directory of the workload.", required=True)
MODE = flags.DEFINE_enum("mode", None, ["ours", "naive", "pair"], "What is timed.", required=True)
OUT = flags.DEFINE_string("out", None, "Where the measurements go (JSON).", required=True)
LIMIT_STEPS = flags.DEFINE_integer("limit_steps", 0, "At most this many optimizer steps; 0: all.")
REMAT = flags.DEFINE_enum("remat", "layers", list(REMATS), "As config.remat.")
MATMUL = flags.DEFINE_enum("matmul_precision", "float32", PRECISIONS, "As config.matmul_precision.")
WARM = flags.DEFINE_bool("warm", False, "Mode ours: the first context is used once before anything is timed.")
CACHE = flags.DEFINE_string("compilation_cache", "", "Directory of compiled programs; empty: none is used.")


class Setup:
    """A workload on its way through our training step."""

    def __init__(self, directory: pathlib.Path, scratch: pathlib.Path):
        self.workload = read_workload(directory)
        self.sentences = read_sentences(self.workload)
        self.first = first_slots(self.sentences)
        self.start_ids = tuple(self.workload["start_ids"])
        self.mesh, self.scratch = mesh.make_mesh(), scratch
        self.base = load_model(str(directory / "model"), matmul_precision=MATMUL.value)
        # As jobs have them (`inject`).
        apart = trains_apart(self.base.params)
        self.frozen = (layers_apart(self.base.variables) if apart else self.base.variables)["params"]
        self.lora = mesh.put_same(self.mesh, read_adapter(directory))
        rows = len(self.workload["rows"][0])
        self.config = train_config(1, rows, self.workload["seq_len"])
        self.optimizer = make_optimizer(self.config, 1)
        self.model = Decoder(self.base.config, remat=REMAT.value, lora_scale=LORA.scale)
        self.step = train_step.compile_step(self.model, self.optimizer, self.mesh)

    def state(self) -> train_step.TrainState:
        """Step 0, in buffers of its own: the step donates them."""
        state = train_step.init_state(jax.tree.map(lambda x: x.copy(), self.lora), self.optimizer)
        return mesh.put_same(self.mesh, state)

    def reader(self, rows: int) -> teacher.Reader:
        """The teacher: the base without an adapter."""
        return teacher.Reader(
            Decoder(self.base.config), self.base.variables, self.base.fingerprint, self.start_ids,
            self.mesh, rows, self.config.seq_len,
        )  # fmt: skip

    def batch(self, assignment, seq_len: int, signal, supervised: bool) -> train_step.Batch:
        """A batch of given rows of sentences."""
        rows = student_rows(self.sentences, self.first, self.start_ids, assignment, seq_len)
        return make_batch(rows, signal, self.mesh, supervised)

    def timed(self, state, batch) -> tuple[train_step.TrainState, float, float]:
        """One step: the state after it, its loss, and its seconds."""
        began = time.perf_counter()
        state, metrics = self.step(state, self.frozen, batch, jax.random.key(0))
        loss = float(metrics["loss"])
        return state, loss, time.perf_counter() - began


def run_steps(setup: Setup, assignments, seq_len: int, signal) -> dict:
    """Steps with the KL, from the making of the batch to the loss on the host."""
    measured: dict = {"step_s": [], "losses": []}
    state = setup.state()
    for assignment in assignments:
        began = time.perf_counter()
        batch = setup.batch(assignment, seq_len, signal, supervised=False)
        prepared = time.perf_counter() - began
        state, loss, seconds = setup.timed(state, batch)
        measured["losses"].append(loss)
        measured["step_s"].append(prepared + seconds)
    return measured


def warm(setup: Setup) -> None:
    """What the first context needs, so that its programs are there."""
    chosen = [s for s in setup.sentences if s.context == 0]
    first = first_slots(chosen)
    store = teacher_states.teacher_store(
        setup.reader(setup.config.batch_size), setup.workload["prefixes"][:1], chosen, setup.scratch / "warm"
    )
    assignment = [[0]] + [[]] * (setup.config.batch_size - 1)
    rows = student_rows(chosen, first, setup.start_ids, assignment, setup.config.seq_len)
    setup.timed(setup.state(), make_batch(rows, store, setup.mesh, False))


def run_ours(setup: Setup, steps: int) -> dict:
    """Teacher store, then packed steps."""
    if WARM.value:
        warm(setup)
    began = time.perf_counter()
    store = teacher_states.teacher_store(
        setup.reader(setup.config.batch_size), setup.workload["prefixes"], setup.sentences, setup.scratch
    )
    teacher_s = time.perf_counter() - began
    assignments = setup.workload["rows"][:steps]
    return {"teacher_s": teacher_s} | run_steps(setup, assignments, setup.config.seq_len, store)


def run_naive(setup: Setup, steps: int) -> dict:
    """Every step: full rows of context and sentence for the teacher, then rows of one sentence for the student."""
    members = setup.workload["steps"]
    rows = max(len(step) for step in members)
    length = round_up(max(len(s.ids) for s in setup.sentences) + len(setup.start_ids), 8)
    online = teacher.Online(setup.reader(rows), setup.workload["prefixes"], setup.sentences, setup.first)
    assignments = [[[i] for i in step] + [[]] * (rows - len(step)) for step in members[:steps]]
    return {"teacher_s": 0.0} | run_steps(setup, assignments, length, online)


def run_pair(setup: Setup, steps: int) -> dict:
    """The KL step and the fine-tuning step in turn, on the same packed rows; each trains a state of its own."""
    store = teacher_states.teacher_store(
        setup.reader(setup.config.batch_size), setup.workload["prefixes"], setup.sentences, setup.scratch
    )
    states = {"kl": setup.state(), "finetune": setup.state()}
    measured = {"kl_step_s": [], "finetune_step_s": []}
    for assignment in setup.workload["rows"][:steps]:
        for name, signal in (("kl", store), ("finetune", None)):
            batch = setup.batch(assignment, setup.config.seq_len, signal, supervised=signal is None)
            states[name], _, seconds = setup.timed(states[name], jax.block_until_ready(batch))
            measured[f"{name}_step_s"].append(seconds)
    return measured


def main(_) -> None:
    """Runs one mode and writes what it took."""
    logging.set_verbosity(logging.WARNING)
    compilations = backend.prepare(CACHE.value or None)
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(pathlib.Path(WORKLOAD.value), pathlib.Path(scratch))
        steps = LIMIT_STEPS.value or len(setup.workload["steps"])
        result = {"mode": MODE.value, "start_s": time.perf_counter() - STARTED, "loaded_rss_bytes": peak_memory()}
        result |= {"ours": run_ours, "naive": run_naive, "pair": run_pair}[MODE.value](setup, steps)
    result |= {"compiled_programs": compilations.programs, "compile_s": compilations.seconds}
    files.write_json(OUT.value, result | {"peak_rss_bytes": peak_memory(), "jax": jax.__version__})


if __name__ == "__main__":
    app.run(main)
