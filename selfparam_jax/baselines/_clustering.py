"""RAPTOR's clusters (arXiv 2401.18059): arrays in, lists of places out; a node may be in several clusters.

All nodes are reduced to a few dimensions and put into clusters by a mixture of Gaussians, then each of these clusters
is divided the same way. A cluster of too many tokens is divided once more.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from selfparam_jax.distributed.ranges import Range, check_ranges

MOST_CLUSTERS = 50
LOCAL_NEIGHBORS = 10


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """How nodes are put into clusters.

    Attributes:
      dimensions: that vectors are reduced to. Layers of at most one node more are not divided.
      membership: a node is in every cluster to which it belongs with a probability above this.
      cluster_tokens: tokens of the largest cluster; fewer where the model cannot read as many.
      seed: of the reduction and of the mixtures.

    Raises:
      ValueError: a value outside its range.
    """

    dimensions: Annotated[int, Range(2, 1000)] = 10
    membership: Annotated[float, Range(0, 1, open_most=True)] = 0.1
    cluster_tokens: Annotated[int, Range(32, 2**20)] = 3500
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0

    def __post_init__(self):
        check_ranges(self)


# Vectors [nodes, D], dimensions, neighbors and a seed -> points [nodes, dimensions].
Reduce = Callable[[np.ndarray, int, int, int], np.ndarray]


def reduce_with_umap(vectors: np.ndarray, dimensions: int, neighbors: int, seed: int) -> np.ndarray:
    """Points of fewer dimensions, of which those of similar vectors are near each other (UMAP, arXiv 1802.03426).

    Args:
      vectors: float [nodes, D], at least `dimensions + 2` nodes.
      dimensions: of the points.
      neighbors: of each node whose distances are kept; at least 2.
      seed: of all that is drawn; the same seed gives the same points.

    Returns:
      float64 [nodes, dimensions].
    """
    import umap  # here: loading it takes seconds

    made = umap.UMAP(
        n_neighbors=neighbors, n_components=dimensions, metric="cosine", random_state=seed, n_jobs=1
    ).fit_transform(vectors)
    return np.asarray(made, np.float64)


def divide(
    vectors: np.ndarray, sizes: Sequence[int], options: ClusterOptions, reduce: Reduce = reduce_with_umap
) -> list[list[int]]:
    """Clusters of nodes.

    Args:
      vectors: float [nodes, D].
      sizes: tokens of each node.
      options: how.
      reduce: to fewer dimensions.

    Returns:
      the places of each cluster's nodes, in order; every node is in at least one cluster, and no two clusters are the
      same. None has more than `cluster_tokens` tokens, unless it is a single node.
    """
    everything, found = list(range(len(vectors))), []
    for members in _by_likeness(vectors, options, reduce):
        inner = [sizes[place] for place in members]
        if len(members) == 1 or sum(inner) <= options.cluster_tokens:
            found.append(members)
        elif members == everything:  # another division would give the same, and so on
            found += [[members[place] for place in run] for run in _runs(inner, options.cluster_tokens)]
        else:
            parts = divide(vectors[members], inner, options, reduce)
            found += [[members[place] for place in part] for part in parts]
    return [list(each) for each in dict.fromkeys(map(tuple, found))]


def _by_likeness(vectors: np.ndarray, options: ClusterOptions, reduce: Reduce) -> list[list[int]]:
    """Clusters of the whole, each divided into its own clusters."""
    count, found = len(vectors), []
    if count <= options.dimensions + 1:
        return [list(range(count))]
    points = reduce(vectors, options.dimensions, max(2, int((count - 1) ** 0.5)), options.seed)
    for members in mixture_clusters(points, options.membership, options.seed):
        parts = [list(range(len(members)))]
        if len(members) > options.dimensions + 1:
            neighbors = min(LOCAL_NEIGHBORS, len(members) - 1)
            points = reduce(vectors[members], options.dimensions, neighbors, options.seed)
            parts = mixture_clusters(points, options.membership, options.seed)
        found += [[members[place] for place in part] for part in parts]
    return found


def _runs(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Places of consecutive nodes, in groups of at most `most` tokens; a larger node is alone."""
    runs: list[list[int]] = []
    total = 0
    for place, size in enumerate(sizes):
        if not runs or total + size > most:
            runs.append([])
            total = 0
        runs[-1].append(place)
        total += size
    return runs


def mixture_clusters(points: np.ndarray, membership: float, seed: int) -> list[list[int]]:
    """Clusters by a mixture of Gaussians, with the number of components that has the lowest BIC.

    Args:
      points: float [nodes, dimensions], at least two nodes.
      membership: a node is in every cluster to which it belongs with a probability above this, or else in its most
        likely one.
      seed: of the mixtures' first means.

    Returns:
      the places of each cluster's nodes; clusters without nodes are left out.
    """
    from sklearn.mixture import GaussianMixture  # here: it belongs to an extra

    points = np.asarray(points, np.float64)
    # As many components as points, or more than there are different ones, cannot be told apart.
    most = min(MOST_CLUSTERS, len(points), len(np.unique(points, axis=0)) + 1)
    fitted = [GaussianMixture(count, random_state=seed).fit(points) for count in range(1, max(most, 2))]
    chosen = min(fitted, key=lambda mixture: mixture.bic(points))
    shares = chosen.predict_proba(points)
    inside = (shares > membership) | (shares == shares.max(axis=1, keepdims=True))
    return [np.flatnonzero(column).tolist() for column in inside.T if column.any()]
