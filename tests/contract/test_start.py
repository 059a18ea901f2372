"""The start of training: scores that need gradients, masks that are given to a part of the parameters, packing."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.contract import helpers as h
from tests.draws import normal

PARAMS = {name: normal(i, 8, 16) for i, name in enumerate("ab")}
GRADS = jax.tree.map(jnp.cos, PARAMS)
RULES = [jp.Rule(pattern="a", score=jp.scores.saliency)]
SALIENCY: dict[str, Callable[[], jp.Pruner]] = {
    "gmp, in a rule": lambda: jp.pruners.gmp(0.5, begin=0, end=0, rules=RULES),
    "granet, in a rule": lambda: jp.pruners.granet(0.5, begin=0, end=0, drop_fraction=0.0, rules=RULES),
    "acdc, in a rule": lambda: jp.pruners.acdc(0.5, begin=0, end=0, every=1, rules=RULES),
    "ste": lambda: jp.pruners.ste(0.5, score=jp.scores.saliency),
    "ste, in a rule": lambda: jp.pruners.ste(0.5, rules=RULES),
    "top_kast": lambda: jp.pruners.top_kast(0.5, backward_sparsity=0.25, score=jp.scores.saliency),
}


@pytest.mark.parametrize("name", SALIENCY)
def test_scores_that_need_gradients_get_them_at_the_first_update(name: str) -> None:
    tx = jp.sparsify(optax.sgd(0.0), SALIENCY[name]())
    start = tx.init(PARAMS)
    assert jp.sparsity(jp.get_masks(start), PARAMS) == 0.0

    _, state = tx.update(GRADS, start, PARAMS)

    masks = jp.get_masks(state)
    expected = jp.compute_masks({"a": PARAMS["a"]}, 0.5, score=jp.scores.saliency, grads={"a": GRADS["a"]})
    assert jp.sparsity(masks, PARAMS) == 0.5
    assert bool((masks["a"] == expected["a"]).all())


@pytest.mark.parametrize("make", [jp.keep_masks, lambda m: jp.sparsify(optax.sgd(0.1), jp.pruners.static(masks=m))])
def test_given_masks_reach_the_part_of_a_partition(
    make: Callable[[dict[str, jax.Array]], optax.GradientTransformation],
) -> None:
    given = {"a": jnp.ones((8, 16), bool).at[0].set(False), "b": jnp.ones((8, 16), bool)}
    tx = optax.partition({"pruned": make(given), "free": optax.sgd(0.1)}, {"a": "pruned", "b": "free"})
    state = tx.init(PARAMS)
    updates, state = tx.update(GRADS, state, PARAMS)

    new = optax.apply_updates(PARAMS, updates)
    assert bool((new["a"][0] == 0).all()) and bool((new["b"] != 0).all())
    assert jax.tree.structure(optax.tree_utils.tree_map_params(tx, lambda x: x, state)) == jax.tree.structure(state)


def test_gradients_reach_the_part_of_a_partition() -> None:
    pruner = jp.pruners.static(0.5, score=jp.scores.saliency, grads=GRADS)
    tx = optax.partition(
        {"pruned": jp.sparsify(optax.sgd(0.1), pruner), "free": optax.sgd(0.1)}, {"a": "pruned", "b": "free"}
    )
    masks = jp.get_masks(tx.init(PARAMS), PARAMS)
    expected = jp.compute_masks({"a": PARAMS["a"]}, 0.5, score=jp.scores.saliency, grads={"a": GRADS["a"]})
    assert bool((masks["a"] == expected["a"]).all()) and bool(masks["b"].all())


def test_static_without_gradients_says_where_they_go() -> None:
    with pytest.raises(ValueError, match=r"saliency needs grads=.*jp\.pruners\.static"):
        jp.sparsify(optax.sgd(0.1), jp.pruners.static(0.5, score=jp.scores.saliency)).init(PARAMS)


INJECTED: dict[str, tuple[Callable[..., jp.Pruner], dict[str, float]]] = {
    "top_kast": (
        lambda sparsity, backward_sparsity, penalty: jp.pruners.top_kast(
            sparsity, backward_sparsity=backward_sparsity, penalty=penalty
        ),
        {"sparsity": 0.75, "backward_sparsity": 0.5, "penalty": 0.1},
    ),
    "sr_ste": (lambda decay: jp.pruners.sr_ste(0.5, decay=decay), {"decay": 0.1}),
    "soft_movement": (
        lambda threshold, penalty, rate: jp.pruners.soft_movement(threshold, penalty=penalty, learning_rate=rate),
        {"threshold": 0.5, "penalty": 0.1, "rate": 1.0},
    ),
    "rigl": (
        lambda fraction: jp.pruners.rigl(0.5, begin=0, every=1, end=4, drop_fraction=fraction),
        {"fraction": 0.3},
    ),
    "granet": (
        lambda fraction: jp.pruners.granet(0.5, begin=0, end=4, drop_fraction=fraction),
        {"fraction": 0.3},
    ),
}


@pytest.mark.parametrize("name", INJECTED)
def test_hyperparameters_of_pruners_can_be_injected(name: str) -> None:
    make, values = INJECTED[name]

    @functools.wraps(make)
    def transformation(**kw: float) -> optax.GradientTransformation:
        return jp.sparsify(optax.sgd(0.1), make(**kw), key=jax.random.key(0))

    injected = optax.inject_hyperparams(transformation)(**values)
    plain = transformation(**values)
    got, _ = jax.jit(injected.update)(GRADS, injected.init(PARAMS), PARAMS)
    want, _ = jax.jit(plain.update)(GRADS, plain.init(PARAMS), PARAMS)
    for leaf in PARAMS:
        np.testing.assert_allclose(got[leaf], want[leaf], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jp.pruners.sr_ste(0.5, decay=-0.1), r"decay=-0\.1"),
        (lambda: jp.pruners.top_kast(0.5, backward_sparsity=0.2, penalty=-1), "penalty=-1"),
        (lambda: jp.pruners.soft_movement(learning_rate=-1), "learning_rate=-1"),
        (lambda: jp.pruners.top_kast(0.5, backward_sparsity=0.6), r"backward_sparsity=0\.6 > sparsity=0\.5"),
        (lambda: jp.pruners.soft_movement(1.5), r"threshold=1\.5"),
    ],
)
def test_bad_hyperparameters(make: Callable[[], jp.Pruner], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_both_masks_of_top_kast_are_packed_and_learn_the_same() -> None:
    pruner = jp.pruners.top_kast(0.75, backward_sparsity=0.5)
    states, params = {}, {}
    for packed in (False, True):
        tx = jp.sparsify(optax.sgd(0.1), pruner, pack_masks=packed)
        states[packed] = tx.init(PARAMS)
        updates, states[packed] = tx.update(GRADS, states[packed], PARAMS)
        params[packed] = optax.apply_updates(PARAMS, updates)

    weights = sum(p.size for p in jax.tree.leaves(PARAMS))
    masks = (states[True].masks, states[True].pruner_state)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(masks)) == weights // 4
    assert all(bool((params[False][n] == params[True][n]).all()) for n in PARAMS)


FISHER: dict[str, Callable[[], jp.Pruner]] = {
    "gmp": lambda: jp.pruners.gmp(0.5, begin=0, end=0, score=jp.scores.fisher),
    "acdc": lambda: jp.pruners.acdc(0.5, begin=0, end=4, every=2, score=jp.scores.fisher),
    "ste": lambda: jp.pruners.ste(0.5, score=jp.scores.fisher),
    "top_kast": lambda: jp.pruners.top_kast(0.5, backward_sparsity=0.25, score=jp.scores.fisher),
}


@pytest.mark.parametrize("name", FISHER)
@pytest.mark.parametrize("inner", [optax.adam(0.0), optax.MultiSteps(optax.adam(0.0), 2).gradient_transformation()])
def test_the_fisher_score_takes_gradients_while_the_second_moment_is_empty(
    name: str, inner: optax.GradientTransformation
) -> None:
    params = {"w": jnp.array([[0.01, 0.02, 0.03, 0.04, 5.0, 6.0, 7.0, 8.0]])}
    tx = jp.sparsify(h.relaxed(inner), FISHER[name]())
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert jp.get_masks(state)["w"].tolist() == [[False] * 4 + [True] * 4]
