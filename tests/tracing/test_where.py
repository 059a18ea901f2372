"""A traced model as `where`: the leaves that feed dots and convolutions, in their true orientation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from tests.draws import normal


def forward(params, tokens):
    x = params["embedding"][tokens]  # (batch, features)
    x = jax.nn.relu(params["transposed"] @ x.T).T  # (out, in)
    x = jnp.einsum("bi,ihd->bhd", x, params["heads"])
    x = jnp.einsum("bhd,hdo->bo", x, params["merge"])
    return x * params["scale"][None] + params["table"].sum()


PARAMS = {
    name: normal(k, *shape)
    for k, (name, shape) in enumerate(
        {
            "embedding": (11, 8),
            "transposed": (12, 8),
            "heads": (12, 2, 4),
            "merge": (2, 4, 5),
            "scale": (5,),
            "table": (3, 3),
        }.items()
    )
}
MODEL = jp.trace(forward, PARAMS, jnp.zeros(3, int))


def test_prunes_exactly_what_feeds_dots() -> None:
    masks = jp.compute_masks(PARAMS, 0.5, where=MODEL)
    assert [name for name, mask in masks.items() if mask.ndim] == ["heads", "merge", "transposed"]


def test_n_of_m_runs_along_the_true_contraction_axis() -> None:
    masks = jp.compute_masks(PARAMS, None, structure=jp.NM(2, 4), where=MODEL)
    for name, axis in {"transposed": 1, "heads": 0, "merge": 1}.items():
        grouped = np.moveaxis(np.asarray(masks[name]), axis, -1)
        assert (grouped.reshape(-1, 4).sum(-1) == 2).all(), name


def test_an_axis_that_is_given_stays() -> None:
    masks = jp.compute_masks(
        PARAMS,
        None,
        structure=jp.NM(2, 4, axis=0),
        where=MODEL,
        rules=[jp.Rule(pattern="merge", sparsity=0.5, structure=jp.Unstructured())],
    )
    assert (np.asarray(masks["transposed"]).T.reshape(-1, 4).sum(-1) == 2).all()


def test_erk_uses_fan_in_and_fan_out() -> None:
    masks = jp.compute_masks(PARAMS, 0.6, allocation=jp.allocation.erk, where=MODEL)
    layouts = {"heads": (12, 8), "merge": (8, 5), "transposed": (8, 12)}
    density = {name: float(masks[name].mean()) for name in layouts}
    raw = {name: sum(layout) / np.prod(layout) for name, layout in layouts.items()}
    free = [name for name in layouts if density[name] < 1]
    assert len(free) >= 2
    ratios = [density[name] / raw[name] for name in free]
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.05)


def test_scan_stacks_and_windows_are_no_fans() -> None:
    def model(params, x):
        x = jax.lax.conv_general_dilated(x, params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["stack"])[0]

    params = {"kernel": jnp.ones((3, 4, 8)), "stack": jnp.ones((2, 8, 8))}
    traced = jp.trace(model, params, jnp.ones((2, 5, 4)))
    axes = traced.matrix_axes
    assert axes["kernel"].layout((3, 4, 8)) == (3, 4, 8)
    assert axes["kernel"].contract == (1,) and axes["kernel"].window == (0,)
    assert axes["stack"].layout((2, 8, 8)) == (8, 8)


def test_a_pruner_takes_a_trace() -> None:
    tx = jp.sparsify(optax.sgd(0.1, momentum=0.9), jp.pruners.sr_ste(None, structure=jp.NM(2, 4), where=MODEL))
    state = tx.init(PARAMS)
    grads = jax.grad(lambda p: jnp.sum(forward(p, jnp.arange(3)) ** 2))(PARAMS)
    _, state = tx.update(grads, state, PARAMS)
    masks = jp.get_masks(state, PARAMS)
    assert (np.asarray(masks["transposed"]).reshape(-1, 4).sum(-1) == 2).all()
    assert np.asarray(masks["embedding"]).all()
