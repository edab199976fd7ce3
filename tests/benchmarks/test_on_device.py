"""The kit for a GPU: which parts it has, what is written where one fails, and its own measurements on the CPU."""

import json
import math
import os
import sys
import time

import jax
import pytest

from benchmarks import accelerator, on_device
from benchmarks.on_device import Part, run_part
from selfparam_jax.data.packing import fill_rate
from selfparam_jax.plan.memory import held_bytes, laid_out_params

TINY_STEP = ["--shape=tiny", "--systems=ours", "--out=report.json", *on_device.TINY.step]
WRITES = """
import json, os, pathlib, sys
out = next(word.removeprefix("--out=") for word in sys.argv if word.startswith("--out="))
pathlib.Path(out).write_text(json.dumps({"platforms": os.environ.get("JAX_PLATFORMS")}))
"""


@pytest.fixture(scope="module")
def settings():
    return accelerator.parse(TINY_STEP)[1]


def part_of(code, limit_s=60, on_cpu=False):
    return Part("a part", ("-c", code), limit_s, on_cpu)


def test_the_parts(capsys, tmp_path):
    """Every choice of attention and remat for the first model; what is only counted on the CPU comes last."""
    parts = list(on_device.parts_of(on_device.REAL))
    names = [part.name for part in parts]
    assert len(set(names)) == len(names) and names[0] == "tests"
    steps = [name.removeprefix("step ") for name in names if name.startswith("step ")]
    assert steps[:4] == [f"llama3-8b {a} {r}" for a in ("blocks", "cudnn") for r in ("none", "layers")]
    assert [name.removeprefix("plan ") for name in names if name.startswith("plan ")] == steps
    assert [part.on_cpu for part in parts] == sorted(part.on_cpu for part in parts)
    on_device.main([f"--out={tmp_path / 'x.json'}", "--dry-run", "--only=decoding,peers"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in shown] == ["decoding llama3-8b", "peers llama3-8b"]
    assert not list(tmp_path.iterdir())


def test_the_flags_of_steps_are_the_benchmarks_own():
    for scale in (on_device.REAL, on_device.TINY):
        for part in on_device.parts_of(scale):
            if "benchmarks.accelerator" in part.arguments and "torch" not in " ".join(part.arguments):
                assert accelerator.parse([*part.arguments[2:], "--out=report.json"])[0].systems == ["ours"]


def test_a_part_that_works(tmp_path):
    found = run_part(part_of(WRITES, on_cpu=True), False, 60, tmp_path)
    assert found["result"] == {"platforms": "cpu"} and "error" not in found
    theirs = run_part(part_of(WRITES), False, 60, tmp_path)
    assert theirs["result"] == {"platforms": os.environ.get("JAX_PLATFORMS")}


@pytest.mark.parametrize(
    ("code", "limit_s", "words", "kept"),
    [
        (f"{WRITES}\nsys.exit(3)", 60, "ended with status 3", True),
        ("raise SystemExit('no result')", 60, "ended with status 1", False),
        (f"{WRITES}\nimport time\ntime.sleep(600)", 5, "ended after 5 s", True),
    ],
)
def test_a_part_that_fails_says_so_and_keeps_what_it_wrote(tmp_path, code, limit_s, words, kept):
    found = run_part(part_of(code, limit_s), False, 600, tmp_path)
    assert words in found["error"] and ("result" in found) == kept


def test_no_part_begins_without_time(tmp_path):
    began = time.monotonic()
    assert run_part(part_of("import time; time.sleep(60)"), False, 5, tmp_path) == {"left_out": "no time was left"}
    assert time.monotonic() - began < 30


def test_one_part_that_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    parts = [Part("first", ("-c", "raise SystemExit(1)"), 60), Part("second", ("-c", WRITES), 60)]
    monkeypatch.setattr(on_device, "parts_of", lambda scale: iter(parts))
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit, match="failed: first"):
        on_device.main([f"--out={out}", "--rehearse"])
    written = json.loads(out.read_text())
    assert written["rehearsal"] is True and "error" in written["parts"]["first"]
    assert written["parts"]["second"]["result"] == {"platforms": "cpu"}


def test_memory_held_stands_beside_memory_said():
    step = {"result": {"systems": {"ours": {"peak_device_bytes": 90}}}}
    parts = {"step tiny blocks none": step, "plan tiny blocks none": {"result": {"said_bytes": 100}}}
    parts["plan tiny cudnn none"] = {"result": {"said_bytes": 100}}
    on_device.compare_memory(parts)
    assert parts["plan tiny blocks none"]["result"] == {"said_bytes": 100, "held_bytes": 90, "ratio": 0.9}
    assert parts["plan tiny cudnn none"]["result"] == {"said_bytes": 100}


def test_decoding(settings):
    found = on_device.measure_decoding(settings, (1, 2), 4)
    assert set(found) == {"1", "2"}
    for rows, each in found.items():
        assert each["tokens_per_s"] * each["s"] == pytest.approx(4 * int(rows))


def test_contexts_that_are_injected_together(settings):
    contexts, sentences = on_device.several_contexts(settings, 3)
    assert [len(context) for context in contexts] == [24] * 3 and len(set(contexts)) == 3
    assert [sentence.context for sentence in sentences] == [0] * 16 + [1] * 16 + [2] * 16
    found = on_device.measure_contexts(settings, (1, 2))
    for count in (1, 2):
        each = found[str(count)]
        whole = each["teacher_s"] + each["steps"] * found["step_s"]
        assert each["s_per_context"] == pytest.approx(whole / count)
        drawn = on_device.several_contexts(settings, count)[1]
        tokens = [1 + len(sentence.ids) for sentence in drawn]
        assert 0.5 < fill_rate(tokens, each["steps"] * 2, 64) <= 1


def test_what_the_plan_says_of_the_step(settings):
    said = on_device.say_memory(settings)
    one = on_device.mesh.make_mesh(jax.devices()[:1])
    assert said["parameters"] == held_bytes(laid_out_params(accelerator.TINY, one), 4)
    assert said["said_bytes"] > said["parameters"] + said["activations"] and math.isfinite(said["said_bytes"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=/no/such/folder/x.json"], "its directory does not exist"),
        (["--out=x.json", "--minutes=0"], "--minutes=0.0, expected a number from 0 to 1440"),
        (["--out=x.json", "more"], "unrecognized arguments: more"),
        ([], "the following arguments are required: --out"),
    ],
)
def test_bad_flags_are_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        on_device.main(flags)
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_part_that_is_not_known(tmp_path):
    with pytest.raises(
        SystemExit, match="--only=speed: no part's name begins like this, expected some of tests, step"
    ):
        on_device.main([f"--out={tmp_path / 'x.json'}", "--only=speed"])


def test_the_python_of_the_parts_is_this_one(tmp_path):
    code = WRITES.replace('os.environ.get("JAX_PLATFORMS")', "sys.executable")
    assert run_part(part_of(code), False, 60, tmp_path)["result"]["platforms"] == sys.executable
