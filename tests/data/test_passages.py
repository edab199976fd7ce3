"""Long documents: every word is in a passage, none is longer than asked for, and cuts are where they should be."""

import random
import re
import time

import pytest

from selfparam_jax.data import blocks, passages
from selfparam_jax.data.documents import Document, QAPair, Question, digest
from selfparam_jax.data.passages import Passage, cut_text, group_passages, related_passages, split_documents
from selfparam_jax.data.retrieval import Retriever


def count(texts):
    """Words, marks and line breaks, as a tokenizer may count them."""
    return [len(re.findall(r"\w+|[^\w ]", text)) for text in texts]


def words(text):
    return re.findall(r"\w+", text)


def prose(number, seed=0):
    """Sentences of four to twelve words that are all different."""
    draw = random.Random(seed)
    made = (" ".join(f"w{seed}x{n}y{k}" for k in range(draw.randint(4, 12))) for n in range(number))
    return " ".join(f"{sentence.capitalize()}." for sentence in made)


DOCUMENT = f"""# The Mill

{prose(4, 1)}

## Owners

{prose(30, 2)}

{prose(6, 3)}

### Hedra

{prose(3, 4)}

### Bob

{prose(3, 5)}

## Costs

| item | cost |
| --- | --- |
{chr(10).join(f"| item{n} of the mill | {n * 7} |" for n in range(40))}

```python
{chr(10).join(f"def f{n}():{chr(10)}    return {n}{chr(10)}" for n in range(30))}
```

Owners again
------------

- {chr(10) + "- ".join(prose(1, 100 + n) for n in range(3))}
"""


@pytest.fixture(scope="module")
def made():
    return cut_text(DOCUMENT, "The Mill", 100, count)


def test_every_word_is_in_a_passage_and_in_order(made):
    kept = [word for text in made for word in words(text.split("\n\n", 1)[1])]
    headings = {"The", "Mill", "Owners", "Hedra", "Bob", "Costs", "item", "cost", "python", "again"}
    wanted = [word for word in words(DOCUMENT) if word not in headings]
    assert [word for word in kept if word not in headings] == wanted
    assert headings <= set(words(" ".join(made)))


def test_no_passage_is_longer_than_asked_for_and_few_are_short(made):
    sizes = count(made)
    assert max(sizes) <= 100
    assert sum(size < 40 for size in sizes) <= 2
    assert sum(sizes) < 1.5 * count([DOCUMENT])[0], "the title paths are all that is said twice"


def test_the_title_path_stands_in_front(made):
    paths = [text.split("\n\n", 1)[0] for text in made]
    assert paths[0] == "The Mill"
    assert "The Mill > Owners" in paths and "The Mill > Costs" in paths
    assert all(path.startswith("The Mill") for path in paths)
    (hedra,) = [text for text in made if words(prose(3, 4))[0] in text]
    # Two short sections under one heading are one passage, with their own headings in it.
    assert hedra.startswith("The Mill > Owners\n\n### Hedra\n\n") and "### Bob" in hedra


def test_sentences_rows_and_functions_stay_whole(made):
    sentences = re.findall(r"W\d+x[^.]*\.", DOCUMENT)
    assert all(any(sentence in text for text in made) for sentence in sentences) and len(sentences) > 40
    rows = re.findall(r"(?m)^\| item\d+.*$", DOCUMENT)
    tables = [text for text in made if "| item" in text]
    assert all(sum(row in text.split("\n") for text in tables) == 1 for row in rows)
    assert len(tables) > 1 and all("| item | cost |\n| --- | --- |\n| item" in text for text in tables)
    codes = [text for text in made if "```python" in text]
    assert len(codes) > 1 and all(text.count("```") == 2 for text in codes)
    assert all(f"def f{n}():\n    return {n}" in "".join(codes) for n in range(30))


def test_a_short_document_is_left_alone():
    document = Document("# A\n\nshort", qa_pairs=(QAPair("q", "a"),))
    for tokens in (0, 32, 512):
        assert split_documents([document], tokens, count)[0] is document


def test_what_cannot_be_cut_well_is_cut_between_words_then_anywhere():
    made = cut_text("word " * 300, "", 32, count)
    assert max(count(made)) <= 32 and len(words(" ".join(made))) == 300

    def characters(texts):
        return list(map(len, texts))

    made = cut_text("# T\n\n" + "x" * 1000, "T", 64, characters)
    assert max(map(len, made)) <= 64 and "".join(text.split("\n\n")[1] for text in made) == "x" * 1000
    made = cut_text("水" * 500 + "。" + "山" * 500, "", 64, characters)
    assert "".join(made) == "水" * 500 + "。" + "山" * 500


def test_a_title_path_that_is_too_long_is_shortened():
    long = " ".join(f"h{n}" for n in range(30))
    made = cut_text(f"# {long}\n\n## Sub\n\n{prose(30)}", long, 50, count)
    assert all(text.startswith("Sub\n\n") for text in made[1:]), "its last part fits"
    assert f"# {long}" in made[0], "what no path says stays in the text"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("intro\n\n[a]: http://b\n\nmore", ["text", "text", "text"]),
        ("[a]: http://b\n", ["text"]),
        ("# A\n[a]: http://b", ["heading", "text"]),
        ("A\n===\n\n* x\n* y\n\np\n\n    code\n\n> q", ["heading", "list", "text", "code", "text"]),
        ("```\na\n\nb", ["code"]),
        ("#\n", ["text"]),
    ],
)
def test_every_line_belongs_to_a_block(text, kinds):
    found = blocks.read_blocks(text)
    assert [block.kind for block in found] == kinds
    assert [line for block in found for line in block.text.split("\n") if line.strip()] == [
        line.rstrip() for line in text.split("\n") if line.strip()
    ]


def test_random_texts_lose_nothing():
    draw = random.Random(7)
    for number in range(25):
        parts = []
        for n in range(draw.randint(1, 12)):
            seed = 1000 * number + n
            parts.append(
                draw.choice(
                    [
                        f"{'#' * draw.randint(1, 4)} Head{seed}",
                        prose(draw.randint(1, 9), seed),
                        "\n".join(f"- i{seed}x{k}" for k in range(draw.randint(1, 30))),
                        "| a | b |\n|---|---|\n"
                        + "\n".join(f"| c{seed}x{k} | d |" for k in range(draw.randint(1, 30))),
                        "~~~\n" + "\n".join(f"code{seed}x{k}" for k in range(draw.randint(1, 30))) + "\n~~~",
                    ]
                )
            )
        text, limit = "\n\n".join(parts), draw.choice([32, 50, 90])
        made = cut_text(text, draw.choice(["", "Title"]), limit, count)
        assert max(count(made)) <= limit
        assert set(words(text)) <= set(words(" ".join(made)))


# --- what belongs to a passage --------------------------------------------------------------------------

FACTS = ["Hedra Molvane founded the mill.", "The bridge is 90 metres long.", "Every June there is a canoe race."]
LONG = Document(
    "\n\n".join(f"# Part {n}\n\n{fact} {prose(12, n)}" for n, fact in enumerate(FACTS)),
    title="Om",
    id="om",
    questions=(Question("Who built it?", ("nobody knows",)), Question("By whom was the mill founded?", ("Molvane",))),
    qa_pairs=(QAPair("How long is the bridge?", "90 metres"), QAPair("In which month do canoes race?", "June")),
    metadata={"year": 2026},
)


def test_pairs_and_questions_go_to_the_passage_that_supports_their_answer(caplog):
    found = split_documents([Document("x", id="a"), LONG], 160, count)
    assert [each.id for each in found] == ["a", "om#1", "om#2", "om#3"]
    first, second, third = found[1:]
    assert all(
        isinstance(each, Passage) and each.source == "om" and each.metadata == {"year": 2026} for each in found[1:]
    )
    assert first.text.startswith("Om > Part 0\n\nHedra Molvane founded the mill.")
    assert [q.question for q in first.questions] == ["Who built it?", "By whom was the mill founded?"]
    assert (second.qa_pairs, third.qa_pairs) == (LONG.qa_pairs[:1], LONG.qa_pairs[1:])
    assert "1 of its pairs and questions share no word with any passage" in caplog.text
    sources = group_passages(found)
    assert [(each.id, each.title, each.places) for each in sources] == [("a", "", (0,)), ("om", "Om", (1, 2, 3))]
    assert sources[0].digest == digest(found[0])
    changed = split_documents([Document(LONG.text + " More.", title="Om", id="om")], 160, count)
    assert group_passages(changed)[0].digest != sources[1].digest


def test_a_document_with_the_name_of_a_passage_is_refused():
    with pytest.raises(ValueError, match="'om#1' is also the name of a passage"):
        split_documents([LONG, Document("x", id="om#1")], 160, count)


def test_the_retriever():
    retriever = Retriever(["the mill by the river", "a river and the bridge of Om", "a race", "山の水"])
    assert retriever.supporting("Which bridge?", ["Om"]) == (1, True)
    assert retriever.supporting("What is there?", ["river"]) == (0, True)  # both hold it, neither matches: the first
    assert retriever.supporting("What of the bridge?", ["river"]) == (1, True)
    assert retriever.supporting("Who?", ["zebra"]) == (0, False)
    assert retriever.supporting("何?", ["水"]) == (3, True)
    assert retriever.related(0, 2) == [1]
    assert Retriever(["the", "a"]).supporting("who", ["x"]) == (0, False)


def test_related_passages_are_read_together():
    names = ["mill", "bridge", "race", "mill", "bridge", "race", "mill", "bridge"]
    parts = [Passage(f"{name} {name} a{n} b{n} c{n}", id=f"om#{n + 1}", source="om") for n, name in enumerate(names)]
    groups = related_passages(parts, 0.2)  # 8 singles and 2 groups: a fifth
    assert [group.id for group in groups] == ["om#1+4", "om#2+5+8"]
    assert groups[0].text == f"{parts[0].text}\n\n{parts[3].text}" and groups[0].parts == ("om#1", "om#4")
    assert related_passages(parts, 0.0) == [] and related_passages(parts[:1], 0.5) == []
    short = related_passages(parts, 0.2, lambda text: len(text) < 60)
    assert [len(group.parts) for group in short] == [2, 2]
    assert related_passages(parts, 0.2, lambda text: False) == []


def test_the_work_grows_with_the_text_and_not_faster():
    tokens, counted = [], []

    def watched(texts):
        counted[-1] += sum(map(len, texts))
        return count(texts)

    for times in (1, 4):
        counted.append(0)
        text = "\n\n".join(f"## Part {n}\n\n{prose(40, n)}" for n in range(12 * times))
        made = cut_text(text, "T", 100, watched)
        tokens.append(len(text))
        assert len(made) > 40 * times
    assert counted[1] / counted[0] < 1.1 * tokens[1] / tokens[0]
    assert counted[1] < 6 * tokens[1], "each character is counted a few times"


def test_a_line_without_sentences_is_not_searched_for_them(monkeypatch):
    began = time.process_time()
    made = cut_text("x1 " * 60_000, "", 512, count)
    assert max(count(made)) <= 512 and time.process_time() - began < 10
    monkeypatch.setattr(blocks, "MOST_OF_A_SENTENCE", 10**9)
    assert passages.cut_text("A b. C d.", "", 512, count) == ["A b. C d."]
