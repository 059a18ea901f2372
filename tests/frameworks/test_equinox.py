"""A resized Equinox module agrees with the replay and trains."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.frameworks import equinox as adapter
from tests.frameworks.plans import line_of, named, random_plan
from tests.zoo.models import equinox_models as zoo
from tests.zoo.models._model import Draw

KEY = jax.random.key(0)


def normal(*shape):
    return Draw(1).normal(*shape)


def filled(make):
    """A module with random values in all arrays, none of them one or zero."""
    shapes = eqx.filter_eval_shape(make, KEY)
    shapes, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return eqx.combine(Draw(2).like(shapes), static)


def batched(module, x):
    return jax.vmap(module)(x)


def check_agrees(module, *args, where=lambda group: True, call=batched):
    model = adapter.trace(module, *args, call=call)
    plan = random_plan(model, where=where)
    small = adapter.resize(module, model, plan)
    params = jp.shrink(model, plan, adapter.parameters(module))
    replayed = jax.jit(jp.shrunk_function(model, plan, norm="resize"))(params, *args)
    np.testing.assert_allclose(eqx.filter_jit(call)(small, *args), replayed, atol=1e-5)
    return model, plan, small


def no_norm(group):
    """jnp.var keeps its count in a replay with norm="resize", so a layer norm that is cut would not agree."""
    return not any("norm" in member.path for member in group.members)


def mlp(key):
    return eqx.nn.MLP(7, 5, width_size=12, depth=2, activation=jax.nn.gelu, key=key)


@pytest.mark.parametrize("make", [mlp, zoo.Recurrent])
def test_module_agrees_with_the_replay(make):
    module = filled(make)
    check_agrees(module, normal(2, 7) if make is mlp else normal(2, 6, 7))


@pytest.mark.parametrize("make", [zoo.Transformer, zoo.CNN])
def test_module_with_norms_of_full_width_agrees_with_the_replay(make):
    module = filled(make)
    check_agrees(module, normal(2, 5, 7) if make is zoo.Transformer else normal(2, 3, 8, 8), where=no_norm)


@pytest.mark.parametrize("make", [zoo.Transformer, zoo.CNN])
def test_module_with_smaller_norms_agrees_with_the_replay(make):
    module = filled(make)
    check_agrees(module, normal(2, 5, 7) if make is zoo.Transformer else normal(2, 3, 8, 8))


def test_static_fields_and_scale_of_attention():
    def make(key):
        return eqx.nn.MultiheadAttention(2, 6, qk_size=10, vo_size=8, use_query_bias=True, key=key)

    def call(module, x):
        return jax.vmap(lambda x: module(x, x, x))(x)

    module = filled(make)
    model = adapter.trace(module, normal(2, 5, 6), call=call)
    (size,) = {group.size for group in model.groups.values() if named("query_proj/weight:0")(group)} - {2}
    _, _, small = check_agrees(module, normal(2, 5, 6), call=call, where=lambda group: group.size == size)
    assert (size, small.qk_size, small.vo_size, small.num_heads) == (10, 6, 8, 2)
    _, _, small = check_agrees(module, normal(2, 5, 6), call=call)
    assert (small.qk_size, small.vo_size, small.num_heads) == (6, 5, 1)


class Layers(eqx.Module):
    """Layers of which the zoo has none."""

    up: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    larger: eqx.nn.ConvTranspose2d
    norm: eqx.nn.RMSNorm
    cell: eqx.nn.LSTMCell
    embedding: eqx.nn.Embedding
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 6)
        self.up = eqx.nn.Conv2d(3, 12, 3, key=keys[0])
        self.depthwise = eqx.nn.Conv2d(12, 12, 3, groups=12, key=keys[1])
        self.larger = eqx.nn.ConvTranspose2d(12, 8, 2, stride=2, key=keys[2])
        self.norm = eqx.nn.RMSNorm(8)
        self.cell = eqx.nn.LSTMCell(8, 10, key=keys[3])
        self.embedding = eqx.nn.Embedding(4, 10, key=keys[4])
        self.head = eqx.nn.Linear(10, "scalar", key=keys[5])

    def __call__(self, x):
        x = jax.nn.relu(self.larger(jax.nn.relu(self.depthwise(self.up(x)))))
        start = jnp.zeros(self.cell.hidden_size), jnp.zeros(self.cell.hidden_size)
        hidden, _ = self.cell(jax.nn.relu(self.norm(x.mean((1, 2)))), start)
        return self.head(hidden + self.embedding(1))


def test_other_layers():
    _, _, small = check_agrees(filled(Layers), normal(2, 3, 6, 6))
    assert small.depthwise.groups == small.up.out_channels == 7
    assert small.cell.hidden_size == small.embedding.embedding_size == 6
    assert small.head.out_features == "scalar"


def test_optimiser_takes_steps():
    module, x = filled(mlp), normal(8, 7)
    model = adapter.trace(module, x, call=batched)
    small = adapter.resize(module, model, random_plan(model))
    tx = optax.adam(1e-2)
    state = tx.init(eqx.filter(small, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(module, state):
        value, gradients = eqx.filter_value_and_grad(lambda module: jnp.mean((batched(module, x) - 1) ** 2))(module)
        updates, state = tx.update(gradients, state)
        return eqx.apply_updates(module, updates), state, value

    losses = []
    with jax.numpy_dtype_promotion("standard"):  # for Adam
        for _ in range(20):
            small, state, value = step(small, state)
            losses.append(float(value))
    assert losses[-1] < losses[0]


def test_dropout_draws_at_the_smaller_shape():
    def make(key):
        return eqx.nn.Sequential([eqx.nn.Linear(4, 10, key=key), eqx.nn.Dropout(0.5), eqx.nn.Linear(10, 3, key=key)])

    module, x = filled(make), normal(4)
    model = adapter.trace(module, x, call=lambda module, x: module(x, key=KEY))
    with pytest.warns(UserWarning, match="only shapes were compared"):
        small = adapter.resize(module, model, random_plan(model))
    assert small(x, key=jax.random.key(1)).shape == (3,)
    assert small.layers[0].out_features == 6


def error_of(module, *args, call=batched, where=lambda group: True):
    model = adapter.trace(module, *args, call=call)
    with pytest.raises(ValueError) as caught:
        adapter.resize(module, model, random_plan(model, where=where))
    return str(caught.value)


class HardReshape(eqx.Module):
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    width: int = eqx.field(static=True)

    def __init__(self, key):
        self.up, self.down, self.width = eqx.nn.Linear(4, 12, key=key), eqx.nn.Linear(4, 3, key=key), 4

    def __call__(self, x):
        x = self.up(x)
        x = x.reshape(3, self.width).sum(0)
        return self.down(x)


class Outer(eqx.Module):
    blocks: list[HardReshape]
    head: eqx.nn.Linear

    def __init__(self, key):
        self.blocks, self.head = [HardReshape(key)], eqx.nn.Linear(3, 2, key=key)

    def __call__(self, x):
        return self.head(self.blocks[0](x))


def test_error_of_a_hard_coded_reshape_names_module_line_and_remedy():
    message = error_of(filled(Outer), normal(2, 4))
    assert message.startswith("blocks/0 (HardReshape) does not fit")
    assert line_of(__file__, "x = x.reshape(3, self.width).sum(0)") in message
    assert "shrunk_function" in message and "register_resize" in message


def test_a_fixer_of_the_users():
    class Fixed(HardReshape):
        pass

    adapter.register_resize(Fixed, lambda module, layer: {"width": layer.parts("up/weight", -2, 3)[1]})
    _, _, small = check_agrees(filled(Fixed), normal(2, 4), where=named("down/weight:1"))
    assert small.width == small.down.in_features == 2


class HandWrittenAttention(eqx.Module):
    query: eqx.nn.Linear
    key: eqx.nn.Linear

    def __init__(self, key):
        self.query, self.key = eqx.nn.Linear(6, 12, key=key), eqx.nn.Linear(6, 12, key=key)

    def __call__(self, x):
        query, key = jax.vmap(self.query)(x), jax.vmap(self.key)(x)
        scores = query @ key.T / query.shape[-1] ** 0.5
        return jax.nn.softmax(scores) @ x


def test_a_number_that_depends_on_a_size_is_an_error_at_its_line():
    message = error_of(filled(HandWrittenAttention), normal(2, 5, 6))
    assert "1/sqrt(head size)" in message
    number = line_of(__file__, "scores = query @ key.T / query.shape[-1] ** 0.5").rsplit(":", 1)[1]
    assert f"test_equinox.py:{number}" in message
