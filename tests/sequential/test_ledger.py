"""The ledger: a chain that shows every change, that a kill cannot tear, and that gives back the model before."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from safetensors.numpy import load_file

from selfparam_jax.commands import ledger as command
from selfparam_jax.distributed import files
from selfparam_jax.jobs import ledger_model
from selfparam_jax.models.lora import compose_lora, merge_adapters
from selfparam_jax.sequential import ledger
from selfparam_jax.sequential.ledger import Ledger

ROOT = pathlib.Path(__file__).parents[2]
BASE = "f" * 64
SETTINGS = {"lora": {"rank": 2, "alpha": 8.0}, "train": {"betas": (0.9, 0.99)}}


def adapter(seed, rank=2):
    """A random adapter of two projections, as arrays on the device."""
    rng = np.random.default_rng(seed)

    def factors(inputs, outputs):
        shapes = {"a": (2, inputs, rank), "b": (2, rank, outputs)}
        return {key: jnp.asarray(rng.standard_normal(shape), jnp.float32) for key, shape in shapes.items()}

    return {"layers": {"self_attn": {"v_proj": factors(4, 3)}, "mlp": {"down_proj": factors(5, 4)}}}


def arguments(number):
    return {
        "name": f"context {number}",
        "context_digest": f"c{number}",
        "targets_digest": f"t{number}",
        "settings": SETTINGS,
        "lora": adapter(number),
        "scale": 4.0,
    }


def fill(directory, count=3):
    book = Ledger.open(directory, BASE)
    for number in range(1, count + 1):
        book.append(**arguments(number))
    return book


def content(directory):
    """All files, temporary ones too, with their bytes."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@pytest.fixture
def book(tmp_path):
    return fill(tmp_path / "ledger")


def test_an_export_checks_the_chain_first(book, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(ledger_model, "export_workdir", lambda *arguments: written.append(arguments) or {})
    ledger_model.export_ledger(book, tmp_path / "out")
    path = book.directory / book.entries()[1].id / "entry.json"
    path.write_text(path.read_text().replace("context 2", "context 9"))
    with pytest.raises(ValueError, match=r"entry\.json was changed.* `selfparam ledger WORKDIR verify` lists them"):
        ledger_model.export_ledger(Ledger.open(book.directory), tmp_path / "out")
    assert len(written) == 1


# --- what is kept -------------------------------------------------------------------------------------


def test_entries_and_adapters_are_what_was_appended(tmp_path):
    book = Ledger.open(tmp_path / "ledger", BASE)
    assert (book.entries(), book.active(), book.adapters(), book.verify()) == ([], [], [], [])
    made = [book.append(**arguments(number)) for number in (1, 2, 3)]
    again = Ledger.open(tmp_path / "ledger")
    assert again.base_fingerprint == BASE
    assert again.entries() == again.active() == made
    assert [(e.number, e.name, e.scale, e.rank) for e in made] == [(n, f"context {n}", 4.0, 2) for n in (1, 2, 3)]
    assert [e.parent for e in made] == ["", made[0].id, made[1].id]
    assert made[0].settings == json.loads(json.dumps(SETTINGS)) and made[0].base_fingerprint == BASE
    for number, (lora, scale) in enumerate(again.adapters(), 1):
        jax.tree.map(np.testing.assert_array_equal, lora, adapter(number))
        assert scale == 4.0 and lora["layers"]["mlp"]["down_proj"]["a"].dtype == np.float32
    path = tmp_path / "ledger" / made[1].id / "adapter.safetensors"
    assert path.stat().st_mode & 0o777 == 0o644  # whoever serves the model may read it
    flat = load_file(path)
    names = ("layers.self_attn.v_proj", "layers.mlp.down_proj")
    assert set(flat) == {f"{name}.{factor}" for name in names for factor in "ab"}
    assert again.verify() == []


def test_ledger_json_is_short_and_in_order(book):
    found = json.loads((book.directory / "ledger.json").read_text())
    ids = [entry.id for entry in book.entries()]
    assert found == {"base_fingerprint": BASE, "entries": dict.fromkeys(ids, "active")}
    assert list(found["entries"]) == ids


def test_ranks_may_differ_within_an_adapter(tmp_path):
    lora = adapter(0)
    lora["layers"]["mlp"] = adapter(1, rank=5)["layers"]["mlp"]
    assert Ledger.open(tmp_path / "ledger", BASE).append(**{**arguments(1), "lora": lora}).rank == 5


def test_the_same_appends_give_the_same_bytes(tmp_path):
    for name in "ab":
        fill(tmp_path / name).undo(fill(tmp_path / name).entries()[1].id)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"context_digest": "another"},
        {"targets_digest": "another"},
        {"settings": {**SETTINGS, "seed": 1}},
        {"lora": adapter(7)},
        {"scale": 4.5},
        {"base": "e" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_id_and_all_ids_after_it(tmp_path, change):
    before = [entry.id for entry in fill(tmp_path / "ledger").entries()]
    book = Ledger.open(tmp_path / "other", change.get("base", BASE))
    changed = {name: value for name, value in change.items() if name != "base"}
    after = [book.append(**{**arguments(number), **(changed if number == 1 else {})}).id for number in (1, 2, 3)]
    assert len({*before, *after}) == 6


def test_the_id_covers_all_fields(book):
    record = dataclasses.asdict(book.entries()[1])
    others = {"number": 9, "rank": 9, "scale": 0.5, "settings": {}}
    for name in set(ledger.FIELDS) - {"id"}:
        assert ledger.entry_id({**record, name: others.get(name, "other")}) != record["id"]
    assert ledger.entry_id({**record, "id": "other"}) == record["id"] == ledger.entry_id(record)


def test_the_adapters_digest_covers_names_shapes_and_bytes():
    arrays = {"x.a": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "x.b": np.zeros((1, 3, 2), np.float32)}
    digests = [
        ledger.adapter_digest(each)
        for each in (
            arrays,
            {"y.a": arrays["x.a"], "x.b": arrays["x.b"]},
            {**arrays, "x.a": arrays["x.a"].reshape(1, 3, 2)},
            {**arrays, "x.a": arrays["x.a"].view(np.int32)},
            {**arrays, "x.b": -arrays["x.b"]},
        )
    ]
    assert len(set(digests)) == 5
    assert ledger.adapter_digest(dict(reversed(arrays.items()))) == digests[0]


# --- opening ------------------------------------------------------------------------------------------


def test_another_base_is_refused_and_both_are_shown(book):
    with pytest.raises(ValueError, match=f"another base model.*{BASE} there, {'0' * 64} now"):
        Ledger.open(book.directory, "0" * 64)
    assert Ledger.open(book.directory, BASE).entries() == book.entries()


def test_no_ledger_is_refused_where_no_base_is_given(tmp_path):
    with pytest.raises(ValueError, match=r"has no ledger\.json; give the directory"):
        Ledger.open(tmp_path / "ledger")
    assert not (tmp_path / "ledger").exists()


def test_entries_without_their_ledger_are_not_written_over(book):
    (book.directory / "ledger.json").unlink()
    before = content(book.directory)
    with pytest.raises(ValueError, match=r"has entries but no ledger\.json"):
        Ledger.open(book.directory, BASE)
    assert content(book.directory) == before


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"base_fingerprint": "f"}',
        '{"base_fingerprint": "f", "entries": []}',
        '{"base_fingerprint": "f", "entries": {"../../elsewhere": "active"}}',
        '{"base_fingerprint": "f", "entries": {"0123456789ab": "perhaps"}}',
        '{"base_fingerprint": "f", "entries": {}, "more": 1}',
    ],
)
def test_a_damaged_ledger_json_is_refused(book, text):
    (book.directory / "ledger.json").write_text(text)
    with pytest.raises(ValueError, match=r"ledger\.json.*restore it from a copy"):
        Ledger.open(book.directory)


# --- kills --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """No handler of ours catches it."""


def kill_at(monkeypatch, call, after):
    """The process ends before, or right after, the given call of os.replace; nothing is cleaned up after that."""
    replace, calls = os.replace, []
    remove, unlink = shutil.rmtree, pathlib.Path.unlink

    def dying(source, target):
        calls.append(target)
        if len(calls) == call and after:
            replace(source, target)
        if len(calls) >= call:
            raise Killed
        replace(source, target)

    def alive(function):
        return lambda *args, **kwargs: None if len(calls) >= call else function(*args, **kwargs)

    monkeypatch.setattr(os, "replace", dying)
    monkeypatch.setattr(shutil, "rmtree", alive(remove))
    monkeypatch.setattr(pathlib.Path, "unlink", alive(unlink))


# An append replaces entry.json, adapter.safetensors, the directory, ledger.json; opening replaces ledger.json before.
STEPS = ["open", "entry.json", "adapter", "directory", "ledger.json"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("first", "step"), [(first, step) for first in (True, False) for step in range(len(STEPS)) if first or step]
)
def test_a_kill_at_any_step_leaves_a_ledger_that_opens_and_goes_on(tmp_path, monkeypatch, first, step, after):
    directory = tmp_path / "ledger"
    if not first:
        fill(directory, 2)
    with monkeypatch.context() as patch:
        kill_at(patch, step + first, after)
        with pytest.raises(Killed):
            Ledger.open(directory, BASE).append(**arguments(1 if first else 3))
    count = 0 if first else 2
    found = Ledger.open(directory, BASE).active()
    done = after and step == len(STEPS) - 1
    assert len(found) == count + done
    problems = Ledger.open(directory).verify()  # only a directory that is whole is worth a word
    unnamed = (step, after) in ((STEPS.index("directory"), True), (STEPS.index("ledger.json"), False))
    assert [problem.split(": ")[1] for problem in problems] == ["not in ledger.json"] * unnamed
    book = fill(directory)
    assert book.verify() == []
    whole = fill(tmp_path / "whole")
    assert book.entries() == whole.entries()
    left = {name: data for name, data in content(directory).items() if not name.startswith(".")}
    assert left == content(tmp_path / "whole")


def test_a_failed_write_cleans_up(book, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    before = content(book.directory)
    monkeypatch.setattr(ledger, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        book.append(**arguments(4))
    assert content(book.directory) == before
    assert len(list(book.directory.iterdir())) == 4


def test_a_repeated_append_changes_nothing(book):
    before, entries = content(book.directory), book.entries()
    assert [book.append(**arguments(number)) for number in (3, 1, 2)] == [entries[i] for i in (2, 0, 1)]
    assert content(book.directory) == before


def test_the_id_at_any_place_is_that_of_the_entry():
    """A repeated append is recognised without the files of all entries, and without hashing all of each."""
    content = arguments(1) | {"base_fingerprint": "f", "adapter_digest": "d", "rank": 2}
    content.pop("lora")
    content |= {"name": 'of "number": 1, "parent": "x"', "settings": {"z": {"parent": 1, "number": 2}, "a": ["é"]}}
    id_at = ledger._ids(content)
    for number, parent in ((1, ""), (2, "0123456789ab"), (1000, "ba9876543210")):
        assert id_at(number, parent) == ledger._entry(number, parent, content).id


def test_an_undone_injection_made_again_is_a_new_entry(book):
    third = book.entries()[2]
    book.undo(third.id)
    fourth = book.append(**arguments(3))
    assert (fourth.number, fourth.parent, fourth.adapter_digest) == (4, third.id, third.adapter_digest)
    assert book.append(**arguments(3)) == fourth
    assert [entry.number for entry in book.active()] == [1, 2, 4]
    assert book.verify() == []


# --- undoing ------------------------------------------------------------------------------------------


@pytest.fixture
def base():
    rng = np.random.default_rng(99)
    shapes = {("self_attn", "v_proj"): (2, 4, 3), ("mlp", "down_proj"): (2, 5, 4)}
    layers = {
        module: {name: {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)}}
        for (module, name), shape in shapes.items()
    }
    return {"layers": layers}


def test_undoing_the_last_gives_exactly_the_model_before_it(tmp_path, base):
    book = Ledger.open(tmp_path / "ledger", BASE)
    models = [merge_adapters(base, book.adapters())]
    for number in (1, 2, 3):
        book.append(**arguments(number))
        models.append(merge_adapters(base, book.adapters()))
    jax.tree.map(np.testing.assert_array_equal, models[0], base)
    for count in (2, 1, 0):
        assert book.undo(book.active()[-1].id).number == count + 1
        jax.tree.map(np.testing.assert_array_equal, merge_adapters(base, book.adapters()), models[count])
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), models[count], models[count + 1])
        assert all(jax.tree.leaves(changed))
    assert len(book.entries()) == 3 and book.verify() == []


def test_undoing_an_earlier_one_leaves_the_sum_of_the_others(book, base):
    first, second, third = book.entries()
    book.undo(second.id)
    assert book.active() == [first, third] and book.entries() == [first, second, third]
    found = merge_adapters(base, book.adapters())
    expected = merge_adapters(base, [(adapter(1), 4.0), (adapter(3), 4.0)])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, book.adapter(second.id), adapter(2))  # still there
    assert Ledger.open(book.directory).active() == [first, third]
    assert book.verify() == []


def test_ids_may_be_shortened_and_wrong_ones_are_refused(book, monkeypatch):
    ids = [entry.id for entry in book.entries()]
    length = next(n for n in range(1, 13) if len({id[:n] for id in ids}) == 3)
    for id, entry in zip(ids, book.entries(), strict=True):
        assert book.find(id) == book.find(id[:length]) == entry
    typo = ids[0][:5] + ("0" if ids[0][5] != "0" else "1")
    with pytest.raises(ValueError, match=f"got '{typo}', .*did you mean {ids[0]}"):
        book.undo(typo)
    with pytest.raises(ValueError, match="expected an entry's id.*there are " + ", ".join(ids)):
        book.adapter("zzzz")
    with pytest.raises(ValueError, match="got ''"):
        book.undo("")
    monkeypatch.setattr(book, "_statuses", lambda: {"abc": "active", "abd": "active", "fff": "active"})
    with pytest.raises(ValueError, match="2 entries begin with 'ab': abc, abd; give more of the id"):
        book.find("ab")


def test_undoing_twice_is_refused(book):
    first, second, third = (entry.id for entry in book.entries())
    book.undo(second)
    before = content(book.directory)
    with pytest.raises(ValueError, match=rf"{second} \(context 2\) is undone already; active are: {first}, {third}"):
        book.undo(second[:6])
    assert content(book.directory) == before


def test_an_undo_by_another_process_is_seen(book):
    Ledger.open(book.directory).undo(book.entries()[0].id)
    assert [entry.number for entry in book.active()] == [2, 3]


# --- damage -------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_an_adapter_is_found(book):
    entry = book.entries()[1]
    path = book.directory / entry.id / "adapter.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 3), *range(header, len(whole), 17), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        problems = book.verify()
        assert len(problems) == 1 and entry.id in problems[0], place
        with pytest.raises(ValueError, match="restore it from a copy"):
            book.adapters()
    path.write_bytes(whole[:-4])
    assert len(book.verify()) == 1
    path.write_bytes(whole)
    assert book.verify() == []


@pytest.mark.parametrize("name", ["name", "number", "settings", "parent", "scale", "extra", "id"])
def test_an_edited_entry_is_found(book, name):
    path = book.directory / book.entries()[1].id / "entry.json"
    record = files.read_json(path)
    files.write_json(path, {**record, name: "another"})
    assert len(book.verify()) == 1 and "was changed" in book.verify()[0]
    with pytest.raises(ValueError, match="was changed"):
        book.adapters()
    files.write_json(path, {key: value for key, value in record.items() if key != "targets_digest"})
    assert "was changed" in book.verify()[0]
    for text in ("[1]", "{", ""):
        path.write_text(text)
        assert len(book.verify()) == 1
    files.write_json(path, record)
    assert book.verify() == []


@pytest.mark.parametrize("name", ["entry.json", "adapter.safetensors", "."])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_missing_file_is_found(book, name, index):
    id = book.entries()[index].id
    path = book.directory / id / name
    shutil.rmtree(path) if name == "." else path.unlink()
    (problem,) = book.verify()
    assert problem.startswith(f"{id}: ") and ("entry.json" if name == "." else name) in problem
    assert problem.endswith("is missing; restore it from a copy")


def rewrite(book, change):
    record = files.read_json(book.directory / "ledger.json")
    files.write_json(book.directory / "ledger.json", change(record, list(record["entries"])))


def with_entries(record, ids):
    return {**record, "entries": dict.fromkeys(ids, "active")}


def test_entries_in_another_order_are_found(book):
    rewrite(book, lambda record, ids: with_entries(record, [ids[1], ids[0], ids[2]]))
    assert len(book.verify()) == 3 and all("broken chain" in problem for problem in book.verify())


def test_an_entry_left_out_is_found(book):
    first, second, third = (entry.id for entry in book.entries())
    rewrite(book, lambda record, ids: with_entries(record, [first, third]))
    assert [problem.split(":")[0] for problem in book.verify()] == [third, second]
    shutil.rmtree(book.directory / second)
    (problem,) = book.verify()
    assert f"broken chain: it is number 3 after {second}" in problem and f"as number 2 after {first}" in problem
    rewrite(book, lambda record, ids: with_entries(record, [first]))
    (problem,) = book.verify()
    assert problem.startswith(f"{third}: not in ledger.json")


def test_a_foreign_entry_is_found(book, tmp_path):
    """An entry that is whole, but of a ledger of another base, in the place of our last."""
    other = Ledger.open(tmp_path / "other", "e" * 64)
    ours = [entry.id for entry in book.entries()]
    monkey = [other.append(**arguments(number)) for number in (1, 2, 3)][2]
    shutil.copytree(other.directory / monkey.id, book.directory / monkey.id)
    rewrite(book, lambda record, ids: with_entries(record, [*ours, monkey.id]))
    problems = book.verify()
    assert [("foreign base" in p, "broken chain" in p) for p in problems] == [(False, True), (True, False)]
    rewrite(book, lambda record, ids: {**with_entries(record, ours), "base_fingerprint": "0" * 64})
    assert sum("foreign base" in problem for problem in Ledger.open(book.directory).verify()) == 3


def test_an_entry_with_another_number_is_found(book):
    """Its own digest fits: it was made anew."""
    last = book.entries()[2]
    record = dataclasses.asdict(last) | {"number": 9}
    record["id"] = ledger.entry_id(record)
    (book.directory / last.id).rename(book.directory / record["id"])
    files.write_json(book.directory / record["id"] / "entry.json", record)
    rewrite(book, lambda found, ids: with_entries(found, [*ids[:2], record["id"]]))
    (problem,) = book.verify()
    assert f"broken chain: it is number 9 after {last.parent}" in problem


def test_an_adapter_of_another_entry_is_found(book):
    first, second, _ = (book.directory / entry.id / "adapter.safetensors" for entry in book.entries())
    shutil.copy(first, second)
    (problem,) = book.verify()
    assert "adapter.safetensors was changed" in problem


# --- composing ----------------------------------------------------------------------------------------


def test_composing(book, tmp_path):
    ids = [entry.id for entry in book.entries()]
    book.undo(ids[0])
    wanted = compose_lora([(adapter(1), 4.0), (adapter(3), 4.0)])
    lora, error = book.compose([ids[0], ids[2][:8]])
    jax.tree.map(np.testing.assert_array_equal, lora, wanted)
    assert error == {}
    record = ledger.write_composed(tmp_path / "new" / "out", book, [ids[0], ids[2][:8]])
    assert record == {
        "base_fingerprint": BASE, "entries": [ids[0], ids[2]], "scale": 1.0, "rank": 4, "error": {},
    }  # fmt: skip
    assert files.read_json(tmp_path / "new" / "out" / "adapter.json") == record
    found = load_file(tmp_path / "new" / "out" / "adapter.safetensors")
    np.testing.assert_array_equal(found["layers.mlp.down_proj.b"], wanted["layers"]["mlp"]["down_proj"]["b"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_composing_past_the_rank_recompresses(book, tmp_path):
    ids = [entry.id for entry in book.entries()]
    assert book.compose(ids, 6)[1] == {}  # three of rank 2
    assert ledger.write_composed(tmp_path / "full", book, ids, 6)["rank"] == 6
    record = ledger.write_composed(tmp_path / "out", book, ids, 2)
    assert record["rank"] == 2
    assert 0.1 < record["error"]["overall"] < 1
    assert set(record["error"]["modules"]) == {"self_attn.v_proj", "mlp.down_proj"}
    found = load_file(tmp_path / "out" / "adapter.safetensors")
    assert found["layers.mlp.down_proj.a"].shape == (2, 5, 2)
    whole = compose_lora(book.adapters(ids))["layers"]["mlp"]["down_proj"]
    exact = np.asarray(whole["a"] @ whole["b"], np.float64)
    lost = exact - found["layers.mlp.down_proj.a"] @ found["layers.mlp.down_proj.b"]
    expected = np.linalg.norm(lost) / np.linalg.norm(exact)
    assert record["error"]["modules"]["mlp.down_proj"] == pytest.approx(expected, rel=1e-5)


def test_composing_refuses(book, tmp_path):
    id = book.entries()[0].id
    with pytest.raises(ValueError, match=f"{id} is given more than once"):
        book.compose([id, id[:8]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or an empty directory; choose another --out"):
        ledger.write_composed(tmp_path / "out", book, [id])
    with pytest.raises(ValueError, match="expected a new or an empty directory"):
        ledger.write_composed(tmp_path / "out" / "mine.txt", book, [id])
    assert content(tmp_path / "out") == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert ledger.write_composed(tmp_path / "empty", book, [id])["entries"] == [id]


# --- the command --------------------------------------------------------------------------------------


def run(workdir, *words):
    return processes.run(["selfparam_jax.commands.cli", "ledger", workdir, *words])


def test_the_command(book, tmp_path):
    first, second, third = (entry.id for entry in book.entries())
    done = run(tmp_path, "undo", second[:7])
    assert done.returncode == 0, done.stderr
    assert f"undone: {second} (context 2)" in done.stdout
    assert "W0 + 2 of 3 deltas" in done.stdout and "1 later injections stay" in done.stdout
    assert [entry.id for entry in book.active()] == [first, third]

    def norm(*numbers):
        lora = compose_lora([(adapter(number), 4.0) for number in numbers])["layers"]
        factors = (lora["self_attn"]["v_proj"], lora["mlp"]["down_proj"])
        return np.sqrt(sum(np.sum(np.square(each["a"] @ each["b"], dtype=np.float64)) for each in factors))

    assert f"{norm(1, 2, 3):.4g} before, {norm(1, 3):.4g} now" in done.stdout

    done = run(tmp_path, "list")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["number", "id", "name", "rank", "norm", "state"]
    states = ["active", "undone", "active"]
    for number, id, state, row in zip((1, 2, 3), (first, second, third), states, rows[1:], strict=True):
        assert row == [str(number), id, "context", str(number), "2", f"{norm(number):.4g}", state]

    done = run(tmp_path, "show", second[:7])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in (f"id: {second}", f"parent: {first}", "settings.lora.alpha: 8.0", "state: undone"):
        assert line in lines
    assert {line.split(":")[0].split(".")[0] for line in lines} >= set(ledger.FIELDS)
    assert f"norm of the delta: {norm(2):.4g}" in lines
    assert [line.split(":")[0] for line in lines[-2:]] == ["  mlp.down_proj", "  self_attn.v_proj"]

    out = tmp_path / "out"
    done = run(tmp_path, "compose", first, third, f"--out={out}", "--max_rank=3")
    assert done.returncode == 0, done.stderr
    record = files.read_json(out / "adapter.json")
    assert f"{out}: 2 entries as one adapter of rank 3 and scale 1" in done.stdout
    assert f"relative error {record['error']['overall']:.3g}" in done.stdout
    assert f"mlp.down_proj: {record['error']['modules']['mlp.down_proj']:.4g}" in done.stdout

    done = run(tmp_path, "verify")
    assert (done.returncode, done.stdout) == (0, "3 entries, all as they were written\n"), done.stderr
    (book.directory / first / "adapter.safetensors").unlink()
    (book.directory / third / "entry.json").unlink()
    done = run(tmp_path, "verify")
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [first, third]
    done = run(tmp_path, "list")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_undoing_the_last_by_the_command(book, tmp_path):
    done = run(tmp_path, "undo", book.entries()[2].id)
    assert done.returncode == 0, done.stderr
    assert "it is exactly the model before this injection" in done.stdout and "later" not in done.stdout


def test_nothing_is_undone_beside_a_damaged_entry(book, tmp_path):
    """What an undo says needs all adapters: one that is damaged is found before anything is changed."""
    first, second, _ = (entry.id for entry in book.entries())
    path = book.directory / first / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    before = content(book.directory)
    for id in (first, second):
        done = run(tmp_path, "undo", id)
        assert done.returncode == 1 and not done.stdout
        assert f"{first}/adapter.safetensors cannot be read" in done.stderr
        assert content(book.directory) == before


def test_a_ledger_of_which_nothing_is_active_says_so(book, tmp_path):
    book.check_active()
    for entry in book.entries():
        book.undo(entry.id)
    with pytest.raises(ValueError, match=f"all injections of {book.directory.parent} are undone, so its"):
        book.check_active()
    empty = Ledger.open(tmp_path / "new" / "ledger", "base")
    with pytest.raises(ValueError, match=f"{tmp_path / 'new'} has no finished injection; run the job first"):
        empty.check_active()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["undo", "zzz"], "error: got 'zzz', expected an entry's id"),
    ],
)
def test_the_command_refuses(book, tmp_path, words, message):
    before = content(book.directory)
    done = run(tmp_path, *(book.entries()[0].id if word == "ID" else word for word in words))
    assert done.returncode == 1
    assert message in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert content(book.directory) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["lst"], "invalid choice: 'lst' (choose from"),
        (["list", "x"], "unrecognized arguments: x"),
        (["compose", "x", "--out=x", "--max_rank=-1"], "argument --max_rank: '-1', expected 0 (no limit) or"),
        (["show"], "the following arguments are required: id"),
        (["undo", "x", "y"], "unrecognized arguments: y"),
        (["undo", "x", "--out=y"], "there is no flag --out; expected --help"),
        (["compose", "--out=y"], "the following arguments are required: id"),
        (["compose", "x"], "the following arguments are required: --out"),
        (["export"], "the following arguments are required: --out"),
        (["verify", "x"], "unrecognized arguments: x"),
    ],
)
def test_the_words_of_the_command(book, tmp_path, capsys, words, message):
    before = content(book.directory)
    with pytest.raises(SystemExit) as ended:
        command.main([str(tmp_path), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert content(book.directory) == before


def test_the_command_without_a_ledger(tmp_path):
    done = run(tmp_path, "list")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'ledger'} has no ledger.json")


def test_the_ledger_of_a_run_of_sequences(tmp_path):
    find_ledger = command.find_ledger
    assert find_ledger(str(tmp_path)) == tmp_path / "ledger"  # none yet: opening it says so
    first, second = (tmp_path / "sequences" / name / "ledger" for name in ("000", "001"))
    fill(first)
    assert find_ledger(str(tmp_path)) == find_ledger(str(first.parent)) == first
    fill(second)
    with pytest.raises(ValueError, match=f"2 sequences; give one of them: {first.parent}, {second.parent}"):
        find_ledger(str(tmp_path))
    fill(tmp_path / "ledger")
    assert find_ledger(str(tmp_path)) == tmp_path / "ledger"
    assert find_ledger(str(second.parent)) == second
