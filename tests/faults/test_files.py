"""Damaged files of a run, of any kind and at any place: the resumed run refuses them or makes them again."""

import os
import re
import shutil

import pytest
from job_inputs import batch_config, newest_adapter

from selfparam_jax.distributed import files
from selfparam_jax.jobs.run import run_job
from selfparam_jax.sequential.ledger import Ledger

# What nothing is computed from: for people, and for other programs.
SHOWN = ("report.md", "sequential.md", "metrics.jsonl", "targets.jsonl", "predictions.jsonl", "reach.jsonl")
JOBS = {
    "batch": {},
    "single": {"limit": 2},
    "sequential": {
        "limit": 2,
        "sequential.length": 2,
        "sequential.replay_pairs": 2,
        "sequential.replay_per_epoch": 1,
        "sequential.self_generated_per_epoch": 1,
    },
}


@pytest.fixture(scope="module")
def finished(model_dir, tmp_path_factory):
    """A function: configuration and work directory of a finished job of a kind; each runs once."""
    made = {}

    def run(job):
        if job not in made:
            folder = tmp_path_factory.mktemp(job)
            config = batch_config(model_dir, folder)
            config.update_from_flattened_dict(JOBS[job])
            config.job, config.export_dtype = job, ""
            config.train.update(epochs=2, checkpoint_every=1)
            run_job(config, folder / "run")
            made[job] = config, folder / "run"
        return made[job]

    return run


def results_of(workdir):
    """What a run computed: answers, scores and drift, and the adapters to the bit."""
    found = files.read_json(workdir / "results.json")
    # What is injected is in the ledger, or in injected.json: only a batch reads its checkpoints again.
    adapters = {path.parent: newest_adapter(path.parent) for path in workdir.glob("checkpoints")}
    if (workdir / "sequences").exists():
        assert Ledger.open(workdir / "sequences" / "000" / "ledger").verify() == []
    return (
        files.read_lines(workdir / "predictions.jsonl"),
        {name: found[name] for name in ("scores", "drift", "steps", "num_questions", "per_context")},
        {
            str(place.relative_to(workdir)): (step, {name: leaf.tobytes() for name, leaf in lora.items()})
            for place, (step, lora) in adapters.items()
        },
    )


def kind_of(path, workdir):
    """A file's place with numbers and digests left out."""
    return re.sub(r"\d+", "N", re.sub(r"\b[0-9a-f]{12,}\b", "ID", str(path.relative_to(workdir))))


def name_of(kind):
    """What a table calls it."""
    parts = kind.split("/")
    for folder in ("checkpoints", "ledger", "teacher", "replay"):
        if folder in parts:
            return f"{folder}/"
    return parts[-1] if parts[0] not in ("answers", "systems", "sequences") else f"{parts[0]}/…/{parts[-1]}"


def flip(data, draw):
    place = int(draw.integers(len(data)))
    return data[:place] + bytes([data[place] ^ (1 << int(draw.integers(8)))]) + data[place + 1 :]


def cut(data, draw):
    return data[: int(draw.integers(len(data)))]


def unsynced(data, draw):
    """As after a power cut: the size is right, the last part was never written."""
    place = int(draw.integers(len(data)))
    return data[:place] + bytes(len(data) - place)


DAMAGE = {"a flipped bit": flip, "cut off": cut, "a tail of zeros": unsynced}


CAMPAIGN = (
    pytest.mark.faults,
    pytest.mark.skipif("FAULTS_TRIES" not in os.environ, reason="part of python -m benchmarks.faults"),
)


@pytest.mark.parametrize("job", ["batch", pytest.param("single", marks=CAMPAIGN), "sequential"])
def test_a_damaged_file_is_refused_or_made_again(job, finished, tmp_path, draw, tries, tally):
    config, workdir = finished(job)
    wanted = results_of(workdir)
    kinds = {}
    for path in sorted(workdir.rglob("*")):
        if path.is_file() and path.stat().st_size and not path.name.startswith(".lock"):
            kinds.setdefault(kind_of(path, workdir), []).append(path)
    order = [*draw.permutation(sorted(kinds))]
    for number in range(tries(4)):
        kind = order[number % len(order)]
        fault = [*DAMAGE][int(draw.integers(len(DAMAGE)))]
        chosen = kinds[kind][int(draw.integers(len(kinds[kind])))]
        copy = tmp_path / str(number)
        shutil.copytree(workdir, copy)
        damaged = copy / chosen.relative_to(workdir)
        if damaged.name != "results.json":
            (copy / "results.json").unlink()
        data = damaged.read_bytes()
        if (changed := DAMAGE[fault](data, draw)) == data:
            continue
        damaged.write_bytes(changed)
        if (copy / "checkpoints").exists() and draw.random() < 0.5:  # training resumes in the middle
            newest = max((copy / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
            shutil.rmtree(newest)
        try:
            run_job(config, copy)
        except (ValueError, OSError) as error:
            assert "Traceback" not in str(error) and str(error), kind
            outcome = "refused"
        else:
            same = damaged.is_file() and damaged.read_bytes() == changed
            if damaged.name == "results.json":
                assert not same, f"{fault} in results.json: taken for complete"
            assert results_of(copy) == wanted, f"{fault} in {damaged.relative_to(copy)} changed what was computed"
            outcome = "not used" if same else "made again"
        tally("damaged", f"{job}: {name_of(kind)}", outcome)
        shutil.rmtree(copy)
