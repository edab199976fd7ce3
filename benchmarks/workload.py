"""What the speed benchmarks train on: real documents, written once, read by ours and by the PyTorch peer.

A workload is a directory: `workload.json` (token ids of prefixes and sentences, which tokens carry loss, and the
sentences of every optimizer step), `packing.json` (the same row by row), `adapter.safetensors` (the adapter
that all start from) and `model/` (float32, Hugging Face's layout).
"""

import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from selfparam_jax.checkpoints.export import save_safetensors
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, load_texts, read_document_files
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import files
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.kinds import qa_sentences, unrelated_sentences
from selfparam_jax.targets.sentences import Sentence, first_slots
from selfparam_jax.training.batches import Plan
from selfparam_jax.training.optimizer import TrainConfig

LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.0)
LEARNING_RATE = 1e-3
UNRELATED_SHARE = 0.1  # unrelated texts per QA pair


def example_contexts(count: int, pairs: int = 0) -> list[Document]:
    """`count` contexts of the examples, each with `pairs` of its training pairs (0: all).

    There are 16 documents of about 70 pairs. More contexts than documents are the same documents with other
    pairs of theirs, so `pairs` must leave enough.
    """
    documents = read_document_files(resource("examples", "documents.jsonl"))
    documents += read_document_files(resource("examples", "development.jsonl"))
    contexts = []
    for turn in itertools.count():
        for document in documents:
            if len(contexts) == count:
                return contexts
            chosen = document.qa_pairs[turn * pairs : (turn + 1) * pairs] if pairs else document.qa_pairs
            if len(chosen) < pairs or (turn and not pairs):
                raise ValueError(f"{count} contexts with {pairs or 'all'} pairs each: the examples have not enough")
            contexts.append(dataclasses.replace(document, id=f"{document.id}-{turn}", qa_pairs=tuple(chosen)))


def make_sentences(contexts, prompt: Prompt) -> list[Sentence]:
    """QA pairs and unrelated texts with loss on every token (as published); also as plain fine-tuning would."""
    pairs = sum(len(context.qa_pairs) for context in contexts)
    count = min(round(UNRELATED_SHARE * pairs), 200)
    config = TargetConfig(loss_tokens="all", answer_supervision=0.0, unrelated_per_epoch=count)
    sentences = qa_sentences(contexts, prompt, config)
    texts = load_texts(resource("examples", "general_train.jsonl"))
    sentences += unrelated_sentences(texts, prompt, config, count, len(contexts), seed=0)
    return [dataclasses.replace(s, supervision=(1.0,) * len(s.ids)) for s in sentences]


def train_config(epochs: int, batch_size: int, seq_len: int) -> TrainConfig:
    """Packing as in configs/base.py; AdamW at a constant rate without clipping, which PyTorch has as well."""
    return TrainConfig(
        learning_rate=LEARNING_RATE, epochs=epochs, batch_size=batch_size, seq_len=seq_len,
        schedule="constant", warmup=0.0, clip_norm=0.0, beta2=0.999,
    )  # fmt: skip


def plan_of(sentences: list[Sentence], prompt: Prompt, config: TrainConfig) -> Plan:
    """The rows of every step."""
    unrelated = sum(sentence.kind == "unrelated" for sentence in sentences)
    return Plan(sentences, first_slots(sentences), prompt.start_ids, config, unrelated)


def write_workload(directory: pathlib.Path, base: Model, contexts, prompt: Prompt, config: TrainConfig) -> dict:
    """Writes a workload (but not its model) and returns the content of its two JSON files."""
    sentences = make_sentences(contexts, prompt)
    plan = plan_of(sentences, prompt, config)
    rows = [plan.assignment(step) for step in range(plan.steps)]
    workload = {
        "rank": LORA.rank,
        "alpha": LORA.alpha,
        "targets": LORA.target_modules,
        "learning_rate": LEARNING_RATE,
        "start_ids": prompt.start_ids,
        "prefixes": [prompt.context_prefix(context.text) for context in contexts],
        "sentences": [{"context": s.context, "ids": s.ids, "loss": s.loss_tokens} for s in sentences],
        "steps": [list(itertools.chain.from_iterable(step)) for step in rows],
    }
    packing = {"rows": rows, "seq_len": config.seq_len, "fill": plan.fill}
    directory.mkdir(parents=True, exist_ok=True)
    files.write_json(directory / "workload.json", workload)
    files.write_json(directory / "packing.json", packing)
    lora = init_lora(jax.random.key(0), base.params, LORA)
    tensors = {
        f"layers.{module}.{name}.{factor}": np.asarray(value)
        for module, projections in lora["layers"].items()
        for name, factors in projections.items()
        for factor, value in factors.items()
    }
    save_file(tensors, directory / "adapter.safetensors")
    return workload | packing


def write_model(directory: pathlib.Path, base: Model) -> None:
    """The model as a float32 Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_safetensors(base.params, base.config, directory, jnp.float32)
    base.hf_config.dtype = "float32"
    base.hf_config.save_pretrained(directory)
    base.tokenizer.save_pretrained(directory)


def read_workload(directory: pathlib.Path) -> dict:
    """What `write_workload` returned."""
    return files.read_json(directory / "workload.json") | files.read_json(directory / "packing.json")


def read_sentences(workload: dict) -> list[Sentence]:
    """The workload's sentences: weight 1 on every loss token, for the KL and for the next-token loss."""
    sentences = []
    for entry in workload["sentences"]:
        on = set(entry["loss"])
        weights_of = tuple(float(token in on) for token in range(len(entry["ids"])))
        ids = tuple(entry["ids"])
        sentences.append(Sentence("qa", entry["context"], ids, weights_of, None, {}, weights_of))
    return sentences


def read_adapter(directory: pathlib.Path) -> dict:
    """The adapter that training starts from."""
    lora: dict = {"layers": {}}
    for name, value in load_file(directory / "adapter.safetensors").items():
        _, module, projection, factor = name.split(".")
        lora["layers"].setdefault(module, {}).setdefault(projection, {})[factor] = jnp.asarray(value)
    return lora


def run_child(module: str, mode: str, directory: pathlib.Path, steps: int, *more: str) -> dict:
    """The measurements of one candidate, a process of its own."""
    out = directory / f"{mode}.json"
    command = [sys.executable, "-m", module, f"--workload={directory}", f"--mode={mode}", f"--out={out}"]
    # A test runner's limit on torch's threads must not slow the peer.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([*command, f"--limit_steps={steps}", *more], check=True, env=environment, stdin=subprocess.DEVNULL)
    return files.read_json(out)
