"""Scores of recommendations: by hand, and against a slow, literal reading of the benchmark's description."""

import json
import math
import random
import re
import statistics

import numpy as np
import pytest
from evaluation.test_titles import edits

from selfparam_jax.evaluation import recommendation as scorer
from selfparam_jax.evaluation.recommendation import COLUMNS, VARIANTS, Turn, score_replies, score_target
from selfparam_jax.evaluation.replies import Reply

NAMES = {"Heat", "Jaws", "Alien", "Aliens", "Up", "Robert De Niro", "Michael Mann"}
ITEMS = NAMES - {"Robert De Niro", "Michael Mann"}


def values(rows, column):
    return rows.values[:, COLUMNS.index(column)].tolist()


def test_a_target_by_hand():
    found = dict(zip(COLUMNS, score_target("Jaws", ["Heat", "Up", "Jaws"]), strict=True))
    assert found["recall@1"] == found["ndcg@1"] == found["mrr@1"] == 0
    assert found["recall@5"] == found["recall@20"] == 1
    assert found["ndcg@5"] == pytest.approx(0.5)  # 1 / log2(4)
    assert found["mrr@10"] == pytest.approx(1 / 3)
    assert score_target("Jaws", ["Heat"] * 20 + ["Jaws"]) == [0.0] * 12
    assert score_target("Jaws", ["Jaws", "Jaws"]) == [1.0] * 12


def test_the_four_variants_by_hand():
    turn = Turn(("Jaws", "Heat"), frozenset({"Heat", "Robert De Niro"}), "d")
    # "Heat" was mentioned; "Jawing it" is 5 edits from "Jaws".
    scores = score_replies([Reply(0, "1. Heat\n2. Jawing it\n3. Up")], [turn], NAMES)
    assert {variant: values(rows, "mrr@5") for variant, rows in scores.rows.items()} == {
        (False, False): [1 / 2, 1],
        (False, True): [1, 0],
        (True, False): [0, 1],
        (True, True): [0, 0],
    }
    assert scores.rows[False, False].seen.tolist() == [False, True]
    assert scores.health["out_of_catalogue"] == pytest.approx(1 / 3)
    assert scores.health["tied"] == 0 and scores.health["lines"] == 3


def test_two_edits_are_kept_and_three_are_dropped():
    turn = Turn(("Alien",), frozenset(), "d")
    for line, kept in (("Alxxn", 1.0), ("Axxxn", 0.0)):
        rows = score_replies([Reply(0, f"1. {line}")], [turn], {"Alien", "Robert De Niro"}).rows
        assert values(rows[False, False], "recall@1") == [1.0]
        assert values(rows[True, False], "recall@1") == [kept]


def test_duplicates_and_empty_lines_take_places_in_the_benchmark_and_none_strictly():
    turn = Turn(("Jaws",), frozenset(), "d")
    scores = score_replies([Reply(0, "1. Heat\n\n2. Heat\n3. Jaws")], [turn], NAMES, ITEMS)
    assert values(scores.rows[False, False], "mrr@20") == [1 / 4]
    assert values(scores.strict[False, False], "mrr@20") == [1 / 2]
    assert scores.health["repeated"] == 1 / 4
    assert scores.health["strict"]["repeated"] == pytest.approx(1 / 3)


def test_only_titles_are_candidates_strictly():
    turn = Turn(("Heat",), frozenset(), "d")
    scores = score_replies([Reply(0, "1. Robert De Niro\n2. Heat")], [turn], NAMES, ITEMS)
    assert values(scores.rows[False, False], "mrr@5") == [1 / 2]
    assert values(scores.rows[True, False], "mrr@5") == [1 / 2]
    assert values(scores.strict[True, False], "mrr@5") == [1.0]
    assert scores.health["strict"]["out_of_catalogue"] == 1 / 2


def test_a_reply_that_is_no_list_hits_nothing_strictly():
    turns = [Turn(("Heat",), frozenset(), "d")] * 2
    scores = score_replies([Reply(0, "Heat"), Reply(1, "")], turns, NAMES, ITEMS)
    assert values(scores.rows[False, False], "recall@1") == [1.0, 0.0]
    assert values(scores.strict[False, False], "recall@1") == [0.0, 0.0]
    assert scores.health["strict"]["no_list"] == 1.0
    assert scores.health["empty"] == 0.5


def test_the_prompt_is_removed_strictly():
    turn = Turn(("Jaws",), frozenset(), "d", "User: Heat 1. was good\nSystem: ")
    scores = score_replies([Reply(0, "User: Heat 1. was good\nSystem: \n1. Jaws\n2. Up")], [turn], NAMES, ITEMS)
    assert values(scores.rows[False, False], "mrr@20") == [pytest.approx(1 / 3)]  # after "was good" and "System:"
    assert values(scores.strict[False, False], "mrr@20") == [1.0]


def test_missing_replies_are_refused_unless_partial():
    turns = [Turn(("Heat",), frozenset(), "d"), Turn(("Jaws",), frozenset(), "d")]
    with pytest.raises(ValueError, match="1 of 2 records have no reply, the first is record 0"):
        score_replies([Reply(1, "1. Jaws")], turns, NAMES)
    rows = score_replies([Reply(1, "1. Jaws")], turns, NAMES, partial=True).rows[False, False]
    assert rows.turn.tolist() == [1] and values(rows, "recall@1") == [1.0]
    with pytest.raises(ValueError, match="index 2, expected at most 1"):
        score_replies([Reply(2, "1. Jaws")], turns, NAMES, partial=True)


def test_means_errors_and_intervals_by_hand():
    turns = [
        Turn(("Heat",), frozenset(), "a"),
        Turn(("Jaws",), frozenset({"Jaws"}), "b"),
        Turn(("Up",), frozenset(), "c"),
    ]
    replies = [Reply(0, "1. Heat"), Reply(1, "1. Jaws"), Reply(2, "1. Heat")]
    summary = scorer.summarize_rows(score_replies(replies, turns, NAMES).rows[False, False])
    assert summary["recommendation"]["recall@1"] == pytest.approx((0.5, 0.5, 0.98))
    mean, error, half = summary["discussion"]["recall@1"]
    assert mean == 1.0 and math.isnan(error) and math.isnan(half)  # of one row there is no error
    assert summary["all"]["recall@1"] == pytest.approx((2 / 3, 1 / 3, 1.96 / 3))
    nothing = scorer.summarize_rows(scorer.Rows(np.zeros(0, int), np.zeros(0, bool), np.zeros((0, 12))))
    assert all(math.isnan(value) for value in nothing["all"]["mrr@1"])


# --- a slow, literal reading of the description ---------------------------------------------------------


def slow_lines(content):
    """Lines of a reply: what follows the first "1.", else commas as line breaks; cleaned character by character."""
    at = content.find("1.")
    text = content[at + 2 :] if at >= 0 else "\n".join(content.split(","))
    lines = []
    for line in text.split("\n"):
        # Parentheses without any inside go, once, from left to right.
        kept, place = "", 0
        while place < len(line):
            closing = line.find(")", place + 1)
            if line[place] == "(" and closing >= 0 and "(" not in line[place + 1 : closing]:
                place = closing + 1
            else:
                kept += line[place]
                place += 1
        words = [word for word in re.split(r"\s", kept) if word]
        line = " ".join(words)
        digits = 0
        while digits < len(line) and line[digits].isdecimal():
            digits += 1
        if digits:
            line = line[digits:]
            line = line[1:] if line[:1] in (".", ")", "、") and line else line
            line = line.lstrip()
            line = line[1:] if line[:1] in ("-", "—", "–") and line else line
            line = line.lstrip()
        lines.append(line)
    return lines


def slow_scores(contents, turns, names):
    """{variant: [(turn, seen, scores)]}, one target, one variant, one cutoff at a time."""
    found = {}
    for filtered, exclude_seen in VARIANTS:
        rows = []
        for index, (content, turn) in enumerate(zip(contents, turns, strict=True)):
            predicted = []
            for line in slow_lines(content):
                distances = [(edits(line.lower(), name.lower()), name) for name in names]
                distance, name = min(distances)  # of equal ones, the first in the alphabet
                if filtered and distance > 2:
                    continue
                if exclude_seen and name in turn.seen:
                    continue
                predicted.append(name)
            for target in turn.targets:
                scores = []
                for k in (1, 5, 10, 20):
                    hit = [place for place, name in enumerate(predicted[:k], start=1) if name == target]
                    first = hit[0] if hit else None
                    scores += [1.0, 1 / math.log2(first + 1), 1 / first] if first else [0.0, 0.0, 0.0]
                rows.append((index, target in turn.seen, scores))
        found[filtered, exclude_seen] = rows
    return found


def random_reply(rng, names):
    numbering = rng.choice(["{n}. ", "{n}) ", "{n}、", "{n} - ", "- ", "", "{n}.— "])
    lines = []
    for n in range(rng.randint(0, 25)):
        title = list(rng.choice(names))
        for _ in range(rng.choice([0, 0, 0, 1, 2, 3, 5])):
            if title:
                title[rng.randrange(len(title))] = rng.choice(["", "x", "E", " ", "(", ")"])
        title = "".join(title) + rng.choice(["", "", " (1999)", "  ", " (a (b) c)", "\t"])
        lines.append(rng.choice([numbering, numbering, ""]).format(n=n + 1) + title)
    text = rng.choice(["\n", "\n", "\n", ", ", "\n\n"]).join(lines)
    return rng.choice(["", "", "Sure, here:\n", "Seen Rocky 1. and Up, ok\n"]) + text


def test_200_random_cases_against_the_slow_way():
    rng = random.Random(1)
    alphabet = ["Heat", "heat", "Jaws", "Up", "12 Angry Men", "300", "Alien", "Aliens", "The Big Chill", "Se7en", ""]
    hits = ties = 0
    for _ in range(200):
        names = rng.sample(alphabet, rng.randint(4, len(alphabet)))
        turns, contents = [], []
        for number in range(rng.randint(1, 4)):
            seen = frozenset(rng.sample(names, rng.randint(0, 3)))
            turns.append(Turn(tuple(rng.choices(names, k=rng.randint(0, 3))), seen, str(number)))
            contents.append(random_reply(rng, names))
        scores = score_replies([Reply(n, content) for n, content in enumerate(contents)], turns, set(names))
        slow = slow_scores(contents, turns, names)
        for variant, rows in scores.rows.items():
            ours = list(zip(rows.turn.tolist(), rows.seen.tolist(), rows.values.tolist(), strict=True))
            assert ours == [(turn, seen, pytest.approx(row)) for turn, seen, row in slow[variant]]
            for condition, chosen in (("recommendation", [False]), ("discussion", [True]), ("all", [False, True])):
                recalls = [row[6] for _, seen, row in slow[variant] if seen in chosen]
                mean, error, half = scorer.summarize_rows(rows)[condition]["recall@10"]
                if recalls:
                    assert mean == pytest.approx(statistics.fmean(recalls))
                if len(recalls) > 1:
                    assert error == pytest.approx(statistics.stdev(recalls) / len(recalls) ** 0.5)
                    assert half == pytest.approx(1.96 * error)
            hits += rows.values.sum()
        ties += scores.health["tied"] > 0
    assert hits > 1000 and ties > 50  # the cases try something


# --- files ----------------------------------------------------------------------------------------------


def test_files_of_entities_items_and_records(tmp_path):
    entities = tmp_path / "entities.json"
    entities.write_text(json.dumps({"<http://x/Heat_(1995_film)>": 0, "<http://x/Michael_Mann>": 7}))
    names = scorer.read_entities(entities)
    assert names == {0: "Heat", 7: "Michael Mann"}
    items = tmp_path / "items.json"
    items.write_text("[0]")
    assert scorer.read_items(items, names) == {"Heat"}
    items.write_text("[0, 3]")
    with pytest.raises(ValueError, match="id 3, which no entity has"):
        scorer.read_items(items, names)
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"rec": [0], "prev_entity": [7], "dialog_id": 4, "input": "hi"}) + "\n")
    assert scorer.read_turns(records, names) == [Turn(("Heat",), frozenset({"Michael Mann"}), "4", "hi")]
    for record, message in (({"rec": [1], "prev_entity": []}, "has the id 1"), ({"rec": [0]}, "'prev_entity'")):
        records.write_text(json.dumps(record) + "\n")
        with pytest.raises(ValueError, match=message):
            scorer.read_turns(records, names)
    entities.write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        scorer.read_entities(entities)
