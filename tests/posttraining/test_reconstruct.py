"""`reconstruct`: what it gains, what it leaves alone, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.posttraining._segments import Segment, plan_segments
from jaxprune.posttraining.reconstruct import reconstruct
from jaxprune.posttraining.stages import Frame
from jaxprune.posttraining.units import Blocks
from jaxprune.tracing.layers import read_layers
from tests.draws import normal
from tests.zoo.models import ZOO


def scaled(seed: int, *shape: int) -> jax.Array:
    return normal(seed, *shape) / shape[-2] ** 0.5


def block(p, x):
    return x + jnp.tanh(x @ p["up"] + p["bias"][None]) @ p["down"]


def net(params, x):
    for name in ("layer_0", "layer_1"):
        x = block(params[name], x)
    return x @ params["head"]


def draw(seed: int, *stack: int):
    bias = scaled(seed + 2, *stack, 1, 12).reshape(*stack, 12)
    return {"up": scaled(seed, *stack, 6, 12), "down": scaled(seed + 1, *stack, 12, 6), "bias": bias}


DENSE = {"layer_0": draw(0), "layer_1": draw(3), "head": scaled(6, 6, 3)}
BATCHES = [4 * scaled(k, 32, 6) for k in (7, 8)]


def magnitude(params, share: float = 0.5):
    """The larger half of every matrix."""
    host = jax.tree.map(np.abs, jax.tree.map(np.asarray, params))
    masks = jax.tree.map(lambda w: w >= np.quantile(w, share) if w.ndim > 1 else np.array(True), host)
    return jax.tree.map(lambda w, mask: jnp.asarray(np.where(mask, w, 0), w.dtype), params, masks), masks


def error(apply, params, dense, batches) -> float:
    apply = jax.jit(apply)
    return float(sum(jnp.mean(jnp.square(apply(params, x) - apply(dense, x))) for x in batches))


def test_blocks_end_at_the_residual_stream() -> None:
    layers = read_layers(net, DENSE, BATCHES[0])
    frame = Frame(layers, layers.program.graph)
    parts = plan_segments(frame, layers.matrices, Blocks())
    assert all(isinstance(part, Segment) for part in parts)
    own = [{layers.paths[leaf] for leaf in part.own} for part in parts if isinstance(part, Segment)]
    assert own == [{f"layer_{k}/{name}" for name in ("up", "down", "bias")} for k in range(2)] + [{"head"}]
    assert [frame.nodes[part.stop - 1].name for part in parts] == ["add", "add", "dot_general"]


def test_lowers_the_error_of_each_block_and_keeps_zeros() -> None:
    pruned, masks = magnitude(DENSE)
    masks["head"] = True
    pruned["head"] = DENSE["head"]
    new = reconstruct(net, pruned, masks, BATCHES, optax.adam(1e-2), dense_params=DENSE, steps=60)
    first = [error(block, p["layer_0"], DENSE["layer_0"], BATCHES) for p in (new, pruned)]
    whole = [error(net, p, DENSE, BATCHES) for p in (new, pruned)]
    assert first[0] < 0.5 * first[1] and whole[0] < 0.5 * whole[1]
    for old, now, mask in zip(*map(jax.tree.leaves, (pruned, new, masks)), strict=True):
        assert (jnp.where(mask, 0, now) == 0).all() and now.dtype == old.dtype
    assert new["head"] is DENSE["head"]  # nothing of it was pruned
    assert (new["layer_1"]["bias"] != DENSE["layer_1"]["bias"]).any()


def test_a_block_is_least_squares_on_the_inputs_of_the_pruned_model() -> None:
    dense = {"a": DENSE["layer_0"]["up"], "b": DENSE["layer_0"]["down"]}

    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    pruned = dense | {"a": dense["a"].at[:, :4].set(0), "b": dense["b"].at[4:6].set(0)}
    masks = {"a": pruned["a"] != 0, "b": pruned["b"] != 0}
    x = jnp.concatenate(BATCHES)
    new = reconstruct(apply, pruned, masks, [x], optax.adam(0.02), dense_params=dense, steps=500)
    hidden, aim = np.tanh(x @ new["a"]), np.tanh(x @ dense["a"]) @ dense["b"]
    kept = [k for k in range(12) if k > 5]
    best = np.sum(np.square(hidden[:, kept] @ np.linalg.lstsq(hidden[:, kept], aim)[0] - aim))
    assert np.sum(np.square(apply(new, x) - aim)) < 1.02 * best


def test_steps_of_a_scan_are_blocks() -> None:
    def narrow(p, x):
        return block(p | {"up": p["up"].astype(jnp.float32)}, x)

    def scanned(p, x):
        return jax.lax.scan(lambda x, p: (narrow(p, x), None), x, p["layers"])[0]

    layers = draw(20, 3)
    dense = {"layers": layers | {"up": layers["up"].astype(jnp.bfloat16)}}
    masks = {"layers": {"up": scaled(30, 3, 6, 12) > 0, "down": scaled(31, 3, 12, 6) > 0, "bias": jnp.array(True)}}
    pruned = jp.apply_masks(dense, masks)
    options = {"steps": 40, "dense_params": dense}
    new = reconstruct(scanned, pruned, masks, BATCHES, optax.adam(1e-2), **options)
    assert error(scanned, new, dense, BATCHES) < 0.6 * error(scanned, pruned, dense, BATCHES)
    assert new["layers"]["up"].dtype == jnp.bfloat16
    assert all((jnp.where(masks["layers"][name], 0, new["layers"][name]) == 0).all() for name in ("up", "down"))
    # The first step is what the same block comes to by itself.
    own, masks, options["dense_params"] = (
        {"layers": {name: leaf[0] if leaf.ndim else leaf for name, leaf in tree["layers"].items()}}
        for tree in (pruned, masks, dense)
    )
    first = reconstruct(
        lambda p, x: narrow(p["layers"], x), own, masks, BATCHES, optax.adam(1e-2), blocks=["layers"], **options
    )
    for name, leaf in first["layers"].items():
        found, expected = (np.asarray(x, np.float32) for x in (new["layers"][name][0], leaf))
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_transformer() -> None:
    zoo = ZOO["llama_scan"]()
    pruned, masks = magnitude(zoo.params)
    pruned, masks = pruned | {"tokens": zoo.params["tokens"]}, masks | {"tokens": True}
    batches, apply = [zoo.args], jax.jit(zoo.apply_fn)
    new = reconstruct(zoo.apply_fn, pruned, masks, batches, optax.sgd(0.3), dense_params=zoo.params, steps=20)
    lost = [float(jnp.mean(jnp.square(apply(p, *zoo.args) - apply(zoo.params, *zoo.args)))) for p in (new, pruned)]
    assert lost[0] < 0.5 * lost[1]
    with pytest.raises(ValueError, match="tokens cannot be trained block by block"):
        bad = masks | {"tokens": jnp.abs(zoo.params["tokens"]) > 0.5}
        reconstruct(zoo.apply_fn, pruned, bad, batches, optax.sgd(0.3), dense_params=zoo.params)


def test_errors_and_no_harm() -> None:
    pruned, masks = magnitude(DENSE)
    with pytest.raises(ValueError, match="there are no batches"):
        reconstruct(net, pruned, masks, [], optax.sgd(0.1), dense_params=DENSE)
    with pytest.raises(ValueError, match="the masks prune nothing"):
        full = jax.tree.map(lambda _: True, masks)
        reconstruct(net, pruned, full, BATCHES, optax.sgd(0.1), dense_params=DENSE)
    with pytest.raises(ValueError, match="several shapes"):
        reconstruct(net, pruned, masks, [BATCHES[0], BATCHES[0][:3]], optax.sgd(0.1), dense_params=DENSE)
    diverged = reconstruct(net, pruned, masks, BATCHES, optax.sgd(1e9), dense_params=DENSE, steps=2)
    jax.tree.map(np.testing.assert_array_equal, diverged, pruned)
