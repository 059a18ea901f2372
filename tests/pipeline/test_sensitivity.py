"""`sensitivity` and `ablation` against plain loops over masks that other parts of the package make."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.pipeline.ablation import ablation
from jaxprune.pipeline.sensitivity import LossSensitivity, sensitivity

POINTS = (0.5, 0.75, 0.9)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {
    "a": {"kernel": draw(0, 8, 12), "bias": draw(1, 12)},
    "stack": draw(2, 3, 12, 12),
    "out": draw(3, 12, 4),
    "step": np.array(7, np.int32),
}
BATCHES = [(draw(k, 10, 8), draw(k + 50, 10, 4)) for k in (10, 11)]


def apply_fn(params, x):
    x = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["stack"])
    return x @ params["out"]


def loss_fn(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


LOSS = jax.jit(lambda params, x, y: loss_fn(apply_fn(params, x), y))


def mean_loss(params) -> float:
    return float(np.mean([float(LOSS(params, x, y)) for x, y in BATCHES]))


@pytest.mark.parametrize("structure", [jp.Unstructured(), jp.Block((4, 4)), jp.Channel()])
def test_losses_are_those_of_a_plain_loop(structure) -> None:
    table = sensitivity(apply_fn, PARAMS, loss_fn, BATCHES, sparsities=POINTS[::-1], structure=structure)
    assert table.sparsities == POINTS and list(table.losses) == ["a/kernel", "out", "stack"]
    assert table.sizes == {"a/kernel": 96, "out": 48, "stack": 432}
    assert table.dense == pytest.approx(mean_loss(PARAMS), rel=1e-5)
    for path in table.losses:
        for share, loss in zip(POINTS, table.losses[path], strict=True):
            masks = jp.compute_masks(PARAMS, None, allocation=share, structure=structure, where=path)
            assert loss == pytest.approx(mean_loss(jp.apply_masks(PARAMS, masks)), rel=1e-5)
            assert table.changes()[path, share] == loss - table.dense
    assert "stack" in str(table) and f"{table.losses['out'][1]:.4f}" in str(table)


def test_scores_get_what_they_need() -> None:
    grads = jax.tree.map(lambda leaf: draw(4, *leaf.shape), PARAMS)
    table = sensitivity(
        apply_fn, PARAMS, loss_fn, BATCHES, sparsities=(0.5,), score=jp.scores.saliency, grads=grads, where="out"
    )
    masks = jp.compute_masks(PARAMS, 0.5, score=jp.scores.saliency, grads=grads, where="out")
    assert list(table.losses) == ["out"]
    assert table.losses["out"][0] == pytest.approx(mean_loss(jp.apply_masks(PARAMS, masks)), rel=1e-5)
    random = [
        sensitivity(
            apply_fn,
            PARAMS,
            loss_fn,
            BATCHES[:1],
            sparsities=(0.5,),
            score=jp.scores.random,
            key=jax.random.key(k),
            where="out",
        ).losses["out"][0]
        for k in (0, 0, 1)
    ]
    assert random[0] == random[1] != random[2]


def test_one_compilation() -> None:
    traced: Any = chex.assert_max_traces(apply_fn, 1)
    assert sensitivity(traced, PARAMS, loss_fn, BATCHES, sparsities=POINTS).dense > 0


def test_allocation_meets_the_budget_and_beats_uniform() -> None:
    params = {"weak": PARAMS["out"] * np.float32(0.01), "strong": draw(5, 12, 4)}

    def two(params, x):
        return x @ params["weak"] + x @ params["strong"]

    inputs = draw(6, 30, 12)
    batches = [(inputs, two(params, inputs))]
    table = sensitivity(two, params, loss_fn, batches, sparsities=(0.25, 0.5, 0.75, 0.9))
    shares = table.allocation(0.5)
    assert shares["weak"] > 0.5 > shares["strong"]
    masks = jp.compute_masks(params, None, allocation=shares)
    assert abs(sum(int(m.sum()) for m in jax.tree.leaves(masks)) - 48) <= 1

    def lost(masks) -> float:
        x, y = batches[0]
        return float(loss_fn(two(jp.apply_masks(params, masks), x), y))

    assert lost(masks) < lost(jp.compute_masks(params, 0.5))


def test_allocation_fits_the_whole_tree() -> None:
    table = sensitivity(apply_fn, PARAMS, loss_fn, BATCHES, sparsities=POINTS, where=["out", "stack"])
    shares = table.allocation(0.6)
    assert shares["a"] == {"kernel": 0.0, "bias": 0.0} and shares["step"] == 0
    assert shares["out"] * 48 + shares["stack"] * 432 == pytest.approx(0.6 * 480)
    masks = jp.compute_masks(PARAMS, None, allocation=shares, where=["out", "stack"])
    assert jp.sparsity(masks, PARAMS, per_leaf=True)["stack"] == pytest.approx(shares["stack"], abs=2e-3)


def test_decreases_and_infinities() -> None:
    losses = {"a": np.array([0.5, 0.5]), "b": np.array([1.2, np.inf]), "c": np.array([1.1, np.nan])}
    treedef = jax.tree.structure(dict.fromkeys("abc", 0))
    shares = LossSensitivity((0.4, 0.8), 1.0, losses, dict.fromkeys("abc", 10), treedef).allocation(0.5)
    assert shares["a"] == 0.8 and shares["c"] == pytest.approx(0.4) and shares["b"] == pytest.approx(0.3)


def network(params, x):
    x = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jax.nn.sigmoid(x + params["bias"][None, None, None])
    x = jnp.tanh(x.reshape(x.shape[0], -1) @ params["dense"])
    return x @ params["out"]


def test_ablation_is_that_of_the_plan_and_of_removal() -> None:
    params = {"conv": draw(0, 3, 3, 2, 5), "bias": draw(1, 5), "dense": draw(2, 80, 6), "out": draw(3, 6, 4)}
    x, y = draw(4, 3, 4, 4, 2), draw(5, 3, 4)
    model = jp.trace(network, params, x)
    generator = np.random.default_rng(0)
    assert len(model.groups) == 2
    plans = [jp.Plan({name: np.arange(group.size) != 1}) for name, group in model.groups.items()]
    plans.append(jp.Plan({name: generator.permutation(g.size) > 1 for name, g in model.groups.items()}))
    once: Any = chex.assert_max_traces(network, 1)
    found = ablation(once, params, loss_fn, [(x, y)], model, plans)
    run = jax.jit(lambda params: loss_fn(network(params, x), y))
    dense = float(run(params))
    for plan, change in zip(plans, found, strict=True):
        masks = plan.masks(model, consumers_only=True)
        # Masks of one shape, so that the oracle compiles once.
        masked = jax.tree.map(lambda leaf, mask: np.where(np.broadcast_to(mask, leaf.shape), leaf, 0), params, masks)
        assert change == pytest.approx(float(run(masked)) - dense, abs=1e-5) and change != 0
    shrunk = jp.shrunk_function(model, plans[-1])(jp.shrink(model, plans[-1], params), x)
    assert found[-1] == pytest.approx(float(loss_fn(shrunk, y)) - dense, abs=1e-4)


def test_errors() -> None:
    with pytest.raises(ValueError, match="fixes the sparsity"):
        sensitivity(apply_fn, PARAMS, loss_fn, BATCHES, structure=jp.NM(2, 4))
    with pytest.raises(ValueError, match="sparsities is empty"):
        sensitivity(apply_fn, PARAMS, loss_fn, BATCHES, sparsities=())
    with pytest.raises(ValueError, match=r"sparsities=1\.0"):
        sensitivity(apply_fn, PARAMS, loss_fn, BATCHES, sparsities=(1.0,))
    with pytest.raises(ValueError, match="batches is empty"):
        sensitivity(apply_fn, PARAMS, loss_fn, [])
    inputs: Any = [BATCHES[0][0]]
    with pytest.raises(TypeError, match=r"batches\[0\] is of type"):
        sensitivity(apply_fn, PARAMS, loss_fn, inputs)
    with pytest.raises(ValueError, match=r"loss_fn gives shape \(10, 4\)"):
        sensitivity(apply_fn, PARAMS, lambda outputs, targets: outputs - targets, BATCHES)
    with pytest.raises(ValueError, match="needs grads"):
        sensitivity(apply_fn, PARAMS, loss_fn, BATCHES, score=jp.scores.saliency)
    table = sensitivity(apply_fn, PARAMS, loss_fn, BATCHES, sparsities=(0.5,), where="out")
    with pytest.raises(ValueError, match="above the last"):
        table.allocation(0.6)
