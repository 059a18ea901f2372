"""Moments, reading masks out of nested states, packing, and eager against compiled updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.contract import helpers as h

# The states of these hold moments that Optax tells to be like parameters; the others hold none, or factored ones.
WITH_MOMENTS = ["momentum", "adam", "adamw", "lion", "rmsprop", "lamb", "adabelief", "muon", "rprop", "adagrad"]


def bare(pruner: str, optimiser: str = "adam", **kwargs) -> optax.GradientTransformation:
    return h.build(h.Case(pruner, optimiser, "bare", "plain", "f32", False), **kwargs)


def kernel_leaves(state, shape=(16, 8)) -> list[jax.Array]:
    """All that a state holds for the kernel."""
    named = jax.tree_util.tree_leaves_with_path(state)
    return [leaf for path, leaf in named if "kernel" in jax.tree_util.keystr(path) and leaf.shape == shape]


PAIRS = [(h.ZEROED[i % len(h.ZEROED)], optimiser) for i, optimiser in enumerate(WITH_MOMENTS)]


@pytest.mark.parametrize(("pruner", "optimiser"), PAIRS)
def test_moments_of_pruned_weights_are_as_at_the_start(pruner: str, optimiser: str) -> None:
    run = h.train(bare(pruner, optimiser), h.initial_params(), h.STEPS)
    pruned = ~jp.get_masks(run.state)["layer"]["kernel"]
    moments = kernel_leaves(run.state.inner_state)
    assert moments
    for moment, first in zip(moments, kernel_leaves(run.first_state.inner_state), strict=True):
        np.testing.assert_allclose(moment[pruned], first[pruned], atol=1e-9)
        assert bool(jnp.any(moment[~pruned] != first[~pruned]))


@pytest.mark.parametrize("optimiser", WITH_MOMENTS)
def test_moments_of_pruned_and_grown_weights_are_reset(optimiser: str) -> None:
    """Moments of kept weights, whatever they were, do not outlive their pruning; grown weights start afresh."""
    params = h.initial_params()
    flip = jp.Pruner(
        init=lambda params, key: (jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 3 > 0, params), ()),
        is_update=lambda step: step == 0,
        update=lambda masks, state, context: (
            jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 4 > 0, masks),
            state,
        ),
    )
    tx = jp.sparsify(h.relaxed(h.OPTIMISERS[optimiser](0.1)), flip)
    state = tx.init(params)
    old = state.inner_state
    kept = state.masks["layer"]["kernel"]
    dirty = jax.tree.map(lambda x: jnp.where(kept, x + 7, x) if x.shape == kept.shape else x, old)
    grads = jax.grad(h.loss_fn)(params, jnp.float32(0))
    _, clean_after = jax.jit(tx.update)(grads, state, params)
    _, dirty_after = jax.jit(tx.update)(grads, state._replace(inner_state=dirty), params)
    changed = ~(kept & clean_after.masks["layer"]["kernel"])
    assert 0 < int(changed.sum()) < changed.size
    moments = kernel_leaves(dirty_after.inner_state)
    assert moments
    for moment, expected in zip(moments, kernel_leaves(clean_after.inner_state), strict=True):
        np.testing.assert_array_equal(moment[changed], expected[changed])


@pytest.mark.parametrize("pruner", h.PRUNERS)
def test_packed_masks_train_as_unpacked_ones(pruner: str) -> None:
    runs = [
        h.train(h.build(h.Case(pruner, "momentum", "bare", "plain", "f32", packed)), h.initial_params(), h.STEPS)
        for packed in (False, True)
    ]
    h.assert_same(runs[0].params, runs[1].params)
    h.assert_same(jp.get_masks(runs[0].state), jp.get_masks(runs[1].state, runs[1].params))
    packed = runs[1].state.masks["layer"]["kernel"]
    assert packed.dtype == jnp.uint8 and packed.size == h.KERNEL_SIZE // 8


@pytest.mark.parametrize("pruner", h.PRUNERS)
def test_eager_updates_equal_compiled_ones(pruner: str) -> None:
    tx = bare(pruner, "momentum")
    params = h.initial_params()
    run = h.train(tx, params, 3)
    state = tx.init(params)
    for i in range(3):
        _, grads = h.grads_at(params, state, jnp.float32(i) / 10)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    h.assert_same(jp.get_masks(state), jp.get_masks(run.state))
    for eager, compiled in h.pairs(params, run.params):
        np.testing.assert_allclose(eager, compiled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", h.PLACES)
def test_get_masks_finds_them_wherever_they_are(place: str) -> None:
    params = h.initial_params()
    tx = h.build(h.Case("static", "adam", place, "plain", "f32", False))
    state = tx.init(params)
    h.assert_target(jp.get_masks(state, params))
    assert jax.tree.structure(jp.get_masks(state, params)) == jax.tree.structure(params)


def test_get_masks_merges_the_parts_of_a_partition_and_nested_masks() -> None:
    params = h.initial_params()
    kernel, bias = jnp.arange(128).reshape(16, 8) % 2 == 0, jnp.arange(8) > 3
    masks = {"layer": {"kernel": kernel, "bias": bias}}
    tx = optax.partition(
        {
            "kernel": jp.sparsify(optax.sgd(0.1), jp.pruners.static(0.5), key=jax.random.key(0)),
            "other": optax.chain(optax.sgd(0.1), jp.keep_masks(masks)),
        },
        h.labels,
    )
    found = jp.get_masks(tx.init(params))
    assert int(found["layer"]["kernel"].sum()) == 64
    assert found["layer"]["bias"].tolist() == bias.tolist()

    nested = jp.sparsify(
        optax.chain(optax.sgd(0.1), jp.keep_masks(masks)), jp.pruners.static(0.5), key=jax.random.key(0)
    )
    state = nested.init(params)
    assert bool((jp.get_masks(state)["layer"]["kernel"] == (state.masks["layer"]["kernel"] & kernel)).all())


@pytest.mark.parametrize("around", ["chain", "masked", "partition", "MultiSteps", "apply_if_finite"])
@pytest.mark.parametrize("dtype", h.DTYPES)
def test_keep_masks_keeps(around: str, dtype: str) -> None:
    params = h.initial_params(h.DTYPES[dtype])
    masks = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 4 == 0, params)
    tx = h.relaxed(
        h.WRAPPERS[around](lambda lr: optax.chain(h.relaxed(optax.sgd(lr, momentum=0.9)), jp.keep_masks(masks)))
    )
    params = jp.apply_masks(params, masks)
    run = h.train(tx, params, 4)
    h.assert_zeros(run.params, jp.get_masks(run.state, run.params))
    assert bool((jp.get_masks(run.state, params)["layer"]["kernel"] == masks["layer"]["kernel"]).all())
    jp.check_masks(run.params, run.state)


@pytest.mark.parametrize("pruner", h.ZEROED)
def test_check_masks_finds_a_link_that_rescales_after(pruner: str) -> None:
    tx = optax.chain(bare(pruner, "momentum"), optax.scale(0.5))
    run = h.train(tx, h.initial_params(), h.STEPS)
    with pytest.raises(ValueError, match="rescales"):
        jp.check_masks(run.params, run.state)
