"""`shrink` on all that is shaped like parameters: masks, moments, averages, in any container, sharded or not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxprune as jp
from tests.shrinking.small import PLAN, SHAPES, assert_equal, by_hand, inputs, mlp, mlp_model, mlp_params
from tests.zoo.models._model import Draw

PARAMS, MODEL = mlp_params(), mlp_model()


def filled(tx, params=PARAMS):
    """A state of an optimiser with random numbers in it; NumPy draws, so that nothing is compiled."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), jax.eval_shape(tx.init, params))


def test_parameters() -> None:
    small = jp.shrink(MODEL, PLAN, PARAMS)
    assert_equal(small, by_hand(PARAMS))
    assert jax.tree.map(jnp.shape, small) == SHAPES


def test_what_is_not_cut_is_the_same_object() -> None:
    tree = {"params": PARAMS, "count": jnp.zeros((), jnp.int32), "key": jax.random.key(0), "rate": 0.1, "none": None}
    small = jp.shrink(MODEL, PLAN, tree)
    assert small["params"]["third"]["bias"] is PARAMS["third"]["bias"]
    assert all(small[name] is tree[name] for name in ("count", "key", "rate", "none"))


def test_dtype_is_kept() -> None:
    params = mlp_params(jnp.bfloat16)
    assert_equal(jp.shrink(mlp_model(jnp.bfloat16), PLAN, params), by_hand(params))
    assert_equal(jp.shrink(MODEL, PLAN, params), by_hand(params))  # moments may be narrower than parameters


def test_numpy_and_abstract_trees() -> None:
    small = jp.shrink(MODEL, PLAN, jax.tree.map(np.asarray, PARAMS))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(small))
    assert_equal(small, by_hand(PARAMS))
    abstract = jp.shrink(MODEL, PLAN, jax.eval_shape(lambda: PARAMS))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))
    assert jax.tree.map(lambda leaf: leaf.shape, abstract) == SHAPES


def test_under_jit() -> None:
    assert_equal(jax.jit(lambda p: jp.shrink(MODEL, PLAN, p))(PARAMS), by_hand(PARAMS))


def test_masks_full_broadcastable_and_scalar() -> None:
    full = jax.tree.map(lambda p: p > 0, PARAMS)
    assert_equal(jp.shrink(MODEL, PLAN, full), by_hand(full))
    small = jp.shrink(
        MODEL,
        PLAN,
        {
            "first": {"kernel": jnp.arange(8)[None] > 1, "bias": True},
            "second": {"kernel": jnp.arange(8)[:, None] > 1, "bias": np.bool_(True)},
            "third": {"kernel": jnp.ones((), bool), "bias": jnp.ones(3, bool)},
        },
    )
    assert small["first"]["kernel"].tolist() == [[False, True, True, True, True]]  # 1, 2, 4, 5, 7 stay
    assert small["second"]["kernel"].shape == (5, 1)
    assert small["first"]["bias"] is True and small["third"]["kernel"].shape == ()


MOMENTS = {
    "momentum": (optax.sgd(0.1, momentum=0.9), lambda s: [s[0].trace]),
    "adam": (optax.adam(0.1), lambda s: [s[0].mu, s[0].nu]),
    "chain": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1)),
        lambda s: [s[1][0].mu, s[1][0].nu],
    ),
    "MultiSteps": (
        optax.MultiSteps(optax.adamw(0.1), 3),
        lambda s: [s.inner_opt_state[0].mu, s.inner_opt_state[0].nu, s.acc_grads],
    ),
    "inject_hyperparams": (
        optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
        lambda s: [s.inner_state[0].mu, s.inner_state[0].nu],
    ),
    "ema": (optax.chain(optax.sgd(0.1), optax.ema(0.9)), lambda s: [s[1].ema]),
    "unfactored adafactor": (optax.adafactor(0.1), lambda s: [s[0].v]),
    "sparsify": (
        jp.sparsify(optax.adam(0.1), jp.pruners.gmp(0.5, begin=0, end=0)),
        lambda s: [s.masks, s.inner_state[0].mu, s.inner_state[0].nu],
    ),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_optimiser_states(name: str) -> None:
    tx, parts = MOMENTS[name]
    state = filled(tx)
    small = jp.shrink(MODEL, PLAN, state)
    for found, full in zip(parts(small), parts(state), strict=True):
        assert_equal(found, by_hand(full))
    # All the rest is as it would be for the smaller parameters: the optimiser goes on.
    params = jp.shrink(MODEL, PLAN, PARAMS)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, jax.eval_shape(tx.init, params))
    with jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(tx.update, params, small, params)


def test_parameters_that_an_optimiser_does_not_see() -> None:
    matrices = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
    state = filled(optax.masked(optax.adam(0.1), matrices))
    small = jp.shrink(MODEL, PLAN, state).inner_state[0]
    expected = by_hand(jax.tree.map(lambda m, p: m if p.ndim > 1 else p, PARAMS, PARAMS))
    assert jax.tree.structure(small.mu) == jax.tree.structure(state.inner_state[0].mu)
    shapes = jax.tree.map(jnp.shape, small.nu, is_leaf=lambda node: hasattr(node, "shape"))
    for name in SHAPES:
        assert shapes[name]["kernel"] == expected[name]["kernel"].shape

    whole_layers = optax.partition(
        {"learn": optax.adam(0.1), "freeze": optax.set_to_zero()},
        {"first": "learn", "second": "freeze", "third": "learn"},
    )
    small = jp.shrink(MODEL, PLAN, filled(whole_layers))
    mu = small.inner_states["learn"].inner_state[0].mu
    assert mu["first"]["kernel"].shape == (4, 5) and mu["third"]["kernel"].shape == (4, 3)


def test_moments_of_a_part_at_any_depth() -> None:
    """A part beside the parameters is found wherever it stands among them."""
    params = {"params": {"net": {"encoder": PARAMS}, "head": jnp.ones(2)}}
    model = jp.trace(lambda v, x: mlp(v["params"]["net"]["encoder"], x), params, inputs())
    plan = jp.Plan({f"params/net/encoder/{name}": mask for name, mask in PLAN.keep.items()})
    for part, small in ((PARAMS, by_hand(PARAMS)), ({"encoder": PARAMS}, {"encoder": by_hand(PARAMS)})):
        found = jp.shrink(model, plan, {"params": params["params"], "average": part})
        assert_equal(found["average"], small)
        assert_equal(found["params"]["net"]["encoder"], by_hand(PARAMS))


def wide_model():
    params = {"a": jnp.ones((130, 140)), "b": jnp.ones((140, 3))}
    return jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 130))), params


def test_factored_moments_and_packed_masks_raise() -> None:
    """What is not shaped like its parameter cannot be cut along; left as it was it would break the next step."""
    model, params = wide_model()
    plan = jp.Plan({"a:1": np.arange(140) < 70})
    with pytest.raises(ValueError, match=r"shape \(130,\) for a, which has \(130, 140\).*factored.*initialise"):
        jp.shrink(model, plan, optax.adafactor(0.1).init(params))
    packed = jp.sparsify(optax.sgd(0.1), jp.pruners.gmp(0.5, begin=0, end=0), pack_masks=True).init(params)
    with pytest.raises(ValueError, match=r"for a, which has .*packed masks"):
        jp.shrink(model, plan, packed)
    # A plan that leaves these parameters alone leaves their moments alone.
    whole = jp.Plan({"a:1": np.ones(140, bool)})
    with pytest.raises(ValueError, match="nothing in this tree"):
        jp.shrink(model, whole, optax.adafactor(0.1).init(params)[0].v_row)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"nothing in this tree .*first/bias, first/kernel.*cut along"):
        jp.shrink(MODEL, PLAN, {"other": jnp.ones(3)})
    with pytest.raises(ValueError, match="cut already"):
        jp.shrink(MODEL, PLAN, jp.shrink(MODEL, PLAN, PARAMS))
    with pytest.raises(ValueError, match="which has 8 here"):
        jp.shrink(MODEL, jp.Plan({"first/kernel:1": np.ones(9, bool)}), PARAMS)


def test_what_belongs_to_another_network_is_left_alone() -> None:
    other = {"first": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    rates = jax.tree.map(lambda _: 0.1, PARAMS)  # one for each parameter
    small = jp.shrink(MODEL, PLAN, {"params": PARAMS, "other": other["first"], "rates": rates})
    assert small["other"]["kernel"] is other["first"]["kernel"]
    assert small["rates"] == rates


def test_a_part_that_could_be_several() -> None:
    params = {"one": {"w": jnp.ones((3, 3))}, "two": {"w": jnp.ones((3, 3))}}
    model = jp.trace(lambda p, x: jnp.tanh(x @ p["one"]["w"]) @ p["two"]["w"], params, jnp.ones((1, 3)))
    plan = jp.Plan({"one/w:1": [True, False, True]})
    with pytest.raises(ValueError, match=r"several parts .*\['one/w', 'two/w'\]"):
        jp.shrink(model, plan, {"w": jnp.ones((3, 3))})
    assert jp.shrink(model, plan, [params])[0]["two"]["w"].shape == (2, 3)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(2)(nn.relu(x))


def test_batch_statistics_train_state_and_averages() -> None:
    module = Normed()
    variables = Draw(0).like(jax.eval_shape(module.init, jax.random.key(0), inputs()))
    model = jp.trace(module.apply, variables, inputs())
    plan = jp.Plan({"params/Dense_0/kernel:1": np.arange(6) % 2 == 0})
    small = jp.shrink(model, plan, variables)
    assert small["batch_stats"]["BatchNorm_0"]["mean"].shape == (3,)
    state = TrainState.create(apply_fn=module.apply, params=variables["params"], tx=optax.adam(0.1))
    tree = {
        "state": state,
        "average": jax.tree.map(jnp.copy, variables["params"]),
        "batch_stats": variables["batch_stats"],
    }
    cut = jp.shrink(model, plan, tree)
    for part in (cut["state"].params, cut["average"], cut["state"].opt_state[0].nu):
        assert part["Dense_0"]["kernel"].shape == (4, 3) and part["Dense_1"]["kernel"].shape == (3, 2)
        assert part["BatchNorm_0"]["scale"].shape == (3,)
    assert cut["batch_stats"]["BatchNorm_0"]["var"].shape == (3,)
    with jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(lambda state, grads: state.apply_gradients(grads=grads), cut["state"], cut["average"])


def test_frozen_dict() -> None:
    frozen = freeze(PARAMS)
    model = jp.trace(mlp, frozen, inputs())
    small = jp.shrink(model, PLAN, frozen)
    assert type(small) is type(frozen) and jax.tree.map(jnp.shape, small.unfreeze()) == SHAPES
    # Containers may differ: what counts are paths and shapes.
    assert jp.shrink(model, PLAN, PARAMS)["first"]["kernel"].shape == (4, 5)


def test_nnx_states() -> None:
    class Module(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs, use_running_average=True)
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.last(nnx.relu(self.norm(self.first(x))))

    module = Module(nnx.Rngs(0))
    graph, state = nnx.split(module)
    model = jp.trace(lambda state, x: nnx.merge(graph, state)(x), state, inputs())
    plan = jp.Plan({"first/kernel:1": np.arange(8) < 5})
    small = jp.shrink(model, plan, state)
    assert small["first"]["kernel"].shape == (4, 5) and small["norm"]["mean"].shape == (5,)
    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)
    moments = jp.shrink(model, plan, nnx.state(optimizer))["opt_state"]
    assert {leaf.shape for leaf in jax.tree.leaves(moments)} == {(), (4, 5), (5,), (5, 3), (3,)}


KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
P = PartitionSpec


def sharded(kind: str):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(KINDS[kind],) * 2)
    specs = {"a": P("x", "y"), "b": P("y", "x"), "c": P("y"), "d": P(None, ("x", "y"))}
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in {"a": (8, 16), "b": (16, 8), "c": (16,), "d": (8, 8)}.items()
    }
    placed = {name: jax.device_put(value, NamedSharding(mesh, specs[name])) for name, value in params.items()}
    return mesh, specs, params, placed


def apply(params, x):
    return jnp.tanh((x @ params["a"] + params["c"][None]) @ params["b"]) @ params["d"]


@pytest.mark.parametrize("in_context", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_arrays_stay_sharded(kind: str, in_context: bool) -> None:
    mesh, _, params, placed = sharded(kind)
    model = jp.trace(apply, params, jnp.ones((2, 8)))
    divides = np.arange(16) % 4 > 1  # 8 stay: 4 shards of 2
    left_over = np.arange(16) % 3 > 0  # 10 stay: no 4 shards
    for keep, axis in ((divides, "y"), (left_over, None)):
        plan = jp.Plan({"a:1": keep})
        if in_context:
            with jax.set_mesh(mesh):
                small = jp.shrink(model, plan, placed)
        else:
            small = jp.shrink(model, plan, placed)
        expected = {"a": P("x", axis), "b": P(axis, "x"), "c": P(axis)}
        assert_equal(jax.device_get(small), jp.shrink(model, plan, params))
        for name, spec in expected.items():
            assert small[name].sharding.is_equivalent_to(NamedSharding(mesh, spec), small[name].ndim), name
        assert small["d"] is placed["d"]
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), placed)
        abstract = jp.shrink(model, plan, shapes)
        for name, array in small.items():
            assert abstract[name].sharding.is_equivalent_to(array.sharding, array.ndim)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_moments_of_sharded_parameters(kind: str) -> None:
    mesh, _, params, placed = sharded(kind)
    model = jp.trace(apply, params, jnp.ones((2, 8)))
    plan = jp.Plan({"a:1": np.arange(16) % 4 > 1, "b:1": np.arange(8) < 6})
    with jax.set_mesh(mesh):
        tx = jp.sparsify(optax.sgd(0.1, momentum=0.9), jp.pruners.gmp(0.5, begin=0, end=0))
        small, state = jp.shrink(model, plan, placed), jp.shrink(model, plan, tx.init(placed))
    for tree in (state.masks, state.inner_state[0].trace):
        for name, array in small.items():
            assert tree[name].shape == array.shape
            assert tree[name].sharding.is_equivalent_to(array.sharding, array.ndim)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shrunk_function_of_sharded_parameters(kind: str) -> None:
    mesh, _, params, placed = sharded(kind)
    # Under an Explicit mesh products of arrays that are sharded along the contraction need a hint; rows need none.
    rows = NamedSharding(mesh, P("x"))
    placed = {name: jax.device_put(p, NamedSharding(mesh, P())) for name, p in placed.items()}
    x = jax.device_put(np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32), rows)
    model = jp.trace(apply, params, x)
    plan = jp.Plan({"a:1": np.arange(16) % 4 > 1})
    expected = jp.shrunk_function(model, plan)(jp.shrink(model, plan, params), jax.device_get(x))
    with jax.set_mesh(mesh):
        found = jax.jit(jp.shrunk_function(model, plan))(jp.shrink(model, plan, placed), x)
    assert found.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_shrunk_function_of_parameters_sharded_along_what_is_cut() -> None:
    mesh, _, params, placed = sharded("auto")
    x = jnp.ones((4, 8))
    model = jp.trace(apply, placed, x)
    plan = jp.Plan({"a:1": np.arange(16) % 4 > 1})
    expected = jp.shrunk_function(model, plan)(jp.shrink(model, plan, params), x)
    with jax.set_mesh(mesh):
        found = jax.jit(jp.shrunk_function(model, plan))(jp.shrink(model, plan, placed), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sharding_hints_of_the_model_stay() -> None:
    """Under an Explicit mesh a product over a sharded axis says how its result is sharded."""
    mesh, _, params, placed = sharded("explicit")

    def hinted(params, x):
        x = jnp.einsum("bi,io->bo", x, params["a"], out_sharding=P(None, "y"))
        return jnp.einsum("bi,io->bo", jnp.tanh(x), params["b"], out_sharding=P("x", None))

    x = jnp.ones((4, 8))
    with jax.set_mesh(mesh):
        model = jp.trace(hinted, placed, x)
        plan = jp.Plan({"a:1": np.arange(16) % 4 > 1})
        found = jax.jit(jp.shrunk_function(model, plan))(jp.shrink(model, plan, placed), x)
    kept = plan.keep["a:1"]
    expected = np.tanh(np.ones((4, 8), np.float32) @ params["a"][:, kept]) @ params["b"][kept]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.sharding.spec[0] == "x"
