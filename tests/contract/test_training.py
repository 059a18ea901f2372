"""Extra arguments, NaN gradients, N:M exchanges, and training that is interrupted."""

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxprune as jp
from tests.contract import helpers as h


def case(pruner: str, optimiser: str = "adam", place: str = "bare", packed: bool = False) -> h.Case:
    return h.Case(pruner, optimiser, place, "plain", "f32", packed)


@pytest.mark.parametrize("pruner", h.PRUNERS)
def test_extra_arguments_reach_the_inner_optimiser(pruner: str) -> None:
    seen = {}

    def update(updates, state, params=None, *, signal, **extra):
        seen.update(extra, params=params)
        return jax.tree.map(lambda u: signal * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = optax.chain(jp.sparsify(inner, h.PRUNERS[pruner](), key=jax.random.key(0)))
    params = h.initial_params()
    grads = jax.grad(h.loss_fn)(params, jnp.float32(0))
    out = {}
    for signal in (0.0, 1.0):
        updates, state = tx.update(grads, tx.init(params), params, signal=jnp.float32(signal), other=3)
        out[signal] = updates["layer"]["bias"]
        kept = jp.get_masks(state)["layer"]["bias"]
        assert bool(kept.all())
    assert seen["other"] == 3 and seen["params"] is not None
    assert bool((out[0.0] != out[1.0]).any())


@pytest.mark.parametrize("pruner", ["ste", "static"])
def test_line_searches_get_value_gradient_and_function(pruner: str) -> None:
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=3)
    inner = h.relaxed(optax.lbfgs(None, memory_size=2, linesearch=search))
    tx = jp.sparsify(inner, h.PRUNERS[pruner](), key=jax.random.key(0))
    run = h.train(tx, h.initial_params(), h.STEPS)
    masks = jp.get_masks(run.state)
    h.assert_target(masks)
    h.assert_zeros(jp.sparse_params(run.params, run.state), masks)


def test_nnx_optimizer_forwards_extra_arguments() -> None:
    model = h.Net(h.initial_params())
    inner = h.relaxed(optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(max_backtracking_steps=3)))
    optimizer = nnx.Optimizer(model, jp.sparsify(inner, h.PRUNERS["ste"]()), wrt=nnx.Param)

    def loss(params):
        return h.loss_fn(nnx.as_pure(params), jnp.float32(0))

    value, grads = jax.value_and_grad(loss)(nnx.state(model, nnx.Param))
    pure = nnx.as_pure(grads)
    before = float(value)
    optimizer.update(model, grads, value=value, grad=pure, value_fn=loss)
    assert float(loss(nnx.state(model, nnx.Param))) < before


@pytest.mark.parametrize("optimiser", h.OPTIMISERS)
def test_nan_gradient_of_a_pruned_weight_does_not_spread(optimiser: str) -> None:
    params = h.initial_params()
    tx = h.build(case("static", optimiser))
    state = tx.init(params)
    masks = state.masks
    update = jax.jit(tx.update)
    for _ in range(2):
        _, grads = h.grads_at(params, state, jnp.float32(0))
        grads = jax.tree.map(lambda g, m: jnp.where(m, g, jnp.nan), grads, masks)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    h.assert_zeros(params, masks)
    for leaf in jax.tree.leaves(state.inner_state):
        assert bool(jnp.isfinite(leaf).all())


@pytest.mark.parametrize("pruner", [name for name in h.ZEROED if name != "granet"])
def test_nan_at_a_pruned_weight_does_not_spread(pruner: str) -> None:
    """After the last mask update; before it, a NaN gradient ranks highest where masks follow gradients."""
    tx = h.build(case(pruner))
    run = h.train(tx, h.initial_params(), h.STEPS)
    masks = jp.get_masks(run.state)
    nan = jax.tree.map(lambda p, m: jnp.where(m, 0.1, jnp.nan).astype(p.dtype), run.params, masks)
    updates, state = tx.update(nan, run.state, run.params)
    h.assert_zeros(optax.apply_updates(run.params, updates), masks)
    h.assert_same(jp.get_masks(state), masks)


def groups_kept(mask: jax.Array) -> set[int]:
    """How many weights are kept in the groups of four along the first axis."""
    return {int(n) for n in mask.reshape(4, 4, 8).sum(axis=1).ravel()}


@pytest.mark.parametrize("pruner", [name for name in h.PRUNERS if name not in ("top_kast", "soft_movement")])
def test_n_of_m_pattern_holds(pruner: str) -> None:
    tx = h.build(case(pruner, "momentum"), s=None, structure=jp.NM(2, 4, axis=0))
    step, _ = h.make_step(tx)
    params = h.initial_params()
    state = tx.init(params)
    seen = set()
    for i in range(h.STEPS):
        params, state = step(params, state, jnp.float32(i) / 10)
        mask = jp.get_masks(state)["layer"]["kernel"]
        # Masks keep everything before the first update, and in the dense phases of AC/DC.
        assert groups_kept(mask) in ({2}, {4})
        seen.add(mask.tobytes() if hasattr(mask, "tobytes") else bytes(mask))
    assert groups_kept(mask) == {2}
    if pruner in ("rigl", "set_"):
        assert len(seen) > 1, "the exchange moved nothing"


@pytest.mark.parametrize(
    ("pruner", "place"),
    [(name, h.PLACES[(3 * i + 1) % len(h.PLACES)]) for i, name in enumerate(h.PRUNERS)] + [("set_", "bare")],
)
def test_interrupted_training_equals_uninterrupted(pruner: str, place: str, tmp_path) -> None:
    made = case(pruner, "adam", place, packed=pruner in ("rigl", "ste"))
    steps, half = made.steps, made.steps // 2
    tx = h.build(made)
    step, _ = h.make_step(tx)

    def go_on(params, state, steps):
        for i in steps:
            params, state = step(params, state, jnp.float32(i) / 10)
        return params, state

    params = h.initial_params()
    first = {"params": params, "state": tx.init(params)}
    middle = dict(zip(("params", "state"), go_on(*map(h.copy, first.values()), range(half)), strict=True))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "middle", middle)
        checkpointer.wait_until_finished()
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, first)
        restored = checkpointer.restore(tmp_path / "middle", target)
    h.assert_same(restored, middle)
    left = go_on(*map(h.copy, middle.values()), range(half, steps))
    right = go_on(*map(h.copy, restored.values()), range(half, steps))
    h.assert_same(left, right)
