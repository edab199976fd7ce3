"""The models that write pairs: our own decoding, and how each of them is checked and opened."""

import gc
import json
import sys
import weakref

import jax
import pytest
import tiny

from selfparam_jax.models.decoder import Decoder
from selfparam_jax.targets import writers
from selfparam_jax.targets.config import GENERATORS, EndpointConfig, GeneratorConfig
from selfparam_jax.targets.endpoint import EndpointWriter
from selfparam_jax.targets.grounded.writer import GroundedWriter
from selfparam_jax.targets.replies import Reply
from selfparam_jax.targets.writers import WRITERS, LocalWriter, check_writer, open_writer
from selfparam_jax.training.recipe import Recipe

CHAT_CONFIG = GeneratorConfig(form="chat")
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def local(tiny_model):
    """A tiny random model with a chat template, as the writer."""
    tokenizer = tiny_model.tokenizer
    before, tokenizer.chat_template = getattr(tokenizer, "chat_template", None), CHAT
    config = GeneratorConfig(generator="local", form="chat", reply_tokens=12, temperature=1.5)
    yield LocalWriter("tiny", Decoder(tiny_model.config), tiny_model.params, tokenizer, config)
    tokenizer.chat_template = before


def test_local_replies_are_decoded_together_and_follow_the_seed(local, monkeypatch):
    calls, decode = [], writers.generate
    monkeypatch.setattr(writers, "generate", lambda *args, **named: calls.append(args) or decode(*args, **named))
    document = "Read this document about mills.\n"
    both = local.write([document + "Ask A.", document + "Say B."], [3, 2], 7)
    assert [len(replies) for replies in both] == [3, 2]
    assert len({reply.text for replies in both for reply in replies}) == 5
    assert local.write([document + "Ask A.", document + "Say B."], [3, 2], 7) == both
    assert local.write([document + "Ask A.", document + "Say B."], [3, 2], 8) != both
    # One call for all, and the document stands in the prefix, which is read once.
    (_, _, prefix, rows, *_), *_ = calls
    assert len(calls) == 3 and len(rows) == 5
    assert document in local._prompt.decode(prefix) and not any("mills" in local._prompt.decode(row) for row in rows)
    assert (
        local._prompt.decode((*prefix, *rows[0])) == f"user: {document}Ask A.\nassistant:"
    )  # the space belongs to the answer


def test_each_document_is_read_once(local, monkeypatch):
    calls, seeds, decode = [], [], writers.generate

    def noted(*args, **named):
        calls.append(args)
        seeds.append(named["seed"])
        return decode(*args, **named)

    monkeypatch.setattr(writers, "generate", noted)
    one, two = "A document about a mill and its wheels.\n", "Quite another text on a lake, deep and green.\n"
    found = local.write([one + "A.", one + "B.", two + "A."], [1, 2, 2], 3)
    assert [len(replies) for replies in found] == [1, 2, 2]
    assert [len(rows) for _, _, _, rows, *_ in calls] == [3, 2]
    assert len({*seeds}) == 2, "the documents' draws are not the same"
    assert len({reply.text for replies in found for reply in replies}) == 5


def test_a_completion_goes_on_with_the_text_itself(local, tiny_model, monkeypatch):
    config = GeneratorConfig(generator="local", form="completion", reply_tokens=4)
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", None)
    writer = LocalWriter("tiny", Decoder(tiny_model.config), tiny_model.params, tiny_model.tokenizer, config)
    calls = []
    monkeypatch.setattr(writers, "generate", lambda *args, **named: calls.append(args) or [[5, 6]])
    writer.write(["Passage: x\nQuestion:"], [1], 0)
    ((_, _, prefix, (row,), new_tokens, *_),) = calls
    assert writer._prompt.decode((*prefix, *row)) == "Passage: x\nQuestion:" and new_tokens == 4
    assert (*prefix, *row)[0] == writer._prompt.start_ids[0]


def test_one_instruction_alone(local):
    assert [len(replies) for replies in local.write(["Ask."], [2], 0)] == [2]


def test_a_reply_ends_at_the_end_of_its_turn(local, monkeypatch):
    end = local._prompt.end_ids[0]
    word = list(local._prompt.encode("fine"))
    rows = [[*word, end, *word], word]
    monkeypatch.setattr(writers, "generate", lambda *args, **named: rows)
    assert local.write(["Ask."], [2], 0) == [[Reply("fine", True), Reply("fine", False)]]


def test_a_model_without_a_chat_template_is_refused(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="no chat template"):
        LocalWriter("tiny", Decoder(tiny_model.config), tiny_model.params, tiny_model.tokenizer, CHAT_CONFIG)


# --- by name --------------------------------------------------------------------------------------------


def test_every_writer_is_registered():
    assert {"none", *WRITERS} == set(GENERATORS)


@pytest.mark.parametrize("generator", ["auto", "grounded"])
def test_rules_need_neither_a_model_nor_the_extra(tmp_path, monkeypatch, generator):
    for package in ("rapidfuzz", "json_repair", "openai", "tenacity"):
        monkeypatch.setitem(sys.modules, package, None)
    config = GeneratorConfig(generator=generator)
    check_writer(config)
    with open_writer(config, tmp_path / "pairs.jsonl") as writer:
        assert isinstance(writer, GroundedWriter) and writer.name == "grounded"
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_is_opened(tiny_model, tmp_path):
    config = GeneratorConfig(generator="local", reply_tokens=3)
    check_writer(config, tiny_model)
    with open_writer(config, tmp_path / "pairs.jsonl", tiny_model) as writer:
        assert isinstance(writer, LocalWriter) and writer.name == tiny_model.name
        assert len(writer.write(["Passage: x"], [2], 0)[0]) == 2
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="local' without a model"):
        check_writer(config)


def test_another_model_is_loaded_to_write_and_let_go(tiny_model, tmp_path, monkeypatch):
    directory, loaded, load = tmp_path / "other", [], writers.load_model
    tiny.save_checkpoint(directory, "mqa", seed=7, max_position_embeddings=256)

    def noted(*args, **named):
        model = load(*args, **named)
        weights = [weakref.ref(leaf) for leaf in jax.tree.leaves(model.params)]
        loaded.append((model.fingerprint, weakref.ref(model), weights))
        return model

    monkeypatch.setattr(writers, "load_model", noted)
    config = GeneratorConfig(generator="local", model=str(directory), reply_tokens=6)
    check_writer(config, tiny_model)
    with open_writer(config, tmp_path / "pairs.jsonl", tiny_model) as writer:
        assert (writer.name, writer.fingerprint, loaded) == ("other", "", []), "not before it is asked"
        found = writer.write(["Passage: x"], [3], 0)
        assert writer.write(["Passage: x"], [3], 0) == found and len(loaded) == 1
        assert writer.fingerprint == loaded[0][0]
        assert all(ref() is not None for ref in loaded[0][2])
    gc.collect()
    assert loaded[0][1]() is None and all(ref() is None for ref in loaded[0][2])
    other = load(directory)
    itself = LocalWriter("x", other.decoder(), other.params, other.tokenizer, config, other.end_ids)
    assert itself.write(["Passage: x"], [3], 0) == found
    with open_writer(
        GeneratorConfig(generator="local", reply_tokens=6), tmp_path / "pairs.jsonl", tiny_model
    ) as base:
        assert base.fingerprint == tiny_model.fingerprint and base.write(["Passage: x"], [3], 0) != found


def test_another_model_that_cannot_write_is_refused_before_it_is_loaded(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="'nowhere' is not known"):
        check_writer(GeneratorConfig(generator="local", model="nowhere"), tiny_model)
    tiny.save_checkpoint(tmp_path / "other", "mqa")
    names = tmp_path / "other" / "chat_template.jinja", tmp_path / "other" / "tokenizer_config.json"
    for path in names:
        if path.name.endswith("jinja"):
            path.unlink(missing_ok=True)
        else:
            content = json.loads(path.read_text())
            content.pop("chat_template", None)
            path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no chat template.*choose another model"):
        check_writer(GeneratorConfig(generator="local", form="chat", model=str(tmp_path / "other")), tiny_model)
    with pytest.raises(ValueError, match=r"generator\.model = 'm' with targets.generator = 'auto', expected 'local'"):
        Recipe(generator=GeneratorConfig(model="m"))


def test_a_server_is_opened_and_its_replies_lie_beside_the_pairs(tmp_path, monkeypatch):
    config, server = GeneratorConfig(generator="endpoint", form="chat"), EndpointConfig(model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    check_writer(config, endpoint=server)
    assert list(tmp_path.iterdir()) == [], "checking writes nothing"
    with open_writer(config, tmp_path / "pairs.jsonl", endpoint=server) as writer:
        assert isinstance(writer, EndpointWriter) and writer.name == "m"
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.replies.jsonl"]
    monkeypatch.setattr(writers, "is_distributed", lambda: True)
    with pytest.raises(ValueError, match="every one of them would ask the server"):
        check_writer(config, endpoint=server)


@pytest.mark.parametrize(
    ("server", "key", "message"),
    [(EndpointConfig(), "sk-1", "endpoint.model = ''"), (None, "sk-1", "endpoint.model = ''"),
     (EndpointConfig(model="m"), "", "OPENAI_API_KEY holds no key")],
)  # fmt: skip
def test_a_server_that_cannot_be_asked_is_refused_before_anything_is_sent(monkeypatch, server, key, message):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match=message):
        check_writer(GeneratorConfig(generator="endpoint", form="chat"), endpoint=server)


def test_nobody_cannot_be_asked():
    with pytest.raises(
        ValueError, match=r"targets\.generator = 'none', expected one of auto, grounded, local, endpoint"
    ):
        check_writer(GeneratorConfig(generator="none"))
    with pytest.raises(ValueError, match=r"generator.kinds = \['fact'\]"):
        check_writer(GeneratorConfig(generator="endpoint", form="chat", kinds=("fact",)))


@pytest.mark.parametrize(
    ("generator", "package"),
    [("local", "rapidfuzz"), ("local", "json_repair"), ("endpoint", "openai"), ("endpoint", "tenacity")],
)
def test_a_missing_package_is_found_before_anything_is_asked(tiny_model, monkeypatch, generator, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    config = GeneratorConfig(generator=generator, form="chat" if generator == "endpoint" else "completion")
    with pytest.raises(ValueError, match=rf"package {package}, .* pip install 'selfparam-jax\[synthesis\]'"):
        check_writer(config, tiny_model, EndpointConfig(model="m"))
