"""Setting the process up: the compilation cache, the count of programs, and the allocator."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from selfparam_jax.distributed import backend

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from selfparam_jax.distributed import backend

directory = sys.argv[1] or None
counted = backend.prepare(directory)
assert backend.prepare("elsewhere") is counted
x = jnp.asarray([1.0, 2.0])
before = counted.programs
jax.jit(lambda x: x * 3 + 1)(x)
once = counted.programs
jax.jit(lambda x: x * 3 + 2)(x)
print(json.dumps({
    "one": once - before, "two": counted.programs - before, "from_cache": counted.from_cache,
    "programs": counted.programs, "seconds": counted.seconds,
    "directory": jax.config.jax_compilation_cache_dir,
}))
"""


def run(directory, **environment):
    """What the program says, in a process of its own: the setting up is done once per process."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"} | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        **environment,
    }
    command = [sys.executable, "-c", PROGRAM, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_programs_are_counted_and_found_again_by_the_next_process(tmp_path):
    first = run(tmp_path / "cache")
    assert (first["one"], first["two"], first["from_cache"]) == (1, 2, 0)
    assert first["seconds"] > 0
    assert any((tmp_path / "cache").iterdir())
    second = run(tmp_path / "cache")
    assert second["programs"] == second["from_cache"] == first["programs"]


def test_a_directory_that_the_user_has_set_comes_first(tmp_path):
    found = run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert found["directory"] == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_no_directory_keeps_nothing(tmp_path):
    found = run("")
    assert found["directory"] is None
    assert found["two"] == 2
    assert run("")["from_cache"] == 0


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_keep_their_allocator(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(backend.ctypes, "CDLL", None)  # calling it would fail
    assert backend.keep_freed_memory() is False


@pytest.mark.parametrize(("answers", "expected"), [((1, 1, 1), True), ((1, 0, 1), False)])
def test_every_setting_of_the_allocator_is_made_and_its_answer_read(monkeypatch, answers, expected):
    calls, replies = [], iter(answers)

    class Library:
        @staticmethod
        def mallopt(parameter, value):
            calls.append((parameter, value))
            return next(replies)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: Library)
    assert backend.keep_freed_memory() is expected
    # One arena, no memory of its own for large arrays, nothing given back: malloc.h's numbers.
    assert calls == [(-8, 1), (-4, 0), (-1, -1)]


def test_a_system_without_mallopt(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: object())
    assert backend.keep_freed_memory() is False


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu amx_bf16 amx_tile", True), ("avx512f avx512_bf16", True), ("avx2 avx512f", False), ("", False)],
)
def test_processors_that_multiply_bfloat16(flags, expected, monkeypatch):
    monkeypatch.setattr(backend, "_cpu_flags", lambda: frozenset(flags.split()))
    assert backend.multiplies_bfloat16() is expected
