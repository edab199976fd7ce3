"""Names of entities, and the nearest of them: by hand, and against the plain definition."""

import random

import pytest

from selfparam_jax.evaluation.titles import Match, entity_name, nearest_names


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("<http://dbpedia.org/resource/Heat_(1995_film)>", "Heat"),
        ("<http://dbpedia.org/resource/Spider-Man_2>", "Spider Man 2"),
        ("<http://dbpedia.org/resource/Get_a_Job_(2016_film)>", "Get a Job"),
        ("Police Academy", "Police Academy"),
        ("<http://dbpedia.org/resource/AC/DC>", "DC"),
        ("A ((b) c) d", "A ( c) d"),  # one pass: the inner pair goes
    ],
)
def test_entity_names(uri, name):
    assert entity_name(uri) == name


def test_the_nearest_name_by_hand():
    names = ["Heat", "Heart", "HEAT 2", "Jaws"]
    found = nearest_names(["heat", "Hert", "jows", "", "HEAT"], names)
    assert found["heat"] == found["HEAT"] == Match("Heat", 0, False)
    assert found["Hert"] == Match("Heart", 1, True)  # "Heat" is as near; "Heart" comes first in the alphabet
    assert found["jows"] == Match("Jaws", 1, False)
    assert found[""] == Match("Heat", 4, True)  # an empty line is nearest to the shortest names


def test_names_that_differ_only_in_case_are_tied():
    assert nearest_names(["up"], ["UP", "Up"])["up"] == Match("UP", 0, True)


def test_the_order_of_names_does_not_matter():
    names = ["Abe", "Ale", "Ace", "Ape"]
    found = {nearest_names(["axe"], order)["axe"] for order in (names, names[::-1], sorted(names))}
    assert found == {Match("Abe", 1, True)}


def test_no_names_are_refused():
    with pytest.raises(ValueError, match="got no names"):
        nearest_names(["Heat"], [])


def edits(a, b):
    """Levenshtein's distance, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def test_all_lines_against_the_plain_definition():
    rng = random.Random(0)

    def word(longest):
        return "".join(rng.choice("abcAB ") for _ in range(rng.randint(0, longest)))

    for _ in range(60):
        names = [word(12) for _ in range(rng.randint(1, 40))]
        lines = [word(30) for _ in range(10)]
        found = nearest_names(lines, names)
        for line in lines:
            distances = {name: edits(line.lower(), name.lower()) for name in names}
            least = min(distances.values())
            nearest = sorted(name for name in distances if distances[name] == least)
            assert found[line] == Match(nearest[0], least, len(nearest) > 1)


def test_a_long_line_against_names_of_all_lengths():
    names = ["x" * length for length in range(0, 300, 7)]
    line = "y" * 290 + "xxx"
    distances = {name: edits(line, name) for name in names}
    least = min(distances.values())
    nearest = sorted(name for name in names if distances[name] == least)
    assert nearest_names([line], names)[line] == Match(nearest[0], least, len(nearest) > 1)
