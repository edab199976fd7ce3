"""RAPTOR: clusters, the tree and its guards by hand; the same seed and a stopped run give the same tree."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tiny_bert
from extras import need, require

from selfparam_jax.baselines import _clustering, _summaries
from selfparam_jax.baselines._clustering import ClusterOptions, divide, mixture_clusters, reduce_with_umap
from selfparam_jax.baselines._summaries import whole_sentences
from selfparam_jax.baselines._tree import Node, Tree, format_tree, grow, within_budget
from selfparam_jax.baselines.raptor import SYSTEM, RaptorOptions
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.systems import Setup

need("sklearn")

WORDS = ["ava", "bor", "river", "mill", "tower", "has", "a"]
FACTS = ("river", "mill", "tower")
# Every fact is a document of its own: six passages, three of each place.
DOCUMENTS = [
    Document(f"{place} has a {fact}.", "", f"{place}-{fact}", (Question(f"{place} {fact}?", (fact,)),))
    for place in ("Ava", "Bor")
    for fact in FACTS
]


def groups(*centers, count=40, size=0.5, dimensions=2):
    """Points around each center, which is repeated in every dimension."""
    rng = np.random.default_rng(0)
    return np.concatenate([center + size * rng.standard_normal((count, dimensions)) for center in centers])


def columns(vectors, dimensions, neighbors, seed):
    """A reduction by hand: the first columns."""
    return np.asarray(vectors)[:, :dimensions]


def spans(*lengths):
    ends = np.cumsum([0, *lengths])
    return [list(range(begin, end)) for begin, end in itertools.pairwise(ends)]


@pytest.fixture(autouse=True)
def few_components(monkeypatch):
    monkeypatch.setattr(_clustering, "MOST_CLUSTERS", 6)


# --- clusters ---------------------------------------------------------------------------------------------


def test_a_mixture_finds_its_groups():
    assert sorted(mixture_clusters(groups(0, 20, 40), 0.1, 0)) == spans(40, 40, 40)
    assert mixture_clusters(np.zeros((9, 3)), 0.1, 0) == [list(range(9))]


def test_a_node_between_two_clusters_is_in_both():
    half = groups(1.2)
    points = np.concatenate([-half, half, np.zeros((1, 2))])  # mirrored
    soft, hard = (mixture_clusters(points, membership, 0) for membership in (0.1, 0.99))
    assert len(soft) == 2 and all(80 in cluster for cluster in soft)
    assert all({*span} <= {*cluster} for span, cluster in zip(spans(40, 40), sorted(soft), strict=True))
    # Where no membership is high enough, the highest counts: none is lost.
    assert sum(80 in cluster for cluster in hard) == 1 and {*range(81)} == {*hard[0], *hard[1]}


def test_clusters_are_divided_once_more_within():
    """Two groups that are far apart; the second is two groups, which only show without the first."""
    vectors = np.concatenate([groups(0), groups(500), groups(520)])
    calls = []

    def reduce(given, dimensions, neighbors, seed):
        calls.append((len(given), dimensions, neighbors, seed))
        return far_apart if len(given) == 120 else given[:, :dimensions]

    far_apart = np.concatenate([groups(0), groups(500, count=80)])
    options = ClusterOptions(dimensions=2, seed=5)
    assert sorted(divide(vectors, [1] * 120, options, reduce)) == spans(40, 40, 40)
    # floor(sqrt(119)) neighbors, then 10.
    assert sorted(calls) == [(40, 2, 10, 5), (80, 2, 10, 5), (120, 2, 10, 5)]


@pytest.mark.parametrize("count", [3, 40])
def test_a_cluster_that_cannot_be_divided_is_cut(count):
    """Equal vectors are one cluster, however often they are divided."""
    options = ClusterOptions(dimensions=2, cluster_tokens=32)
    found = divide(np.ones((count, 4)), [13] * count, options, columns)
    assert found == [list(range(n, min(n + 2, count))) for n in range(0, count, 2)]
    assert divide(np.ones((2, 4)), [99, 99], options, columns) == [[0], [1]]  # a node is never cut


def test_a_cluster_that_is_too_long_is_divided_again():
    vectors = np.concatenate([groups(-1000), groups(0), groups(20)])
    together = {120: np.concatenate([groups(-1000), groups(0, count=80)]), 80: groups(0, count=80)}
    seen = []

    def reduce(given, dimensions, neighbors, seed):
        seen.append(len(given))
        # The last two groups are one until they are divided for the second time.
        return together.pop(len(given), given)[:, :dimensions]

    options = ClusterOptions(dimensions=2, cluster_tokens=200)
    assert sorted(divide(vectors, [5] * 120, options, reduce)) == spans(40, 40, 40)
    assert sorted(seen) == [40, 40, 40, 80, 80, 120]


def test_umap_is_the_same_for_the_same_seed():
    require("umap")
    vectors = groups(1, -1, count=7, size=0.3, dimensions=6).astype(np.float32)
    one, again, other = (reduce_with_umap(vectors, 2, 3, seed) for seed in (0, 0, 1))
    assert one.shape == (14, 2) and np.isfinite(one).all()
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1
    # What was near by cosine is near: each node's nearest is of its own group.
    distances = np.linalg.norm(one[:, None] - one[None], axis=-1) + 1e9 * np.eye(14)
    assert (distances.argmin(1) // 7 == np.arange(14) // 7).all()


# --- the tree ---------------------------------------------------------------------------------------------


def leaves(*sources):
    return [Node(f"text {n}", 10 + n, source=source) for n, source in enumerate(sources)]


def pairs(vectors, sizes):
    places = list(range(len(vectors)))
    return [places[n : n + 2] for n in range(0, len(places), 2)]


def joined(clusters):
    return [(" + ".join(texts), 5 * len(texts)) for texts in clusters]


def sizes_of(texts):
    return np.array([[len(text), 0.0] for text in texts], np.float32)


def test_a_tree_by_hand():
    passages = leaves("a", "a", "a", "b", "b")
    seen = []

    def divide(vectors, sizes):
        seen.append((vectors[:, 0].tolist(), sizes))
        return pairs(vectors, sizes)

    tree, vectors = grow(passages, sizes_of("12345"), 5, 2, divide, joined, sizes_of)
    assert tree.nodes[:5] == tuple(passages)
    assert tree.nodes[5:] == (
        Node("text 0 + text 1", 10, 1, (0, 1), "a"),
        Node("text 2 + text 3", 10, 1, (2, 3), ""),
        Node("text 4", 5, 1, (4,), "b"),
        Node("text 0 + text 1 + text 2 + text 3", 10, 2, (5, 6), ""),
        Node("text 4", 5, 2, (7,), "b"),
    )
    assert seen == [([1.0] * 5, [10, 11, 12, 13, 14]), ([15.0, 15.0, 6.0], [10, 10, 5])]
    assert vectors[:, 0].tolist() == [1, 1, 1, 1, 1, 15, 15, 6, 33, 6]
    assert (tree.layers, tree.summaries, tree.ended) == (2, 5, "2 nodes, more than 2 needed")


@pytest.mark.parametrize(("layers", "divide", "summarize", "nodes", "ended"), [
    (1, pairs, joined, 8, "1 layers are the most"),
    (5, lambda vectors, sizes: [[n] for n in range(len(sizes))], joined, 5, "5 nodes made 5 clusters"),
    (5, lambda vectors, sizes: [[n, n + 1] for n in range(6)], joined, 5, "5 nodes made 6 clusters"),
    (5, pairs, lambda clusters: [("", 0)] * len(clusters), 5, "all summaries were empty"),
    (5, pairs, lambda clusters: [("", 0), ("x", 1), ("y", 1)], 7, "2 nodes, more than 2 needed"),
])  # fmt: skip
def test_where_a_tree_ends(layers, divide, summarize, nodes, ended):
    tree, vectors = grow(leaves(*"aaabb"), sizes_of("12345"), layers, 2, divide, summarize, sizes_of)
    assert (len(tree.nodes), len(vectors), tree.ended) == (nodes, nodes, ended)


def test_two_passages_have_no_tree():
    tree, vectors = grow(leaves("a", "b"), sizes_of("12"), 5, 2, None, None, None)
    assert (len(tree.nodes), tree.layers, tree.summaries, len(vectors)) == (2, 0, 0, 2)


def test_the_budget_ends_at_the_first_that_does_not_fit():
    tokens = [10, 20, 30, 5]
    assert within_budget([2, 1, 0, 3], tokens, 10, 59) == [2, 1]
    assert within_budget([2, 1, 0, 3], tokens, 10, 60) == [2, 1, 0]
    assert within_budget([2, 1, 0, 3], tokens, 2, 99) == [2, 1]


def test_the_outline():
    nodes = (
        Node("Ava has\na river.", 7, source="a"),
        Node("Bor. " * 30, 60, source="b"),
        Node("Cid.", 2, source="c"),
    )
    tree = Tree((*nodes, Node("Ava and Bor.", 4, 1, (0, 1))), "1 node, more than 2 needed")
    assert format_tree(tree).splitlines() == [
        "3 passages, 1 summary in 1 layer. No further layer: 1 node, more than 2 needed.",
        "",
        "[3] summary, layer 1, 4 tokens",
        "    Ava and Bor.",
        "    [0] passage of a, 7 tokens",
        "        Ava has a river.",
        "    [1] passage of b, 60 tokens",
        "        " + "Bor. " * 17 + "...",
        "",
        "[2] passage of c, 2 tokens",
        "    Cid.",
    ]


@pytest.mark.parametrize(("text", "ended", "expected"), [
    (" One. Two and ", True, "One. Two and"),
    (" One. Two costs 3.5 and ", False, "One."),
    ("One! Two?", False, "One! Two?"),
    ("no end at", False, "no end at"),
    ("一つ。二つ", False, "一つ。"),
])  # fmt: skip
def test_a_summary_that_was_cut_ends_with_a_sentence(text, ended, expected):
    assert whole_sentences(text, ended) == expected


# --- the system -------------------------------------------------------------------------------------------


def by_place(vectors, sizes, options):
    """Two clusters of the six passages: those of Ava and those of Bor."""
    return spans(3, 3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_bert.save_counting_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


@pytest.fixture
def setup(tiny_model, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(_clustering, "divide", by_place)
    options = RaptorOptions(question_encoder=str(encoder), passages=2, dimensions=4, summary_tokens=8)
    prompt = Prompt("plain", tiny_model.tokenizer, tiny_model.end_ids)
    return Setup(tiny_model, prompt, 4, options=options, directory=tmp_path / "raptor")


def prepared(setup):
    system = SYSTEM.make(setup)
    system.prepare(DOCUMENTS)
    return system


def test_what_is_read_before_a_question(setup, monkeypatch):
    made = []

    def write(self, texts):
        made.extend(texts)
        return ["Ava has a river, a mill, a tower.", "Bor."]

    monkeypatch.setattr(_summaries.Summarizer, "write", write)
    same = [dataclasses.replace(document, id=document.id[:3].lower()) for document in DOCUMENTS]
    system = SYSTEM.make(setup)
    system.prepare(same)
    assert made == ["\n\n".join(document.text for document in each) for each in (same[:3], same[3:])]
    # Of Ava's passages "ava has a X .": one of four words; of the summary, three of eight words are asked for.
    scores = system.scores("river mill tower")
    np.testing.assert_allclose(scores[:3], 1 / 3**0.5 / 4**0.5, atol=1e-3)
    np.testing.assert_allclose(scores[6], 3 / 3**0.5 / (3 + 2 + 9) ** 0.5, atol=1e-3)
    assert system.retrieve("river mill tower")[0] == 6 and system.retrieve("bor") == [7, 3]
    assert system.sources[6:] == ["ava", "bor"]
    found = system.answer([dataclasses.replace(same[0], questions=(Question("river mill tower", ("x",)),))])
    assert found[0][0]["hit"] == 1.0  # of a summary of Ava alone
    small = dataclasses.replace(
        setup, options=dataclasses.replace(setup.options, retrieved_tokens=45), directory=None
    )
    few = SYSTEM.make(small)
    few.prepare(same)
    assert few.tree.nodes[6].tokens + few.tree.nodes[0].tokens > 45
    assert few.retrieve("river mill tower") == [6]


def test_a_stopped_run_goes_on_and_a_finished_one_reads_its_tree(setup, monkeypatch):
    whole = prepared(dataclasses.replace(setup, directory=None))
    summaries = [node for node in whole.tree.nodes if node.layer]
    assert len(whole.tree.nodes) == 6 + whole.tree.summaries and summaries
    assert whole.tree.made_tokens <= 2 * 8 and whole.tree.read_tokens > sum(len(d.text) for d in DOCUMENTS)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SYSTEM.make, "embed", lambda self, titles, texts: stop_after_passages(self, titles, texts))
        prepared(setup)
    kept = sorted(path.name for path in setup.directory.iterdir())
    assert kept[0] == "summaries.jsonl" and not (setup.directory / "tree.json").exists()

    monkeypatch.setattr(_summaries, "generate", None)  # nothing is written again
    resumed = prepared(setup)
    assert resumed.tree == whole.tree and resumed.earlier_s > 0
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    assert format_tree(whole.tree) == (setup.directory / "tree.txt").read_text()

    monkeypatch.setattr(_clustering, "divide", None)  # nor is anything divided again
    again = prepared(setup)
    assert again.tree == whole.tree and again.cost() == resumed.cost()
    np.testing.assert_array_equal(again.vectors, whole.vectors)
    size = sum(len(node.text.encode()) for node in whole.tree.nodes) + whole.vectors.nbytes
    assert again.cost()["storage_bytes"] == size and again.cost()["passages"] == 6

    monkeypatch.setattr(_clustering, "divide", lambda *_: spans(6))  # of other passages, no tree is there
    monkeypatch.setattr(_summaries.Summarizer, "write", lambda self, texts: ["Other."] * len(texts))
    other = SYSTEM.make(setup)
    other.prepare(DOCUMENTS[::-1])
    assert [node.text for node in other.tree.nodes if node.layer] == ["Other."]
    assert json.loads((setup.directory / "tree.json").read_text())["nodes"][-1]["text"] == "Other."


def stop_after_passages(system, titles, texts):
    if len(texts) == len(DOCUMENTS):
        return np.ones((len(texts), 32), np.float32)
    raise KeyboardInterrupt


def test_a_model_that_cannot_sum_up_is_refused(setup):
    short = dataclasses.replace(setup.model.config, max_position_embeddings=192)
    setup = dataclasses.replace(setup, model=dataclasses.replace(setup.model, config=short))
    with pytest.raises(ValueError, match=r"summary_tokens = 8 leaves \d+ of the model's 192 tokens to be summed up"):
        SYSTEM.make(setup)


def test_without_its_packages_its_row_says_what_to_install(setup, monkeypatch):
    assert SYSTEM.unavailable(setup) == ""
    monkeypatch.setattr("selfparam_jax.baselines.raptor.PACKAGES", ("umap_that_is_not_here",))
    assert "pip install 'selfparam-jax[raptor]'" in SYSTEM.unavailable(setup)
