"""What keeping the most likely tokens costs per step of sampling: halving a range of bit patterns against sorting.

    python -m benchmarks.sampling

Medians over interleaved repeats, milliseconds, for a vocabulary of 49,152.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from selfparam_jax.inference.decoding import most_likely

VOCABULARY, TOP_P, REPEATS = 49_152, 0.95, 7


def by_sorting(logits: jax.Array, top_p: float) -> jax.Array:
    """The same as `generate.most_likely`, from sorted logits."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    shares = jax.nn.softmax(ordered, axis=-1)
    stays = jnp.cumsum(shares, axis=-1) - shares < top_p
    least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def main(argv: list[str]) -> None:
    """Prints a table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    ways = [jax.jit(functools.partial(way, top_p=TOP_P)) for way in (most_likely, by_sorting)]
    print("| rows | halving, ms | sorting, ms | ratio |")
    print("| --- | --- | --- | --- |")
    for rows in (1, 8, 32):
        logits = jnp.asarray(3 * np.random.default_rng(rows).standard_normal((rows, VOCABULARY), np.float32))
        kept = [np.isfinite(np.asarray(way(logits))) for way in ways]
        if (kept[0] != kept[1]).sum() > rows:  # one token on the border may fall to either side by rounding
            raise ValueError(f"the two keep other tokens: {(kept[0] != kept[1]).sum()} of {rows} rows differ")
        times: list[list[float]] = [[], []]
        for _ in range(REPEATS):
            for way, mine in zip(ways, times, strict=True):
                began = time.perf_counter()
                jax.block_until_ready(way(logits))
                mine.append(1e3 * (time.perf_counter() - began))
        fast, slow = (float(np.median(mine)) for mine in times)
        print(f"| {rows} | {fast:.1f} | {slow:.1f} | {slow / fast:.1f} |")


if __name__ == "__main__":
    app.run(main)
