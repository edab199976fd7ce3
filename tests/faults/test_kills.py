"""Commands killed by SIGKILL at moments drawn at random, and started twice at once: they end as if nothing had been.

Every run of the tests kills one command once; those of the other kinds are killed in tests/jobs and tests/sequential.
"""

import http.client
import json
import os
import re
import shutil
import signal
import time

import processes
import pytest
from job_inputs import batch_config, newest_adapter, write

from selfparam_jax.distributed import files
from selfparam_jax.distributed.files import digest
from selfparam_jax.jobs.run import run_job

CAMPAIGN = "FAULTS_TRIES" in os.environ
KILLS = 4  # of one run, before it is left to end
SAME_BYTES = (".safetensors", ".gguf", ".csv")
PLAIN = "Maro Telvik founded the town of Quenbarrow in 1742. The town lies on the river Orrin. "
SINGLE = {"limit": 2}
SEQUENTIAL = {"limit": 3, "sequential.length": 3, "sequential.replay_pairs": 2, "sequential.replay_per_epoch": 1}
SYSTEMS = {"systems": ("base_q", "injected", "ft_s", "bm25")}
JOBS = {
    "batch": {"export_dtype": "float32"},
    "single": SINGLE,
    "sequential": SEQUENTIAL,
    "several systems": SYSTEMS,
    "recommend": None,
}


def recommend_config(model_dir, folder):
    """Two dialogues and two turns."""
    config = batch_config(model_dir, folder)
    spoken = [{"role": "User", "text": "I like Up (2009)."}, {"role": "System", "text": "Try Jaws (1975)."}]
    titles = [{"title": "Up (2009)", "suggested": False, "liked": True}, {"title": "Jaws (1975)", "suggested": True}]
    dialogues = [{"id": name, "messages": spoken, "titles": titles} for name in ("d0", "d1")]
    turns = [
        {"input": f"\nUser: {said}\nSystem: ", "rec": [0], "prev_entity": [1], "dialog_id": said}
        for said in ("I like Up", "I like Heat a lot")
    ]
    config.contexts = str(write(folder / "dialogues.jsonl", dialogues))
    config.recommend.records = str(write(folder / "records.jsonl", turns))
    for name, content in (("entities", {"Jaws_(film)": 0, "Up": 1}), ("item_ids", [0, 1])):
        (folder / f"{name}.json").write_text(json.dumps(content))
        config.recommend[name] = str(folder / f"{name}.json")
    config.job, config.prompt, config.targets.generator = "recommend", "chat", "none"
    config.recommend.systems, config.recommend.new_tokens = ("base", "popularity"), 4
    config.targets.tail_cut, config.train.seq_len = "sentence", 256
    return config


def config_of(job, model_dir, folder):
    """The configuration of a small job; its inputs are written into the folder."""
    config = recommend_config(model_dir, folder) if job == "recommend" else batch_config(model_dir, folder)
    config.export_dtype = ""
    config.update_from_flattened_dict(JOBS[job] or {})
    if job in ("single", "sequential"):
        config.job = job
    config.train.update(epochs=4, checkpoint_every=1)
    return config


def job_line(config, folder):
    """The command line of a job, for any work directory."""
    (folder / "config_of_test.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    return lambda out: ["selfparam_jax.main", f"--config={folder / 'config_of_test.py'}", f"--workdir={out}"]


def outcome_of(out):
    """What a command wrote that must be the same: weights and adapters to the bit, answers, scores, pairs."""
    if out.is_file():
        return [{n: v for n, v in line.items() if n != "seconds"} for line in files.read_lines(out)]
    found = {str(path.relative_to(out)): digest(path) for path in out.rglob("*") if path.suffix in SAME_BYTES}
    for path in out.rglob("checkpoints"):
        step, lora = newest_adapter(path.parent)
        found[str(path.relative_to(out))] = step, {name: leaf.tobytes() for name, leaf in lora.items()}
    if (out / "results.json").exists():
        record = files.read_json(out / "results.json")
        found |= {name: record[name] for name in ("scores", "drift", "steps")}
        found |= {name: files.read_lines(out / name) for name in ("predictions.jsonl",) if (out / name).exists()}
    return found


def killed_and_finished(line, wanted, seconds, out, draw, kills, tally, name):
    """Kills a command at random moments of its time, lets it end, and compares; how often it was killed."""
    killed = 0
    for _ in range(kills):
        process = processes.start(line(out), out.with_suffix(".log"))
        moment = float(draw.uniform(0, seconds))
        end = time.monotonic() + moment
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break  # it had ended
        killed += 1
    process = processes.start(line(out), out.with_suffix(".log"))
    assert process.wait(600) == 0, out.with_suffix(".log").read_text()
    assert outcome_of(out) == wanted, f"{name} ended otherwise after it was killed"
    for _ in range(killed):
        tally("kill -9", name, "went on")
    return killed


def timed(line, out):
    """Runs a command to its end; its seconds."""
    began = time.monotonic()
    process = processes.start(line(out), out.with_suffix(".log"))
    assert process.wait(600) == 0, out.with_suffix(".log").read_text()
    return time.monotonic() - began


def campaign(line, folder, draw, tries, tally, name, suffix=""):
    """A whole run, then others, each killed up to KILLS times, until there were as many kills as tries."""
    whole = folder / f"whole{suffix}"
    timed(line, folder / f"warm{suffix}")  # the first one compiles
    seconds, wanted = timed(line, whole), None
    wanted = outcome_of(whole)
    assert wanted
    left, runs = tries(1), 0
    while left > 0:  # a run that ends before it is killed does not count
        runs += 1
        out = folder / f"{runs}{suffix}"
        left -= killed_and_finished(line, wanted, seconds, out, draw, min(left, KILLS), tally, name)


def test_writing_pairs_is_killed(model_dir, tmp_path, draw, tries, tally):
    """`selfparam targets`, by rules."""
    contexts = write(
        tmp_path / "d.jsonl", [{"id": str(n), "context": f"{PLAIN * 3}It has {n} mills."} for n in range(9)]
    )
    line = ["selfparam_jax.commands.cli", "targets", f"--contexts={contexts}", f"--config.model={model_dir}"]
    line += [
        "--config.targets.generator=grounded",
        "--config.generator.teacher_scores=False",
        "--config.prompt=plain",
    ]
    campaign(lambda out: [*line, f"--out={out}"], tmp_path, draw, tries, tally, "selfparam targets", ".jsonl")


@pytest.mark.faults
@pytest.mark.skipif(not CAMPAIGN, reason="part of python -m benchmarks.faults")
@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_killed(job, model_dir, tmp_path, draw, tries, tally):
    line = job_line(config_of(job, model_dir, tmp_path), tmp_path)
    campaign(line, tmp_path, draw, tries, tally, f"job {job}")


@pytest.fixture
def finished(model_dir, tmp_path):
    """The work directory of a finished batch job."""
    run_job(config_of("batch", model_dir, tmp_path), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.faults
@pytest.mark.skipif(not CAMPAIGN, reason="part of python -m benchmarks.faults")
@pytest.mark.parametrize("form", ["peft", "hf", "gguf"])
def test_an_export_is_killed(form, finished, tmp_path, draw, tries, tally):
    line = ["selfparam_jax.commands.cli", "export", str(finished), f"--format={form}"]
    before = outcome_of(finished)
    campaign(lambda out: [*line, f"--out={out}"], tmp_path, draw, tries, tally, f"selfparam export, {form}")
    assert outcome_of(finished) == before


@pytest.mark.faults
@pytest.mark.skipif(not CAMPAIGN, reason="part of python -m benchmarks.faults")
def test_a_server_is_killed(finished, tmp_path, draw, tries, tally):
    """Whatever it was doing, its work directory is as before, and the next one answers."""
    before = outcome_of(finished)
    body = {"model": "injected", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 200}

    def serve(number):
        log = tmp_path / f"{number}.log"
        log.touch()
        process = processes.start(["selfparam_jax.commands.cli", "serve", str(finished), "--port=0"], log)
        deadline = time.monotonic() + 120
        while not (found := re.search(r"API: +http://127.0.0.1:(\d+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return process, int(found[1])

    def ask(port, **more):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        content = json.dumps({**body, **more})
        connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
        return connection

    (process, port), said = serve("first"), []
    try:
        said.append(json.load(ask(port, stream=False).getresponse())["choices"])
    finally:
        process.kill()
        process.wait()
    for number in range(tries(1)):
        process, port = serve(number)
        connections = [ask(port, stream=True) for _ in range(4)]
        time.sleep(float(draw.uniform(0, 0.5)))
        process.kill()
        process.wait()
        for connection in connections:
            connection.close()
        assert outcome_of(finished) == before
        tally("kill -9", "selfparam serve", "went on")
    process, port = serve("last")
    try:
        assert json.load(ask(port, stream=False).getresponse())["choices"] == said[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.faults
@pytest.mark.skipif(not CAMPAIGN, reason="part of python -m benchmarks.faults")
@pytest.mark.parametrize("job", ["batch", "sequential"])
def test_two_jobs_at_once(job, model_dir, tmp_path, draw, tries, tally):
    """In one work directory: one of them runs, and the other says so or comes when all is done."""
    line = job_line(config_of(job, model_dir, tmp_path), tmp_path)
    seconds = timed(line, tmp_path / "whole")
    wanted = outcome_of(tmp_path / "whole")
    for number in range(max(1, tries(4) // 4)):
        out = tmp_path / str(number)
        first = processes.start(line(out), tmp_path / "first.log")
        time.sleep(float(draw.uniform(0, seconds * 0.8)))
        second = processes.start(line(out), tmp_path / "second.log")
        codes = first.wait(600), second.wait(600)
        logs = [(tmp_path / f"{name}.log").read_text() for name in ("first", "second")]
        assert 0 in codes and set(codes) <= {0, 1}, logs
        for code, log in zip(codes, logs, strict=True):
            assert code == 0 or ("is in use by another job" in log and "Traceback" not in log), log
        assert outcome_of(out) == wanted
        tally("two at once", f"job {job}", "one refused" if 1 in codes else "one after the other")
        shutil.rmtree(out)
        for name in ("first", "second"):
            (tmp_path / f"{name}.log").unlink()
