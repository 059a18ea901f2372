"""What every method promises: exact counts, exact zeros, stacks of layers, traced sparsities, sharded rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxprune as jp
from jaxprune.posttraining import (
    Method,
    admm,
    alps,
    dsnot,
    refit,
    repaired,
    ria,
    sparsegpt,
    wanda,
)
from jaxprune.posttraining._choice import choose
from tests.posttraining.layers import GRAM, INPUTS, OUT, WEIGHTS, K, prune

METHODS = {
    "sparsegpt": sparsegpt(block_size=16),
    "refit": repaired(wanda(), refit(iterations=5)),
    "admm": admm(),
    "alps": alps(),
    "dsnot": dsnot(ria(group="row")),
}
SPARSITIES = np.array([0.5, 0.7], np.float32)


def stat_of(method: Method) -> Any:
    return method.stat(jnp.asarray(INPUTS), None)


def assert_close(found, expected):
    (weights, mask, info), (want_weights, want_mask, want_info) = jax.device_get(found), expected
    np.testing.assert_array_equal(mask, want_mask)
    np.testing.assert_allclose(weights, want_weights, rtol=2e-3, atol=2e-5)
    assert {k: v.dtype for k, v in info.items()} == {k: v.dtype for k, v in want_info.items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_stack_of_layers_with_sparsities_of_their_own(name):
    method = METHODS[name]
    assert isinstance(method, Method) and hash(method) == hash(METHODS[name])
    weights = jnp.stack([WEIGHTS, WEIGHTS[::-1]])
    stat = jax.tree.map(lambda a: jnp.stack([a, a]), stat_of(method))
    together = jax.jit(jax.vmap(lambda w, g, s: method(w, g, s, jp.Unstructured())))
    found, masks, info = jax.device_get(together(weights, stat, SPARSITIES))
    assert found.dtype == np.float32 and masks.dtype == bool and (found[~masks] == 0).all()
    assert info["damping"].dtype == np.float32 and not info["fallback"].any()
    for i, sparsity in enumerate(SPARSITIES):
        if name in ("refit", "dsnot"):
            assert (masks[i].sum(1) == round((1 - float(sparsity)) * K)).all()
        else:
            assert masks[i].sum() == round((1 - float(sparsity)) * masks[i].size)
        alone = prune(method, weights[i], jax.tree.map(lambda a: a[0], stat), sparsity)
        assert_close(jax.tree.map(lambda a, i=i: a[i], (found, masks, info)), alone)


# Those whose N:M has code of its own; the others share `choose`.
@pytest.mark.parametrize("name", ["sparsegpt", "admm"])
def test_n_m_and_its_dense_remainder(name):
    weights, mask, _ = prune(METHODS[name], WEIGHTS, GRAM, 0.5, jp.NM(2, 4))
    assert (mask[:, :44].reshape(OUT, 11, 4).sum(2) == 2).all()
    assert mask[:, 44:].all()
    assert (weights[~mask] == 0).all() and (weights[mask] != 0).all()


@pytest.mark.parametrize("method", [wanda(), METHODS["sparsegpt"]])
def test_blocks_are_inputs_by_outputs(method):
    mask = prune(method, WEIGHTS, GRAM, 0.5, jp.Block((23, 4)))[1]
    tiles = mask.reshape(OUT // 4, 4, 2, 23).sum((1, 3))
    assert set(tiles.reshape(-1)) == {0, 92}
    assert (tiles == 92).sum() == tiles.size // 2


@pytest.mark.parametrize(("sparsity", "group"), [(0.3, "row"), (0.5, "layer"), (0.7, 7), (0.99, 100)])
def test_groups_against_a_sort(sparsity, group):
    scores = np.random.default_rng(0).permutation(OUT * K).reshape(OUT, K).astype(np.float32)
    size = {"row": 1, "layer": OUT}.get(group, group)
    want = np.zeros_like(scores, bool)
    for first in range(0, OUT, size):
        part = scores[first : first + size]
        count = max(round((1 - sparsity) * part.size), 1)
        want[first : first + size] = part >= np.sort(part, axis=None)[-count]

    @jax.jit
    def both(s):
        return [choose(jnp.asarray(scores), given, jp.Unstructured(), group) for given in (sparsity, s)]

    for found in both(sparsity):
        np.testing.assert_array_equal(found, want)


KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sparsegpt", "auto"), ("sparsegpt", "explicit"), ("refit", "explicit"), ("alps", "explicit"), ("dsnot", "auto")],
)
def test_rows_over_devices(name, kind):
    method = METHODS[name]
    stat = stat_of(method)
    # ALPS turns a difference in the last bit into another mask; sums round alike from this level of compilation on.
    options: Any = {"xla_backend_optimization_level": 1}
    compiled = jax.jit(lambda w, g: method(w, g, 0.5, jp.Unstructured()), compiler_options=options)
    expected = compiled(WEIGHTS, stat)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(KINDS[kind],))
    with jax.set_mesh(mesh):
        rows = jax.device_put(WEIGHTS, NamedSharding(mesh, PartitionSpec("x", None)))
        whole = jax.device_put(jax.device_get(stat), NamedSharding(mesh, PartitionSpec()))
        found = compiled(rows, whole)
    assert found[0].sharding.is_equivalent_to(rows.sharding, 2)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("structure", "sparsity", "words"),
    [
        (jp.NM(2, 4), 0.6, "sparsity=0.6 with NM"),
        (jp.NM(2, 4, axis=-2), None, "groups of a matrix"),
        (jp.Block((2, 2, 2)), 0.5, "two sizes"),
        (jp.Block((2, 2), axes=(0, 1)), 0.5, "no axes"),
        (jp.Channel(), 0.5, "allowed are"),
        (jp.Unstructured(), None, "sparsity=None"),
        (jp.Unstructured(), 1.0, "sparsity=1.0"),
        (jp.NM(2, 4, strict=True), 0.5, "not divisible by 4"),
    ],
)
def test_what_a_matrix_cannot_have(structure, sparsity, words):
    for method in (wanda(), sparsegpt()):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(lambda w, g, m=method: m(w, g, sparsity, structure), WEIGHTS, GRAM)


def test_options_that_make_no_sense():
    for make, words in [
        (lambda: wanda(group="column"), "group='column'"),
        (lambda: wanda(group=0), "group=0"),
        (lambda: sparsegpt(damping=-1.0), "damping=-1.0"),
        (lambda: refit(iterations=0), "iterations=0"),
        (lambda: admm(iterations=3), "iterations=3"),
        (lambda: ria(power=-1), "power=-1"),
        (lambda: dsnot(tolerance=-1), "tolerance=-1"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(ValueError, match="vmap over a stack"):
        sparsegpt()(jnp.asarray(WEIGHTS), jnp.ones(K), 0.5, jp.Unstructured())
    with pytest.raises(ValueError, match="vmap over a stack"):
        wanda()(jnp.asarray(WEIGHTS), jnp.ones((2, K)), 0.5, jp.Unstructured())
    with pytest.raises(ValueError, match="single weights"):
        dsnot()(jnp.asarray(WEIGHTS), stat_of(dsnot()), 0.5, jp.Block((2, 2)))
