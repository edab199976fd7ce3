"""Whether anything grows: a tiny model under many injections, documents, questions and requests.

    python -m benchmarks.soak --out=soak.json
    python -m benchmarks.soak --out=soak.json --share=0.3 --only=sequential,server

Sequential injections, many documents in one batch, questions, and a server under concurrent requests. Over every part
the process is looked at four times: after each quarter of the items, its memory (beside files), memory maps, file
handles and compiled programs, and the time of an item in that quarter (the median; of requests too) and its CPU time
(the mean, over all cores). The table gives each as a ratio to the second quarter, as the first one compiles, and what
memory has grown by since then, an item. The model is random: what it says is of no interest. Linux only.
"""

import concurrent.futures
import contextlib
import dataclasses
import gc
import http.client
import json
import os
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.memory import status_bytes
from benchmarks.rows import run
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import backend, files
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.inference.batches import Variant
from selfparam_jax.inference.engine import Engine
from selfparam_jax.inference.guard import listen, make_server
from selfparam_jax.inference.openai_requests import Limits
from selfparam_jax.inference.server import Service, make_app
from selfparam_jax.jobs.served import make_texts
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.sequential import sequence as sequences
from selfparam_jax.sequential.config import SequentialConfig
from selfparam_jax.training.inject import Hooks, inject
from selfparam_jax.training.recipe import Recipe

OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).", required=True)
ONLY = flags.DEFINE_list("only", [], "Only these parts.")
QUICK = flags.DEFINE_bool("quick", False, "A hundredth of everything, and a server for 40 seconds.")
SHARE = flags.DEFINE_float("share", 1.0, "A part of the items of everything.", 0.01, 1.0)

# Items of every part; of the server its seconds.
WHOLE = {"sequential": 1000, "batch": 5000, "questions": 10_000, "server": 600}
SHORT = {"sequential": 16, "batch": 48, "questions": 160, "server": 40}
CLIENTS = 200
ASKED = 8  # documents of a sequence that have a question


@dataclasses.dataclass
class Meter:
    """Looks at the process after each quarter of some items."""

    total: int
    items: list[float] = dataclasses.field(default_factory=list)
    cpu_s: float = dataclasses.field(default_factory=time.process_time)  # at the last look
    quarters: list[dict] = dataclasses.field(default_factory=list)

    def item(self, seconds: float) -> None:
        """Counts one item and the seconds that it took."""
        self.items.append(seconds)
        if len(self.items) * 4 >= self.total * (len(self.quarters) + 1):
            self.look()

    def look(self) -> None:
        """What the process holds now, and the time of an item since the last look."""
        gc.collect()
        begin = sum(quarter["items"] for quarter in self.quarters)
        times, before, self.cpu_s = self.items[begin:], self.cpu_s, time.process_time()
        spent = {"item_s": statistics.median(times or [0.0]), "cpu_s": (self.cpu_s - before) / max(1, len(times))}
        self.quarters.append({**held(), "items": len(times), **spent})

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """An item that takes as long as the block."""
        began = time.perf_counter()
        yield
        self.item(time.perf_counter() - began)


def held() -> dict:
    """What this process holds: anonymous memory in bytes, memory maps, file handles, compiled programs so far."""
    return {
        "memory": status_bytes("RssAnon"),
        "maps": len(pathlib.Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines()),
        "handles": len(os.listdir("/proc/self/fd")),
        "programs": backend.prepare(None).programs,
    }


def tiny_model() -> Model:
    """A random Llama of two layers with a tokenizer of bytes."""
    import tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", "<pad>", *letters]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    given = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    config, rng = model_config_from_hf(given), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * np.float32(0.2)), param_shapes(config)
    )
    return Model("tiny", config, params, tokenizer, given, "tiny")


def document(number: int, asked: bool) -> Document:
    """One of many documents of one length, with two pairs, and a question if it is to be asked."""
    name = f"Place {number:06d}"
    return Document(
        f"{name} lies on river {number % 97:02d}. It was founded in the year {1000 + number % 900}.",
        id=f"place-{number:06d}",
        questions=(Question(f"When was {name} founded?", (str(1000 + number % 900),)),) if asked else (),
        qa_pairs=(
            QAPair(f"Which river runs by {name}?", f"river {number % 97:02d}"),
            QAPair(f"What year was {name} founded in?", f"{1000 + number % 900}"),
        ),
    )


def recipe() -> Recipe:
    """One epoch of a few rows."""
    return Recipe(
        prompt="plain", epochs=1, batch_size=4, seq_len=128, checkpoint_every=0, rank=2, unrelated_per_epoch=0,
        tails_per_context=0, learning_rate=1e-3,
    )  # fmt: skip


def soak_sequential(model: Model, count: int, directory: pathlib.Path) -> dict[str, Meter]:
    """Injections one after another, each followed by an evaluation: an item is both."""
    meter, began = Meter(count), [0.0]

    @contextlib.contextmanager
    def open_hooks(*_) -> Iterator[Hooks]:
        if began[0]:
            meter.item(time.perf_counter() - began[0])
        began[0] = time.perf_counter()
        yield Hooks()

    documents = tuple(document(number, number % max(1, count // ASKED) == 0) for number in range(count))
    setup = sequences.SequenceSetup(model, recipe(), SequentialConfig(length=count), open_hooks=open_hooks)
    sequences.run_sequence(setup, sequences.DocumentSequence(0, documents, directory))
    meter.item(time.perf_counter() - began[0])
    return {"sequential injections": meter}


def soak_batch(model: Model, count: int, directory: pathlib.Path) -> dict[str, Meter]:
    """Documents in one injection: an item is 16 of its teacher's sentences, or a step."""
    documents = [document(number, False) for number in range(count)]
    reading, steps, began = [], [], [0.0]
    meters = {}

    def on_teacher(read: int, total: int) -> None:
        meter = meters.setdefault("batch, teacher", Meter(total))
        now = time.perf_counter()
        for _ in range(read - sum(reading)):
            meter.item((now - began[0]) / (read - sum(reading)))
        reading[:], began[0] = [read], now

    def on_start(first: int, total: int) -> None:
        steps.append(Meter(total))

    began[0] = time.perf_counter()
    hooks = Hooks(on_teacher, on_start, lambda record: steps[0].item(record["seconds"]))
    inject(model, documents, recipe(), directory=directory, hooks=hooks)
    return {**meters, "batch, steps": steps[0]}


def soak_questions(model: Model, count: int, _: pathlib.Path) -> dict[str, Meter]:
    """Questions, each with its document in the prompt: an item is 20 of them."""
    meter, prompt = Meter(count // 20), Prompt("plain", model.tokenizer, model.end_ids)
    for begin in range(0, count // 20 * 20, 20):
        with meter.timed():
            documents = [document(number, True) for number in range(begin, begin + 20)]
            answer_questions(model.decoder(), {"params": model.params}, prompt, documents, True)
    return {"questions": meter}


class OneModel:
    """A catalogue of one."""

    def __init__(self, model: Model):
        self.texts, self.fingerprint = make_texts(model), model.fingerprint
        self._variant = Variant("base", model.decoder(), {"params": model.params})

    def names(self) -> list[str]:
        """Its name."""
        return ["base"]

    def find(self, name: str, text: str = "") -> Variant:
        """The model, whatever the name."""
        return self._variant


def soak_server(model: Model, seconds: int, _: pathlib.Path) -> dict[str, Meter]:
    """Requests of many clients at once for some seconds: an item is a request, waiting and refusals included."""
    meter = Meter(4)
    lock, statuses = threading.Lock(), {}
    rows = 8
    with Engine(rows, CLIENTS) as engine, listen("127.0.0.1", 0, None) as bound:
        server = make_server(make_app(Service(engine, OneModel(model), Limits(new_tokens=16))))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            port = bound.getsockname()[1]
            for stream in (False, True):
                post(port, 0, stream)  # compiles
            end = time.monotonic() + seconds

            def ask(number: int) -> None:
                while time.monotonic() < end:
                    began = time.perf_counter()
                    status = post(port, number, number % 2 == 0)
                    with lock:
                        statuses[status] = statuses.get(status, 0) + 1
                        meter.items.append(time.perf_counter() - began)

            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                asking = [pool.submit(ask, number) for number in range(CLIENTS)]
                for quarter in range(1, 5):
                    time.sleep(max(0.0, end - seconds * (1 - quarter / 4) - time.monotonic()))
                    with lock:
                        meter.look()
                for each in asking:
                    each.result()
        finally:
            server.should_exit = True
            thread.join()
    print(f"{len(meter.items)} requests of {CLIENTS} clients, {rows} rows at once; by status: {statuses}")
    return {f"server, {CLIENTS} clients": meter}


def post(port: int, number: int, stream: bool) -> int:
    """The status of a client's chat request, on a connection of its own."""
    messages = [{"role": "user", "content": f"What is {number:03d}?"}]
    content = json.dumps({"model": "base", "messages": messages, "max_tokens": 16, "stream": stream})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


PARTS: dict[str, Callable[[Model, int, pathlib.Path], dict[str, Meter]]] = {
    "sequential": soak_sequential,
    "batch": soak_batch,
    "questions": soak_questions,
    "server": soak_server,
}
SHOWN = ("memory", "maps", "handles", "programs", "item_s", "cpu_s")


def table_of(rows: list[dict]) -> str:
    """The results as Markdown: ratios of the third and the last quarter to the second."""
    head = ["part", "items", "of the 2nd quarter", *SHOWN, "grown, KiB an item"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        second, since = row["quarters"][1], 0
        for name, quarter in zip(("3rd", "4th"), row["quarters"][2:], strict=True):
            since += quarter["items"]
            ratios = [f"{quarter[each] / second[each]:.3f}" if second[each] else "" for each in SHOWN]
            grown = (quarter["memory"] - second["memory"]) / 1024 / max(1, since)
            cells = [row["part"], str(row["items"]), name, *ratios, f"{grown:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure_all() -> None:
    """Runs the parts, writes and prints."""
    counts = SHORT if QUICK.value else {name: round(SHARE.value * count) for name, count in WHOLE.items()}
    if unknown := set(ONLY.value) - set(PARTS):
        raise ValueError(f"--only has {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    backend.prepare(None)
    model, rows = tiny_model(), []
    for name, soak in PARTS.items():
        if ONLY.value and name not in ONLY.value:
            continue
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            for part, meter in soak(model, counts[name], pathlib.Path(folder)).items():
                rows.append({"part": part, "items": len(meter.items), "quarters": meter.quarters})
        files.write_json(OUT.value, {"jax": jax.__version__, "cpus": os.cpu_count(), "rows": rows})
    print(table_of(rows))


if __name__ == "__main__":
    run(measure_all)
