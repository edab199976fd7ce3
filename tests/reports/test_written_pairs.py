"""The readable sample of written pairs."""

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.reports.written_pairs import inspect_pairs, written_parts
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.write_pairs import by_digest, text_digest

MILL = Document(
    id="mill",
    title="",
    text="The mill at Orrin\nwas built in 1742. " + "It turns. " * 20,
    questions=(),
    qa_pairs=(QAPair("Known?", "1742"),),
)
LAKE = Document(id="lake", title="", text="Lake Sorrel.")


def record(number, prompt="facts", **changes):
    scores = {"support": 1.0, "likelihood": 0.5, "likelihood_without": 0.25}
    pair = {"question": f"What is number {number}?", "answer": "1742"}
    return {"digest": text_digest(MILL), "round": 0, "prompt": prompt, **pair, **scores, **changes}


RECORDS = [
    record(1),
    record(2, "summary", support=0.25),
    record(2, answer="in 1742"),
    record(3, question="Known?"),
    record(4, digest="of another text"),
]


def test_what_is_shown():
    shown = inspect_pairs([MILL, LAKE], by_digest(RECORDS), GeneratorConfig(), 10)
    lines = shown.splitlines()
    assert lines[0] == "mill: 2 of 4 pairs kept"
    assert lines[1].startswith("  The mill at Orrin was built in 1742. It turns.") and lines[1].endswith("...")
    assert "  [kept; facts; support 1.00  likelihood 0.50 (without 0.25)]\n    What is number 1?\n    1742" in shown
    assert "  [unsupported; summary; support 0.25  likelihood" in shown and "[duplicate; facts;" in shown
    assert "number 4" not in shown and "lake: 0 of 0 pairs kept\n  Lake Sorrel.\n" in shown
    table = {line.split("  ")[0]: line.split()[-6:] for line in lines[-5:-2]}
    assert table == {
        "all kinds": ["4", "2", "0", "1", "0", "1"],
        "facts": ["3", "2", "0", "0", "0", "1"],
        "summary": ["1", "0", "0", "1", "0", "0"],
    }
    assert lines[-1] == "2 documents, 50% of 4 pairs kept"


def test_the_sample_is_random_but_the_same_each_time():
    many = [record(number) for number in range(50)]
    shown = [inspect_pairs([MILL], by_digest(many), GeneratorConfig(), 5, seed) for seed in (0, 0, 1)]
    assert shown[0] == shown[1] != shown[2]
    assert [text.count("[kept;") for text in shown] == [5, 5, 5]


def test_nothing_written():
    assert inspect_pairs([LAKE], {}, GeneratorConfig(), 3).endswith("1 document, no pairs")


def test_a_report_says_what_was_covered_and_shows_pairs():
    record = {
        "id": "mill", "sentences": 3, "covered": 2, "facts": 4, "pairs": 9, "held_out": 1,
        "uncovered": ["It turns | on."],
        "sample": [{"question": "When was it built?", "answer": "1742"}],
    }  # fmt: skip
    shown = "\n".join(written_parts([record]))
    assert "| mill | 2 of 3 | 4 | 9 | 1 |" in shown and "| mill | When was it built? | 1742 |" in shown
    assert "- mill: It turns \\| on." in shown and "Questions held out" in shown
    assert written_parts([]) == [] and "more" not in shown
    long = "\n".join(written_parts([{**record, "uncovered": [f"Number {n}." for n in range(20)]}]))
    assert "- mill: Number 5.\n- and 14 more" in long and "Number 6." not in long
    assert "held out are" not in "\n".join(written_parts([{**record, "held_out": 0, "uncovered": []}]))
