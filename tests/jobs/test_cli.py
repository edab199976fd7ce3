"""The console script: its verbs, their help, and what it says to a wrong command line."""

import functools
import gc
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest
from extras import require
from harness_tasks import write_tasks
from job_inputs import documents

from selfparam_jax.commands import cli, command, doctor
from selfparam_jax.commands import run as front
from selfparam_jax.distributed import files
from selfparam_jax.distributed.processes import end
from selfparam_jax.jobs import export, inputs

METRICS = ["acc", "acc_norm", "brier_score"]  # of the task local_choice
DOCUMENTS = [
    {
        "id": name,
        "context": f"{name} lies on the {river}. It was founded by {founder}.",
        "questions": [{"question": f"Who founded {name}?", "answers": [founder]}],
        "qa_pairs": [{"question": f"Which river runs by {name}?", "answer": river}],
    }
    for name, river, founder in (("Ava", "Om", "Lu Ka"), ("Bor", "Nil", "Re Mo"))
]


@pytest.fixture
def document_file(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in DOCUMENTS))
    return path


def settings(model_dir):
    return [
        f"--model={model_dir}",
        "--config.prompt=plain",
        "--config.train.epochs=1",
        "--config.train.seq_len=96",
        "--config.targets.unrelated_per_epoch=1",
        "--config.eval.general=",
        "--config.eval.reach=none",
        "--config.compilation_cache=False",
    ]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "Example: selfparam " + verb in text or "python -m selfparam_jax.main" in text
    assert len(text.splitlines()) > 5


def test_the_usage_names_every_verb(capsys):
    cli.main([])
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["injekt"], "did you mean inject?"),
        (["inject", "--out=x"], "got no documents"),
        (["inject", "a.txt"], "--out is missing"),
        (["inject", "missing.txt", "--out=out"], "missing.txt"),
        (["inject", "a.txt", "--out=out", "--config.train.epoch=4"], "did you mean train.epochs?"),
        (["targets", "--out=p", "--config.lora.targets=x"], "lora.targets is called lora.target_modules now"),
        (["run"], "--config is missing"),
        (["run", "--config=bach"], "--config=bach: no such file, expected a file or one of base, batch"),
        (["run", "--config=batch", "--config.train.batch_rows=4"], "train.batch_rows is called train.batch_size now"),
        (["run", "--config=batch", "--config.train.epoch=4"], "did you mean train.epochs?"),
        (
            ["run", "--config=batch", "--config.train.epochs=x"],
            "train.epochs = 'x', expected an int; the default is",
        ),
        (["run", "--config=batch", "--config.train.epochs", "2.5"], "train.epochs = '2.5', expected an int"),
        (["inject", "a.txt", "--out=out", "--config.lora.alpha=big"], "lora.alpha = 'big', expected a float"),
        (
            ["run", "--config=batch", "--config.compilation_cache=maybe"],
            "'maybe', expected true or false",
        ),
        (["run", "--config=batch", "--config.mesh=3"], "mesh = '3', expected one of its settings, such as mesh.data"),
        (["run", "--config=batch", "--config.systems=3"], "systems = (3,), expected a tuple of str"),
        (
            ["run", "--config=batch", "--config.report_to=tensorbord"],
            "report_to names 'tensorbord', expected",
        ),
        (["run", "--config=batch", "--workdri=x"], "there is no flag --workdri; did you mean --workdir?"),
        (["inject", "a.txt", "--outt=x"], "there is no flag --outt; did you mean --out?"),
        (["inject", "a.txt", "--qqqqqq=x"], "there is no flag --qqqqqq; expected --config, "),
        (["export", "runs/x", "--fromat=hf", "--out=x"], "there is no flag --fromat; did you mean --format?"),
        (["ask", "runs/x", "Who?", "--documnet=a"], "there is no flag --documnet; did you mean --document?"),
        (["compare", "a", "b", "--qqqqqq"], "there is no flag --qqqqqq; expected --base, "),
        (["run", "batch", "--config=single"], "got more than one configuration, expected one; remove the others"),
        (["run", "--config", "batch", "--config", "single"], "got more than one configuration"),
        (["inject", "a.txt", "--out=o", "--flagfile=nope"], "Unable to open flagfile"),
        (["inject", "a.txt", "--out=o", "--nodry_run=1"], "--nodry_run=1 does not take an argument"),
        (["inject", "a.txt", "--out=o", "--config.contexts=b"], "got documents and --config.contexts, expected one"),
        (["inject", "a.txt", "--out=o", "--model=m", "--config.model=n"], "got --model and --config.model, expected"),
        (["targets", "--contexts=a", "--out=o", "--config.contexts=b"], "got --contexts and --config.contexts"),
        (["ledger", "nowhere", "list", "--qqqqqq"], "--qqqqqq"),
        (["eval", "runs/x"], "--tasks is missing, expected names of tasks"),
        (["eval", "runs/x", "--tasks=a", "--include_path=nowhere"], "--include_path=nowhere: no such folder"),
        (["eval", "runs/x", "--tasks=a", "--limit=-1"], "argument --limit: '-1', expected 0 (all) or a"),
        (["eval", "runs/x", "--task=a", "--limt=2"], "there is no flag --limt; did you mean --limit?"),
        (["run", "--config=batch", "--config.prompt=worked"], "'worked' is called 'few_shot' now"),
        (["run", "--config=batch", "stray"], "unexpected arguments: stray"),
        (["targets", "--contexts=x"], "--out is missing"),
        (["inject", ".", "--out=out"], "out lies within "),
        (["inject", ".", "--out=out", "--dry_run"], "all of whose files are read as documents; choose a directory"),
        (["ask", "nowhere", "Who?"], "nowhere is not a work directory (no config.json); give the directory of a job"),
        (["ask", "nowhere", ""], "got an empty question, expected words"),
        (["targets", "--out=.", "--contexts=x"], ". is a directory, expected a file; name one in it"),
        (["export", "nowhere", "--format=hf", "--out=x"], "nowhere is not a work directory"),
        (["report", "nowhere"], "nowhere"),
        (["ledger", "nowhere", "list"], "nowhere"),
        (["plan", "--config=batch"], "--devices is missing"),
        (["compare", "a"], "expected 2"),
    ],
)
def test_a_wrong_command_line_gets_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code in (1, 2)
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1] and "Traceback" not in "".join(errors)
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_inject_then_ask_then_export_from_another_directory(document_file, model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["inject", document_file.name, "--out=out", *settings(model_dir)])
    text = capsys.readouterr().out
    assert "base_q" in text and "injected" in text
    for name in ("report.md", "adapter/adapter_config.json", "merged/config.json", "answers/base_cq.jsonl"):
        assert (tmp_path / "out" / name).exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    cli.main(["ask", str(tmp_path / "out"), "Who founded Bor?"])
    text = capsys.readouterr().out
    assert "Who founded Bor?" in text and "Injected" in text and "Bor" in text.splitlines()[-1]
    cli.main(["export", str(tmp_path / "out"), "--format=peft", "--out=again"])
    ours, again = (path / "adapter_model.safetensors" for path in (tmp_path / "out" / "adapter", elsewhere / "again"))
    assert ours.read_bytes() == again.read_bytes()
    cli.main(["report", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        cli.main(["export", str(tmp_path / "out"), "--format=hf", "--out=again"])
    assert "again" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(model_dir, tmp_path_factory):
    """What `selfparam inject` leaves, with an adapter that matters."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in DOCUMENTS))
    arguments = [str(folder / "documents.jsonl"), f"--out={folder / 'out'}", *settings(model_dir)]
    cli.main(["inject", *arguments, "--config.train.learning_rate=0.03", "--config.export_dtype="])
    return folder / "out"


def test_tasks_are_asked_of_base_and_injected_side_by_side(finished, model_dir, tmp_path, capsys, monkeypatch):
    require("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments = ["--tasks=local_choice", f"--include_path={write_tasks(tmp_path)}", "--limit=4", "--batch_size=4"]
    cli.main(["eval", str(finished), *arguments, f"--out={tmp_path / 'both.json'}"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["task", "metric", "examples", "base", "injected"]
    assert [row.split()[:3] for row in rows[:-1]] == [["local_choice", name, "4"] for name in METRICS]
    both = files.read_json(tmp_path / "both.json")["tasks"]["local_choice"]
    cli.main(["eval", str(model_dir), *arguments, f"--out={tmp_path / 'alone.json'}"])
    alone = files.read_json(tmp_path / "alone.json")["tasks"]["local_choice"]
    assert [*both["scores"]] == METRICS and both["examples"] == 4
    for name in METRICS:
        assert both["scores"][name]["base"] == alone["scores"][name]["model"]
    scores = both["scores"]["brier_score"]
    assert abs(scores["base"] - scores["injected"]) > 1e-4, "the adapter is part of the injected model"
    arguments += [f"--base={model_dir}", f"--out={tmp_path / 'peft.json'}"]
    cli.main(["eval", str(finished / "adapter"), *arguments])
    found = files.read_json(tmp_path / "peft.json")["tasks"]["local_choice"]["scores"]["brier_score"]
    assert found["injected"] == pytest.approx(scores["injected"], abs=1e-6)


def test_a_task_that_does_not_exist_gets_a_hint(tmp_path, capsys, monkeypatch):
    tasks = require("lm_eval.tasks")
    own = functools.partial(tasks.TaskManager, include_defaults=False)  # the harness's own list takes long to read
    monkeypatch.setattr(tasks, "TaskManager", own)
    with pytest.raises(SystemExit):
        cli.main(["eval", "x", "--tasks=local_choise", f"--include_path={write_tasks(tmp_path)}"])
    assert "there is no task 'local_choise'; did you mean local_choice?" in capsys.readouterr().err


def test_several_files_are_injected_together(model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for record in DOCUMENTS:
        (tmp_path / f"{record['id']}.jsonl").write_text(json.dumps(record) + "\n")
    cli.main(["inject", "Ava.jsonl", "Bor.jsonl", "--out=out", *settings(model_dir)])
    found = files.read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [line["context"] for line in found] == ["Ava", "Bor"]
    with pytest.raises(SystemExit):
        cli.main(["inject", "Ava.jsonl", "./Ava.jsonl", "--out=twice", *settings(model_dir)])
    assert "the document id 'Ava' comes from two of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "file cannot be a directory: it is a file; choose another path"),
        ("file/out", "file is a file; choose another path"),
        ("sealed/out", "sealed is read-only here; choose a directory that can be written"),
        ("x" * 300, "cannot be made (File name too long); choose a directory that can be written"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_output_path_that_cannot_be_used_is_refused_before_anything_is_loaded(
    out, message, dry_run, document_file, model_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "sealed").mkdir()
    monkeypatch.setattr(files.os, "access", lambda path, _: "sealed" not in str(path))  # root may write anywhere
    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: pytest.fail("the model is loaded"))
    before = sorted(tmp_path.rglob("*"))
    verbs = [["inject", document_file.name, f"--out={out}", *settings(model_dir)]]
    if not dry_run:
        verbs += [["export", "nowhere", "--format=peft", f"--out={out}"]]
        verbs += [
            ["targets", f"--contexts={document_file}", f"--out={out}/pairs.jsonl", f"--config.model={model_dir}"]
        ]
    for arguments in verbs:
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, *["--dry_run"] * dry_run])
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert ended.value.code == 1 and message in line and out in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("verb", "out", "message"),
    [
        (
            ["eval", "nowhere", "--tasks=x"],
            "file/eval.json",
            "file cannot be a directory: it is a file; choose another path",
        ),
        (["eval", "nowhere", "--tasks=x"], "folder", "folder: is a directory or a device, expected a file"),
        (["eval", "nowhere", "--tasks=x"], "mine.json", "mine.json: is another file than one that this command"),
        (["compare", "nowhere", "neither"], "file", "file cannot be a directory: it is a file; choose another path"),
        (["compare", "nowhere", "neither"], "other", "compare.md: is there without a compare.json, so it is of no"),
        (["recommend", "score", "--replies=n", "--records=n", "--entities=n"], "file", "file cannot be a directory"),
    ],
)
def test_an_output_is_checked_before_the_work(verb, out, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine.json").write_text('{"a": 1}')
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "compare.md").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb, f"--out={out}"])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert ended.value.code == 1 and message in line


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("verb", [[], ["export"], ["inject"]])
def test_what_cannot_be_printed_has_a_line_and_an_exit_code(verb, unbuffered, monkeypatch):
    """As with `selfparam --help >/dev/full`; and where the reader of a pipe has gone."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = [sys.executable, "-m", "selfparam_jax.commands.cli", *verb, "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 74 and line.startswith("error: ") and "No space left on device" in line
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode in (1, 74) and "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1


def test_a_stop_that_python_loses_is_asked_for_again(capsys):
    """An exception in a callback of the garbage collector, as JAX has one, is shown and forgotten."""
    heard = signal.getsignal(signal.SIGTERM)

    def stop_once(*_):
        gc.callbacks.remove(stop_once)
        signal.raise_signal(signal.SIGTERM)

    def work():
        gc.callbacks.append(stop_once)
        gc.collect()
        time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        command.run(work)
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines() == ["stopped by SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) is heard


def test_a_platform_that_is_not_there_is_named_with_its_variable(monkeypatch, capsys):
    def work():
        raise RuntimeError("Unable to initialize backend 'tpu': no such device\nmore lines")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(SystemExit) as ended:
        command.run(work)
    said = "error: Unable to initialize backend 'tpu': no such device; JAX_PLATFORMS is 'tpu'"
    assert ended.value.code == 1 and capsys.readouterr().err.splitlines() == [said]


def test_the_doctor_knows_what_no_model_is(tmp_path, monkeypatch):
    fine, said = doctor.check_model("smolm2")
    assert not fine and said.startswith(
        "model 'smolm2' is not known: got neither an existing directory or .gguf file"
    )
    assert doctor.check_model(str(tmp_path / "x.gguf")) == (False, f"{tmp_path / 'x.gguf'}: no such file")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    for path in ("notes/a.txt", str(tmp_path / "notes" / "a.txt")):  # the first looks like a hub's id
        fine, said = doctor.check_model(path)
        assert not fine and "a.txt': got a file, expected a directory with config.json" in said
    fine, said = doctor.check_model(str(tmp_path))
    assert not fine and "has no config.json" in said
    fine, said = doctor.check_model("org/name")
    assert fine and "would be fetched from the hub" in said


def test_an_export_needs_to_know_the_base_of_an_adapter_alone(tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "run").mkdir()
    for more, message in (
        (["adapter"], "adapter is an adapter; give the model below it: --base=MODEL"),
        (["run", "--base=x"], "run is a work directory, which names its own; leave it out"),
    ):
        source, *base = more
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", str(tmp_path / source), *base, "--format=peft", f"--out={tmp_path / 'out'}"])
        assert ended.value.code == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("job", "part", "message"),
    [
        ("single", None, "has a model for every document; give one, such as .*/contexts/000"),
        ("single", "007", "there is no document 007, expected 000 to 002"),
        ("single", "x", "there is no document x, expected 000 to 002"),
        ("sequential", None, "has 2 sequences; give one, such as .*/sequences/000"),
        ("sequential", "005", "has no finished injection; run the job first"),
    ],
)
def test_an_export_of_a_part_that_is_not_there(job, part, message, tmp_path, monkeypatch):
    made = types.SimpleNamespace(
        settings=types.SimpleNamespace(job=job),
        recipe=types.SimpleNamespace(lora=types.SimpleNamespace(scale=1.0)),
        documents=documents(3),
        workdir=tmp_path,
    )
    cut = [types.SimpleNamespace(directory=tmp_path / "sequences" / name) for name in ("000", "001")]
    monkeypatch.setattr(export, "read_workdir", lambda _: {"inputs": {}})
    monkeypatch.setattr(export, "sequences_of", lambda _: cut)
    with pytest.raises(ValueError, match=message):
        export._trained(made, tmp_path, part, False)


def test_targets_says_how_many_sentences_are_asked_about(tmp_path, capsys):
    notes, out = tmp_path / "notes.txt", tmp_path / "pairs.jsonl"
    notes.write_text("The town of Ava was founded by Lu Ka in 1743. Well, well, well!")
    cli.main(["targets", f"--contexts={notes}", f"--out={out}", "--config.generator.teacher_scores=false"])
    said, covered = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{out}: ") and said.endswith(" pairs kept for 1 document")
    assert covered.startswith("1 of 2 sentences are asked about")


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_a_text_of_which_no_pair_can_be_made_is_named(flags, model_dir, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("x" * 700)
    with pytest.raises(SystemExit):
        cli.main(["inject", str(tmp_path / "long.txt"), f"--out={tmp_path / 'out'}", *settings(model_dir), *flags])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "no question-answer pair could be made of the text of 'long'; expected sentences" in line
    assert "generator=auto" not in line


def test_the_default_work_directory_is_named_after_the_configuration():
    assert front.default_workdir("configs/batch.py") == os.path.join("runs", "batch")
    assert front.default_workdir("batch:quick") == os.path.join("runs", "batch-quick")
    assert front.default_workdir("/somewhere/mine.py:a:b") == os.path.join("runs", "mine-a-b")


def test_main_without_a_workdir_says_where_it_writes(document_file, model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config=batch", f"--config.model={model_dir}", f"--config.contexts={document_file}"]
    front.main([*arguments, *settings(model_dir)[1:]])
    assert "work directory: runs/batch" in capsys.readouterr().out
    assert (tmp_path / "runs" / "batch" / "report.md").exists()
    with pytest.raises(SystemExit):
        front.main([*arguments, *settings(model_dir)[1:], "--config.train.epochs=2"])
    message = capsys.readouterr().err
    assert (
        "runs/batch belongs to a run with another configuration" in message and "Choose another directory" in message
    )


def test_doctor_finds_what_is_there(model_dir, capsys):
    cli.main(["doctor", f"--model={model_dir}"])
    text = capsys.readouterr().out
    for word in ("Python", "jax ", "devices", "cache", "GB free", "layers of", "synthesis"):
        assert word in text
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--model=missing.gguf"])
    assert ended.value.code == 1 and "missing.gguf: no such file" in capsys.readouterr().out


def test_a_package_of_ours_is_news_and_others_are_not(tmp_path):
    code = (
        "import sys\nfrom absl import logging\nfrom selfparam_jax.commands import command\n"
        "import selfparam_jax.jobs.inputs as ours\n"
        "def speak():\n"
        "    logging.set_verbosity(logging.INFO)\n"
        "    exec(compile('logging.info(\"from a folder of ours\")', ours.__file__, 'exec'), {'logging': logging})\n"
        "    exec(compile('logging.info(\"from a library\")', '/lib/other.py', 'exec'), {'logging': logging})\n"
        "command.run(speak)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "from a folder of ours" in done.stderr and "from a library" not in done.stderr


def test_settings_given_twice_or_apart_are_read():
    values = front.define_flags(["x", "--config", "batch", "--config.train.epochs=7"])
    command.parse_flags(values, ["x", "--config", "batch", "--config.train.epochs=7"])
    assert values["config"].value.train.epochs == 7


def test_ending_a_process_uses_the_given_code():
    with pytest.raises(SystemExit) as ended:
        end(3)
    assert ended.value.code == 3


def test_sigterm_ends_a_command_with_a_line(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def wait_to_be_ended():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        command.run(wait_to_be_ended)
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) == before
