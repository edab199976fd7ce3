"""Files appear whole or not at all, and hold what was written."""

import errno
import json
import math

import numpy as np
import pytest

from selfparam_jax.distributed import files


def test_lines_and_their_reader_are_inverse(tmp_path):
    path = tmp_path / "out.jsonl"
    records = [{"text": 'Zürich\u2028 "quoted"\n|'}, {"text": "t"}]
    files.write_lines(path, records)
    assert files.read_lines(path) == records
    assert "Zürich" in path.read_text(encoding="utf-8")  # readable, not escaped
    files.write_lines(path, records[:1])
    assert files.read_lines(path) == records[:1]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
    assert files.read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("cut", [b'{"ste', b'{"text": "\xc3', b"\xff", b"nonsense"])
def test_a_last_line_that_does_not_parse_is_left_out_whatever_its_bytes(tmp_path, cut):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"step": 1}\n' + cut)
    assert files.read_lines(path) == [{"step": 1}]


def test_a_whole_last_line_without_a_line_break_is_read(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}')
    assert files.read_lines(path) == [{"step": 1}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a"\n{"a": 2}\n', "line 2: got malformed JSON"),
        (b'{"a": 1}\n\xff\n', "line 2: got malformed JSON"),
        (b'{"a": 1}\n5\n', "line 2: got '5', expected one JSON object"),
        (b'{"a": 1}\n[2]', r"line 2: got '\[2\]', expected one JSON object"),
        (b'{"a": ["x\\ud83d"]}\n', r"line 1: got half of a character \(the lone surrogate '.ud83d'\) at character 1"),
        (b'{"\\udc00": 1}', "line 1: got half of a character"),
    ],
)
def test_a_line_that_is_no_object_is_refused_with_its_place(tmp_path, content, message):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        files.read_lines(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_both_halves_of_a_character_are_text(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}\n')
    assert files.read_lines(path) == [{"a": "\U0001f600"}]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "out.jsonl"
    files.write_lines(path, [{"text": "old"}])
    with pytest.raises(TypeError):
        files.write_lines(path, [{"text": "new"}, {"text": object()}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_lines(path, [{"x": float("nan")}])
    with pytest.raises(RuntimeError, match="inside"), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("inside")
    assert files.read_lines(path) == [{"text": "old"}]
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_disk_under_a_temporary_name_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    replace = files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: calls.append("fsync"))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append((a.parent, b)), replace(a, b)))
    files.write_lines(tmp_path / "out.jsonl", [{"text": "x"}])
    assert calls == ["fsync", (tmp_path, tmp_path / "out.jsonl")]


def test_write_json_round_trip_with_numpy_numbers(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": np.float32(0.5), "b": np.arange(2), "c": "Zürich", "d": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 0.5, "b": [0, 1], "c": "Zürich", "d": None}
    assert "Zürich" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float32("nan"), np.array([1.0, math.nan])])
def test_write_json_refuses_nan_and_names_the_place(tmp_path, bad):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"x\.json: .*not finite at scores\.1\.f1"):
        files.write_json(path, {"n": 1.0, "scores": [{"f1": 0.0}, {"f1": bad}]})
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_write_json_names_a_type_it_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="got a set"):
        files.write_json(tmp_path / "x.json", {"a": {1}})


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("array", [np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(5, np.uint16)])
def test_arrays_with_a_checksum(tmp_path, array):
    path = tmp_path / "a.npy"
    files.write_array(path, array, b"sentences")
    np.testing.assert_array_equal(files.open_array(path, b"sentences"), array)
    np.testing.assert_array_equal(np.load(path), array)  # others read it too
    with pytest.raises(ValueError, match=r"a\.npy: the checksum at its end is that of other contents"):
        files.open_array(path, b"other sentences")
    whole = path.read_bytes()
    for place in (-40, -33, -32, -1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[len(whole) + place + 1 :])
        with pytest.raises(ValueError, match=r"a\.npy: "):
            files.open_array(path, b"sentences")
    for cut in (0, 40, 128, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.npy: "):
            files.open_array(path, b"sentences")


# --- files that are damaged ---------------------------------------------------------------------------


DAMAGED = {
    "cut off": (b'{"a": [1, 2', "malformed JSON"),
    "empty": (b"", "got nothing"),
    "blank": (b" \n", "got nothing"),
    "zeroed": (b"\0" * 40, "malformed JSON"),
    "no text": (b'{"a": "\xff"}', "is not UTF-8"),
    "a list": (b"[1]", "got a list, expected a JSON object with 'a'"),
    "a number": (b"5", "got a number, expected a JSON object"),
    "null": (b"null", "got null, expected a JSON object"),
    "another object": (b'{"b": 1}', "got no 'a', expected a JSON object with 'a'"),
    "nested deeply": (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
    "half of a character": (b'{"a": "\\ud800"}', "lone surrogate"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_in_one_line_with_what_to_do(tmp_path, name):
    content, message = DAMAGED[name]
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        files.read_json(path, keys=("a",))
    said = str(refused.value)
    assert said.startswith(f"{path}: ") and message in said and len(said.splitlines()) == 1 and len(said) < 600
    assert "restore it from a copy" in said or name == "half of a character"


LINES = ("nested deeply", "a number of 5,000 digits", "half of a character", "zeroed", "cut off")


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_is_refused_but_for_a_log_left_out(tmp_path, name):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"step": 1}\n' + DAMAGED[name][0] + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2: got ") as refused:
        files.read_lines(path)
    assert len(str(refused.value).splitlines()) == 1
    assert files.read_log(path) == [{"step": 1}, {"step": 3}]
    assert files.read_log(tmp_path / "none.jsonl") == []


def test_what_would_be_read(tmp_path):
    obj = {"a": np.float32(0.5), "b": np.arange(2)}
    files.write_json(tmp_path / "x.json", obj)
    assert files.as_read("x.json", obj) == files.read_json(tmp_path / "x.json") == {"a": 0.5, "b": [0, 1]}
    with pytest.raises(ValueError, match=r"x\.json: got a number that is not finite at a"):
        files.as_read("x.json", {"a": math.nan})


def test_no_flipped_bit_of_a_file_with_a_checksum_changes_what_is_read(tmp_path):
    record, lines = {"f1": [0.5, None], "name": "Zürich"}, [{"answer": "a"}, {"answer": 0.25}]
    files.write_json(tmp_path / "one.json", record, sealed=True)
    files.write_lines(tmp_path / "many.jsonl", lines, sealed=True)
    files.write_lines(tmp_path / "none.jsonl", [], sealed=True)
    assert files.read_json(tmp_path / "one.json", keys=("f1",)) == record
    assert files.read_lines(tmp_path / "many.jsonl") == lines and files.read_lines(tmp_path / "none.jsonl") == []
    for name, read, wanted in (("one.json", files.read_json, record), ("many.jsonl", files.read_lines, lines)):
        path = tmp_path / name
        data, refused = path.read_bytes(), 0
        for place in range(8 * len(data)):
            path.write_bytes(bytes(byte ^ (place // 8 == n) * (1 << place % 8) for n, byte in enumerate(data)))
            try:
                found = read(path)
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
                continue
            # Only the name of the checksum may change: then there is none, and what it is of is as it was.
            found = {n: v for n, v in found.items() if n in wanted} if name == "one.json" else found[: len(wanted)]
            assert found == wanted, place
        assert refused > 6 * len(data)
    path.write_bytes(data.replace(b"0.25", b"0.75"))
    with pytest.raises(
        ValueError, match=r"many\.jsonl: the checksum in it is that of other contents, so it was damaged or"
    ):
        files.read_lines(path)


def test_an_array_on_a_full_disk_has_the_disks_own_error(tmp_path):
    """NumPy says how many numbers were written, and neither why nor of which file."""
    array = np.arange(6.0).reshape(2, 3)
    with files.replacing(tmp_path / "array.npy") as temporary:
        files.write_array(temporary, array)
    np.save(tmp_path / "plain.npy", array)
    written, plain = ((tmp_path / name).read_bytes() for name in ("array.npy", "plain.npy"))
    assert written.startswith(plain) and (files.open_array(tmp_path / "array.npy") == array).all()
    with pytest.raises(OSError, match="No space left on device") as refused:
        files.write_array("/dev/full", np.zeros(1 << 16))
    assert refused.value.errno == errno.ENOSPC


def test_a_symbolic_link_is_written_through(tmp_path):
    """It stays a link; the file that it leads to is replaced as a whole, or made."""
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "out.json", tmp_path / "there" / "real.json"
    link.symlink_to(target)
    for value in (1, 2):
        files.write_json(link, {"a": value})
        assert link.is_symlink() and not target.is_symlink() and files.read_json(target) == {"a": value}
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["real.json"]
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(ValueError, match="circle: is a symbolic link that leads nowhere, expected a file"):
        files.write_text(circle, "x")
    assert circle.is_symlink()


def test_another_file_is_not_replaced_by_a_command(tmp_path):
    keys = ("source", "tasks")
    for name, content in (("a.json", '{"mine": 1}'), ("b.txt", "thesis"), ("c.json", "[1]"), ("d", "[" * 10**5)):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name}: is another file than one that this command wrote, and would"):
            files.check_own_json(tmp_path / name, keys)
    (tmp_path / "own.json").write_text('{"source": 1, "tasks": {}, "more": 2}')
    (tmp_path / "empty.json").touch()
    for name in ("own.json", "empty.json", "new.json", "folder/new.json"):
        files.check_own_json(tmp_path / name, keys)
    for name, message in (
        ("b.txt/x.json", "b.txt cannot be a directory: it is a file"),
        (".", "is a directory or a device, expected a file"),
    ):
        with pytest.raises(ValueError, match=message):
            files.check_own_json(tmp_path / name, keys)
    assert not (tmp_path / "folder").exists()


def test_only_a_file_is_replaced(tmp_path):
    """A device is left alone, and so is a directory."""
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", "/dev/null"):
        for use in (files.check_output, lambda path: files.write_text(path, "x")):
            with pytest.raises(ValueError, match="is a directory or a device, expected a file; choose another path"):
                use(path)
    with pytest.raises(ValueError, match=r"x\.json: its folder does not exist"):
        files.check_output(tmp_path / "nowhere" / "x.json")
    files.check_output(tmp_path / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
