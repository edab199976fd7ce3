"""`selfparam recommend score`: its files, its columns, and what it says to input that cannot be used."""

import csv
import json
import subprocess
import sys

import pytest

from selfparam_jax.commands import recommend, run

VARIANTS = [f"filtered_{a}_exclude_seen_{b}" for a in (False, True) for b in (False, True)]
ENTITIES = {f"<http://dbpedia.org/resource/{name}>": n for n, name in enumerate(["Heat_(film)", "Jaws", "Al_Pacino"])}
RECORDS = [
    {"rec": [1], "prev_entity": [0, 2], "dialog_id": "a", "input": "\nUser: I like Heat\nSystem: "},
    {"rec": [0, 1], "prev_entity": [0], "dialog_id": "b", "input": "\nUser: Heat again\nSystem: "},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "entities.json").write_text(json.dumps(ENTITIES))
    (tmp_path / "items.json").write_text("[0, 1]")
    write(tmp_path / "records.jsonl", RECORDS)
    write(tmp_path / "good.jsonl", [{"index": n, "content": "1. Jaws\n2. Heat"} for n in range(2)])
    write(tmp_path / "bad.jsonl", [{"index": n, "content": "no idea"} for n in range(2)])
    return tmp_path


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def arguments(folder, *more, replies="good"):
    given = {"replies": f"{replies}.jsonl", "records": "records.jsonl", "entities": "entities.json", "out": "out"}
    return ["score", *(f"--{name}={folder / value}" for name, value in given.items()), *more]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_have_the_names_and_columns_of_the_benchmark(folder, capsys):
    recommend.main(arguments(folder))
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted([*VARIANTS, "health.json", "scores.md"])
    summary = read(folder / "out" / VARIANTS[0] / "summary.csv")
    columns = [f"{metric}@{k}_{part}" for k in (1, 5, 10, 20) for metric in ("recall", "ndcg", "mrr")
               for part in ("mean", "se", "ci")]  # fmt: skip
    assert list(summary[0]) == ["condition", *columns]
    assert [row["condition"] for row in summary] == ["recommendation", "discussion", "all"]
    assert [row["recall@1_mean"] for row in summary] == ["1.0", "0.0", "0.6666666666666666"]
    assert [row["mrr@5_mean"] for row in summary] == ["1.0", "0.5", "0.8333333333333334"]
    assert summary[1]["recall@1_se"] == ""  # of a single row
    rows = read(folder / "out" / VARIANTS[0] / "all.csv")
    assert list(rows[0]) == ["idx", "condition", *(name.removesuffix("_mean") for name in columns[::3])]
    assert [(row["idx"], row["condition"], row["recall@1"]) for row in rows] == [
        ("0", "rec", "1"), ("1", "dis", "0"), ("1", "rec", "1"),
    ]  # fmt: skip
    assert len(read(folder / "out" / VARIANTS[0] / "rec.csv")) == 2
    assert "2 replies, 4 lines" in capsys.readouterr().out


def test_strict_columns_come_after_the_benchmarks_own(folder):
    recommend.main(arguments(folder))
    plain = read(folder / "out" / VARIANTS[2] / "summary.csv")
    recommend.main(arguments(folder, "--strict", f"--items={folder / 'items.json'}"))
    both = read(folder / "out" / VARIANTS[2] / "summary.csv")
    for before, after in zip(plain, both, strict=True):
        assert list(after)[: len(before)] == list(before)
        assert all(after[name] == value for name, value in before.items())
        assert after["strict_recall@1_mean"] == before["recall@1_mean"]
    assert "strict_recall@1" in read(folder / "out" / VARIANTS[2] / "dis.csv")[0]
    health = json.loads((folder / "out" / "health.json").read_text())
    assert health["strict"]["no_list"] == 0 and health["tied"] == 0


def test_against_another_system(folder, capsys):
    recommend.main(arguments(folder, f"--against={folder / 'bad.jsonl'}"))
    found = json.loads((folder / "out" / "significance.json").read_text())
    entry = found["filtered_True_exclude_seen_False"]["all"]["recall@5"]
    assert entry["mcnemar"] == {"only_first": 0, "only_second": 3, "p": 0.25}
    assert entry["difference"] == 1.0 and entry["ci95"] == [1.0, 1.0]
    assert "McNemar p" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strict"], "--strict needs --items"),
        (["--against=nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_input_that_cannot_be_used_ends_with_one_line(folder, capsys, monkeypatch, more, message):
    monkeypatch.setattr("selfparam_jax.commands.command.end", sys.exit)
    with pytest.raises(SystemExit) as stop:
        recommend.main(arguments(folder, *more))
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def test_the_front_door(folder):
    done = subprocess.run(
        [sys.executable, "-m", "selfparam_jax.recommend", *arguments(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / VARIANTS[3] / "summary.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["recommend:slice", "--workdir=w"], ["--config=recommend:slice", "--workdir=w"]),
        (["--config=batch", "more"], ["--config=batch", "more"]),
        ([], []),
    ],
)
def test_a_configuration_may_be_given_by_its_name_alone(arguments, expected):
    assert run._named(arguments) == expected
