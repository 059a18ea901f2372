"""What statistics cost: a forward pass with capture against the same one without.

    python tests/benchmarks/calibration.py

A decoder of 12 blocks, 256 features, 8 x 128 tokens, unrolled and scanned; medians of interleaved repetitions in one
process, as ratios to the plain forward pass. Prints a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax

import jaxprune as jp
from examples.language.training import Config, make_apply, make_model
from tests.benchmarks.timing import medians

STATS = {
    "column_norms": jp.stats.column_norms,
    "moments": jp.stats.moments,
    "gram": jp.stats.gram,
}


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args(argv)
    config = Config(vocabulary=2048, width=256, depth=12, heads=4, hidden=704)
    tokens = jax.random.randint(jax.random.key(0), (8, 128), 0, config.vocabulary)
    print(f"{'layers':<10} {'statistic':<14} {'x forward':>9}   (forward: median ms)")
    for scan in (False, True):
        model = make_model(config, scan)
        params = model.init(jax.random.key(1), tokens)["params"]
        apply = make_apply(model)
        calls = {"forward": jax.jit(apply)}
        for name, stat in STATS.items():
            calls[name] = jax.jit(jp.capture(apply, stat))
        times = medians(
            {name: (lambda f=f, params=params: f(params, tokens)) for name, f in calls.items()},
            args.repetitions,
        )
        for name in STATS:
            kind = "scanned" if scan else "unrolled"
            print(f"{kind:<10} {name:<14} {times[name] / times['forward']:9.2f}   ({1e3 * times['forward']:.1f})")


if __name__ == "__main__":
    main()
