"""The original Linen module on smaller variables agrees with the replay."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.frameworks import linen
from tests.frameworks.plans import line_of, named, random_plan
from tests.zoo.models import linen as zoo
from tests.zoo.models._model import Draw

KEY = jax.random.key(0)


def normal(*shape):
    return Draw(1).normal(*shape)


def init(module, *args):
    """Random values for all variables, none of them one or zero."""
    return Draw(2).like(jax.eval_shape(module.init, KEY, *args))


def batch_statistics(outputs):
    return {"batch_stats": outputs[1]["batch_stats"]}


def largest_difference(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def check_agrees(apply_fn, variables, *args, where=lambda group: True, **options):
    """Cuts 40 % of the groups and compares the module with the replay; returns what the caller wants to go on with."""
    model = jp.trace(apply_fn, variables, *args, **options)
    plan = random_plan(model, where=where)
    small = linen.shrink(model, plan, variables)
    with linen.follow_shapes(model, plan):
        outputs = jax.jit(apply_fn)(small, *args)
    replayed = jax.jit(jp.shrunk_function(model, plan, norm="resize"))(jp.shrink(model, plan, variables), *args)
    assert largest_difference(outputs, replayed) < 1e-5
    return model, plan, small


# The one that is left out concatenates a token of hard-coded width: see the test of its error.
@pytest.mark.parametrize("build", [build for build in zoo.BUILDERS if build is not zoo.linen_vit])
def test_module_agrees_with_the_replay(build):
    entry = build()
    options = {"state_outputs": batch_statistics} if "training" in entry.name else {}
    check_agrees(entry.apply_fn, entry.params, *entry.args, **options)


def test_training_updates_small_statistics():
    entry = zoo.linen_resnet_training()
    _, _, small = check_agrees(entry.apply_fn, entry.params, *entry.args, state_outputs=batch_statistics)
    with linen.follow_shapes():
        _, updated = entry.apply_fn(small, *entry.args)
    statistics = updated["batch_stats"]
    assert jax.tree.map(jnp.shape, statistics) == jax.tree.map(jnp.shape, small["batch_stats"])
    assert not jnp.array_equal(statistics["BatchNorm_0"]["mean"], small["batch_stats"]["BatchNorm_0"]["mean"])


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_scale_of_the_trained_head_size_is_folded_into_the_query(normalise, use_bias):
    module = nn.MultiHeadDotProductAttention(2, qkv_features=16, normalize_qk=normalise, use_bias=use_bias)
    x = normal(2, 5, 6)
    variables = init(module, x)
    _, _, small = check_agrees(module.apply, variables, x, where=named("query/kernel:2"))
    assert small["params"]["query"]["kernel"].shape == (6, 2, 5)
    assert small["params"]["value"]["kernel"].shape == (6, 2, 8)


def test_heads_are_removed_without_a_factor():
    module, x = nn.MultiHeadDotProductAttention(4, qkv_features=16), normal(2, 5, 6)
    variables = init(module, x)
    model, plan, small = check_agrees(module.apply, variables, x, where=named("query/kernel:1"))
    np.testing.assert_array_equal(
        small["params"]["query"]["kernel"], jp.shrink(model, plan, variables)["params"]["query"]["kernel"]
    )


def test_a_jitted_function_of_the_parameters_alone_is_served():
    module, x = nn.MultiHeadDotProductAttention(2, qkv_features=16), normal(2, 5, 6)
    params = init(module, x)["params"]
    apply_fn = jax.jit(lambda params, x: module.apply({"params": params}, x))
    model = jp.trace(apply_fn, params, x)
    plan = random_plan(model)
    first, second = (linen.shrink(model, plan, params) for _ in range(2))
    assert largest_difference(first, second) == 0.0
    with linen.follow_shapes():
        outputs = apply_fn(first, x)
    replayed = jax.jit(jp.shrunk_function(model, plan, norm="resize"))(jp.shrink(model, plan, params), x)
    assert largest_difference(outputs, replayed) < 1e-5


def test_dropout_draws_at_the_smaller_shape():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.Dense(10)(x)))

    module, x = Net(), normal(2, 4)
    variables = jax.jit(module.init, static_argnums=2)(KEY, x, False)
    model = jp.trace(lambda variables, x: module.apply(variables, x, True, rngs={"dropout": KEY}), variables, x)
    plan = random_plan(model)
    with pytest.warns(UserWarning, match="only shapes were compared"):
        small = linen.shrink(model, plan, variables)

    @linen.follow_shapes()
    def loss(variables, key):
        return jnp.sum(module.apply(variables, x, True, rngs={"dropout": key}) ** 2)

    losses = [float(jax.jit(loss)(small, jax.random.key(seed))) for seed in range(2)]
    assert losses[0] != losses[1]
    assert jax.tree.map(jnp.shape, jax.grad(loss)(small, KEY)) == jax.tree.map(jnp.shape, small)


def test_grouped_convolution_called_by_keyword():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(12, (1, 1))(x)
            return nn.Dense(3)(nn.Conv(12, (3, 3), feature_group_count=3)(inputs=x).mean((1, 2)))

    module, x = Net(), normal(2, 4, 4, 3)
    check_agrees(module.apply, init(module, x), x)


def test_convolutional_cell():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(nn.ConvLSTMCell(8, (3, 3)))(x)[:, -1].mean((1, 2)))

    module, x = Net(), normal(2, 3, 4, 4, 2)
    _, _, small = check_agrees(module.apply, init(module, x), x)
    assert small["params"]["ConvLSTMCell_0"]["hh"]["kernel"].shape == (3, 3, 5, 20)


@pytest.mark.parametrize("order", ["made in the line before", "made in setup"])
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.MGUCell, nn.SimpleCell])
def test_first_carry_of_a_loop_by_hand_follows(cell, order):
    def scanned(width):
        options = {"variable_broadcast": "params", "split_rngs": {"params": False}}
        return nn.scan(cell, in_axes=1, out_axes=1, **options)(width)

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = scanned(10)
            carry = layer.initialize_carry(jax.random.key(0), x[:, 0].shape)
            return nn.Dense(3)(layer(carry, x)[1])

    class Setup(nn.Module):
        def setup(self):
            self.layer, self.head = scanned(10), nn.Dense(3)

        def __call__(self, x):
            carry = self.layer.initialize_carry(jax.random.key(0), x[:, 0].shape)
            return self.head(self.layer(carry, x)[1])

    before = cell.__dict__["initialize_carry"]
    module, x = (Setup() if order == "made in setup" else Compact()), normal(2, 5, 4)
    _, _, small = check_agrees(module.apply, init(module, x), x)
    assert any(leaf.shape == (6, 6) for leaf in jax.tree.leaves(small))
    assert cell.__dict__["initialize_carry"] is before


class Layers(nn.Module):
    """Layers of which the zoo has none."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(12, (3, 3))(x)
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=12)(x))
        x = nn.GroupNorm(num_groups=None, group_size=3)(nn.Conv(12, (1, 1))(x))
        x = nn.ConvTranspose(8, (2, 2), strides=(2, 2), transpose_kernel=True)(x)
        x = nn.InstanceNorm()(x).mean((1, 2))
        x = nn.relu(nn.RMSNorm()(nn.DenseGeneral((3, 4))(x)))
        x = nn.relu(nn.Einsum((3, 4, 10), "bij,ijk->bk")(x))
        return nn.Dense(3)(x * self.param("gain", nn.initializers.ones, (1, 10)))


def test_other_layers():
    module, x = Layers(), normal(2, 4, 4, 3)
    variables = init(module, x)
    model, _, small = check_agrees(module.apply, variables, x)
    assert len(model.groups) >= 6
    assert small["params"]["gain"].shape == (1, 6)
    assert small["params"]["Conv_1"]["kernel"].shape[-2:] == (1, small["params"]["Conv_0"]["kernel"].shape[-1])


def test_partitioned_parameters():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            return nn.Dense(3)(nn.relu(nn.Dense(10, kernel_init=init, name="hidden")(x)))

    module, x = Net(), normal(2, 4)
    _, _, small = check_agrees(module.apply, init(module, x), x)
    assert small["params"]["hidden"]["kernel"].names == (None, "model")


def test_module_is_left_as_it_was_and_initialises_at_full_size():
    entry = zoo.linen_mlp()
    module, (x,) = zoo.MLP(), entry.args
    with linen.follow_shapes():
        inside = module.init(KEY, x)
    assert jax.tree.map(jnp.shape, inside) == jax.tree.map(jnp.shape, entry.params)
    with pytest.raises(Exception, match="shape"):
        model = jp.trace(entry.apply_fn, entry.params, x)
        module.apply(linen.shrink(model, random_plan(model), entry.params), x)


def test_train_state_takes_a_step_on_shrunk_moments():
    entry = zoo.linen_transformer()
    apply_fn = linen.follow_shapes()(entry.apply_fn)
    model = jp.trace(entry.apply_fn, entry.params, *entry.args)
    plan = random_plan(model)
    tx = optax.adam(1e-2)
    state = TrainState(
        step=0,
        apply_fn=apply_fn,
        params=linen.shrink(model, plan, entry.params),
        tx=tx,
        opt_state=jp.shrink(model, plan, tx.init(entry.params)),
    )

    @jax.jit
    def step(state, tokens):
        def loss(params):
            logits = state.apply_fn(params, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

        value, gradients = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradients), value

    losses = []
    with jax.numpy_dtype_promotion("standard"):  # for Adam
        for _ in range(5):
            state, value = step(state, *entry.args)
            losses.append(float(value))
    assert losses[-1] < losses[0]


def error_of(module, x, where=lambda group: True):
    variables = init(module, x)
    model = jp.trace(module.apply, variables, x)
    with pytest.raises(ValueError) as caught:
        linen.shrink(model, random_plan(model, where=where), variables)
    return str(caught.value)


class HardReshape(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(12, name="up")(x)
        x = x.reshape(-1, 3, 4).sum(1)
        return nn.Dense(3)(x)


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(HardReshape(name="block")(x))


def test_error_of_a_hard_coded_reshape_names_module_line_and_remedy():
    message = error_of(Outer(), normal(2, 4))
    assert message.startswith("block (HardReshape) does not fit")
    assert line_of(__file__, "x = x.reshape(-1, 3, 4).sum(1)") in message
    assert "shrunk_function" in message and "register_resize" in message


def test_error_in_the_context_carries_a_note():
    module, x = Outer(), normal(2, 4)
    variables = init(module, x)
    model = jp.trace(module.apply, variables, x)
    small = jp.shrink(model, random_plan(model), variables)
    with pytest.raises(TypeError) as caught, linen.follow_shapes():
        module.apply(small, x)
    (note,) = (note for note in caught.value.__notes__ if "does not fit" in note)
    assert note.startswith("block (HardReshape)")


class HandWrittenAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        query, key, value = (nn.Dense(12, name=name)(x) for name in ("query", "key", "value"))
        scores = query @ key.swapaxes(1, 2) / query.shape[-1] ** 0.5
        return nn.Dense(3)(nn.softmax(scores) @ value)


def test_a_number_that_depends_on_a_size_is_an_error_at_its_line():
    message = error_of(HandWrittenAttention(), normal(2, 5, 6), where=named("query/kernel:1"))
    assert "1/sqrt(head size)" in message and "check=False" in message
    file, number = line_of(__file__, "scores = query @ key.swapaxes(1, 2) / query.shape[-1] ** 0.5").rsplit(":", 1)
    assert re.search(rf"{re.escape(file.rsplit('/', 1)[-1])}:{number}\b", message)


def test_vit_whose_token_has_a_hard_coded_width_is_an_error():
    entry = zoo.linen_vit()
    model = jp.trace(entry.apply_fn, entry.params, *entry.args)
    with pytest.raises(ValueError, match=r"the module \(VisionTransformer\) does not fit"):
        linen.shrink(model, random_plan(model), entry.params)


def test_a_fixer_of_the_users():
    class Halves(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2 * self.width, name="both")(x).reshape(-1, 2, self.width).sum(1)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(Halves(6, name="halves")(x))

    assert error_of(Net(), normal(2, 4)).startswith("halves (Halves) does not fit")
    linen.register_resize(Halves, lambda module, layer: {"width": layer.shape("both/kernel")[-1] // 2})
    x = normal(2, 4)
    check_agrees(Net().apply, init(Net(), x), x, where=named("Dense_0/kernel:0"))


def test_group_norm_without_a_plan_is_an_error_where_the_groups_do_not_divide():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.GroupNorm(4)(nn.Dense(12)(x)))

    module, x = Net(), normal(2, 4)
    variables = init(module, x)
    model = jp.trace(module.apply, variables, x)
    groups = [name for name, group in model.groups.items() if group.size == 4]
    small = linen.shrink(model, jp.Plan({name: [True, False, True, True] for name in groups}), variables)
    assert small["params"]["GroupNorm_0"]["scale"].shape == (9,)
    with pytest.raises(ValueError, match="give follow_shapes the model and the plan"), linen.follow_shapes():
        module.apply(small, x)
