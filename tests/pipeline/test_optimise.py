import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.pipeline.optimise import Checkpoints
from tests.pipeline import toy

PARAMS = toy.init(jax.random.key(0))
BATCHES = toy.batches()


def optimise(**options):
    arguments = {"tx": toy.TX, "steps": 20} | options
    return jp.pipeline.optimise(toy.apply_fn, PARAMS, toy.loss_fn, BATCHES, **arguments)


def test_dense_training_is_a_plain_loop():
    params, state = PARAMS, toy.TX.init(PARAMS)
    losses = []
    for step in range(20):
        inputs, targets = BATCHES[step % len(BATCHES)]
        loss, grads = jax.value_and_grad(lambda p, x=inputs, y=targets: toy.loss_fn(toy.apply_fn(p, x), y))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = toy.TX.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    made = optimise()
    chex.assert_trees_all_close(made.params, params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.losses, losses, rtol=1e-4)
    assert all(mask.shape == () and mask for mask in jax.tree.leaves(made.masks))


def test_the_given_parameters_stay_usable():
    optimise(steps=1)
    assert float(PARAMS["up"]["bias"].sum()) == 0.0  # a donated array would raise


@pytest.mark.parametrize("make", [optax.contrib.prodigy, optax.contrib.dowg])
def test_what_an_optimiser_keeps_is_a_copy(make):
    """These hold the first parameters in their state, which is donated."""
    params = toy.init(jax.random.key(0))
    jp.pipeline.optimise(toy.apply_fn, params, toy.loss_fn, BATCHES, tx=make(), steps=2)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_masks_hold():
    masks = jp.compute_masks(PARAMS, 0.75)
    made = optimise(masks=masks)
    zeros = [int((leaf == 0).sum()) if leaf.ndim > 1 else 0 for leaf in jax.tree.leaves(made.params)]
    kept = [
        int((~np.broadcast_to(m, p.shape)).sum()) for m, p in zip(*map(jax.tree.leaves, (masks, PARAMS)), strict=True)
    ]
    assert zeros == kept
    assert made.losses[-1] < made.losses[0]


def test_a_pruner_ends_at_its_sparsity():
    made = optimise(pruner=jp.pruners.gmp(0.5, begin=2, end=15))
    assert jp.sparsity({"k": made.masks["up"]["kernel"]}, {"k": PARAMS["up"]["kernel"]}) == 0.5


def test_straight_through_returns_sparse_parameters():
    made = optimise(pruner=jp.pruners.ste(0.5))
    assert int((made.params["up"]["kernel"] == 0).sum()) == 64
    assert int((made.state.params["up"]["kernel"] == 0).sum()) < 64


def test_a_teacher_is_matched():
    teacher = toy.init(jax.random.key(7))

    def distance(params):
        return float(jnp.mean(jnp.square(toy.apply_fn(params, BATCHES[0][0]) - toy.apply_fn(teacher, BATCHES[0][0]))))

    alone, taught = optimise(steps=60), optimise(steps=60, teacher=(toy.apply_fn, teacher), distillation=100.0)
    assert distance(taught.params) < 0.2 * distance(alone.params)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    pruner = jp.pruners.rigl(0.5, every=3, end=15)
    checkpoints = Checkpoints(tmp_path, 4)
    whole = optimise(pruner=pruner, key=jax.random.key(1))
    seen = []

    def stopping(step):
        seen.append(step)
        if len(seen) == 11:
            raise KeyboardInterrupt
        return BATCHES[step % len(BATCHES)]

    with pytest.raises(KeyboardInterrupt):
        jp.pipeline.optimise(
            toy.apply_fn, PARAMS, toy.loss_fn, stopping, tx=toy.TX, steps=20, pruner=pruner, key=jax.random.key(1),
            checkpoints=checkpoints,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["step-8"]
    resumed = optimise(pruner=pruner, key=jax.random.key(1), checkpoints=checkpoints)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    assert np.isnan(resumed.losses[:7]).all()
    np.testing.assert_array_equal(resumed.losses[7:], whole.losses[7:])
    # Whoever was killed after the last step still has the last loss.
    again = optimise(pruner=pruner, key=jax.random.key(1), checkpoints=checkpoints)
    assert again.losses[-1] == whole.losses[-1] and again.losses.shape == (20,)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="both masks and a pruner"):
        optimise(masks=True, pruner=jp.pruners.gmp(0.5, begin=0, end=1))
    with pytest.raises(ValueError, match="steps=-1"):
        optimise(steps=-1)
    with pytest.raises(ValueError, match="checkpoint_every=0: give at least 1 step"):
        optimise(checkpoints=Checkpoints(tmp_path, 0))
    with pytest.raises(TypeError, match="step is int32: gradients are taken of every parameter"):
        jp.pipeline.optimise(
            toy.apply_fn, PARAMS | {"step": jnp.zeros((), jnp.int32)}, toy.loss_fn, BATCHES, tx=toy.TX, steps=1
        )


def test_batches():
    read = jp.pipeline.batch_at
    assert read([(1, 2), (3, 4)])(5) == (3, 4)
    assert read(lambda step: (step, -step))(5) == (5, -5)
    with pytest.raises(TypeError, match="generator"):
        read(pair for pair in BATCHES)  # pyright: ignore
    with pytest.raises(TypeError, match=r"step 0 is tuple of 3; a pair"):
        read([(1, 2, 3)])(0)  # pyright: ignore
    with pytest.raises(ValueError, match="empty"):
        read([])
