"""Three small documents and a few texts, for whole jobs on a tiny model, and what such a job leaves."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from selfparam_jax.configs import base

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.training.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [
    {
        "id": f"doc-{n}",
        "title": name,
        "context": f"{name} lies on the {river}. It was founded by {founder}.",
        "questions": [{"question": f"Who founded {name}?", "answers": [founder]}],
        "qa_pairs": [
            {"question": f"Which river runs by {name}?", "answer": river},
            {"question": f"By whom was {name} founded?", "answer": founder},
            {"question": f"What town lies on the {river}?", "answer": name},
        ],
    }
    for n, (name, river, founder) in enumerate([("Ava", "Om", "Lu Ka"), ("Bor", "Nil", "Re Mo"), ("Cy", "Ul", "Si")])
]
TEXTS = [{"text": text} for text in ("The sky is wide and blue.", "Bread needs salt.", "Two and two are four.")]


def documents(count=3):
    """The first of the documents, with their questions and pairs."""
    return [
        Document(
            record["context"],
            record["title"],
            record["id"],
            tuple(Question(each["question"], tuple(each["answers"])) for each in record["questions"]),
            tuple(QAPair(**pair) for pair in record["qa_pairs"]),
        )
        for record in DOCUMENTS[:count]
    ]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def batch_config(model_dir, folder):
    """A batch job of eight rows a step on a tiny model; its files are written into the folder."""
    config = base.get_config()
    config.model = str(model_dir)
    config.prompt = "plain"
    config.contexts = str(write(folder / "documents.jsonl", DOCUMENTS))
    config.unrelated = config.eval.general = str(write(folder / "texts.jsonl", TEXTS))
    config.targets.unrelated_per_epoch = 2
    config.targets.tails_per_context = 1
    config.eval.reach = "none"  # tests of its own
    config.lora.dropout = 0.1  # a resumed run must also draw the same masks
    config.train.update(epochs=8, batch_size=8, seq_len=128, checkpoint_every=3, learning_rate=1e-2)
    return config


def job_flags(model_dir, folder, changes):
    """The command line of a batch job of eight rows a step; its files are written into the folder."""
    settings = {
        "model": model_dir,
        "prompt": "plain",
        "contexts": write(folder / "documents.jsonl", DOCUMENTS),
        "unrelated": write(folder / "texts.jsonl", TEXTS),
        "eval.general": folder / "texts.jsonl",
        "eval.reach": "none",
        "targets.unrelated_per_epoch": 2,
        "targets.tails_per_context": 1,
        "train.batch_size": 8,
        "train.seq_len": 64,
        "lora.dropout": 0.1,
    }
    named = [f"--config.{name}={value}" for name, value in (settings | changes).items()]
    return [f"--config={ROOT / 'configs' / 'base.py'}", *named]


def newest_adapter(directory):
    """Step and adapter of a directory's newest checkpoint, the latter as a flat {path: array}."""
    with Checkpoints(directory / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        item = checkpoints._manager.restore(step, args=ocp.args.Composite(lora=ocp.args.StandardRestore()))["lora"]
    return step, flat_adapter(item)


def flat_adapter(lora):
    """An adapter's tree as {path: array}."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(lora)}


def assert_same_adapter(one, other):
    """Two adapters of `flat_adapter` are equal to the bit, and not what training starts from."""
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)
    assert all(np.abs(leaf).max() > 1e-3 for name, leaf in one.items() if name.endswith("['b']"))


def modified(directory):
    """When every file below a directory was last written, in ns."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
