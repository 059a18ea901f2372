"""How well the change of the loss is predicted before anything is pruned: rank correlation with measured ablation.

    python tests/benchmarks/predictor.py

A small CNN on 5,000 real MNIST digits (3,000 to train on, 500 for the features, 500 for the loss; no test images), for
three removals: a parameter at a sparsity, one channel, a share of the channels of one group. Each parameter or group is
predicted by a fit on the others of the same network; `transfer` is fitted on a whole network and predicts one of other
widths, trained from another seed. `ablation, other examples` is the measurement itself on the examples of the features:
what luck with the examples leaves to any prediction. Means and standard deviations over the seeds. Prints a table for
each removal.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from examples.classification.training import normalise
from examples.data import images
from examples.models.cnn import LinenCNN
from jaxprune.pipeline.ablation import ablation
from jaxprune.pipeline.features import DATA, Features, group_features, weight_features
from jaxprune.pipeline.moments import gradient_moments
from jaxprune.pipeline.predictor import fit_predictor
from jaxprune.pipeline.sensitivity import sensitivity
from jaxprune.pipeline.validation import RankCorrelation, rank_correlation, validate

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
WIDTHS = {"first": ((16, 32, 48), 64), "other": ((8, 24, 32), 96)}
CHANNELS = 24
# Features, changes of the loss, and the same on the examples of the features, by the kind of removal.
Removals = dict[str, tuple[Features, np.ndarray, np.ndarray]]


def loss_fn(outputs: Any, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def train(model: LinenCNN, x: jax.Array, y: jax.Array, seed: int, steps: int) -> Any:
    params = model.init(jax.random.key(seed), x[:1])["params"]
    tx = optax.adam(1e-3)

    @jax.jit
    def step(params: Any, state: Any, at: jax.Array) -> tuple[Any, Any]:
        chosen = jax.random.randint(jax.random.fold_in(jax.random.key(seed), at), (64,), 0, len(x))
        grads = jax.grad(lambda p: loss_fn(model.apply({"params": p}, x[chosen]), y[chosen]))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for at in range(steps):
        params, state = step(params, state, jnp.asarray(at))
    return params


def removals(widths: tuple[Sequence[int], int], seed: int, steps: int) -> tuple[Removals, str]:
    """Trains a network; the features and the measured changes of the loss of each kind of removal."""
    data = images.load("mnist_5k")
    x, y = normalise(jnp.asarray(data.train_x)), jnp.asarray(data.train_y)
    features, hidden = widths
    network = LinenCNN(data.classes, tuple(features), hidden)
    params = train(network, x[:3000], y[:3000], seed, steps)

    def apply_fn(params: Any, x: jax.Array) -> Any:
        return network.apply({"params": params}, x)

    known, measured = ([(x[k : k + 250], y[k : k + 250]) for k in (start, start + 250)] for start in (3000, 3500))
    model = jp.trace(apply_fn, params, x[:1])
    moments = gradient_moments(apply_fn, params, loss_fn, known, model=model, per_example=True)
    stats = jp.calibrate(apply_fn, params, [inputs for inputs, _ in known], jp.stats.column_norms)
    given: dict[str, Any] = {"moments": moments, "stats": stats}
    tables = [sensitivity(apply_fn, params, loss_fn, batches, sparsities=SPARSITIES) for batches in (measured, known)]
    weights = weight_features(model, params, sparsities=SPARSITIES, **given)
    changes = [np.array([table.changes()[row] for row in weights.rows]) for table in tables]
    found = {"weights": (weights, changes[0], changes[1])}
    for kind, shares in (("single channels", None), ("shares of channels", SHARES)):
        groups = group_features(model, params, shares=shares, per_group=CHANNELS, **given)
        run = functools.partial(ablation, apply_fn, params, loss_fn, model=model, plans=groups.plans)
        found[kind] = (groups, run(measured), run(known))
    right = np.mean([np.mean(np.argmax(apply_fn(params, a), -1) == b) for a, b in measured])
    return found, f"seed {seed}, widths {widths}: loss {tables[0].dense:.3f}, accuracy {100 * right:.1f} % (measured)"


def compare(first: Removals, other: Removals) -> dict[str, dict[str, RankCorrelation]]:
    """By the kind of removal, and by what predicts it."""
    result = {}
    for kind, (features, changes, again) in first.items():
        target, truth, _ = other[kind]
        predicted = fit_predictor(features, changes).predict(target)
        result[kind] = {
            "ablation, other examples": rank_correlation(features, again, changes),
            **validate(features, changes).correlations,
            "transfer": rank_correlation(target, predicted, truth),
        }
        for name in (name for name in features.names if name in DATA):
            result[kind][f"transfer: {name}"] = rank_correlation(target, target.column(name), truth)
    return result


def row(name: str, found: Sequence[RankCorrelation]) -> str:
    cells = []
    for view in ("overall", "within", "between"):
        values = np.array([getattr(each, view) for each in found])
        one = f"{values.mean():+.2f}" + (f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else "")
        cells.append(f"{'none' if np.isnan(values).any() else one:>16}")
    return f"{name:<30}" + "".join(cells)


def print_rows(kind: str, rows: dict[str, list[RankCorrelation]]) -> None:
    print(f"\n{kind}: rank correlation with measured ablation, {len(rows['predictor'])} seeds")
    print(f"{'predicted by':<30}{'overall':>16}{'within layers':>16}{'between layers':>16}")
    for name, found in rows.items():
        print(row(name, found))


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, list[RankCorrelation]]]:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(argv)
    results: dict[str, dict[str, list[RankCorrelation]]] = {}
    for seed in args.seed:
        first, line = removals(WIDTHS["first"], seed, args.steps)
        print(line)
        other, line = removals(WIDTHS["other"], seed + 100, args.steps)
        print(line)
        for kind, correlations in compare(first, other).items():
            for name, each in correlations.items():
                results.setdefault(kind, {}).setdefault(name, []).append(each)
    for kind, rows in results.items():
        print_rows(kind, rows)
    return results


if __name__ == "__main__":
    main()
