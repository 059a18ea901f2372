"""Pruning where shapes coincide, data is missing, or the pruned model sends its data elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.calibration import inputs
from jaxprune.posttraining import admm, layer, magnitude, wanda
from tests.posttraining.layers import Grown


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_norms_of_as_many_layers_as_features_are_no_gram_matrix() -> None:
    params, x = {"w": normal(0, 4, 4, 4)}, normal(1, 8, 4)

    def net(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    stats = jp.calibrate(net, params, [x], jp.stats.column_norms)
    (report,) = jp.prune_one_shot(net, params, [x], wanda(), sparsity=0.5, stats=stats).layers
    energy = np.square(params["w"]) * np.asarray(stats["w"])[:, :, None]
    smallest = np.sort(energy, 1)[:, :2]
    assert not report.exact_error
    assert report.error == pytest.approx(np.sqrt(smallest.sum() / energy.sum()), rel=1e-4)
    with pytest.raises(ValueError, match="takes Gram matrices"):
        layer._need_gram(stats["w"], params["w"])


def convolve(params, x):
    for name in ("a", "b"):
        x = jnp.tanh(jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", dimension_numbers=NHWC))
    return x


NHWC = ("NHWC", "HWIO", "NHWC")


def test_rows_of_a_large_convolution_are_not_summed(monkeypatch) -> None:
    params, batches = {"a": normal(0, 3, 3, 2, 4), "b": normal(1, 3, 3, 4, 2)}, [normal(2, 4, 6, 6, 2)]
    options = {"sparsity": 0.5, "target": "dense"}
    whole = jp.prune_sequential(convolve, params, batches, Grown(), **options).params
    monkeypatch.setattr(inputs, "_MAX_PATCHES", 600)
    parts = jp.prune_sequential(convolve, params, batches, Grown(), **options).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), parts, whole)


def route(params, x):
    """Tokens are sorted by their expert, which depends on what a pruned layer gives."""
    x = jnp.tanh(x @ params["a"])
    expert = jnp.argmax(x[:, :3], 1)
    order = jnp.argsort(expert)
    sizes = jnp.sum(expert[:, None] == jnp.arange(3)[None], 0, dtype=jnp.int32)
    return jax.lax.ragged_dot(x[order], params["experts"], sizes)


def test_rows_that_routing_moves_have_no_dense_partner() -> None:
    params, batches = {"a": normal(0, 8, 8), "experts": normal(1, 3, 8, 8)}, [normal(2, 64, 8)]
    one, other = (
        jp.prune_sequential(route, params, batches, Grown(), sparsity=0.5, target=target)
        for target in ("dense", "self")
    )
    np.testing.assert_allclose(one.params["experts"], other.params["experts"], rtol=1e-5)


def test_experts_without_tokens_are_pruned_by_magnitude() -> None:
    params, x, sizes = {"w": normal(0, 3, 8, 6)}, normal(1, 7, 8), jnp.array([3, 0, 4])

    def apply_fn(p, x, n):
        return jax.lax.ragged_dot(x, p["w"], n)

    plain = jp.prune_one_shot(apply_fn, params, [(x, sizes)], magnitude(group="row"), sparsity=0.5)
    for method in (wanda(), Grown()):
        found = jp.prune_one_shot(apply_fn, params, [(x, sizes)], method, sparsity=0.5)
        assert "1 of 3 saw no rows" in found.layers[0].note
        assert (found.masks["w"][0] != plain.masks["w"][0]).any()
        np.testing.assert_array_equal(found.masks["w"][1], plain.masks["w"][1])
        assert 0 < found.layers[0].error < 1


def test_admm_keeps_the_block_of_the_larger_norm() -> None:
    weights = jnp.array([[3.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]])  # of uncorrelated inputs: 9 against 4
    mask = jax.jit(lambda w, g: admm()(w, g, 0.5, jp.Block((4, 1)))[1])(weights, jnp.eye(8))
    assert mask.tolist() == [[True] * 4 + [False] * 4]


def test_sparsities_of_the_outer_of_two_loops() -> None:
    params, x = {"w": normal(0, 2, 3, 4, 4)}, normal(1, 8, 4)

    def net(p, x):
        def inner(x, ws):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], None

        return jax.lax.scan(inner, x, p["w"])[0]

    for prune in (jp.prune_one_shot, jp.prune_sequential):
        masks = prune(net, params, [x], wanda(), sparsity={"w": np.array([0.25, 0.75])}).masks["w"]
        np.testing.assert_allclose(1 - masks.mean((2, 3)), [[0.25] * 3, [0.75] * 3])


def test_layers_of_different_sparsity_compile_once() -> None:
    params, x = {f"w{k}": normal(k, 5, 5) for k in range(4)}, normal(9, 8, 5)

    def net(p, x):
        for w in p.values():
            x = jnp.tanh(x @ w)
        return x

    shares = {f"w{k}": share for k, share in enumerate((0.0, 0.2, 0.4, 0.6))}
    size = layer._prune._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before = size()
    for prune in (jp.prune_one_shot, jp.prune_sequential):
        found = prune(net, params, [x], wanda(), sparsity=shares)
        assert [report.sparsity for report in found.layers] == pytest.approx(list(shares.values()))
    assert size() == before + 1
