"""A training step that updates no mask, under each pruner, against the optimiser alone.

Run: python tests/benchmarks/step_overhead.py [--model mlp] [--batch 128] [--repetitions 15] [--only gmp rigl]
         [--storage plain]

Both models have 10 million weights. The MLP does little with each of them: what a pruner adds shows the most there.
The decoder is that of `examples/one_shot_transformer.py`, wider, on `--batch` windows of 128 tokens.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from examples.language import training

NEVER = 1_000_000
PRUNERS = {
    "static": lambda: jp.pruners.static(0.9),
    "gmp": lambda: jp.pruners.gmp(0.9, begin=NEVER, end=2 * NEVER, every=100),
    "set_": lambda: jp.pruners.set_(0.9, begin=NEVER, end=2 * NEVER, every=100),
    "rigl": lambda: jp.pruners.rigl(0.9, begin=NEVER, end=2 * NEVER, every=100),
    "granet": lambda: jp.pruners.granet(0.9, begin=NEVER, end=2 * NEVER, every=100),
    "acdc": lambda: jp.pruners.acdc(0.9, begin=NEVER, end=2 * NEVER, every=100),
    "ste": lambda: jp.pruners.ste(0.9, begin=NEVER, every=100),
    "sr_ste": lambda: jp.pruners.sr_ste(0.9, begin=NEVER, every=100),
    "top_kast": lambda: jp.pruners.top_kast(0.9, backward_sparsity=0.8, every=NEVER),
    "movement": lambda: jp.pruners.movement(0.9, begin=NEVER, end=2 * NEVER, every=100),
}


PyTree = Any
Problem = tuple[Callable[[], PyTree], Callable[[PyTree], jax.Array]]


def mlp(batch: int, width: int = 1280, depth: int = 6) -> Problem:
    """Parameters and loss of a multilayer perceptron."""
    keys = jax.random.split(jax.random.key(0), depth)
    inputs = jax.random.normal(jax.random.key(1), (batch, width))

    def make_params() -> PyTree:
        return {f"layer_{i}": jax.random.normal(k, (width, width)) / width**0.5 for i, k in enumerate(keys)}

    def loss(params: PyTree) -> jax.Array:
        x = inputs
        for i in range(depth):
            x = jax.nn.relu(x @ params[f"layer_{i}"])
        return jnp.mean(x**2)

    return make_params, loss


def decoder(batch: int) -> Problem:
    """Parameters and loss of a decoder language model."""
    config = training.Config(width=384, depth=6, heads=6, hidden=896)
    model = training.make_model(config)
    apply = training.make_apply(model)
    windows = jax.random.randint(jax.random.key(1), (batch, config.context + 1), 0, config.vocabulary)

    def make_params() -> PyTree:
        return model.init(jax.random.key(0), windows[:, :-1])["params"]

    return make_params, lambda params: training.token_losses(apply, params, windows).mean()


MODELS: dict[str, tuple[Callable[[int], Problem], int]] = {"mlp": (mlp, 128), "decoder": (decoder, 4)}


def main() -> None:
    """Prints ratios for the whole step and for the optimiser alone, all measured in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp", choices=list(MODELS))
    parser.add_argument("--batch", type=int, help="rows (default 128) or windows of 128 tokens (default 4)")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(PRUNERS))
    parser.add_argument(
        "--storage", nargs="+", default=["plain", "packed"], choices=["plain", "packed"], help="of masks"
    )
    arguments = parser.parse_args()
    make_problem, usual_batch = MODELS[arguments.model]
    batch = arguments.batch or usual_batch
    make_params, loss_fn = make_problem(batch)

    initial = make_params()
    grads = jax.jit(jax.grad(loss_fn))(initial)
    inner = optax.adam(1e-4)
    transforms = {"optimiser alone": inner}
    for name, make in PRUNERS.items():
        if arguments.only and name not in arguments.only:
            continue
        for storage in arguments.storage:
            label = f"{name}, packed" if storage == "packed" else name
            transforms[label] = jp.sparsify(inner, make(), key=jax.random.key(2), pack_masks=storage == "packed")

    def stepper(tx, whole):
        def step(params, state):
            gradients = jax.grad(loss_fn)(params) if whole else grads
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1))
        params = jax.tree.map(jnp.copy, initial)  # for it is donated
        # Two warm steps, so that pruners that update at step 0 are past it.
        carry = compiled(*compiled(params, tx.init(params)))

        def run():
            nonlocal carry
            carry = compiled(*carry)
            return carry

        return run

    count = sum(leaf.size for leaf in jax.tree.leaves(grads))
    print(
        f"{arguments.model}, {count:,} float32 weights, adam, batch {batch}, {jax.devices()[0].platform}; "
        "steps that update no mask; measured"
    )
    print(
        f"medians of {arguments.repetitions} paired ratios to the optimiser alone, ± half of their interquartile range"
    )
    print(f"{'':24s}{'whole step':>16s}{'update alone':>16s}{'state bytes a weight':>22s}")
    alone = {whole: stepper(inner, whole) for whole in (True, False)}
    for name, tx in transforms.items():
        cells = []
        for whole, baseline in alone.items():
            found = jp.measure.ratio(stepper(tx, whole), baseline, repetitions=arguments.repetitions, warmup=1)
            cells.append(f"{found.value:.2f} ± {found.spread or 0:.2f}")
        state = jax.eval_shape(tx.init, initial)
        size = sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if hasattr(leaf.dtype, "itemsize")
        )
        print(f"{name:24s}{cells[0]:>16s}{cells[1]:>16s}{size / count - 8:22.3f}", flush=True)


if __name__ == "__main__":
    main()
