"""Files that others wrote, changed at random: each is read, or refused in one line by the project's own errors."""

import io
import json
import shutil
import zipfile

import hypothesis
import jax
import pytest
import tiny
from extras import require
from hypothesis import strategies as st

from selfparam_jax.checkpoints.gguf import GGUFSource
from selfparam_jax.checkpoints.load import load_outline, read_architecture
from selfparam_jax.checkpoints.peft import load_adapter, save_adapter
from selfparam_jax.checkpoints.weight_files import open_directory
from selfparam_jax.data.documents import Document, QAPair, read_document_files
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.targets import endpoint
from selfparam_jax.targets.parse_pairs import parse_pairs
from selfparam_jax.targets.replies import ReplyFile

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
RECORD = {
    "id": "mill",
    "title": "The mill",
    "context": "The mill was built in 1742.",
    "questions": [{"question": "When?", "answers": ["1742"]}],
    "qa_pairs": [{"question": "What was built?", "answer": "The mill"}],
}


@st.composite
def changed_bytes(draw, data, first=None):
    """Some bytes of a file replaced, inserted or left out, all within the first ones, or its end cut off."""
    data, most = bytearray(data), min(len(data), first or len(data))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, most))
        new = draw(st.binary(max_size=4))
        data[place : place + draw(st.sampled_from([0, len(new), 8]))] = new
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.integers(0, 3)) == 0 else bytes(data)


@st.composite
def changed_json(draw, value):
    """A JSON value with one of its parts replaced, left out, or put in."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 4)) == 0:
        return draw(JSON)
    value = dict(value) if isinstance(value, dict) else list(value)
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    match draw(st.integers(0, 3)):
        case 0:
            del value[key]
        case 1:
            value[key] = draw(JSON)
        case _:
            value[key] = draw(changed_json(value[key]))
    return value


@pytest.fixture
def fuzz(tries, tally, request):
    """A function: draws examples and gives each to another, which returns or refuses in one line."""

    def run(name, examples, read):
        refused = []

        @hypothesis.settings(
            max_examples=tries(12), derandomize=True, database=None, deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(examples)
        def attempt(example):
            try:
                read(example)
            except (ValueError, OSError) as error:
                assert str(error) and "\n" not in str(error)
                refused.append(example)
                tally("random changes", name, "refused")
            else:
                tally("random changes", name, "read")

        attempt()
        assert refused, "every example was taken for good"

    return run


def epub():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("META-INF/container.xml", '<c><rootfile full-path="b.opf"/></c>')
        archive.writestr("b.opf", '<p><title>T</title><item id="a" href="a.html"/><itemref idref="a"/></p>')
        archive.writestr("a.html", "<h1>The mill</h1><p>Built in 1742.</p>")
    return stream.getvalue()


def slides():
    stream = io.BytesIO()
    made = require("pptx").Presentation()
    made.slides.add_slide(made.slide_layouts[5]).shapes.title.text = "The mill"
    made.save(stream)
    return stream.getvalue()


def paper():
    stream = io.BytesIO()
    pypdf = require("pypdf")
    generic, writer = pypdf.generic, pypdf.PdfWriter()
    names = {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}
    font = generic.DictionaryObject(
        {generic.NameObject(f"/{name}"): generic.NameObject(f"/{value}") for name, value in names.items()}
    )
    page, text = writer.add_blank_page(100, 100), generic.StreamObject()
    text.set_data(b"BT /F1 9 Tf 9 50 Td (The mill) Tj ET")
    page[generic.NameObject("/Contents")] = writer._add_object(text)
    fonts = generic.DictionaryObject({generic.NameObject("/F1"): font})
    page[generic.NameObject("/Resources")] = generic.DictionaryObject({generic.NameObject("/Font"): fonts})
    writer.write(stream)
    return stream.getvalue()


NOTEBOOK = {"cells": [{"cell_type": "markdown", "source": ["The mill"]}], "metadata": {}, "nbformat": 4}
CHAT = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "In 1742."}]}
DOCUMENTS = {
    "jsonl": changed_json(RECORD).map(json.dumps).map(str.encode),
    "jsonl, bytes": changed_bytes(json.dumps(RECORD).encode()),
    "jsonl, chats": changed_json(CHAT).map(json.dumps).map(str.encode),
    "json": changed_json([CHAT, {"conversations": [{"from": "human", "value": "When?"}]}])
    .map(json.dumps)
    .map(str.encode),
    "ipynb": changed_json(NOTEBOOK).map(json.dumps).map(str.encode),
    "html": changed_bytes(b"<html><title>T</title><p>The mill &amp; the lake<table><tr><td>1</table></html>"),
    "txt": st.binary(max_size=40),
    "epub": changed_bytes(epub()),
    "pptx": changed_bytes(slides()),
    "pdf": changed_bytes(paper()),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents(kind, fuzz, tmp_path):
    path = tmp_path / f"document.{kind.partition(',')[0]}"

    def read(data):
        path.write_bytes(data)
        try:
            found = read_document_files(path)
        except ValueError as error:
            assert str(path) in str(error)
            raise
        assert found and all(isinstance(document, Document) and document.text.strip() for document in found)

    fuzz(f"documents, {kind}", DOCUMENTS[kind], read)


def test_replies(fuzz, tmp_path):
    answer = {"choices": [{"message": {"content": "Q"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}

    def answered(value):
        try:
            found = endpoint._read_answer(json.dumps(value).encode())
        except endpoint._Passing as error:
            raise ValueError(str(error)) from None
        assert isinstance(found.text, str)

    fuzz("replies of a server", changed_json(answer), answered)

    def parsed(text):
        pairs = parse_pairs(text)
        assert all(isinstance(pair, QAPair) and pair.question and pair.answer for pair in pairs)
        if not pairs:
            raise ValueError("no pair")

    marks = st.sampled_from(
        ["Question: ", "\nAnswer: ", "Q1.", "A:", "```json\n", '[{"question": "', "</think>", "| a | b |\n"]
    )
    fuzz("pairs in a reply", st.lists(marks | st.text(max_size=6), max_size=12).map("".join), parsed)
    line = json.dumps({"key": "k", "text": "t", "complete": True, "prompt_tokens": 1, "completion_tokens": 1}) + "\n"

    def kept(data):
        path = tmp_path / "replies.jsonl"
        path.write_bytes(data)
        try:
            ReplyFile(path).close()
        except ValueError:
            assert path.read_bytes() == data
            raise

    fuzz("file of replies", changed_bytes(2 * line.encode()), kept)


def test_safetensors(fuzz, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()

    def read(changed):
        path.write_bytes(changed)
        source = open_directory(tmp_path / "model")
        for name in source.names():
            source.read(name, tuple(slice(None) for _ in source.shape(name)))

    fuzz("safetensors, header", changed_bytes(data, 8 + int.from_bytes(data[:8], "little")), read)


def test_model_config(fuzz, model_dir, tmp_path):
    config, path = json.loads((model_dir / "config.json").read_text()), tmp_path / "config.json"

    def read(value):
        path.write_text(json.dumps(value))
        read_architecture(path)

    fuzz("model's config.json", changed_json(config), read)


def test_gguf(fuzz, tmp_path):
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, tiny.checkpoint("gqa"))
    data = path.read_bytes()

    def read(changed):
        path.write_bytes(changed)
        source = GGUFSource(path, load_outline(path).config)
        for name in source.names():
            source.read(name, tuple(slice(None) for _ in source.shape(name)))

    fuzz("GGUF, header", changed_bytes(data, 12_000), read)


def test_peft_config(fuzz, tiny_model, tmp_path):
    lora = init_lora(jax.random.key(0), tiny_model.params, LoraConfig(rank=2))
    save_adapter(lora, 2.0, tiny_model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())

    def read(value):
        path.write_text(json.dumps(value))
        load_adapter(tmp_path / "adapter", tiny_model)

    fuzz("PEFT's adapter_config.json", changed_json(config), read)
