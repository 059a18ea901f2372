"""`trace`: outputs that are states or may change, whole training steps, rules of the user's, and large models."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.tracing import Rule, dims, opaque, register_rule
from jaxprune.tracing.rules import RULES
from tests.zoo.models import ZOO
from tests.zoo.models.large import DenseNet121, ResNet50, abstract, gpt

X = jnp.ones((4, 3))


def ones(**shapes: Any) -> dict[str, jax.Array]:
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


PAIR = ones(a=(3, 5), b=(5, 2))


def members(model: jp.Model, name: str) -> list[str]:
    return [f"{member.path}:{member.axis}" for member in model.groups[name].members]


# Outputs that replace a part of the parameters.


def normalised(variables: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """A batch normalisation in training mode: the moving average is handed back."""
    params, mean = variables["params"], variables["batch_stats"]["mean"]
    hidden = x @ params["a"]
    now = hidden.mean(0)
    hidden = jax.nn.relu(hidden - now[None])
    return hidden @ params["b"], {"batch_stats": {"mean": 0.9 * mean + 0.1 * now}}


VARIABLES = {"params": PAIR, "batch_stats": ones(mean=5)}


def test_moving_averages_are_cut_with_what_they_follow() -> None:
    assert not jp.trace(normalised, VARIABLES, X).groups  # the new average is an output, and outputs keep their axes
    model = jp.trace(normalised, VARIABLES, X, state_outputs=lambda outputs: outputs[1])
    assert members(model, "params/a:1") == ["batch_stats/mean:0", "params/a:1", "params/b:0"]
    plan = jp.Plan({"params/a:1": [True, False, True, True, False]})
    _, updates = jp.shrunk_function(model, plan)(jp.shrink(model, plan, VARIABLES), X)
    assert updates["batch_stats"]["mean"].shape == (3,)


def test_training_mode_of_linen_has_the_groups_of_evaluation() -> None:
    zoo = ZOO["linen_resnet_training"]()
    assert not jp.trace(zoo.apply_fn, zoo.params, *zoo.args).groups
    outputs = jax.eval_shape(zoo.apply_fn, zoo.params, *zoo.args)
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args, state_outputs=lambda out: out[1])
    assert len(model.groups) == 4 and set(outputs[1]) == {"batch_stats"}
    own = [path for group in model.groups.values() for path in {member.path for member in group.members}]
    assert sorted(path for path in model.paths if path.startswith("batch_stats")) == sorted(
        path for path in own if path.startswith("batch_stats")
    )


@jax.numpy_dtype_promotion("standard")  # Adam counts in integers
def test_a_whole_training_step_with_its_moments() -> None:
    optimizer = optax.adam(1e-2)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.square(jnp.tanh(x @ params["a"]) @ params["b"] - y).mean()

    def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    draw = np.random.default_rng(0)
    params = {name: jnp.asarray(draw.normal(size=p.shape), jnp.float32) for name, p in PAIR.items()}
    data = [jnp.asarray(draw.normal(size=(4, width)), jnp.float32) for width in (3, 2)]
    state = (params, optimizer.init(params))
    model = jp.trace(step, state, *data, state_outputs=lambda outputs: outputs[0])
    ((name, group),) = model.groups.items()
    assert group.size == 5
    assert members(model, name) == ["0/a:1", "0/b:0", "1/0/mu/a:1", "1/0/mu/b:0", "1/0/nu/a:1", "1/0/nu/b:0"]

    keep = np.array([True, False, True, True, False])
    plan = jp.Plan({name: keep})
    small, after = jp.shrink(model, plan, state), jp.shrunk_function(model, plan)
    # The step of the small model is that of the model built small.
    options = {"xla_backend_optimization_level": 0}
    expected, _ = jax.jit(step, compiler_options=options)(small, *data)
    small, _ = jax.jit(after, compiler_options=options)(small, *data)
    for found, wanted in zip(jax.tree.leaves(small), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert small[0]["a"].shape == (3, 3) and small[1][0].nu["b"].shape == (3, 2)


def test_state_outputs_must_be_paths_of_the_parameters() -> None:
    with pytest.raises(
        ValueError, match="state_outputs gives 'mean', which is no path of params; they are batch_stats"
    ):
        jp.trace(normalised, VARIABLES, X, state_outputs=lambda outputs: outputs[1]["batch_stats"])
    with pytest.raises(ValueError, match="the next value of 'params/a' has another shape"):
        jp.trace(normalised, VARIABLES, X, state_outputs=lambda outputs: {"params": {"a": outputs[0]}})


# Outputs whose axes may change.


def both(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    hidden = jnp.tanh(x @ params["a"])
    return {"hidden": hidden, "logits": hidden @ params["b"]}


@pytest.mark.parametrize(
    ("frozen", "groups"),
    [
        (None, []),
        (".*", []),
        ("hidden", ["b:1"]),
        ("logits", ["a:1"]),
        (["logi.*", "other"], ["a:1"]),
        (lambda path, output: output.shape[-1] == 2, ["a:1"]),
        ({"hidden": True, "logits": False}, ["b:1"]),
        ({"hidden": False, "logits": False}, ["a:1", "b:1"]),
        (False, ["a:1", "b:1"]),
        (True, []),
    ],
)
def test_outputs_that_may_change(frozen: Any, groups: list[str]) -> None:
    model = jp.trace(both, PAIR, X, frozen_outputs=frozen)
    # An output that may change is read outside: only a sum over an index makes a group of it.
    assert [name for name in ("a:1", "b:1") if not dim_frozen(model, name)] == groups


def dim_frozen(model: jp.Model, name: str) -> bool:
    path, axis = name.split(":")
    return model.dims_of(model.paths.index(path))[int(axis)].frozen or "stays" in model.explain(path, int(axis))


def test_a_features_extractor_is_cut_at_its_output() -> None:
    model = jp.trace(both, PAIR, X, frozen_outputs="logits")
    plan = jp.Plan({"a:1": [True, False, True, True, False]})
    outputs = jp.shrunk_function(model, plan)(jp.shrink(model, plan, PAIR), X)
    assert outputs["hidden"].shape == (4, 3) and outputs["logits"].shape == (4, 2)


@pytest.mark.parametrize("frozen", [".*", True, lambda path, output: True])
def test_outputs_of_any_dtype_are_frozen(frozen: Any) -> None:
    def apply(params, x):
        hidden = jnp.tanh(x @ params["a"])
        return {"logits": hidden @ params["b"], "active": hidden > 0}

    assert not jp.trace(apply, PAIR, X, frozen_outputs=frozen).groups


def test_the_features_of_an_extractor_form_a_group() -> None:
    model = jp.trace(lambda p, x: x @ p["a"], PAIR, X, frozen_outputs=False)
    assert list(model.groups) == ["a:1"]


def test_frozen_outputs_must_match() -> None:
    with pytest.raises(ValueError, match=r"'features' matches no .*hidden, logits"):
        jp.trace(both, PAIR, X, frozen_outputs="features")
    with pytest.raises(ValueError, match="is no prefix"):
        jp.trace(both, PAIR, X, frozen_outputs={"features": True})
    with pytest.raises(TypeError, match="it may be None, a regular expression"):
        jp.trace(both, PAIR, X, frozen_outputs=3)


# What is read through, and what is not.


@functools.partial(jax.jit, static_argnums=2)
def layer(weights: jax.Array, x: jax.Array, active: bool) -> jax.Array:
    return jax.jit(jnp.tanh)(x @ weights) if active else x @ weights


def test_nested_jit_and_vmap() -> None:
    for apply in (
        lambda p, x: layer(p["b"], layer(p["a"], x, True), False),
        lambda p, x: jax.vmap(lambda row: jnp.tanh(row @ p["a"]) @ p["b"])(x),
        lambda p, x: jax.vmap(jax.vmap(lambda w, row: row @ w, (1, None)), (None, 0))(p["a"], x) @ p["b"],
        lambda p, x: jax.jit(jax.vmap(jax.jit(lambda row: layer(p["a"], row, True))))(x) @ p["b"],
    ):
        assert members(jp.trace(apply, PAIR, X), "a:1") == ["a:1", "b:0"]


def test_mapped_parameters() -> None:
    def apply(params, x):
        return jax.vmap(lambda a, b: jnp.tanh(x @ a) @ b)(params["a"], params["b"])

    model = jp.trace(apply, ones(a=(6, 3, 5), b=(6, 5, 2)), X)
    assert members(model, "a:2") == ["a:2", "b:1"] and list(model.groups) == ["a:2"]
    assert "stays as it is: it is axis 0 of the output" in model.explain("a", 0)


def test_shard_map_is_left_alone_and_says_so() -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def apply(params, x):
        body = jax.shard_map(lambda a, x: jnp.tanh(x @ a), mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
        return body(params["a"], x) @ params["b"] @ params["c"]

    model = jp.trace(apply, PAIR | ones(c=(2, 3)), X)
    assert list(model.groups) == ["b:1"]
    assert "jaxprune has no rule for the primitive 'shard_map' (shard_map at " in model.explain("a", 1)


# Rules of the user's.


def new_primitive(name: str) -> Primitive:
    """The square of each element, of which jaxprune knows nothing."""
    primitive = Primitive(name)
    primitive.def_impl(jnp.square)
    primitive.def_abstract_eval(lambda x: ShapedArray(x.shape, x.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(jnp.square, multiple_results=False))
    return primitive


def same_axes(node: Any, axes: Any) -> None:
    axes.set(node.outputs[0], axes.of(node.inputs[0]))


def test_rules_for_one_trace() -> None:
    square = new_primitive("square_of_a_test")

    def apply(params, x):
        return square.bind(x @ params["a"]) @ params["b"]

    unknown = jp.trace(apply, PAIR, X)
    assert not unknown.groups
    assert "no rule for the primitive 'square_of_a_test' (square_of_a_test at " in unknown.explain("a", 1)
    model = jp.trace(apply, PAIR, X, rules={"square_of_a_test": Rule(same_axes)})
    assert members(model, "a:1") == ["a:1", "b:0"]
    assert not jp.trace(apply, PAIR, X).groups  # nothing is remembered
    plan = jp.Plan({"a:1": [True, False, True, True, False]})
    assert jp.verify(model, plan, PAIR, X, strict=True).exact
    opaque_model = jp.trace(apply, PAIR, X, rules={"square_of_a_test": opaque("a secret")})
    assert "stays as it is: a secret (square_of_a_test at " in opaque_model.explain("a", 1)


def test_registered_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "another_square", raising=False)
    square = new_primitive("another_square")

    def apply(params, x):
        return square.bind(x @ params["a"]) @ params["b"]

    register_rule("another_square", Rule(same_axes))
    try:
        assert members(jp.trace(apply, PAIR, X), "a:1") == ["a:1", "b:0"]
        # Those of one trace come first.
        assert not jp.trace(apply, PAIR, X, rules={"another_square": opaque("a secret")}).groups
    finally:
        del RULES["another_square"]
    with pytest.raises(TypeError, match=r"the rule of 'another_square' is a function; give a jaxprune\.tracing\.Rule"):
        register_rule("another_square", same_axes)  # pyright: ignore[reportArgumentType]


def test_a_rule_that_resizes() -> None:
    """A primitive with a static parameter that names a size."""
    primitive = Primitive("repeated_to_width")
    primitive.def_impl(lambda x, *, width: jnp.broadcast_to(x, (*x.shape[:-1], width)))
    primitive.def_abstract_eval(lambda x, *, width: ShapedArray((*x.shape[:-1], width), x.dtype))
    mlir.register_lowering(
        primitive,
        mlir.lower_fun(lambda x, *, width: jnp.broadcast_to(x, (*x.shape[:-1], width)), multiple_results=False),
    )

    def apply(params, x):
        return (primitive.bind(x.sum(-1, keepdims=True), width=5) * params["scale"][None]) @ params["b"]

    def axes(node: Any, solver: Any) -> None:
        solver.set(node.outputs[0], [*solver.of(node.inputs[0])[:-1], dims.atom(node.params["width"])])

    rule = Rule(axes, lambda node, sizes: {"width": sizes.shape(node.outputs[0])[-1]})
    model = jp.trace(apply, ones(scale=5, b=(5, 2)), X, rules={"repeated_to_width": rule})
    ((name, group),) = model.groups.items()
    assert [(m.path, m.axis) for m in group.members] == [("b", 0), ("scale", 0)]
    plan = jp.Plan({name: [True, False, True, True, False]})
    assert jp.verify(model, plan, ones(scale=5, b=(5, 2)), X, strict=True).exact


# What a trace needs, and how stable it is.


def test_groups_are_the_same_in_every_trace() -> None:
    zoo = ZOO["llama_unrolled"]()
    one, two = (jp.trace(zoo.apply_fn, params, *zoo.args) for params in (zoo.params, shapes_of(zoo.params)))
    assert list(one.groups) == list(two.groups) and one.fingerprint == two.fingerprint
    for group, same in zip(one.groups.values(), two.groups.values(), strict=True):
        assert (str(group), group.exactness, group.operations) == (str(same), same.exactness, same.operations)
        for member, other in zip(group.members, same.members, strict=True):
            np.testing.assert_array_equal(member.index, other.index)


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_any_tree_and_no_parameters_at_all() -> None:
    model = jp.trace(lambda w, x: x @ w, jnp.ones((3, 2)), X)
    assert model.paths == ("",) and not model.groups
    empty = jp.trace(lambda p, x: x + 1, {}, X)
    assert repr(empty) == "Model(0 parameters, 0 sites, 0 groups)" and empty.cost().parameters == 0
    constant = jp.trace(lambda p, x: jnp.zeros(3), PAIR, X)
    assert not constant.groups and not constant.sites


# Models at their published sizes; abstract, so no weight is allocated.

IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


def test_resnet_50() -> None:
    module = ResNet50()
    model = jp.trace(module.apply, abstract(module, IMAGES), IMAGES)
    assert len(model.groups) == 37
    assert model.cost().macs == pytest.approx(4.09e9, rel=0.04)  # the published count has the padding


def test_resnet_50_in_training_mode() -> None:
    module = ResNet50(train=True)

    def apply(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"])

    variables = abstract(module, IMAGES)
    model = jp.trace(apply, variables, IMAGES, state_outputs=lambda outputs: outputs[1])
    assert len(model.groups) == 37
    averages = [path for path in model.paths if path.startswith("batch_stats")]
    found = {m.path for group in model.groups.values() for m in group.members if m.path.startswith("batch_stats")}
    assert found == set(averages) and len(averages) == 2 * 53


@jax.numpy_dtype_promotion("standard")  # the average pooling of Flax divides by an integer
def test_densenet_121() -> None:
    module = DenseNet121()
    assert len(jp.trace(module.apply, abstract(module, IMAGES), IMAGES).groups) == 120


def test_gpt_of_48_layers() -> None:
    apply_fn, params = gpt(48, 1600, 25)
    model = jp.trace(apply_fn, params, jax.ShapeDtypeStruct((1, 64), jnp.int32))
    assert len(model.groups) == 193  # one for the residual stream, and in each layer heads, q and k, v, hidden
    assert {group.size for group in model.groups.values()} == {25, 64, 1600, 6400}
