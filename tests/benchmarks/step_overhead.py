"""A training step that updates no mask, under each pruner, against the optimiser alone.

Run: python tests/benchmarks/step_overhead.py [--width 1280] [--batch 128] [--repetitions 15] [--only gmp rigl]
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from timing import medians

import jaxprune as jp

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


def main() -> None:
    """Prints ratios for the whole step and for the optimiser alone, all measured in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(PRUNERS))
    arguments = parser.parse_args()
    width, depth = arguments.width, 6
    keys = jax.random.split(jax.random.key(0), depth)
    inputs = jax.random.normal(jax.random.key(1), (arguments.batch, width))

    def make_params():
        return {f"layer_{i}": jax.random.normal(k, (width, width)) / width**0.5 for i, k in enumerate(keys)}

    def loss_fn(params):
        x = inputs
        for i in range(depth):
            x = jax.nn.relu(x @ params[f"layer_{i}"])
        return jnp.mean(x**2)

    grads = jax.grad(loss_fn)(make_params())
    inner = optax.adam(1e-4)
    transforms = {"optimiser alone": inner}
    for name, make in PRUNERS.items():
        if arguments.only and name not in arguments.only:
            continue
        for packed in (False, True):
            label = f"{name}, packed" if packed else name
            transforms[label] = jp.sparsify(inner, make(), key=jax.random.key(2), pack_masks=packed)

    def stepper(tx, whole):
        def step(params, state):
            gradients = jax.grad(loss_fn)(params) if whole else grads
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1))
        params = make_params()
        # Two warm steps, so that pruners that update at step 0 are past it.
        carry = compiled(*compiled(params, tx.init(params)))

        def run():
            nonlocal carry
            carry = compiled(*carry)
            return carry

        return run

    count = depth * width**2
    print(
        f"{count:,} float32 weights, adam, batch {arguments.batch}, {jax.devices()[0].platform}; "
        "steps that update no mask; measured"
    )
    print(f"{'':24s}{'whole step ms':>14s}{'ratio':>8s}{'update ms':>12s}{'ratio':>8s}{'state bytes a weight':>22s}")
    for name, tx in transforms.items():
        rows = []
        for whole in (True, False):
            pair = {"base": stepper(inner, whole), "this": stepper(tx, whole)}
            times = medians(pair, arguments.repetitions)
            rows += [times["this"] * 1e3, times["this"] / times["base"]]
        state = jax.eval_shape(tx.init, make_params())
        size = sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if hasattr(leaf.dtype, "itemsize")
        )
        print(
            f"{name:24s}{rows[0]:14.1f}{rows[1]:8.2f}{rows[2]:12.1f}{rows[3]:8.2f}{size / count - 8:22.3f}", flush=True
        )


if __name__ == "__main__":
    main()
