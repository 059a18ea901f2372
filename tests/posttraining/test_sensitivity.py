"""`layer_sensitivity` against `prune_one_shot`, and `sensitivity_allocation` against uniform sparsity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining import wanda
from jaxprune.posttraining.sensitivity import Sensitivity, _hull, layer_sensitivity, sensitivity_allocation
from tests.posttraining.layers import Grown


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3 + seed, size=shape).astype(np.float32)


PARAMS = {"a": draw(0, 16, 16), "b": draw(1, 16, 16), "stack": draw(2, 3, 16, 16)}
X = draw(3, 60, 16) * np.linspace(0.1, 3, 16, dtype=np.float32)


def net(params, x):
    x = jnp.tanh(jnp.tanh(x @ params["a"] / 3) @ params["b"])
    return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["stack"])[0]


MODEL = jp.trace(net, PARAMS, X)
STATS = jp.calibrate(net, PARAMS, [X], jp.stats.gram)
POINTS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


METHOD = Grown()


def test_errors_are_those_of_pruning() -> None:
    table = layer_sensitivity(MODEL, PARAMS, STATS, METHOD, sparsities=POINTS[::-1])
    assert table.sparsities == POINTS and table.sizes == {"a": 256, "b": 256, "stack": 256}
    for report in jp.prune_one_shot(net, PARAMS, [X], METHOD, sparsity=0.6, stats=STATS).layers:
        energy, error = table.energies[report.name], table.errors[report.name][..., 3]
        together = np.sqrt(np.sum(np.square(error) * energy) / np.sum(energy))
        np.testing.assert_allclose(together, report.error, rtol=2e-3)
    assert len(table.rows()) == 5 and "stack[2]" in str(table)


def total_loss(table, shares, relative: bool) -> float:
    """Measured, not read off the curves; at as many sparsities as the table has, so that nothing is compiled."""
    lost = 0.0
    for name, index in table.layers():
        share = float(np.asarray(shares[name])[index])
        some = sorted({share, *(POINTS if share in POINTS else POINTS[:6])})
        one = layer_sensitivity(MODEL, PARAMS, STATS, METHOD, sparsities=some, where=[name])
        scale = 1 if relative else table.energies[name][index]
        lost += float(one.errors[name][index][some.index(share)] ** 2 * scale)
    return lost


def test_allocation_is_no_worse_than_uniform() -> None:
    table = layer_sensitivity(MODEL, PARAMS, STATS, METHOD, sparsities=POINTS)
    uniform = {name: np.full(energy.shape, 0.6) for name, energy in table.energies.items()}
    for relative in (True, False):
        found = sensitivity_allocation(table, 0.6, relative=relative)
        weights = sum(np.sum(found[name]) * size for name, size in table.sizes.items())
        assert weights == pytest.approx(0.6 * sum(leaf.size for leaf in PARAMS.values()))

        assert total_loss(table, found, relative) <= total_loss(table, uniform, relative)


def test_hull() -> None:
    assert _hull(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 3.0, 2.0, 9.0])) == [0, 2, 3]
    assert _hull(np.array([0.0, 1.0]), np.array([0.0, 0.0])) == [0, 1]


def test_errors() -> None:
    with pytest.raises(ValueError, match="fixes the sparsity"):
        layer_sensitivity(MODEL, PARAMS, STATS, wanda(), structure=jp.NM(2, 4))
    with pytest.raises(ValueError, match="sparsities is empty"):
        layer_sensitivity(MODEL, PARAMS, STATS, wanda(), sparsities=())
    table = Sensitivity((0.5,), {"a": np.array([0.1])}, {"a": np.array(1.0)}, {"a": 4})
    with pytest.raises(ValueError, match=r"above the last of the table, 0\.5"):
        sensitivity_allocation(table, 0.6)
