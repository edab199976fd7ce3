"""A job on a long document: passages are read, and results stay by document."""

import dataclasses
import types

import pytest
from job_inputs import batch_config, write

import selfparam_jax as sp
from selfparam_jax.checkpoints.load import load_model, load_outline
from selfparam_jax.commands import inject as inject_command
from selfparam_jax.commands import run as run_command
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.systems import BaseSystem
from selfparam_jax.jobs import api, batch, dry_run, inputs, single
from selfparam_jax.jobs import ask as asking
from selfparam_jax.jobs.passages import with_passages
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.sequential.config import SequentialConfig
from selfparam_jax.sequential.sequence import split_documents
from selfparam_jax.targets.grounded.writer import GroundedWriter
from selfparam_jax.targets.kinds import make_targets
from selfparam_jax.targets.sentences import first_slots
from selfparam_jax.targets.write_pairs import text_digest
from selfparam_jax.training.batches import Plan
from selfparam_jax.training.inject import Injection

TOWNS = [("Ava", "Om", "Lu Ka"), ("Bor", "Nil", "Re Mo"), ("Cy", "Ul", "Si Ta")]
BOOK = {
    "id": "book",
    "title": "Towns",
    "text": "\n\n".join(
        f"# {name}\n\n{name} lies on the {river}. It was founded by {founder}. There is little else to say of it."
        for name, river, founder in TOWNS
    ),
    "questions": [{"question": f"Who founded {name}?", "answers": [founder]} for name, _, founder in TOWNS[:2]],
    "qa_pairs": [{"question": f"Which river runs by {name}?", "answer": river} for name, river, _ in TOWNS],
}
SHORT = {
    "id": "note",
    "text": "Dee lies on the Po.",
    "questions": [{"question": "Where is Dee?", "answers": ["Po"]}],
    "qa_pairs": [{"question": "What lies on the Po?", "answer": "Dee"}],
}
TOKENS = 128  # bytes, for the tiny model's tokenizer


@pytest.fixture
def config(model_dir, tmp_path):
    config = batch_config(model_dir, tmp_path)
    config.contexts = str(write(tmp_path / "book.jsonl", [BOOK, SHORT]))
    config.passage_tokens = TOKENS
    config.targets.update(tails_per_context=0, unrelated_per_epoch=0)
    config.train.update(epochs=3)
    config.systems, config.eval.general = ("base_cq",), ""
    config.export_dtype = ""
    return config


class Answering(BaseSystem):
    """A system that is right about a document or passage as often as its id says."""

    def prepare(self, documents):
        self.prepared = [each.id for each in documents]

    def answer(self, documents):
        score = dict.fromkeys(("em", "contains", "f1_paper"), 0.0)
        f1 = {"book#1": 1.0, "book#2": 0.5, "note": 0.25}
        return [[{"answer": each.id, "f1": f1[each.id], **score} for _ in each.questions] for each in documents]


def injecting(model, documents, recipe, unrelated, directory, *others, **named):
    """An injection that makes its sentences, but trains nothing."""
    prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
    epochs, seq_len = recipe.train.epochs, recipe.train.seq_len
    sentences = make_targets(documents, prompt, recipe.targets, seed=0, epochs=epochs, seq_len=seq_len)
    files.write_lines(directory / "targets.jsonl", [each.record for each in sentences])
    files.write_lines(directory / "metrics.jsonl", [])
    steps = Plan(sentences, first_slots(sentences), prompt.start_ids, recipe.train, 0).steps
    return Injection({}, steps, 0, 0.0, 1.0, 1, 1.0)


def test_a_job_reads_passages_and_reports_documents(config, tmp_path, monkeypatch):
    for name in ("base_cq", "injected"):
        monkeypatch.setitem(api.SYSTEMS, name, dataclasses.replace(api.SYSTEMS[name], make=Answering))
    monkeypatch.setattr(batch, "inject", injecting)
    monkeypatch.setattr(asking, "injected_model", lambda job, index, unfinished: (job.model, {}))
    monkeypatch.setattr(dry_run, "_costs", lambda *given: iter(()))
    said = "\n".join(dry_run.dry_run(config))
    results = run_job(config, tmp_path / "run")
    assert f"training: {results['steps']} steps of 8 rows x 128 tokens in 3 epochs" in said
    book, note = results["per_context"]
    assert (book["id"], book["title"], note["id"]) == ("book", "Towns", "note") and "passages" not in note
    assert [(each["id"], each["pairs"], each["questions"]) for each in book["passages"]] == [
        ("book#1", 1, 1), ("book#2", 1, 1), ("book#3", 1, 0),
    ]  # fmt: skip
    assert results["num_contexts"] == 2 and results["num_questions"] == 3
    assert results["passages"] == {"documents": 1, "tokens": TOKENS}
    (upper,) = [each for each in results["systems"] if each["role"] == "upper bound"]
    assert upper["meaning"] == "document or passage in the prompt"
    predictions = files.read_lines(tmp_path / "run" / "predictions.jsonl")
    assert [(each["context"], each.get("passage")) for each in predictions] == [
        ("book", "book#1"), ("book", "book#2"), ("note", None),
    ]  # fmt: skip
    assert results["scores"]["base_cq"]["f1"] == (0.75 + 0.25) / 2, "a mean over documents, not over passages"
    sentences = files.read_lines(tmp_path / "run" / "targets.jsonl")
    assert [each["context"] for each in sentences] == ["book#1", "book#2", "book#3", "note"], "pairs name them"
    report = (tmp_path / "run" / "report.md").read_text()
    assert "1 document is longer than `passage_tokens` = 128: read as 3 passages" in report and "book#2" in report
    assert "book#3" not in report
    # The work directory belongs to these passages.
    write(tmp_path / "book.jsonl", [{**BOOK, "text": BOOK["text"].replace("Nil", "Nul")}, SHORT])
    with pytest.raises(ValueError, match="document 'book#2' has changed"):
        run_job(config, tmp_path / "run")
    write(tmp_path / "book.jsonl", [BOOK, SHORT])
    (found,) = asking.ask(tmp_path / "run", ["Who founded Bor?"], "book")
    assert found["document"] == "book#2"
    with pytest.raises(ValueError, match="its documents are book, note"):
        asking.ask(tmp_path / "run", ["Who?"], "look")


def test_the_passages_of_a_document_are_injected_together(config, tmp_path, monkeypatch):
    injected = {}

    def inject_single(job, documents, directory, label):
        directory.mkdir(parents=True)
        injected[directory.name] = [each.id for each in documents]
        answers = [{"context": d.id, "question": q.question, "f1": 1.0} for d in documents for q in d.questions]
        numbers = dict.fromkeys(("teacher_s", "train_s", "evaluate_s", "sentence_tokens", "steps", "fill"), 1)
        return {"answers": answers, "drift": {}, "measured": {}, **numbers}

    config.job = "single"
    monkeypatch.setattr(single, "inject_single", inject_single)
    monkeypatch.setattr(single, "measure_systems", lambda job: {})
    monkeypatch.setattr(single, "write_results", lambda job, began, answers, *others: (answers, others[-1]))
    monkeypatch.setattr(single.questions, "summarize", lambda groups: {"f1": len(groups[0])})
    job = inputs.prepare(config, tmp_path / "run")
    answers, extra = single.run_single(job, 0.0)
    assert injected == {"000": ["book#1", "book#2", "book#3"], "001": ["note"]}
    assert [len(group) for group in answers["injected"]] == [1, 1, 0, 1]
    assert (extra["spread"]["f1_max"], extra["spread"]["f1_min"]) == (2, 1), "questions count by document"
    (sequence,) = split_documents(job.documents, SequentialConfig(length=2, sequences=1), tmp_path)
    assert [each.id for each in sequence.sources] == ["book", "note"] and len(sequence.documents) == 4
    two = split_documents(job.documents, SequentialConfig(length=1, sequences=2), tmp_path)
    assert [len(each.documents) for each in two] == [3, 1]


def test_the_library_cuts_long_documents_too(tiny_model, monkeypatch):
    document = sp.Document(
        BOOK["text"],
        title="Towns",
        id="book",
        questions=[sp.Question(q["question"], tuple(q["answers"])) for q in BOOK["questions"]],
        qa_pairs=[sp.QAPair(**pair) for pair in BOOK["qa_pairs"]],
    )
    seen = {}

    def inject(model, documents, *others, **named):
        seen["injected"] = [each.id for each in documents]
        return types.SimpleNamespace(lora={"layers": {"self_attn": {}}})

    class Watched(Answering):
        def prepare(self, documents):
            seen["asked"] = [(each.id, len(each.questions)) for each in documents]

    monkeypatch.setattr(api.injection, "inject", inject)
    monkeypatch.setitem(api.SYSTEMS, "base_cq", dataclasses.replace(api.SYSTEMS["base_cq"], make=Watched))
    recipe = sp.Recipe(prompt="plain", passage_tokens=TOKENS, unrelated_per_epoch=0)
    adapter = sp.inject(tiny_model, [document], recipe, progress=False)
    assert adapter.documents.keys() == {"book"} and seen["injected"] == ["book#1", "book#2", "book#3"]
    found = sp.evaluate(adapter, [document], ("base_cq",))
    assert seen["asked"] == [("book#1", 1), ("book#2", 1), ("book#3", 0)]
    assert [each["passage"] for each in found["predictions"]] == ["book#1", "book#2"]
    assert found["scores"]["base_cq"]["f1"] == 0.75


def test_one_long_document_is_told_in_the_singular(tiny_model, caplog):
    caplog.set_level("INFO", logger="absl")
    recipe = sp.Recipe(passage_tokens=TOKENS)
    made = with_passages([sp.Document("The mill is old. " * 20, id="one")], recipe, lambda: tiny_model)
    told = f"longer than passage_tokens = {TOKENS}: 1 of 1 document, read as {len(made)} passages and 0 groups of"
    assert told in caplog.text


def test_related_passages_are_only_made_for_writers_that_read_all_of_a_text(tiny_model, tmp_path):
    document = sp.Document(BOOK["text"], title="Towns", id="book")
    names = {}
    for writer in ("none", "auto", "local"):
        recipe = sp.Recipe(
            passage_tokens=TOKENS, targets=sp.TargetConfig(generator=writer), prompt="plain", related_share=0.5
        )
        names[writer] = [each.id for each in with_passages([document], recipe, lambda: tiny_model)]
    singles = ["book#1", "book#2", "book#3"]
    assert names["none"] == names["auto"] == singles
    assert names["local"][:3] == singles and {"+" in name for name in names["local"][3:]} == {True}
    # Pairs that were written before are found by their passages' texts; groups without one are left out.
    recipe = sp.Recipe(
        passage_tokens=TOKENS, targets=sp.TargetConfig(generator="local"), prompt="plain", related_share=0.5
    )
    parts = with_passages([document], recipe, lambda: tiny_model)
    group, path = parts[-1], tmp_path / "pairs.jsonl"
    unit = {"context": group.id, "digest": text_digest(group), "round": 0}
    pair = {**unit, "prompt": "facts", "question": "Which river is it?", "answer": "Om", "support": 1.0}
    files.write_lines(path, [{"settings": {}}, pair, {**unit, "kinds": {}}])
    later = dataclasses.replace(
        recipe,
        targets=dataclasses.replace(recipe.targets, generator="none"),
        generator=dataclasses.replace(recipe.generator, file=str(path), least_support=0.0),
    )
    found = with_passages([document], later, lambda: tiny_model)
    assert [(each.id, len(each.qa_pairs)) for each in found] == [*((name, 0) for name in singles), (group.id, 1)]


# --- what would be done ---------------------------------------------------------------------------------


def test_a_dry_run_lists_what_would_be_read_and_writes_nothing(config, tmp_path, capsys, monkeypatch, model_dir):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(f"The mill of town {n} was built by Hedra {n}." for n in range(12)))
    flags = ["--config.prompt=plain", "--config.targets.unrelated_per_epoch=0", "--config.train.epochs=2"]
    flags += [f"--config.passage_tokens={TOKENS}", "--config.targets.generator=local", "--config.train.seq_len=128"]
    inject_command.main([str(text), f"--model={model_dir}", "--dry_run", *flags])
    said = capsys.readouterr().out
    text.unlink()
    assert sorted(tmp_path.rglob("*")) == before
    header, row, *_ = said.splitlines()
    assert header.split()[:4] == ["document", "tokens", "passages", "groups"]
    size = len("\n\n".join(f"The mill of town {n} was built by Hedra {n}." for n in range(12)))
    name, tokens, passages, groups, pairs, questions, writing = row.split()
    assert (name, tokens, pairs, questions) == ("notes", str(size), "0", "0")
    assert int(passages) == 5 and int(writing.replace(",", "")) == 40 * (int(passages) + int(groups)) > 200
    for words in ("about ", "steps of", "memory (plan):", "ESTIMATED", "nothing was started and nothing was written"):
        assert words in said


def test_a_job_s_dry_run_refuses_what_the_job_refuses(config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command.main(["batch", "--dry_run", f"--config.contexts={tmp_path / 'nowhere.txt'}"])
    assert "nowhere.txt: no such file" in capsys.readouterr().err


def test_a_model_is_known_without_its_weights(model_dir, tmp_path):
    outline, model = load_outline(model_dir), load_model(model_dir)
    assert (outline.name, outline.config, outline.end_ids) == (model.name, model.config, model.end_ids)
    assert outline.tokenizer("Ava")["input_ids"] == model.tokenizer("Ava")["input_ids"]
    with pytest.raises(ValueError, match="model 'smolm2' is not known"):
        load_outline("smolm2")


def test_pairs_by_rules_are_counted_as_they_will_be(tiny_model):
    recipe = sp.Recipe(prompt="plain")
    document = sp.Document("The mill of Om was built by Hedra Molvane in 1743.", id="om")
    own = sp.Document("x", id="own", qa_pairs=[sp.QAPair("q", "a")])
    prompt = Prompt("plain", tiny_model.tokenizer)
    filled = dry_run.with_expected_pairs([document, own], recipe, prompt)
    lines = GroundedWriter(recipe.generator).write_about(document)[1]
    wanted = [line["question"] for line in lines if not line.get("held_out")]
    assert wanted and [pair.question for pair in filled[0].qa_pairs] == wanted and filled[1] == own
    rows = dry_run.document_rows([document, own], [document, own], filled, [9, 1])
    assert [(row.id, row.tokens, row.pairs, row.writing) for row in rows] == [
        ("om", 9, 0, len(wanted)),
        ("own", 1, 1, 0),
    ]


def test_a_pattern_of_a_job_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "[b].md").write_text("y")
    settings = inputs.with_whole_paths(read_settings({"contexts": "*.md\n[b].md\nexamples:2"}))
    assert settings.contexts.split("\n") == [f"{tmp_path}/*.md", f"{tmp_path}/[b].md", "examples:2"]


def test_impossible_settings_are_refused():
    for name, value in (
        ("passage_tokens", 5),
        ("passage_tokens", -1),
        ("related_share", 0.6),
        ("related_share", -0.1),
    ):
        with pytest.raises(ValueError, match=f"{name} = {value}, expected"):
            sp.Recipe(**{name: value})
