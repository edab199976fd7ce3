"""What TensorBoard and Weights & Biases are told, of a run that is stopped and resumed."""

import json

import numpy as np
import pytest
from extras import require
from job_inputs import batch_config

from selfparam_jax.data.documents import Document, Question
from selfparam_jax.distributed import files
from selfparam_jax.jobs import progress, tracking
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import EvalConfig, Settings
from selfparam_jax.training.inject import Interrupted

SECRET = "sk-do-not-tell"
STOP_AFTER = 5  # the last step; the newest checkpoint is of step 3


def events(directory):
    """What TensorBoard shows of a directory's event files: {tag: {step: value}}.

    A file says at its start from which step on what was written before it is void.
    """
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(directory.glob("events.*"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length (8 bytes), its checksum (4), the event, its checksum (4)
            size = int(np.frombuffer(data[at : at + 8], "<u8")[0])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == 1:
                found = {tag: {s: v for s, v in each.items() if s < event.step} for tag, each in found.items()}
            for value in event.summary.value:
                text = b"".join(value.tensor.string_val).decode()
                shown = value.simple_value if value.HasField("simple_value") else text
                series = found.setdefault(value.tag, {})
                assert event.step not in series, f"{value.tag} has step {event.step} twice"
                series[event.step] = shown
    return found


class OfWandb:
    """In place of wandb.init: keeps what it is given."""

    runs = []

    def __init__(self, **given):
        self.given, self.logged, self.finished = given, [], False
        self.runs.append(self)

    def log(self, values, step):
        assert not self.finished
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture(scope="module")
def told(model_dir, tmp_path_factory):
    """A batch job with both trackers, killed after some steps and resumed."""
    require("tensorboardX")
    wandb = require("wandb")
    folder = tmp_path_factory.mktemp("tracking")
    config = batch_config(model_dir, folder)
    config.export_dtype, config.eval.general, config.systems = "", "", ()
    config.endpoint.base_url, config.endpoint.key_variable = "https://example.org/v1", "KEY_OF_A_TEST"
    config.report_to, config.eval.sample_every, config.eval.sample_questions = "tensorboard, wandb", 2, 2
    OfWandb.runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("KEY_OF_A_TEST", SECRET)
        patch.setattr(wandb, "init", OfWandb)
        kept = progress.ProgressLog.on_step

        def stop_at(log, record):
            kept(log, record)
            if record["step"] == STOP_AFTER:
                raise KeyboardInterrupt  # as a second Ctrl-C: nothing is saved

        patch.setattr(progress.ProgressLog, "on_step", stop_at)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run_job(config, folder / "run")
        assert not isinstance(stopped.value, Interrupted)
        patch.setattr(progress.ProgressLog, "on_step", kept)
        results = run_job(config, folder / "run")
    return folder, results, list(OfWandb.runs)


def test_tensorboard_has_every_step_once_and_the_scores(told):
    folder, results, _ = told
    found = events(folder / "run" / "tensorboard")
    steps = files.read_lines(folder / "run" / "metrics.jsonl")
    assert [*found["train/loss"]] == [record["step"] for record in steps] == [*range(1, results["steps"] + 1)]
    assert [*found["train/loss"].values()] == pytest.approx([record["loss"] for record in steps], rel=1e-6)
    assert found["scores/injected/f1"][results["steps"]] == pytest.approx(results["scores"]["injected"]["f1"])
    assert {"timing/train_s", "train/learning_rate", "train/grad_norm"} <= found.keys()
    (settings,) = [text for tag, each in found.items() if tag.startswith("settings") for text in each.values()]
    assert "lora.rank" in settings and "example.org" in settings
    assert len(list((folder / "run" / "tensorboard").iterdir())) == 3  # the stopped part, the rest, scores


def test_sampled_answers_are_told_as_text(told):
    folder, results, runs = told
    rows = files.read_lines(folder / "run" / "samples.jsonl")
    steps = range(2, results["steps"] + 1, 2)
    assert [row["step"] for row in rows] == [step for step in steps for _ in range(2)]
    assert {(row["document"], row["question"], row["gold"]) for row in rows} == {
        ("doc-0", "Who founded Ava?", "Lu Ka"),
        ("doc-1", "Who founded Bor?", "Re Mo"),
    }
    shown = events(folder / "run" / "tensorboard")
    (text,) = [each for tag, each in shown.items() if tag.startswith("samples")]
    assert [*text] == [*steps] and "Who founded Ava?" in text[2]
    last = {row["question"]: row["answer"] for row in rows[-2:]}
    final = {row["question"]: row["injected"]["answer"] for row in files.read_lines(folder / "run/predictions.jsonl")}
    if results["steps"] % 2 == 0:
        assert last == {question: final[question] for question in last}
    table = next(values["samples"] for step, values in runs[1].logged if step == steps[-1] and "samples" in values)
    assert [row[1] for row in table.data] == ["Who founded Ava?", "Who founded Bor?"]


def test_a_resumed_run_continues_its_series_in_wandb(told):
    folder, results, runs = told
    assert len(runs) == 3 and all(run.finished for run in runs)
    (name,) = {run.given["id"] for run in runs}
    assert json.loads((folder / "run" / "wandb.json").read_text())["id"] == name and len(name) == 8
    losses = [[step for step, values in run.logged if "train/loss" in values] for run in runs]
    assert losses == [[1, 2, 3, 4], [4, 5], []]  # step 4 again, as it was not saved
    ((step, scores),) = runs[2].logged
    assert step == results["steps"] and scores["scores/injected/f1"] == results["scores"]["injected"]["f1"]
    assert {run.given["name"] for run in runs} == {"run"}


def test_keys_are_never_told(told):
    folder, _, runs = told
    config = runs[0].given["config"]
    assert config["endpoint.base_url"] == "https://example.org/v1" and config["lora.rank"] == 8
    assert SECRET not in str([run.given | {"settings": ""} for run in runs])
    for path in (folder / "run").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    options = runs[0].given["settings"]
    assert options.x_disable_meta and options.disable_git and options.disable_code and options.console == "off"


def test_wandb_itself_writes_offline_and_is_continued(tmp_path, monkeypatch):
    require("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    told = tracking.Tracking(("wandb",), tmp_path, {"lora.rank": 8})
    for first in (0, 2):
        with told.open(tmp_path, first) as (tracker,):
            tracker.log_scalars(first + 1, {"train/loss": 1.5})
            tracker.log_rows(first + 1, "samples", [{"question": "Who?", "answer": "Om"}])
    parts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    name = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert len(parts) in (1, 2) and all(part.name.endswith(name) for part in parts)  # two within a second share one
    assert b"train/loss" in (parts[0] / f"run-{name}.wandb").read_bytes()


def test_who_cannot_be_told_is_said_before_anything_is_computed(monkeypatch):
    with pytest.raises(ValueError, match="report_to names 'tensorbord', expected none or some of tensorboard, wandb"):
        Settings(report_to="tensorbord")
    assert Settings(report_to="wandb,tensorboard").trackers == ("wandb", "tensorboard")
    assert Settings(report_to="none").trackers == Settings(report_to="").trackers == ()
    for name in ("sample_every", "sample_questions"):
        with pytest.raises(ValueError, match=f"eval.{name} = -1"):
            EvalConfig(**{name: -1})
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorboardX: run pip install 'selfparam-jax\[trackers\]'"):
        tracking.check_trackers(Settings(report_to="tensorboard"))


def test_without_a_login_it_is_said(monkeypatch):
    wandb = require("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(ValueError, match="nobody is logged in to Weights & Biases; run `wandb login`"):
        tracking.check_trackers(Settings(report_to="wandb"))


def test_only_the_main_process_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "is_main_process", lambda: False)
    with tracking.Tracking(("tensorboard", "wandb"), tmp_path).open(tmp_path, 0) as trackers:
        assert trackers == []
    assert list(tmp_path.iterdir()) == []


def test_questions_are_taken_in_turn():
    def document(name, count):
        return Document(f"{name}.", id=name, questions=tuple(Question(f"{name}{n}?", ("x",)) for n in range(count)))

    chosen = tracking.first_questions([document("a", 3), document("b", 0), document("c", 1)], 3)
    assert [(each.id, [q.question for q in each.questions]) for each in chosen] == [
        ("a", ["a0?", "a1?"]),
        ("c", ["c0?"]),
    ]
