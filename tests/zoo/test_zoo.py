"""Every model of the zoo: how many groups it has, and that what is left after a cut computes the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.tracing.exactness import APPROXIMATE
from tests.zoo.models import ZOO, ZooModel
from tests.zoo.swap import QUICK

# Checked by hand against the architectures: every width that can change by itself is one group.
GOLDEN = {
    "mobilenet": 7,
    "resnext": 8,
    "shufflenet": 7,
    "swin": 11,
    "channels_first_cnn": 3,
    "pixel_shuffle": 3,
    "transposed_attention": 5,
    "tied_autoencoder": 1,
    "bert": 9,
    "llama_unrolled": 11,
    "llama_scan": 6,
    "llama_remat": 6,
    "kv_cache": 3,
    "fused_qkv_split": 5,
    "fused_qkv_reshape": 4,
    "moe_dense": 3,
    "moe_ragged": 2,
    "lora": 4,
    "fourier_mixer": 2,
    "matrix_factorization": 1,
    "neural_factorization": 5,
    "wavenet": 6,
    "control_flow": 4,
    "time_operations": 3,
    "feature_operations": 5,
    "ensemble": 3,
    "custom_gradients": 3,
    "deep_sets": 3,
    "linen_mlp": 2,
    "linen_cnn": 3,
    "linen_resnet": 4,
    "linen_resnet_training": 0,
    "linen_densenet": 11,
    "linen_transformer": 9,
    "linen_vit": 9,
    "linen_lstm": 2,
    "linen_optimized_lstm": 2,
    "linen_gru": 2,
    "linen_bidirectional": 3,
    "linen_scan_transformer": 5,
    "linen_unet": 12,
    "linen_weight_norm": 3,
    "linen_mixer": 5,
    "nnx_mlp": 2,
    "nnx_cnn": 3,
    "nnx_transformer": 9,
    "nnx_recurrent": 2,
    "equinox_mlp": 2,
    "equinox_transformer": 9,
    "equinox_gru": 2,
    "equinox_cnn": 4,
    "haiku_cnn": 3,
    "haiku_transformer": 9,
    "haiku_lstm": 2,
}
REMOVED = 0.4


def cut(model: jp.Model, seed: int = 0) -> jp.Plan:
    """Removes about 40 % of every group."""
    random = np.random.default_rng(seed)
    keep = {}
    for group in model.groups.values():
        mask = random.random(group.size) > REMOVED
        mask[random.integers(group.size)] = True
        mask[(np.flatnonzero(mask)[0] + 1) % group.size] &= mask.sum() < group.size
        keep[group.id] = mask
    return jp.Plan(keep, model.fingerprint)


def probe(apply_fn: Any, args: Any) -> Any:
    """A function of the parameters that gives the outputs, and the gradient of a random projection of them."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        outputs = apply_fn(params, *args)
        floating = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y.dtype, jnp.floating)]
        weights = [np.random.default_rng(k).normal(size=y.shape).astype(y.dtype) for k, y in enumerate(floating)]
        return sum(jnp.sum(y * w) for y, w in zip(floating, weights, strict=True)), outputs

    return jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)


@pytest.mark.parametrize("name", ZOO)
def test_cut_model_computes_what_the_masked_model_does(name: str) -> None:
    zoo: ZooModel = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    assert len(model.groups) == GOLDEN[name]

    whole = cut(model)
    exact = {key: mask for key, mask in whole.keep.items() if model.groups[key].exactness != APPROXIMATE}
    plan = jp.Plan(exact)
    # In NumPy: `jp.apply_masks` would compile an operation for every shape.
    masks = plan.masks(model, consumers_only=True)
    masked = jax.tree.map(lambda leaf, mask: np.where(mask, leaf, 0).astype(leaf.dtype), zoo.params, masks)
    small = jp.shrink(model, plan, zoo.params)
    if name in NOT_DIFFERENTIABLE:
        outputs, replayed = zoo.apply_fn(masked, *zoo.args), jp.shrunk_function(model, plan)(small, *zoo.args)
        assert_close(outputs, replayed)
        return
    gradient, outputs = probe(zoo.apply_fn, zoo.args)(masked)
    shrunk_gradient, replayed = probe(jp.shrunk_function(model, plan), zoo.args)(small)
    assert_close(outputs, replayed)
    # The gradient of a removed consumer is cut away; all others flow as if nothing had been there.
    assert_close(jp.shrink(model, plan, gradient), shrunk_gradient)


NOT_DIFFERENTIABLE = {"control_flow"}  # it has a while loop


def assert_close(expected: Any, found: Any) -> None:
    """Within 1e-5 of the largest element of the whole tree: some gradients are zero but for rounding."""
    pairs = list(zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True))
    scale = max(float(np.max(np.abs(x))) for x, _ in pairs)
    for x, y in pairs:
        assert x.shape == y.shape
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["swin", "transposed_attention", "linen_mixer", "equinox_transformer"])
def test_approximate_groups_say_why(name: str) -> None:
    zoo = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    result = jp.verify(model, cut(model), zoo.params, *zoo.args, strict=True)
    assert result.approximate and result.error > 1e-4 > result.exact_error
    assert all("reduce_" in reason for reason in result.approximate.values())
