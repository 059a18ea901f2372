"""`compute_masks` against argsort, top_k and one pass over the data.

Run: python tests/benchmarks/selection.py [--weights 10000000] [--repetitions 5]
"""

import argparse

import jax
import jax.numpy as jnp
from timing import medians

import jaxprune as jp


def main() -> None:
    """Prints a table of times and ratios, all measured in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    leaves, width = 10, 1000
    rows = arguments.weights // (leaves * width)
    keys = jax.random.split(jax.random.key(0), leaves)
    params = {f"layer_{i}": jax.random.normal(key, (rows, width)) for i, key in enumerate(keys)}
    flat = jnp.concatenate([p.reshape(-1) for p in params.values()])
    one = {"w": flat.reshape(-1, width)}
    kept = flat.size // 10

    def masks(structure=jp.Unstructured(), allocation=jp.allocation.uniform, sparsity=0.9):
        return jax.jit(lambda p: jp.compute_masks(p, sparsity, structure=structure, allocation=allocation))

    uniform, global_, nm = masks(), masks(allocation=jp.allocation.global_), masks(jp.NM(2, 4), sparsity=0.5)
    lone = masks()
    block, channel = masks(jp.Block((4, 4))), masks(jp.Channel())
    one_pass = jax.jit(lambda x: jnp.abs(x) > 1.0)
    argsort = jax.jit(lambda x: jnp.argsort(jnp.abs(x)))
    top_k = jax.jit(lambda x: jax.lax.top_k(jnp.abs(x), kept))
    result = medians(
        {
            "one pass |x| > t": lambda: one_pass(flat),
            "uniform, 10 leaves": lambda: uniform(params),
            "uniform, 1 leaf": lambda: lone(one),
            "global, 10 leaves": lambda: global_(params),
            "N:M 2:4": lambda: nm(params),
            "block 4x4": lambda: block(params),
            "channel": lambda: channel(params),
            "jnp.argsort": lambda: argsort(flat),
            "jax.lax.top_k": lambda: top_k(flat),
        },
        arguments.repetitions,
    )
    print(f"{flat.size:,} float32 weights on {jax.devices()[0].platform}, medians of {arguments.repetitions}, measured")
    print(f"{'':22s}{'ns/weight':>10s}{'x one pass':>12s}{'argsort /':>12s}{'top_k /':>12s}")
    base = result["one pass |x| > t"]
    for name, seconds in result.items():
        ratios = (seconds / base, result["jnp.argsort"] / seconds, result["jax.lax.top_k"] / seconds)
        print(f"{name:22s}{seconds / flat.size * 1e9:10.2f}" + "".join(f"{ratio:12.1f}" for ratio in ratios))


if __name__ == "__main__":
    main()
