"""The public API: documents in, adapter out, without a work directory or with one, in a thread too."""

import dataclasses
import inspect
import math
import pathlib
import signal
import threading

import jax
import numpy as np
import pytest
from job_inputs import DOCUMENTS, TEXTS, assert_same_adapter, flat_adapter, modified, newest_adapter

import selfparam_jax as sp
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.jobs import api
from selfparam_jax.jobs.inputs import read_unrelated
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.targets import writers
from selfparam_jax.targets.replies import Reply

TEXT_LINES = [record["text"] for record in TEXTS]
QUESTION = "Who founded Ava?"
SMALL = {"prompt": "plain", "epochs": 2, "batch_size": 4, "unrelated_per_epoch": 2}


def documents():
    """The documents of the other tests, from memory."""
    return [
        sp.Document(
            record["context"],
            title=record["title"],
            id=record["id"],
            questions=[sp.Question(each["question"], tuple(each["answers"])) for each in record["questions"]],
            qa_pairs=[sp.QAPair(**pair) for pair in record["qa_pairs"]],
        )
        for record in DOCUMENTS
    ]


@pytest.fixture(scope="module")
def model(model_dir):
    return sp.load_model(str(model_dir))


@pytest.fixture(scope="module")
def adapter(model):
    return sp.inject(model, documents(), sp.Recipe(**SMALL), unrelated=TEXT_LINES, progress=False)


def test_from_documents_to_a_saved_model(model, adapter, model_dir, tmp_path):
    assert adapter.model is model and adapter.fingerprint == model.fingerprint
    assert adapter.scale == adapter.recipe.lora.scale and list(adapter.documents) == ["doc-0", "doc-1", "doc-2"]
    assert (adapter.recipe.train.epochs, adapter.recipe.prompt) == (2, "plain")
    assert model.has_chat_template
    answer = adapter.ask(QUESTION)
    assert isinstance(answer, str) and adapter.ask(QUESTION, prompt="plain") != answer
    with pytest.raises(ValueError, match="plane"):
        adapter.ask(QUESTION, prompt="plane")

    found = sp.evaluate(adapter, documents())
    assert list(found["scores"]) == ["base_q", "base_cq", "injected"]
    assert [line["context"] for line in found["predictions"]] == ["doc-0", "doc-1", "doc-2"] and "kinds" not in found
    with pytest.raises(ValueError, match="systems has 'rag', expected some of base_q, injected, base_cq"):
        sp.evaluate(adapter, documents(), systems=("rag",))

    directory = adapter.save(tmp_path / "adapter")
    assert adapter.save(tmp_path / "adapter") == directory, "the same again is kept"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in directory.iterdir()}
    again = sp.load_adapter(model, directory)
    assert_same_adapter(flat_adapter(again.lora), flat_adapter(adapter.lora))
    assert (again.scale, again.documents, again.fingerprint) == (adapter.scale, adapter.documents, model.fingerprint)
    assert again.ask(QUESTION) == answer

    merged = adapter.merge()
    assert merged.ask(QUESTION) == answer
    saved = merged.save(tmp_path / "model", dtype="float32")
    loaded = sp.load_model(str(saved))
    for one, other in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(merged.params), strict=True):
        np.testing.assert_array_equal(one, other)
    # With scale 0 the factors add nothing: the loaded model alone answers.
    assert dataclasses.replace(adapter, model=loaded, scale=0.0).ask(QUESTION) == answer
    with pytest.raises(ValueError, match="belongs to a base with fingerprint"):
        sp.load_adapter(loaded, directory)
    written = merged.save(tmp_path / "gguf", form="gguf")
    assert sp.load_model(str(next(written.glob("*.gguf")))).config == model.config
    for place in (directory, saved, written):  # as `selfparam export` writes them
        card = (place / "README.md").read_text()
        assert all(f"| {name} | `{digest[:16]}` |" in card for name, digest in adapter.documents.items())
        assert "largest KL divergence of a token" in card and '"train.epochs": 2' in card
    with pytest.raises(ValueError, match="form 'peft' is an adapter beside its base, expected 'hf' or 'gguf'"):
        merged.save(tmp_path / "other", form="peft")
    with pytest.raises(ValueError, match="dtype 'q8_0', expected one of float32, bfloat16, float16 for"):
        merged.save(tmp_path / "other", dtype="q8_0")
    assert any(
        (np.asarray(one) != np.asarray(other)).any()
        for one, other in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(model.params), strict=True)
    )


def test_a_question_is_asked_through_the_models_chat_template(adapter, monkeypatch):
    """As a conversation up to where the answer begins, whatever the template; the recipe's format without one."""
    asked = []

    def generate(decoder, variables, start_ids, rows, max_new_tokens, stops):
        asked.append(adapter.model.tokenizer.decode([*start_ids, *rows[0]]))
        assert list(variables) == ["params", "lora"] and decoder.lora_scale == adapter.scale
        return [adapter.model.tokenizer("yes.\nno", add_special_tokens=False)["input_ids"]]

    monkeypatch.setattr(api, "generate", generate)
    tokenizer = adapter.model.tokenizer
    assert adapter.ask("Who?") == "yes.\nno" and asked[-1] == "<s>user: Who?</s>"
    template = tokenizer.chat_template
    begun = template + "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", begun)
    assert adapter.ask("Who?") == "yes.\nno" and asked[-1] == "<s>user: Who?</s><s>assistant:"
    assert adapter.ask("Who?", prompt="plain") == "yes." and asked[-1] == "<s>Question: Who?\nAnswer:"
    monkeypatch.setattr(tokenizer, "chat_template", "{{ '<pad>' }}" + begun)
    by_template = adapter.ask("Who?"), asked[-1]
    assert by_template == ("yes.\nno", "<pad><s>user: Who?</s><s>assistant:")
    assert (adapter.ask("Who?", prompt="chat"), asked[-1]) == by_template, "as the format that is trained with"
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert adapter.ask("Who?") == "yes." and asked[-1] == "<s>Question: Who?\nAnswer:"
    with pytest.raises(ValueError, match="has no chat template"):
        adapter.ask("Who?", prompt="chat")


def test_a_question_that_cannot_be_answered_is_refused_at_once(adapter, monkeypatch):
    monkeypatch.setattr(api, "generate", lambda *_: pytest.fail("the model is asked"))
    for asked in (adapter, adapter.merge()):
        with pytest.raises(ValueError, match="got an empty question"):
            asked.ask(" ")
        for form in (None, "plain"):
            with pytest.raises(ValueError, match=r"the question has 25\d\d\d tokens, 1 are read .* at most 2048"):
                asked.ask("word " * 5000, form)


def test_a_work_directory_that_cannot_be_made_is_refused_at_once(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(api, "with_passages", lambda *_: pytest.fail("documents are read"))
    with pytest.raises(ValueError, match="file cannot be a directory: it is a file; choose another path"):
        sp.inject(model, ["A text."], workdir=tmp_path / "file")


def test_documents_may_be_plain_strings(model, monkeypatch, tmp_path):
    """They bring no pairs, so the model writes them; nothing is left on disk."""
    said = "\nQuestion: When was it {n}?\nAnswer: 1742\n"

    def write(self, instructions, counts, seed):
        return [[Reply(said.format(n=n), True) for n in range(count)] for count in counts]

    monkeypatch.setattr(writers.LocalWriter, "write", write)
    monkeypatch.chdir(tmp_path)
    recipe = sp.Recipe(**SMALL, rounds=1, replies=4, kinds=("continued",))
    steps = []
    found = sp.inject(
        model, ["The mill was built in 1742."], recipe, unrelated=TEXT_LINES, progress=False, on_step=steps.append
    )
    assert len(found.documents) == 1 and next(iter(found.documents)).startswith("document-")
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1)) and steps
    assert {"loss", "grad_norm", "seconds", "learning_rate", "sentence_tokens"} <= steps[0].keys()
    assert list(tmp_path.iterdir()) == []


def test_a_work_directory_of_other_documents_is_refused_before_pairs_are_written(model, monkeypatch, tmp_path):
    calls, write = [], writers.GroundedWriter.write_about

    def write_about(self, document, score=None):
        calls.append(document.text)
        return write(self, document, score)

    monkeypatch.setattr(writers.GroundedWriter, "write_about", write_about)
    recipe = sp.Recipe(**SMALL)
    given = {"unrelated": TEXT_LINES, "workdir": tmp_path / "work", "progress": False}
    sp.inject(model, ["The mill was built in 1742."], recipe, **given)
    before = modified(tmp_path / "work")
    with pytest.raises(ValueError, match=r"document 'document-\w+' is gone\n  document 'document-\w+' is new"):
        sp.inject(model, ["The bridge was built in 1742."], recipe, **given)
    assert len(calls) == 1 and modified(tmp_path / "work") == before


@pytest.mark.parametrize("seed", [0, 3])
def test_a_work_directory_changes_nothing_and_resumes(model, tmp_path, seed):
    recipe = sp.Recipe(**SMALL, seed=seed, checkpoint_every=1)
    given = {"unrelated": TEXT_LINES, "progress": False}
    whole = sp.inject(model, documents(), recipe, **given)

    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] == 2:
            raise Stop

    workdir = tmp_path / "work"
    with pytest.raises(Stop):
        sp.inject(model, documents(), recipe, workdir=workdir, on_step=stop, **given)
    steps = []
    resumed = sp.inject(model, documents(), recipe, workdir=workdir, on_step=steps.append, **given)
    assert steps and steps[0]["step"] > 1, "what was done is not done again"
    assert_same_adapter(flat_adapter(resumed.lora), flat_adapter(whole.lora))
    steps.clear()
    finished = sp.inject(model, documents(), recipe, workdir=workdir, on_step=steps.append, **given)
    assert steps == []
    assert_same_adapter(flat_adapter(finished.lora), flat_adapter(whole.lora))

    before = modified(workdir)
    changed = [dataclasses.replace(documents()[0], text="Ava lies on the Nil."), *documents()[1:]]
    with pytest.raises(ValueError, match=r"(?s)an injection of other documents:\n  document 'doc-0' has changed"):
        sp.inject(model, changed, recipe, workdir=workdir, **given)
    with pytest.raises(ValueError, match="the documents are in another order"):
        sp.inject(model, documents()[::-1], recipe, workdir=workdir, **given)
    with pytest.raises(ValueError, match=r"lora\.rank: 8 there, 4 now"):
        sp.inject(model, documents(), sp.Recipe(**SMALL, seed=seed, rank=4), workdir=workdir, **given)
    with pytest.raises(ValueError, match="unrelated"):
        sp.inject(model, documents(), recipe, workdir=workdir, unrelated=TEXT_LINES[::-1], progress=False)
    for name in ("dtype", "matmul_precision"):
        other = sp.load_model(model.source, **{name: "bfloat16"})
        with pytest.raises(ValueError, match=f"a model with {name} '.*', expected 'bfloat16' as this model"):
            sp.inject(other, documents(), recipe, workdir=workdir, **given)
    assert modified(workdir) == before


def test_it_is_the_batch_job(config, model_dir, tmp_path):
    """The same settings give the same adapter to the bit, and the same records."""
    config.train.epochs, config.export_dtype = 3, ""
    run_job(config, tmp_path / "run")
    settings = read_settings(config)
    model = sp.load_model(config.model, mesh=meshes.make_mesh())
    given = sp.read_documents(config.contexts)
    found = sp.inject(model, given, settings.recipe, unrelated=read_unrelated(settings), progress=False)
    assert_same_adapter(flat_adapter(found.lora), newest_adapter(tmp_path / "run")[1])
    evaluated = sp.evaluate(found, given, systems=("base_q", "injected", "base_cq"))
    assert evaluated["predictions"] == files.read_lines(tmp_path / "run" / "predictions.jsonl")
    results = files.read_json(tmp_path / "run" / "results.json")
    assert evaluated["scores"] == results["scores"]


def test_questions_of_several_kinds_have_scores_of_their_own(adapter):
    given = [
        dataclasses.replace(each, questions=tuple(dataclasses.replace(q, kind=kind) for q in each.questions))
        for each, kind in zip(documents(), ("easy", "hard", "easy"), strict=True)
    ]
    found = sp.evaluate(adapter, given, systems=("injected",))
    f1 = [line["injected"]["f1"] for line in found["predictions"]]
    assert [(each["kind"], each["questions"]) for each in found["kinds"]] == [("easy", 2), ("hard", 1)]
    easy, hard = (each["scores"]["injected"]["f1"] for each in found["kinds"])
    assert easy == pytest.approx((f1[0] + f1[2]) / 2) and hard == f1[1]


def test_it_works_in_a_thread(model, adapter, tmp_path):
    found = []

    def work():
        recipe = sp.Recipe(**SMALL)
        made = sp.inject(model, documents(), recipe, unrelated=TEXT_LINES, workdir=tmp_path / "work", progress=False)
        found.append((made, made.ask(QUESTION)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ((made, answer),) = found
    assert_same_adapter(flat_adapter(made.lora), flat_adapter(adapter.lora))
    assert answer == adapter.ask(QUESTION)


def test_bad_input(model):
    with pytest.raises(ValueError, match="got no documents, expected at least one"):
        sp.inject(model, [])
    with pytest.raises(ValueError, match="got the document id 'a' twice"):
        sp.inject(model, [sp.Document("x", id="a"), sp.Document("y", id="a")])
    with pytest.raises(ValueError, match="exceed the model's limit of 2048"):
        sp.inject(model, ["word " * 1000])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sp.read_documents("nowhere.jsonl")


def _given(given, model, adapter, model_dir):
    """Arguments of the tables below, with what only a test has in place of its name."""
    known = {"MODEL": model, "ADAPTER": adapter, "MODEL_DIR": model_dir, "DOCUMENTS": documents()}
    return {name: known.get(value, value) if isinstance(value, str) else value for name, value in given.items()}


LIST, PATH = "expected a list of Documents or strings; read files", "give it as a string or a pathlib.Path"
WRONG_INJECT = [
    ({"model": "/path"}, TypeError, "model: got '/path', expected a Model; load it with load_model"),
    ({"model": None}, TypeError, "model: got None, expected a Model"),
    ({"documents": "a string"}, TypeError, f"documents: got 'a string', {LIST}"),
    ({"documents": [None]}, TypeError, "documents[0]: got None, expected documents to be a list of Documents"),
    ({"documents": None}, TypeError, f"documents: got None, {LIST}"),
    ({"documents": {"a": "b"}}, TypeError, f"documents: got a dict, {LIST}"),
    ({"documents": sp.Document("x")}, TypeError, f"documents: got a Document, {LIST}"),
    ({"documents": []}, ValueError, "documents: got no documents, expected at least one; "),
    ({"recipe": {"epochs": 1}}, TypeError, "recipe: got a dict, expected a Recipe; write Recipe(epochs=5)"),
    ({"recipe": sp.Recipe}, TypeError, "recipe: got the class Recipe, expected a Recipe"),
    ({"unrelated": "text"}, TypeError, "unrelated: got 'text', expected a list of strings; write ['TEXT', ...]"),
    ({"unrelated": [5] * 40}, TypeError, "unrelated[0]: got 5, expected unrelated to be a list of strings; "),
    ({"unrelated": ["a", *[""] * 40]}, ValueError, "unrelated[1]: got an empty string, expected text; take it out"),
    ({"unrelated": ["\ud800"] * 40}, ValueError, "unrelated[0]: got half of a character"),
    ({"unrelated": ["a"]}, ValueError, "unrelated: got 1 unrelated texts, expected 2 or more; add texts"),
    ({"adapter": 5}, TypeError, f"adapter: got 5, expected an Adapter or the directory of one; {PATH}"),
    ({"adapter": "MODEL"}, TypeError, "adapter: got a Model, expected an Adapter"),
    ({"adapter": ""}, ValueError, "adapter: got an empty string, expected an Adapter"),
    ({"teacher": "ADAPTER"}, TypeError, "teacher: got an Adapter, expected a Model or the name of one"),
    ({"workdir": ""}, ValueError, "workdir: got an empty string, expected a directory; fill it in"),
    ({"workdir": 5}, TypeError, f"workdir: got 5, expected a directory; {PATH}"),
    ({"workdir": "MODEL_DIR"}, ValueError, "workdir: got "),
    ({"progress": "no"}, TypeError, "progress: got 'no', expected True or False; "),
    ({"on_step": 5}, TypeError, "on_step: got 5, expected a function of one record; "),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG_INJECT)
def test_what_inject_refuses_before_anything_is_written(
    model, adapter, model_dir, given, kind, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "with_passages", lambda *_: pytest.fail("documents are read"))
    before = modified(model_dir)
    usual = {"model": model, "documents": documents(), "recipe": sp.Recipe(**SMALL), "unrelated": TEXT_LINES}
    with pytest.raises(kind) as refused:
        sp.inject(**usual | _given(given, model, adapter, model_dir))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert modified(model_dir) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoints", "workdir: .*checkpoints cannot be a directory: it is a file; choose another path"),
        ("teacher", "workdir: .*teacher cannot be a directory: it is a file; choose another path"),
        ("config.json", "which is not empty and holds no documents.json of ours, expected a new or empty directory"),
        ("notes.txt", "which is not empty and holds no documents.json of ours, expected a new or empty directory"),
    ],
)
def test_a_directory_with_other_things_is_no_work_directory(model, name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "with_passages", lambda *_: pytest.fail("documents are read"))
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        sp.inject(model, documents(), sp.Recipe(**SMALL), unrelated=TEXT_LINES, workdir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


TOKENS = "expected a whole number from 1 to 1048576; "
WRONG_ASK = [
    ({"question": None}, TypeError, "question: got None, expected a question as a string; ask one question at a"),
    ({"question": 5}, TypeError, "question: got 5, expected"),
    ({"question": ["x"]}, TypeError, "question: got a list, expected"),
    ({"question": "\ud800"}, ValueError, "question: got half of a character"),
    ({"prompt": ["plain"]}, TypeError, "prompt: got a list, expected one of 'plain', "),
    ({"prompt": ""}, ValueError, "prompt: got '', expected one of 'plain', "),
    ({"max_new_tokens": 0}, ValueError, f"max_new_tokens: got 0, {TOKENS}"),
    ({"max_new_tokens": -1}, ValueError, f"max_new_tokens: got -1, {TOKENS}"),
    ({"max_new_tokens": 1.5}, TypeError, f"max_new_tokens: got 1.5, {TOKENS}"),
    ({"max_new_tokens": math.nan}, TypeError, f"max_new_tokens: got nan, {TOKENS}"),
    ({"max_new_tokens": True}, TypeError, f"max_new_tokens: got True, {TOKENS}"),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG_ASK)
def test_what_ask_refuses_before_anything_is_merged(adapter, given, kind, message, monkeypatch):
    monkeypatch.setattr(api, "generate", lambda *_: pytest.fail("the model is asked"))
    monkeypatch.setattr(api, "merge_adapters", lambda *_: pytest.fail("the adapter is merged"))
    for asked in (adapter, adapter.merge()):
        with pytest.raises(kind) as refused:
            asked.ask(**{"question": QUESTION, **given})
        assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


WRONG_EVALUATE = [
    ({"adapter": None}, TypeError, "adapter: got None, expected an Adapter; take that of inject or load_adapter"),
    ({"adapter": "MODEL"}, TypeError, "adapter: got a Model, expected an Adapter"),
    ({"documents": "text"}, TypeError, f"documents: got 'text', {LIST}"),
    ({"documents": [5]}, TypeError, "documents[0]: got 5, expected documents to be a list of Documents"),
    ({"documents": []}, ValueError, "documents: got no documents, expected at least one"),
    ({"batch_size": 0}, ValueError, "batch_size: got 0, expected a whole number from 1 to 65536; "),
    ({"batch_size": -3}, ValueError, "batch_size: got -3, expected a whole number"),
    ({"batch_size": 2.0}, TypeError, "batch_size: got 2.0, expected a whole number"),
    ({"systems": "base_q"}, TypeError, "systems: got 'base_q', expected a list of names of systems; "),
    ({"systems": [5]}, TypeError, "systems[0]: got 5, expected systems to be a list of names"),
    ({"prompt": "plane"}, ValueError, "prompt: got 'plane', expected one of 'plain', "),
    ({"reach": "no"}, TypeError, "reach: got 'no', expected True or False; "),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG_EVALUATE)
def test_what_evaluate_refuses_before_a_question_is_asked(
    model, adapter, model_dir, given, kind, message, monkeypatch
):
    monkeypatch.setattr(api, "with_passages", lambda *_: pytest.fail("documents are read"))
    with pytest.raises(kind) as refused:
        sp.evaluate(**{"adapter": adapter, "documents": documents()} | _given(given, model, adapter, model_dir))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_evaluate_takes_strings_as_inject_does(adapter):
    found = sp.evaluate(adapter, ["A text."], systems=("injected",))
    assert found == {"scores": {"injected": None}, "predictions": []}


TREE = "a tree {'layers': ...} of factors; take that of inject or load_adapter"
WRONG_ADAPTER = [
    ({"model": None}, TypeError, "model: got None, expected a Model; load it with load_model"),
    ({"lora": {}}, ValueError, f"lora: got a dict without layers, expected {TREE}"),
    ({"lora": {"a": np.zeros((1, 2))}}, ValueError, f"lora: got a dict without layers, expected {TREE}"),
    ({"lora": {"layers": {}}}, ValueError, f"lora: got a dict without layers, expected {TREE}"),
    ({"lora": None}, TypeError, f"lora: got None, expected {TREE}"),
    ({"scale": math.nan}, ValueError, "scale: got nan, expected a number from -1000000 to 1000000"),
    ({"scale": math.inf}, ValueError, "scale: got inf, expected a number"),
    ({"scale": "2"}, TypeError, "scale: got '2', expected a number"),
    ({"recipe": {}}, TypeError, "recipe: got a dict, expected a Recipe"),
    ({"documents": ["a"]}, TypeError, "documents: got a list, expected a dict of digests by id"),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG_ADAPTER)
def test_what_an_adapter_refuses(adapter, given, kind, message):
    with pytest.raises(kind) as refused:
        dataclasses.replace(adapter, **given)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda model, _: sp.load_adapter(None, "x"), TypeError, "model: got None, expected a Model; load it with"),
        (lambda model, _: sp.load_adapter("path", "x"), TypeError, "model: got 'path', expected a Model"),
        (lambda model, _: sp.load_adapter(model, None), TypeError, "directory: got None, expected the directory of"),
        (lambda model, _: sp.MergedModel(model), TypeError, "adapter: got a Model, expected an Adapter"),
        (lambda _, adapter: adapter.save(""), ValueError, "directory: got an empty string, expected a directory"),
        (lambda _, adapter: adapter.merge().save(5), TypeError, f"directory: got 5, expected a directory; {PATH}"),
        (lambda _, adapter: adapter.merge().save("x", form=["hf"]), TypeError, "form: got a list, expected 'hf' or"),
        (lambda *_: sp.read_documents(None), TypeError, "source: got None, expected a file, a folder, a pattern"),
        (lambda *_: sp.read_documents(""), ValueError, "source: got an empty string, expected a file, a folder"),
        (lambda *_: sp.read_documents("examples", -1), ValueError, "limit: got -1, expected 0 (all) or a whole"),
        (lambda *_: sp.read_documents("examples", "1"), TypeError, "limit: got '1', expected 0 (all) or a whole"),
        (lambda *_: sp.read_documents("examples", 0, "abc"), TypeError, "ids: got 'abc', expected a list of strings"),
    ],
)
def test_what_the_other_functions_refuse(model, adapter, call, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as refused:
        call(model, adapter)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_documents_are_read_from_anywhere(tmp_path):
    assert len(sp.read_documents("examples")) == 8 and len(sp.read_documents("examples:2")) == 2
    assert len(sp.read_documents("examples", limit=3)) == 3
    path = pathlib.Path(tmp_path / "notes.txt")
    path.write_text("Rain fell.")
    (found,) = sp.read_documents(path)
    assert (found.text, found.id) == ("Rain fell.", "notes")


# --- recipes ------------------------------------------------------------------------------------------


def test_a_field_may_be_given_by_its_own_name():
    short = sp.Recipe(epochs=5, rank=16, qa_per_context=2, rounds=4)
    long = sp.Recipe(
        train=sp.TrainConfig(epochs=5),
        lora=sp.LoraConfig(rank=16),
        targets=sp.TargetConfig(qa_per_context=2),
        generator=sp.GeneratorConfig(rounds=4),
    )
    assert short == long
    assert sp.Recipe(train=sp.TrainConfig(batch_size=4), epochs=5).train == sp.TrainConfig(batch_size=4, epochs=5)
    assert dataclasses.replace(short, seed=3).train.seed == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epohs": 5}, "unknown field 'epohs'; did you mean 'epochs'"),
        ({"zzzz": 5}, "unknown field 'zzzz'; expected one of"),
        ({"seed": -1}, "seed = -1"),
        ({"prompt": "plane"}, "prompt = 'plane', expected one of"),
        ({"epochs": 0}, r"train\.epochs = 0"),
    ],
)
def test_what_a_recipe_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        sp.Recipe(**given)


# --- documentation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sp.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(sp, name)
    text = inspect.getdoc(value)
    assert text and len(text) > 30
    if inspect.isfunction(value):
        for part in ("Args:", "Returns:", "Raises:"):
            assert part in text, f"{name} lacks {part}"
        missing = [each for each in inspect.signature(value).parameters if f"{each}:" not in text.replace(",", ":")]
        assert not missing
    else:
        for field in dataclasses.fields(value):
            named = f"{field.name}:" in text.replace(",", ":")
            assert named or field.metadata.get("derived") or len(dataclasses.fields(value)) <= 2, field.name
        for member, method in inspect.getmembers(value, inspect.isfunction):
            if not member.startswith("_"):
                assert inspect.getdoc(method), f"{name}.{member}"


def test_signals_are_left_to_the_program(model):
    before, seen = signal.getsignal(signal.SIGINT), []
    recipe = sp.Recipe(**{**SMALL, "epochs": 1})
    sp.inject(
        model, documents()[:1], recipe, unrelated=TEXT_LINES, progress=False,
        on_step=lambda record: seen.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))),
    )  # fmt: skip
    assert seen and all(each == (before, signal.getsignal(signal.SIGTERM)) for each in seen)
