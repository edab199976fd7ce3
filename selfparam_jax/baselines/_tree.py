"""RAPTOR's tree (arXiv 2401.18059): passages, above them summaries of clusters of passages, then of summaries.

Grown by functions that are given: what divides a layer, what writes summaries, what embeds texts.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Node:
    """A passage, or the summary of other nodes.

    Attributes:
      text: what is read.
      tokens: of the text.
      layer: 0 for a passage.
      children: the places of the nodes that it sums up.
      source: id of the document that all passages below it are from; "" if there are several.
      title: of a passage's document.
    """

    text: str
    tokens: int
    layer: int = 0
    children: tuple[int, ...] = ()
    source: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Tree:
    """Nodes of all layers, passages first.

    Attributes:
      nodes: in order of their layers.
      ended: why there is no further layer.
      read_tokens, made_tokens: what writing the summaries took.
    """

    nodes: tuple[Node, ...]
    ended: str
    read_tokens: int = 0
    made_tokens: int = 0

    @property
    def layers(self) -> int:
        """How many there are above the passages."""
        return self.nodes[-1].layer

    @property
    def summaries(self) -> int:
        """How many nodes are summaries."""
        return sum(node.layer > 0 for node in self.nodes)


# Vectors [nodes, D] and tokens of the nodes of a layer -> the places of the nodes in each cluster.
Divide = Callable[[np.ndarray, list[int]], list[list[int]]]
# The texts of each cluster -> its summary, "" if there is none, and tokens of it.
Summarize = Callable[[list[list[str]]], list[tuple[str, int]]]
# Texts -> vectors [texts, D].
Embed = Callable[[list[str]], np.ndarray]


def grow(
    passages: Sequence[Node],
    vectors: np.ndarray,
    layers: int,
    enough: int,
    divide: Divide,
    summarize: Summarize,
    embed: Embed,
) -> tuple[Tree, np.ndarray]:
    """The tree over some passages.

    Args:
      passages: the nodes of layer 0, at least one.
      vectors: float32 [passages, D].
      layers: at most as many above the passages.
      enough: a layer of at most as many nodes has none above it.
      divide: into clusters.
      summarize: writes what stands above each cluster.
      embed: summaries.

    Returns:
      the tree, and the vectors of its nodes, float32 [nodes, D]. It ends below a layer that would not be smaller than
      the one before.
    """
    nodes, below = list(passages), list(range(len(passages)))
    ended = f"{layers} layers are the most"
    for layer in range(1, layers + 1):
        if len(below) <= enough:
            ended = f"{_counted(len(below), 'node')}, more than {enough} needed"
            break
        clusters = divide(vectors[below], [nodes[place].tokens for place in below])
        if len(clusters) >= len(below):
            ended = f"{_counted(len(below), 'node')} made {_counted(len(clusters), 'cluster')}"
            break
        members = [[below[place] for place in cluster] for cluster in clusters]
        written = summarize([[nodes[place].text for place in each] for each in members])
        made = [
            Node(text, tokens, layer, tuple(each), _common_source([nodes[place] for place in each]))
            for each, (text, tokens) in zip(members, written, strict=True)
            if text
        ]
        if not made:
            ended = "all summaries were empty"
            break
        below = list(range(len(nodes), len(nodes) + len(made)))
        nodes += made
        vectors = np.concatenate([vectors, embed([node.text for node in made])])
    return Tree(tuple(nodes), ended), vectors


def _common_source(nodes: Sequence[Node]) -> str:
    sources = {node.source for node in nodes}
    return sources.pop() if len(sources) == 1 else ""


def within_budget(order: Sequence[int], tokens: Sequence[int], count: int, budget: int) -> list[int]:
    """What is read of nodes in an order.

    Args:
      order: places of nodes, the nearest first.
      tokens: of every node.
      count: nodes at most.
      budget: tokens at most.

    Returns:
      the first places of the order, up to the first node that no longer fits.
    """
    chosen, total = [], 0
    for place in order[:count]:
        total += tokens[place]
        if total > budget:
            break
        chosen.append(int(place))
    return chosen


def tree_record(tree: Tree) -> dict:
    """A tree as JSON has it."""
    return dataclasses.asdict(tree)


def read_tree(record: dict) -> Tree:
    """The tree of a `tree_record`."""
    nodes = [Node(**{**node, "children": tuple(node["children"])}) for node in record["nodes"]]
    return Tree(**{**record, "nodes": tuple(nodes)})


def format_tree(tree: Tree) -> str:
    """A tree as an outline: nodes that nothing sums up, and under each node those that it sums up.

    A node that is in several clusters is shown in each of them. Of a passage the beginning is shown.
    """
    below = {place for node in tree.nodes for place in node.children}
    passages = _counted(len(tree.nodes) - tree.summaries, "passage")
    summaries = _counted(tree.summaries, "summary", "summaries")
    head = f"{passages}, {summaries} in {_counted(tree.layers, 'layer')}. No further layer: {tree.ended}."
    lines = [head]

    def show(place: int, depth: int) -> None:
        node, indent = tree.nodes[place], "    " * depth
        what = f"summary, layer {node.layer}" if node.layer else "passage"
        origin = f" of {node.source}" if node.source else ""
        lines.append(f"{indent}[{place}] {what}{origin}, {_counted(node.tokens, 'token')}")
        text = " ".join(node.text.split())
        room = max(100 - len(indent) - 4, 40)
        said = textwrap.wrap(text, room) if node.layer else [textwrap.shorten(text, room, placeholder=" ...")]
        lines.extend(f"{indent}    {line}" for line in said)
        for child in node.children:
            show(child, depth + 1)

    for place in reversed(range(len(tree.nodes))):
        if place not in below:
            lines.append("")
            show(place, 0)
    return "\n".join(lines) + "\n"


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
