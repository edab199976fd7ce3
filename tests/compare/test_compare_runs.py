"""Comparisons of what lies on disk: work directories, their checkpoints, ledgers and models; and the command."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
from comparison_inputs import LORA, adapter, dense_delta, predictions
from safetensors.numpy import load_file, save_file
from selfparam_jax.configs import base

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.peft import save_adapter
from selfparam_jax.commands.compare import compare_sources, main
from selfparam_jax.compare.answers import compare_answers
from selfparam_jax.distributed import files
from selfparam_jax.jobs import run
from selfparam_jax.jobs.candidates import find_run, load_model_set
from selfparam_jax.reports.comparison import comparison_markdown, write_comparison
from selfparam_jax.sequential.ledger import Ledger, write_composed

pytestmark = pytest.mark.pictures

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = ["The hand in the land.", "12 ants and an inn, and then the other one as well.", "Then: and."]


def documents(name):
    asked = [
        {"question": f"Who founded {name}?", "answers": ["Lu Ka"]},
        {"question": "Which river?", "answers": ["Om"]},
    ]
    pairs = [{"question": "Which river runs there?", "answer": "Om"}, {"question": "By whom?", "answer": "Lu Ka"}]
    text = f"{name} lies on the Om. It was founded by Lu Ka."
    return {"id": name.lower(), "title": name, "context": text, "questions": asked, "qa_pairs": pairs}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the model, two finished batch runs of it, one of job single, one of sequential."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.save_checkpoint(folder / "model", "gqa", max_position_embeddings=2048)
    config = base.get_config()
    config.eval.reach = "none"
    config.model, config.prompt, config.export_dtype = str(folder / "model"), "plain", "float32"
    config.contexts = write(folder / "documents.jsonl", [documents("Ava"), documents("Bor")])
    config.unrelated = config.eval.general = write(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    config.targets.unrelated_per_epoch = 2
    config.train.update(epochs=24, batch_size=8, seq_len=64, learning_rate=3e-2, checkpoint_every=4)
    run.run_job(config, str(folder / "one"))
    config.seed, config.train.epochs = 1, 32
    run.run_job(config, str(folder / "two"))
    config.job, config.train.epochs = "single", 1
    run.run_job(config, str(folder / "each"))
    config.job, config.sequential.length = "sequential", 2
    run.run_job(config, str(folder / "chain"))
    return folder


@pytest.fixture
def inside(runs, monkeypatch):
    monkeypatch.chdir(runs)


def test_two_runs(runs, inside, tmp_path, capsys):
    main(["one", "two", f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    record = files.read_json(tmp_path / "out" / "compare.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.json", "compare.md", "norms.png", "pairs.png",
    ]  # fmt: skip
    for name in ("norms.png", "pairs.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    kl, results = (
        np.array(record["kl"]["mean_per_token"]),
        [files.read_json(runs / n / "results.json") for n in ("one", "two")],
    )
    assert record["kl"]["order"] == ["base", "A", "B"]
    for number, (candidate, result) in enumerate(zip(record["candidates"], results, strict=True), start=1):
        assert kl[0, number] == pytest.approx(result["drift"]["kl"], rel=1e-4)
        assert candidate["answers"]["f1"] == pytest.approx(result["scores"]["injected"]["f1"])
        assert candidate["delta"]["norm"] > 0.1 and candidate["outside"] == {}
    assert record["probe"] == {
        "source": str(runs / "texts.jsonl"), "prompt": "plain", "texts": 3, "tokens": results[0]["drift"]["tokens"],
    }  # fmt: skip
    (pair,) = record["pairs"]
    assert results[0]["scores"]["injected"]["f1"] != results[1]["scores"]["injected"]["f1"]
    difference = results[1]["scores"]["injected"]["f1"] - results[0]["scores"]["injected"]["f1"]
    assert pair["answers"]["f1"] == pytest.approx(difference) and pair["answers_note"] is None
    assert -1 < pair["cosine"] < 0.99 and pair["modules"]["o_proj"]["cosine"] is None
    assert len(pair["kernels"]) == 21
    page = (tmp_path / "out" / "compare.md").read_text()
    assert printed.splitlines()[0] in page and f"{kl[0, 1]:.3g}" in printed.splitlines()[2]
    assert f"| A, B | {pair['cosine']:.4f} |" in page
    record["kl"]["mean_per_token"] = [[0, 1, 2], [3, 0, 4], [5, 6, 0]]
    ranks = [f"{candidate['delta']['effective_rank']:.2f}" for candidate in record["candidates"]]
    page = comparison_markdown(record)
    assert f"| {ranks[0]} | 1 | 3 |" in page and f"| {ranks[1]} | 2 | 5 |" in page and ") | 4 | 6 |" in page


def test_a_merged_export_is_the_run(runs, inside):
    """And a model compared with itself, the base, is nothing at all."""
    record = compare_sources(["one", "one/merged", "model"])
    run, export, model = record["candidates"]
    assert (export["outside"], export["notes"]) == ({}, [])
    assert export["delta"]["norm"] == pytest.approx(run["delta"]["norm"], rel=1e-5)
    assert export["delta"]["effective_rank"] == pytest.approx(run["delta"]["effective_rank"], rel=1e-2)
    same = record["pairs"][0]
    assert [same[name] for name in ("cosine", "overlap_in", "overlap_out")] == pytest.approx([1, 1, 1], abs=1e-4)
    assert same["answers"] is None and same["answers_note"] is None
    kl = np.array(record["kl"]["mean_per_token"])
    assert kl[1, 2] < 1e-6 and kl[2, 1] < 1e-6 < kl[0, 1]
    assert model["delta"] == {"norm": 0.0, "relative": 0.0, "effective_rank": 0.0}
    assert kl[0, 3] == kl[3, 0] == 0.0 and record["pairs"][1]["cosine"] is None
    assert "| C | model | 0 | 0.00 % | 0.00 | 0 | 0 | – | – |" in comparison_markdown(record)


def test_a_checkpoint_and_one_injection_of_single(runs, inside, tmp_path):
    last = find_run("one").step
    kept = sorted(int(path.name) for path in (runs / "one" / "checkpoints").iterdir())
    assert len(kept) == 2 and kept[-1] == last
    assert find_run(f"one@{last}").predictions == find_run("one").predictions != None  # noqa: E711
    assert find_run(f"one@{kept[0]}").predictions is None
    injection = find_run("each/contexts/001")
    assert {record["context"] for record in injection.predictions} == {"bor"}
    assert len(injection.predictions) == 2
    texts = tmp_path / "probe.txt"
    texts.write_text("Bread needs salt.")
    record = compare_sources([f"one@{kept[0]}", "each/contexts/001", "one"], probe=str(texts))
    early, single, late = record["candidates"]
    assert 0 < early["delta"]["norm"] != late["delta"]["norm"]
    assert 0.5 < record["pairs"][1]["cosine"] < 1 - 1e-6
    assert (early["answers"], single["answers"]["f1"]) == (None, pytest.approx(mean_f1(injection.predictions)))
    assert "different questions: got 2 and 4" in record["pairs"][2]["answers_note"]
    assert record["probe"]["texts"] == 1
    write_comparison(record, tmp_path / "out")
    assert "B and C: they were asked different questions" in (tmp_path / "out" / "compare.md").read_text()


def test_a_ledger_after_some_of_its_injections(runs, inside, tiny_model):
    record = files.read_json(runs / "one" / "config.json")
    record["config"]["job"] = "sequential"
    (runs / "sequence" / "sequences" / "000").mkdir(parents=True)
    files.write_json(runs / "sequence" / "config.json", record)
    ledger = Ledger.open(runs / "sequence" / "sequences" / "000" / "ledger", record["base_fingerprint"])
    loras = adapter(tiny_model), adapter(tiny_model, seed=1)
    for lora in loras:
        ledger.append("x", "", "", {}, lora, LORA.scale)
    two = ["sequence/sequences/000@1", "sequence/sequences/000"]
    with pytest.raises(
        ValueError, match=r"sequence/sequences/000 is not finished \(injection 2 of \d+\); give the com"
    ):
        compare_sources(two, base="model")
    found = compare_sources(two, base="model", unfinished=True)
    deltas = [[dense_delta(lora, "q_proj", layer) for layer in range(3)] for lora in loras]
    for candidate, wanted in zip(found["candidates"], (deltas[0], np.add(*deltas)), strict=True):
        assert candidate["modules"]["q_proj"]["norm"] == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
    assert found["kl"]["mean_per_token"][0][1] != found["kl"]["mean_per_token"][0][2]
    assert {kernel["rank"] for kernel in found["candidates"][1]["kernels"]} == {0, 4}
    assert [candidate["answers"] for candidate in found["candidates"]] == [None, None]
    with pytest.raises(ValueError, match="several models; give one, such as sequence/sequences/000"):
        find_run("sequence")
    with pytest.raises(ValueError, match=r"got step 3, expected one of \[1, 2\]"):
        find_run("sequence/sequences/000@3")


def test_a_sequence_after_each_of_its_injections(runs, inside):
    sources = ["chain/sequences/000@1", "chain/sequences/000", "chain/merged"]
    record = compare_sources(sources)
    first, both, merged = record["candidates"]
    assert first["delta"]["norm"] != pytest.approx(both["delta"]["norm"], rel=1e-3)
    assert merged["delta"]["norm"] == pytest.approx(both["delta"]["norm"], rel=1e-4)
    results = files.read_json(runs / "chain" / "results.json")
    assert record["kl"]["mean_per_token"][0][2] == pytest.approx(results["drift"]["kl"], rel=1e-3)
    last = find_run("chain/sequences/000").predictions
    kept = [(each["context"], each["question"], each["injected"]["answer"])
            for each in files.read_lines(runs / "chain" / "predictions.jsonl")]  # fmt: skip
    assert [(each["context"], each["question"], each["answer"]["answer"]) for each in last] == kept
    assert len(find_run("chain/sequences/000@1").predictions) == len(kept) == 4


def test_an_adapter_in_pefts_layout_is_a_candidate(tmp_path):
    source = tmp_path / "base"
    tiny.save_checkpoint(source, "gqa")
    model = load_model(source)
    lora = adapter(model)
    save_adapter(lora, 0.5, model, tmp_path / "theirs")
    (tmp_path / "theirs" / "selfparam.json").unlink()  # as another program writes it
    model_set, _ = load_model_set([str(tmp_path / "theirs"), str(source)], str(source))
    found = model_set.candidates[0].variables["lora"]["layers"]["self_attn"]["q_proj"]
    expected = lora["layers"]["self_attn"]["q_proj"]
    product = np.asarray(expected["a"]) @ np.asarray(expected["b"])
    np.testing.assert_allclose(np.asarray(found["a"]) @ np.asarray(found["b"]), 0.5 * product, rtol=1e-5, atol=1e-6)


def test_a_composed_adapter_is_the_sum_of_its_entries(runs, inside, tmp_path, tiny_model):
    fingerprint = files.read_json(runs / "one" / "config.json")["base_fingerprint"]
    ledger = Ledger.open(tmp_path / "ledger", fingerprint)
    loras = adapter(tiny_model), adapter(tiny_model, seed=1)
    ids = [ledger.append("x", "", "", {}, lora, LORA.scale).id for lora in loras]
    write_composed(tmp_path / "both", ledger, ids)
    found = compare_sources([str(tmp_path / "both"), "one"])["candidates"][0]
    deltas = [np.add(*(dense_delta(lora, "q_proj", layer) for lora in loras)) for layer in range(3)]
    assert found["modules"]["q_proj"]["norm"] == pytest.approx(np.linalg.norm(deltas), rel=1e-5)
    foreign = Ledger.open(tmp_path / "foreign", "0" * 64)
    write_composed(tmp_path / "other", foreign, [foreign.append("x", "", "", {}, loras[0], 1.0).id])
    with pytest.raises(ValueError, match="stands on a base with fingerprint 000000000000, but the base is"):
        compare_sources([str(tmp_path / "other"), "one"])
    (tmp_path / "both" / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"both/adapter\.safetensors cannot be read"):
        compare_sources([str(tmp_path / "both"), "one"])
    (tmp_path / "both" / "adapter.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter\.json: got a list, expected a JSON object"):
        compare_sources([str(tmp_path / "both"), "one"])


def test_every_model_can_be_asked_again(runs, inside, tmp_path):
    """What a run kept is what it answers now; its export and an early checkpoint, which kept nothing, answer too."""
    kept = sorted(int(path.name) for path in (runs / "one" / "checkpoints").iterdir())
    sources = ["one", "one/merged", f"one@{kept[0]}", "model"]
    record = compare_sources(sources, questions="documents.jsonl")
    results = files.read_json(runs / "one" / "results.json")["scores"]
    scores = [candidate["answers"] for candidate in record["candidates"]]
    assert scores[0] == scores[1] == results["injected"] and scores[3] == results["base_q"]
    assert scores[2] is not None
    pairs = {(pair["a"], pair["b"]): pair["answers"] for pair in record["pairs"]}
    assert pairs["A", "B"]["f1"] == 0.0 and not pairs["A", "B"]["gained"]
    assert pairs["A", "D"]["f1"] == pytest.approx(results["base_q"]["f1"] - results["injected"]["f1"])
    # Other questions than those that were kept: one of the second document's alone.
    bor = {**documents("Bor"), "questions": documents("Bor")["questions"][1:]}
    found = compare_sources(["one", "two"], questions=write(tmp_path / "bor.jsonl", [bor]))
    asked = [(record["context"], record["question"]) for record in find_run("two").predictions]
    assert len(asked) == 4
    kept = find_run("two").predictions[asked.index(("bor", "Which river?"))]
    assert found["candidates"][1]["answers"]["f1"] == kept["answer"]["f1"]
    assert found["candidates"][1]["answers"]["f1"] != mean_f1(find_run("two").predictions)
    nothing = write(tmp_path / "none.jsonl", [{**documents("Bor"), "questions": []}])
    with pytest.raises(ValueError, match="no document has questions"):
        compare_sources(["one", "two"], questions=nothing)


def test_answers_of_a_sequence(tmp_path):
    """Those after as many injections as are compared, of its own contexts; none after one was taken out."""
    workdir = tmp_path / "run"
    second = workdir / "sequences" / "001"
    second.mkdir(parents=True)
    config = {**base.get_config().to_dict(), "job": "sequential"}
    files.write_json(workdir / "config.json", {"base_fingerprint": "f", "config": config, "inputs": {}})
    systems = [{"name": "base_q", "role": "lower bound"}, {"name": "injected", "role": "candidate"}]
    results = {"job": "sequential", "systems": systems, "scores": {}, "steps": 9}
    files.write_json(workdir / "results.json", results)
    asked = [
        {"context": name, "question": f"{name}{n}?", "injected": {"f1": 0.0}, "answers": ["x"]}
        for name in "abcd"
        for n in (1, 2)
    ]
    files.write_lines(workdir / "predictions.jsonl", asked)
    ledger = Ledger.open(second / "ledger", "f")
    lora = {
        "layers": {"mlp": {"up_proj": {"a": np.ones((1, 2, 1), np.float32), "b": np.ones((1, 1, 2), np.float32)}}}
    }
    entries = [ledger.append(name, "", "", {}, lora, 1.0) for name in "cd"]
    for step in range(3):
        answers = [
            {"context": name, "question": f"{name}{n}?", "f1": 0.1 * step + 0.01 * d}
            for d, name in enumerate("cd")
            for n in (2, 1)  # the order does not matter
        ]
        (second / "evaluations").mkdir(exist_ok=True)
        files.write_json(second / "evaluations" / f"{step:03d}.json", {"answers": answers})
    for source, step in ((second, 2), (f"{second}@1", 1)):
        found = find_run(str(source)).predictions
        assert [record["question"] for record in found] == ["c1?", "c2?", "d1?", "d2?"]
        expected = [0.1 * step, 0.1 * step, 0.1 * step + 0.01, 0.1 * step + 0.01]
        assert [record["answer"]["f1"] for record in found] == pytest.approx(expected)
    ledger.undo(entries[0].id)
    assert find_run(str(second)).predictions is None


def test_answers_that_are_missing_are_counted_and_named(runs, inside, tmp_path):
    whole = find_run("one")
    assert whole.note == "" and len(whole.predictions) == 4
    shutil.copytree(runs / "one", tmp_path / "cut")
    path = tmp_path / "cut" / "predictions.jsonl"
    lines = files.read_lines(path)
    del lines[0]["injected"]
    files.write_lines(path, lines[:-1])
    found = find_run(str(tmp_path / "cut"))
    first = lines[0]
    told = f"{path} has no answer to 2 of 4 questions ({first['question']!r} ({first['context']}), 1 line missing at "
    assert found.note.startswith(told) and len(found.predictions) == 2
    record = compare_sources(["one", str(tmp_path / "cut")])
    assert record["candidates"][0]["notes"] == [] and record["candidates"][1]["notes"] == [found.note]
    assert "got 4 and 2, 2 of them the same, 2 of the first alone" in record["pairs"][0]["answers_note"]
    del lines[1]["answers"]
    files.write_lines(path, lines)
    with pytest.raises(
        ValueError, match=r"predictions\.jsonl, line 2: got no 'answers', expected a question with its"
    ):
        find_run(str(tmp_path / "cut"))


def mean_f1(records):
    return np.mean([record["answer"]["f1"] for record in records])


def test_flips_notes_and_no_probe_are_in_the_page(runs, inside, tmp_path):
    """An embedding of another scale, a question that would break a table, and models without general text."""
    changed = tmp_path / "changed"
    shutil.copytree(runs / "model", changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * np.float32(1.5)
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    record = compare_sources([str(changed), "model"], base="model")
    assert (record["kl"], record["probe"], record["candidates"][0]["answers"]) == (None, None, None)
    assert record["candidates"][0]["outside"]["embed_tokens/embedding"]["relative"] == pytest.approx(0.5)
    one, other = predictions({"a": [0.0] * 25}), predictions({"a": [1.0] * 25})
    for records in (one, other):
        records[0]["question"] = "Is a | b\nor `c`?"
    record["pairs"][0]["answers"] = compare_answers(one, other)
    write_comparison(record, tmp_path / "out")
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "KL was not measured" in page
    assert "| A | `embed_tokens/embedding` |" in page and "| 50.00 % |" in page
    assert "25 that B has right and A does not" in page and "The first 20" in page
    assert page.count("| gold | says 0.0 | says 1.0 |") == 20
    assert r"Is a \| b or \`c\`?" in page


BAD = {
    "twice": (["one", "two", "one"], "got 'one' twice"),
    "alone": (["one"], "got 1 models, expected 2 to 26"),
    "missing": (["one", "/nowhere/run"], "'/nowhere/run' is no work directory, and as a model"),
    "no base": (["model", "one/merged"], "give --base=MODEL"),
    "single as a whole": (["one", "each"], "of job 'single', which has several models; .*each/contexts/000"),
    "no such step": (["one", "two@1"], r"two@1: got step 1, expected one of \[\d+, \d+\]"),
    "earlier": (
        ["one", "old"],
        r"old was made by an earlier version \(the setting lora\.targets is called lora\.target_modules now\)",
    ),
    "a step of a model": (["one", "model@3"], "model is not a work directory"),
    "no checkpoint": (["one", "begun"], "begun has no complete checkpoint"),
    "another base": (["one", "moved"], "moved was made from .* compare runs of one base"),
    "another architecture": (["one", "mha"], r"(?s)mha has another architecture.*num_key_value_heads: 4 in it, 2 in"),
    "no probe": (["one", "two", "--probe=nothing.txt"], "nothing.txt"),
    "a file as a folder": (["one", "two", "--out=texts.jsonl"], "texts.jsonl cannot be a directory: it is a file"),
}


@pytest.fixture(scope="module")
def bad_runs(runs):
    for name in ("begun", "moved", "old"):
        (runs / name).mkdir()
        record = files.read_json(runs / "one" / "config.json")
        if name == "moved":
            record["base_fingerprint"] = "0" * 64
            shutil.copytree(runs / "one" / "checkpoints", runs / "moved" / "checkpoints")
        if name == "old":
            record["config"]["lora"]["targets"] = record["config"]["lora"].pop("target_modules")
        files.write_json(runs / name / "config.json", record)
    tiny.save_checkpoint(runs / "mha", "mha", max_position_embeddings=2048)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(bad_runs, inside, tmp_path, capsys, case):
    arguments, words = BAD[case]
    out = [] if any(each.startswith("--out") for each in arguments) else [f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *out])
    assert stop.value.code == 1
    error = capsys.readouterr().err.rpartition("error: ")[2]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(error)
    assert not (tmp_path / "out").exists()


def test_python_m(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "selfparam_jax.compare", "a", "a"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: got 'a' twice, expected different models; name each once\n")
    assert not list(tmp_path.iterdir())
